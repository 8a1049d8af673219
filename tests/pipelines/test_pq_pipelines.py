"""What the pipelines on product-quantized latents promise by themselves, with tiny real components."""

import functools
import inspect

import numpy as np
import pytest
import torch
from diffusers import (
    AutoPipelineForImage2Image,
    AutoPipelineForInpainting,
    AutoPipelineForText2Image,
    DiffusionPipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
)
from diffusers.pipelines.stable_diffusion import StableDiffusionSafetyChecker
from PIL import Image
from transformers import CLIPConfig, CLIPImageProcessor

import pqdiff
from pqdiff import PQStableDiffusionImg2ImgPipeline, PQStableDiffusionInpaintPipeline, PQStableDiffusionPipeline
from pqdiff.checkpoints import bundled
from pqdiff.pipelines.pq_latents import DEFAULT_NOISE
from tests.pipelines.support import PROMPT, STEPS, assert_different, build, paint, seeded
from tests.tiny import BASE_CHANNELS, FACTOR, PQ_CHANNELS, SIDE, tiny_autoencoder, tiny_kl_autoencoder, tiny_unet

KINDS = (PQStableDiffusionPipeline, PQStableDiffusionImg2ImgPipeline, PQStableDiffusionInpaintPipeline)
STOCK = (StableDiffusionPipeline, StableDiffusionImg2ImgPipeline, StableDiffusionInpaintPipeline)


@pytest.fixture(scope="module", params=KINDS)
def pipe(request):
    return build(request.param)


@pytest.fixture(scope="module")
def text_to_image():
    return build()


def decoded(pipe, latents: torch.Tensor, **options) -> torch.Tensor:
    with torch.no_grad():
        sample = pipe.vae.decode(latents, **options).sample
    return pipe.image_processor.postprocess(sample, output_type="pt")


def test_latents_are_snapped_before_decoding_on_request(pipe):
    latents = paint(pipe, output_type="latent")
    with torch.no_grad():
        snapped, _ = pipe.vae.quantize(latents)
    assert_different(snapped, latents)
    torch.testing.assert_close(paint(pipe, quantize_latents=True), decoded(pipe, snapped, quantize=False))


def test_latents_are_snapped_softly_by_default(pipe):
    assert pipe.quantize_latents == DEFAULT_NOISE
    softly = decoded(pipe, paint(pipe, output_type="latent"), quantize=DEFAULT_NOISE)
    torch.testing.assert_close(paint(pipe), softly)
    torch.testing.assert_close(paint(pipe, quantize_latents=DEFAULT_NOISE), softly)


@pytest.mark.parametrize("way", [True, False, 0.4])
def test_how_latents_are_snapped_is_saved_with_a_pipeline(way, tmp_path):
    pipe = build(quantize_latents=way)
    pipe.save_pretrained(tmp_path)
    loaded = PQStableDiffusionPipeline.from_pretrained(tmp_path)
    assert loaded.quantize_latents is way or loaded.quantize_latents == way
    torch.testing.assert_close(paint(loaded), paint(pipe, quantize_latents=way))
    other = PQStableDiffusionImg2ImgPipeline.from_pipe(loaded)
    assert other.quantize_latents == loaded.quantize_latents


@pytest.mark.parametrize("way", ["soft", -1.0, float("nan")])
def test_ways_to_snap_that_do_not_exist_are_named(way, text_to_image):
    with pytest.raises(ValueError, match="quantize_latents"):
        build(quantize_latents=way)
    with pytest.raises(ValueError, match="quantize_latents"):
        paint(text_to_image, quantize_latents=way)


def test_latents_are_decoded_as_they_are_on_request(pipe):
    picture = paint(pipe, quantize_latents=False)
    torch.testing.assert_close(picture, decoded(pipe, paint(pipe, output_type="latent"), quantize=False))
    assert_different(picture, paint(pipe))


def test_not_snapping_once_changes_no_later_call(pipe):
    before = paint(pipe)
    paint(pipe, quantize_latents=False)
    assert torch.equal(paint(pipe), before)


def test_generic_loaders_find_the_pipelines(pipe, tmp_path):
    pipe.save_pretrained(tmp_path)
    assert type(DiffusionPipeline.from_pretrained(tmp_path)) is type(pipe)
    autos = (AutoPipelineForText2Image, AutoPipelineForImage2Image, AutoPipelineForInpainting)
    assert [type(auto.from_pretrained(tmp_path)) for auto in autos] == [*KINDS]
    for auto, kind in zip(autos, KINDS, strict=True):
        other = auto.from_pipe(pipe)
        assert type(other) is kind
        assert other.unet is pipe.unet


def test_latents_come_back_as_the_model_left_them(pipe):
    latents = paint(pipe, output_type="latent")
    assert latents.shape == (1, PQ_CHANNELS, SIDE // FACTOR, SIDE // FACTOR)
    assert torch.equal(latents, paint(pipe, output_type="latent", quantize_latents=False))


@pytest.mark.parametrize("quantize_latents", [True, False])
def test_every_output_type_shows_the_same_picture(pipe, quantize_latents):
    call = {"quantize_latents": quantize_latents}
    tensor = paint(pipe, **call)
    assert tensor.shape == (1, 3, SIDE, SIDE)
    array = paint(pipe, output_type="np", **call)
    assert isinstance(array, np.ndarray)
    np.testing.assert_array_equal(array, tensor.permute(0, 2, 3, 1).numpy())
    (picture,) = paint(pipe, output_type="pil", **call)
    assert isinstance(picture, Image.Image)
    np.testing.assert_array_equal(np.asarray(picture), (array[0] * 255).round().astype(np.uint8))


@pytest.mark.parametrize("quantize_latents", [True, False])
def test_without_return_dict_pictures_and_flags_are_a_tuple(text_to_image, quantize_latents):
    call = {"num_inference_steps": STEPS, "output_type": "pt", "quantize_latents": quantize_latents}
    output = text_to_image(PROMPT, generator=seeded(), return_dict=False, **call)
    assert isinstance(output, tuple)
    assert torch.equal(output[0], text_to_image(PROMPT, generator=seeded(), **call).images)
    assert output[1] is None


@pytest.mark.parametrize("quantize_latents", [True, False])
def test_the_safety_checker_sees_every_picture(quantize_latents):
    torch.manual_seed(0)
    tower = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    config = CLIPConfig(text_config=tower, vision_config={**tower, "image_size": 8, "patch_size": 4}, projection_dim=8)
    checker = StableDiffusionSafetyChecker(config).eval()
    with torch.no_grad():  # every picture is closer than -1.1 to a forbidden concept
        checker.concept_embeds_weights.fill_(-1.1)
        checker.special_care_embeds_weights.fill_(2)
    small = {"size": {"shortest_edge": 8}, "crop_size": {"height": 8, "width": 8}}
    pipe = build(safety_checker=checker, feature_extractor=CLIPImageProcessor(**small), requires_safety_checker=True)
    call = {"num_inference_steps": 1, "output_type": "pt", "quantize_latents": quantize_latents}
    output = pipe(PROMPT, **call)
    assert output.nsfw_content_detected == [True]
    assert output.images.abs().max() == 0
    with torch.no_grad():
        checker.concept_embeds_weights.fill_(2)
    output = pipe(PROMPT, **call)
    assert output.nsfw_content_detected == [False]
    assert output.images.std() > 0


def test_a_stock_pipeline_of_the_same_components_paints_the_same_picture(text_to_image):
    stock = StableDiffusionPipeline(**text_to_image.components, requires_safety_checker=False)
    stock.set_progress_bar_config(disable=True)
    assert torch.equal(paint(text_to_image, quantize_latents=True), paint(stock))


@pytest.mark.parametrize(("kind", "stock_class"), [*zip(KINDS, STOCK, strict=True)])
def test_with_a_kl_autoencoder_everything_is_as_in_the_stock_pipeline(kind, stock_class):
    pipe = build(kind, vae=tiny_kl_autoencoder(), unet=tiny_unet(BASE_CHANNELS))
    stock = stock_class(**pipe.components, requires_safety_checker=False)
    stock.set_progress_bar_config(disable=True)
    for quantize_latents in (True, False):
        # Not bit for bit: the stock pipeline may keep another memory layout of the same latents.
        torch.testing.assert_close(paint(pipe, quantize_latents=quantize_latents), paint(stock))


@pytest.mark.parametrize("kind", KINDS)
def test_latents_that_an_autoencoder_shifts_are_shifted_back(kind):
    pipe = build(kind, vae=tiny_kl_autoencoder(shift_factor=0.5, scaling_factor=0.3), unet=tiny_unet(BASE_CHANNELS))
    latents = paint(pipe, output_type="latent")
    torch.testing.assert_close(paint(pipe), decoded(pipe, latents / 0.3 + 0.5))
    picture = torch.rand(1, 3, SIDE, SIDE) * 2 - 1
    with torch.no_grad():
        mean = pipe.vae.encode(picture).latent_dist.mean
        encoded = torch.stack([pipe._encode(picture, seeded(i)) for i in range(64)]).mean(dim=0)
        spread = pipe.vae.encode(picture).latent_dist.std
    assert ((encoded / 0.3 + 0.5 - mean).abs() < spread).all()


def test_image_to_image_says_that_a_strength_leaves_no_step():
    with pytest.raises(ValueError, match=r"strength \(0.1\) of 3 steps leaves none"):
        paint(build(PQStableDiffusionImg2ImgPipeline), strength=0.1)


def test_the_call_is_described_with_its_new_argument():
    for kind, stock_class in zip(KINDS, STOCK, strict=True):
        parameters = inspect.signature(kind.__call__).parameters
        assert parameters["quantize_latents"].default is None
        old = [*inspect.signature(stock_class.__call__).parameters]
        assert [name for name in parameters if name not in ("quantize_latents", "kwargs")] == [
            name for name in old if name != "kwargs"
        ]


def test_positional_arguments_mean_what_they_mean_in_the_stock_pipeline(text_to_image):
    call = {"generator": seeded(), "output_type": "pt", "quantize_latents": False}
    picture = text_to_image(PROMPT, SIDE, 2 * SIDE, STEPS, **call).images
    assert picture.shape == (1, 3, SIDE, 2 * SIDE)
    assert torch.equal(picture, paint(text_to_image, height=SIDE, width=2 * SIDE, quantize_latents=False))


@pytest.mark.parametrize("quantize_latents", [True, False])
def test_slicing_paints_the_same_pictures(quantize_latents):
    pipe = build(vae=tiny_autoencoder())
    call = {"num_images_per_prompt": 2, "quantize_latents": quantize_latents}
    whole = paint(pipe, **call)
    pipe.vae.enable_slicing()
    torch.testing.assert_close(paint(pipe, **call), whole)


def test_a_compiled_autoencoder_can_leave_latents_unsnapped_too():
    pipe = build()
    expected = paint(pipe, quantize_latents=False)
    pipe.vae = torch.compile(pipe.vae)
    assert torch.equal(paint(pipe, quantize_latents=False), expected)


def test_the_class_is_found_only_when_it_is_asked_for():
    assert pqdiff.PQStableDiffusionPipeline is PQStableDiffusionPipeline
    assert {kind.__name__ for kind in KINDS} <= {*dir(pqdiff), *pqdiff.__all__}
    with pytest.raises(AttributeError, match="'pqdiff' has no attribute 'PQStableDiffusion'"):
        _ = pqdiff.PQStableDiffusion


@pytest.mark.parametrize("kind", KINDS)
def test_one_kind_of_pipeline_becomes_another_and_keeps_its_components(text_to_image, kind):
    other = kind.from_pipe(text_to_image)
    assert type(other) is kind
    assert all(other.components[name] is component for name, component in text_to_image.components.items())


@pytest.mark.parametrize("kind", KINDS)
def test_saved_and_loaded_it_paints_the_same_picture(kind, tmp_path, capfd):
    pipe = build(kind)
    pipe.save_pretrained(tmp_path)
    loaded = kind.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    assert torch.equal(paint(loaded), paint(pipe))
    assert "Expected types" not in capfd.readouterr().err
    for name in ("vae", "unet", "text_encoder"):
        weights, expected = loaded.components[name].state_dict(), pipe.components[name].state_dict()
        assert weights.keys() == expected.keys()
        assert all(torch.equal(weights[key], expected[key]) for key in expected)


def test_a_folder_loads_without_some_of_its_components(text_to_image, tmp_path):
    text_to_image.save_pretrained(tmp_path)
    loaded = PQStableDiffusionPipeline.from_pretrained(tmp_path, text_encoder=None, tokenizer=None, vae=None)
    loaded.set_progress_bar_config(disable=True)
    prompt_embeds, negative = text_to_image.encode_prompt(PROMPT, "cpu", 1, True)
    call = {"output_type": "latent", "height": SIDE, "width": SIDE}
    loaded.vae_scale_factor = FACTOR  # without an autoencoder diffusers takes it to be 8
    latents = paint(loaded, None, prompt_embeds=prompt_embeds, negative_prompt_embeds=negative, **call)
    torch.testing.assert_close(latents, paint(text_to_image, **call))


@pytest.mark.parametrize("sides", [(72, 72), (64, 72), (None, 8), (8, None), (-64, 64)])
@pytest.mark.parametrize("kind", [PQStableDiffusionPipeline, PQStableDiffusionInpaintPipeline])
def test_a_size_that_latents_cannot_have_is_refused_with_the_divisor(kind, sides):
    pipe = load_tiny_quick(kind)
    images = {"image": Image.new("RGB", (64, 64)), "mask_image": Image.new("L", (64, 64), 255)}
    call = images if kind is PQStableDiffusionInpaintPipeline else {}
    with pytest.raises(ValueError, match=r"must be a positive multiple of 16 pixels for an autoencoder with F = 16"):
        pipe(PROMPT, height=sides[0], width=sides[1], num_inference_steps=1, **call)


@pytest.mark.parametrize("size", [(72, 64), (64, 8)])
@pytest.mark.parametrize("kind", ["PIL", "list", "array", "tensor"])
def test_an_image_of_a_size_that_latents_cannot_have_is_refused_not_made_smaller(kind, size):
    image = Image.new("RGB", size)
    pixels = np.zeros((2, *size[::-1], 3), dtype=np.float32)
    image = {"PIL": image, "list": [image], "array": pixels, "tensor": torch.from_numpy(pixels).movedim(3, 1)}[kind]
    wrong = (
        r"width of image \(72\).* F = 16: take 64 or 80" if 72 in size else r"height of image \(8\).* F = 16: take 16"
    )
    with pytest.raises(ValueError, match=wrong):
        load_tiny_quick(PQStableDiffusionImg2ImgPipeline)(PROMPT, image=image)


@functools.cache
def load_tiny_quick(kind):
    return kind.from_pretrained(bundled("tiny-quick"))
