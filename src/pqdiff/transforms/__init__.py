"""Images to what a quantizer codes, and codes to images."""

from pqdiff.transforms.base import TRANSFORMS, Transform, build_transform, register_transform
from pqdiff.transforms.conv import ConvTransform
from pqdiff.transforms.gaussian_vae import GaussianVaeTransform
from pqdiff.transforms.patch import PatchTransform
from pqdiff.transforms.sums import SumTransform

__all__ = [
    "TRANSFORMS",
    "ConvTransform",
    "GaussianVaeTransform",
    "PatchTransform",
    "SumTransform",
    "Transform",
    "build_transform",
    "register_transform",
]
