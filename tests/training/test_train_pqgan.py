"""`training/train_pqgan.py` trains autoencoders: what learns when, what is measured, and what is left behind."""

import pytest
import torch

from pqdiff import AutoencoderPQ
from pqdiff.data.images.reading import normalize, to_tensor
from pqdiff.data.scenes.scenes import SceneDataset
from pqdiff.fitting.closed_form import fit_closed_form
from pqdiff.training.stopping import run
from tests.tiny import SIDE
from tests.training.pqgan import (
    DISC_START,
    MODEL,
    NETWORKS,
    PRESET,
    STEPS,
    VALIDATION,
    part,
    pqgan_flags,
    strip,
    train,
    validations,
    whole_state,
)
from tests.training.support import losses, steps_of, weights_of
from training import train_pqgan

MEASURED = ["quantizer.frequencies"]  # not learned, measured at the end of a run


def changed(folder, prefix, before, after):
    """Names of tensors that two checkpoints of a run do not share."""
    first, second = (part(whole_state(folder, step), prefix) for step in (before, after))
    return {name.split(" ")[1] for name in first if not torch.equal(first[name], second[name])}


# What learns when.


def test_every_batch_updates_the_autoencoder_and_from_its_start_on_the_discriminator(trained):
    optimizers = [torch.load(trained / f"checkpoint-{STEPS:08d}" / f"optimizer{n}.bin") for n in ("", "_1")]
    counts = [{int(values["step"]) for values in optimizer["state"].values()} for optimizer in optimizers]
    assert counts == [{STEPS}, {STEPS - DISC_START}]


def test_the_discriminator_rests_before_its_start_and_learns_after(trained):
    assert not changed(trained, "model_1.safetensors", 2, DISC_START)
    learned = changed(trained, "model_1.safetensors", DISC_START, STEPS)
    assert {"main.0.weight", "main.5.weight"} <= learned


def test_the_discriminator_can_learn_before_it_counts(tmp_path):
    train(tmp_path, disc_start=6, disc_pretrain_steps=4, steps=4)
    assert changed(tmp_path, "model_1.safetensors", 2, 4)
    assert {line["disc_weight"] for line in steps_of(tmp_path)} == {0.0}


def test_all_weights_of_the_autoencoder_learn(trained):
    names = set(weights_of(trained / "autoencoder")) - set(MEASURED)
    assert changed(trained, "model.safetensors", 2, STEPS) == names


def test_the_ema_is_neither_the_start_nor_the_raw_weights(trained):
    state = whole_state(trained)
    raw, ema = (part(state, name) for name in ("model.safetensors", "ema_autoencoder.safetensors"))
    pairs = [(raw[f"model.safetensors {name}"], tensor) for name, tensor in strip(ema).items()]
    assert len(pairs) == len(raw)
    assert [name for name in strip(ema) if torch.equal(raw[f"model.safetensors {name}"], strip(ema)[name])] == MEASURED


def test_a_weight_of_0_trains_without_discriminator(tmp_path):
    train(tmp_path, adversarial_weight=0, steps=2)
    assert not (tmp_path / "checkpoint-00000002" / "model_1.safetensors").exists()
    assert not (tmp_path / "discriminator").exists()
    assert "disc_loss" not in steps_of(tmp_path)[-1]


def test_a_learning_rate_of_0_freezes_a_group(tmp_path):
    options = {"linear_learning_rate": 0, "codebook_learning_rate": 0, "steps": 4, "adversarial_weight": 0}
    train(tmp_path, **options, weight_decay=0.1)
    learned = changed(tmp_path, "model.safetensors", 2, 4)
    assert learned
    assert not [name for name in learned if name.startswith(("transform.parts.0.", "quantizer."))]


def test_groups_have_their_own_learning_rates(tmp_path):
    options = {"linear_learning_rate": 1e-4, "codebook_learning_rate": 2e-4, "encoder_learning_rate": 5e-4}
    train(tmp_path, **options, adversarial_weight=0, lr_schedule="linear", steps=4)
    optimizer = torch.load(tmp_path / "checkpoint-00000004" / "optimizer.bin")
    rates = {group["name"]: group["lr"] for group in optimizer["param_groups"]}
    expected = {"encoder": 5e-4, "decoder": 1e-3, "linear": 1e-4, "codebooks": 2e-4}
    assert rates == pytest.approx({name: rate / 4 for name, rate in expected.items()})
    moved = changed(tmp_path, "model.safetensors", 2, 4)
    assert "quantizer.codebooks" in moved
    assert any(name.startswith("transform.parts.1.encoder.") for name in moved)


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_the_learning_rate_is_that_of_the_flag_and_the_schedule_ends_with_the_run(tmp_path, schedule):
    train(tmp_path, steps=4, lr_schedule=schedule, batch_size=1, adversarial_weight=0)
    rates = [rate for _, _, rate in losses(tmp_path)]
    assert rates[0] == 1e-3
    assert rates[-1] == pytest.approx({"constant": 1e-3, "cosine": 1.464e-4}[schedule], rel=1e-3)


def test_gradients_accumulate_to_those_of_the_whole_batch(trained, tmp_path):
    """Up to batch norm and the adaptive weight, which see one micro-batch: hence before the discriminator's start."""
    train(tmp_path, batch_size=2, gradient_accumulation_steps=2, steps=DISC_START)
    expected, found = (part(whole_state(folder, DISC_START), "model.") for folder in (trained, tmp_path))
    differences = torch.cat([(expected[name] - found[name]).abs().flatten() for name in expected])
    assert differences.quantile(0.99) < 1e-4


def test_codewords_are_searched_in_fp32_under_autocast(tmp_path):
    train(tmp_path, mixed_precision="bf16", steps=6)
    log = steps_of(tmp_path)
    assert all(line["loss"] == line["loss"] for line in log)
    assert {tensor.dtype for tensor in weights_of(tmp_path / "autoencoder").values()} == {torch.float32}
    model = AutoencoderPQ.from_pretrained(tmp_path / "autoencoder")
    latents = torch.randn(1, 8, 8, 8)
    with torch.autocast("cpu", torch.bfloat16):
        inside = model.quantizer(latents)
    assert torch.equal(inside.indices, model.quantizer(latents).indices)
    assert inside.loss.dtype == torch.float32


def test_unused_codewords_are_moved_to_latents_and_start_without_a_past(tmp_path):
    options = {"codebook_learning_rate": 1e-9, "adversarial_weight": 0, "steps": 4}
    model = {**MODEL, "quantizer_config": {"num_subspaces": 4, "codebook_size": 64}}
    for every in (0, 3):
        train(tmp_path / str(every), model=model, restart_dead_codewords=every, **options)
    kept, moved = (weights_of(tmp_path / str(every) / "autoencoder")["quantizer.codebooks"] for every in (0, 3))
    start = weights_of(tmp_path / "0" / "init")["quantizer.codebooks"]
    torch.testing.assert_close(kept, start, atol=1e-6, rtol=0)
    rows = (moved - start).abs().amax(2) > 1e-3
    assert 0 < rows.sum() < rows.numel()
    assert steps_of(tmp_path / "3")[-1]["quantizer_loss"] <= steps_of(tmp_path / "0")[-1]["quantizer_loss"]


# Where it begins.


def test_the_closed_form_is_the_start_and_new_networks_are_silent(tmp_path):
    options = {"init": "closed_form", "preset": PRESET, "model": NETWORKS, "steps": 1, "learning_rate": 1e-12}
    train(tmp_path, **options, **VALIDATION)
    scenes = SceneDataset(24, SIDE)
    fitted = fit_closed_form((to_tensor(scenes[i * 3]["image"]) for i in range(8)), PRESET)
    model = AutoencoderPQ.from_pretrained(tmp_path / "init")
    assert len(model.transform.parts) == 2
    images = torch.stack([normalize(to_tensor(scenes[i]["image"])) for i in range(4)])
    with torch.no_grad():
        torch.testing.assert_close(model(images).sample, fitted(images).sample)
    assert validations(tmp_path)[0]["psnr_dataset"] == pytest.approx(
        validations(tmp_path)[1]["psnr_dataset"], abs=1e-3
    )


def test_training_from_the_closed_form_starts_far_ahead_and_lowers_the_error(tmp_path):
    options = {"adversarial_weight": 0, "l1_weight": 0, "l2_weight": 1, "num_scenes": 4, "learning_rate": 2e-3}
    options |= {"linear_learning_rate": 1e-4, "codebook_learning_rate": 1e-4, "checkpointing_steps": 100}
    train(tmp_path / "random", **options, preset=PRESET, model=NETWORKS, steps=5)
    train(tmp_path / "fitted", **options, preset=PRESET, model=NETWORKS, init="closed_form", steps=60)
    random, fitted = ([line["l2_loss"] for line in steps_of(tmp_path / name)] for name in ("random", "fitted"))
    assert fitted[0] < 0.1 * random[0]
    assert max(fitted) < 2 * fitted[0]  # the start is not lost
    assert sum(fitted[-5:]) < 0.8 * sum(fitted[:5])


def test_a_run_can_go_on_from_another_one_at_another_resolution(trained, tmp_path):
    options = {"init": trained / "autoencoder", "model": {}, "resolution": 2 * SIDE, "batch_size": 1, "steps": 1}
    train(tmp_path, **options, disc_init=trained / "discriminator", learning_rate=1e-12)
    for name in ("autoencoder", "discriminator"):
        before, after = weights_of(trained / name), weights_of(tmp_path / name)
        assert all(
            torch.allclose(before[key], after[key]) for key in before if "running" not in key and key not in MEASURED
        )
    assert AutoencoderPQ.load_config(tmp_path / "autoencoder")["_class_name"] == "AutoencoderPQ"


# What is refused.


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"dataset": None}, "--dataset is missing"),
        ({"model": {"latent_channel": 8}}, "--model: unknown key latent_channel: did you mean 'latent_channels'?"),
        ({"init": "closed_form"}, "--init closed_form needs --preset"),
        ({"init": "nowhere"}, "model (nowhere) is neither a shipped model"),
        ({"learning_rate": 0}, "nothing learns"),
        ({"learning_rate": -1.0}, "learning rate of the encoder (-1.0) must be"),
        ({"resolution": 33}, "resolution (33) must be positive and divisible by 2"),
        ({"min_crop_scale": 2}, "min_crop_scale (2.0) must be between 0 and 1"),
        ({"discriminator": {"layers": 2}}, "--discriminator: unknown key layers: did you mean 'num_layers'?"),
        ({"hold_out": 1}, "--hold_out (1) must be 0 (leave out none) or at least 2"),
        ({"steps": 0}, "steps (0) must be a positive integer"),
        (
            {"restart_dead_codewords": 2, "model": {**MODEL, "quantizer_type": "finite_scalar",
             "quantizer_config": {"levels": 4}}},
            "codewords of quantizer_type finite_scalar cannot be restarted",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_mistakes_end_the_trainer_with_one_line(tmp_path, monkeypatch, options, named):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(SystemExit) as stopped:
        run(lambda: train_pqgan.main(pqgan_flags(tmp_path / "run", **options)))
    assert named in str(stopped.value.code)


def test_a_loss_that_is_no_number_stops_with_its_batch_saved(tmp_path):
    with pytest.raises(ValueError, match="the loss is not finite at step"):
        train(tmp_path, learning_rate=1e30, max_grad_norm=0)
    (saved,) = tmp_path.glob("nonfinite-*.pt")
    assert torch.load(saved)["batch"]["pixels"].shape == (4, 3, SIDE, SIDE)
