"""What `AutoencoderPQ` accepts: arguments that fit each other, images and latents of the right shape.

Every function returns nothing and raises a `ValueError` that names the argument, its value, and what to do.
"""

from collections.abc import Sequence

import torch


def check_parts(
    conv_networks: bool, patch_shortcut: bool, in_channels: int, out_channels: int, class_bases: int, **beside_shortcut
) -> None:
    """Whether the parts can stand beside each other. `beside_shortcut`: sizes of those that need the linear path."""
    if not (conv_networks or patch_shortcut):
        raise ValueError("conv_networks and patch_shortcut are both False: nothing would encode; set one to True")
    for name, value in {"class_bases": class_bases, **beside_shortcut}.items():
        if value and not patch_shortcut:
            raise ValueError(f"{name} ({value}) needs patch_shortcut=True, else it must be 0")
    if class_bases and (conv_networks or beside_shortcut["patch_network_channels"]):
        raise ValueError(
            f"class_bases ({class_bases}) codes patches without networks: set conv_networks=False and "
            "patch_network_channels=0, or class_bases=0"
        )
    if patch_shortcut and in_channels != out_channels:
        raise ValueError(f"patch_shortcut needs in_channels ({in_channels}) equal to out_channels ({out_channels})")


def check_levels(down_block_types: Sequence, up_block_types: Sequence, block_out_channels: Sequence) -> None:
    """Whether the networks have one block of each kind per level."""
    levels = len(block_out_channels)
    if not len(down_block_types) == len(up_block_types) == levels:
        raise ValueError(
            f"down_block_types ({len(down_block_types)}), up_block_types ({len(up_block_types)}) and "
            f"block_out_channels ({levels}) must have the same length"
        )


def check_image_statistics(mean: Sequence[float] | None, std: Sequence[float] | None, channels: int) -> None:
    """Whether there is a mean and a positive deviation per channel, or neither."""
    if (mean is None) != (std is None):
        raise ValueError("image_mean and image_std must be given together, or neither")
    if mean is not None and (len(mean) != channels or len(std) != channels or min(std) <= 0):
        raise ValueError(f"image_mean ({mean}) and image_std ({std}) must hold {channels} values each, std positive")


def check_image(x: torch.Tensor, channels: int, factor: int) -> None:
    """Whether x is `(B, channels, H, W)` with sides divisible by the factor."""
    if x.ndim != 4 or x.shape[1] != channels:
        raise ValueError(f"image must be (B, {channels}, H, W), got {tuple(x.shape)}")
    height, width = x.shape[2:]
    if height % factor or width % factor or not height or not width:
        smaller = " x ".join(str(max(factor, side // factor * factor)) for side in (height, width))
        larger = " x ".join(str(max(factor, -(-side // factor) * factor)) for side in (height, width))
        raise ValueError(
            f"image size ({height} x {width}) must be divisible by {factor}: crop it to {smaller} or pad it to {larger}"
        )


def check_latents(z: torch.Tensor, channels: int) -> None:
    """Whether z is `(B, channels, h, w)`."""
    if z.ndim != 4 or z.shape[1] != channels:
        raise ValueError(f"latents must be (B, {channels}, h, w), got {tuple(z.shape)}")


def check_indices(indices: torch.Tensor, codebook_sizes: Sequence[int]) -> None:
    """Whether indices are `(B, S, h, w)` and each is in its subspace's codebook."""
    sizes = torch.tensor(codebook_sizes, device=indices.device).view(-1, 1, 1)
    if indices.ndim != 4 or indices.shape[1] != len(sizes):
        raise ValueError(f"indices must be (B, {len(sizes)}, h, w), got {tuple(indices.shape)}")
    if bool(((indices < 0) | (indices >= sizes)).any()):
        raise ValueError(f"indices must be in [0, {int(sizes.max())}), got values outside: codes of another model?")
