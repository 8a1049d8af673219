"""Exact nearest-codeword search for product quantizers, in plain torch.

The distances are never held all at once: a tile of scores is reduced to one minimum per run of codewords, and only the
winning run is scanned again with direct differences. Vectors whose two best scores are closer than rounding can tell
apart are searched once more in full, so the answer is exact and ties go to the lowest index.
"""

import torch

from pqdiff.quantizers.search import codeword_statistics
from pqdiff.quantizers.search.exact_matmul import exact_matmul

# Scratch memory in floats. On a CPU a tile stays in the second-level cache; a GPU wants few, large launches.
_SCRATCH_FLOATS = {"cpu": 2**18}
_SCRATCH_FLOATS_ACCELERATOR = 2**26
_WIDE = 16  # from this dimension on the matrix product dominates and runs no longer pay
_UNIT_ROUNDOFF = 2.0**-24  # fp32


def why_not() -> None:
    """Always usable."""


def nearest(z: torch.Tensor, codebooks: torch.Tensor) -> torch.Tensor:
    """int64 indices `(B, S, N)` for z `(B, S, D, N)` of any floating dtype and codebooks `(S, K, D)` fp32, on any device.

    Beside its output and a few times the codebooks it uses 1 MB of memory on a CPU, 256 MB elsewhere.
    """
    with exact_matmul():
        indices = torch.empty((z.shape[0], z.shape[1], z.shape[3]), dtype=torch.int64, device=z.device)
        if not indices.numel():
            return indices
        dim = codebooks.shape[2]
        if dim == 1:
            _search_scalar(z[:, :, 0], codebooks[:, :, 0], indices)
        elif dim < _WIDE:
            _search_narrow(z, codebooks, indices)
            _search_doubtful(z, codebooks, indices)
        else:
            _search_wide(z, codebooks, indices)
            _search_doubtful(z, codebooks, indices)
        return indices


def quantize(z: torch.Tensor, codebooks: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Search and statistics: see `codeword_statistics.quantize`."""
    return codeword_statistics.quantize(z, codebooks, nearest(z, codebooks))


def _scratch_floats(device: torch.device) -> int:
    return _SCRATCH_FLOATS.get(device.type, _SCRATCH_FLOATS_ACCELERATOR)


def _search_scalar(z: torch.Tensor, codebooks: torch.Tensor, indices: torch.Tensor) -> None:
    """Sorted search for one-dimensional subspaces: z (B, S, N), codebooks (S, K) -> indices (B, S, N)."""
    values, order = codebooks.sort(dim=1, stable=True)  # (S, K); equal values keep their order
    lowest = order.gather(1, torch.searchsorted(values, values))  # (S, K) first index of each run of equal values
    step = max(1, _scratch_floats(z.device) // 24 // z.shape[1])
    for b in range(z.shape[0]):
        for n in range(0, z.shape[2], step):
            x = z[b, :, n : n + step].float().contiguous()  # (S, n)
            above = torch.searchsorted(values, x).clamp_(max=values.shape[1] - 1)
            below = (above - 1).clamp_(min=0)
            distance_below = (x - values.gather(1, below)).abs_()
            distance_above = (values.gather(1, above) - x).abs_()
            index_below, index_above = lowest.gather(1, below), lowest.gather(1, above)
            index = torch.where(distance_below < distance_above, index_below, index_above)
            tied = distance_below == distance_above
            index = torch.where(tied, torch.minimum(index_below, index_above), index)
            indices[b, :, n : n + step] = index.masked_fill_(~x.isfinite(), 0)  # NaN, or as far from all


def _search_narrow(z: torch.Tensor, codebooks: torch.Tensor, indices: torch.Tensor) -> None:
    """Search in few dimensions: z (B, S, D, N), codebooks (S, K, D) -> indices (B, S, N)."""
    _, num_subspaces, dim, num_positions = z.shape
    codebook_size = codebooks.shape[1]
    scratch = _scratch_floats(z.device)
    run = 16 if codebook_size > 128 else 8  # codewords per run: short runs for short codebooks
    tile_k = min(codebook_size, max(run, scratch // 16 // (2 * dim + 1) // run * run))
    num_runs = -(-tile_k // run)
    buffer = z.new_empty(scratch // 2, dtype=torch.float32)
    # A vector costs one minimum per run and a few copies; its winning run is gathered into the buffer. Blocks are as equal
    # as can be, and few, because for short codebooks the calls cost as much as the arithmetic.
    block = min(scratch * 3 // 8 // (num_runs + 2 * dim + 4), buffer.numel() // (run * dim + 2))
    block_n = min(block, num_positions)
    tables = max(1, scratch // 8 // (tile_k * (2 * dim + 1)))  # subspaces whose codewords are prepared at once
    block_s = min(block // block_n, num_subspaces, tables)
    block_s = -(-num_subspaces // -(-num_subspaces // block_s))
    tile_s = max(block_s, tables // block_s * block_s)
    for s in range(0, num_subspaces, tile_s):
        tile = _CodewordTile(codebooks[s : s + tile_s, :tile_k], run)
        for t in range(s, min(s + tile_s, num_subspaces), block_s):
            subspaces = slice(t, min(t + block_s, s + tile_s, num_subspaces))
            block_tile = tile.part(slice(t - s, subspaces.stop - s))
            for b in range(z.shape[0]):
                for n in range(0, num_positions, block_n):
                    x = z[b, subspaces, :, n : n + block_n].float()  # (s, D, n)
                    best, best_distance = block_tile.nearest(x, buffer)
                    for k in range(tile_k, codebook_size, tile_k):
                        part = _CodewordTile(codebooks[subspaces, k : k + tile_k], run)
                        index, distance = part.nearest(x, buffer)
                        closer = distance < best_distance  # strict: an equal distance keeps the lower index
                        doubt = (index < 0) | (best < 0)
                        best = torch.where(closer, index + k, best).masked_fill_(doubt, -1)
                        best_distance = torch.where(closer, distance, best_distance)
                    indices[b, subspaces, n : n + block_n] = best


def _search_doubtful(z: torch.Tensor, codebooks: torch.Tensor, indices: torch.Tensor) -> None:
    """Replace every index -1 by a search with direct differences over the whole codebook."""
    _, codebook_size, dim = codebooks.shape
    scratch = _scratch_floats(z.device)
    step_n = max(1, scratch // len(codebooks))
    step = max(1, scratch // (4 * codebook_size * dim))
    for b in range(z.shape[0]):
        for n in range(0, z.shape[3], step_n):
            subspace, position = (indices[b, :, n : n + step_n] < 0).nonzero(as_tuple=True)
            for s, p in zip(subspace.split(step), (position + n).split(step), strict=True):
                distances = (z[b][s, :, p].float()[:, None] - codebooks[s]).square_().sum(dim=2)  # (rows, K)
                indices[b, s, p] = _first_minimum(distances)


class _CodewordTile:
    """Some codewords `(s, k, D)` prepared for search: centered, negated, with half their squared norms."""

    def __init__(self, codewords: torch.Tensor, run: int):
        # Centering keeps |z||c| small beside the distances: the expanded square loses no digits off-center.
        center = codewords.mean(dim=1, keepdim=True)  # (s, 1, D)
        padding = -codewords.shape[1] % run
        if padding:
            last = codewords[:, -1:].expand(
                -1, padding, -1
            )  # in the same run, so the original wins ties with its copies
            codewords = torch.cat([codewords, last], dim=1)
        num_runs = codewords.shape[1] // run
        centered = codewords - center
        half_norms = centered.square().sum(dim=2, keepdim=True).mul_(0.5)  # (s, k, 1)
        self.center = center.transpose(1, 2)  # (s, D, 1)
        self.table = torch.cat([centered.neg_(), half_norms], dim=2)  # (s, k, D + 1)
        # A product with the one-hot choice of a run yields its codewords, its number, and a check that it is one-hot.
        runs = codewords.unflatten(1, (num_runs, run)).permute(0, 3, 2, 1).flatten(1, 2)  # (s, D * run, k / run)
        numbers = torch.arange(num_runs, dtype=torch.float32, device=codewords.device)
        labels = torch.stack([numbers, torch.ones_like(numbers)])
        self.runs = torch.cat([runs, labels.expand(len(runs), -1, -1)], dim=1)  # (s, D * run + 2, k / run)

    def part(self, subspaces: slice) -> "_CodewordTile":
        """The same codewords for some of the subspaces."""
        part = object.__new__(_CodewordTile)
        part.__dict__ = {name: tensor[subspaces] for name, tensor in self.__dict__.items()}
        return part

    def nearest(self, x: torch.Tensor, buffer: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Nearest codeword of this tile for x `(s, D, n)` fp32: indices `(s, n)` and squared distances `(s, n)`.

        The index is -1 where rounding leaves it in doubt, and for NaN. `buffer` is flat scratch memory for the scores
        of a part of x.
        """
        num_subspaces, dim, n = x.shape
        possible = self._possible_runs(x, buffer)  # (s, runs, n), one-hot wherever rounding leaves no doubt
        gathered = buffer[: num_subspaces * self.runs.shape[1] * n].view(num_subspaces, -1, n)
        torch.bmm(self.runs, possible, out=gathered)
        codewords, (number, count) = gathered[:, :-2], gathered[:, -2:].unbind(dim=1)
        run = codewords.shape[1] // dim
        differences = codewords.unflatten(1, (dim, run)).sub_(x[:, :, None]).square_()
        distances = differences[:, 0]  # (s, run, n), direct form: exact where the expanded one cancels
        for d in range(1, dim):
            distances += differences[:, d]
        distance = distances.amin(dim=1)
        # Lowest index among the equals: vectorized along n and twice as fast on a CPU as min with indices.
        countdown = torch.arange(run, 0, -1, dtype=torch.float32, device=x.device)[:, None]
        equal = torch.le(distances, distance[:, None], out=distances).mul_(countdown)
        index = (number * run).sub_(equal.amax(dim=1)).add_(run).masked_fill_(count != 1, -1)
        return index.long(), distance

    def _possible_runs(self, x: torch.Tensor, buffer: torch.Tensor) -> torch.Tensor:
        """1.0 for every run that may hold the nearest codeword, else 0.0: `(s, runs, n)`."""
        num_subspaces, dim, n = x.shape
        num_runs = self.runs.shape[2]
        # [-c, |c|^2 / 2] @ [x - center, 1] is half the squared distance, short of a term that all codewords share.
        augmented = x.new_ones(num_subspaces, dim + 1, n)
        torch.sub(x, self.center, out=augmented[:, :dim])
        minima = x.new_empty(num_subspaces, num_runs, n)
        k = self.table.shape[1]
        step = max(1, min(buffer.numel() // k, n))
        step = step // 64 * 64 or step  # whole vector registers: ragged rows cost half the speed
        group = max(1, buffer.numel() // (step * k))
        groups, parts = -(-num_subspaces // group), -(-n // step)
        # chunk and zip, because slicing in Python would take as long as the arithmetic
        for table, vectors, out in zip(
            self.table.chunk(groups), augmented.chunk(groups), minima.chunk(groups), strict=True
        ):
            shape = None
            for part, part_out in zip(vectors.chunk(parts, dim=2), out.chunk(parts, dim=2), strict=True):
                if part_out.shape != shape:
                    shape = part_out.shape
                    scores = buffer[: len(table) * k * shape[2]].view(len(table), num_runs, -1, shape[2])
                    flat_scores = scores.flatten(1, 2)
                torch.bmm(table, part, out=flat_scores)
                torch.amin(scores, dim=2, out=part_out)
        # A codeword c at distance r has a score with an error of at most 3 (D + 2) u (|x|^2 + r^2), because |c| <= |x| + r.
        # The nearest one and the apparently nearest one are as far, and r^2 = |x|^2 + 2 score.
        lowest = minima.amin(dim=1, keepdim=True)
        margin = (
            augmented[:, :dim].square().sum(dim=1, keepdim=True).add_(lowest).mul_(12 * (dim + 2) * _UNIT_ROUNDOFF)
        )
        return torch.le(minima, lowest.add_(margin), out=minima)


def _search_wide(z: torch.Tensor, codebooks: torch.Tensor, indices: torch.Tensor) -> None:
    """Search in many dimensions: z (B, S, D, N), codebooks (S, K, D) -> indices (B, S, N)."""
    dim, scratch = codebooks.shape[2], _scratch_floats(z.device)
    tile_k = min(codebooks.shape[1], 2048, max(1, scratch // 4 // dim))
    tile_n = max(1, min(scratch // 4 // tile_k, scratch // 8 // dim))
    for s, codebook in enumerate(codebooks):
        center = codebook.mean(dim=0)
        tiles = codebook.split(tile_k)
        half_norms = torch.cat([(tile - center).square_().sum(dim=1).mul_(0.5) for tile in tiles])  # (K,)
        max_square_norm = torch.linalg.vector_norm(codebook, dim=1).amax().square()
        for b in range(z.shape[0]):
            for n in range(0, z.shape[3], tile_n):
                x = z[b, s, :, n : n + tile_n].T.float()  # (n, D)
                centered = x - center
                # |c - center|^2 / 2 - (x - center) . c is half the squared distance short of a shared term.
                best, index = [], []
                for k, tile in zip(range(0, len(codebook), tile_k), tiles, strict=True):
                    scores = torch.addmm(half_norms[k : k + tile_k], centered, tile.T, alpha=-1)  # (n, k)
                    values, positions = scores.topk(min(2, len(tile)), dim=1, largest=False)
                    best.append(values)
                    index.append(positions + k)
                best, order = torch.cat(best, dim=1).sort(dim=1)
                index = torch.cat(index, dim=1).gather(1, order)[:, 0]
                if best.shape[1] > 1:  # both scores of a comparison carry at most half of this rounding error
                    margin = centered.square().sum(dim=1).add_(max_square_norm).mul_(4 * (dim + 2) * _UNIT_ROUNDOFF)
                    certain = best[:, 1] > best[:, 0] + margin  # False for NaN
                    index = index.masked_fill_(~certain, -1)
                indices[b, s, n : n + tile_n] = index


def _first_minimum(distances: torch.Tensor) -> torch.Tensor:
    """Lowest index that attains the minimum over the last dimension; 0 where there is NaN."""
    distance, index = distances.min(dim=-1)  # like argmin, min takes the first of equals
    return index.masked_fill_(distance.isnan(), 0)
