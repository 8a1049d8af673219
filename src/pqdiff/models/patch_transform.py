"""The linear path of `AutoencoderPQ`: patches of pixels to latents and back, without looking at neighbors.

One F x F patch is one position. With `hidden_channels` a codeword stands for more coefficients of its patch than the
latents show: the quantizer and a diffusion model see `latent_channels`, the search and the picture use all of them.
"""

import torch
import torch.nn.functional as F
from torch import nn

from ..quantizers import ProductQuantizer
from ..quantizers.nearest import nearest_codewords


class PointwiseConv(nn.Conv2d):
    """1x1 convolution whose result depends on neither the batch size nor the number of CPU threads.

    `nn.Conv2d` picks its order of summation by both, and a last bit decides between two codewords now and then.
    """

    _TERMS = 768  # the math library splits longer sums among threads

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__(in_channels, out_channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x `(B, C, H, W)` -> `(B, out_channels, H, W)`."""
        weights = self.weight.flatten(1).split(self._TERMS, dim=1)
        rows = x.flatten(2).split(self._TERMS, dim=1)
        result = sum(weight @ row for weight, row in zip(weights, rows, strict=True)) + self.bias[:, None]
        return result.unflatten(2, x.shape[2:])


class PatchTransform(nn.Module):
    """Analysis and synthesis of patches, with the hidden coordinates of the codewords.

    Args:
        in_channels: channels of the image.
        patch_size: side F of a patch in pixels.
        latent_channels: number of channels d that the quantizer sees.
        quantizer: the autoencoder's quantizer; needed only for hidden channels, and then a `ProductQuantizer`.
        hidden_channels: number of further coefficients per patch that codewords stand for, a multiple of the number of
            subspaces; 0 for none.

    Raises:
        ValueError: if hidden channels are asked of another quantizer, or do not divide among the subspaces.
    """

    def __init__(self, in_channels: int, patch_size: int, latent_channels: int, quantizer, hidden_channels: int = 0):
        super().__init__()
        self.patch_size = patch_size
        self.latent_channels = latent_channels
        self.hidden_channels = hidden_channels
        pixels = in_channels * patch_size**2
        self.analysis = PointwiseConv(pixels, latent_channels + hidden_channels)
        self.synthesis = PointwiseConv(latent_channels + hidden_channels, pixels)
        self.hidden_codewords = None
        if hidden_channels:
            if not isinstance(quantizer, ProductQuantizer):
                raise ValueError(f"hidden_channels ({hidden_channels}) needs quantizer_type 'product', else use 0")
            subspaces = quantizer.num_subspaces
            if hidden_channels < 0 or hidden_channels % subspaces:
                raise ValueError(
                    f"hidden_channels ({hidden_channels}) must be a positive multiple of num_subspaces ({subspaces}) or 0"
                )
            shape = (subspaces, quantizer.codebook_size, hidden_channels // subspaces)
            self.hidden_codewords = nn.Parameter(torch.zeros(shape))

    def encode(
        self, image: torch.Tensor, quantizer: nn.Module, correction: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Latents `(B, d, H/F, W/F)` of a normalized image `(B, C, H, W)`; codewords already if there are hidden ones.

        `correction` `(B, d, H/F, W/F)`, the work of an encoder network, is added before any search.
        """
        coefficients = self.analysis(F.pixel_unshuffle(image, self.patch_size))
        visible, hidden = coefficients.split([self.latent_channels, self.hidden_channels], dim=1)
        if correction is not None:
            visible = visible + correction
        if self.hidden_codewords is None:
            return visible
        batch, _, height, width = visible.shape
        subspaces = quantizer.num_subspaces
        vectors = torch.cat(
            [part.reshape(batch, subspaces, -1, height * width) for part in (visible, hidden)], dim=2
        )  # (B, S, (d + h) / S, HW)
        codewords = torch.cat([quantizer.codebooks.float(), self.hidden_codewords.float()], dim=2)
        indices = nearest_codewords(vectors, codewords).view(batch, subspaces, height, width)
        chosen = quantizer.indices_to_latents(indices).to(visible.dtype)
        # Straight-through for training; without gradients exactly the codewords.
        return visible + (chosen - visible).detach() if torch.is_grad_enabled() else chosen

    def hidden(self, z: torch.Tensor, indices: torch.Tensor | None) -> torch.Tensor | None:
        """Hidden coefficients `(B, h, H/F, W/F)` of tokens (zero without tokens), or None."""
        if self.hidden_codewords is None:
            return None
        batch, _, height, width = z.shape
        if indices is None:
            return z.new_zeros(batch, self.hidden_channels, height, width)
        table = self.hidden_codewords.transpose(1, 2).to(z.dtype)  # (S, h / S, K)
        chosen = indices.flatten(2)[:, :, None].expand(-1, -1, table.shape[1], -1)  # (B, S, h / S, HW)
        return table.expand(batch, -1, -1, -1).gather(3, chosen).reshape(batch, -1, height, width)

    def decode(self, coefficients: torch.Tensor) -> torch.Tensor:
        """Normalized image `(B, C, H, W)` of latents with their hidden coefficients `(B, d + h, H/F, W/F)`."""
        return F.pixel_shuffle(self.synthesis(coefficients), self.patch_size)
