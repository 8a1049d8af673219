"""Residual quantization, against a search in double precision, the formulas of the paper and vector-quantize-pytorch."""

import pytest
import torch
from vector_quantize_pytorch import ResidualVQ

from pqdiff.quantizers import ResidualQuantizer, VectorQuantizer, build_quantizer


def build(seed: int = 0, **config) -> ResidualQuantizer:
    torch.manual_seed(seed)
    return ResidualQuantizer(6, **{"depth": 3, "codebook_size": 20, **config})


def any_z(seed: int = 1) -> torch.Tensor:
    return torch.randn(2, 6, 4, 5, generator=torch.Generator().manual_seed(seed))


def greedy(z: torch.Tensor, codebooks: torch.Tensor, depth: int) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Tokens `(N, D)` and the sums `(N, d)` after every depth, in double precision."""
    rows = z.movedim(1, -1).flatten(0, -2).double()
    tables = codebooks.detach().double().expand(depth, -1, -1)
    total, tokens, sums = torch.zeros_like(rows), [], []
    for table in tables:
        tokens.append(torch.cdist(rows - total, table).argmin(dim=1))
        total = total + table[tokens[-1]]
        sums.append(total)
    return torch.stack(tokens, dim=1), sums


@pytest.mark.parametrize("shared", [True, False])
def test_each_depth_takes_the_codeword_nearest_to_what_is_left(shared):
    quantizer, z = build(shared_codebook=shared).eval(), any_z()
    tokens, sums = greedy(z, quantizer.codebooks, 3)
    output = quantizer(z)
    assert torch.equal(output.indices.movedim(1, -1).flatten(0, -2), tokens)
    torch.testing.assert_close(output.codes.movedim(1, -1).flatten(0, -2), sums[-1].float())


@pytest.mark.parametrize("shared", [True, False])
def test_tokens_and_codes_are_those_of_vector_quantize_pytorch(shared):
    quantizer, z = build(shared_codebook=shared).eval(), any_z()
    reference = ResidualVQ(dim=6, num_quantizers=3, codebook_size=20, shared_codebook=shared)
    with torch.no_grad():
        for level, layer in enumerate(reference.layers):
            layer._codebook.embed.copy_(quantizer.codebooks[0 if shared else level])
    codes, indices, _ = reference.eval()(z.flatten(2).mT)
    output = quantizer(z)
    assert torch.equal(output.indices.flatten(2), indices.mT)
    torch.testing.assert_close(output.codes.flatten(2), codes.mT)


def test_the_loss_is_the_mean_over_depths_and_codewords_learn_from_their_own_depth():
    quantizer, z = build(ema_decay=None, shared_codebook=False), any_z().requires_grad_()
    output = quantizer(z)
    output.loss.backward()

    tables, x = quantizer.codebooks.detach().clone().requires_grad_(), z.detach().clone().requires_grad_()
    total, loss = torch.zeros(2, 6, 4, 5), 0
    for level in range(3):
        chosen = tables[level][output.indices[:, level]].movedim(-1, 1)
        commitment = (x - (total + chosen.detach())).square().mean()
        codebook = (x.detach() - (total + chosen)).square().mean()
        loss = loss + (0.25 * commitment + codebook) / 3
        total = total + chosen.detach()
    loss.backward()
    torch.testing.assert_close(output.loss, loss)
    torch.testing.assert_close(z.grad, x.grad)
    torch.testing.assert_close(quantizer.codebooks.grad, tables.grad)


def test_one_depth_with_ema_is_vector_quantization_with_ema():
    quantizer, reference = build(depth=1), VectorQuantizer(6, 20, ema_decay=0.99)
    with torch.no_grad():
        reference.codebooks.copy_(quantizer.codebooks)
        reference.embedding_sums.copy_(quantizer.embedding_sums)
    for seed in range(3):
        mine, theirs = quantizer(any_z(seed)), reference(any_z(seed))
        assert torch.equal(mine.indices, theirs.indices)
        torch.testing.assert_close(mine.codes, theirs.codes)
        torch.testing.assert_close(mine.loss, theirs.loss)
    for name in ("codebooks", "cluster_sizes", "embedding_sums"):
        torch.testing.assert_close(getattr(quantizer, name), getattr(reference, name))


def test_a_shared_codebook_is_the_ema_of_the_rests_of_all_depths():
    quantizer, z = build(ema_decay=0.9), any_z()
    before = quantizer.codebooks[0].double()
    tokens, sums = greedy(z, quantizer.codebooks, 3)
    quantizer(z)
    rows = z.movedim(1, -1).flatten(0, -2).double()
    rests = torch.stack([rows, rows - sums[0], rows - sums[1]], dim=1).flatten(0, 1)  # in the order of the tokens
    counts, totals = torch.zeros(20).double(), torch.zeros(20, 6).double()
    counts.index_add_(0, tokens.flatten(), torch.ones(tokens.numel()).double())
    totals.index_add_(0, tokens.flatten(), rests)
    sizes = 0.9 + 0.1 * counts
    smoothed = (sizes + 1e-5) / (sizes.sum() + 20e-5) * sizes.sum()
    expected = (0.9 * before + 0.1 * totals) / smoothed[:, None]
    torch.testing.assert_close(quantizer.codebooks[0], expected.float())


@pytest.mark.parametrize("shared", [True, False])
def test_restarts_put_what_no_depth_uses_where_rests_are(shared):
    quantizer, z = build(shared_codebook=shared), any_z()
    unused = torch.zeros(3, 20, dtype=torch.bool)
    unused[:, 4] = unused[0, 7] = True
    _, sums = greedy(z, quantizer.codebooks, 3)
    rows = z.movedim(1, -1).flatten(0, -2)
    rests = [rows, rows - sums[0].float(), rows - sums[1].float()]
    before = quantizer.codebooks.clone()
    changed = dict(quantizer.restart(list(unused), z, torch.Generator().manual_seed(0)))
    moved = (quantizer.codebooks != before).any(dim=2)
    assert torch.equal(moved, unused.all(dim=0, keepdim=True) if shared else unused)
    assert torch.equal(changed["codebooks"].any(dim=2), moved)
    for level in range(len(moved)):
        candidates = torch.cat(rests) if shared else rests[level]
        for k in moved[level].nonzero()[:, 0]:
            assert (candidates - quantizer.codebooks[level, k]).abs().amax(dim=1).min() < 1e-5


def test_latents_are_decoded_as_they_are_and_tokens_found_again_come_close():
    quantizer = build().eval()
    output = quantizer(any_z())
    assert torch.equal(quantizer.snap(output.codes), output.codes)
    again = quantizer.decode(quantizer.nearest(output.codes))
    assert (again - output.codes).square().mean() < (any_z() - output.codes).square().mean()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"depth": 0}, r"depth \(0\) must be at least 1"),
        ({"codebook_size": 0}, r"codebook_size \(0\)"),
        ({"ema_decay": 1.0}, r"ema_decay \(1.0\) must be between 0 and 1"),
        ({"commitment_weight": -1.0}, r"commitment_weight \(-1.0\)"),
    ],
)
def test_bad_arguments_are_named_at_construction(config, message):
    with pytest.raises(ValueError, match=message):
        build_quantizer("residual", 4, {"depth": 2, "codebook_size": 8, **config})
