"""A tokenizer for images of any size: large ones are processed in tiles, sides that F does not divide are padded."""

import math

import torch
from PIL import Image

from pqdiff.data.images.reading import normalize, pad_to_multiple, to_pixels
from pqdiff.losses.ssimulacra2 import SSIMULACRA2Loss
from pqdiff.models.autoencoder_pq import AutoencoderPQ
from pqdiff.models.checks import check_finite
from pqdiff.models.loading import load_tokenizer
from pqdiff.models.token_search import LARGEST, search_tokens

_TILE_SIDE = 1024  # pixels


def load_tiled_autoencoder(name: str) -> AutoencoderPQ:
    """The tokenizer `name` in eval mode, which processes images larger than 1024 pixels in tiles."""
    autoencoder = load_tokenizer(name).requires_grad_(False)  # token search needs gradients of codes, not of weights
    autoencoder.tile_sample_min_size = _TILE_SIDE
    autoencoder.enable_tiling()
    return autoencoder


@torch.no_grad()
def encode_pixels(autoencoder: AutoencoderPQ, pixels: torch.Tensor, search_steps: int = 0) -> torch.Tensor:
    """Tokens `(1, G, h, w)` of uint8 pixels `(3, H, W)`: the nearest, or with steps, searched for SSIMULACRA2."""
    image = pad_to_multiple(normalize(pixels[None]), autoencoder.downsample_factor)
    if not search_steps:
        return autoencoder.encode_to_indices(image)
    return search_tokens(autoencoder, image, SSIMULACRA2Loss(), search_steps)


def check_searchable(autoencoder: AutoencoderPQ, image: Image.Image, name: str, search_steps: int) -> None:
    """ValueError if token search was asked for and cannot be done for an image or with an autoencoder."""
    if not search_steps:
        return
    factor, (width, height) = autoencoder.downsample_factor, image.size
    padded = math.ceil(width / factor) * math.ceil(height / factor) * factor**2
    if padded > LARGEST:
        raise ValueError(
            f"--search-steps takes images of at most {LARGEST:,} pixels; {name} has {width} x {height}: make it smaller"
        )
    tokens = len(autoencoder.quantizer.codebook_sizes)
    autoencoder.quantizer.choices(torch.zeros(1, tokens, 1, 1, dtype=torch.int64))  # or says why there are none


@torch.no_grad()
def decode_pixels(autoencoder: AutoencoderPQ, indices: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """uint8 pixels `(3, height, width)` of tokens `(1, G, h, w)`; the padding of `encode_pixels` is cut off."""
    return to_pixels(check_finite(autoencoder.decode_from_indices(indices).sample)[0, :, :height, :width])
