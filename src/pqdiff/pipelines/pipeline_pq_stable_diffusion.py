"""Text-to-image and image-to-image with Stable Diffusion on product-quantized latents.

Zavadski, Tatsch, Rother: Product-Quantised Image Representation for High-Quality Image Synthesis (PQSD). Subclasses of the
stock pipelines, so schedulers, LoRA, IP-Adapters, callbacks, offloading and the rest are theirs.
"""

import torch
from diffusers import StableDiffusionImg2ImgPipeline, StableDiffusionPipeline
from diffusers.utils.torch_utils import randn_tensor

from pqdiff.pipelines.pq_latents import PQLatentsMixin, with_quantize_latents


class PQStableDiffusionPipeline(PQLatentsMixin, StableDiffusionPipeline):
    """Images from prompts. Called like `StableDiffusionPipeline`, with `quantize_latents` besides."""

    _stock_class = StableDiffusionPipeline
    __call__ = with_quantize_latents(StableDiffusionPipeline.__call__)


class PQStableDiffusionImg2ImgPipeline(PQLatentsMixin, StableDiffusionImg2ImgPipeline):
    """Images from prompts and images. Called like `StableDiffusionImg2ImgPipeline`, with `quantize_latents` besides."""

    _stock_class = StableDiffusionImg2ImgPipeline
    __call__ = with_quantize_latents(StableDiffusionImg2ImgPipeline.__call__)

    def get_timesteps(self, num_inference_steps: int, strength: float, device: torch.device):
        """As the stock method, but a strength that leaves no step is an error that says so."""
        timesteps, left = super().get_timesteps(num_inference_steps, strength, device)
        if left < 1:
            raise ValueError(
                f"strength ({strength}) of {num_inference_steps} steps leaves none: raise it or num_inference_steps"
            )
        return timesteps, left

    def prepare_latents(
        self,
        image: torch.Tensor,
        timestep: torch.Tensor,
        batch_size: int,
        num_images_per_prompt: int,
        dtype: torch.dtype,
        device: torch.device,
        generator: torch.Generator | list[torch.Generator] | None = None,
    ) -> torch.Tensor:
        """Noisy latents to start from. The stock method takes an image for latents only if these have 4 channels."""
        batch_size = batch_size * num_images_per_prompt
        if isinstance(generator, list) and len(generator) != batch_size:
            raise ValueError(f"generator is a list of {len(generator)} for a batch of {batch_size}: give one for each")
        latents = self._image_latents(image, batch_size, dtype, device, generator)
        noise = randn_tensor(latents.shape, generator=generator, device=device, dtype=dtype)
        return self.scheduler.add_noise(latents, noise, timestep)
