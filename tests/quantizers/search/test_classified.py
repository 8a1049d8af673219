"""Search for classified product quantizers, against densities of torch and a search of one vector and class at a time."""

import pytest
import torch

from pqdiff.quantizers.search import backends
from pqdiff.quantizers.search import native as search_native
from pqdiff.quantizers.search.classified import ClassLikelihoods, classify, rotate, sum_outer_products

CLASSES, BASES, COMPONENTS, SUBSPACES, CODEWORDS, DIM = 6, 3, 10, 2, 16, 4
WIDTH = SUBSPACES * DIM  # coefficients in a basis; the other components are left out


def tables(seed: int = 0) -> tuple[torch.Tensor, ...]:
    """Rotations, log scales, log variances, codebooks."""
    generator = torch.Generator().manual_seed(seed)
    rotations = torch.linalg.qr(torch.randn(BASES, COMPONENTS, WIDTH, generator=generator)).Q.mT.contiguous()
    log_scales = 0.7 * torch.randn(CLASSES, WIDTH, generator=generator)
    log_variances = torch.randn(CLASSES, WIDTH + 1, generator=generator)
    return rotations, log_scales, log_variances, torch.randn(SUBSPACES, CODEWORDS, DIM, generator=generator)


def vectors(batch: int, number: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(batch, COMPONENTS, number, generator=torch.Generator().manual_seed(seed))


def log_densities(rows: torch.Tensor, rotations: torch.Tensor, log_variances: torch.Tensor) -> torch.Tensor:
    """Log-density `(K, N)` in double precision of rows `(N, P)` under the Gaussian of every class."""
    result = []
    for k in range(CLASSES):
        rotation, variances = rotations[k // (CLASSES // BASES)].double(), log_variances[k].double().exp()
        inside = rotation.T @ torch.diag(variances[:-1]) @ rotation
        outside = variances[-1] * (torch.eye(COMPONENTS).double() - rotation.T @ rotation)
        normal = torch.distributions.MultivariateNormal(torch.zeros(COMPONENTS).double(), inside + outside)
        result.append(normal.log_prob(rows.double()))
    return torch.stack(result)


def tokens_one_by_one(z: torch.Tensor, candidates: int) -> torch.Tensor:
    """Tokens `(B, S, N)`: every class codes every vector in double precision, and the best of the likeliest is taken."""
    rotations, log_scales, log_variances, codebooks = tables()
    result = torch.empty(len(z), SUBSPACES + 1, z.shape[2], dtype=torch.int64)
    for b in range(len(z)):
        likeliest = log_densities(z[b].T, rotations, log_variances).topk(candidates, dim=0).indices
        for n in range(z.shape[2]):
            x, best = z[b, :, n].double(), torch.inf
            for k in likeliest[:, n].tolist():
                rotation, scales = rotations[k // (CLASSES // BASES)].double(), log_scales[k].double().exp()
                relative = (rotation @ x / scales).unflatten(0, (SUBSPACES, DIM))
                nearest = [int((codebooks[s] - relative[s]).square().sum(1).argmin()) for s in range(SUBSPACES)]
                decoded = torch.cat([codebooks[s, i].double() for s, i in enumerate(nearest)])
                error = float((rotation.T @ (decoded * scales) - x).square().sum())
                if error < best:
                    best, result[b, :, n] = error, torch.tensor([k, *nearest])
    return result


def test_likeliest_classes_are_those_of_the_gaussian_density():
    rotations, _, log_variances, _ = tables()
    rows = vectors(1, 200)[0].T
    everywhere = torch.einsum("bmp,np->nbm", rotations, rows)
    found, outside = ClassLikelihoods(rotations, log_variances).likeliest(rows, everywhere, 3)
    assert torch.equal(found.T, log_densities(rows, rotations, log_variances).topk(3, dim=0).indices)
    inside = torch.einsum("bmp,nbm->nbp", rotations, everywhere)
    torch.testing.assert_close(outside, (rows[:, None] - inside).square().sum(dim=2), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("candidates", [1, 2, CLASSES])
def test_the_candidate_that_reconstructs_best_is_taken(candidates):
    z = vectors(2, 40)
    found = classify(z, *tables(), candidates)
    assert found.dtype == torch.int64
    assert torch.equal(found, tokens_one_by_one(z, candidates))
    assert len(found[:, 0].unique()) > 2


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("dim", [1, 2, 3, 8, 11])
@pytest.mark.parametrize("candidates", [1, 5, 150])
def test_the_native_search_takes_the_same_candidates_as_the_plain_one(candidates, dim, threads, monkeypatch):
    if backends.why_not("native"):
        pytest.skip(backends.why_not("native"))
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)  # of the native search alone
    monkeypatch.setattr(search_native, "_WORK_PER_THREAD", 1)
    torch.manual_seed(0)
    subspaces, classes, codewords, number = 5, 160, 37, 70
    rotations = torch.linalg.qr(torch.randn(4, 64, subspaces * dim)).Q.mT.contiguous()
    log_scales = 0.5 * torch.randn(classes, subspaces * dim)
    log_variances = torch.randn(classes, subspaces * dim + 1)
    arguments = rotations, log_scales, log_variances, torch.randn(subspaces, codewords, dim), candidates
    z = torch.randn(2, 64, number)
    z[0, 3, 5] = torch.nan
    found = {}
    for name in ("native", "plain"):
        with backends.use_backend(name):
            found[name] = classify(z, *arguments)
    clean = ~z.isnan().any(dim=1)[:, None].expand_as(found["plain"])
    assert torch.equal(found["native"][clean], found["plain"][clean])
    assert 0 <= found["native"][0, 0, 5] < classes
    assert ((found["native"][0, 1:, 5] >= 0) & (found["native"][0, 1:, 5] < codewords)).all()


def test_tokens_depend_neither_on_the_batch_nor_on_the_position_nor_on_the_number_of_vectors():
    """300 vectors are two blocks, of which the second is padded."""
    z = vectors(1, 300)
    expected = classify(z, *tables(), 3)
    order = torch.randperm(300, generator=torch.Generator().manual_seed(0))
    assert torch.equal(classify(z[:, :, order], *tables(), 3), expected[:, :, order])
    as_batch = z.unflatten(2, (3, 100))[0].movedim(1, 0)  # (3, P, 100), not contiguous
    assert torch.equal(classify(as_batch, *tables(), 3), expected[0].unflatten(1, (3, 100)).movedim(1, 0))
    for start, stop in ((0, 1), (299, 300), (17, 30), (0, 256), (20, 277)):
        assert torch.equal(classify(z[:, :, start:stop], *tables(), 3), expected[:, :, start:stop])


def test_no_vectors_give_no_tokens():
    z, basis = vectors(2, 0), torch.zeros(2, 0, dtype=torch.int64)
    assert classify(z, *tables(), 3).shape == (2, SUBSPACES + 1, 0)
    assert rotate(z, basis, tables()[0]).shape == (2, WIDTH, 0)


def test_a_vector_with_nan_gets_tokens_that_exist_and_disturbs_no_other():
    z = vectors(1, 30)
    expected = classify(z, *tables(), 3)
    z[0, 4, 7] = torch.nan
    z[0, :, 20] = torch.nan
    found = classify(z, *tables(), 3)
    clean = ~z.isnan().any(dim=1)[0]
    assert torch.equal(found[..., clean], expected[..., clean])
    assert ((found[:, 0] >= 0) & (found[:, 0] < CLASSES)).all()
    assert ((found[:, 1:] >= 0) & (found[:, 1:] < CODEWORDS)).all()


def test_autocast_changes_neither_tokens_nor_rotated_vectors():
    z, basis = vectors(1, 50), torch.arange(50)[None] % BASES
    expected = classify(z, *tables(), 3), rotate(z, basis, tables()[0])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = classify(z, *tables(), 3), rotate(z, basis, tables()[0])
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(found, expected, strict=True))


def rotation_problem(batch: int = 2, number: int = 5) -> tuple[torch.Tensor, ...]:
    """Vectors, their bases (never the last) and matrices, in double precision."""
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(batch, 4, number, generator=generator, dtype=torch.float64)
    basis = torch.randint(BASES - 1, (batch, number), generator=generator)
    return z, basis, torch.randn(BASES, 3, 4, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("batch", [1, 2])
def test_every_vector_is_multiplied_by_its_own_matrix(batch):
    z, basis, rotations = rotation_problem(batch)
    found = rotate(z, basis, rotations)
    assert found.is_contiguous()
    for b in range(batch):
        for n in range(5):
            torch.testing.assert_close(found[b, :, n], rotations[basis[b, n]] @ z[b, :, n])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("inputs", "outputs"), [(5, 8), (10, 3), (27, 31), (75, 75), (32, 16), (147, 10)])
@pytest.mark.parametrize("transposed", [False, True])
def test_a_rotated_vector_depends_on_no_other(inputs, outputs, transposed, dtype):
    torch.manual_seed(0)
    z, basis = torch.randn(2, inputs, 90, dtype=dtype), torch.randint(6, (2, 90))
    rotations = (
        torch.randn(6, inputs, outputs, dtype=dtype).mT if transposed else torch.randn(6, outputs, inputs, dtype=dtype)
    )
    expected = rotate(z, basis, rotations)
    order = torch.randperm(90)
    assert torch.equal(rotate(z[:, :, order], basis[:, order], rotations), expected[:, :, order])
    for n in (0, 41, 89):
        assert torch.equal(rotate(z[:1, :, n : n + 1], basis[:1, n : n + 1], rotations), expected[:1, :, n : n + 1])


def test_a_vector_with_nan_disturbs_no_other_when_it_is_rotated():
    z, basis, rotations = rotation_problem()
    expected = rotate(z, basis, rotations)
    z[1, 2, 3] = torch.nan
    found = rotate(z, basis, rotations)
    assert found[1, :, 3].isnan().all()
    found[1, :, 3] = expected[1, :, 3]
    assert torch.equal(found, expected)


def test_gradients_of_rotate_are_those_of_finite_differences():
    z, basis, rotations = rotation_problem()
    inputs = z.requires_grad_(), rotations.requires_grad_()
    assert torch.autograd.gradcheck(lambda z, rotations: rotate(z, basis, rotations), inputs)


def test_gradients_of_rotate_are_those_of_masked_products():
    """In fp32, for a gradient that is not contiguous, and for each input alone."""
    z, basis, rotations = (x.float() if x.is_floating_point() else x for x in rotation_problem())
    upstream = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(1)).transpose(1, 2)
    masks = torch.nn.functional.one_hot(basis, BASES).float()  # (B, N, bases)
    inputs = z.clone().requires_grad_(), rotations.clone().requires_grad_()
    expected = torch.autograd.grad(torch.einsum("koi,bin,bnk->bon", inputs[1], inputs[0], masks), inputs, upstream)
    found = torch.autograd.grad(rotate(inputs[0], basis, inputs[1]), inputs, upstream)
    torch.testing.assert_close(found, expected)
    assert (found[1][-1] == 0).all()  # no vector has the last basis
    alone = torch.autograd.grad(rotate(inputs[0], basis, rotations), inputs[0], upstream)[0]
    torch.testing.assert_close(alone, expected[0])
    alone = torch.autograd.grad(rotate(z, basis, inputs[1]), inputs[1], upstream)[0]
    torch.testing.assert_close(alone, expected[1])


def test_outer_products_are_summed_over_the_vectors_of_each_basis():
    z, basis, _ = rotation_problem(number=20)
    upstream = torch.randn(2, 3, 20, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    masks = torch.nn.functional.one_hot(basis, BASES).double()
    found = sum_outer_products(upstream, z, basis, BASES)
    torch.testing.assert_close(found, torch.einsum("bon,bin,bnk->koi", upstream, z, masks))
    assert (found[-1] == 0).all()


def test_operators_are_well_formed_for_compilers():
    z, basis, rotations = (x.float() if x.is_floating_point() else x for x in rotation_problem())
    torch.library.opcheck(classify, (vectors(2, 5), *tables(), 3))
    torch.library.opcheck(rotate, (z.requires_grad_(), basis, rotations.requires_grad_()))
    torch.library.opcheck(sum_outer_products, (torch.randn(2, 3, 5), z.detach(), basis, BASES))


def test_bases_rounded_to_half_precision_do_not_hide_which_candidate_reconstructs_best():
    # Rounded bases are not quite orthonormal: differences of squares are then off by more than fine codes differ.
    rotations, log_scales, log_variances, codebooks = tables()
    rotations, z = rotations.half().float(), vectors(1, 200)
    codebooks = torch.cat([codebooks, 0.01 * codebooks], dim=1)
    log_scales = 0.2 * log_scales - 3
    found = classify(z, rotations, log_scales, log_variances, codebooks, CLASSES)[0]  # (S, N)
    errors = []
    for k in range(CLASSES):
        basis, scales = rotations[k // (CLASSES // BASES)].double(), log_scales[k].double().exp()[:, None]
        relative = (basis @ z[0].double() / scales).unflatten(0, (SUBSPACES, DIM))
        tokens = torch.cdist(relative.mT, codebooks.double()).argmin(dim=2)  # (S - 1, N)
        decoded = torch.stack([codebooks[s, tokens[s]].double() for s in range(SUBSPACES)]).mT.flatten(0, 1)
        errors.append((basis.T @ (decoded * scales) - z[0]).square().sum(dim=0))
    errors = torch.stack(errors)  # (K, N)
    assert torch.allclose(errors.gather(0, found[:1])[0], errors.min(dim=0).values, rtol=1e-3)


def test_codebooks_without_codewords_are_refused():
    z, (rotations, log_scales, log_variances, codebooks) = vectors(1, 4), tables()
    with pytest.raises(ValueError, match="do not fit"):
        classify(z, rotations, log_scales, log_variances, codebooks[:, :0], 2)


def test_an_error_that_is_no_number_is_treated_alike_by_both_searches():
    if backends.why_not("native"):
        pytest.skip(backends.why_not("native"))
    z, (rotations, log_scales, log_variances, codebooks) = vectors(1, 60), tables()
    log_scales[2:4], codebooks[:, ::2] = 100, 0  # infinite times 0
    found = {}
    for name in ("native", "plain"):
        with backends.use_backend(name):
            found[name] = classify(z, rotations, log_scales, log_variances, codebooks, CLASSES)
    assert torch.equal(found["native"][:, 0], found["plain"][:, 0])


@pytest.mark.parametrize("place", range(6))
def test_shapes_that_do_not_fit_are_refused_before_anything_is_computed(place):
    arguments = [vectors(1, 4), *tables(), 2]
    good = classify(*arguments)
    assert good.shape == (1, SUBSPACES + 1, 4)
    cut = {0: lambda x: x[:, :-1], 5: lambda x: CLASSES + 1}
    arguments[place] = cut.get(place, lambda x: x[..., :-1])(arguments[place])
    with pytest.raises(ValueError, match="do not fit"):
        classify(*arguments)


@pytest.mark.parametrize("numbers", [[[0, BASES]], [[-1, 0]], [[0, 0, 0]]])
def test_numbers_of_matrices_that_do_not_exist_are_refused(numbers):
    z, basis = vectors(1, 2), torch.tensor(numbers)
    with pytest.raises(ValueError, match="basis"):
        rotate(z, basis, tables()[0])
    with pytest.raises(ValueError, match="basis"):
        sum_outer_products(torch.randn(1, WIDTH, 2), z, basis, BASES)
