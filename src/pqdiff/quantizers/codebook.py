"""What quantizers with tables of codewords share: look-up, nearest and soft snapping, restarts, frequencies."""

import torch

from pqdiff.quantizers.base import Choices, Quantizer
from pqdiff.quantizers.search.codeword_statistics import look_up
from pqdiff.quantizers.search.nearest import nearest_codewords
from pqdiff.quantizers.soft import posterior_mean


class CodebookQuantizer(Quantizer):
    """Base of quantizers with S codebooks of K codewords `(S, K, D)`, each for its own contiguous slice of the channels.

    A codeword is whole: its first `latent_channels / S` coordinates are what the latents show, the others are hidden.
    A subclass implements `forward` and, if codewords are not the parameter `codebooks`, `codewords`.

    Args:
        latent_channels: number of latent channels d.
        num_subspaces: number of slices S; must divide `latent_channels`.
        codebook_size: number of codewords K per subspace.
        hidden_channels: further coordinates of the codewords, over all subspaces; a multiple of S.

    Raises:
        ValueError: if the numbers do not fit each other.
    """

    fp32_tensors = ("codebooks", "frequencies")
    can_restart = True

    def __init__(self, latent_channels: int, num_subspaces: int, codebook_size: int, hidden_channels: int = 0):
        super().__init__()
        if latent_channels < 1 or num_subspaces < 1 or latent_channels % num_subspaces:
            raise ValueError(
                f"latent_channels ({latent_channels}) must be divisible by num_subspaces ({num_subspaces}), both at least 1"
            )
        if codebook_size < 1:
            raise ValueError(f"codebook_size ({codebook_size}) must be at least 1")
        if hidden_channels < 0 or hidden_channels % num_subspaces:
            raise ValueError(
                f"hidden_channels ({hidden_channels}) must be 0 or a positive multiple of num_subspaces ({num_subspaces})"
            )
        self.latent_channels = latent_channels
        self.num_subspaces = num_subspaces
        self.codebook_size = codebook_size
        self.hidden_channels = hidden_channels
        self.in_channels = self.code_channels = latent_channels + hidden_channels
        self.visible = latent_channels // num_subspaces  # coordinates of a codeword that the latents show
        self.register_buffer("frequencies", torch.full((num_subspaces, codebook_size), 1 / codebook_size))

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        return (self.codebook_size,) * self.num_subspaces

    def codewords(self) -> torch.Tensor:
        """Codewords `(S, K, D)`, fp32."""
        return self.codebooks.float()

    def encode(self, z: torch.Tensor) -> torch.Tensor:
        self._check(z, self.in_channels, "z")
        return self._search(z, self.codewords())

    def decode(self, indices: torch.Tensor) -> torch.Tensor:
        self._check_indices(indices)
        return self._join(look_up(self.codewords(), indices.flatten(2).long()), indices.shape[2:])

    def to_latents(self, indices: torch.Tensor) -> torch.Tensor:
        self._check_indices(indices)
        table = self.codewords()[..., : self.visible]
        return self._join(look_up(table, indices.flatten(2).long()), indices.shape[2:])

    def nearest(self, latents: torch.Tensor) -> torch.Tensor:
        self._check(latents, self.latent_channels, "latents")
        return self._search(latents, self.codewords()[..., : self.visible].contiguous())

    def lift(self, latents: torch.Tensor) -> torch.Tensor:
        self._check(latents, self.latent_channels, "latents")
        if not self.hidden_channels:
            return latents.float()
        hidden = self.hidden_channels // self.num_subspaces
        parts = torch.nn.functional.pad(self._split(latents.float()), (0, 0, 0, hidden))
        return self._join(parts, latents.shape[2:])

    def posterior_mean(self, latents: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        self._check(latents, self.latent_channels, "latents")
        codewords = self.codewords()
        visible, noise = codewords[..., : self.visible], noise.float().view(self.num_subspaces, self.visible)
        mean = posterior_mean(self._split(latents), visible, self.frequencies, noise, codewords)
        return self._join(mean, latents.shape[2:])

    def choices(self, indices: torch.Tensor) -> Choices:
        self._check_indices(indices)
        table, size = self.codewords(), indices.shape[2:]
        return Choices(0, table, table.new_ones(1), lambda vectors: self._join(vectors, size))

    @torch.no_grad()
    def set_frequencies(self, counts: list[torch.Tensor]) -> None:
        counts = torch.stack([count.double() for count in counts]) + 0.5  # what was not seen is rare, not impossible
        self.frequencies.copy_(counts / counts.sum(dim=1, keepdim=True))

    @torch.no_grad()
    def restart(
        self, unused: list[torch.Tensor], z: torch.Tensor, generator: torch.Generator
    ) -> list[tuple[str, torch.Tensor]]:
        self._check(z, self.in_channels, "z")
        vectors = self._split(z.float()).permute(1, 0, 3, 2).flatten(1, 2)  # (S, N, D)
        return [("codebooks", move_unused(self.codebooks, torch.stack(unused), vectors, generator))]

    def _search(self, z: torch.Tensor, codewords: torch.Tensor) -> torch.Tensor:
        """int64 tokens `(B, S, h, w)` of the nearest codewords `(S, K, D)` to z `(B, S D, h, w)`."""
        return nearest_codewords(self._split(z), codewords).unflatten(2, z.shape[2:])

    def _split(self, z: torch.Tensor) -> torch.Tensor:
        """Channels `(B, S D, h, w)` as vectors `(B, S, D, h w)`."""
        return z.flatten(2).unflatten(1, (self.num_subspaces, -1))

    def _join(self, vectors: torch.Tensor, size: torch.Size) -> torch.Tensor:
        """Vectors `(B, S, D, h w)` as channels `(B, S D, h, w)`."""
        return vectors.flatten(1, 2).unflatten(2, size)


def move_unused(
    codebooks: torch.Tensor, unused: torch.Tensor, vectors: torch.Tensor, generator: torch.Generator
) -> torch.Tensor:
    """Put unused codewords at vectors, drawn without replacement from the finite ones that no codeword equals.

    Images with flat areas give many equal vectors, and two equal codewords would be two tokens for one thing. Where there
    are too few vectors, the other codewords stay as they are.

    Args:
        codebooks: `(S, K, D)`, changed in place.
        unused: bool `(S, K)`.
        vectors: `(S, N, D)`.
        generator: on the CPU.

    Returns:
        bool mask `(S, K, D)` of the entries that changed.
    """
    unused = unused.to(codebooks.device)
    moved = torch.zeros_like(unused)
    for s, mask in enumerate(unused):
        if not mask.any():
            continue
        kept = codebooks[s, ~mask].to(vectors)
        new = _first_of_equals(torch.cat([kept, vectors[s]]))
        new = new[new >= len(kept)] - len(kept)
        new = new[vectors[s, new].isfinite().all(dim=1)]
        drawn = new[torch.randperm(len(new), generator=generator).to(new.device)]
        places = mask.nonzero()[: len(drawn), 0]
        codebooks[s, places] = vectors[s, drawn[: len(places)]].to(codebooks)
        moved[s, places] = True
    return moved[..., None].expand_as(codebooks)


def _first_of_equals(rows: torch.Tensor) -> torch.Tensor:
    """Numbers of the rows `(n, D)` that equal no row before them, in ascending order."""
    _, groups = rows.unique(dim=0, return_inverse=True)
    numbers = torch.arange(len(rows), device=rows.device)
    first = numbers.new_full((len(rows),), len(rows)).scatter_reduce(0, groups, numbers, "amin")
    return numbers[first[groups] == numbers]
