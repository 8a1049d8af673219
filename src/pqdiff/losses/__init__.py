"""What autoencoders are trained with: distances between images, and a discriminator."""

from .discriminator import PatchDiscriminator
from .perceptual import PerceptualLoss, learned_perceptual_similarity
from .vqgan import VQGANLoss

__all__ = ["PatchDiscriminator", "PerceptualLoss", "VQGANLoss", "learned_perceptual_similarity"]
