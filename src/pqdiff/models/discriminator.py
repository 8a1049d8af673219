"""Discriminator of overlapping patches of an image (Isola et al., pix2pix, arXiv 1611.07004).

The layers have the names and numbers of VQGAN's and PQGAN's training checkpoints (`loss.discriminator.main.*`).
"""

import torch
from diffusers import ModelMixin
from diffusers.configuration_utils import ConfigMixin, register_to_config
from torch import nn

from pqdiff.models.checks import refuse_wrong_values
from pqdiff.suggestions import did_you_mean

NORMS = ("batch", "none")
_MAX_WIDENING = 8  # times base_channels, for any number of layers


class PatchDiscriminator(ModelMixin, ConfigMixin):
    """Maps images `(B, C, H, W)` in [-1, 1] to one logit per patch, `(B, 1, h, w)`, which is positive for real patches.

    With the defaults a logit sees 70 x 70 pixels, and 256 px give 30 x 30 logits. Like every model of diffusers it is in
    eval mode after `from_pretrained`, where batch norm uses running statistics: call `.train()` to continue training.

    Args:
        in_channels: channels of the images.
        base_channels: channels after the first convolution. Each layer doubles them, up to 8 times as many.
        num_layers: number of convolutions of stride 2; 3 in PQGAN's main configurations, 2 in some of its sweeps.
        norm: normalization of the layers: "batch" (which the papers use) or "none".

    Raises:
        ValueError: if `norm` is unknown, `num_layers` is below 1, or a value has a wrong type or is too large.
    """

    @register_to_config
    @refuse_wrong_values
    def __init__(
        self,
        in_channels: int = 3,
        base_channels: int = 64,
        num_layers: int = 3,
        norm: str = "batch",
    ):
        super().__init__()
        if norm not in NORMS:
            raise ValueError(f"norm ({norm!r}) does not exist: {did_you_mean(norm, NORMS)}")
        if num_layers < 1:
            raise ValueError(f"num_layers ({num_layers}) must be at least 1")
        widths = [base_channels * min(2**n, _MAX_WIDENING) for n in range(num_layers + 1)]
        layers = [nn.Conv2d(in_channels, base_channels, 4, stride=2, padding=1), nn.LeakyReLU(0.2, inplace=True)]
        for n in range(1, num_layers + 1):
            stride = 2 if n < num_layers else 1
            # Batch norm removes a bias before it.
            conv = nn.Conv2d(widths[n - 1], widths[n], 4, stride=stride, padding=1, bias=norm != "batch")
            normalize = nn.BatchNorm2d(widths[n]) if norm == "batch" else nn.Identity()
            layers += [conv, normalize, nn.LeakyReLU(0.2, inplace=True)]
        self.main = nn.Sequential(*layers, nn.Conv2d(widths[-1], 1, 4, stride=1, padding=1))
        self.min_size = 3 * 2**num_layers  # each of the two convolutions of stride 1 makes the side 1 smaller
        self.apply(_initialize)

    def forward(self, *batches: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, ...]:
        """Logits `(B, 1, h, w)` of a batch of images `(B, C, H, W)`; for several batches, a tuple with one tensor for each.

        Each batch is normalized by its own statistics, as if it were given alone. Give both batches in one call: at every
        call, wrappers for several processes exchange buffers and prepare a backward pass.

        Raises:
            ValueError: if the images have another number of channels, or are too small for one logit.
        """
        for images in batches:
            if images.ndim != 4 or images.shape[1] != self.config.in_channels:
                raise ValueError(f"images must be (B, {self.config.in_channels}, H, W), got {tuple(images.shape)}")
            if min(images.shape[2:]) < self.min_size:
                raise ValueError(
                    f"images ({images.shape[2]} x {images.shape[3]}) must have sides of at least {self.min_size} px "
                    f"for num_layers={self.config.num_layers}: use larger crops or fewer layers"
                )
        logits = tuple(self.main(images) for images in batches)
        return logits if len(logits) > 1 else logits[0]


def _initialize(module: nn.Module) -> None:
    """Initialize as pix2pix does. Biases of convolutions keep PyTorch's initialization."""
    if isinstance(module, nn.Conv2d):
        nn.init.normal_(module.weight, 0.0, 0.02)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1.0, 0.02)
        nn.init.zeros_(module.bias)
