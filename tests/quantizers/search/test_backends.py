"""Which search runs, and that all of them give the same codes, statistics and gradients."""

import logging

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pqdiff.quantizers import ProductQuantizer
from pqdiff.quantizers.search import backends
from pqdiff.quantizers.search import compiled as search_compiled
from pqdiff.quantizers.search import native as search_native
from pqdiff.quantizers.search import plain as search_plain
from pqdiff.quantizers.search.backends import backend_name, use_backend
from pqdiff.quantizers.search.nearest import nearest_codewords, quantize_product

CPU = torch.device("cpu")


def need(name):
    reason = backends.why_not(name)
    if reason:
        pytest.skip(f"{name}: {reason}")


@pytest.fixture
def native():
    need("native")
    return search_native


@pytest.fixture
def compiled():
    need("compiled")
    return search_compiled


def test_a_cpu_takes_the_native_search_by_itself(native, monkeypatch):
    monkeypatch.delenv(backends.ENVIRONMENT_VARIABLE, raising=False)
    assert backend_name(CPU) == "native"


@pytest.mark.parametrize("device", ["cuda", "meta"])
def test_other_devices_take_the_plain_search_by_themselves(device, monkeypatch):
    """Also CUDA: Triton must be asked for."""
    monkeypatch.delenv(backends.ENVIRONMENT_VARIABLE, raising=False)
    assert backend_name(torch.device(device)) == "plain"


def test_the_environment_forces_a_backend(monkeypatch):
    monkeypatch.setenv(backends.ENVIRONMENT_VARIABLE, "plain")
    assert backend_name(CPU) == "plain"


def test_the_context_wins_over_the_environment_and_ends(native, monkeypatch):
    monkeypatch.setenv(backends.ENVIRONMENT_VARIABLE, "plain")
    with use_backend("native"):
        assert backend_name(CPU) == "native"
        with use_backend("plain"):
            assert backend_name(CPU) == "plain"
        assert backend_name(CPU) == "native"
    assert backend_name(CPU) == "plain"


def test_unknown_names_are_refused_with_the_known_ones(monkeypatch):
    with pytest.raises(ValueError, match=r"name \('fastest'\) is not a search backend"), use_backend("fastest"):
        pass
    monkeypatch.setenv(backends.ENVIRONMENT_VARIABLE, "fastest")
    with pytest.raises(ValueError, match=r"PQDIFF_SEARCH \('fastest'\).*choose one of .*plain"):
        nearest_codewords(torch.zeros(1, 1, 2, 3), torch.zeros(1, 4, 2))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_code_that_demands_a_missing_backend_is_told(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(RuntimeError, match=r"'triton' cannot be used: (it needs|the package)"), use_backend("triton"):
        pass


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_an_environment_that_demands_a_missing_backend_gets_one_log_line(monkeypatch, caplog):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setenv(backends.ENVIRONMENT_VARIABLE, "triton")
    backends._report.cache_clear()
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            assert backend_name(torch.device("cuda")) == "plain"
    assert len(caplog.records) == 1
    assert "triton" in caplog.text


def test_the_description_shows_what_is_used(native, monkeypatch):
    monkeypatch.delenv(backends.ENVIRONMENT_VARIABLE, raising=False)
    rows = {row["name"]: row for row in backends.describe()}
    assert list(rows) == list(backends.BACKENDS)
    assert rows["plain"] == {"name": "plain", "available": True, "reason": None, "serves": []}
    assert rows["native"]["serves"] == ["cpu"]
    for row in rows.values():
        assert row["available"] == (row["reason"] is None)


def assert_same_statistics(mine, reference):
    """z_q, indices and counts equal; residual sums and squared error to rounding."""
    for i in range(3):
        assert torch.equal(mine[i].isnan(), reference[i].isnan())
        assert torch.equal(mine[i].nan_to_num(), reference[i].nan_to_num())
        assert mine[i].dtype == reference[i].dtype
    for i in (3, 4):
        torch.testing.assert_close(mine[i], reference[i], rtol=1e-4, atol=1e-5, equal_nan=True)


@settings(max_examples=60, deadline=None)
@given(
    batch=st.integers(0, 3),
    subspaces=st.integers(1, 5),
    dim=st.sampled_from([1, 2, 3, 4, 5, 6, 7, 8, 9, 17, 24, 33]),
    size=st.integers(1, 70),
    n=st.integers(0, 90),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16, torch.float64]),
    strided=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_native_and_plain_give_the_same_statistics(batch, subspaces, dim, size, n, dtype, strided, seed):
    need("native")
    torch.manual_seed(seed)
    # Multiples of 1/4: every distance is exact, so ties are ties in every backend.
    z = (torch.randint(-9, 10, (batch, subspaces, dim, n)) / 4).to(dtype)
    if strided:
        z = z.movedim(3, 1).contiguous().movedim(1, 3)
    codebooks = torch.randint(-9, 10, (subspaces, size, dim)) / 4
    assert_same_statistics(search_native.quantize(z, codebooks), search_plain.quantize(z, codebooks))
    assert torch.equal(search_native.nearest(z, codebooks), search_plain.nearest(z, codebooks))


def test_statistics_are_what_they_say(native):
    torch.manual_seed(0)
    z, codebooks = torch.randn(2, 3, 2, 50), torch.randn(3, 20, 2)
    for search in (search_plain, native):
        z_q, indices, counts, residual_sums, squared_error = search.quantize(z, codebooks)
        one_hot = torch.nn.functional.one_hot(indices, 20).double()  # (B, S, N, K)
        assert torch.equal(counts.double(), one_hot.sum((0, 2)))
        chosen = torch.einsum("bsnk,skd->bsdn", one_hot, codebooks.double())
        assert torch.equal(z_q.double(), chosen)
        expected = torch.einsum("bsnk,bsdn->skd", one_hot, z.double() - chosen)
        torch.testing.assert_close(residual_sums.double(), expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(squared_error.double(), (z.double() - chosen).square().sum(), rtol=1e-5, atol=0)


@pytest.mark.parametrize(("subspaces", "dim"), [(1, 2), (3, 2), (16, 2), (1, 32), (3, 32)])
def test_native_statistics_do_not_depend_on_the_number_of_threads(native, subspaces, dim):
    torch.manual_seed(0)
    z, codebooks = torch.randn(2, subspaces, dim, 3000), torch.randn(subspaces, 300, dim)
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            results.append(native.quantize(z, codebooks))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(mine, theirs) for mine, theirs in zip(results[0], other, strict=True))


@pytest.mark.slow
def test_compiled_search_is_exact(compiled):
    torch.manual_seed(0)
    for size, n in ((512, 100), (37, 1500)):
        for mean, std in ((0, 1), (10, 0.1)):
            z, codebooks = mean + std * torch.randn(2, 3, 2, n), mean + std * torch.randn(3, size, 2)
            z[1, 2, 1, 4] = torch.nan
            assert torch.equal(compiled.nearest(z, codebooks), search_plain.nearest(z, codebooks))
    z, codebooks = torch.randint(-3, 4, (2, 3, 2, 300)) / 2, torch.randint(-2, 3, (3, 90, 2)).float()  # many ties
    z[0, 0, 0, 0], z[0, 1, 1, 0], z[0, 2, 0, 0] = torch.nan, torch.inf, 1e18
    assert_same_statistics(compiled.quantize(z, codebooks), search_plain.quantize(z, codebooks))
    assert compiled.why_not() is None


def test_a_compiler_that_fails_leaves_the_plain_search_and_one_log_line(compiled, monkeypatch, caplog):
    def broken(*_):
        raise RuntimeError("no space\nleft")

    monkeypatch.setattr(search_compiled, "_compiled", lambda: broken)
    monkeypatch.setattr(search_compiled, "_fault", None)
    z, codebooks = torch.randn(1, 2, 2, 30), torch.randn(2, 40, 2)
    for _ in range(2):
        assert torch.equal(search_compiled.nearest(z, codebooks), search_plain.nearest(z, codebooks))
    assert [record.getMessage().count("no space left") for record in caplog.records] == [1]
    assert "no space left" in search_compiled.why_not()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dim", [1, 2, 16])
def test_gradients_are_equal_in_every_backend(native, dtype, dim):
    torch.manual_seed(0)
    quantizer = ProductQuantizer(4 * dim, 4, 24)
    z, upstream = torch.randn(2, 4 * dim, 5, 7).to(dtype), torch.randn(2, 4 * dim, 5, 7).to(dtype)
    gradients = []
    for name in ("plain", "native"):
        leaf = z.clone().requires_grad_()
        quantizer.zero_grad()
        with use_backend(name):
            output = quantizer(leaf)
        (output.codes.float() * upstream.float()).sum().add(3 * output.loss).backward()
        gradients.append((output.loss.detach(), leaf.grad, quantizer.codebooks.grad.clone()))
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["plain", "native"])
@pytest.mark.parametrize("channels_last", [False, True])
def test_the_operator_keeps_the_rules_of_torch(name, channels_last):
    need(name)
    torch.manual_seed(0)
    z, codebooks = torch.randn(2, 3, 2, 5), torch.randn(3, 7, 2, requires_grad=True)
    if channels_last:  # (B, N, S, D) in memory
        z = torch.randn(2, 5, 3, 2).permute(0, 2, 3, 1)
    z.requires_grad_()
    with use_backend(name):
        torch.library.opcheck(quantize_product, (z, codebooks, 1.0, 0.25))
        torch.library.opcheck(nearest_codewords, (z.detach(), codebooks.detach()))


def test_statistics_carry_no_gradient():
    z, codebooks = torch.randn(1, 2, 2, 5, requires_grad=True), torch.randn(2, 7, 2, requires_grad=True)
    z_q, loss, indices, counts, residual_sums = quantize_product(z, codebooks, 1.0, 0.25)
    assert z_q.requires_grad
    assert loss.requires_grad
    assert not any(tensor.requires_grad for tensor in (indices, counts, residual_sums))


def test_overwriting_the_output_does_not_spoil_the_gradient():
    torch.manual_seed(0)
    z, codebooks = torch.randn(1, 2, 2, 5, requires_grad=True), torch.randn(2, 7, 2)
    expected = torch.autograd.grad(quantize_product(z, codebooks, 1.0, 0.25)[1], z)[0]
    z_q, loss, *_ = quantize_product(z, codebooks, 1.0, 0.25)
    z_q.mul_(2)
    assert torch.equal(torch.autograd.grad(loss, z)[0], expected)


def test_training_works_under_deterministic_algorithms(native):
    quantizer, z = ProductQuantizer(4, 2, 8), torch.randn(2, 4, 3, 3)
    torch.use_deterministic_algorithms(True)
    try:
        for name in ("plain", "native"):
            with use_backend(name):
                quantizer(z).loss.backward()
    finally:
        torch.use_deterministic_algorithms(False)
    assert quantizer.codebooks.grad.isfinite().all()


@pytest.mark.parametrize("shape", [(0, 4, 3, 3), (2, 4, 0, 3)])
def test_an_empty_batch_passes_with_no_loss(shape):
    z = torch.randn(shape, requires_grad=True)
    output = ProductQuantizer(4, 2, 8)(z)
    output.loss.backward()
    assert output.codes.shape == z.grad.shape == shape
    assert output.loss == 0
