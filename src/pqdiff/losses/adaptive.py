"""Gradients of losses at the reconstruction, and the adaptive weight between two losses (VQGAN, arXiv 2012.09841).

The discriminator and the perceptual network are frozen while the autoencoder learns, so all their gradients pass through
the reconstruction. Each is computed there once, and is used for both the weight and the backward pass; the reference
implementation goes through both networks twice. Gradients are scaled by powers of two, so that they do not underflow in
half precision.
"""

import contextlib
from collections.abc import Iterator

import torch
from torch import nn


def gradient_at(loss: torch.Tensor, images: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
    """Gradient of `loss` `()` at `images`. The backward pass runs at `scale` times the size of the gradient.

    Args:
        loss: computed from `images`.
        images: `(B, C, H, W)` fp32 leaf.
        scale: power of two.
    """
    return torch.autograd.grad(loss, images, torch.full_like(loss, scale))[0] / scale


def last_layer_norms(
    reconstructions: torch.Tensor, last_layer: torch.Tensor, gradients: tuple[torch.Tensor, ...]
) -> list[torch.Tensor]:
    """Norms of the gradients of losses at `last_layer`, fp32. With several processes, the gradients are averaged first.

    Args:
        reconstructions: `(B, C, H, W)`; their graph is kept.
        last_layer: parameter that they were computed with.
        gradients: gradient of each loss at the reconstructions, fp32.

    Raises:
        ValueError: if `last_layer` is frozen, or the reconstructions do not depend on it.
    """
    if not last_layer.requires_grad:
        raise ValueError("last_layer is frozen: give one that trains, or None for a fixed weight")
    pulled = []
    for gradient in gradients:
        # A convolution sums this over all positions: no term may underflow, and the sum may not overflow.
        peak = gradient.abs().amax().clamp_min(1e-30)
        scale = torch.exp2(torch.floor(-torch.log2(peak)) - 6)
        cotangent = (gradient * scale).to(reconstructions.dtype)
        (pull,) = torch.autograd.grad(reconstructions, last_layer, cotangent, retain_graph=True, allow_unused=True)
        if pull is None:
            raise ValueError("last_layer did not take part in the reconstructions: give the decoder's last weight")
        pulled.append(pull.float().flatten() / scale)
    stacked = torch.stack(pulled)
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        # Each process has a part of the batch. With the gradients of the whole batch they train as one process would.
        torch.distributed.all_reduce(stacked)
        stacked /= torch.distributed.get_world_size()
    return list(stacked.norm(dim=1))


def with_gradient(value: torch.Tensor, reconstructions: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
    """A loss whose value is `value` `()` and whose gradient at `reconstructions` is `gradient`."""
    carrier = (reconstructions.float() * gradient).sum()
    return value.detach() + (carrier - carrier.detach())


@contextlib.contextmanager
def frozen(network: nn.Module) -> Iterator[None]:
    """Inside this context, computations send no gradients to the network's parameters."""
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)
