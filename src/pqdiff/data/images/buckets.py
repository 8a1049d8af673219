"""Aspect-ratio buckets: sizes of about the same area, so that images need not be cropped to squares.

All images of a batch belong to one bucket. Each image belongs to the bucket whose aspect ratio is nearest to its own.
"""

import math


def bucket_sizes(resolution: int, multiple: int, max_ratio: float = 2.0) -> list[tuple[int, int]]:
    """Sizes `(height, width)` with sides that are multiples of `multiple` and an area within a quarter of resolution^2.

    Args:
        resolution: side in pixels of the square, which is one of the sizes.
        multiple: number that divides all sides: the downsampling factor of the autoencoder times that of the UNet.
        max_ratio: largest ratio of the longer side to the shorter.

    Returns:
        Sizes from the widest to the tallest. For each size its transpose is there too.

    Raises:
        ValueError: if `resolution` is not a multiple of `multiple`, or an argument is too small.
    """
    if multiple < 1 or resolution < multiple or resolution % multiple:
        raise ValueError(
            f"resolution ({resolution}) must be a multiple of {multiple}, "
            f"e.g. {max(1, round(resolution / max(1, multiple))) * max(1, multiple)}"
        )
    if max_ratio < 1:
        raise ValueError(f"max_ratio ({max_ratio}) must be at least 1")
    area, sizes = resolution**2, {(resolution, resolution)}
    for height in range(multiple, resolution, multiple):
        width = max(1, round(area / height / multiple)) * multiple
        if width / height <= max_ratio and abs(height * width / area - 1) <= 0.25:
            sizes |= {(height, width), (width, height)}
    return sorted(sizes, key=lambda size: (size[0] / size[1], size))


def nearest_bucket(width: int, height: int, buckets: list[tuple[int, int]]) -> tuple[int, int]:
    """Bucket `(height, width)` that keeps most of an image: the nearest in log aspect ratio; of equals the larger.

    Args:
        width: of the image.
        height: of the image.
        buckets: sizes `(height, width)`.

    Raises:
        ValueError: if there are no buckets.
    """
    if not buckets:
        raise ValueError("buckets must not be empty")
    ratio = math.log(height / width)
    return min(buckets, key=lambda size: (abs(math.log(size[0] / size[1]) - ratio), -size[0] * size[1]))
