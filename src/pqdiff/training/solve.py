"""The projections of a widened UNet solved from data before the first step, in place of a freeze stage.

conv_in from paired latents of the same pictures in both autoencoders, conv_out from the frozen UNet's last activations;
the mathematics is in `pqdiff.models.unet_regression`.
"""

import itertools

import torch

from ..data.captioned import StreamedImages
from ..models.unet_regression import ConvInRegression, ConvOutRegression
from .diffusion import DiffusionObjective
from .randomness import generator_for
from .samples import Preparation, latents_of
from .text import frozen_states


@torch.no_grad()
def solve_conv_in(
    pictures, resolution: int, old_autoencoder, new_autoencoder, device: torch.device, count: int = 1024, batch_size=16
) -> tuple[torch.Tensor, torch.Tensor]:
    """Map `(c, d)` and offset `(c,)` from new latents to old ones, for `widen_unet(init="lstsq")`.

    The old autoencoder sees each picture in the size that gives it the same grid of latents.

    Args:
        pictures: captioned pictures by number, or a stream of them; the first ones are taken.
        resolution: side in pixels at which the new autoencoder sees them.
        old_autoencoder: of the base model.
        new_autoencoder: of the widened model.
        device: where the autoencoders are.
        count: number of pictures.
        batch_size: pictures at a time.
    """
    factors = [2 ** (len(a.config.block_out_channels) - 1) for a in (old_autoencoder, new_autoencoder)]
    sizes = [resolution // factors[1] * factors[0], resolution]
    regression = ConvInRegression(new_autoencoder.config.latent_channels, old_autoencoder.config.latent_channels)
    streamed = isinstance(pictures, StreamedImages)
    rows = iter(pictures) if streamed else (pictures.row(i) for i in range(len(pictures)))
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
    """Put the best conv_out for the frozen rest of the UNet in its place.

    Args:
        pipeline: with the widened UNet.
        objective: of the training that follows.
        batches: lists of micro-batches, as `samples.batches` gives them.
        seed: of noise and timesteps.
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
