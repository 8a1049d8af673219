"""Calls and pictures that the tests of the pipelines share."""

import numpy as np
import torch
from diffusers import StableDiffusionImg2ImgPipeline, StableDiffusionInpaintPipeline
from PIL import Image

from pqdiff import PQStableDiffusionInpaintPipeline, PQStableDiffusionPipeline
from tests.tiny import PQ_CHANNELS, SIDE, tiny_components, tiny_unet

PROMPT = "a red fox"
STEPS = 2


def build(pipeline_class=PQStableDiffusionPipeline, **overrides):
    """A pipeline of tiny components that shows no progress bar."""
    pipe = pipeline_class(**tiny_components(**overrides))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def build_inpainting(
    sees_mask: bool, pipeline_class=PQStableDiffusionInpaintPipeline, channels=PQ_CHANNELS, **overrides
):
    """An inpainting pipeline whose UNet takes the latents alone or (`sees_mask`) mask and masked latents too."""
    unet = tiny_unet(channels, in_channels=2 * channels + 1 if sees_mask else channels)
    return build(pipeline_class, unet=unet, **overrides)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_image(seed: int = 1, height: int = SIDE, width: int = SIDE) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def left_half() -> Image.Image:
    """A mask: white, to be repainted, in the left half."""
    return Image.fromarray(np.repeat([[255] * (SIDE // 2) + [0] * (SIDE // 2)], SIDE, axis=0).astype(np.uint8))


def paint(pipe, prompt=PROMPT, seed: int = 0, **arguments) -> torch.Tensor:
    """Pictures `(B, 3, H, W)` in [0, 1], or latents, of any of the three kinds of pipeline, in two steps."""
    from_image = {"image": random_image(), "strength": 0.7, "num_inference_steps": 3}
    if isinstance(pipe, StableDiffusionImg2ImgPipeline):
        arguments = {**from_image, **arguments}
    if isinstance(pipe, StableDiffusionInpaintPipeline):
        arguments = {**from_image, "mask_image": left_half(), **arguments}
    arguments = {"generator": seeded(seed), "num_inference_steps": STEPS, "output_type": "pt", **arguments}
    return pipe(prompt, **arguments).images


def assert_different(first: torch.Tensor, second: torch.Tensor) -> None:
    """Far beyond what rounding does."""
    assert first.shape == second.shape
    assert (first - second).abs().max() > 1e-2
