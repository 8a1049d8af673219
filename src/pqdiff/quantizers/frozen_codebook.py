"""Vector quantization with a large frozen codebook of image features and a learned projection of it.

Zhu et al.: Scaling the Codebook Size of VQGAN to 100,000 with a Utilization Rate of 99% (VQGAN-LC). All codewords move
together, so none is left behind. The reference implementation projects the whole table with gradients and keeps all
distances; here the table is projected for the search only, and gradients go through the rows that were chosen.
"""

import torch
from torch import nn

from pqdiff.quantizers.base import Quantizer, QuantizerOutput, check_weights, register_quantizer
from pqdiff.quantizers.codebook import CodebookQuantizer
from pqdiff.quantizers.feature_projection import project_features

_DTYPES = {"float16": (torch.float16, torch.int16), "float32": (torch.float32, torch.int32)}
_SEED = 0
_ROWS_DRAWN = 4096  # at once


@register_quantizer("frozen_codebook")
class FrozenCodebookQuantizer(CodebookQuantizer):
    """Replaces every vector by the nearest of K projected features.

    The table starts as normal random numbers, the same for all models; `load_features` puts image features in their place
    before training. From then on it is part of the weights, and a saved model needs no other file. It is neither a
    parameter nor a buffer of numbers, but of their bits: those are rounded by nothing that casts models, `from_pretrained`
    included. In another precision the same tokens would stand for other codes.

    The projection starts such that codewords have mean 0 and variance 1, as z has about. With the published N(0, 1 / d)
    they begin far outside of z, and most are never used; nor are they if the loss weighs much more than the published 0.1.

    Args:
        latent_channels: number of latent channels d.
        codebook_size: number of codewords K.
        feature_dim: length F of a feature.
        features_dtype: `float16` or `float32`, in which the table is kept.
        commitment_weight: weight of mean((z - sg[codes])^2), which pulls the encoder to its codewords.
        codebook_weight: weight of mean((sg[z] - codes)^2), which pulls the projection to the encoder.

    Raises:
        ValueError: for a number out of range or an unknown dtype.
    """

    fp32_tensors = ("frequencies", "projector")
    can_restart = False
    restart = Quantizer.restart

    def __init__(
        self,
        latent_channels: int,
        codebook_size: int,
        feature_dim: int = 768,
        features_dtype: str = "float16",
        commitment_weight: float = 1.0,
        codebook_weight: float = 0.33,
    ):
        super().__init__(latent_channels, 1, codebook_size)
        check_weights(commitment_weight=commitment_weight, codebook_weight=codebook_weight)
        if feature_dim < 1:
            raise ValueError(f"feature_dim ({feature_dim}) must be at least 1")
        if features_dtype not in _DTYPES:
            raise ValueError(f"features_dtype ({features_dtype!r}) must be 'float16' or 'float32'")
        self.feature_dim, self.features_dtype = feature_dim, features_dtype
        self.commitment_weight, self.codebook_weight = commitment_weight, codebook_weight
        self.register_buffer("feature_bits", torch.empty(codebook_size, feature_dim, dtype=_DTYPES[features_dtype][1]))
        if self.feature_bits.device.type != "meta":
            generator = torch.Generator("cpu").manual_seed(_SEED)
            for rows in self.features.split(_ROWS_DRAWN):
                rows.copy_(torch.randn(rows.shape, generator=generator, dtype=torch.float32, device="cpu"))
        self.projector = nn.Linear(feature_dim, latent_channels)
        if self.feature_bits.device.type != "meta":
            self._start_projection()

    @property
    def features(self) -> torch.Tensor:
        """The frozen table `(K, F)`, fp16 or fp32; a view of the buffer."""
        return self.feature_bits.view(_DTYPES[self.features_dtype][0])

    @torch.no_grad()
    def load_features(self, features: torch.Tensor) -> None:
        """Take in the table `(K, F)`, any floating dtype. The projection starts anew.

        Raises:
            ValueError: for another shape or dtype, and for numbers that are not finite in `features_dtype`.
        """
        if tuple(features.shape) != tuple(self.feature_bits.shape) or not features.is_floating_point():
            raise ValueError(
                f"features must be {tuple(self.feature_bits.shape)} (codebook_size, feature_dim) of a floating dtype, "
                f"got {tuple(features.shape)} of {features.dtype}"
            )
        rounded = features.to(self.features.dtype)
        if not rounded.isfinite().all():
            raise ValueError(
                f"features must be finite in features_dtype ({self.features_dtype!r}): clean or scale them"
            )
        self.features.copy_(rounded)
        self._start_projection()

    @torch.no_grad()
    def _start_projection(self) -> None:
        total, squares = (torch.zeros(self.feature_dim, dtype=torch.float64) for _ in range(2))
        for rows in self.features.split(_ROWS_DRAWN):
            rows = rows.double().cpu()
            total, squares = total + rows.sum(dim=0), squares + rows.square().sum(dim=0)
        mean = total / self.codebook_size
        variance = (squares / self.codebook_size - mean.square()).sum().clamp(min=1e-12)
        weight = torch.randn(self.projector.weight.shape, device="cpu") / variance.sqrt().float()
        self.projector.weight.copy_(weight)
        self.projector.bias.copy_(-(weight.double() @ mean).float())

    def codewords(self) -> torch.Tensor:
        """All projected features `(1, K, d)`, fp32."""
        return self._project(torch.arange(self.codebook_size, device=self.feature_bits.device))[None]

    def forward(self, z: torch.Tensor) -> QuantizerOutput:
        indices = self.encode(z)
        chosen = self.decode(indices)  # fp32, with a gradient for the projector
        commitment = (z.float() - chosen.detach()).square().mean()
        codebook = (z.detach().float() - chosen).square().mean()
        loss = self.commitment_weight * commitment + self.codebook_weight * codebook
        codes = chosen.detach().to(z.dtype) + (z - z.detach())  # exactly the codewords, with the gradient of z
        return QuantizerOutput(codes, indices, loss, {})

    @torch.no_grad()
    def encode(self, z: torch.Tensor) -> torch.Tensor:
        return super().encode(z)

    def decode(self, indices: torch.Tensor) -> torch.Tensor:
        self._check_indices(indices)
        rows = self._project(indices.flatten().long())  # (B h w, d)
        return rows.view(len(indices), *indices.shape[2:], -1).movedim(3, 1).contiguous()

    def to_latents(self, indices: torch.Tensor) -> torch.Tensor:
        return self.decode(indices)

    @torch.no_grad()
    def nearest(self, latents: torch.Tensor) -> torch.Tensor:
        return super().nearest(latents)

    def extra_repr(self) -> str:
        return (
            f"{self.latent_channels}, codebook_size={self.codebook_size}, feature_dim={self.feature_dim}, "
            f"features_dtype={self.features_dtype!r}, commitment_weight={self.commitment_weight}, "
            f"codebook_weight={self.codebook_weight}"
        )

    def _project(self, rows: torch.Tensor) -> torch.Tensor:
        """Projected features `(n, d)` of rows `(n,)`, fp32."""
        return project_features(self.features, rows, self.projector.weight, self.projector.bias)
