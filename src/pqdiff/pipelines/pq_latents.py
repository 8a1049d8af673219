"""What the pipelines on product-quantized latents share: checks, snapping to codewords, latents of images, conversion."""

import functools
import inspect
import math
from collections.abc import Callable
from os import PathLike

import numpy as np
import torch
from diffusers import AutoencoderKL, DiffusionPipeline, UNet2DConditionModel
from diffusers.image_processor import PipelineImageInput, VaeImageProcessor
from diffusers.pipelines.stable_diffusion import StableDiffusionPipelineOutput
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from diffusers.schedulers import KarrasDiffusionSchedulers
from diffusers.utils import logging
from PIL import Image
from transformers import CLIPImageProcessor, CLIPTextModel, CLIPTokenizer, CLIPVisionModelWithProjection

from pqdiff.adaptation.variants import Variant
from pqdiff.models.autoencoder_pq import AutoencoderPQ
from pqdiff.models.checks import check_quantize
from pqdiff.pipelines.checks import check_fit
from pqdiff.pipelines.conversion import convert_stable_diffusion
from pqdiff.pipelines.lora import lora_weights, refuse_lora_layers
from pqdiff.pipelines.schedulers import fit_latents

logger = logging.get_logger(__name__)

# Noise level of soft snapping where a pipeline does not say it: what serves the tiny suite and images with noise best
# (benchmarks/results/tiny_suite.json, latent_stats.json).
DEFAULT_NOISE = 0.1


class PQLatentsMixin:
    """Goes before a stock Stable Diffusion pipeline, which then works on latents of any number of channels.

    Args:
        vae: autoencoder with d latent channels. With an `AutoencoderKL` everything is as in the stock pipeline.
        text_encoder: as in the stock pipeline.
        tokenizer: as in the stock pipeline.
        unet: with d input and output channels (for inpainting also 2 d + 1 input channels).
        scheduler: any that diffusers runs Stable Diffusion with.
        safety_checker: None for none.
        feature_extractor: of the safety checker.
        image_encoder: of an IP-Adapter.
        requires_safety_checker: whether to warn where there is none.
        quantize_latents: how calls that do not say it decode: True snaps latents to the nearest codewords, False decodes
            them as they are, a number snaps softly and is the standard deviation of the latents' error. None for what the
            autoencoder suggests. Saved with the pipeline.

    Raises:
        ValueError: if the components do not fit each other; the message names both sides.
    """

    _stock_class: type[DiffusionPipeline]
    _inpainting = False

    def __init__(
        self,
        vae: AutoencoderPQ | AutoencoderKL,
        text_encoder: CLIPTextModel,
        tokenizer: CLIPTokenizer,
        unet: UNet2DConditionModel,
        scheduler: KarrasDiffusionSchedulers,
        safety_checker: StableDiffusionSafetyChecker,
        feature_extractor: CLIPImageProcessor,
        image_encoder: CLIPVisionModelWithProjection = None,
        requires_safety_checker: bool = True,
        quantize_latents: bool | float | None = None,
    ):
        if quantize_latents is not None:
            check_quantize(quantize_latents, "quantize_latents")
        check_fit(vae, text_encoder, unet, scheduler, self._inpainting)
        super().__init__(
            vae=vae,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            unet=unet,
            scheduler=scheduler,
            safety_checker=safety_checker,
            feature_extractor=feature_extractor,
            image_encoder=image_encoder,
            requires_safety_checker=requires_safety_checker,
        )
        self.register_to_config(quantize_latents=quantize_latents)
        if vae is not None and vae.config.latent_channels != 3:  # else an image would be taken for latents
            self.image_processor = VaeImageProcessor(
                vae_scale_factor=self.vae_scale_factor, vae_latent_channels=vae.config.latent_channels
            )

    def __setattr__(self, name: str, value) -> None:
        # Stock pipelines look at the scheduler only when they are built.
        if name == "scheduler" and value is not None:
            fit_latents(value)
        super().__setattr__(name, value)

    @classmethod
    def from_pretrained(cls, *args, **kwargs):
        """As the stock method, but without `torch_dtype` all models are float32: transformers would keep the text
        encoder in the precision of its file, and half of it does not go with the rest. LoRA layers beside the models are
        reported; `load_lora_weights` loads them."""
        if not kwargs.keys() & {"torch_dtype", "dtype"}:
            kwargs["torch_dtype"] = torch.float32
        source = args[0] if args else kwargs.get("pretrained_model_name_or_path")
        pipeline = super().from_pretrained(*args, **kwargs)
        if lora_weights(source, **kwargs):
            logger.warning(
                f"{source} has LoRA layers, which are not loaded yet: call load_lora_weights({str(source)!r})"
            )
        return pipeline

    def save_pretrained(self, *args, **kwargs) -> None:
        """As the stock method.

        Raises:
            ValueError: if a model has LoRA layers, with what to do.
        """
        refuse_lora_layers(self)
        super().save_pretrained(*args, **kwargs)

    @classmethod
    def from_stable_diffusion(
        cls,
        base: str | PathLike | DiffusionPipeline,
        autoencoder: AutoencoderPQ | AutoencoderKL | str | PathLike | None = None,
        pq_variant: Variant | str | PathLike | None = None,
        init: str = "variance",
        torch_dtype: torch.dtype | None = None,
        conv_in_map: tuple[torch.Tensor, torch.Tensor] | None = None,
        **kwargs,
    ):
        """A pipeline made of a pretrained Stable Diffusion and a product-quantizing autoencoder, ready to be adapted.

        The UNet is widened to the autoencoder's channels; until it is trained on them its images mean little. What
        the UNet predicts is read from the base's scheduler. Neither `base` nor `autoencoder` is changed; where the data
        type allows it, their other components are shared.

        Args:
            base: a folder, a Hub id or a loaded stock pipeline (load it yourself to choose the files of a weight
                variant such as fp16).
            autoencoder: a model, the name of one that ships with pqdiff, a folder or a Hub id; None for the shipped
                one of the variant.
            pq_variant: `hr`, `precise`, `quick`, a YAML file or a `Variant`, from which the UNet's sample size comes; None
                to keep that of the base.
            init: how the widened projections start, as in `pqdiff.adaptation.widen.widen_unet`.
            torch_dtype: data type of the models; None for float32, or for that of a loaded base.
            conv_in_map: for `init="lstsq"`.
            **kwargs: for `from_pretrained` of the base; with a loaded base, components to replace.

        Raises:
            ValueError: if the base was taken down from the Hub, or base, autoencoder and pq_variant do not fit.
        """
        return convert_stable_diffusion(
            cls, cls._stock_class, base, autoencoder, pq_variant, init, torch_dtype, conv_in_map, **kwargs
        )

    def _checked_size(self, height: int | None, width: int | None) -> tuple[int, int]:
        """Height and width of images in pixels, each by default that of the UNet.

        Raises:
            ValueError: if latents cannot have this size: stock pipelines then generate a smaller image.
        """
        sample = self.unet.config.sample_size
        rows, columns = sample if isinstance(sample, (list, tuple)) else (sample, sample)
        factor = self.vae_scale_factor
        sizes = {"height": height or rows * factor, "width": width or columns * factor}
        self._check_sides(sizes, math.lcm(8, factor))  # 8: what stock pipelines demand
        return sizes["height"], sizes["width"]

    def _check_image(self, image: PipelineImageInput | None) -> None:
        """ValueError for images, not latents, of a size that latents cannot have: the stock pipeline makes them smaller."""
        for each in image if isinstance(image, list) else [image]:
            if isinstance(each, Image.Image):
                width, height = each.size
            elif torch.is_tensor(each) and each.ndim > 2 and each.shape[-3] == 3:
                height, width = each.shape[-2:]
            elif isinstance(each, np.ndarray) and each.ndim > 2:
                height, width = each.shape[-3:-1]
            else:
                continue
            self._check_sides({"height of image": height, "width of image": width}, self.vae_scale_factor)

    def _check_sides(self, sizes: dict[str, int], multiple: int) -> None:
        """ValueError if a side, by its name, is no multiple."""
        for side, length in sizes.items():
            if length < 1 or length % multiple:
                near = {max(1, length // multiple) * multiple, max(1, length // multiple + 1) * multiple}
                raise ValueError(
                    f"{side} ({length}) must be a positive multiple of {multiple} pixels for an autoencoder with "
                    f"F = {self.vae_scale_factor}: take {' or '.join(map(str, sorted(near)))}"
                )

    def _images(
        self, latents: torch.Tensor, output_type: str, return_dict: bool, generator, quantize_latents: bool | float
    ) -> StableDiffusionPipelineOutput | tuple:
        """Decode the denoised latents `(B, d, h, w)` and do everything that stock pipelines do after it."""
        images, flagged = latents, None
        if output_type != "latent":
            snapping = {"quantize": quantize_latents} if self._has_codewords else {}
            latents = latents / self.vae.config.scaling_factor + self._shift
            images = self.vae.decode(latents, return_dict=False, generator=generator, **snapping)[0]
            images, flagged = self.run_safety_checker(images, self._execution_device, latents.dtype)
        denormalize = [True] * len(images) if flagged is None else [not unsafe for unsafe in flagged]
        images = self.image_processor.postprocess(images, output_type=output_type, do_denormalize=denormalize)
        if not return_dict:
            return images, flagged
        return StableDiffusionPipelineOutput(images=images, nsfw_content_detected=flagged)

    def _image_latents(
        self, image: torch.Tensor, batch_size: int, dtype: torch.dtype, device: torch.device, generator
    ) -> torch.Tensor:
        """Latents `(batch_size, d, h, w)` of images `(B, 3, H, W)` in [-1, 1], or of latents `(B, d, h, w)`.

        Each image is repeated as its prompt is: with two per prompt the order is a, a, b, b.

        Raises:
            ValueError: if `batch_size` is no multiple of the images.
        """
        repeats, rest = divmod(batch_size, len(image))
        if rest or not repeats:
            raise ValueError(
                f"image holds {len(image)} images for a batch of {batch_size}: the batch, prompts times "
                "num_images_per_prompt, must be a multiple of the images"
            )
        image = image.to(device=device, dtype=dtype)
        if image.shape[1] == self.image_processor.config.vae_latent_channels:
            return image.repeat_interleave(repeats, dim=0)
        if isinstance(generator, list):
            image = image.repeat_interleave(repeats, dim=0)
            latents = [self._encode(each, one) for each, one in zip(image.split(1), generator, strict=True)]
            return torch.cat(latents)
        return self._encode(image, generator).repeat_interleave(repeats, dim=0)

    def _encode(self, image: torch.Tensor, generator: torch.Generator | None) -> torch.Tensor:
        return (self.vae.encode(image).latent_dist.sample(generator) - self._shift) * self.vae.config.scaling_factor

    @property
    def _has_codewords(self) -> bool:
        return isinstance(getattr(self.vae, "_orig_mod", self.vae), AutoencoderPQ)  # _orig_mod: torch.compile

    @property
    def _shift(self) -> float:
        """What autoencoders such as those of SD3 and Flux have taken off their latents; stock SD pipelines know none."""
        return getattr(getattr(self.vae, "config", None), "shift_factor", None) or 0.0

    @property
    def quantize_latents(self) -> bool | float:
        """How a call that does not say it decodes: what the pipeline was built or saved with, else what fits the
        autoencoder."""
        chosen = self.config.get("quantize_latents")
        if chosen is not None or not self._has_codewords:
            return True if chosen is None else chosen
        return DEFAULT_NOISE if self.vae.quantizer.has_posterior_mean else True

    def _checked_quantize(self, quantize_latents: bool | float | None) -> bool | float:
        if quantize_latents is None:
            return self.quantize_latents
        check_quantize(quantize_latents, "quantize_latents")
        return quantize_latents


def with_quantize_latents(stock_call: Callable) -> Callable:
    """The `__call__` of a stock pipeline with one more keyword, `quantize_latents`.

    True snaps the denoised latents to the nearest codewords before they are decoded; False decodes them as they are; a
    number snaps softly (`AutoencoderPQ.decode`). None, the default, is what the pipeline was saved with. It has no effect
    with `output_type="latent"`, nor with an autoencoder that has no codewords.
    """
    stock = inspect.signature(stock_call)

    @functools.wraps(stock_call)
    @torch.no_grad()
    def __call__(self, *args, quantize_latents: bool | float | None = None, **kwargs):
        way = self._checked_quantize(quantize_latents)
        given = stock.bind_partial(self, *args, **kwargs).arguments
        if given.get("height") or given.get("width"):
            self._checked_size(given.get("height"), given.get("width"))
        self._check_image(given.get("image"))
        if not self._shift and (way is True or not self._has_codewords):
            return stock_call(self, *args, **kwargs)  # AutoencoderPQ snaps by itself
        call = stock.bind(self, *args, **kwargs)
        call.apply_defaults()
        output_type, return_dict = call.arguments["output_type"], call.arguments["return_dict"]
        call.arguments |= {"output_type": "latent", "return_dict": False}
        latents = stock_call(*call.args, **call.kwargs)[0]
        output = self._images(latents, output_type, return_dict, call.arguments["generator"], way)
        self.maybe_free_model_hooks()  # decoding has woken the autoencoder again
        return output

    parameters = list(stock.parameters.values())
    keyword = inspect.Parameter(
        "quantize_latents", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=bool | float | None
    )
    at = next((i for i, each in enumerate(parameters) if each.kind is each.VAR_KEYWORD), len(parameters))
    __call__.__signature__ = stock.replace(parameters=[*parameters[:at], keyword, *parameters[at:]])
    return __call__
