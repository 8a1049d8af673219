"""Which codewords are in use while training goes on, and new places for those that are not."""

import torch
from torch import nn

from ..models import AutoencoderPQ
from ..quantizers import ProductQuantizer
from .ema import EMA


class CodewordCounts(nn.Module):
    """How often each codeword was chosen since the last restart; part of the checkpoints.

    Args:
        codebook_sizes: of the quantizer.
    """

    def __init__(self, codebook_sizes: tuple[int, ...]):
        super().__init__()
        self.register_buffer("counts", torch.zeros(len(codebook_sizes), max(codebook_sizes), dtype=torch.int64))

    def update(self, indices: torch.Tensor) -> None:
        """Take in tokens `(B, G, h, w)`."""
        tokens, size = self.counts.shape
        places = torch.arange(tokens, device=indices.device)[:, None] * size + indices.transpose(0, 1).flatten(1)
        self.counts += torch.bincount(places.flatten(), minlength=tokens * size).view(tokens, size)


def check_restartable(model: AutoencoderPQ) -> None:
    """ValueError unless unused codewords of the model can be moved by `restart_codewords`."""
    if not isinstance(model.quantizer, ProductQuantizer) or model.config.hidden_channels:
        raise ValueError(
            f"--restart_dead_codewords needs quantizer_type product ({model.config.quantizer_type}) and "
            f"hidden_channels 0 ({model.config.hidden_channels}); use 0 for none"
        )


@torch.no_grad()
def restart_codewords(
    model: AutoencoderPQ,
    counts: torch.Tensor,
    images: torch.Tensor,
    generator: torch.Generator,
    optimizer: torch.optim.Optimizer,
    averages: dict[str, EMA],
) -> int:
    """Put codewords that were never chosen where latents of images are, and forget what the optimizer knew of them.

    Args:
        model: unwrapped autoencoder that `check_restartable` lets pass.
        counts: choices of each codeword `(S, K)`, over all ranks.
        images: `(B, 3, H, W)` in [-1, 1] whose latents are the new places.
        generator: on the CPU; which latents.
        optimizer: whose state of the codebooks is reset where they moved.
        averages: of the run; that of the model moves with it.

    Returns:
        Number of codewords that were moved.
    """
    dead = counts == 0  # (S, K)
    number = int(dead.sum())
    if not number:
        return 0
    quantizer = model.quantizer
    vectors = model._encode(images).float().unflatten(1, (quantizer.num_subspaces, -1))  # (B, S, D, h, w)
    vectors = vectors.permute(1, 0, 3, 4, 2).flatten(1, 3)  # (S, N, D)
    subspaces = dead.nonzero()[:, 0]
    chosen = torch.randint(vectors.shape[1], (number,), generator=generator).to(vectors.device)
    places = vectors[subspaces, chosen]
    codebooks = [quantizer.codebooks, *(ema.average.quantizer.codebooks for ema in averages.values())]
    for table in codebooks:
        table[dead.to(table.device)] = places.to(table)
    for value in optimizer.state.get(quantizer.codebooks, {}).values():
        if torch.is_tensor(value) and value.shape == quantizer.codebooks.shape:
            value[dead] = 0
    return number
