"""Gaussian Quant: a Gaussian autoencoder whose samples are coded by a fixed codebook of quasi-random normal vectors.

Xu, Zheng, He, et al.: Vector Quantization using Gaussian Variational Autoencoder (arXiv 2512.06609), as
`GaussianQuantRegularizer` of the reference implementation has it; `grouping="contiguous"` and `reduction="mean"` are
those of its second class. Training is that of a Gaussian VAE, without tokens; the divergence is held at the log2 K
bits that a token has (`target_divergence.py`). Unlike the reference implementation the codebook is saved with the
model, because what torch.quasirandom draws may change, and the search runs in bounded memory.
"""

import functools
import hashlib
import math
import warnings

import torch
from torch.quasirandom import SobolEngine

from pqdiff.quantizers.base import Quantizer, QuantizerOutput, check_weights, register_quantizer
from pqdiff.quantizers.search.codeword_statistics import look_up
from pqdiff.quantizers.search.gaussian import likeliest_codewords
from pqdiff.quantizers.search.nearest import nearest_codewords
from pqdiff.quantizers.soft import posterior_mean
from pqdiff.quantizers.target_divergence import TargetDivergence

_LOG_VARIANCE_RANGE = (-30.0, 20.0)
_SEED = 42
# Of the first 1,024 points in 16 dimensions, as integers, drawn by torch 2.13.
_SEQUENCE_SHA256 = "52f02b0cc87bc7cd35c1783e7287ea0c83120c4e06e9fbba244da916e3e15144"


@register_quantizer("gaussian")
class GaussianQuantizer(Quantizer):
    """Codes each group of m channels as the codeword that is likely under its posterior and unlikely under the prior.

    z is 2 d channels: means, then log-variances, which are clamped to [-30, 20]. Codes and latents are d channels. In
    training codes are samples of the posterior (torch's global generator, as for dropout) and there are no tokens. In
    eval mode `forward` quantizes: codes are codewords without a gradient, and the loss is computed without a move of the
    controllers.

    All groups share the codebook; each has its own frequencies, d / m tables of K numbers.

    Args:
        latent_channels: number of latent channels d.
        codebook_size: number of codewords K, a power of 2.
        codebook_dim: channels m of a group; must divide `latent_channels`. There are d / m tokens per position.
        grouping: `strided`: group g holds the channels g, g + d / m, g + 2 d / m, ... as in released checkpoints;
            `contiguous`: the channels from g m to g m + m - 1.
        kl_weight: weight of the divergence.
        tolerance: bits by which the divergence of a group may differ from log2 K.
        factor: what the controllers are multiplied or divided by in a step.
        beta: weight of the prior in the search; 0 finds the codeword of least distance in units of sigma.
        reduction: `mean` over groups, positions and images, or `sum` over groups and positions and mean over images, as
            published, beside a reconstruction loss that is a sum over pixels. Beside a mean over pixels and 3 channels, the
            published weight 0.1 is a `kl_weight` of 0.1 (d / m) / (3 F^2) with `mean`.

    Raises:
        ValueError: if m does not divide the channels, K is not a power of 2, or another value is not allowed.
    """

    fp32_tensors = ("codebook", "frequencies", "divergence")

    def __init__(
        self,
        latent_channels: int,
        codebook_size: int,
        codebook_dim: int,
        grouping: str = "strided",
        kl_weight: float = 0.1,
        tolerance: float = 0.5,
        factor: float = 1.01,
        beta: float = 1.0,
        reduction: str = "mean",
    ):
        super().__init__()
        if codebook_dim < 1 or latent_channels < 1 or latent_channels % codebook_dim:
            raise ValueError(
                f"latent_channels ({latent_channels}) must be divisible by codebook_dim ({codebook_dim}), both at least 1"
            )
        if codebook_size < 2 or codebook_size & (codebook_size - 1):
            raise ValueError(f"codebook_size ({codebook_size}) must be a power of 2, at least 2")
        if grouping not in ("strided", "contiguous"):
            raise ValueError(f"grouping ({grouping!r}) must be 'strided' or 'contiguous'")
        check_weights(kl_weight=kl_weight, beta=beta)
        self.in_channels = 2 * latent_channels
        self.code_channels = self.latent_channels = latent_channels
        self.codebook_size, self.codebook_dim, self.grouping = codebook_size, codebook_dim, grouping
        self.kl_weight, self.beta = kl_weight, beta
        self.num_groups = latent_channels // codebook_dim
        self.divergence = TargetDivergence(math.log2(codebook_size), tolerance, factor, reduction)
        self.register_buffer("codebook", sobol_codebook(codebook_size, codebook_dim))
        self.register_buffer("frequencies", torch.full((self.num_groups, codebook_size), 1 / codebook_size))

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        return (self.codebook_size,) * self.num_groups

    def forward(self, z: torch.Tensor) -> QuantizerOutput:
        mean, log_variance = self._posterior(z)
        bits = (mean.square() + log_variance.expm1() - log_variance) / (2 * math.log(2))  # of each channel
        loss, logs = self.divergence(self._split(bits).sum(dim=2))
        loss = self.kl_weight * loss
        if self.training:
            sample = mean + (log_variance / 2).exp() * torch.randn_like(mean)
            return QuantizerOutput(sample.to(z.dtype), None, loss, logs)
        indices = self._search(mean, log_variance)
        return QuantizerOutput(self.decode(indices).to(z.dtype), indices, loss, logs)

    def encode(self, z: torch.Tensor) -> torch.Tensor:
        return self._search(*self._posterior(z))

    def decode(self, indices: torch.Tensor) -> torch.Tensor:
        self._check_indices(indices)
        flat = indices.flatten(1)[:, None].long()  # (B, 1, G h w): one look-up for all groups
        vectors = look_up(self.codebook.float()[None], flat)[:, 0]  # (B, m, G h w)
        return self._join(vectors.unflatten(2, (self.num_groups, -1)).transpose(1, 2), indices.shape[2:])

    def nearest(self, latents: torch.Tensor) -> torch.Tensor:
        """Nearest in Euclidean distance: latents have no variances."""
        self._check(latents, self.latent_channels, "latents")
        vectors = self._split(latents).transpose(1, 2).flatten(2)[:, None]  # (B, 1, m, G h w)
        return nearest_codewords(vectors, self.codebook.float()[None]).view(len(latents), -1, *latents.shape[2:])

    def lift(self, latents: torch.Tensor) -> torch.Tensor:
        self._check(latents, self.latent_channels, "latents")
        return latents.float()

    def posterior_mean(self, latents: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        self._check(latents, self.latent_channels, "latents")
        noise = self._split(noise.float()[None, :, None, None])[0, :, :, 0]  # (G, m)
        codewords = self.codebook.float().expand(self.num_groups, -1, -1)
        return self._join(posterior_mean(self._split(latents), codewords, self.frequencies, noise), latents.shape[2:])

    @torch.no_grad()
    def set_frequencies(self, counts: list[torch.Tensor]) -> None:
        counts = torch.stack([count.double() for count in counts]) + 0.5  # what was not seen is rare, not impossible
        self.frequencies.copy_(counts / counts.sum(dim=1, keepdim=True))

    def extra_repr(self) -> str:
        return (
            f"{self.latent_channels}, codebook_size={self.codebook_size}, codebook_dim={self.codebook_dim}, "
            f"grouping={self.grouping!r}, kl_weight={self.kl_weight}, beta={self.beta}"
        )

    def _posterior(self, z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Means and log-variances `(B, d, h, w)`, fp32."""
        self._check(z, self.in_channels, "z")
        mean, log_variance = z.float().chunk(2, dim=1)
        return mean, log_variance.clamp(*_LOG_VARIANCE_RANGE)

    def _search(self, mean: torch.Tensor, log_variance: torch.Tensor) -> torch.Tensor:
        """int64 tokens `(B, G, h, w)` of posteriors `(B, d, h, w)`."""
        tokens = likeliest_codewords(self._split(mean), self._split(log_variance), self.codebook, self.beta)
        return tokens.unflatten(2, mean.shape[2:])

    def _split(self, x: torch.Tensor) -> torch.Tensor:
        """Channels `(B, d, h, w)` as vectors `(B, G, m, h w)`."""
        if self.grouping == "strided":
            return x.flatten(2).unflatten(1, (self.codebook_dim, -1)).transpose(1, 2)
        return x.flatten(2).unflatten(1, (-1, self.codebook_dim))

    def _join(self, vectors: torch.Tensor, size: torch.Size) -> torch.Tensor:
        """Vectors `(B, G, m, h w)` as channels `(B, d, h, w)`."""
        if self.grouping == "strided":
            vectors = vectors.transpose(1, 2)
        return vectors.flatten(1, 2).unflatten(2, size)


def sobol_codebook(codebook_size: int, codebook_dim: int) -> torch.Tensor:
    """Quasi-random normal vectors `(K, m)`, fp32: the inverse normal distribution function of a scrambled Sobol sequence.

    The same numbers as in the reference implementation, which rounds to fp32 before the distribution function, as long as
    torch draws the same sequence. A version that does not gets a warning: codebooks of saved models are not concerned.
    """
    _warn_if_torch_draws_otherwise()
    uniform = _sobol(codebook_size, codebook_dim).double()
    uniform.clamp_(2.0**-31, 1 - 2.0**-25)  # a number that fp32 rounds to 0 or 1 would be infinite
    return torch.empty(codebook_size, codebook_dim, dtype=torch.float32).copy_(torch.special.ndtri(uniform))


def _sobol(count: int, dim: int) -> torch.Tensor:
    with torch.device("cpu"):  # SobolEngine has its own generator
        return SobolEngine(dim, scramble=True, seed=_SEED).draw(count, dtype=torch.float32)


@functools.cache
def _warn_if_torch_draws_otherwise() -> None:
    points = (_sobol(1024, 16).double() * 2**30).round().long().numpy()
    if hashlib.sha256(points.tobytes()).hexdigest() != _SEQUENCE_SHA256:
        warnings.warn(
            f"torch {torch.__version__} draws another Sobol sequence than the published codebooks of Gaussian Quant: new "
            "codebooks are as good, but tokens of published models need their own, as files",
            stacklevel=3,
        )
