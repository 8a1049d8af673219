"""The search is exact: compared with brute force in float64."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.memory import peak_tensor_bytes
from pqdiff.quantizers.search import backends
from pqdiff.quantizers.search import native as search_native
from pqdiff.quantizers.search import plain as search_plain
from pqdiff.quantizers.search.nearest import check_devices, nearest_codewords, quantize_product

MANY = 1100  # vectors with which the native search takes its filter


@pytest.fixture(params=["plain", "native"], autouse=True, scope="module")
def backend(request):
    """Every promise of this file holds for each backend that a CPU has; the compiled one is in test_backends.py."""
    reason = backends.why_not(request.param)
    if reason:
        pytest.skip(reason)
    with backends.use_backend(request.param):
        yield request.param


def brute_force(z: torch.Tensor, codebooks: torch.Tensor) -> torch.Tensor:
    """Squared distances (B, S, N, K) in float64."""
    difference = z.double().movedim(2, 3)[..., None, :] - codebooks.double()[None, :, None]
    return difference.square().sum(-1)


def assert_nearest(z: torch.Tensor, codebooks: torch.Tensor) -> None:
    """The chosen codeword is at most 1e-6, relatively, farther than the nearest."""
    indices = nearest_codewords(z, codebooks)
    distances = brute_force(z, codebooks)
    assert indices.shape == (z.shape[0], z.shape[1], z.shape[3])
    assert indices.dtype == torch.int64
    chosen = distances.gather(3, indices[..., None])[..., 0]
    assert ((chosen - distances.amin(3)) <= 1e-6 * distances.amin(3)).all()


DATA = {
    "normal": lambda *shape: torch.randn(*shape),
    "off-center": lambda *shape: 10 + 0.1 * torch.randn(*shape),
    "far off-center": lambda *shape: 100 + 0.1 * torch.randn(*shape),
}
SHAPES = [  # S, D, K, N
    (64, 2, 512, 200),
    (4, 2, 100, 1500),
    (8, 1, 128, 300),
    (3, 3, 65, 70),
    (2, 4, 256, 300),
    (2, 8, 16, 50),
    (2, 15, 40, 50),
    (2, 16, 40, 50),
    (1, 256, 1000, 60),
    (2, 24, 1500, 70),
    (1, 31, 70, 3),
    (1, 1300, 250, 70),  # longer than what is kept of a tile
    (2, 2, 1, 5),
    (2, 40, 1, 5),
]


@pytest.mark.parametrize("data", DATA)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_finds_the_nearest_codeword(shape, data):
    torch.manual_seed(0)
    subspaces, dim, size, n = shape
    assert_nearest(DATA[data](2, subspaces, dim, n), DATA[data](subspaces, size, dim))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("data", DATA)
def test_half_precision_input_is_searched_in_fp32(dtype, data):
    torch.manual_seed(0)
    z, codebooks = DATA[data](1, 4, 2, 500).to(dtype), DATA[data](4, 512, 2)
    assert_nearest(z, codebooks)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast_changes_nothing(dtype):
    torch.manual_seed(0)
    z, codebooks = torch.randn(1, 8, 2, 500), torch.randn(8, 512, 2)
    expected = nearest_codewords(z, codebooks)
    with torch.autocast("cpu", dtype=dtype):
        assert torch.equal(nearest_codewords(z, codebooks), expected)


@pytest.mark.parametrize("dim", [2, 32])
def test_reduced_matmul_precision_changes_nothing_and_is_restored(dim):
    torch.manual_seed(0)
    z, codebooks = torch.randn(1, 2, dim, 500), torch.randn(2, 512, dim)
    torch.set_float32_matmul_precision("medium")
    try:
        assert_nearest(z, codebooks)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")


@pytest.mark.parametrize("dim", [2, 32])
def test_precision_chosen_by_the_newer_settings_changes_nothing_and_is_restored(dim):
    torch.manual_seed(0)
    z, codebooks = torch.randn(1, 2, dim, 500), torch.randn(2, 512, dim)
    matmul = torch.backends.mkldnn.matmul
    before = matmul.fp32_precision
    matmul.fp32_precision = "bf16"
    try:
        assert_nearest(z, codebooks)
        assert matmul.fp32_precision == "bf16"
    finally:
        matmul.fp32_precision = before


@pytest.mark.parametrize(
    "shape", [(4, 1, 128, 300), (4, 2, 512, MANY), (4, 3, 70, 100), (3, 3, 256, MANY), (2, 16, 100, 100)], ids=str
)
def test_ties_go_to_the_lowest_index(shape):
    torch.manual_seed(0)
    subspaces, dim, size, n = shape
    z = torch.randint(-3, 4, (2, subspaces, dim, n)).float() / 2
    codebooks = torch.randint(-2, 3, (subspaces, size, dim)).float()  # full of duplicates and equidistant codewords
    assert torch.equal(nearest_codewords(z, codebooks), brute_force(z, codebooks).argmin(3))


@pytest.mark.parametrize("number", [40, MANY])
@pytest.mark.parametrize("dim", [1, 2, 32])
def test_nan_gives_index_zero_and_leaves_the_others_alone(dim, number):
    torch.manual_seed(0)
    z, codebooks = torch.randn(1, 2, dim, number), torch.randn(2, 64, dim)
    expected = nearest_codewords(z, codebooks)
    z[0, 1, 0, 7] = torch.nan
    expected[0, 1, 7] = 0
    assert torch.equal(nearest_codewords(z, codebooks), expected)


@pytest.mark.parametrize("number", [3, MANY])
@pytest.mark.parametrize("dim", [1, 2, 32])
@pytest.mark.parametrize("value", [torch.inf, -torch.inf])
def test_a_vector_infinitely_far_from_all_codewords_gives_index_zero(dim, value, number):
    z = torch.randn(1, 2, dim, number)
    z[:, :, -1] = value
    assert (nearest_codewords(z, torch.randn(2, 60, dim)) == 0).all()


@pytest.mark.parametrize("dim", [1, 2, 32])
@pytest.mark.parametrize("value", [1e18, -1e18, 1e30])
def test_huge_input_gives_valid_indices(dim, value):
    indices = nearest_codewords(torch.full((1, 2, dim, 3), value), torch.randn(2, 60, dim))
    assert ((indices >= 0) & (indices < 60)).all()


@pytest.mark.parametrize("shape", [(0, 2, 3, 5), (2, 2, 3, 0)])
def test_nothing_to_search_gives_no_indices(shape):
    indices = nearest_codewords(torch.randn(shape), torch.randn(2, 7, 3))
    assert indices.shape == (shape[0], shape[1], shape[3])


@pytest.mark.parametrize("dim", [1, 2, 3, 5, 8, 9, 40])
@pytest.mark.parametrize(("mean", "std"), [(10, 0.1), (0, 1)])
def test_not_one_code_is_wrong(dim, mean, std):
    torch.manual_seed(0)
    subspaces, number = (8, 400) if dim > 8 else (4, MANY)
    z, codebooks = mean + std * torch.randn(1, subspaces, dim, number), mean + std * torch.randn(subspaces, 301, dim)
    assert torch.equal(nearest_codewords(z, codebooks), brute_force(z, codebooks).argmin(3))


def _clusters(size, dim):
    return 5 * torch.randn(8, dim)[torch.arange(size) % 8] + 0.05 * torch.randn(size, dim)


def _outliers(size, dim):
    return torch.randn(size, dim) * torch.where(torch.arange(size) % 50 == 7, 300.0, 1.0)[:, None]


HARD_CODEBOOKS = {
    "clusters": _clusters,
    "a few long ones": _outliers,
    "one heavy dimension": lambda size, dim: torch.randn(size, dim) * torch.tensor([500.0] + [1.0] * (dim - 1)),
    "tiny": lambda size, dim: 1e-12 * torch.randn(size, dim),
    "huge": lambda size, dim: 1e15 * torch.randn(size, dim),
    "tiny beside an outlier": lambda size, dim: (
        torch.randn(size, dim) * torch.where(torch.arange(size) == 9, 1e4, 1e-4)[:, None]
    ),
    "all equal but one": lambda size, dim: torch.ones(size, dim) + (torch.arange(size) == size // 2)[:, None],
    "begin of VQGAN": lambda size, dim: (torch.rand(size, dim) * 2 - 1) / size,
}


@pytest.mark.parametrize("near", [False, True])
@pytest.mark.parametrize("dim", [2, 3, 5, 8, 40])
@pytest.mark.parametrize("name", HARD_CODEBOOKS)
def test_codebooks_on_which_bounds_are_loose_are_searched_exactly(name, dim, near):
    torch.manual_seed(0)
    codewords = HARD_CODEBOOKS[name](1100, dim)
    number = 70 if dim == 40 else MANY
    z = torch.randn(number, dim) * codewords.std()
    if near:
        z = codewords[torch.randint(1100, (number,))] + 0.01 * z
    assert_nearest(z.T[None, None], codewords[None])


@pytest.mark.parametrize("dim", range(2, 9))
def test_the_filter_changes_no_index_between_two_codewords(dim, backend):
    """Vectors in the middle of two codewords and a few roundings beside it, where a bound that is too small shows."""
    if backend != "native":
        pytest.skip("only the native search has a filter")
    torch.manual_seed(0)
    for mean, std in ((0.0, 1.0), (3.0, 1e-3), (0.0, 1e-12)):
        codewords = mean + std * torch.randn(512, dim)
        codewords[100:200] = codewords[300:400]  # equal ones, in other runs
        pairs = torch.cdist(codewords, codewords).fill_diagonal_(torch.inf).topk(4, largest=False).indices
        middles = (codewords[:, None] + codewords[pairs]).flatten(0, 1) / 2  # (2048, D)
        z = middles * (1 + torch.randint(-3, 4, middles.shape) * 2.0**-23)
        filtered = nearest_codewords(z.T[None, None], codewords[None])[0, 0]
        parts = [nearest_codewords(part.T[None, None], codewords[None])[0, 0] for part in z.split(100)]
        assert torch.equal(filtered, torch.cat(parts))


def test_equal_codewords_in_many_dimensions_give_the_lowest_index_in_every_part_of_the_codebook():
    torch.manual_seed(0)
    few = torch.randint(-3, 4, (40, 300)).float()
    codewords = few[torch.randint(40, (2500,))]  # more than are searched at once
    z = (few + torch.randint(-1, 2, few.shape) / 4).T[None, None]
    expected = brute_force(z, codewords[None]).argmin(3)
    assert torch.equal(nearest_codewords(z, codewords[None]), expected)


def test_memory_of_the_native_search_does_not_grow_with_a_codebook_of_many_dimensions(backend):
    if backend != "native":
        pytest.skip("the plain search is measured above")
    z = torch.randn(1, 1, 256, 64)
    few, many = (search_native.scratch_bytes(z, torch.empty(1, size, 256)) for size in (2048, 65536))
    if few > 2048 * 256:
        pytest.skip("this CPU has no AVX2: the codebook is taken once more")
    assert few == many


def test_the_native_search_has_a_filter_for_as_many_vectors_as_are_tested_here(backend):
    if backend != "native":
        pytest.skip("only the native search has a filter")
    few, many = (
        search_native.scratch_bytes(torch.empty(1, 1, 2, number), torch.empty(1, 64, 2)) for number in (9, MANY)
    )
    assert many >= few + 4 * 64 * 3  # values of the filter


def test_a_strided_view_gives_the_same_indices():
    torch.manual_seed(0)
    z, codebooks = torch.randn(2, 30, 2, 8).transpose(1, 3), torch.randn(8, 64, 2)  # (2, 8, 2, 30)
    assert torch.equal(nearest_codewords(z, codebooks), nearest_codewords(z.contiguous(), codebooks))


def test_tiles_smaller_than_the_codebook_agree_with_brute_force(monkeypatch, backend):
    if backend != "plain":
        pytest.skip("only the plain search has tiles")
    monkeypatch.setitem(search_plain._SCRATCH_FLOATS, "cpu", 4096)
    torch.manual_seed(0)
    for subspaces, dim, size, n in ((3, 2, 512, 300), (2, 4, 300, 40), (1, 64, 100, 30), (3, 1, 64, 500)):
        assert_nearest(torch.randn(1, subspaces, dim, n), torch.randn(subspaces, size, dim))


@pytest.mark.parametrize(
    "shape",
    [(16, 2, 512, 2304), (64, 2, 512, 16), (64, 2, 128, 2304), (64, 1, 128, 2304), (2, 64, 1000, 500)],
    ids=str,
)
def test_scratch_memory_is_at_most_a_megabyte_beside_the_output(shape, backend):
    if backend != "plain":
        pytest.skip(
            "the profiler sees only memory of torch; native takes tables of the codebooks and a block a thread"
        )
    subspaces, dim, size, n = shape
    z, codebooks = torch.randn(1, subspaces, dim, n), torch.randn(subspaces, size, dim)
    nearest_codewords(z, codebooks)
    peak = peak_tensor_bytes(lambda: nearest_codewords(z, codebooks))
    assert peak > 8 * subspaces * n  # the profiler saw the output itself
    assert peak - 8 * subspaces * n <= 4 * 2**18


@settings(max_examples=60, deadline=None)
@given(
    batch=st.integers(1, 3),
    subspaces=st.integers(1, 9),
    dim=st.sampled_from([1, 2, 3, 4, 7, 16, 20, 24, 45]),
    size=st.integers(1, 200),
    n=st.integers(1, 90) | st.just(MANY),
    mean=st.sampled_from([0.0, 1.0, 10.0]),
    std=st.sampled_from([0.1, 1.0, 30.0]),
    seed=st.integers(0, 2**16),
)
def test_any_shape_and_scale_is_exact(batch, subspaces, dim, size, n, mean, std, seed):
    torch.manual_seed(seed)
    z, codebooks = (mean + std * torch.randn(*s) for s in ((batch, subspaces, dim, n), (subspaces, size, dim)))
    assert_nearest(z, codebooks)


@pytest.mark.parametrize(
    ("z", "codebooks"),
    [((1, 64, 2, 10), (2, 8, 2)), ((1, 2, 3, 10), (2, 8, 2)), ((1, 2, 2), (2, 8, 2)), ((1, 2, 2, 10), (2, 0, 2))],
)
def test_shapes_that_do_not_fit_are_refused_before_memory_is_read(z, codebooks):
    with pytest.raises(ValueError, match="codebooks"):
        nearest_codewords(torch.randn(z), torch.randn(codebooks))
    with pytest.raises(ValueError, match="codebooks"):
        quantize_product(torch.randn(z), torch.randn(codebooks), 1.0, 0.25)


def test_tables_on_another_device_are_refused():
    with pytest.raises(ValueError, match="z is on cpu, codewords or tables are on meta: move both to one device"):
        check_devices(torch.empty(1), torch.empty(1), torch.empty(1, device="meta"))
