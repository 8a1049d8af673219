"""The filter across borders, against the matrix of the lapped transform that the paper gives."""

import pytest
import scipy.fft
import torch

from pqdiff.models.tiling import run_tiled
from pqdiff.transforms import PatchTransform
from pqdiff.transforms.borders import border_rotation, filter_borders


def written_out(overlap: int) -> torch.Tensor:
    """The filter of `overlap` pixels as a matrix (Tran, Liang and Tu 2003): butterflies around diag(I, V)."""
    half = overlap // 2
    one, mirror = torch.eye(half, dtype=torch.float64), torch.eye(half, dtype=torch.float64).flip(0)
    second, fourth = (torch.from_numpy(scipy.fft.dct(one.numpy(), type=kind, norm="ortho", axis=0)) for kind in (2, 4))
    butterflies = torch.cat([torch.cat([one, mirror], dim=1), torch.cat([mirror, -one], dim=1)])
    return butterflies @ torch.block_diag(one, mirror @ second.T @ fourth @ mirror) @ butterflies / 2


def coding_gain(patch_size: int, overlap: int, correlation: float = 0.95) -> float:
    """In dB, of the best transform of patches of a line whose neighbors correlate: -10 log10 of the geometric mean of the
    variances."""
    places = torch.arange(3 * patch_size)
    covariance = correlation ** (places[:, None] - places).abs().double()
    line = torch.eye(3 * patch_size)[:, None, :, None].expand(-1, 1, -1, patch_size)
    if overlap:
        line = filter_borders(line, patch_size, border_rotation(overlap))
    matrix = line[:, 0, patch_size : 2 * patch_size, 0].double()  # (3 F, F): the patch in the middle
    return float(-10 * torch.logdet(matrix.T @ covariance @ matrix) / torch.tensor(10.0).log() / patch_size)


@pytest.mark.parametrize(("patch_size", "overlap"), [(4, 2), (8, 4), (8, 8), (16, 6)])
def test_it_is_the_matrix_of_the_paper_at_each_border_and_the_identity_elsewhere(patch_size, overlap):
    image = torch.randn(2, 3, 3 * patch_size, 2 * patch_size, dtype=torch.float64)
    whole = []
    for patches in (3, 2):
        matrix = torch.eye(patches * patch_size, dtype=torch.float64)
        for border in range(patch_size, patches * patch_size, patch_size):
            window = slice(border - overlap // 2, border + overlap // 2)
            matrix[window, window] = written_out(overlap)
        whole.append(matrix)
    found = filter_borders(image, patch_size, border_rotation(overlap).double())
    torch.testing.assert_close(found, whole[0] @ image @ whole[1].T, rtol=0, atol=1e-6)


@pytest.mark.parametrize("overlap", [2, 4, 8])
def test_its_transpose_undoes_it_and_it_keeps_constants_and_energy(overlap):
    image, rotation = torch.randn(2, 3, 24, 32), border_rotation(overlap)
    filtered = filter_borders(image, 8, rotation)
    torch.testing.assert_close(filter_borders(filtered, 8, rotation.T), image, rtol=0, atol=1e-5)
    torch.testing.assert_close(filtered.square().sum(), image.square().sum())
    constant = torch.full((1, 1, 16, 16), 0.7)
    torch.testing.assert_close(filter_borders(constant, 8, rotation), constant)


def test_patches_of_correlated_pixels_need_fewer_bits_than_patches_that_know_no_neighbors():
    """The gain of the best transform of 8 pixels alone is 8.85 dB, as for a closed form of its variances."""
    variances = torch.linalg.eigvalsh(0.95 ** (torch.arange(8)[:, None] - torch.arange(8)).abs().double())
    assert coding_gain(8, 0) == pytest.approx(float(-10 * variances.log10().mean()), abs=1e-3)
    assert coding_gain(8, 8) > coding_gain(8, 4) + 0.1 > coding_gain(8, 0) + 0.2


@torch.no_grad()
def test_tiles_with_one_patch_around_them_give_the_whole_image():
    torch.manual_seed(0)
    transform = PatchTransform(3, 20, 20, patch_size=4, overlap=4)
    image = torch.randn(1, 3, 32, 48)
    whole = transform.analysis(image)
    assert torch.equal(run_tiled(transform.analysis, image, 4, 3, 0, 20, 1, transform.reach), whole)
    pixels = transform.synthesis(whole)
    assert torch.equal(run_tiled(transform.synthesis, whole, 1, 3, 0, 3, 4, transform.reach), pixels)


@pytest.mark.parametrize("overlap", [-2, 3, 10])
def test_an_overlap_that_does_not_fit_is_named(overlap):
    with pytest.raises(ValueError, match=rf"overlap \({overlap}\) must be even, from 0 to patch_size \(8\)"):
        PatchTransform(3, 4, 4, patch_size=8, overlap=overlap)
