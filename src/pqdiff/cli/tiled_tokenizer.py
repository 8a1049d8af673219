"""A tokenizer for images of any size: large ones are processed in tiles, sides that F does not divide are padded."""

import torch

from pqdiff.data.images.reading import normalize, pad_to_multiple, to_pixels
from pqdiff.models.autoencoder_pq import AutoencoderPQ
from pqdiff.models.checks import check_finite
from pqdiff.models.loading import load_tokenizer

_TILE_SIDE = 1024  # pixels


def load_tiled_autoencoder(name: str) -> AutoencoderPQ:
    """The tokenizer `name` in eval mode, which processes images larger than 1024 pixels in tiles."""
    autoencoder = load_tokenizer(name)
    autoencoder.tile_sample_min_size = _TILE_SIDE
    autoencoder.enable_tiling()
    return autoencoder


@torch.no_grad()
def encode_pixels(autoencoder: AutoencoderPQ, pixels: torch.Tensor) -> torch.Tensor:
    """Tokens `(1, G, h, w)` of uint8 pixels `(3, H, W)`."""
    return autoencoder.encode_to_indices(pad_to_multiple(normalize(pixels[None]), autoencoder.downsample_factor))


@torch.no_grad()
def decode_pixels(autoencoder: AutoencoderPQ, indices: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """uint8 pixels `(3, height, width)` of tokens `(1, G, h, w)`; the padding of `encode_pixels` is cut off."""
    return to_pixels(check_finite(autoencoder.decode_from_indices(indices).sample)[0, :, :height, :width])
