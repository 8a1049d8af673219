"""Losses that autoencoders are trained with: distances between images, and a discriminator."""

from pqdiff.losses.perceptual import PerceptualLoss
from pqdiff.losses.ssimulacra2 import SSIMULACRA2Loss
from pqdiff.losses.vqgan import VQGANLoss
from pqdiff.models.discriminator import PatchDiscriminator

__all__ = ["PatchDiscriminator", "PerceptualLoss", "SSIMULACRA2Loss", "VQGANLoss"]
