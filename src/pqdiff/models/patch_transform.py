"""The linear path of `AutoencoderPQ`: patches of pixels to latents and back, without looking at neighbors.

One F x F patch is one position. With `hidden_channels` a codeword stands for more coefficients of its patch than the
latents show: the quantizer and a diffusion model see `latent_channels`, the search and the picture use all of them.
With `gain_bands` the first subspace codes gains, and the others coefficients relative to them (`local_gains.py`).
"""

import torch
import torch.nn.functional as F
from torch import nn

from ..quantizers import ProductQuantizer
from ..quantizers.nearest import nearest_codewords
from .local_gains import LocalGains
from .pointwise import PointwiseConv

_CORRECTION = 0.1  # unit of an encoder network's output, in deviations of the coefficients


class PatchTransform(nn.Module):
    """Analysis and synthesis of patches, with the hidden coordinates of the codewords.

    Args:
        in_channels: channels of the image.
        patch_size: side F of a patch in pixels.
        latent_channels: number of channels d that the quantizer sees.
        quantizer: the autoencoder's quantizer; needed only for hidden channels, and then a `ProductQuantizer`.
        hidden_channels: number of further coefficients per patch that codewords stand for, a multiple of the number of
            subspaces; 0 for none.
        gain_bands: number of bands whose energies make the gains; 0 for no gains, else a `ProductQuantizer` is needed.

    Raises:
        ValueError: if hidden channels or gains are asked of another quantizer, or do not divide among the subspaces.
    """

    def __init__(
        self,
        in_channels: int,
        patch_size: int,
        latent_channels: int,
        quantizer,
        hidden_channels: int = 0,
        gain_bands: int = 0,
    ):
        super().__init__()
        self.patch_size = patch_size
        self.latent_channels = latent_channels
        self.hidden_channels = hidden_channels
        for name, value in (("hidden_channels", hidden_channels), ("gain_bands", gain_bands)):
            if value and not isinstance(quantizer, ProductQuantizer):
                raise ValueError(f"{name} ({value}) needs quantizer_type 'product', else use 0")
        subspaces = quantizer.num_subspaces if hidden_channels or gain_bands else 1
        if hidden_channels < 0 or hidden_channels % subspaces:
            raise ValueError(
                f"hidden_channels ({hidden_channels}) must be a positive multiple of num_subspaces ({subspaces}) or 0"
            )
        if gain_bands < 0 or (gain_bands and subspaces < 2):
            raise ValueError(f"gain_bands ({gain_bands}) must be 0, or positive with num_subspaces ({subspaces}) >= 2")
        gains = (latent_channels + hidden_channels) // subspaces if gain_bands else 0
        pixels = in_channels * patch_size**2
        self.coefficients = latent_channels + hidden_channels - gains
        self.analysis = PointwiseConv(pixels, self.coefficients)
        self.synthesis = PointwiseConv(self.coefficients, pixels)
        self.hidden_codewords = None
        if hidden_channels:
            shape = (subspaces, quantizer.codebook_size, hidden_channels // subspaces)
            self.hidden_codewords = nn.Parameter(torch.zeros(shape))
        self.local_gains = LocalGains(self.coefficients, gains, gain_bands) if gain_bands else None
        # Latent and hidden channels that are gains: the first ones of each kind.
        self._gains = (latent_channels // subspaces, hidden_channels // subspaces) if gain_bands else (0, 0)

    @property
    def encoder_features(self) -> int:
        """Channels that an encoder network sees: relative coefficients, and gains."""
        return self.coefficients + sum(self._gains)

    @property
    def decoder_features(self) -> int:
        """Channels that a decoder network sees: those, and with gains the coefficients as they are, compressed."""
        return self.coefficients * (1 if self.local_gains is None else 2) + sum(self._gains)

    def encode(
        self,
        image: torch.Tensor,
        quantizer: nn.Module,
        correction: torch.Tensor | None = None,
        network: nn.Module | None = None,
    ) -> torch.Tensor:
        """Latents `(B, d, H/F, W/F)` of a normalized image `(B, C, H, W)`; codewords already if there are hidden ones.

        `correction` `(B, d, H/F, W/F)`, the work of an encoder network, is added before any search, and so is what
        `network` makes of the relative coefficients and gains.
        """
        if self.local_gains is not None:
            return self._encode_relative(image, quantizer, correction, network)
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

    def _encode_relative(self, image, quantizer, correction, network) -> torch.Tensor:
        with torch.autocast(image.device.type, enabled=False):
            pixels = F.pixel_unshuffle(image.to(self.analysis.weight.dtype), self.patch_size)
            coefficients = self.analysis(pixels).float()
            codewords, shape = self._codewords(quantizer), coefficients.shape[2:]
            gains = self.local_gains.measure(coefficients)
            if correction is not None:
                first = correction[:, : self._gains[0]].float()
                gains = torch.cat([gains[:, : self._gains[0]] + first, gains[:, self._gains[0] :]], dim=1)
            index = nearest_codewords(gains.flatten(2)[:, None].contiguous(), codewords[:1])  # (B, 1, hw)
            nearest = codewords[0][index[:, 0]].movedim(2, 1).unflatten(2, shape)  # (B, gains, h, w)
            relative = coefficients * (-self.local_gains.log_scales(nearest, codewords[0]).detach()).exp()
        if network is not None:
            deviation = self.local_gains.deviation[:, None, None].detach()
            output = network(torch.cat([relative / deviation, gains], dim=1).to(image.dtype))
            relative = relative + _CORRECTION * deviation * output.float()
        visible, hidden = relative.split([n - g for n, g in zip(self._channels, self._gains, strict=True)], dim=1)
        if correction is not None:
            visible = visible + correction[:, self._gains[0] :].float()
        latents = torch.cat([gains[:, : self._gains[0]], visible], dim=1)
        if self.hidden_codewords is None:
            return latents.to(image.dtype)
        vectors = self._vectors(visible, hidden, quantizer.num_subspaces - 1)
        rest = nearest_codewords(vectors, codewords[1:])
        chosen = quantizer.indices_to_latents(torch.cat([index, rest], dim=1).unflatten(2, shape))
        # Straight-through, to the codewords as well: each learns from the picture that is made of it.
        return (chosen + (latents - latents.detach()) if torch.is_grad_enabled() else chosen).to(image.dtype)

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

        With gains the quantizer says how far they can go. `network` adds to the pixels of every patch.
        """
        if self.local_gains is None:
            pixels = self.synthesis(codes)
            return F.pixel_shuffle(pixels if network is None else pixels + network(codes), self.patch_size)
        visible, hidden = codes.split(list(self._channels), dim=1)
        first, second = self._gains
        with torch.autocast(codes.device.type, enabled=False):
            gains = torch.cat([visible[:, :first], hidden[:, :second]], dim=1).float()
            relative = torch.cat([visible[:, first:], hidden[:, second:]], dim=1).float()
            log_scales = self.local_gains.log_scales(gains, self._codewords(quantizer)[0])
            coefficients = relative * log_scales.exp()
            pixels = self.synthesis(coefficients.to(self.synthesis.weight.dtype)).to(codes.dtype)
        if network is not None:
            deviation = self.local_gains.deviation[:, None, None].detach()
            features = torch.cat([relative / deviation, (coefficients / deviation).asinh(), gains], dim=1)
            # Corrections are as strong as the patch is, in units of the weakest coefficient that is coded.
            unit = log_scales.mean(dim=1, keepdim=True).exp() * deviation.min()
            pixels = pixels + (network(features.to(codes.dtype)).float() * unit).to(codes.dtype)
        return F.pixel_shuffle(pixels, self.patch_size)

    @property
    def _channels(self) -> tuple[int, int]:
        return self.latent_channels, self.hidden_channels

    def _codewords(self, quantizer) -> torch.Tensor:
        """Codewords with their hidden coordinates `(S, K, (d + h) / S)`, fp32."""
        if self.hidden_codewords is None:
            return quantizer.codebooks.float()
        return torch.cat([quantizer.codebooks.float(), self.hidden_codewords.float()], dim=2)

    @staticmethod
    def _vectors(visible: torch.Tensor, hidden: torch.Tensor, subspaces: int) -> torch.Tensor:
        """Vectors `(B, S, D, h w)` to search for, of channels `(B, S D1, h, w)` and `(B, S D2, h, w)`."""
        return torch.cat([part.flatten(2).unflatten(1, (subspaces, -1)) for part in (visible, hidden)], dim=2)
