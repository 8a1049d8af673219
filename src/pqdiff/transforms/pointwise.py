"""1x1 convolution, exactly reproducible.

`nn.Conv2d` picks its order of summation by batch size and number of CPU threads, and a last bit decides between two
codewords now and then.
"""

import torch
from torch import nn

_TERMS = 768  # the math library splits longer sums among threads


def pointwise(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """x `(B, C, H, W)` -> `(B, O, H, W)` by a weight `(O, C)` and a bias `(O,)`.

    The result depends on neither the batch size nor the number of CPU threads.
    """
    weights = weight.split(_TERMS, dim=1)
    rows = x.flatten(2).split(_TERMS, dim=1)
    result = sum(_product(part, row) for part, row in zip(weights, rows, strict=True)) + bias[:, None]
    return result.unflatten(2, x.shape[2:])


def _product(weight: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """`weight @ x` `(B, O, N)` for weight `(O, C)` and x `(B, C, N)`; on a CPU image by image, because the order of
    summation of a batch can differ from that of its images."""
    if x.device.type != "cpu":
        return weight @ x
    return torch.stack([weight @ image for image in x])


class PointwiseConv(nn.Conv2d):
    """`nn.Conv2d` of size 1, computed by `pointwise`."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__(in_channels, out_channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x `(B, C, H, W)` -> `(B, out_channels, H, W)`."""
        return pointwise(x, self.weight.flatten(1), self.bias)


class TiedPointwiseConv(PointwiseConv):
    """A `PointwiseConv` and its transpose, which share one weight; each has its own bias."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__(in_channels, out_channels)
        self.transposed_bias = nn.Parameter(torch.zeros(in_channels))

    def forward(self, x: torch.Tensor, transposed: bool = False) -> torch.Tensor:
        """x `(B, C, H, W)` -> `(B, out_channels, H, W)`; transposed, x `(B, out_channels, H, W)` -> `(B, C, H, W)`."""
        if transposed:
            return pointwise(x, self.weight.flatten(1).T, self.transposed_bias)
        return super().forward(x)
