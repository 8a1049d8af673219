"""Solve the projections of a widened UNet from data before the first step, instead of a stage that trains only them.

conv_in is solved from latents of the same images in both autoencoders, conv_out from the last activations of the frozen
UNet. The mathematics is in `pqdiff.adaptation.regression`.
"""

import itertools

import torch

from pqdiff.adaptation.regression import ConvInRegression, ConvOutRegression
from pqdiff.data.captions.captioned import StreamedImages
from pqdiff.models.loading import downsample_factor
from pqdiff.training.diffusion import DiffusionObjective
from pqdiff.training.randomness import generator_for
from pqdiff.training.samples import Preparation, latents_of
from pqdiff.training.text import frozen_states


@torch.no_grad()
def solve_conv_in(
    images, resolution: int, old_autoencoder, new_autoencoder, device: torch.device, count: int = 1024, batch_size=16
) -> tuple[torch.Tensor, torch.Tensor]:
    """Map `(c, d)` and offset `(c,)` from new latents to old ones, for `widen_unet(init="lstsq")`.

    The old autoencoder sees each image at the size at which its latents have the same grid.

    Args:
        images: captioned images by number, or a stream of them; the first ones are used.
        resolution: side in pixels at which the new autoencoder sees the images.
        old_autoencoder: autoencoder of the base model.
        new_autoencoder: autoencoder of the widened model.
        device: where the autoencoders are.
        count: number of images.
        batch_size: number of images per batch.
    """
    factors = [downsample_factor(a) for a in (old_autoencoder, new_autoencoder)]
    sizes = [resolution // factors[1] * factors[0], resolution]
    regression = ConvInRegression(new_autoencoder.config.latent_channels, old_autoencoder.config.latent_channels)
    streamed = isinstance(images, StreamedImages)
    rows = iter(images) if streamed else (images.row(i) for i in range(len(images)))
    rows = itertools.islice(rows, count)
    while chosen := list(itertools.islice(rows, batch_size)):
        items = [(row.load(), ()) for row in chosen]
        generators = [generator_for(0, "pair", i) for i in range(len(items))]
        old, new = (
            latents_of(Preparation(size, factor).batch(items, generators), model, device)
            for size, factor, model in zip(sizes, factors, (old_autoencoder, new_autoencoder), strict=True)
        )
        regression.update(new, old)
    return regression.solve()


@torch.no_grad()
def solve_conv_out(pipeline, objective: DiffusionObjective, batches, seed: int, device: torch.device) -> None:
    """Give the UNet the conv_out that is best for the rest of the UNet as it is.

    Args:
        pipeline: pipeline with the widened UNet.
        objective: objective of the training that follows.
        batches: lists of micro-batches, as `samples.batches` gives them.
        seed: seed of noise and timesteps.
        device: where the models are.
    """
    regression = ConvOutRegression(pipeline.unet)
    for number, micro_batches in enumerate(batches):
        for micro_step, batch in enumerate(micro_batches):
            latents = latents_of(batch, pipeline.vae, device)
            generators = [generator_for(seed, "solve", number, micro_step, i) for i in range(len(latents))]
            sample = objective.noisy(latents, generators)
            states = frozen_states(batch, pipeline, device)
            regression.update(sample.latents, sample.timesteps, states, sample.target, sample.weights)
    regression.solve()
