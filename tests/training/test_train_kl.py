"""`training/train_kl.py` trains an autoencoder that stock pipelines take."""

import pytest
import torch
from diffusers import AutoencoderKL

from pqdiff.data.images.reading import normalize, to_tensor
from pqdiff.data.scenes.scenes import SceneDataset
from pqdiff.training.stopping import run
from tests.tiny import SIDE
from tests.training.support import (
    assert_same_state,
    copy_until,
    flags,
    join,
    losses,
    start_ranks,
    state_of,
    steps_of,
    weights_of,
)
from training import train_kl

MODEL = {
    "down_block_types": ["DownEncoderBlock2D"] * 2,
    "up_block_types": ["UpDecoderBlock2D"] * 2,
    "block_out_channels": [8, 16],
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "latent_channels": 4,
    "sample_size": SIDE,
}
STEPS = 4


def kl_flags(output_dir, **options):
    defaults = {
        "num_scenes": 24, "resolution": SIDE, "steps": STEPS, "learning_rate": 1e-2, "batch_size": 2, "model": MODEL,
        "ema_decay": 0.5, "checkpointing_steps": 2, "checkpoints_total_limit": 9, "log_steps": 1,
    }  # fmt: skip
    return flags(output_dir=output_dir, **{**defaults, **options})


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kl") / "run"
    train_kl.main(kl_flags(folder))
    return folder


def test_the_result_is_the_averaged_autoencoder(trained):
    state, weights = state_of(trained, STEPS), weights_of(trained / "vae")
    prefix = "ema_model.safetensors autoencoder."
    assert all(torch.equal(tensor, state[f"{prefix}{name}"]) for name, tensor in weights.items())
    assert len(weights) == len(AutoencoderKL(**MODEL).state_dict())


@torch.no_grad()
def test_scaled_latents_have_unit_variance(trained):
    vae = AutoencoderKL.from_pretrained(trained / "vae")
    scenes = SceneDataset(24, SIDE)
    images = torch.stack([normalize(to_tensor(scenes[i]["image"])) for i in range(24)])
    latents = vae.encode(images).latent_dist.mode() * vae.config.scaling_factor
    assert latents.std().item() == pytest.approx(1, abs=0.01)


def test_training_lowers_the_error(tmp_path):
    train_kl.main(kl_flags(tmp_path, steps=30, batch_size=4, checkpointing_steps=100))
    log = [line["mse"] for line in steps_of(tmp_path)]
    assert sum(log[-5:]) < 0.7 * sum(log[:5])


def test_a_resumed_run_ends_in_the_same_state(trained, tmp_path):
    output = copy_until(trained, tmp_path / "run", 2)
    train_kl.main(kl_flags(output, resume=True))
    assert_same_state(state_of(output, STEPS), state_of(trained, STEPS))
    assert losses(output) == losses(trained)


def test_two_processes_train_as_one_with_their_samples_together(trained, tmp_path):
    log = tmp_path / "log"
    ranks = start_ranks("train_kl", kl_flags(tmp_path / "run", batch_size=1), log)
    codes = [join(process, log.with_suffix(f".{rank}")) for rank, process in enumerate(ranks)]
    assert codes == [0, 0], log.with_suffix(".0").read_text() + log.with_suffix(".1").read_text()
    found, expected = state_of(tmp_path / "run", STEPS), state_of(trained, STEPS)
    differences = torch.cat(
        [(found[name] - expected[name]).abs().flatten() for name in expected if name.startswith("model")]
    )
    assert differences.quantile(0.99) < 1e-4


def test_gradients_accumulate_to_those_of_the_whole_batch(trained, tmp_path):
    train_kl.main(kl_flags(tmp_path, batch_size=1, gradient_accumulation_steps=2))
    assert [loss for _, loss, _ in losses(tmp_path)] == pytest.approx(
        [loss for _, loss, _ in losses(trained)], rel=1e-3
    )


def test_a_frozen_encoder_keeps_the_latents(trained, tmp_path):
    options = {"init": trained / "vae", "freeze_encoder": True, "ema_decay": 0.0, "steps": 2, "recolor": True}
    train_kl.main(kl_flags(tmp_path, **options))
    before, after = weights_of(trained / "vae"), weights_of(tmp_path / "vae")
    frozen = [name for name in before if name.startswith(("encoder.", "quant_conv."))]
    assert all(torch.equal(before[name], after[name]) for name in frozen)
    assert not all(torch.equal(before[name], after[name]) for name in before)
    configs = [AutoencoderKL.load_config(folder / "vae") for folder in (trained, tmp_path)]
    assert configs[0]["scaling_factor"] == configs[1]["scaling_factor"]


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"model": {"latent_channel": 4}}, "--model: unknown key latent_channel: did you mean 'latent_channels'?"),
        ({"steps": 0}, "steps (0) must be a positive integer"),
        ({"learning_rate": -1}, "learning_rate (-1.0) must be a positive number"),
        ({"num_scenes": 0}, "num_scenes (0) must be at least 1"),
        ({"init": "nowhere"}, "nowhere"),
    ],
    ids=str,
)
def test_mistakes_end_the_trainer_with_one_line(tmp_path, monkeypatch, options, named):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(SystemExit) as stopped:
        run(lambda: train_kl.main(kl_flags(tmp_path / "run", **options)))
    assert named in str(stopped.value.code)
