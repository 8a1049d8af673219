"""Gradients of losses that see only the reconstruction, and the weight between two of them (VQGAN, arXiv 2012.09841).

Discriminator and VGG16 are frozen while the autoencoder learns, so that all their gradients pass through the
reconstruction. They are taken there once, and serve the weight and the backward pass: the reference implementation goes
through both networks twice. Nothing underflows in half precision, because what comes back is scaled by powers of two.
"""

import contextlib
from collections.abc import Iterator

import torch
from torch import nn


def gradient_at(loss: torch.Tensor, images: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
    """Gradient of `loss` `()` at `images`, with the backward pass run at `scale` times its size.

    Args:
        loss: computed from `images`.
        images: `(B, C, H, W)` fp32 leaf.
        scale: power of two.
    """
    return torch.autograd.grad(loss, images, torch.full_like(loss, scale))[0] / scale


def last_layer_norms(
    reconstructions: torch.Tensor, last_layer: torch.Tensor, gradients: tuple[torch.Tensor, ...]
) -> list[torch.Tensor]:
    """Lengths in fp32 of losses' gradients at `last_layer`; over several processes, of the gradients' means.

    Args:
        reconstructions: `(B, C, H, W)`, whose graph is kept.
        last_layer: parameter that made them.
        gradients: of each loss at the reconstructions, fp32.

    Raises:
        ValueError: if `last_layer` is frozen or did not make the reconstructions.
    """
    if not last_layer.requires_grad:
        raise ValueError("last_layer is frozen: give one that trains, or None for a fixed weight")
    pulled = []
    for gradient in gradients:
        # A convolution sums this over all positions: not too small for each of them, not too large for the sum.
        peak = gradient.abs().amax().clamp_min(1e-30)
        scale = torch.exp2(torch.floor(-torch.log2(peak)) - 6)
        cotangent = (gradient * scale).to(reconstructions.dtype)
        (pull,) = torch.autograd.grad(reconstructions, last_layer, cotangent, retain_graph=True, allow_unused=True)
        if pull is None:
            raise ValueError("last_layer did not take part in the reconstructions: give the decoder's last weight")
        pulled.append(pull.float().flatten() / scale)
    stacked = torch.stack(pulled)
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        # Each process sees a part of the batch; with the whole batch's gradients they train as one process would.
        torch.distributed.all_reduce(stacked)
        stacked /= torch.distributed.get_world_size()
    return list(stacked.norm(dim=1))


def with_gradient(value: torch.Tensor, reconstructions: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
    """A loss that is `value` `()`, and whose gradient at `reconstructions` is `gradient`."""
    carrier = (reconstructions.float() * gradient).sum()
    return value.detach() + (carrier - carrier.detach())


@contextlib.contextmanager
def frozen(network: nn.Module) -> Iterator[None]:
    """What is computed within sends no gradients to the network's parameters."""
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)
