"""k-means for all subspaces at once, against what is known of its optimum."""

import pytest
import torch

from pqdiff.fitting.kmeans import fit_codebooks
from pqdiff.quantizers.search.nearest import nearest_codewords


def test_separated_clusters_are_found_exactly():
    generator = torch.Generator().manual_seed(0)
    centers = torch.cartesian_prod(torch.arange(4.0), torch.arange(4.0)) * 10  # (16, 2)
    noise = 0.01 * torch.randn(3, 800, 2, generator=generator)
    points = centers[torch.randint(16, (3, 800), generator=generator)] + noise
    codebooks = fit_codebooks(points.transpose(1, 2).contiguous(), 16, generator)
    assert (torch.cdist(codebooks, centers.expand(3, -1, -1)).amin(dim=1) < 0.1).all()


def test_the_error_is_near_that_of_the_best_scalar_quantizer():
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(2, 1, 20_000, generator=generator)
    codebooks = fit_codebooks(vectors, 8, generator)
    nearest = codebooks[:, :, 0].gather(1, nearest_codewords(vectors[None], codebooks)[0])
    error = (vectors[:, 0] - nearest).square().mean().item()
    assert error == pytest.approx(0.03454, rel=0.1)  # Lloyd-Max, 8 levels, unit normal (Max 1960)


def test_every_codeword_is_used_and_few_distinct_vectors_are_no_error():
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(4, 2, 2000, generator=generator)
    codebooks = fit_codebooks(vectors, 128, generator)
    used = [len(set(row.tolist())) for row in nearest_codewords(vectors[None], codebooks)[0]]
    assert min(used) == 128
    repeated = torch.arange(5.0).repeat(20)[None, None]
    codebooks = fit_codebooks(repeated, 16, generator)
    assert codebooks.isfinite().all()
    assert set(range(5)) <= set(codebooks.flatten().tolist())


def test_too_few_or_broken_vectors_are_refused():
    generator = torch.Generator()
    with pytest.raises(ValueError, match=r"codebook_size \(16\).*got 9"):
        fit_codebooks(torch.randn(1, 2, 9), 16, generator)
    with pytest.raises(ValueError, match="NaN"):
        fit_codebooks(torch.full((1, 2, 20), torch.nan), 16, generator)


def test_threads_are_as_before_after_a_fit():
    before = torch.get_num_threads()
    fit_codebooks(torch.randn(1, 2, 50), 4, torch.Generator(), 1, 1)
    assert torch.get_num_threads() == before


def test_weights_move_codewords_to_what_counts():
    vectors = torch.tensor([0.0, 1.0] * 50)[None, None]
    weights = torch.tensor([3.0, 1.0] * 50)[None]
    codebook = fit_codebooks(vectors, 1, torch.Generator().manual_seed(0), weights=weights)
    torch.testing.assert_close(codebook.flatten(), torch.tensor([0.25]))


def test_equal_weights_change_nothing():
    vectors = torch.randn(2, 3, 500, generator=torch.Generator().manual_seed(0))
    plain, weighted = (
        fit_codebooks(vectors, 16, torch.Generator().manual_seed(1), weights=weights)
        for weights in (None, torch.ones(2, 500))
    )
    torch.testing.assert_close(weighted, plain)


def test_progress_is_told_after_every_iteration():
    steps = []
    fit_codebooks(torch.randn(1, 2, 50), 4, torch.Generator(), 3, 2, on_step=lambda: steps.append(1))
    assert len(steps) == 5
