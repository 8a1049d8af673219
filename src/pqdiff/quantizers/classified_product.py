"""Product quantization relative to a class: the first token says what kind of vector this is, the others code it in a basis
and in units that suit its kind.

One basis and one set of scales for all vectors waste bits where images are flat, or busy in one direction only. Here every
class is a Gaussian (fitted by `pqdiff.fitting.classes`): its token chooses one of a few orthonormal bases and the standard
deviations in it. The rate stays the same: a class costs one of the S tokens. Not in the PQGAN paper.
"""

import torch
from torch import nn

from pqdiff.quantizers.base import Choices, QuantizerOutput, check_weights, register_quantizer
from pqdiff.quantizers.codebook import CodebookQuantizer, move_unused
from pqdiff.quantizers.search.classified import classify, rotate
from pqdiff.quantizers.search.codeword_statistics import look_up
from pqdiff.quantizers.search.nearest import nearest_codewords
from pqdiff.quantizers.soft import most_probable, posterior_mean


@register_quantizer("classified_product")
class ClassifiedProductQuantizer(CodebookQuantizer):
    """Codes `components` channels as a class and S - 1 codewords relative to it.

    Codes are components again. The latents of the first subspace are the class's own codeword, on a grid, so that noise
    does not confuse classes; those of the others are the visible coordinates of their codewords. Everything is computed
    in fp32: the choice among classes compares small errors of large numbers.

    Args:
        latent_channels: number of latent channels d.
        num_subspaces: number of tokens S, at least 2; must divide `latent_channels`.
        codebook_size: number of classes, and of codewords of every other subspace, K.
        components: number of channels P that are coded, at least the (S - 1)(d + hidden_channels) / S coefficients.
        hidden_channels: coordinates that codewords have beyond what the latents show, a multiple of S.
        bases: number of orthonormal bases; divides K. Class k has basis k // (K / bases).
        candidates: number of the likeliest classes that `encode` tries; the one that reconstructs best is taken.
        commitment_weight: weight of mean((c - sg[q])^2) over relative coefficients c and their codewords q.
        codebook_weight: weight of mean((sg[c] - q)^2).

    Raises:
        ValueError: if the numbers do not fit each other.
    """

    fp32_tensors = (*CodebookQuantizer.fp32_tensors, "class_codewords", "rotations", "log_scales", "log_variances")

    def __init__(
        self,
        latent_channels: int,
        num_subspaces: int,
        codebook_size: int,
        components: int,
        hidden_channels: int = 0,
        bases: int = 16,
        candidates: int = 8,
        commitment_weight: float = 1.0,
        codebook_weight: float = 0.25,
    ):
        super().__init__(latent_channels, num_subspaces, codebook_size, hidden_channels)
        check_weights(commitment_weight=commitment_weight, codebook_weight=codebook_weight)
        if num_subspaces < 2:
            raise ValueError(f"num_subspaces ({num_subspaces}) must be at least 2: one token is the class")
        if bases < 1 or codebook_size % bases:
            raise ValueError(f"bases ({bases}) must divide codebook_size ({codebook_size})")
        dim = self.code_channels // num_subspaces
        width = (num_subspaces - 1) * dim
        if components < width:
            raise ValueError(
                f"components ({components}) must be at least the {width} coefficients of the other subspaces"
            )
        if not 1 <= candidates <= codebook_size:
            raise ValueError(f"candidates ({candidates}) must be from 1 to the {codebook_size} classes")
        self.in_channels = self.code_channels = components
        self.bases = bases
        self.candidates = candidates
        self.commitment_weight = commitment_weight
        self.codebook_weight = codebook_weight
        # Not learned: a name of the class, which the reconstruction does not depend on.
        self.register_buffer("class_codewords", torch.randn(codebook_size, self.visible))
        self.codebooks = nn.Parameter(torch.randn(num_subspaces - 1, codebook_size, dim))
        self.rotations = nn.Parameter(torch.empty(bases, width, components))
        self.log_scales = nn.Parameter(torch.zeros(codebook_size, width))
        # Of every coefficient with its coding error, and of one that is left out, for likelihoods.
        self.register_buffer("log_variances", torch.zeros(codebook_size, width + 1))
        with torch.no_grad():
            for rotation in self.rotations:
                nn.init.orthogonal_(rotation)

    def forward(self, z: torch.Tensor) -> QuantizerOutput:
        indices = self.encode(z)  # the tokens with which the image is coded later, class included
        tokens = indices.flatten(2)
        with torch.autocast(z.device.type, enabled=False):
            classes, x = tokens[:, 0], z.float().flatten(2)
            scales = self._scales(classes)
            relative = rotate(x, self._basis(classes), self.rotations.float()) / scales  # (B, M, n)
            chosen = look_up(self.codebooks.float(), tokens[:, 1:]).flatten(1, 2)
            loss = self.commitment_weight * (relative - chosen.detach()).square().mean()
            loss = loss + self.codebook_weight * (relative.detach() - chosen).square().mean()
            codes = self._components(relative + (chosen - relative).detach(), classes, scales)
        return QuantizerOutput(codes.unflatten(2, z.shape[2:]).to(z.dtype), indices, loss, {})

    def encode(self, z: torch.Tensor) -> torch.Tensor:
        self._check(z, self.in_channels, "z")
        tables = (self.rotations, self.log_scales, self.log_variances, self.codebooks)
        return classify(z.flatten(2).float(), *tables, self.candidates).unflatten(2, z.shape[2:])

    def decode(self, indices: torch.Tensor) -> torch.Tensor:
        self._check_indices(indices)
        tokens = indices.flatten(2).long()
        relative = look_up(self.codebooks.float(), tokens[:, 1:]).flatten(1, 2)
        return self._components(relative, tokens[:, 0]).unflatten(2, indices.shape[2:])

    def to_latents(self, indices: torch.Tensor) -> torch.Tensor:
        self._check_indices(indices)
        return self._join(look_up(self._visible_codewords(), indices.flatten(2).long()), indices.shape[2:])

    def nearest(self, latents: torch.Tensor) -> torch.Tensor:
        self._check(latents, self.latent_channels, "latents")
        return self._search(latents, self._visible_codewords())

    def lift(self, latents: torch.Tensor) -> torch.Tensor:
        """The class is that of the nearest class codeword: there is nothing between two classes."""
        self._check(latents, self.latent_channels, "latents")
        vectors = self._split(latents.float())
        classes = nearest_codewords(vectors[:, :1].contiguous(), self.class_codewords.float()[None])[:, 0]
        hidden = self.codebooks.shape[2] - self.visible
        relative = nn.functional.pad(vectors[:, 1:], (0, 0, 0, hidden)).flatten(1, 2)
        return self._components(relative, classes).unflatten(2, latents.shape[2:])

    def posterior_mean(self, latents: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """The most probable class, and the mean of the codewords in it."""
        self._check(latents, self.latent_channels, "latents")
        vectors, noise = self._split(latents.float()), noise.float().view(self.num_subspaces, self.visible)
        classes = most_probable(vectors[:, 0], self.class_codewords, self.frequencies[0], noise[0])
        table = self.codebooks.float()
        mean = posterior_mean(vectors[:, 1:], table[..., : self.visible], self.frequencies[1:], noise[1:], table)
        return self._components(mean.flatten(1, 2), classes).unflatten(2, latents.shape[2:])

    def choices(self, indices: torch.Tensor) -> Choices:
        """Classes stay: another one would change what all other tokens mean."""
        self._check_indices(indices)
        classes, size = indices.flatten(2)[:, 0].long(), indices.shape[2:]
        scales = self._scales(classes)
        return Choices(
            1,
            self.codebooks.float(),
            scales.unflatten(1, (self.num_subspaces - 1, -1)),
            lambda vectors: self._components(vectors.flatten(1, 2), classes, scales).unflatten(2, size),
        )

    @torch.no_grad()
    def restart(
        self, unused: list[torch.Tensor], z: torch.Tensor, generator: torch.Generator
    ) -> list[tuple[str, torch.Tensor]]:
        """Classes stay: a new one would have to learn scales before it is good for anything."""
        self._check(z, self.in_channels, "z")
        classes = self.encode(z).flatten(2)[:, 0]
        relative = rotate(z.float().flatten(2), self._basis(classes), self.rotations.float()) / self._scales(classes)
        vectors = (
            relative.unflatten(1, (self.num_subspaces - 1, -1)).permute(1, 0, 3, 2).flatten(1, 2)
        )  # (S - 1, N, D)
        return [("codebooks", move_unused(self.codebooks, torch.stack(unused[1:]), vectors, generator))]

    @torch.no_grad()
    def after_step(self, step: int) -> None:
        """Undo what the step did to the rows of the bases, which must stay orthonormal: a Newton-Schulz step."""
        if self.rotations.requires_grad:
            basis = self.rotations.float()
            self.rotations.copy_(1.5 * basis - 0.5 * basis @ basis.transpose(1, 2) @ basis)

    def extra_repr(self) -> str:
        return (
            f"{self.latent_channels}, num_subspaces={self.num_subspaces}, codebook_size={self.codebook_size}, "
            f"components={self.in_channels}, hidden_channels={self.hidden_channels}, bases={self.bases}, "
            f"candidates={self.candidates}"
        )

    def _visible_codewords(self) -> torch.Tensor:
        """What the latents show of all codewords `(S, K, d / S)`, fp32."""
        return torch.cat([self.class_codewords.float()[None], self.codebooks.float()[..., : self.visible]])

    def _components(
        self, relative: torch.Tensor, classes: torch.Tensor, scales: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Components `(B, P, n)` of coefficients `(B, M, n)` relative to classes `(B, n)`."""
        coefficients = relative * (self._scales(classes) if scales is None else scales)
        return rotate(coefficients, self._basis(classes), self.rotations.float().mT)

    def _scales(self, classes: torch.Tensor) -> torch.Tensor:
        """Units `(B, M, n)` of the coefficients of vectors of classes `(B, n)`."""
        return self.log_scales.float().exp()[classes].movedim(2, 1)

    def _basis(self, classes: torch.Tensor) -> torch.Tensor:
        return classes // (self.codebook_size // self.bases)
