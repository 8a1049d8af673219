"""TokenBridge, by the formulas of the paper and by numerical integration."""

import pytest
import torch

from pqdiff.quantizers import TokenBridgeQuantizer, build_quantizer
from pqdiff.quantizers.token_bridge import bin_means


@pytest.mark.parametrize("num_bins", [2, 8, 64])
def test_levels_are_the_means_of_bins_of_equal_probability(num_bins):
    x = torch.linspace(-10, 10, 2_000_001, dtype=torch.float64)
    density = (-x.square() / 2).exp()
    bins = (torch.special.ndtr(x) * num_bins).long().clamp_max(num_bins - 1)
    mass = torch.zeros(num_bins).double().index_add_(0, bins, density)
    expected = torch.zeros(num_bins).double().index_add_(0, bins, density * x) / mass
    torch.testing.assert_close(bin_means(num_bins), expected, rtol=1e-3, atol=1e-4)


def test_latents_are_rounded_to_the_nearest_level_and_saturate():
    quantizer = TokenBridgeQuantizer(4)
    z = torch.randn(2, 4, 5, 6, generator=torch.Generator().manual_seed(0)) * 3
    output = quantizer(z)
    scaled = z.double() / 5 * 3  # latent_range (-5, 5) to (-3, 3)
    indices = (scaled[..., None] - bin_means(64)).abs().argmin(dim=-1)
    assert torch.equal(output.indices, indices)
    torch.testing.assert_close(output.codes, (bin_means(64)[indices] / 3 * 5).float())
    assert output.codes.abs().max() == pytest.approx(4.18, abs=0.01)  # the outermost mean of 64 bins is 2.510
    assert output.loss == 0


def test_a_range_that_is_not_symmetric_moves_the_levels():
    levels = TokenBridgeQuantizer(2, num_bins=8, sigma_range=2.0, latent_range=(0, 4)).levels
    torch.testing.assert_close(levels, (bin_means(8) + 2).float())


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"num_bins": 1}, r"num_bins \(1\) must be at least 2"),
        ({"sigma_range": 0.0}, r"sigma_range \(0.0\) must be a positive number"),
        ({"latent_range": [5, -5]}, r"latent_range \(\[5, -5\]\) must be two numbers, the lower one first"),
    ],
)
def test_bad_arguments_are_named_at_construction(config, message):
    with pytest.raises(ValueError, match=message):
        build_quantizer("token_bridge", 4, config)


def test_levels_cannot_be_restarted():
    with pytest.raises(ValueError, match="--restart_dead_codewords 0"):
        TokenBridgeQuantizer(2).restart([], torch.zeros(1, 2, 1, 1), torch.Generator())
