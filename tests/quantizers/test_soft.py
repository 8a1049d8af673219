"""Soft snapping against sums over all codewords in double precision."""

import pytest
import torch

from pqdiff.quantizers import soft
from pqdiff.quantizers.soft import most_probable, posterior_mean


def problem(size: int = 12, dim: int = 3, subspaces: int = 2, seed: int = 0):
    """Vectors, codewords, frequencies, noise."""
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(2, subspaces, dim, 30, generator=generator)
    codewords = torch.randn(subspaces, size, dim, generator=generator)
    frequencies = torch.rand(subspaces, size, generator=generator)
    noise = 0.2 + torch.rand(subspaces, dim, generator=generator)
    return z, codewords, frequencies / frequencies.sum(1, keepdim=True), noise


def weights_by_hand(z, codewords, frequencies, noise) -> torch.Tensor:
    """Posterior `(B, S, N, K)`: p(c) exp(-sum (z - c)^2 / 2 sigma^2), normalized."""
    difference = z.double().movedim(2, 3)[:, :, :, None] - codewords.double()[:, None]  # (B, S, N, K, D)
    exponents = -(difference / noise.double()[:, None, None]).square().sum(-1) / 2
    weights = frequencies.double()[:, None] * (exponents - exponents.amax(-1, keepdim=True)).exp()
    return weights / weights.sum(-1, keepdim=True)


def test_it_is_the_mean_of_the_codewords_under_their_posterior():
    z, codewords, frequencies, noise = problem()
    expected = torch.einsum("bsnk,skd->bsdn", weights_by_hand(z, codewords, frequencies, noise), codewords.double())
    torch.testing.assert_close(posterior_mean(z, codewords, frequencies, noise), expected.float())


def test_values_beyond_the_codewords_are_averaged_with_the_same_weights():
    z, codewords, frequencies, noise = problem()
    values = torch.randn(2, 12, 5, generator=torch.Generator().manual_seed(1))
    expected = torch.einsum("bsnk,ske->bsen", weights_by_hand(z, codewords, frequencies, noise), values.double())
    torch.testing.assert_close(posterior_mean(z, codewords, frequencies, noise, values), expected.float())


def test_a_codeword_of_frequency_zero_never_counts():
    z, codewords, frequencies, noise = problem()
    frequencies[:, 5] = 0
    expected = posterior_mean(z, codewords, frequencies, noise)
    codewords[:, 5] = 3.0
    torch.testing.assert_close(posterior_mean(z, codewords, frequencies, noise), expected)
    assert expected.isfinite().all()
    assert (most_probable(codewords[0].T[None], codewords[0], frequencies[0], noise[0] / 10) != 5).all()


@pytest.mark.parametrize("noise", [1e-4, 1e4])
def test_the_two_ends_are_the_nearest_codeword_and_the_mean_of_all(noise):
    z, codewords, frequencies, _ = problem()
    found = posterior_mean(z, codewords, frequencies, torch.full((2, 3), noise))
    if noise < 1:
        distances = (z.movedim(2, 3)[:, :, :, None] - codewords[:, None]).square().sum(-1)  # (B, S, N, K)
        expected = torch.stack([codewords[s][distances.argmin(-1)[:, s]] for s in range(2)], dim=1).movedim(3, 2)
    else:
        expected = (frequencies[..., None] * codewords).sum(1)[None, :, :, None].expand_as(found)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


def test_large_coordinates_do_not_swallow_small_distances():
    z, codewords, frequencies, noise = problem()
    expected = posterior_mean(z, codewords, frequencies, noise)
    torch.testing.assert_close(
        posterior_mean(z + 1000, codewords + 1000, frequencies, noise) - 1000, expected, rtol=0, atol=5e-3
    )


def test_blocks_of_bounded_memory_change_nothing(monkeypatch):
    arguments = problem()
    expected = posterior_mean(*arguments)
    monkeypatch.setitem(soft._SCRATCH_FLOATS, "cpu", 12 * 7)  # seven vectors at once
    torch.testing.assert_close(posterior_mean(*arguments), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_vectors_give_fp32_and_autocast_is_ignored(dtype):
    z, *rest = problem()
    z = z.to(dtype)
    expected = posterior_mean(z.float(), *rest)
    assert torch.equal(posterior_mean(z, *rest), expected)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(posterior_mean(z, *rest), expected)


def test_the_most_probable_codeword_has_the_largest_posterior():
    z, codewords, frequencies, noise = problem()
    expected = weights_by_hand(z, codewords, frequencies, noise)[:, 0].argmax(-1)
    assert torch.equal(most_probable(z[:, 0], codewords[0], frequencies[0], noise[0]), expected)
    nearest = (z[:, 0].movedim(1, 2)[:, :, None] - codewords[0]).square().sum(-1).argmin(-1)
    assert not torch.equal(expected, nearest)  # frequencies and noise decide
