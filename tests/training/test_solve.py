"""Projections that are solved from data start better than those that are copied."""

import pytest
import torch
from torch.nn import functional as F

from pqdiff import PQStableDiffusionPipeline
from pqdiff.data.captions.captioned import open_captioned
from pqdiff.training.batches import Layout
from pqdiff.training.diffusion import DiffusionObjective
from pqdiff.training.randomness import generator_for
from pqdiff.training.samples import ImageSamples, Preparation, latents_of
from pqdiff.training.solve import solve_conv_in, solve_conv_out
from pqdiff.training.text import frozen_states
from tests.tiny import FACTOR, SIDE, tiny_autoencoder, tiny_base_pipeline

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def scenes():
    return open_captioned("scenes", num_samples=64, resolution=SIDE)


@pytest.fixture(scope="module")
def autoencoder():
    return tiny_autoencoder(linear=True)


@pytest.fixture(scope="module")
def conv_in_map(scenes, autoencoder):
    return solve_conv_in(scenes, SIDE, tiny_base_pipeline().vae, autoencoder, CPU, count=48)


def loss_of(pipe, scenes, seed=9):
    objective = DiffusionObjective(pipe.scheduler)
    samples = ImageSamples(scenes, Preparation(SIDE, FACTOR))
    total = 0.0
    for number, (batch,) in enumerate(samples.batches(Layout(8), seed, 0, 4)):
        latents = latents_of(batch, pipe.vae, CPU)
        sample = objective.noisy(latents, [generator_for(seed, number, i) for i in range(8)])
        with torch.no_grad():
            states = frozen_states(batch, pipe, CPU)
            total += objective.loss(pipe.unet(sample.latents, sample.timesteps, states).sample, sample).item()
    return total / 4


def test_the_map_predicts_the_old_latents_of_new_images(scenes, autoencoder):
    old_autoencoder = tiny_autoencoder(linear=True, latent_channels=4)
    weight, bias = solve_conv_in(scenes, SIDE, old_autoencoder, autoencoder, CPU, count=48)
    batch = Preparation(SIDE, FACTOR).batch(
        [(scenes[i]["image"], "") for i in range(48, 64)], [generator_for(0, i) for i in range(16)]
    )
    old, new = latents_of(batch, old_autoencoder, CPU), latents_of(batch, autoencoder, CPU)
    predicted = torch.einsum("cd,bdhw->bchw", weight, new) + bias.view(1, -1, 1, 1)
    assert F.mse_loss(predicted, old) < 0.2 * old.var(dim=(0, 2, 3)).mean()


def test_solved_projections_lower_the_loss_before_the_first_step(scenes, autoencoder, conv_in_map):
    base = tiny_base_pipeline()
    copied = PQStableDiffusionPipeline.from_stable_diffusion(base, autoencoder, init="variance")
    solved = PQStableDiffusionPipeline.from_stable_diffusion(base, autoencoder, init="lstsq", conv_in_map=conv_in_map)
    samples = ImageSamples(scenes, Preparation(SIDE, FACTOR))
    objective = DiffusionObjective(solved.scheduler)
    solve_conv_out(solved, objective, samples.batches(Layout(8), 1, 0, 6), 0, CPU)
    assert loss_of(solved, scenes) < 0.9 * loss_of(copied, scenes)


def test_images_may_come_as_a_stream(scenes, autoencoder, conv_in_map, tmp_path):
    import datasets

    from pqdiff.data.captions.captioned import StreamedImages

    rows = datasets.Dataset.from_list(
        [{"image": scenes[i]["image"], "text": ""} for i in range(50)],
        features=datasets.Features({"image": datasets.Image(), "text": datasets.Value("string")}),
    )
    stream = StreamedImages("rows", rows.to_iterable_dataset(), paths=True)
    found = solve_conv_in(stream, SIDE, tiny_base_pipeline().vae, autoencoder, CPU, count=48)
    assert all(torch.equal(a, b) for a, b in zip(found, conv_in_map, strict=True))


def test_autoencoders_of_different_factors_see_sizes_with_the_same_grid(scenes):
    finer = tiny_autoencoder(linear=True, transform_config={"patch_size": 1})
    weight, bias = solve_conv_in(scenes, SIDE // 2, tiny_base_pipeline().vae, finer, CPU, count=16)
    assert (weight.shape, bias.shape) == ((4, 8), (4,))
