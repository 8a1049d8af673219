"""Classes of patches: the first token says what kind of patch this is, all others code it in a basis and in units that suit
its kind.

One basis and one set of scales for all patches waste bits where photos are flat or busy in one direction only. Here every
class is a Gaussian (fitted by `class_fit.py`): its token chooses one of a few orthonormal bases and the standard deviations
in it. The rate stays the same: a class costs one of the S tokens.
"""

import torch
from torch import nn

from ..quantizers import Fp32Module
from ..quantizers.codeword_statistics import look_up
from ..quantizers.nearest import nearest_codewords


class PatchClasses(Fp32Module):
    """Maps components of patches to coefficients relative to a class, and back, in fp32: the choice among classes compares
    small errors of large numbers, and rotations that bf16 has rounded cost more than 1 dB.

    Class k has basis k // (classes / bases).

    Args:
        components: number of principal components P of a patch that go in.
        coefficients: number of coefficients M that are coded.
        classes: number of classes K.
        bases: number of orthonormal bases; divides K.
        candidates: number of the likeliest classes that `encode` tries.

    Raises:
        ValueError: if the numbers do not fit each other.
    """

    def __init__(self, components: int, coefficients: int, classes: int, bases: int, candidates: int = 8):
        super().__init__()
        if bases < 1 or classes % bases:
            raise ValueError(f"class_bases ({bases}) must divide codebook_size ({classes}), or be 0 for no classes")
        if components < coefficients:
            raise ValueError(
                f"class_components ({components}) must be at least the {coefficients} coefficients of the other subspaces"
            )
        if not 1 <= candidates <= classes:
            raise ValueError(f"class_candidates ({candidates}) must be from 1 to the {classes} classes")
        self.candidates = candidates
        self.rotations = nn.Parameter(torch.empty(bases, coefficients, components))
        self.log_scales = nn.Parameter(torch.zeros(classes, coefficients))
        # Of every coefficient with its coding error, and of one that is left out, for likelihoods.
        self.register_buffer("log_variances", torch.zeros(classes, coefficients + 1))
        with torch.no_grad():
            for rotation in self.rotations:
                nn.init.orthogonal_(rotation)

    def coefficients(self, components: torch.Tensor) -> torch.Tensor:
        """Coefficients `(B, bases, M, n)` in every basis, of components `(B, P, n)`."""
        return torch.stack([rotation @ components for rotation in self.rotations.float()], dim=1)

    def components(self, coefficients: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
        """Components `(B, P, n)` of coefficients `(B, M, n)` in the bases of their classes `(B, n)`."""
        basis = self._basis(classes)[:, None]
        parts = (rotation.T @ (coefficients * (basis == b)) for b, rotation in enumerate(self.rotations.float()))
        return sum(parts)

    def scales(self, classes: torch.Tensor) -> torch.Tensor:
        """Units `(B, M, n)` of the coefficients of patches of classes `(B, n)`."""
        return self.log_scales.float().exp()[classes].movedim(2, 1)

    def likeliest(self, components: torch.Tensor, coefficients: torch.Tensor, number: int) -> torch.Tensor:
        """The classes `(B, number, n)` under which components `(B, P, n)`, with coefficients `(B, bases, M, n)`, are
        likeliest, the likeliest first."""
        bases, _, total = self.rotations.shape
        left_out = total - coefficients.shape[2]
        squares = coefficients.square()
        rest = (components.square().sum(dim=1)[:, None] - squares.sum(dim=2)).clamp_min(0)[
            :, :, None
        ]  # (B, bases, 1, n)
        log_variances = self.log_variances.float()
        precisions = (-log_variances).exp().unflatten(0, (bases, -1))  # (bases, K / bases, M + 1)
        logs = log_variances[:, :-1].sum(dim=1) + left_out * log_variances[:, -1]
        costs = precisions @ torch.cat([squares, rest], dim=2)  # (B, bases, K / bases, n)
        costs = costs.flatten(1, 2) + logs[:, None]
        return costs.topk(min(number, len(logs)), dim=1, largest=False).indices

    def encode(
        self, components: torch.Tensor, codewords: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Class, relative coefficients and tokens of patches: of the likeliest classes the one that reconstructs best.

        Args:
            components: `(B, P, n)`, fp32.
            codewords: of the relative coefficients, `(S - 1, K, D)`: coefficients of a subspace follow each other.

        Returns:
            Classes `(B, n)`, relative coefficients `(B, S - 1, D, n)`, and their indices `(B, S - 1, n)`.
        """
        everywhere = self.coefficients(components)
        energy = components.square().sum(dim=1)  # (B, n)
        best = None
        for classes in self.likeliest(components, everywhere, self.candidates).unbind(dim=1):
            basis = self._basis(classes)[:, None, None].expand(-1, 1, everywhere.shape[2], -1)
            coefficients = everywhere.gather(1, basis)[:, 0]  # (B, M, n)
            scales = self.scales(classes)
            relative = (coefficients / scales).unflatten(1, (len(codewords), -1))
            indices = nearest_codewords(relative, codewords)
            decoded = look_up(codewords, indices).flatten(1, 2) * scales
            error = energy + (decoded * (decoded - 2 * coefficients)).sum(dim=1)  # |x|^2 - 2 x y + |y|^2
            found = (error, classes, relative, indices)
            if best is None:
                best = found
                continue
            better = error < best[0]
            best = tuple(
                torch.where(better.reshape(len(better), *[1] * (old.ndim - 2), -1), new, old)
                for new, old in zip(found, best, strict=True)
            )
        return best[1:]

    def _basis(self, classes: torch.Tensor) -> torch.Tensor:
        return classes // (len(self.log_scales) // len(self.rotations))
