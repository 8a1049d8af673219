"""Discriminator that judges overlapping patches of an image (Isola et al., pix2pix, arXiv 1611.07004).

Names and numbers of the layers are those of VQGAN's and PQGAN's training checkpoints (`loss.discriminator.main.*`).
"""

import torch
from diffusers import ModelMixin
from diffusers.configuration_utils import ConfigMixin, register_to_config
from torch import nn

NORMS = ("batch", "group", "actnorm", "none")
_MAX_WIDENING = 8  # of base_channels, however many layers there are


class PatchDiscriminator(ModelMixin, ConfigMixin):
    """Images `(B, C, H, W)` in [-1, 1] to one logit per patch, `(B, 1, h, w)`: positive for what looks real.

    With the defaults a logit sees 70 x 70 pixels, and 256 px give 30 x 30 logits. As any model of diffusers it comes
    out of `from_pretrained` in eval mode, where batch norm uses running statistics: call `.train()` to go on training.

    Args:
        in_channels: channels of the images.
        base_channels: channels after the first convolution; each layer doubles them, up to 8 times as many.
        num_layers: convolutions of stride 2. 3 in PQGAN's main configurations, 2 in some of its sweeps.
        norm: "batch" (the papers' choice), "group", "actnorm" (data-dependent scale and shift) or "none".
        norm_num_groups: groups of `norm="group"`.

    Raises:
        ValueError: if `norm` is unknown, `num_layers` is below 1, or groups do not divide the channels.
    """

    @register_to_config
    def __init__(
        self,
        in_channels: int = 3,
        base_channels: int = 64,
        num_layers: int = 3,
        norm: str = "batch",
        norm_num_groups: int = 32,
    ):
        super().__init__()
        if norm not in NORMS:
            raise ValueError(f"norm ({norm}) must be one of {', '.join(NORMS)}")
        if num_layers < 1:
            raise ValueError(f"num_layers ({num_layers}) must be at least 1")
        if norm == "group" and (norm_num_groups < 1 or (2 * base_channels) % norm_num_groups):
            raise ValueError(
                f"norm_num_groups ({norm_num_groups}) must divide 2 * base_channels ({2 * base_channels}); choose another"
            )
        widths = [base_channels * min(2**n, _MAX_WIDENING) for n in range(num_layers + 1)]
        layers = [nn.Conv2d(in_channels, base_channels, 4, stride=2, padding=1), nn.LeakyReLU(0.2, inplace=True)]
        for n in range(1, num_layers + 1):
            stride = 2 if n < num_layers else 1
            # Batch norm takes a bias away again.
            conv = nn.Conv2d(widths[n - 1], widths[n], 4, stride=stride, padding=1, bias=norm != "batch")
            layers += [conv, _norm(norm, widths[n], norm_num_groups), nn.LeakyReLU(0.2, inplace=True)]
        self.main = nn.Sequential(*layers, nn.Conv2d(widths[-1], 1, 4, stride=1, padding=1))
        self.min_size = 3 * 2**num_layers  # the two convolutions of stride 1 take a pixel each
        self.apply(_initialize)

    def forward(self, *batches: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, ...]:
        """Logits `(B, 1, h, w)` of a batch of images `(B, C, H, W)`; of several batches, one tensor for each.

        Each batch is normalized by its own statistics, as if given alone. It is one call all the same: at every call,
        wrappers for several processes exchange buffers and get ready for a backward pass.

        Raises:
            ValueError: if images have another number of channels, or are too small for one logit.
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


class ActNorm(nn.Module):
    """Scale and shift per channel, set so that the first training batch comes out standardized (arXiv 1807.03039).

    Several processes agree on the statistics of all their first batches, as their weights must stay equal.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.loc = nn.Parameter(torch.zeros(1, channels, 1, 1))
        self.scale = nn.Parameter(torch.ones(1, channels, 1, 1))
        self.register_buffer("initialized", torch.tensor(0, dtype=torch.uint8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`(B, C, h, w)` to the same shape."""
        if self.training and not self.initialized:
            self._initialize(x.detach().float())
        return self.scale * (x + self.loc)

    @torch.no_grad()
    def _initialize(self, x: torch.Tensor) -> None:
        moments = torch.stack([x.mean((0, 2, 3)), x.square().mean((0, 2, 3))])  # (2, C)
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(moments)
            moments /= torch.distributed.get_world_size()
        mean, square = moments[:, None, :, None, None]
        self.loc.copy_(-mean)
        self.scale.copy_(1 / ((square - mean.square()).clamp_min(0).sqrt() + 1e-6))
        self.initialized.fill_(1)


def _norm(name: str, channels: int, groups: int) -> nn.Module:
    if name == "batch":
        return nn.BatchNorm2d(channels)
    if name == "group":
        return nn.GroupNorm(groups, channels)
    return ActNorm(channels) if name == "actnorm" else nn.Identity()


def _initialize(module: nn.Module) -> None:
    """Initialization of pix2pix; biases of convolutions keep PyTorch's."""
    if isinstance(module, nn.Conv2d):
        nn.init.normal_(module.weight, 0.0, 0.02)
    elif isinstance(module, nn.BatchNorm2d | nn.GroupNorm):
        nn.init.normal_(module.weight, 1.0, 0.02)
        nn.init.zeros_(module.bias)
