"""Several transforms added up: networks beside a linear transform, which they correct."""

from collections.abc import Sequence

import torch
from torch import nn

from pqdiff.transforms.base import Transform, build_transform, register_transform


@register_transform("sum")
class SumTransform(Transform):
    """z and images are the sums of those of all parts.

    Args:
        in_channels: channels of the image.
        z_channels: channels that the quantizer codes.
        code_channels: channels of codes.
        parts: mappings with the keys `type` and `config`, one per transform; all must have the same F.

    Raises:
        ValueError: for fewer than two parts, or parts that do not fit each other.
    """

    def __init__(self, in_channels: int, z_channels: int, code_channels: int, parts: Sequence[dict] = ()):
        super().__init__()
        if len(parts) < 2:
            raise ValueError(f"parts ({parts}) must hold at least two transforms, each {{type: ..., config: ...}}")
        channels = (in_channels, z_channels, code_channels)
        self.parts = nn.ModuleList(build_transform(part["type"], *channels, part.get("config")) for part in parts)
        factors = [part.downsample_factor for part in self.parts]
        if len(set(factors)) > 1:
            raise ValueError(f"parts have different downsampling factors: {factors}")
        self.block_out_channels = self.parts[0].block_out_channels
        reaches = [part.reach for part in self.parts]
        self.reach = None if None in reaches else max(reaches)

    @property
    def last_layer(self) -> nn.Parameter:
        return self.parts[0].last_layer

    def group_of(self, name: str) -> str:
        _, number, rest = name.split(".", maxsplit=2)
        return self.parts[int(number)].group_of(rest)

    def analysis(self, image: torch.Tensor) -> torch.Tensor:
        return sum(part.analysis(image) for part in self.parts)

    def synthesis(self, codes: torch.Tensor) -> torch.Tensor:
        return sum(part.synthesis(codes) for part in self.parts)
