"""The search of Gaussian quantizers gives the argmax that torch.distributions has in float64, in bounded memory."""

import pytest
import torch
from torch.distributions import Normal

from benchmarks.memory import peak_tensor_bytes
from pqdiff.quantizers.search import gaussian as search
from pqdiff.quantizers.search.gaussian import likeliest_codewords


def brute_force(mean, log_variance, codewords, beta) -> torch.Tensor:
    """Scores `(B, G, N, K)` in float64."""
    posterior = Normal(*(x.double().movedim(2, 3)[..., None, :] for x in (mean, (log_variance.double() / 2).exp())))
    c = codewords.double()
    return (posterior.log_prob(c) - beta * Normal(0.0, 1.0).log_prob(c)).sum(dim=-1)


def data(dim, size, level, spread=1.0):
    """Posteriors whose log-variances lie around `level`, and normal codewords."""
    torch.manual_seed(0)
    mean = torch.randn(2, 3, dim, 20)
    return mean, level + spread * torch.randn_like(mean), torch.randn(size, dim)


@pytest.mark.parametrize("beta", [1.0, 0.0, 0.5])
@pytest.mark.parametrize(("dim", "size"), [(1, 128), (4, 5000), (16, 2500)])
@pytest.mark.parametrize(("level", "spread"), [(-1, 1), (-8, 3), (-24, 2)])
def test_all_indices_are_those_of_brute_force(dim, size, level, spread, beta):
    mean, log_variance, codewords = data(dim, size, level, spread)
    expected = brute_force(mean, log_variance, codewords, beta).argmax(dim=3)
    assert torch.equal(likeliest_codewords(mean, log_variance, codewords, beta), expected)


def test_posteriors_at_codewords_of_almost_no_variance_find_them():
    mean, log_variance, codewords = data(4, 3000, -28, 0.5)
    chosen = torch.randint(3000, (2, 3, 20))
    mean = codewords[chosen].movedim(3, 2)
    assert torch.equal(likeliest_codewords(mean, log_variance, codewords, 1.0), chosen)


def test_equal_scores_give_the_lowest_index():
    mean, log_variance, codewords = data(3, 40, -1)
    repeated = codewords.repeat(100, 1)  # across tiles
    expected = likeliest_codewords(mean, log_variance, codewords, 1.0)
    assert torch.equal(likeliest_codewords(mean, log_variance, repeated, 1.0), expected)


def test_what_no_product_can_decide_is_decided_by_differences():
    """Codewords one rounding apart, far from a posterior of little variance."""
    codewords = torch.tensor([[4.0], [torch.nextafter(torch.tensor(4.0), torch.tensor(0.0)).item()]])
    mean, log_variance = torch.full((1, 1, 1, 1), -3.0), torch.full((1, 1, 1, 1), -3.0)
    assert search._Products(codewords, 1.0, torch.float32)(mean[0, 0], log_variance[0, 0]) == -1
    assert likeliest_codewords(mean, log_variance, codewords, 1.0) == 1


def test_one_codeword_and_no_vectors_are_fine():
    mean, log_variance, codewords = data(4, 1, -1)
    assert likeliest_codewords(mean, log_variance, codewords, 1.0).eq(0).all()
    assert likeliest_codewords(mean[..., :0], log_variance[..., :0], codewords, 1.0).shape == (2, 3, 0)


def test_vectors_with_nan_get_index_0_and_disturb_no_other():
    mean, log_variance, codewords = data(4, 100, -1)
    expected = likeliest_codewords(mean, log_variance, codewords, 1.0)
    mean[0, 1, 2, 7] = torch.nan
    expected[0, 1, 7] = 0
    assert torch.equal(likeliest_codewords(mean, log_variance, codewords, 1.0), expected)


def test_shortcuts_for_networks_do_not_change_the_search():
    mean, log_variance, codewords = data(4, 500, -4)
    expected = likeliest_codewords(mean, log_variance, codewords, 1.0)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(likeliest_codewords(mean, log_variance, codewords, 1.0), expected)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)


def test_scores_of_all_codewords_are_never_held():
    torch.manual_seed(0)
    mean = torch.randn(1, 1, 2, 1000)
    codewords = torch.randn(2**15, 2)
    peak = peak_tensor_bytes(lambda: likeliest_codewords(mean, torch.zeros_like(mean) - 2, codewords, 1.0))
    assert peak < 8 * 4 * search._SCRATCH_FLOATS["cpu"]  # 8 MB; all scores are 131 MB


def test_operator_is_what_torch_expects():
    mean, log_variance, codewords = data(4, 60, -1)
    torch.library.opcheck(likeliest_codewords, (mean, log_variance, codewords, 1.0))


@pytest.mark.parametrize(
    ("mean", "log_variance", "codewords"),
    [
        ((1, 2, 3, 4), (1, 2, 3, 5), (8, 3)),
        ((1, 2, 3, 4), (1, 2, 3, 4), (8, 2)),
        ((1, 2, 3), (1, 2, 3), (8, 3)),
        ((1, 2, 3, 4), (1, 2, 3, 4), (0, 3)),
    ],
)
def test_shapes_that_do_not_fit_are_refused(mean, log_variance, codewords):
    with pytest.raises(ValueError, match="codewords"):
        likeliest_codewords(torch.zeros(mean), torch.zeros(log_variance), torch.zeros(codewords), 1.0)
