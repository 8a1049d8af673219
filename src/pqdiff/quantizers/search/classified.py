"""Search for classified product quantizers: of the likeliest classes of every vector, the one that reconstructs it best.

Operators that are opaque to `torch.compile` and `torch.export`. Vectors are searched in blocks of one fixed size, so
the tokens of a vector depend on neither the batch, nor the image, nor the tile that it comes in.
"""

import torch
from torch import nn

from pqdiff.quantizers.search import native as search_native
from pqdiff.quantizers.search.backends import backend_name
from pqdiff.quantizers.search.nearest import check_devices, nearest_codewords

_BLOCK = 256  # vectors at once on a CPU, at most
_NUMBERS = 2**21  # floats of one table of candidates' coefficients in torch: what stays near the processor
_BLOCK_ACCELERATOR = 4096
_TOGETHER = 32  # vectors that are rotated at once on a CPU
_ALIGNED = 16  # numbers, at least 64 bytes


@torch.library.custom_op("pqdiff::classify", mutates_args=())
def classify(
    z: torch.Tensor,
    rotations: torch.Tensor,
    log_scales: torch.Tensor,
    log_variances: torch.Tensor,
    codebooks: torch.Tensor,
    candidates: int,
) -> torch.Tensor:
    """Class of every vector, and its tokens relative to that class.

    Args:
        z: vectors `(B, P, N)` fp32.
        rotations: orthonormal bases `(bases, M, P)`; class k has basis k // (K / bases).
        log_scales: logs of the units of every class's coefficients `(K, M)`.
        log_variances: logs of the variances `(K, M + 1)` of each coefficient and of one that is left out, for likelihoods.
        codebooks: codewords of the coefficients in those units `(S - 1, K, D)` with (S - 1) D = M, D after D.
        candidates: number of the likeliest classes that are tried.

    Returns:
        int64 tokens `(B, S, N)`, the class first.
    """
    bases, width, components = rotations.shape if rotations.ndim == 3 else (0, 0, 0)
    classes = len(log_scales)
    fits = z.ndim == codebooks.ndim == 3 and z.shape[1] == components and bases and classes and not classes % bases
    fits = fits and log_scales.shape == (classes, width) and log_variances.shape == (classes, width + 1)
    fits = fits and codebooks.shape[0] * codebooks.shape[2] == width and codebooks.shape[1]
    if not fits or not 1 <= candidates <= classes:
        raise ValueError(
            f"z {tuple(z.shape)}, rotations {tuple(rotations.shape)}, log_scales {tuple(log_scales.shape)}, log_variances "
            f"{tuple(log_variances.shape)}, codebooks {tuple(codebooks.shape)} and {candidates} candidates do not fit"
        )
    check_devices(z, rotations, log_scales, log_variances, codebooks)
    with torch.no_grad(), torch.autocast(z.device.type, enabled=False):
        search = _BlockSearch(rotations, log_scales, log_variances, codebooks, candidates)
        block = search.block if z.device.type == "cpu" else _BLOCK_ACCELERATOR
        batch, components, number = z.shape
        rows = z.detach().float().transpose(1, 2).reshape(batch * number, components)
        tokens = torch.empty((len(codebooks) + 1, batch * number), dtype=torch.int64, device=z.device)
        for start in range(0, batch * number, block):
            part = rows[start : start + block]
            padded = nn.functional.pad(part, (0, 0, 0, block - len(part)))
            tokens[:, start : start + block] = search(padded)[:, : len(part)]
        return tokens.view(len(tokens), batch, number).transpose(0, 1).contiguous()


@classify.register_fake
def _(z, rotations, log_scales, log_variances, codebooks, candidates):
    return z.new_empty((z.shape[0], len(codebooks) + 1, z.shape[2]), dtype=torch.int64)


class ClassLikelihoods:
    """Under which classes vectors are likely, each class a Gaussian in its basis.

    Args:
        rotations: `(bases, M, P)`, fp32.
        log_variances: `(K, M + 1)`.
    """

    def __init__(self, rotations: torch.Tensor, log_variances: torch.Tensor):
        bases, width, components = rotations.shape
        log_variances = log_variances.float()
        self.precisions = (-log_variances).exp().unflatten(0, (bases, -1))  # (bases, K / bases, M + 1)
        left_out = components - width
        self.log_determinants = log_variances[:, :-1].sum(dim=1) + left_out * log_variances[:, -1]  # (K,)

    def likeliest(
        self, rows: torch.Tensor, everywhere: torch.Tensor, number: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Of vectors `(n, P)` with coefficients `(n, bases, M)` in all bases: the likeliest classes `(n, number)`, the
        likeliest first, and the squared length `(n, bases)` of the part that lies outside each basis."""
        squares = everywhere.new_empty(*everywhere.shape[:2], everywhere.shape[2] + 1)
        torch.square(everywhere, out=squares[..., :-1])
        outside = rows.square().sum(dim=1, keepdim=True) - squares[..., :-1].sum(dim=2)
        squares[..., -1] = outside.clamp_min_(0)
        costs = torch.bmm(squares.transpose(0, 1), self.precisions.mT)  # (bases, n, K / bases)
        costs = costs.transpose(0, 1).flatten(1).add_(self.log_determinants)  # (n, K)
        return costs.topk(number, dim=1, largest=False).indices, outside


class _BlockSearch:
    """The search, with everything that does not depend on the vectors."""

    def __init__(self, rotations, log_scales, log_variances, codebooks, candidates):
        self.rotations, self.codebooks, self.candidates = rotations.float(), codebooks.float(), candidates
        self.scales = log_scales.float().exp()  # (K, M)
        self.likelihoods = ClassLikelihoods(self.rotations, log_variances)
        self.native = backend_name(rotations.device) == "native"
        fitting = _NUMBERS // (candidates * self.scales.shape[1])
        self.block = min(_BLOCK, 1 << max(fitting, 1).bit_length() - 1)

    def __call__(self, rows: torch.Tensor) -> torch.Tensor:
        """Tokens `(S, n)` of vectors `(n, P)`. In torch, pairs of a vector and a candidate are rows: a copy of each is one
        block."""
        (bases, width, _), n = self.rotations.shape, len(rows)
        everywhere = (rows @ self.rotations.flatten(0, 1).T).view(n, bases, width)  # coefficients in every basis
        classes, outside = self.likelihoods.likeliest(rows, everywhere, self.candidates)  # (n, c), (n, bases)
        if self.native:
            return search_native.classify(everywhere, outside, classes, self.scales, self.codebooks)
        basis = classes // (len(self.scales) // bases)
        pairs = (basis + torch.arange(n, device=rows.device)[:, None] * bases).flatten()  # (n c,)
        coefficients = everywhere.flatten(0, 1).index_select(0, pairs)  # (n c, M)
        scales = self.scales.index_select(0, classes.flatten())
        relative = (coefficients / scales).unflatten(1, (len(self.codebooks), -1))  # (n c, S - 1, D)
        indices = nearest_codewords(relative.permute(1, 2, 0)[None], self.codebooks)[0]  # (S - 1, n c)
        error = self._chosen(indices).mul_(scales).sub_(coefficients).square_().sum(dim=1)
        error = error.view(n, -1) + outside.gather(1, basis)  # (n, c)
        # Squares of differences, not differences of squares: bases stored in half precision are not quite orthonormal.
        best = error.argmin(dim=1)  # the likelier of equals
        best_pairs = best + torch.arange(n, device=rows.device) * self.candidates
        return torch.cat([classes.flatten()[best_pairs][None], indices.index_select(1, best_pairs)])

    def _chosen(self, indices: torch.Tensor) -> torch.Tensor:
        """Codewords `(n, M)` of indices `(S - 1, n)`."""
        subspaces, size, _ = self.codebooks.shape
        flat = indices.T + torch.arange(subspaces, device=indices.device) * size  # (n, S - 1)
        return self.codebooks.flatten(0, 1).index_select(0, flat.flatten()).view(len(flat), -1)


@torch.library.custom_op("pqdiff::rotate", mutates_args=())
def rotate(z: torch.Tensor, basis: torch.Tensor, rotations: torch.Tensor) -> torch.Tensor:
    """Every vector times the matrix that its number names; differentiable in vectors and matrices.

    Args:
        z: vectors `(B, I, N)` fp32.
        basis: int64 numbers `(B, N)` of matrices.
        rotations: matrices `(bases, O, I)` fp32.

    Returns:
        Vectors `(B, O, N)` fp32.
    """
    _check_numbers(z, basis, len(rotations), rotations.shape[2])
    batch, inputs, number = z.shape
    step = _TOGETHER if z.device.type == "cpu" else _BLOCK_ACCELERATOR
    order, counts = _by_number(basis, len(rotations))
    # Rounding must depend neither on the number of vectors that share a matrix nor on their places: all products have
    # as many rows, all of them begin at a multiple of 64 bytes. Rows behind the last of a matrix are those of the next
    # one, which overwrites their results.
    outputs = rotations.shape[1]
    matrices = nn.functional.pad(rotations, (0, -inputs % _ALIGNED, 0, -outputs % _ALIGNED))
    rows = z.new_zeros(batch * number + step, matrices.shape[2])
    rows[: batch * number, :inputs] = z.transpose(1, 2).reshape(batch * number, inputs).index_select(0, order)
    rotated = z.new_empty(len(rows), matrices.shape[1])
    with torch.autocast(z.device.type, enabled=False):
        stop = 0
        for matrix, count in zip(matrices, counts, strict=True):
            start, stop = stop, stop + count
            for first in range(start, stop, step):
                torch.mm(rows[first : first + step], matrix.T, out=rotated[first : first + step])
    result = z.new_empty(batch * number, outputs).index_copy_(0, order, rotated[: batch * number, :outputs])
    return result.view(batch, number, outputs).transpose(1, 2).contiguous()


@rotate.register_fake
def _(z, basis, rotations):
    return z.new_empty((z.shape[0], rotations.shape[1], z.shape[2]))


@torch.library.custom_op("pqdiff::sum_outer_products", mutates_args=())
def sum_outer_products(upstream: torch.Tensor, z: torch.Tensor, basis: torch.Tensor, bases: int) -> torch.Tensor:
    """For each number in `basis`, the sum of upstream z^T over its vectors: the gradient of the matrices of `rotate`.

    Args:
        upstream: vectors `(B, O, N)` fp32.
        z: vectors `(B, I, N)` fp32.
        basis: int64 numbers `(B, N)`, less than `bases`.

    Returns:
        `(bases, O, I)` fp32.
    """
    _check_numbers(z, basis, bases, z.shape[1])
    order, counts = _by_number(basis, bases)
    rows, upstream = (x.transpose(1, 2).flatten(0, 1).index_select(0, order).split(counts) for x in (z, upstream))
    with torch.autocast(z.device.type, enabled=False):
        return torch.stack([gradient.T @ each for gradient, each in zip(upstream, rows, strict=True)])


@sum_outer_products.register_fake
def _(upstream, z, basis, bases):
    return z.new_empty((bases, upstream.shape[1], z.shape[1]))


def _check_numbers(z: torch.Tensor, basis: torch.Tensor, bases: int, inputs: int) -> None:
    """ValueError unless vectors `(B, I, N)` have numbers `(B, N)` of one of the matrices each."""
    if z.ndim != 3 or z.shape[1] != inputs or basis.shape != (z.shape[0], z.shape[2]):
        raise ValueError(f"z {tuple(z.shape)} must be (B, {inputs}, N) and basis {tuple(basis.shape)} (B, N)")
    if basis.numel() and not 0 <= int(basis.min()) <= int(basis.max()) < bases:
        raise ValueError(
            f"basis must hold numbers from 0 to {bases - 1}, got {int(basis.min())} to {int(basis.max())}"
        )


def _by_number(basis: torch.Tensor, bases: int) -> tuple[torch.Tensor, list[int]]:
    """Flat positions sorted by their numbers, and how many positions each number has."""
    return basis.flatten().argsort(stable=True), torch.bincount(basis.flatten(), minlength=bases).tolist()


def _save_for_backward(ctx, inputs, output) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx, gradient):
    z, basis, rotations = ctx.saved_tensors
    gradient = gradient.contiguous()
    grad_z = rotate(gradient, basis, rotations.transpose(1, 2).contiguous()) if ctx.needs_input_grad[0] else None
    grad_rotations = None
    if ctx.needs_input_grad[2]:
        grad_rotations = sum_outer_products(gradient, z, basis, len(rotations))
    return grad_z, None, grad_rotations


rotate.register_autograd(_backward, setup_context=_save_for_backward)
