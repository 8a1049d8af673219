"""The fused GPU search is exact and its statistics are right; on a CPU in Triton's interpreter."""

import importlib.util
import os
import re
import subprocess
import sys

import pytest
import torch
from torch._subclasses import FakeTensorMode

from pqdiff.quantizers.search import triton_search as search_triton
from tests.processes import HANGS

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
INTERPRETED = search_triton.is_interpreted()
runs_here = pytest.mark.skipif(
    search_triton.why_not() is not None, reason="needs Triton and a CUDA device, or TRITON_INTERPRET=1"
)
on_gpu = pytest.mark.skipif(
    INTERPRETED or DEVICE == "cpu" or search_triton.why_not() is not None, reason="needs Triton and a CUDA device"
)

SHAPES = [  # B, S, D, K, N
    (2, 2, 2, 20, 70),
    (1, 1, 2, 128, 64),
    (3, 2, 1, 33, 9),
    (1, 1, 3, 1, 5),
    (1, 2, 7, 17, 30),
    (2, 2, 8, 70, 40),
    (1, 1, 20, 33, 65),
    (1, 2, 40, 1, 3),
]
DATA = {"normal": (0, 1), "off-center": (10, 0.1), "far off-center": (100, 0.1)}


def random(*shape: int, mean: float = 0, std: float = 1, seed: int = 0) -> torch.Tensor:
    return (mean + std * torch.randn(shape, generator=torch.Generator().manual_seed(seed))).to(DEVICE)


def inputs(shape: tuple[int, ...], **distribution) -> tuple[torch.Tensor, torch.Tensor]:
    """z (B, S, D, N) and codebooks (S, K, D)."""
    batch, subspaces, dim, size, n = shape
    return random(batch, subspaces, dim, n, **distribution), random(subspaces, size, dim, seed=1, **distribution)


def brute_force(z: torch.Tensor, codebooks: torch.Tensor) -> torch.Tensor:
    """Squared distances (B, S, N, K) in float64."""
    difference = z.double().movedim(2, 3)[..., None, :] - codebooks.double()[None, :, None]
    return difference.square().sum(-1)


def assert_nearest(z: torch.Tensor, codebooks: torch.Tensor, indices: torch.Tensor) -> None:
    """The chosen codeword is at most 1e-6, relatively, farther than the nearest."""
    distances = brute_force(z, codebooks)
    chosen = distances.gather(3, indices.long()[..., None])[..., 0]
    assert ((chosen - distances.amin(3)) <= 1e-6 * distances.amin(3)).all()


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs Triton")
@pytest.mark.skipif(INTERPRETED, reason="this is the interpreted run")
def test_the_interpreter_passes_the_tests_of_this_file():
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "no:xdist", __file__]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=HANGS)
    assert run.returncode == 0, run.stdout[-5000:] + run.stderr[-2000:]
    assert int(re.search(r"(\d+) passed", run.stdout)[1]) > 40  # a run that skips everything would pass as well


@runs_here
@pytest.mark.parametrize("data", DATA)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_nearest_finds_the_nearest_codeword(shape, data):
    mean, std = DATA[data]
    z, codebooks = inputs(shape, mean=mean, std=std)
    indices = search_triton.nearest(z, codebooks)
    assert indices.dtype == torch.int64
    assert_nearest(z, codebooks, indices)


@runs_here
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("dim", [2, 8])
def test_any_floating_input_is_searched_in_fp32(dtype, dim):
    z, codebooks = inputs((1, 1, dim, 50, 70))
    z = z.to(dtype)
    z_q, indices, *_ = search_triton.quantize(z, codebooks)
    assert z_q.dtype == dtype
    # one step of bf16: the interpreter cuts digits off where a GPU rounds
    torch.testing.assert_close(z_q[0, 0].float(), codebooks[0, indices[0, 0].long()].T, rtol=2**-7, atol=0)
    assert_nearest(z.float(), codebooks, indices)
    assert torch.equal(indices.long(), search_triton.nearest(z, codebooks.double()))


@runs_here
@pytest.mark.parametrize("dim", [1, 2, 3, 8, 16])
def test_ties_go_to_the_lowest_index(dim):
    generator = torch.Generator().manual_seed(0)
    z = torch.randint(-3, 4, (2, 2, dim, 40), generator=generator).to(DEVICE) / 2
    codebooks = torch.randint(-1, 2, (2, 70, dim), generator=generator).float().to(DEVICE)  # full of duplicates
    assert torch.equal(search_triton.nearest(z, codebooks), brute_force(z, codebooks).argmin(3))


@runs_here
@pytest.mark.parametrize("twin", [5, 3 + 32, 60])
def test_the_lower_of_two_equal_codewords_wins_in_many_dimensions(twin):
    _, codebooks = inputs((1, 1, 24, 64, 1))
    codebooks[0, twin] = codebooks[0, 3]
    z = codebooks[:, 3, :, None].expand(1, 1, 24, 10) + 0.01 * random(1, 1, 24, 10)
    assert (search_triton.nearest(z, codebooks) == 3).all()


@runs_here
@pytest.mark.parametrize("dim", [1, 2, 8])
@pytest.mark.filterwarnings("ignore:.*encountered:RuntimeWarning")
def test_nan_gives_index_zero_stays_visible_and_leaves_the_others_alone(dim):
    z, codebooks = inputs((1, 2, dim, 40, 30))
    expected_z_q, expected, *_ = search_triton.quantize(z, codebooks)
    z[0, 1, dim - 1, 7] = torch.nan
    expected[0, 1, 7] = 0
    expected_z_q[0, 1, :, 7] = codebooks[1, 0]
    expected_z_q[0, 1, dim - 1, 7] = torch.nan
    z_q, indices, counts, residual_sums, squared_error = search_triton.quantize(z, codebooks)
    assert torch.equal(indices, expected)
    torch.testing.assert_close(z_q, expected_z_q, rtol=0, atol=0, equal_nan=True)
    assert counts.sum() == 60
    assert residual_sums.isnan().nonzero().tolist() == [[1, 0, dim - 1]]
    assert squared_error.isnan()


@runs_here
@pytest.mark.parametrize("dim", [1, 2, 8])
@pytest.mark.filterwarnings("ignore:.*encountered:RuntimeWarning")  # NumPy's, in the interpreter
def test_infinite_input_gives_valid_indices(dim):
    _, codebooks = inputs((1, 2, dim, 40, 1))
    for value in (torch.inf, -torch.inf, 1e30):
        indices = search_triton.nearest(torch.full((1, 2, dim, 3), value, device=DEVICE), codebooks)
        assert ((indices >= 0) & (indices < 40)).all()


@runs_here
@pytest.mark.parametrize(("dtype", "deterministic"), [(torch.float32, False), (torch.float16, True)])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_quantize_returns_codewords_and_sums_over_those_who_chose_them(shape, dtype, deterministic):
    z, codebooks = inputs(shape)
    z = z.to(dtype)
    _, subspaces, dim, size, _ = shape
    torch.use_deterministic_algorithms(deterministic)
    try:
        z_q, indices, counts, residual_sums, squared_error = search_triton.quantize(z, codebooks)
    finally:
        torch.use_deterministic_algorithms(False)
    assert (indices.dtype, counts.dtype, residual_sums.dtype) == (torch.int16, torch.int32, torch.float32)
    assert torch.equal(indices.long(), search_triton.nearest(z, codebooks))
    chosen = torch.nn.functional.one_hot(indices.long(), size)  # (B, S, N, K)
    assert torch.equal(counts.long(), chosen.sum((0, 2)))
    codewords = torch.einsum("bsnk,skd->bsdn", chosen.double(), codebooks.double())
    assert torch.equal(z_q, codewords.to(dtype))
    residuals = z.double() - codewords
    sums = torch.einsum("bsdn,bsnk->skd", residuals, chosen.double())
    torch.testing.assert_close(residual_sums.double(), sums, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(squared_error.double(), residuals.square().sum(), rtol=1e-5, atol=1e-6)
    assert residual_sums.shape == (subspaces, size, dim)


@runs_here
def test_any_strides_give_the_same_result():
    codebooks = random(3, 20, 2, seed=1)
    channels_last = random(2, 35, 6).movedim(2, 1).unflatten(1, (3, 2))  # (2, 3, 2, 35)
    sliced = random(2, 5, 3, 80)[:, 1:4, 1:, 5:75:2]
    expanded = random(1, 3, 2, 35).expand(2, -1, -1, -1)
    for z in (channels_last, sliced, expanded):
        assert not z.is_contiguous()
        expected = search_triton.quantize(z.contiguous(), codebooks)
        for output, value in zip(search_triton.quantize(z, codebooks), expected, strict=True):
            torch.testing.assert_close(output, value)
            assert output.is_contiguous()


@runs_here
@pytest.mark.parametrize("dim", [2, 8])
def test_an_empty_batch_counts_nothing(dim):
    z_q, indices, counts, residual_sums, squared_error = search_triton.quantize(*inputs((0, 2, dim, 20, 30)))
    assert (z_q.shape, indices.shape) == ((0, 2, dim, 30), (0, 2, 30))
    assert not counts.any()
    assert not residual_sums.any()
    assert squared_error == 0


@runs_here
def test_the_operator_keeps_the_rules_of_custom_operators():
    torch.library.opcheck(
        search_triton.quantize, inputs((1, 2, 2, 20, 30)), test_utils=("test_schema", "test_faketensor")
    )


@on_gpu
@pytest.mark.parametrize("dim", [2, 8])
def test_a_cuda_graph_replays_the_search(dim):
    z, codebooks = inputs((2, 16, dim, 500, 300))
    search_triton.quantize(z, codebooks)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = search_triton.quantize(z, codebooks)
    z.copy_(random(*z.shape, seed=2))
    graph.replay()
    for output, value in zip(outputs, search_triton.quantize(z, codebooks), strict=True):
        torch.testing.assert_close(output, value)


@on_gpu
@pytest.mark.parametrize("dim", [2, 8])
def test_quantize_launches_at_most_six_kernels(dim):
    z, codebooks = inputs((1, 64, dim, 512, 1024))
    search_triton.quantize(z, codebooks)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        search_triton.quantize(z, codebooks)
        torch.cuda.synchronize()
    launches = [event for event in profile.events() if event.device_type == torch.autograd.DeviceType.CUDA]
    assert 1 <= len(launches) <= 6


@on_gpu
@pytest.mark.parametrize("dim", [2, 8])
def test_deterministic_results_repeat_to_the_last_bit(dim):
    z, codebooks = inputs((4, 8, dim, 64, 4096))
    torch.use_deterministic_algorithms(True)
    try:
        first = search_triton.quantize(z, codebooks)
        for _ in range(5):
            assert all(map(torch.equal, first, search_triton.quantize(z, codebooks)))
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize(("size", "dtype"), [(2**15, torch.int16), (2**15 + 1, torch.int32)])
def test_the_fake_operator_knows_shapes_and_dtypes(size, dtype):
    with FakeTensorMode():
        z = torch.empty(2, 3, 4, 35, dtype=torch.bfloat16)
        outputs = search_triton.quantize(z, torch.empty(3, size, 4))
    shapes = [(2, 3, 4, 35), (2, 3, 35), (3, size), (3, size, 4), ()]
    assert [tuple(output.shape) for output in outputs] == shapes
    assert [output.dtype for output in outputs] == [torch.bfloat16, dtype, torch.int32, torch.float32, torch.float32]


def test_blocks_shrink_until_every_multiprocessor_has_work():
    blocks = [search_triton.search_config(2, n, 64, 132)["BLOCK"] for n in (16 * 1024, 1024, 256, 16)]
    assert blocks == [512, 128, 64, 64]


@pytest.mark.parametrize("function", [search_triton.nearest, search_triton.quantize])
@pytest.mark.parametrize(
    ("z", "codebooks", "message"),
    [
        (torch.zeros(2, 3, 4), torch.zeros(3, 5, 4), "z must be"),
        (torch.zeros(2, 3, 4, 6, dtype=torch.int64), torch.zeros(3, 5, 4), "z must be"),
        (torch.zeros(2, 3, 4, 6), torch.zeros(3, 5), "codebooks must be"),
        (torch.zeros(2, 3, 4, 6), torch.zeros(3, 0, 4), "K >= 1"),
        (torch.zeros(2, 3, 4, 6), torch.zeros(3, 4, 5), "must agree"),
    ],
)
def test_wrong_arguments_raise(function, z, codebooks, message):
    with pytest.raises(ValueError, match=message):
        function(z, codebooks)


def test_tensors_on_different_devices_raise():
    with pytest.raises(ValueError, match="same device"):
        search_triton.nearest(torch.zeros(2, 3, 4, 6), torch.zeros(3, 5, 4, device="meta"))
