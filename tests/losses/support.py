"""A small autoencoder, images, and the loss written out as its formula."""

import huggingface_hub
import torch
from torch import nn

from pqdiff.losses import PatchDiscriminator
from tests.hub.support import connect


class Autoencoder(nn.Module):
    """Convolutions with a bottleneck; returns reconstructions and something like a quantizer's loss."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Conv2d(3, 8, 4, stride=4)
        self.conv = nn.Conv2d(8, 48, 3, padding=1)
        self.conv_out = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, images):
        z = self.encoder(images)
        x = torch.tanh(nn.functional.pixel_shuffle(self.conv(z), 4))
        return self.conv_out(x), z.square().mean()


def networks(norm: str = "batch") -> tuple[Autoencoder, PatchDiscriminator]:
    torch.manual_seed(0)
    discriminator = PatchDiscriminator(base_channels=8, num_layers=2, norm=norm)
    with torch.no_grad():
        for parameter in discriminator.parameters():
            parameter *= 3  # logits that pass the hinge, on both sides
    return Autoencoder(), discriminator


def photos(batch: int = 4) -> torch.Tensor:
    return torch.rand(batch, 3, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1


def use_hub(patch, address, token, home):
    """As `connect`, and also for what huggingface_hub and diffusers fixed when they were imported."""
    connect(patch, address, token, home)
    template = address + "/{repo_id}/resolve/{revision}/{filename}"
    patch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    patch.setattr(huggingface_hub.hf_api.api, "endpoint", address)
    patch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(home / "cache"))


def plain_generator_loss(
    images, reconstructions, quantizer_loss, last_layer, discriminator, perceptual=None, disc_weight=0.8
):
    """Loss, adaptive weight times `disc_weight`, as the facts give them (L1 + LPIPS)."""
    rec = (images - reconstructions).abs()
    if perceptual is not None:
        rec = rec + perceptual(images, reconstructions).view(-1, 1, 1, 1)
    nll = rec.mean()
    g = -discriminator(reconstructions).mean()
    nll_norm = torch.autograd.grad(nll, last_layer, retain_graph=True)[0].norm()
    g_norm = torch.autograd.grad(g, last_layer, retain_graph=True)[0].norm()
    weight = (nll_norm / (g_norm + 1e-4)).clamp(0, 1e4).detach() * disc_weight
    return nll + weight * g + quantizer_loss, weight


def gradients(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: parameter.grad.clone() for name, parameter in module.named_parameters()}
