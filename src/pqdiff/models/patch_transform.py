"""The linear path of `AutoencoderPQ`: patches of pixels to latents and back, without looking at neighbors.

One F x F patch is one position. With `hidden_channels` a codeword stands for more coefficients of its patch than the
latents show: the quantizer and a diffusion model see `latent_channels`, the search and the picture use all of them.
With `class_bases` the first subspace codes what kind of patch this is, and the others coefficients in a basis and in units
of that kind (`patch_classes.py`).
"""

import torch
import torch.nn.functional as F
from torch import nn

from ..quantizers import ProductQuantizer
from ..quantizers.nearest import nearest_codewords
from .patch_classes import PatchClasses
from .pointwise import PointwiseConv


class PatchTransform(nn.Module):
    """Analysis and synthesis of patches, with the hidden coordinates of the codewords.

    Args:
        in_channels: channels of the image.
        patch_size: side F of a patch in pixels.
        latent_channels: number of channels d that the quantizer sees.
        quantizer: the autoencoder's quantizer; needed only for hidden channels, and then a `ProductQuantizer`.
        hidden_channels: number of further coefficients per patch that codewords stand for, a multiple of the number of
            subspaces; 0 for none.
        class_bases: number of bases of the classes; 0 for no classes, else a `ProductQuantizer` is needed.
        class_components: number of principal components of a patch that the bases turn; needed with classes.
        class_candidates: number of classes that are tried.

    Raises:
        ValueError: if hidden channels or classes are asked of another quantizer, or do not divide among the subspaces.
    """

    def __init__(
        self,
        in_channels: int,
        patch_size: int,
        latent_channels: int,
        quantizer,
        hidden_channels: int = 0,
        class_bases: int = 0,
        class_components: int = 0,
        class_candidates: int = 8,
    ):
        super().__init__()
        self.patch_size = patch_size
        self.latent_channels = latent_channels
        self.hidden_channels = hidden_channels
        for name, value in (("hidden_channels", hidden_channels), ("class_bases", class_bases)):
            if value and not isinstance(quantizer, ProductQuantizer):
                raise ValueError(f"{name} ({value}) needs quantizer_type 'product', else use 0")
        subspaces = quantizer.num_subspaces if hidden_channels or class_bases else 1
        if hidden_channels < 0 or hidden_channels % subspaces:
            raise ValueError(
                f"hidden_channels ({hidden_channels}) must be a positive multiple of num_subspaces ({subspaces}) or 0"
            )
        if class_bases < 0 or (class_bases and subspaces < 2):
            raise ValueError(
                f"class_bases ({class_bases}) must be 0, or positive with num_subspaces ({subspaces}) >= 2"
            )
        pixels = in_channels * patch_size**2
        self.coefficients = latent_channels + hidden_channels
        self.patch_classes, rows = None, self.coefficients
        if class_bases:
            self.coefficients -= self.coefficients // subspaces
            if not self.coefficients <= class_components <= pixels:
                raise ValueError(
                    f"class_components ({class_components}) must be from {self.coefficients} to {pixels} with class_bases"
                )
            rows = class_components
            self.patch_classes = PatchClasses(
                rows, self.coefficients, quantizer.codebook_size, class_bases, class_candidates
            )
        self.analysis = PointwiseConv(pixels, rows)
        self.synthesis = PointwiseConv(rows, pixels)
        self.hidden_codewords = None
        if hidden_channels:
            shape = (subspaces, quantizer.codebook_size, hidden_channels // subspaces)
            self.hidden_codewords = nn.Parameter(torch.zeros(shape))

    def encode(
        self,
        image: torch.Tensor,
        quantizer: nn.Module,
        correction: torch.Tensor | None = None,
        network: nn.Module | None = None,
    ) -> torch.Tensor:
        """Latents `(B, d, H/F, W/F)` of a normalized image `(B, C, H, W)`; codewords already if there are hidden ones.

        `correction` `(B, d, H/F, W/F)`, the work of an encoder network, is added before any search, and so is what
        `network` makes of the coefficients. Classes know neither.
        """
        if self.patch_classes is not None:
            return self._encode_relative(image, quantizer)
        coefficients = self.analysis(F.pixel_unshuffle(image, self.patch_size))
        if network is not None:
            coefficients = coefficients + network(coefficients)
        visible, hidden = coefficients.split([self.latent_channels, self.hidden_channels], dim=1)
        if correction is not None:
            visible = visible + correction
        if self.hidden_codewords is None:
            return visible
        vectors = self._vectors(visible, hidden, quantizer.num_subspaces)
        indices = nearest_codewords(vectors, self._codewords(quantizer)).unflatten(2, visible.shape[2:])
        chosen = quantizer.indices_to_latents(indices).to(visible.dtype)
        # Straight-through for training; without gradients exactly the codewords.
        return visible + (chosen - visible).detach() if torch.is_grad_enabled() else chosen

    def _encode_relative(self, image: torch.Tensor, quantizer: ProductQuantizer) -> torch.Tensor:
        codewords = self._codewords(quantizer)
        with torch.autocast(image.device.type, enabled=False):
            pixels = F.pixel_unshuffle(image.to(self.analysis.weight.dtype), self.patch_size)
            # Image by image: in a product of batches the last bit depends on their size, and can decide between classes.
            found = [
                self.patch_classes.encode(self.analysis(part).float().flatten(2), codewords[1:])
                for part in pixels.split(1)
            ]
            classes, relative, indices = (torch.cat(parts) for parts in zip(*found, strict=True))
            tokens = torch.cat([classes[:, None], indices], dim=1).unflatten(2, pixels.shape[2:])
            chosen = quantizer.indices_to_latents(tokens)
        if torch.is_grad_enabled():  # straight-through, to the codewords as well: each learns from the picture
            visible = self._visible(relative).unflatten(2, pixels.shape[2:])
            chosen = chosen + F.pad(visible - visible.detach(), (0, 0, 0, 0, chosen.shape[1] - visible.shape[1], 0))
        return chosen.to(image.dtype)

    def _visible(self, relative: torch.Tensor) -> torch.Tensor:
        """Latent channels `(B, d - d / S, n)` of relative coefficients `(B, S - 1, D, n)`."""
        return relative[:, :, : self.latent_channels // (relative.shape[1] + 1)].flatten(1, 2)

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

    def decode(
        self, codes: torch.Tensor, quantizer: nn.Module | None = None, network: nn.Module | None = None
    ) -> torch.Tensor:
        """Normalized image `(B, C, H, W)` of latents with their hidden coefficients `(B, d + h, H/F, W/F)`.

        With classes the quantizer says which is which. `network` adds to the pixels of every patch.
        """
        if self.patch_classes is not None:
            codes = self._components(codes, quantizer)
        pixels = self.synthesis(codes)
        return F.pixel_shuffle(pixels if network is None else pixels + network(codes), self.patch_size)

    def _components(self, codes: torch.Tensor, quantizer: ProductQuantizer) -> torch.Tensor:
        """Components `(B, P, h, w)` of codes `(B, d + h, h, w)`: the first subspace's nearest codeword is the class."""
        subspaces = quantizer.num_subspaces
        parts = codes.float().flatten(2).split([self.latent_channels, self.hidden_channels], dim=1)
        visible, hidden = (part.unflatten(1, (subspaces, -1)) for part in parts)  # (B, S, d / S, n), (B, S, h / S, n)
        with torch.autocast(codes.device.type, enabled=False):
            classes = nearest_codewords(visible[:, :1].contiguous(), quantizer.codebooks[:1].float())[:, 0]
            relative = torch.cat([visible[:, 1:], hidden[:, 1:]], dim=2).flatten(1, 2)
            coefficients = relative * self.patch_classes.scales(classes)
            return self.patch_classes.components(coefficients, classes).unflatten(2, codes.shape[2:]).to(codes.dtype)

    def _codewords(self, quantizer) -> torch.Tensor:
        """Codewords with their hidden coordinates `(S, K, (d + h) / S)`, fp32."""
        if self.hidden_codewords is None:
            return quantizer.codebooks.float()
        return torch.cat([quantizer.codebooks.float(), self.hidden_codewords.float()], dim=2)

    @staticmethod
    def _vectors(visible: torch.Tensor, hidden: torch.Tensor, subspaces: int) -> torch.Tensor:
        """Vectors `(B, S, D, h w)` to search for, of channels `(B, S D1, h, w)` and `(B, S D2, h, w)`."""
        return torch.cat([part.flatten(2).unflatten(1, (subspaces, -1)) for part in (visible, hidden)], dim=2)
