"""The comparison of inits and exponents, with tiny components: what it promises is what it measures."""

import argparse
import json

import pytest
import torch

from benchmarks.adaptation import Experiment, plot, spread, with_exponent
from tests.tiny import tiny_autoencoder, tiny_base_pipeline


@pytest.fixture(scope="module")
def experiment(tmp_path_factory) -> Experiment:
    folder = tmp_path_factory.mktemp("models")
    tiny_base_pipeline().save_pretrained(folder / "base")
    statistics = {"mean": [0.0] * 8, "std": [2.0, 1.0, 1.0, 0.5, 0.5, 0.3, 0.3, 0.1]}
    tiny_autoencoder(sample_size=32, statistics_config=statistics).save_pretrained(folder / "vae")
    args = argparse.Namespace(
        base=str(folder / "base"), autoencoder=str(folder / "vae"), num_prompts=2, batch_size=4, solve_batches=2,
        validation_batches=1, freeze_steps=2, freeze_rate=1e-3, finetune_steps=1, finetune_rate=1e-4, inference_steps=2,
        mixed_precision="no", noise_density=[0.4, 1.8],
    )  # fmt: skip
    return Experiment(args)


def test_another_exponent_changes_the_latents_scale_and_not_the_picture(experiment):
    whitened = with_exponent(experiment.autoencoder, 1.0)
    picture = torch.rand(1, 3, 32, 32) * 2 - 1
    with torch.no_grad():
        outputs = [model.encode(picture) for model in (experiment.autoencoder, whitened)]
        pictures = [
            model.decode(output.latents).sample
            for model, output in zip((experiment.autoencoder, whitened), outputs, strict=True)
        ]
    assert torch.equal(outputs[0].indices, outputs[1].indices)
    assert not torch.allclose(outputs[0].latents, outputs[1].latents)
    torch.testing.assert_close(pictures[0], pictures[1])


def test_validation_loss_is_the_same_question_every_time(experiment):
    pipeline = experiment.pipeline("variance", 0.0, seed=0)
    assert experiment.validation_loss(pipeline) == experiment.validation_loss(pipeline)


def test_solved_projections_start_below_copied_ones(experiment):
    losses = {init: experiment.validation_loss(experiment.pipeline(init, 0.0, 0)) for init in ("copy", "lstsq")}
    assert losses["lstsq"] < losses["copy"]


def test_a_run_measures_where_it_says_and_its_plot_can_be_drawn(experiment, tmp_path):
    result = json.loads(json.dumps(experiment.run("zero", 0.0, 0)))
    assert list(map(int, result["validation_loss_in_freeze_stage"])) == spread(2, 8)
    assert set(map(int, result["prompts_right_in_finetuning"])) == {0, 1}
    plot([result, {**result, "init": "variance"}], tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 1000


def test_measurements_are_denser_early_and_include_both_ends():
    assert spread(100, 5) == [0, 4, 16, 36, 64, 100]
