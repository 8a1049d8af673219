"""`training/train_ldm.py` trains UNet and text encoder together, and leaves a stock pipeline."""

import signal

import pytest
import torch
from diffusers import StableDiffusionPipeline

from pqdiff.training.stopping import run
from tests.tiny import SIDE, TEXT_WIDTH
from tests.training.support import (
    assert_same_state,
    copy_until,
    flags,
    join,
    losses,
    start,
    start_ranks,
    state_of,
    steps_of,
    weights_of,
)
from training import train_ldm

MODEL = {
    "unet": {
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
        "block_out_channels": [8, 16],
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "attention_head_dim": 4,
        "cross_attention_dim": TEXT_WIDTH,
    },
    "text_encoder": {
        "hidden_size": TEXT_WIDTH,
        "intermediate_size": TEXT_WIDTH,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    },
    "scheduler": {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"},
}
STEPS = 4


def ldm_flags(models, output_dir, **options):
    defaults = {
        "autoencoder": models / "kl", "dataset": "scenes", "num_scenes": 24, "resolution": SIDE, "steps": STEPS,
        "learning_rate": 1e-2, "batch_size": 2, "model": MODEL, "ema_decay": 0.5, "checkpointing_steps": 2,
        "checkpoints_total_limit": 9, "log_steps": 1, "min_snr_gamma": 5.0, "lr_schedule": "cosine",
    }  # fmt: skip
    return flags(output_dir=output_dir, **{**defaults, **options})


@pytest.fixture(scope="module")
def trained(models, tmp_path_factory):
    folder = tmp_path_factory.mktemp("ldm") / "run"
    train_ldm.main(ldm_flags(models, folder))
    return folder


def test_the_result_is_a_stock_pipeline_of_ema_models(trained):
    pipe = StableDiffusionPipeline.from_pretrained(trained / "pipeline")
    state = state_of(trained, STEPS)
    for part in ("unet", "text_encoder"):
        for name, tensor in getattr(pipe, part).state_dict().items():
            assert torch.equal(tensor, state[f"ema_{part}.safetensors {name}"])
    pipe.set_progress_bar_config(disable=True)
    image = pipe("a small red circle", num_inference_steps=2, output_type="pt", generator=torch.manual_seed(0)).images
    assert image.shape == (1, 3, SIDE, SIDE)
    assert image.std() > 0


def test_unet_and_text_encoder_both_learn(trained):
    before, after = state_of(trained, 2), state_of(trained, STEPS)
    for file in ("model.safetensors", "model_1.safetensors"):
        names = [name for name in before if name.startswith(f"{file} ")]
        assert sum(not torch.equal(before[name], after[name]) for name in names) > 0.8 * len(names)


def test_the_tokenizer_of_the_scenes_is_the_default(trained):
    pipe = StableDiffusionPipeline.from_pretrained(trained / "pipeline")
    assert len(pipe.tokenizer("a small red circle").input_ids) == 6
    assert pipe.text_encoder.config.vocab_size == len(pipe.tokenizer)


def test_a_resumed_run_ends_in_the_same_state(models, trained, tmp_path):
    output = copy_until(trained, tmp_path / "run", 2)
    train_ldm.main(ldm_flags(models, output, resume=True))
    assert_same_state(state_of(output, STEPS), state_of(trained, STEPS))
    assert losses(output) == losses(trained)


def test_a_killed_run_ends_in_the_same_state(models, trained, tmp_path):
    output, log = tmp_path / "run", tmp_path / "log"
    process = start("train_ldm", ldm_flags(models, output), log, moment=("os.rename", "checkpoint-00000004"))
    assert join(process, log) == -signal.SIGKILL, log.read_text()
    train_ldm.main(ldm_flags(models, output, resume=True))
    assert_same_state(state_of(output, STEPS), state_of(trained, STEPS))


@pytest.mark.slow
def test_two_processes_train_as_one(models, trained, tmp_path):
    log = tmp_path / "log"
    ranks = start_ranks("train_ldm", ldm_flags(models, tmp_path / "run", batch_size=1), log)
    codes = [join(process, log.with_suffix(f".{rank}")) for rank, process in enumerate(ranks)]
    assert codes == [0, 0], log.with_suffix(".0").read_text() + log.with_suffix(".1").read_text()
    found, expected = state_of(tmp_path / "run", STEPS), state_of(trained, STEPS)
    names = [name for name in expected if name.startswith(("model", "ema_"))]
    differences = torch.cat([(found[name] - expected[name]).abs().flatten() for name in names])
    assert differences.quantile(0.99) < 1e-4
    assert [line["learning_rate"] for line in steps_of(tmp_path / "run")] == [
        line["learning_rate"] for line in steps_of(trained)
    ]


def test_training_goes_on_from_a_pipeline(trained, models, tmp_path):
    options = {"autoencoder": None, "model": None, "init": trained / "pipeline", "steps": 1, "learning_rate": 1e-6}
    train_ldm.main(ldm_flags(models, tmp_path, **options, weight_decay=0))
    pipelines = [StableDiffusionPipeline.from_pretrained(folder / "pipeline") for folder in (tmp_path, trained)]
    for part in ("unet", "text_encoder"):
        found, expected = (getattr(pipeline, part).state_dict() for pipeline in pipelines)
        assert all(torch.allclose(found[name], expected[name], atol=1e-5) for name in expected)
        assert any(not torch.equal(found[name], expected[name]) for name in expected)


def test_a_pipeline_that_is_trained_at_another_size_generates_at_that(trained, models, tmp_path):
    options = {"autoencoder": None, "model": None, "init": trained / "pipeline", "steps": 1, "resolution": 2 * SIDE}
    train_ldm.main(ldm_flags(models, tmp_path, **options))
    assert StableDiffusionPipeline.from_pretrained(tmp_path / "pipeline").unet.config.sample_size == SIDE


def test_latents_may_be_product_quantized(models, tmp_path):
    train_ldm.main(ldm_flags(models, tmp_path, autoencoder=models / "linear", steps=1, mixed_precision="bf16"))
    assert weights_of(tmp_path / "pipeline" / "unet")["conv_in.weight"].shape[1] == 8


def test_the_autoencoder_may_be_given_by_the_name_of_a_shipped_model():
    vae = train_ldm.frozen_autoencoder("pqgan-f16-d128-s64-k128")
    assert vae.config.latent_channels == 128
    assert not vae.training
    assert not any(parameter.requires_grad for parameter in vae.parameters())


def test_validation_images_are_generated(models, tmp_path):
    options = {"validation_prompts": ("a red circle",), "validation_steps": 1, "inference_steps": 1, "steps": 1}
    train_ldm.main(ldm_flags(models, tmp_path, **options))
    assert (tmp_path / "validation" / "step-00000001.png").is_file()


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"autoencoder": None}, "--autoencoder is missing"),
        ({"autoencoder": "nowhere"}, "nowhere"),
        ({"dataset": None}, "--dataset is missing"),
        ({"init": "tiny-base"}, "--model cannot be used: --init tiny-base"),
        ({"init": "tiny-bas", "model": None}, "tiny-bas"),
        ({"model": {"unett": {}}}, "--model: unknown key unett: did you mean 'unet'?"),
        ({"model": {"unet": {"layers_per_blok": 1}}}, "layers_per_blok: did you mean 'layers_per_block'?"),
        ({"model": {**MODEL, "text_encoder": {"hiden_size": 8}}}, "did you mean 'hidden_size'?"),
        ({"model": {**MODEL, "scheduler": {"prediction": 8}}}, "did you mean 'prediction_type'?"),
        ({"model": 3}, "--model must be a mapping"),
        ({"steps": 0}, "steps (0) must be a positive integer"),
        ({"resolution": 33}, "resolution (33) must be divisible by 2"),
    ],
    ids=str,
)
def test_mistakes_end_the_trainer_with_one_line(models, tmp_path, monkeypatch, options, named):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(SystemExit) as stopped:
        run(lambda: train_ldm.main(ldm_flags(models, tmp_path / "run", **options)))
    assert named in str(stopped.value.code)
