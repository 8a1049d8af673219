"""Soft snapping: the mean of the codewords, given that a latent is a codeword plus Gaussian noise.

E[c | z] with p(c | z) proportional to p(c) exp(-|z - c|^2 / (2 sigma^2)): the estimate of least squared error. As sigma
goes to 0 it becomes the nearest codeword, as sigma grows the mean of all. What a codeword stands for beyond what the
latents show (hidden coordinates) is averaged with the same weights.
"""

import torch

_SCRATCH_FLOATS = {"cpu": 2**19}  # weights that are held at once
_SCRATCH_FLOATS_ACCELERATOR = 2**25


@torch.no_grad()
def posterior_mean(
    z: torch.Tensor,
    codewords: torch.Tensor,
    frequencies: torch.Tensor,
    noise: torch.Tensor,
    values: torch.Tensor | None = None,
) -> torch.Tensor:
    """Mean of `values` under the posterior of the codewords, in bounded memory.

    Args:
        z: noisy vectors `(B, S, D, N)`.
        codewords: `(S, K, D)`.
        frequencies: probabilities of the codewords `(S, K)`, the prior. A codeword of probability 0 never counts.
        noise: standard deviations of the noise `(S, D)`, positive, in the units of z.
        values: what each codeword stands for `(S, K, E)`; None for the codewords.

    Returns:
        `(B, S, E, N)` fp32.
    """
    with torch.autocast(z.device.type, enabled=False):
        values = codewords if values is None else values
        batch, subspaces, _, number = z.shape
        result = torch.empty((batch, subspaces, values.shape[2], number), device=z.device)
        scratch = _SCRATCH_FLOATS.get(z.device.type, _SCRATCH_FLOATS_ACCELERATOR)
        step = max(1, scratch // codewords.shape[1])
        for s in range(subspaces):
            scaled = codewords[s].float() / noise[s]  # (K, D)
            center = scaled.mean(dim=0)  # without it, large coordinates would swallow small distances
            table = scaled - center
            # -|z - c|^2 / 2 + log p, short of a term that all codewords share
            offsets = frequencies[s].float().log() - table.square().sum(dim=1) / 2
            for b in range(batch):
                for n in range(0, number, step):
                    x = z[b, s, :, n : n + step].float() / noise[s][:, None] - center[:, None]  # (D, n)
                    weights = torch.addmm(offsets[:, None], table, x).softmax(dim=0)  # (K, n)
                    result[b, s, :, n : n + step] = values[s].float().T @ weights
        return result


@torch.no_grad()
def most_probable(
    z: torch.Tensor, codewords: torch.Tensor, frequencies: torch.Tensor, noise: torch.Tensor
) -> torch.Tensor:
    """Index `(B, N)` of the codeword `(K, D)` of the largest posterior, for vectors `(B, D, N)` and noise `(D,)`."""
    with torch.autocast(z.device.type, enabled=False):
        table = codewords.float() / noise  # (K, D)
        offsets = frequencies.float().log() - table.square().sum(dim=1) / 2
        scores = table @ (z.float() / noise[:, None]) + offsets[:, None]  # (B, K, N)
        return scores.argmax(dim=1)
