"""A Gaussian autoencoder of diffusers, whole, whose latents a quantizer codes: Stable Diffusion's, SDXL's, SD3's, Flux's.

An affine map stands between its latents and the quantizer: it makes the latents like N(0, 1), or rotates them.
`pqdiff.fitting.gaussian_vae` measures it and builds such models.
"""

import diffusers
import torch
from torch import nn

from pqdiff.transforms.base import Transform, register_transform

VAE_CLASSES = ("AutoencoderKL", "AsymmetricAutoencoderKL")


@register_transform("gaussian_vae")
class GaussianVaeTransform(Transform):
    """z is the means of the posterior, or its means and log-variances, after the affine map.

    Args:
        in_channels: channels of the image.
        z_channels: d, for quantizers of means, or 2 d, for those that need the variances too.
        code_channels: latent channels d of the autoencoder.
        vae_class: name of its class in diffusers.
        vae_config: its config.

    Raises:
        ValueError: for another class, or numbers of channels that do not fit.
    """

    def __init__(
        self,
        in_channels: int,
        z_channels: int,
        code_channels: int,
        vae_class: str = "AutoencoderKL",
        vae_config: dict = {},  # only read
    ):
        super().__init__()
        if vae_class not in VAE_CLASSES:
            raise ValueError(f"vae_class ({vae_class!r}) has no Gaussian posterior; choose one of {VAE_CLASSES}")
        config = {key: value for key, value in vae_config.items() if not key.startswith("_")}
        self.vae = getattr(diffusers, vae_class)(**config)
        channels = self.vae.config.latent_channels
        if in_channels != self.vae.config.in_channels or code_channels != channels:
            raise ValueError(
                f"in_channels ({in_channels}) and the quantizer's channels ({code_channels}) must be those of vae_config: "
                f"{self.vae.config.in_channels} and {channels}"
            )
        if z_channels not in (channels, 2 * channels):
            raise ValueError(f"the quantizer takes {z_channels} channels; the autoencoder has {channels} means")
        self.with_variances = z_channels == 2 * channels
        widths = self.vae.config.get("block_out_channels") or self.vae.config.down_block_out_channels
        self.block_out_channels = tuple(widths)
        self.register_buffer("offset", torch.zeros(channels))
        self.register_buffer("matrix", torch.eye(channels))
        self.register_buffer("inverse", torch.eye(channels))

    @property
    def last_layer(self) -> nn.Parameter:
        return self.vae.decoder.conv_out.weight

    def group_of(self, name: str) -> str:
        return "encoder" if name.startswith(("vae.encoder.", "vae.quant_conv.")) else "decoder"

    @torch.no_grad()
    def set_map(self, offset: torch.Tensor, matrix: torch.Tensor) -> None:
        """Map latents x to matrix (x - offset).

        Raises:
            ValueError: if there are variances and the matrix is not diagonal: they would no longer be independent.
        """
        if self.with_variances and not torch.equal(matrix, matrix.diag().diag()):
            raise ValueError("matrix must be diagonal for a quantizer that takes variances")
        self.offset.copy_(offset)
        self.matrix.copy_(matrix)
        self.inverse.copy_(torch.linalg.inv(matrix.double()))

    def analysis(self, image: torch.Tensor) -> torch.Tensor:
        posterior = self.vae.encode(image).latent_dist
        means = torch.einsum("ij,bjhw->bihw", self.matrix, posterior.mean - self.offset[:, None, None])
        if not self.with_variances:
            return means
        scale = self.matrix.diag().abs().log()[:, None, None]
        return torch.cat([means, posterior.logvar + 2 * scale], dim=1)

    def synthesis(self, codes: torch.Tensor) -> torch.Tensor:
        latents = torch.einsum("ij,bjhw->bihw", self.inverse, codes) + self.offset[:, None, None]
        return self.vae.decode(latents).sample
