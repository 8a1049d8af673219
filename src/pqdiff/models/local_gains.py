"""Gains: how strong each patch is, coded first, so that everything else is coded relative to it.

A code of fixed rate wastes bits where photos are flat and lacks them where they are busy. With gains the first subspace
stands for the logarithms of the root mean squares of bands of coefficients, and the codewords of the other subspaces for
coefficients divided by the scales that the decoder, too, derives from the quantized gains.
"""

import torch

from ..quantizers import Fp32Module
from .pointwise import PointwiseConv


class LocalGains(Fp32Module):
    """Maps between the coefficients of a patch, its gains, and the scales that gains give to coefficients. In fp32.

    Args:
        coefficients: number of coefficients per patch M that are coded relative to the gains.
        gains: number of gains: coordinates of a codeword of the first subspace.
        bands: groups of coefficients whose energies are measured.

    Raises:
        ValueError: for more gains than bands.
    """

    def __init__(self, coefficients: int, gains: int, bands: int):
        super().__init__()
        if bands < gains:
            raise ValueError(
                f"gain_bands ({bands}) must be at least the {gains} gains of a codeword, or 0 for no gains"
            )
        # Energy of a band: its coefficients' squares, weighted, and a floor where there is nothing but rounding.
        self.energy = PointwiseConv(coefficients, bands)
        self.measurement = PointwiseConv(bands, gains)
        self.profile = PointwiseConv(gains, coefficients)
        self.register_buffer("deviation", torch.ones(coefficients))  # root mean squares of relative coefficients
        with torch.no_grad():
            self.energy.weight.fill_(1 / coefficients)
            self.energy.bias.fill_(1e-4)
            for layer in (self.measurement, self.profile):
                layer.weight.normal_(std=0.1)
                layer.bias.zero_()

    def measure(self, coefficients: torch.Tensor) -> torch.Tensor:
        """Gains `(B, gains, h, w)` of coefficients `(B, M, h, w)`."""
        return self.measurement(self.energy(coefficients.square()).clamp_min(1e-12).log())

    def log_scales(self, gains: torch.Tensor, codewords: torch.Tensor) -> torch.Tensor:
        """Logarithms of the scales `(B, M, h, w)` that gains `(B, gains, h, w)` give to the coefficients.

        They stay between the least and the greatest that any of the codewords `(K, gains)` gives: what a diffusion model
        makes of gains cannot make a picture explode.
        """
        with torch.no_grad():
            possible = self.profile(codewords.T[None, :, :, None])  # (1, M, K, 1)
            least, most = possible.amin(dim=2, keepdim=True), possible.amax(dim=2, keepdim=True)
        return self.profile(gains).clamp(least, most)
