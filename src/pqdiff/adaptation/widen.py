"""Give a pretrained UNet2DConditionModel the channels of another autoencoder's latents.

Product-Quantised Image Representation for High-Quality Image Synthesis (PQGAN) copies the weights of the old channels.
Here every start is a pair of linear maps between channels, one before the old conv_in and one after the old conv_out,
so that copying, scaled copying and the closed forms of `unet_regression` are the same few lines. The class of the
UNet stays, and stock diffusers loads what is saved.
"""

import math
from typing import Literal

import torch
from diffusers import UNet2DConditionModel
from torch import nn

WIDENING_INITS = ("variance", "copy", "mmse", "zero")

_LEAST_SINGULAR_VALUE = 0.01  # relative; what the map hardly sees is not amplified on the way back


def widen_unet(
    unet: UNet2DConditionModel,
    latent_channels: int,
    init: Literal["variance", "copy", "mmse", "zero", "lstsq"] = "variance",
    conv_in_map: tuple[torch.Tensor, torch.Tensor] | None = None,
    preserve_noise: bool = True,
) -> UNet2DConditionModel:
    """Replace the channels of conv_in and conv_out, in place; dtype, device and all other weights stay.

    With c old and d new channels, let A `(c, d)` stand before the old conv_in and B `(d, c)` after the old conv_out,
    and let T `(c, d)` tile: new channel j takes the place of old channel j mod c, n times each.

    | init | A | B |
    |---|---|---|
    | copy | T | T^T: the paper's |
    | variance | T / sqrt(n): independent channels of unit variance reach conv_in's outputs with the old variance | T^T |
    | mmse | as variance | T^T / sqrt(n): the best answer for one of n channels where only their sum was seen |
    | zero | as variance | 0 |
    | lstsq | the weight of `conv_in_map` | the pseudo-inverse of A, until `ConvOutRegression` finds something better |

    If d < c, some old channels have no successor, and those that have one are amplified by sqrt(c / d) instead.

    For `lstsq`, A x + b estimates the old latents of the same image (`ConvInRegression`). Its bias goes into conv_in's;
    the zeros that conv_in pads with are zeros of the new latents, so this is exact up to the border. A diffusion
    model's input is a x + s e with white noise e. The old UNet trusts that noise of variance s^2 arrives in each old
    channel, but A e has variance diag(A A^T). `preserve_noise` divides the rows of A by its root. Where the
    new latents are uncorrelated with unit variance, that is also the standard deviation of A x, so the signal that a
    regression shrinks is restored with it. Where their variances differ, signal and noise cannot both arrive as the
    timestep says: True keeps the noise right, False the signal. The rows are scaled about zero, so the new latents'
    mean should be near it. The bias belongs to the images and shrinks with a over the timesteps, which a
    layer cannot follow: multiplied by the schedule's mean a before it is given, it errs least.

    Inpainting UNets take latents, a mask and latents of the masked image, in this order. Both groups of latents are
    widened, the second by A without `preserve_noise`, because no noise is added to it. The mask's filter stays.

    Args:
        unet: model whose conv_in takes c or 2c + 1 channels, where c is what its conv_out gives.
        latent_channels: channels d of the new latents.
        init: row of the table.
        conv_in_map: for `lstsq`, weight `(c, d)` and bias `(c,)`.
        preserve_noise: for `lstsq`, see above.

    Returns:
        The same object, with `in_channels` and `out_channels` of its config changed.

    Raises:
        ValueError: if an argument does not fit, or the weights are not there to be read.
    """
    old_channels = _check(unet, latent_channels, init, conv_in_map)
    noisy, clean, bias, back = _channel_maps(init, old_channels, latent_channels, conv_in_map, preserve_noise)

    conv_in, conv_out = unet.conv_in, unet.conv_out
    filters, offset = _on_cpu(conv_in.weight), _on_cpu(conv_in.bias)
    groups = [torch.einsum("oikl,ij->ojkl", filters[:, :old_channels], noisy)]
    offset = offset + torch.einsum("oikl,i->o", filters[:, :old_channels], bias)
    if conv_in.in_channels > old_channels:
        mask, masked_image = filters[:, old_channels : old_channels + 1], filters[:, old_channels + 1 :]
        groups += [mask, torch.einsum("oikl,ij->ojkl", masked_image, clean)]
        offset = offset + torch.einsum("oikl,i->o", masked_image, bias)
    _set(conv_in, torch.cat(groups, dim=1), offset)
    _set(conv_out, torch.einsum("ji,ihkl->jhkl", back, _on_cpu(conv_out.weight)), back @ _on_cpu(conv_out.bias))

    # from_config ignores values that it believes to be the defaults of the constructor.
    changed = {"in_channels": conv_in.in_channels, "out_channels": conv_out.out_channels}
    defaults = [name for name in unet.config.get("_use_default_values", []) if name not in changed]
    unet.register_to_config(**changed, _use_default_values=defaults)
    return unet


def projection_parameters(unet: UNet2DConditionModel) -> list[nn.Parameter]:
    """Parameters of conv_in and conv_out, which depend on the latents."""
    return [*unet.conv_in.parameters(), *unet.conv_out.parameters()]


def backbone_parameters(unet: UNet2DConditionModel) -> list[nn.Parameter]:
    """All parameters that are not projections, in the order of `unet.parameters()`."""
    projections = {id(parameter) for parameter in projection_parameters(unet)}
    return [parameter for parameter in unet.parameters() if id(parameter) not in projections]


def set_trainable(unet: UNet2DConditionModel, trainable: Literal["projections", "all", "lora"]) -> None:
    """Set `requires_grad` of every parameter. The parameters stay the same objects, so an optimizer may hold them all.

    Args:
        unet: model, not wrapped.
        trainable: `projections` for conv_in and conv_out, `all`, or `lora` for conv_in, conv_out and PEFT's adapters.

    Raises:
        ValueError: if `trainable` is none of these, or it is `lora` and there is no adapter.
    """
    if trainable not in ("projections", "all", "lora"):
        raise ValueError(f"trainable ({trainable!r}) must be 'projections', 'all' or 'lora'")
    adapters = {id(parameter) for name, parameter in unet.named_parameters() if "lora_" in name}
    if trainable == "lora" and not adapters:
        raise ValueError("trainable ('lora') needs a LoRA adapter: call unet.add_adapter(LoraConfig(...)) first")
    chosen = {id(parameter) for parameter in projection_parameters(unet)}
    chosen |= adapters if trainable == "lora" else set()
    for parameter in unet.parameters():
        parameter.requires_grad_(trainable == "all" or id(parameter) in chosen)


def _check(unet, latent_channels, init, conv_in_map) -> int:
    """Raise if the arguments do not fit each other; the number of old channels otherwise."""
    if not isinstance(unet, UNet2DConditionModel):
        raise ValueError(
            f"unet ({type(unet).__name__}) must be a UNet2DConditionModel: unwrap compiled or distributed models first"
        )
    if not isinstance(latent_channels, int) or latent_channels < 1:
        raise ValueError(f"latent_channels ({latent_channels!r}) must be a positive integer")
    if init not in (*WIDENING_INITS, "lstsq"):
        raise ValueError(f"init ({init!r}) must be one of {', '.join(WIDENING_INITS)}, lstsq")
    for name in ("conv_in", "conv_out"):
        layer = getattr(unet, name)
        if not isinstance(layer, nn.Conv2d):
            raise ValueError(
                f"unet.{name} ({type(layer).__module__}.{type(layer).__name__}) must be a torch.nn.Conv2d: widen "
                "before LoRA adapters or quantization replace it, or call unet.unload_lora() first"
            )
        if layer.weight.is_meta:
            raise ValueError(
                f"unet.{name} has no weights (device meta): load them with from_pretrained, build the model outside "
                "init_empty_weights, and widen before sequential CPU offload"
            )
    inputs, outputs = unet.conv_in.in_channels, unet.conv_out.out_channels
    if inputs not in (outputs, 2 * outputs + 1):
        raise ValueError(
            f"unet takes {inputs} channels and gives {outputs}: it must take {outputs}, or {2 * outputs + 1} for "
            "inpainting (latents, mask, latents of the masked image)"
        )
    if (conv_in_map is not None) != (init == "lstsq"):
        raise ValueError(
            f"init ({init!r}) and conv_in_map ({'absent' if conv_in_map is None else 'given'}) do not fit: 'lstsq' "
            "needs conv_in_map=ConvInRegression(...).solve(), the others take none"
        )
    if conv_in_map is not None:
        shapes = [tuple(tensor.shape) for tensor in conv_in_map]
        wanted = [(outputs, latent_channels), (outputs,)]
        if shapes != wanted:
            raise ValueError(f"conv_in_map has shapes {shapes}, but the UNet and latent_channels need {wanted}")
        if not all(tensor.isfinite().all() for tensor in conv_in_map):
            raise ValueError("conv_in_map holds NaN or infinity")
    return outputs


def _channel_maps(init, old: int, new: int, conv_in_map, preserve_noise: bool) -> tuple[torch.Tensor, ...]:
    """Maps `(c, d)` for noisy and for clean latents, their bias `(c,)`, and the map back `(d, c)`; float64."""
    if init == "lstsq":
        clean, bias = map(_on_cpu, conv_in_map)
        gain = clean.norm(dim=1, keepdim=True)  # (c, 1), of white noise
        noisy = clean / gain.where(gain > 0, 1) if preserve_noise else clean
        return noisy, clean, bias, torch.linalg.pinv(noisy, rtol=_LEAST_SINGULAR_VALUE)
    columns = torch.arange(new)
    tiling = torch.zeros(old, new, dtype=torch.float64)
    tiling[columns % old, columns] = 1
    copies = tiling.sum(dim=1, keepdim=True).clamp_min(1)
    scaled = tiling / copies.sqrt() * math.sqrt(max(1, old / new))
    there = tiling if init == "copy" else scaled
    back = {"mmse": torch.linalg.pinv(scaled), "zero": torch.zeros_like(tiling.T)}.get(init, tiling.T)
    return there, there, torch.zeros(old, dtype=torch.float64), back


def _on_cpu(tensor: torch.Tensor) -> torch.Tensor:
    """The values in float64 where every build of torch can compute with it; copies stay exact in any dtype."""
    return tensor.detach().cpu().double()


def _set(conv: nn.Conv2d, weight: torch.Tensor, bias: torch.Tensor) -> None:
    """Give a layer weights of another size; its hooks, flags and place in the model stay."""
    conv.out_channels, conv.in_channels = weight.shape[:2]
    for name, values in (("weight", weight), ("bias", bias)):
        old = getattr(conv, name)
        values = values.to(old.device, old.dtype, memory_format=torch.contiguous_format)
        setattr(conv, name, nn.Parameter(values, requires_grad=old.requires_grad))
