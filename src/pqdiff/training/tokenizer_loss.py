"""The loss of autoencoders, as flags: L1, L2, a perceptual distance, the quantizer's loss, and a patch discriminator."""

import argparse
from dataclasses import dataclass, field
from typing import Any

import torch

from pqdiff.losses import PatchDiscriminator, PerceptualLoss, VQGANLoss
from pqdiff.losses.backbones import BACKBONES
from pqdiff.training.arguments import construct, structured
from pqdiff.training.options import Options


def add_loss_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `LossOptions`."""
    loss = parser.add_argument_group("loss")
    loss.add_argument("--l1_weight", type=float, default=1.0, help="weight of absolute differences")
    loss.add_argument("--l2_weight", type=float, default=0.0, help="weight of squared differences")
    loss.add_argument("--quantizer_weight", type=float, default=1.0, help="weight of the quantizer's loss")
    loss.add_argument(
        "--perceptual",
        choices=list(BACKBONES),
        default="vgg",
        help="network of the perceptual distance: LPIPS on vgg or alex; efficientnet-lite0 (pqdiff[eval]) is not LPIPS",
    )
    loss.add_argument("--perceptual_weight", type=float, default=1.0, help="its weight; 0: the network is not needed")
    loss.add_argument(
        "--perceptual_weights",
        help="file with its weights; default: that of $PQDIFF_VGG16, $PQDIFF_ALEXNET or $PQDIFF_EFFICIENTNET_LITE0, else "
        "the Hub's for vgg, and that of pqdiff[eval] for efficientnet-lite0",
    )
    loss.add_argument(
        "--ssimulacra2_weight",
        type=float,
        default=0.0,
        help="weight of (100 - SSIMULACRA2) / 100, which needs no network",
    )
    loss.add_argument("--perceptual_sha256", help="beginning of the SHA-256 of that file, if it is not the usual file")
    loss.add_argument(
        "--adversarial_weight", type=float, default=0.8, help="factor on the adaptive weight; 0: no discriminator"
    )
    loss.add_argument("--disc_start", type=int, default=1, help="first step with an adversarial loss")
    loss.add_argument(
        "--disc_pretrain_steps", type=int, default=1, help="steps before that in which it learns already"
    )
    loss.add_argument("--disc_loss", choices=("hinge", "vanilla"), default="hinge", help="loss of the discriminator")
    loss.add_argument("--disc_init", help="folder or Hub id of a discriminator to continue from")
    loss.add_argument(
        "--discriminator", type=structured, default={}, help="constructor arguments of PatchDiscriminator"
    )


@dataclass(frozen=True)
class LossOptions(Options):
    """The parts of the loss and their weights; a part with the weight 0 is left out.

    Attributes:
        l1_weight, l2_weight, quantizer_weight, perceptual_weight, ssimulacra2_weight: weights of the parts.
        perceptual: network of the perceptual distance: `vgg` or `alex` for LPIPS, or `efficientnet-lite0`.
        perceptual_weights: file with the weights of that network, or None for the usual places.
        perceptual_sha256: beginning of the SHA-256 of that file, or None for the usual one.
        adversarial_weight: factor on the adaptive weight of the adversarial part.
        disc_start: first step with an adversarial part.
        disc_pretrain_steps: steps before `disc_start` in which the discriminator learns already.
        disc_loss: `hinge` or `vanilla`.
        disc_init: folder or Hub id of a discriminator to continue from, or None for a new one.
        discriminator: constructor arguments of a new discriminator.
    """

    l1_weight: float = 1.0
    l2_weight: float = 0.0
    quantizer_weight: float = 1.0
    perceptual: str = "vgg"
    perceptual_weight: float = 1.0
    perceptual_weights: str | None = None
    perceptual_sha256: str | None = None
    ssimulacra2_weight: float = 0.0
    adversarial_weight: float = 0.8
    disc_start: int = 1
    disc_pretrain_steps: int = 1
    disc_loss: str = "hinge"
    disc_init: str | None = None
    discriminator: dict[str, Any] = field(default_factory=dict)

    def describe(self) -> str:
        """The parts of the loss in words, for a card."""
        parts = [
            f"{name} (weight {weight:g})"
            for name, weight in (
                ("L1", self.l1_weight),
                ("L2", self.l2_weight),
                (BACKBONES[self.perceptual].title, self.perceptual_weight),
                ("SSIMULACRA2", self.ssimulacra2_weight),
            )
            if weight
        ]
        if self.adversarial_weight:
            parts.append(
                f"a patch discriminator from step {self.disc_start:,} on (weight {self.adversarial_weight:g}, adaptive)"
            )
        return ", ".join(parts)


def build_loss(options: LossOptions, device: torch.device, seed: int) -> VQGANLoss:
    """The loss; its `network` (the discriminator) and its `perceptual` are on the device, or None without such a part.

    Args:
        options: parts and weights.
        device: where training takes place.
        seed: seed of the weights of a new discriminator.

    Raises:
        ValueError: for arguments that the discriminator does not take, or weights of another network.
        FileNotFoundError: if the perceptual network has no weights, or its package is not installed.
    """
    discriminator = perceptual = None
    if options.adversarial_weight and options.disc_init:
        discriminator = PatchDiscriminator.from_pretrained(options.disc_init).to(device).train()
    elif options.adversarial_weight:
        torch.manual_seed(seed)
        discriminator = construct(PatchDiscriminator, "--discriminator", options.discriminator).to(device).train()
    if options.perceptual_weight:
        perceptual = PerceptualLoss(
            options.perceptual_weights, network=options.perceptual, sha256=options.perceptual_sha256
        ).to(device)
    return VQGANLoss(
        discriminator,
        perceptual,
        l1_weight=options.l1_weight,
        l2_weight=options.l2_weight,
        perceptual_weight=options.perceptual_weight,
        ssimulacra2_weight=options.ssimulacra2_weight,
        quantizer_weight=options.quantizer_weight,
        disc_start=options.disc_start,
        disc_pretrain_steps=options.disc_pretrain_steps,
        disc_weight=options.adversarial_weight,
        disc_loss=options.disc_loss,
    )
