"""Inpainting with Stable Diffusion on product-quantized latents.

The stock pipeline knows UNets of 4 and of 9 input channels and no others, so the way through a call is written anew here,
for d channels and for 2 d + 1; its steps are the stock pipeline's methods.
"""

from collections.abc import Callable

import torch
from diffusers import StableDiffusionInpaintPipeline
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from diffusers.image_processor import PipelineImageInput
from diffusers.pipelines.stable_diffusion import StableDiffusionPipelineOutput
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion_inpaint import retrieve_timesteps
from diffusers.utils.torch_utils import randn_tensor
from torch.nn import functional as F

from pqdiff.pipelines.pq_latents import PQLatentsMixin


class PQStableDiffusionInpaintPipeline(PQLatentsMixin, StableDiffusionInpaintPipeline):
    """Parts of images generated anew. Called like `StableDiffusionInpaintPipeline`, with `quantize_latents` besides.

    A UNet with d input channels generates everything, and what the mask leaves out is put back after every step; one with
    2 d + 1 sees the mask and the masked image.
    """

    _stock_class = StableDiffusionInpaintPipeline
    _inpainting = True

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str] | None = None,
        image: PipelineImageInput = None,
        mask_image: PipelineImageInput = None,
        masked_image_latents: torch.Tensor | None = None,
        height: int | None = None,
        width: int | None = None,
        padding_mask_crop: int | None = None,
        strength: float = 1.0,
        num_inference_steps: int = 50,
        timesteps: list[int] | None = None,
        sigmas: list[float] | None = None,
        guidance_scale: float = 7.5,
        negative_prompt: str | list[str] | None = None,
        num_images_per_prompt: int = 1,
        eta: float = 0.0,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: torch.Tensor | None = None,
        prompt_embeds: torch.Tensor | None = None,
        negative_prompt_embeds: torch.Tensor | None = None,
        ip_adapter_image: PipelineImageInput | None = None,
        ip_adapter_image_embeds: list[torch.Tensor] | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        cross_attention_kwargs: dict | None = None,
        clip_skip: int | None = None,
        callback_on_step_end: Callable | PipelineCallback | MultiPipelineCallbacks | None = None,
        callback_on_step_end_tensor_inputs: list[str] = ["latents"],
        quantize_latents: bool | float | None = None,
    ) -> StableDiffusionPipelineOutput | tuple:
        """Generate the white part of `mask_image` in `image` anew.

        Arguments are those of `StableDiffusionInpaintPipeline`. Images may be given as latents `(B, d, h, w)` too; a
        UNet with 2 d + 1 channels then needs `masked_image_latents`, likewise `(B, d, h, w)`.

        Args:
            quantize_latents: True snaps the denoised latents to the nearest codewords before they are decoded, False
                decodes them as they are, a number snaps softly; None for what the pipeline was saved with.

        Raises:
            ValueError: if arguments do not fit each other.
        """
        if isinstance(callback_on_step_end, PipelineCallback | MultiPipelineCallbacks):
            callback_on_step_end_tensor_inputs = callback_on_step_end.tensor_inputs
        height, width = self._checked_size(height, width)
        self.check_inputs(
            prompt,
            image,
            mask_image,
            height,
            width,
            strength,
            callback_steps=None,
            output_type=output_type,
            negative_prompt=negative_prompt,
            prompt_embeds=prompt_embeds,
            negative_prompt_embeds=negative_prompt_embeds,
            ip_adapter_image=ip_adapter_image,
            ip_adapter_image_embeds=ip_adapter_image_embeds,
            callback_on_step_end_tensor_inputs=callback_on_step_end_tensor_inputs,
            padding_mask_crop=padding_mask_crop,
        )
        self._guidance_scale, self._clip_skip = guidance_scale, clip_skip
        self._cross_attention_kwargs, self._interrupt = cross_attention_kwargs, False

        # Prompts.
        device, guided = self._execution_device, self.do_classifier_free_guidance
        prompts = len(prompt_embeds) if prompt is None else 1 if isinstance(prompt, str) else len(prompt)
        batch_size = prompts * num_images_per_prompt
        if isinstance(generator, list) and len(generator) != batch_size:
            raise ValueError(f"generator is a list of {len(generator)} for a batch of {batch_size}: give one for each")
        prompt_embeds, negative_prompt_embeds = self.encode_prompt(
            prompt,
            device,
            num_images_per_prompt,
            guided,
            negative_prompt,
            prompt_embeds=prompt_embeds,
            negative_prompt_embeds=negative_prompt_embeds,
            lora_scale=(cross_attention_kwargs or {}).get("scale"),
            clip_skip=clip_skip,
        )
        dtype = prompt_embeds.dtype
        if guided:
            prompt_embeds = torch.cat([negative_prompt_embeds, prompt_embeds])
        added_conditions = None
        if ip_adapter_image is not None or ip_adapter_image_embeds is not None:
            image_embeds = self.prepare_ip_adapter_image_embeds(
                ip_adapter_image, ip_adapter_image_embeds, device, batch_size, guided
            )
            added_conditions = {"image_embeds": image_embeds}

        # Steps.
        timesteps, num_inference_steps = retrieve_timesteps(
            self.scheduler, num_inference_steps, device, timesteps, sigmas
        )
        timesteps, num_inference_steps = self.get_timesteps(num_inference_steps, strength, device)
        if num_inference_steps < 1:
            raise ValueError(f"strength ({strength}) leaves no step: raise it or num_inference_steps")
        self._num_timesteps = len(timesteps)

        # Images and masks.
        crop, resize_mode = None, "default"
        if padding_mask_crop is not None:
            crop = self.mask_processor.get_crop_region(mask_image, width, height, pad=padding_mask_crop)
            resize_mode = "fill"
        size = {"height": height, "width": width, "crops_coords": crop, "resize_mode": resize_mode}
        original = self.image_processor.preprocess(image, **size).float()
        pixel_mask = self.mask_processor.preprocess(mask_image, **size)
        mask = self._latent_mask(pixel_mask, batch_size, height, width).to(device, dtype)
        shape = (batch_size, self.vae.config.latent_channels, *mask.shape[2:])
        sees_mask = self.unet.config.in_channels == 2 * shape[1] + 1

        # Latents.
        image_latents = None
        if not sees_mask or (latents is None and strength < 1):
            image_latents = self._image_latents(original, batch_size, dtype, device, generator)
        if latents is None:
            noise = randn_tensor(shape, generator=generator, device=device, dtype=dtype)
        else:
            noise = latents.to(device)
        if latents is None and strength < 1:
            latents = self.scheduler.add_noise(image_latents, noise, timesteps[:1].repeat(batch_size))
        else:
            latents = noise * self.scheduler.init_noise_sigma
        if sees_mask:
            if masked_image_latents is None and original.shape[2:] != pixel_mask.shape[2:]:
                raise ValueError("image is given as latents: give masked_image_latents too, which this UNet sees")
            masked = original * (pixel_mask < 0.5) if masked_image_latents is None else masked_image_latents
            masked_image_latents = self._image_latents(masked, batch_size, dtype, device, generator)
        guided_mask = torch.cat([mask] * 2) if guided else mask
        if masked_image_latents is not None and guided:
            masked_image_latents = torch.cat([masked_image_latents] * 2)

        # Denoising.
        step_options = self.prepare_extra_step_kwargs(generator, eta)
        guidance_embedding = None
        if self.unet.config.time_cond_proj_dim is not None:
            guidance_embedding = self.get_guidance_scale_embedding(
                torch.tensor(guidance_scale - 1).repeat(batch_size), self.unet.config.time_cond_proj_dim
            ).to(device, dtype)
        with self.progress_bar(total=num_inference_steps) as progress:
            for i, t in enumerate(timesteps):
                if self.interrupt:
                    continue
                if guided and not self.do_classifier_free_guidance:  # a callback has ended it
                    guided, guided_mask = False, guided_mask[-batch_size:]
                    prompt_embeds = prompt_embeds[-batch_size:]
                    if masked_image_latents is not None:
                        masked_image_latents = masked_image_latents[-batch_size:]
                    if added_conditions is not None:
                        embeds = [each[-batch_size:] for each in added_conditions["image_embeds"]]
                        added_conditions = {"image_embeds": embeds}
                seen = self.scheduler.scale_model_input(torch.cat([latents] * 2) if guided else latents, t)
                if sees_mask:
                    seen = torch.cat([seen, guided_mask, masked_image_latents], dim=1)  # (B or 2 B, 2 d + 1, h, w)
                prediction = self.unet(
                    seen,
                    t,
                    encoder_hidden_states=prompt_embeds,
                    timestep_cond=guidance_embedding,
                    cross_attention_kwargs=cross_attention_kwargs,
                    added_cond_kwargs=added_conditions,
                    return_dict=False,
                )[0]
                if guided:
                    unconditional, conditional = prediction.chunk(2)
                    prediction = unconditional + self.guidance_scale * (conditional - unconditional)
                latents = self.scheduler.step(prediction, t, latents, **step_options, return_dict=False)[0]
                if not sees_mask:
                    kept = image_latents
                    if i + 1 < len(timesteps):
                        kept = self.scheduler.add_noise(image_latents, noise, timesteps[i + 1 : i + 2])
                    mask = guided_mask[-batch_size:]
                    latents = (1 - mask) * kept + mask * latents

                if callback_on_step_end is not None:
                    tensors = {
                        "latents": latents,
                        "prompt_embeds": prompt_embeds,
                        "negative_prompt_embeds": negative_prompt_embeds,
                        "mask": guided_mask,
                        "masked_image_latents": masked_image_latents,
                    }
                    asked = {name: tensors[name] for name in callback_on_step_end_tensor_inputs}
                    given = callback_on_step_end(self, i, t, asked)
                    latents, prompt_embeds, negative_prompt_embeds, guided_mask, masked_image_latents = (
                        given.get(name, tensor) for name, tensor in tensors.items()
                    )
                if (i + 1) % self.scheduler.order == 0 or i + 1 == len(timesteps):
                    progress.update()

        output = self._images(latents, output_type, True, generator, self._checked_quantize(quantize_latents))
        if crop is not None:
            output.images = [
                self.image_processor.apply_overlay(mask_image, image, each, crop) for each in output.images
            ]
        self.maybe_free_model_hooks()
        return output if return_dict else (output.images, output.nsfw_content_detected)

    def _latent_mask(self, mask: torch.Tensor, batch_size: int, height: int, width: int) -> torch.Tensor:
        """Masks `(B, 1, H, W)` at the latents' size, one per image of the batch. A position that a mask touches is
        painted: the stock pipeline looks at one pixel of it, and misses thin masks."""
        repeats, rest = divmod(batch_size, len(mask))
        if rest or not repeats:
            raise ValueError(f"mask_image holds {len(mask)} masks for a batch of {batch_size}: give one, or one each")
        factor = self.vae_scale_factor
        return F.adaptive_max_pool2d(mask, (height // factor, width // factor)).repeat_interleave(repeats, dim=0)
