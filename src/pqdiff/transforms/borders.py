"""An orthogonal filter across the borders of patches, which makes a transform of patches a lapped one.

Before patches are cut, pixels on both sides of a border are mixed so that their patches have less in common; after they are
put together again, the transpose undoes it, and the errors of neighbors run smoothly into each other. One patch costs as
many coefficients as before. The type II lapped transform of Malvar 1992, as a filter of pixels: Tran, Liang and Tu 2003,
"Lapped transform via time-domain pre- and post-filtering".
"""

import math

import torch

from pqdiff.transforms.pointwise import pointwise


def border_rotation(overlap: int) -> torch.Tensor:
    """How the filter of `overlap` pixels turns differences across a border: (overlap / 2, overlap / 2), orthogonal, fp32.

    Row and column 0 belong to the two pixels at the border. It is the transpose of the DCT-II times the DCT-IV, counted
    from there.
    """
    size = overlap // 2
    places = torch.arange(size, dtype=torch.float64, device="cpu")  # whatever device the model is built on
    scale = math.sqrt(2 / size)
    second = ((places + 0.5) * places[:, None] * math.pi / size).cos() * scale
    second[0] /= math.sqrt(2)
    fourth = ((places + 0.5) * (places[:, None] + 0.5) * math.pi / size).cos() * scale
    return (second.T @ fourth).flip(0, 1).float()


def filter_borders(image: torch.Tensor, patch_size: int, rotation: torch.Tensor) -> torch.Tensor:
    """Filter an image `(B, C, H, W)` across all borders between its patches; the edges of the image are none.

    Args:
        image: with sides that `patch_size` divides.
        patch_size: side F of a patch.
        rotation: what `border_rotation` gives, to filter; its transpose, to undo it.
    """
    for dim in (2, 3):
        image = _filter_lines(image.movedim(dim, 1), patch_size, rotation).movedim(1, dim)
    return image.contiguous()


def _filter_lines(image: torch.Tensor, patch_size: int, rotation: torch.Tensor) -> torch.Tensor:
    """Filter `(B, L, M, N)` across the borders along L. The two pixels at equal distances from a border keep their sum,
    and their differences are turned."""
    half = len(rotation)
    patches = image.unflatten(1, (-1, patch_size))  # (B, L / F, F, M, N)
    ends, starts = patches[:, :-1, -half:].flip(2), patches[:, 1:, :half]  # from the border outwards
    sums, differences = ends + starts, ends - starts  # (B, borders, half, M, N)
    rows = differences.transpose(1, 2).flatten(2)[:, :, None]  # (B, half, 1, borders M N)
    rows = pointwise(rows, rotation.to(rows), rows.new_zeros(half))
    differences = rows.view(differences.transpose(1, 2).shape).transpose(1, 2)
    patches = patches.clone(memory_format=torch.contiguous_format)
    patches[:, :-1, -half:] = (sums + differences).flip(2) / 2
    patches[:, 1:, :half] = (sums - differences) / 2
    return patches.flatten(1, 2)
