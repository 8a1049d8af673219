"""What quantizers with codebooks share: look-up, hidden coordinates, frequencies, soft snapping, restarts."""

import pytest
import torch

from pqdiff.quantizers import ProductQuantizer, VectorQuantizer
from pqdiff.quantizers.codebook import move_unused


@pytest.fixture(params=["product", "hidden", "vector"])
def quantizer(request):
    torch.manual_seed(0)
    return {
        "product": lambda: ProductQuantizer(8, 4, 16),
        "hidden": lambda: ProductQuantizer(8, 4, 16, hidden_channels=12),
        "vector": lambda: VectorQuantizer(8, 16, init="normal"),
    }[request.param]()


def tokens(quantizer, height: int = 5, width: int = 3) -> torch.Tensor:
    return torch.randint(16, (2, quantizer.num_subspaces, height, width))


@torch.no_grad()
def test_decode_joins_the_codewords_that_tokens_name(quantizer):
    indices = tokens(quantizer)
    codes, latents = quantizer.decode(indices), quantizer.to_latents(indices)
    for b, i, j in [(0, 0, 0), (1, 4, 2), (0, 3, 1)]:
        named = [quantizer.codewords()[s, indices[b, s, i, j]] for s in range(quantizer.num_subspaces)]
        assert torch.equal(codes[b, :, i, j], torch.cat(named))
        assert torch.equal(latents[b, :, i, j], torch.cat([codeword[: quantizer.visible] for codeword in named]))


@torch.no_grad()
def test_encode_looks_at_whole_codewords_and_nearest_at_what_latents_show():
    torch.manual_seed(0)
    quantizer = ProductQuantizer(4, 2, 16, hidden_channels=6)
    z = torch.randn(2, 10, 4, 4)
    parts = z.unflatten(1, (2, 5)).movedim(2, 4)  # (B, S, h, w, D)
    for visible, found in (
        (5, quantizer.encode(z)),
        (2, quantizer.nearest(parts[..., :2].movedim(4, 2).flatten(1, 2))),
    ):
        for s in range(2):
            difference = parts[:, s, ..., None, :visible] - quantizer.codebooks[s, :, :visible]
            assert torch.equal(found[:, s], difference.square().sum(-1).argmin(-1))


@torch.no_grad()
def test_lifted_latents_have_zeros_where_codewords_are_hidden():
    torch.manual_seed(0)
    quantizer = ProductQuantizer(4, 2, 16, hidden_channels=6)
    latents = torch.randn(2, 4, 3, 3)
    codes = quantizer.lift(latents).unflatten(1, (2, 5))
    assert torch.equal(codes[:, :, :2].flatten(1, 2), latents)
    assert (codes[:, :, 2:] == 0).all()


@torch.no_grad()
def test_soft_snapping_is_the_mean_of_whole_codewords_given_the_latents(quantizer):
    """Against a sum over all codewords, position by position, in double precision."""
    counts = [torch.randint(100, (16,)) for _ in range(quantizer.num_subspaces)]
    quantizer.set_frequencies(counts)
    latents, noise = torch.randn(1, 8, 3, 2), 0.3 + torch.rand(8)
    found = quantizer.snap(latents, noise).unflatten(1, (quantizer.num_subspaces, -1))
    sigma = noise.double().view(quantizer.num_subspaces, -1)
    parts = latents.double().unflatten(1, (quantizer.num_subspaces, -1))
    for s, count in enumerate(counts):
        table = quantizer.codewords()[s].double()
        prior = (count + 0.5) / (count + 0.5).sum()
        for i in range(3):
            for j in range(2):
                error = (parts[0, s, :, i, j] - table[:, : quantizer.visible]) / sigma[s]
                weights = prior * (-error.square().sum(1) / 2).exp()
                expected = (weights[:, None] * table).sum(0) / weights.sum()
                torch.testing.assert_close(found[0, s, :, i, j], expected.float(), rtol=1e-4, atol=1e-5)


def test_frequencies_start_uniform_and_leave_unseen_codewords_possible(quantizer):
    shape = (quantizer.num_subspaces, 16)
    torch.testing.assert_close(quantizer.frequencies, torch.full(shape, 1 / 16))
    counts = torch.arange(16)
    quantizer.set_frequencies([counts] * shape[0])
    torch.testing.assert_close(quantizer.frequencies, ((counts + 0.5) / (counts.sum() + 8)).expand(shape))
    assert (quantizer.frequencies > 0).all()


def test_restarts_move_what_is_unused_to_vectors_of_its_subspace_and_say_so(quantizer):
    z = torch.randn(2, quantizer.in_channels, 4, 4)
    before = quantizer.codebooks.detach().clone()
    unused = torch.rand(quantizer.num_subspaces, 16) < 0.4
    changed = dict(quantizer.restart(list(unused), z, torch.Generator().manual_seed(0)))
    after, mask = quantizer.codebooks.detach(), changed["codebooks"]
    assert torch.equal(mask, unused[..., None].expand_as(after))
    assert torch.equal(after[~mask], before[~mask])
    vectors = z.unflatten(1, (quantizer.num_subspaces, -1)).permute(1, 0, 3, 4, 2).flatten(1, 3)  # (S, N, D)
    for s in range(quantizer.num_subspaces):
        assert (after[s, unused[s]][:, None] == vectors[s]).all(-1).any(1).all()


def test_codewords_move_to_vectors_that_no_other_codeword_has():
    """Photos with flat areas give equal vectors: copies of a codeword would never be used."""
    values = [0.0, 1, 2, 3, 4, 2, 2, 2, 2, 2, torch.nan, torch.inf]
    vectors = torch.tensor(values).view(1, 12, 1)
    codebooks, unused = torch.full((1, 9, 1), -1.0), torch.ones(1, 9, dtype=torch.bool)
    unused[0, :2], codebooks[0, 0] = False, 3
    moved = move_unused(codebooks, unused, vectors, torch.Generator().manual_seed(0))
    assert codebooks[0, :2, 0].tolist() == [3, -1]
    assert sorted(codebooks[0, 2:6, 0].tolist()) == [0, 1, 2, 4]
    assert codebooks[0, 6:, 0].tolist() == [-1] * 3  # there are no further vectors
    assert moved[0, :, 0].tolist() == [False] * 2 + [True] * 4 + [False] * 3


def test_the_same_generator_draws_the_same_vectors():
    results = []
    for seed in (0, 0, 1):
        codebooks, unused = torch.zeros(2, 6, 3), torch.ones(2, 6, dtype=torch.bool)
        vectors = torch.randn(2, 40, 3, generator=torch.Generator().manual_seed(9))
        move_unused(codebooks, unused, vectors, torch.Generator().manual_seed(seed))
        results.append(codebooks)
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((130, 64, 8), r"latent_channels \(130\).*num_subspaces \(64\)"),
        ((0, 1, 8), r"latent_channels \(0\)"),
        ((8, 0, 8), r"num_subspaces \(0\)"),
        ((8, 4, 0), r"codebook_size \(0\)"),
        ((8, 4, 8, 6), r"hidden_channels \(6\).*multiple of num_subspaces \(4\)"),
        ((8, 4, 8, -4), r"hidden_channels \(-4\)"),
    ],
)
def test_numbers_that_do_not_fit_are_named_at_construction(arguments, message):
    with pytest.raises(ValueError, match=message):
        ProductQuantizer(*arguments)
