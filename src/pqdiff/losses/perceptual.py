"""LPIPS with VGG16: how different two images look (Zhang et al., arXiv 1801.03924), without torchvision.

Squared differences of unit-normalized features, weighted per channel, averaged over positions, summed over five stages.
The channel weights are those inside torchmetrics. Training uses VGG16; tables usually show LPIPS with AlexNet.
"""

from pathlib import Path

import torch
import torchmetrics
from torch import nn

from .vgg import CHANNELS, FILENAME, REPO_ID, REVISION, find_vgg16, load_vgg16

_HEADS = Path(torchmetrics.__file__).parent / "functional" / "image" / "lpips_models" / "vgg.pth"
_EPS = 1e-8  # inside the root: where all features are zero, the gradient of a bare norm is infinite
_MIN_SIZE = 32


class PerceptualLoss(nn.Module):
    """LPIPS distance of images, differentiable in both, 0 for equal ones.

    Frozen, always in eval mode, and computed in fp32 whatever autocast says.

    Args:
        weights: file with VGG16's weights; default: what the environment variable PQDIFF_VGG16 names, else the Hub's.
        sha256: beginning of the file's SHA-256, if it is not one of `pqdiff.losses.vgg.KNOWN_FILES`.
        repo_id: Hub repository to download from.
        filename: file in it.
        revision: commit or branch of it.

    Attributes:
        digest: SHA-256 of the weights, for the record.

    Raises:
        FileNotFoundError: saying what to put where, if there are no weights.
        ValueError: if they are not what they should be.
    """

    def __init__(
        self,
        weights: str | Path | None = None,
        *,
        sha256: str | None = None,
        repo_id: str = REPO_ID,
        filename: str = FILENAME,
        revision: str | None = REVISION,
    ):
        super().__init__()
        self.trunk, self.digest = load_vgg16(find_vgg16(weights, repo_id, filename, revision), sha256)
        # What ImageNet's mean and standard deviation are for images in [-1, 1].
        self.register_buffer("shift", torch.tensor([-0.030, -0.088, -0.188]).view(1, 3, 1, 1))
        self.register_buffer("scale", torch.tensor([0.458, 0.448, 0.450]).view(1, 3, 1, 1))
        for stage, head in enumerate(_read_heads()):
            self.register_buffer(f"head_{stage}", head)
        self.eval()

    def train(self, mode: bool = True) -> "PerceptualLoss":
        """Stays in eval mode, also as a part of something that trains."""
        return super().train(False)

    def forward(self, images: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
        """Distances `(B,)` in fp32 between images `(B, 3, H, W)` in [-1, 1], sides at least 32 px.

        Raises:
            ValueError: if shapes differ or are others.
        """
        if images.shape != others.shape or images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(
                f"images must be two of (B, 3, H, W), got {tuple(images.shape)} and {tuple(others.shape)}"
            )
        if min(images.shape[2:]) < _MIN_SIZE:
            raise ValueError(
                f"images ({images.shape[2]} x {images.shape[3]}) must have sides of at least {_MIN_SIZE} px for VGG16: "
                "use larger crops or a perceptual weight of 0"
            )
        with torch.autocast(images.device.type, enabled=False):
            first, second = (self.trunk((x.float() - self.shift) / self.scale) for x in (images, others))
            distance = images.new_zeros(len(images), dtype=torch.float32)
            for stage, (a, b) in enumerate(zip(first, second, strict=True)):
                difference = (_unit(a) - _unit(b)).square().mean((2, 3))  # (B, C)
                distance = distance + difference @ getattr(self, f"head_{stage}")
        return distance


@torch.no_grad()
def learned_perceptual_similarity(network: PerceptualLoss, preds: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """LPIPS (VGG16) of each image, `(B,)`, without gradients. Lower is better.

    Args:
        network: with its weights, on the images' device.
        preds: reconstructions `(B, 3, H, W)`, uint8, or floating point in [0, 1], as the metrics take them.
        target: images of the same shape and dtype.

    Raises:
        ValueError: if dtypes or shapes differ.
    """
    if preds.dtype != target.dtype:
        raise ValueError(f"preds ({preds.dtype}) and target ({target.dtype}) must have the same dtype")
    factor = 1 if preds.is_floating_point() else 255
    return network(preds.float() / factor * 2 - 1, target.float() / factor * 2 - 1)


def _unit(features: torch.Tensor) -> torch.Tensor:
    """Features `(B, C, h, w)` divided by their length over channels."""
    return features * (features.square().sum(1, keepdim=True) + _EPS).rsqrt()


def _read_heads() -> list[torch.Tensor]:
    """Channel weights `(C,)` of the five stages, from the installed torchmetrics."""
    try:
        tensors = torch.load(_HEADS, map_location="cpu", weights_only=True)
        heads = [tensors[f"lin{stage}.model.1.weight"].flatten() for stage in range(len(CHANNELS))]
    except (OSError, KeyError) as error:
        raise ValueError(
            f"torchmetrics ({torchmetrics.__version__}) does not hold the channel weights of LPIPS where pqdiff looks "
            "for them: version 1.9 does"
        ) from error
    if tuple(map(len, heads)) != CHANNELS:
        raise ValueError(f"channel weights of LPIPS must be for {CHANNELS} channels, got {tuple(map(len, heads))}")
    return heads
