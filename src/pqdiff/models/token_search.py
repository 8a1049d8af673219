"""Tokens chosen by the image that the decoder makes of them, by any differentiable loss: a slow encode.

`encode` takes the nearest codewords, each token on its own, and does not ask what the decoder makes of them. Here tokens
change while a loss of the decoded image falls, such as SSIMULACRA2; the rate and the decoder stay the same. What the search
gains may be the loss's own: docs/perception.md has other metrics. Not in the PQGAN paper.
"""

from collections.abc import Callable

import torch

from pqdiff.models.autoencoder_pq import AutoencoderPQ
from pqdiff.models.checks import check_image
from pqdiff.quantizers.base import Choices
from pqdiff.quantizers.search.codeword_statistics import look_up

LARGEST = 2**21  # pixels: the gradients of an image take about 1.5 kilobytes a pixel
_SHARE = 0.2  # of the tokens may change in a step: all at once would undo each other
_CAUTION = 5000.0  # times the curvature of the mean squared error, at the start
_BOLDER, _SHYER = 0.8, 1.15  # factors of the caution after a step that was good, and after one that was not
_GIVE_UP = 30  # steps without success in a row
_TRIES = 60  # to find a caution at which a token changes: down to a millionth of what it was


def search_tokens(
    autoencoder: AutoencoderPQ,
    image: torch.Tensor,
    loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    steps: int = 100,
    squared_error_weight: float = 25.0,
    seed: int = 0,
) -> torch.Tensor:
    """Tokens of an image for which a loss of the decoded image is as small as a local search makes it.

    A step changes, of a random share of the tokens, those that lower a quadratic model of the loss: its gradient, and one
    curvature for all that adapts to success. A step that raises the loss is undone, so the result is never worse than
    what `encode_to_indices` gives.

    Args:
        autoencoder: its quantizer has tokens that can be chosen one by one, as `product` and `classified_product` have.
        image: `(1, C, H, W)` in [-1, 1], sides divisible by F, at most 2 megapixels.
        loss: function of images and reconstructions `(1, C, H, W)`, one differentiable number, e.g. `SSIMULACRA2Loss()`.
        steps: number of times that the image is decoded.
        squared_error_weight: weight of the mean squared error beside the loss.
        seed: of the shares.

    Returns:
        int64 `(1, G, h, w)`.

    Raises:
        ValueError: for an image that does not fit, steps below 1, or a quantizer without such tokens.
    """
    check_image(image, autoencoder.config.in_channels, autoencoder.downsample_factor)
    if len(image) != 1 or image.shape[2] * image.shape[3] > LARGEST:
        raise ValueError(f"image must be one of at most {LARGEST:,} pixels for token search, got {tuple(image.shape)}")
    if steps < 1:
        raise ValueError(f"steps ({steps}) must be at least 1")
    with torch.no_grad():
        tokens = best = autoencoder.encode_to_indices(image)
    choices = autoencoder.quantizer.choices(best)
    generator, target = torch.Generator().manual_seed(seed), image.float()
    least, failures, caution = torch.inf, 0, _CAUTION * 2 / image.numel()
    gradient = torch.zeros_like(_codewords(choices, best))
    with torch.enable_grad():
        for _ in range(steps):
            codewords = _codewords(choices, tokens).detach().requires_grad_(True)
            decoded = autoencoder.synthesis(choices.codes(codewords).to(autoencoder.dtype)).float()
            value = loss(target, decoded).sum() + squared_error_weight * (decoded - target).square().mean()
            if value < least:
                least, best, failures, caution = float(value.detach()), tokens, 0, caution * _BOLDER
                (gradient,) = torch.autograd.grad(value, codewords)
            else:
                failures, caution = failures + 1, caution * _SHYER
            if failures == _GIVE_UP or least == torch.inf:  # the latter: NaN in the image
                break
            for _ in range(_TRIES):
                tokens = _next_tokens(choices, best, gradient, caution, generator)
                if not torch.equal(tokens, best):
                    break
                caution *= _BOLDER  # so much that nothing changes
            else:
                break  # the gradient is 0
    return best


def _codewords(choices: Choices, indices: torch.Tensor) -> torch.Tensor:
    """Codewords `(B, S, D, n)` of the tokens that may change."""
    return look_up(choices.codebooks, indices[:, choices.first :].flatten(2).long())


@torch.no_grad()
def _next_tokens(
    choices: Choices, indices: torch.Tensor, gradient: torch.Tensor, caution: float, generator: torch.Generator
) -> torch.Tensor:
    """Tokens with the least value of the quadratic model: g (c' - c) + caution / 2 |units (c' - c)|^2."""
    tokens = indices[:, choices.first :].flatten(2)  # (B, S, n)
    now = _codewords(choices, indices)
    curvature = (caution * choices.units.square()).expand_as(now)
    slope = gradient - curvature * now
    chosen, gains = [], []
    for s, table in enumerate(choices.codebooks):  # one subspace at a time: K values for each position are many
        values = table @ slope[:, s] + table.square() @ curvature[:, s] / 2  # (B, K, n)
        least, token = values.min(dim=1)
        chosen.append(token)
        gains.append(values.gather(1, tokens[:, s : s + 1])[:, 0] - least)
    better, chosen = torch.stack(gains, dim=1) > 0, torch.stack(chosen, dim=1)
    drawn = torch.rand(tokens.shape, generator=generator).to(tokens.device) < _SHARE
    tokens = torch.where(better & drawn, chosen, tokens).unflatten(2, indices.shape[2:])
    return torch.cat([indices[:, : choices.first], tokens], dim=1)
