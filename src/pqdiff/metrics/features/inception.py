"""The Inception v3 of FID (Heusel et al., arXiv 1706.08500), in torch alone.

The network of Szegedy et al. (arXiv 1512.00567) as TensorFlow published it on 2015-12-05. It differs from other Inception
v3 networks in weights, in 1008 classes, and in two poolings: averages do not count padding, and the pooling of the last
block takes maxima. Names of tensors are those of the published conversion `pt_inception-2015-12-05-6726825d.pth`.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from pqdiff.metrics.features.base import FeatureExtractor, FeatureOutput
from pqdiff.network_weights import WeightsFile


class Conv(nn.Module):
    """Convolution without bias, batch normalization, ReLU."""

    def __init__(self, in_channels: int, out_channels: int, kernel, stride: int = 1, padding=0):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(out_channels, eps=0.001)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(self.bn(self.conv(x)))


def _same(in_channels: int, out_channels: int, height: int, width: int | None = None) -> Conv:
    """A convolution that keeps the size."""
    kernel = (height, width or height)
    return Conv(in_channels, out_channels, kernel, padding=(kernel[0] // 2, kernel[1] // 2))


def _average(x: torch.Tensor) -> torch.Tensor:
    return F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)


class BlockA(nn.Module):
    """35 x 35: branches of 1 x 1, 5 x 5, two 3 x 3, and pooling."""

    def __init__(self, in_channels: int, pool_channels: int):
        super().__init__()
        self.branch1x1 = _same(in_channels, 64, 1)
        self.branch5x5_1 = _same(in_channels, 48, 1)
        self.branch5x5_2 = _same(48, 64, 5)
        self.branch3x3dbl_1 = _same(in_channels, 64, 1)
        self.branch3x3dbl_2 = _same(64, 96, 3)
        self.branch3x3dbl_3 = _same(96, 96, 3)
        self.branch_pool = _same(in_channels, pool_channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        wide = self.branch5x5_2(self.branch5x5_1(x))
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch1x1(x), wide, double, self.branch_pool(_average(x))], 1)


class BlockB(nn.Module):
    """35 x 35 to 17 x 17."""

    def __init__(self, in_channels: int):
        super().__init__()
        self.branch3x3 = Conv(in_channels, 384, 3, stride=2)
        self.branch3x3dbl_1 = _same(in_channels, 64, 1)
        self.branch3x3dbl_2 = _same(64, 96, 3)
        self.branch3x3dbl_3 = Conv(96, 96, 3, stride=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch3x3(x), double, F.max_pool2d(x, 3, stride=2)], 1)


class BlockC(nn.Module):
    """17 x 17: 7 x 7 convolutions as rows and columns."""

    def __init__(self, width: int):
        super().__init__()
        self.branch1x1 = _same(768, 192, 1)
        self.branch7x7_1 = _same(768, width, 1)
        self.branch7x7_2 = _same(width, width, 1, 7)
        self.branch7x7_3 = _same(width, 192, 7, 1)
        self.branch7x7dbl_1 = _same(768, width, 1)
        self.branch7x7dbl_2 = _same(width, width, 7, 1)
        self.branch7x7dbl_3 = _same(width, width, 1, 7)
        self.branch7x7dbl_4 = _same(width, width, 7, 1)
        self.branch7x7dbl_5 = _same(width, 192, 1, 7)
        self.branch_pool = _same(768, 192, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        single = self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(x)))
        double = self.branch7x7dbl_3(self.branch7x7dbl_2(self.branch7x7dbl_1(x)))
        double = self.branch7x7dbl_5(self.branch7x7dbl_4(double))
        return torch.cat([self.branch1x1(x), single, double, self.branch_pool(_average(x))], 1)


class BlockD(nn.Module):
    """17 x 17 to 8 x 8."""

    def __init__(self):
        super().__init__()
        self.branch3x3_1 = _same(768, 192, 1)
        self.branch3x3_2 = Conv(192, 320, 3, stride=2)
        self.branch7x7x3_1 = _same(768, 192, 1)
        self.branch7x7x3_2 = _same(192, 192, 1, 7)
        self.branch7x7x3_3 = _same(192, 192, 7, 1)
        self.branch7x7x3_4 = Conv(192, 192, 3, stride=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        single = self.branch3x3_2(self.branch3x3_1(x))
        wide = self.branch7x7x3_4(self.branch7x7x3_3(self.branch7x7x3_2(self.branch7x7x3_1(x))))
        return torch.cat([single, wide, F.max_pool2d(x, 3, stride=2)], 1)


class BlockE(nn.Module):
    """8 x 8: branches that part into rows and columns. `pool` is the average, and in the last block the maximum."""

    def __init__(self, in_channels: int, pool):
        super().__init__()
        self.branch1x1 = _same(in_channels, 320, 1)
        self.branch3x3_1 = _same(in_channels, 384, 1)
        self.branch3x3_2a = _same(384, 384, 1, 3)
        self.branch3x3_2b = _same(384, 384, 3, 1)
        self.branch3x3dbl_1 = _same(in_channels, 448, 1)
        self.branch3x3dbl_2 = _same(448, 384, 3)
        self.branch3x3dbl_3a = _same(384, 384, 1, 3)
        self.branch3x3dbl_3b = _same(384, 384, 3, 1)
        self.branch_pool = _same(in_channels, 192, 1)
        self.pool = pool

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        single = self.branch3x3_1(x)
        double = self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        parts = [self.branch3x3_2a(single), self.branch3x3_2b(single)]
        parts += [self.branch3x3dbl_3a(double), self.branch3x3dbl_3b(double)]
        return torch.cat([self.branch1x1(x), *parts, self.branch_pool(self.pool(x))], 1)


class InceptionNetwork(nn.Module):
    """Features `(B, 2048)` and logits `(B, 1008)` of inputs `(B, 3, 299, 299)` in [-1, 1)."""

    def __init__(self):
        super().__init__()
        self.Conv2d_1a_3x3 = Conv(3, 32, 3, stride=2)
        self.Conv2d_2a_3x3 = Conv(32, 32, 3)
        self.Conv2d_2b_3x3 = Conv(32, 64, 3, padding=1)
        self.Conv2d_3b_1x1 = Conv(64, 80, 1)
        self.Conv2d_4a_3x3 = Conv(80, 192, 3)
        self.Mixed_5b = BlockA(192, 32)
        self.Mixed_5c = BlockA(256, 64)
        self.Mixed_5d = BlockA(288, 64)
        self.Mixed_6a = BlockB(288)
        self.Mixed_6b = BlockC(128)
        self.Mixed_6c = BlockC(160)
        self.Mixed_6d = BlockC(160)
        self.Mixed_6e = BlockC(192)
        self.Mixed_7a = BlockD()
        self.Mixed_7b = BlockE(1280, _average)
        self.Mixed_7c = BlockE(2048, lambda x: F.max_pool2d(x, 3, stride=1, padding=1))
        self.fc = nn.Linear(2048, 1008)

    def forward(self, x: torch.Tensor) -> FeatureOutput:
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(F.max_pool2d(x, 3, stride=2)))
        x = self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(F.max_pool2d(x, 3, stride=2))))
        x = self.Mixed_6e(self.Mixed_6d(self.Mixed_6c(self.Mixed_6b(self.Mixed_6a(x)))))
        features = self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(x))).mean((2, 3))
        # The Inception Score is defined with logits that lack their bias.
        return FeatureOutput(features, features @ self.fc.weight.T)


class FIDInception(FeatureExtractor):
    """2048 features, and 1008 logits without bias, as the Inception Score takes them.

    Images are resized to 299 x 299 as TensorFlow 1 does it (`resize_like_tensorflow1`), and inputs are (x - 128) / 128.

    Args:
        weights: file of weights. Default: the file that the environment variable PQDIFF_INCEPTION names, else a download.
        sha256: beginning of the file's SHA-256, if it is another than the published one.

    Raises:
        FileNotFoundError, ValueError: see `WeightsFile.load_into`.
    """

    name = "inception"
    dim = 2048
    num_classes = 1008
    weights = WeightsFile(
        title="the weights of FID's Inception",
        variable="PQDIFF_INCEPTION",
        known={
            "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2": (
                "pt_inception-2015-12-05-6726825d.pth"
            ),
        },
        url="https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/pt_inception-2015-12-05-6726825d.pth",
    )
    preparation = "299 x 299, bilinear of TensorFlow 1, no antialias, (x - 128) / 128"

    def __init__(self, weights: str | Path | None = None, sha256: str | None = None):
        super().__init__()
        path = self.weights.find(weights)
        self.network = InceptionNetwork()
        self.digest = self.weights.load_into(self.network, path, sha256)

    def prepare(self, image: torch.Tensor) -> torch.Tensor:
        return (resize_like_tensorflow1(image, 299) - 128) / 128

    def see(self, inputs: torch.Tensor) -> FeatureOutput:
        return self.network(inputs)


def resize_like_tensorflow1(images: torch.Tensor, side: int) -> torch.Tensor:
    """Bilinear interpolation of images `(B, C, H, W)` to `(B, C, side, side)`, without antialiasing.

    The first pixel stays the first: a pixel of the result lies at its number times H / side, not at its center.
    """
    for axis in (3, 2):
        size = images.shape[axis]
        # TensorFlow computes places in fp32.
        place = torch.arange(side, device=images.device, dtype=torch.float32) * (size / side)
        low = place.long().clamp(max=size - 1)
        weight = (place - low).view(-1, *[1] * (3 - axis))
        first = images.index_select(axis, low)
        images = first + (images.index_select(axis, (low + 1).clamp(max=size - 1)) - first) * weight
    return images
