"""Reference product quantizer: one search per subspace, as the paper describes it, for measurements and tests only."""

import torch
from torch import nn


class PerSubspaceLoop(nn.Module):
    """Latents `(B, d, H, W)` -> `(z_q, indices (B, S, H, W), loss)`, with a distance matrix per subspace.

    Distances by the expanded square, all kept until the end under autograd, as in a straightforward implementation.
    """

    def __init__(self, codebooks: torch.Tensor, commitment_weight: float = 1.0, codebook_weight: float = 0.25):
        super().__init__()
        self.codebooks = nn.ParameterList(codebook.clone() for codebook in codebooks)
        self.weights = commitment_weight, codebook_weight

    def search(self, z: torch.Tensor) -> torch.Tensor:
        """Indices `(B, S, H, W)` alone, from one distance matrix after the other."""
        batch, channels, height, width = z.shape
        rows = z.permute(0, 2, 3, 1).reshape(-1, channels)
        indices = [
            (part.square().sum(1, keepdim=True) + codebook.square().sum(1) - 2 * part @ codebook.T).argmin(1)
            for part, codebook in zip(rows.chunk(len(self.codebooks), dim=1), self.codebooks, strict=True)
        ]
        return torch.stack(indices, dim=1).view(batch, height, width, -1).permute(0, 3, 1, 2)

    def forward(self, z: torch.Tensor):
        batch, channels, height, width = z.shape
        rows = z.permute(0, 2, 3, 1).reshape(-1, channels)
        codes, indices, distances = [], [], []
        for part, codebook in zip(rows.chunk(len(self.codebooks), dim=1), self.codebooks, strict=True):
            squares = part.square().sum(1, keepdim=True) + codebook.square().sum(1) - 2 * part @ codebook.T
            distances.append(squares)
            index = squares.argmin(1)
            indices.append(index)
            codes.append(codebook[index])
        z_q = torch.cat(codes, dim=1)
        commitment, codebook_term = (rows - z_q.detach()).square().mean(), (rows.detach() - z_q).square().mean()
        loss = self.weights[0] * commitment + self.weights[1] * codebook_term
        z_q = (rows + (z_q - rows).detach()).view(batch, height, width, channels).permute(0, 3, 1, 2)
        indices = torch.stack(indices, dim=1).view(batch, height, width, -1).permute(0, 3, 1, 2)
        return z_q, indices, loss
