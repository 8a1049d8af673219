"""Vector quantization: its losses by their formulas, EMA updates against a loop over vectors, in one process and in two."""

import pytest
import torch
from torch import distributed
from vector_quantize_pytorch import VectorQuantize

from pqdiff.quantizers import ProductQuantizer, VectorQuantizer, build_quantizer
from tests.processes import run_pair

DECAY = 0.9


def batches(number: int = 4) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(4, 3, 5, 4, generator=generator) for _ in range(number)]


def with_ema(size: int = 8) -> VectorQuantizer:
    torch.manual_seed(0)
    return VectorQuantizer(3, size, ema_decay=DECAY, init="normal")


def updated_by_a_loop(codebook: torch.Tensor, steps: list[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    """The EMA codebook of van den Oord et al., appendix A.1, vector by vector in double precision."""
    codebook = codebook.double()
    size = len(codebook)
    cluster_sizes, sums = torch.ones(size).double(), codebook.clone()
    for z in steps:
        counts, totals = torch.zeros(size).double(), torch.zeros_like(codebook)
        for vector in z.permute(0, 2, 3, 1).reshape(-1, codebook.shape[1]).double():
            chosen = (vector - codebook).square().sum(1).argmin()
            counts[chosen] += 1
            totals[chosen] += vector
        cluster_sizes = DECAY * cluster_sizes + (1 - DECAY) * counts
        sums = DECAY * sums + (1 - DECAY) * totals
        total = cluster_sizes.sum()
        smoothed = (cluster_sizes + 1e-5) / (total + size * 1e-5) * total
        codebook = sums / smoothed[:, None]
    return codebook.float(), cluster_sizes.float(), sums.float()


def test_the_nearest_codeword_is_taken():
    torch.manual_seed(0)
    quantizer, z = VectorQuantizer(6, 50, init="normal"), torch.randn(2, 6, 4, 4)
    rows = z.permute(0, 2, 3, 1).reshape(-1, 6)
    expected = torch.cdist(rows.double(), quantizer.codebooks[0].double()).argmin(1)
    output = quantizer(z)
    assert torch.equal(output.indices.flatten(), expected)
    assert torch.equal(output.codes.permute(0, 2, 3, 1).reshape(-1, 6), quantizer.codebooks[0][expected])


def test_the_default_loss_is_that_of_the_paper():
    """||sg[z] - e||^2 + 0.25 ||z - sg[e]||^2, as means; the gradient of the codes passes to z unchanged."""
    torch.manual_seed(0)
    quantizer, z = VectorQuantizer(4, 16, init="normal"), torch.randn(2, 4, 3, 3).requires_grad_()
    output = quantizer(z)
    chosen = quantizer.codebooks[0][output.indices[:, 0]].movedim(-1, 1)
    codebook_term, commitment = (z.detach() - chosen).square().mean(), (z - chosen.detach()).square().mean()
    expected = codebook_term + 0.25 * commitment
    torch.testing.assert_close(output.loss, expected)
    upstream = torch.randn_like(z)
    found = torch.autograd.grad((output.codes * upstream).sum() + output.loss, (z, quantizer.codebooks))
    by_hand = torch.autograd.grad(expected, (z, quantizer.codebooks))
    torch.testing.assert_close(found[0], by_hand[0] + upstream)
    torch.testing.assert_close(found[1], by_hand[1])


def test_it_is_product_quantization_with_one_subspace():
    torch.manual_seed(0)
    vector, product = VectorQuantizer(6, 16, commitment_weight=1.0, codebook_weight=0.25), ProductQuantizer(6, 1, 16)
    product.load_state_dict(vector.state_dict())
    z = torch.randn(2, 6, 4, 4)
    for mine, theirs in zip(vector(z)[:3], product(z)[:3], strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize("ema_decay", [None, 0.99])
def test_codewords_start_uniform_or_normal(ema_decay):
    torch.manual_seed(0)
    uniform = VectorQuantizer(64, 128, ema_decay).codebooks * 128
    assert uniform.abs().max() <= 1
    assert abs(uniform.std().item() - 3**-0.5) < 0.02
    normal = VectorQuantizer(64, 128, ema_decay, init="normal").codebooks
    assert abs(normal.std().item() - 1) < 0.03


def test_ema_is_that_of_a_loop_over_vectors():
    quantizer = with_ema()
    start = quantizer.codebooks[0].clone()
    for number, z in enumerate(batches(), start=1):
        quantizer(z)
        expected = updated_by_a_loop(start, batches()[:number])
        found = (quantizer.codebooks[0], quantizer.cluster_sizes[0], quantizer.embedding_sums[0])
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_ema_leaves_the_loss_to_the_commitment_alone():
    quantizer, z = with_ema(), batches()[0].requires_grad_()
    before = quantizer.codebooks.clone()
    output = quantizer(z)
    assert list(quantizer.parameters()) == []
    chosen = before[0][output.indices[:, 0]].movedim(-1, 1)
    assert torch.equal(output.codes, chosen)  # of the codebook before the update
    torch.testing.assert_close(output.loss, 0.25 * (z - chosen).square().mean())
    output.loss.backward()
    torch.testing.assert_close(z.grad, 0.5 * (z - chosen).detach() / z.numel())


def test_codewords_stay_outside_of_training():
    quantizer = with_ema().eval()
    before = quantizer.state_dict()
    before = {name: value.clone() for name, value in before.items()}
    quantizer(batches()[0])
    quantizer.train().encode(batches()[0])
    assert all(torch.equal(value, before[name]) for name, value in quantizer.state_dict().items())


def test_a_codeword_that_is_never_used_does_not_explode():
    quantizer = with_ema(64)
    with torch.no_grad():
        quantizer.codebooks[0, 0] = 50.0  # far from everything
        quantizer.embedding_sums[0, 0] = 50.0
    z = batches(1)[0]
    for _ in range(300):
        quantizer(z)
    assert quantizer.codebooks.isfinite().all()
    assert quantizer.codebooks[0, 0].abs().max() <= 50


def test_a_vector_that_is_not_finite_spoils_no_codeword():
    quantizer, z = with_ema(), batches()[0]
    z[0, 0, 0, 0], z[1, 1, 1, 1] = torch.nan, torch.inf
    quantizer(z)
    assert all(value.isfinite().all() for value in quantizer.state_dict().values())


def test_restarts_put_unused_codewords_at_different_vectors_and_reset_their_ema():
    quantizer, z = with_ema(), batches()[0]
    for batch in batches():
        quantizer(batch)
    before = {name: value.clone() for name, value in quantizer.state_dict().items()}
    unused = torch.tensor([True, False, True, True, False, False, True, False])
    changed = dict(quantizer.restart([unused], z, torch.Generator().manual_seed(0)))
    assert set(changed) == {"codebooks", "cluster_sizes", "embedding_sums"}
    vectors = z.permute(0, 2, 3, 1).reshape(-1, 3)
    places = (quantizer.codebooks[0, unused][:, None] == vectors).all(-1).int().argmax(1)
    assert torch.equal(quantizer.codebooks[0, unused], vectors[places])
    assert len(set(places.tolist())) == 4
    assert (quantizer.cluster_sizes[0, unused] == 1).all()
    assert torch.equal(quantizer.embedding_sums[0, unused], quantizer.codebooks[0, unused])
    for name, mask in changed.items():
        after = quantizer.state_dict()[name]
        assert mask.shape == after.shape
        assert torch.equal(after[~mask], before[name][~mask])


def test_restarts_of_a_learned_codebook_change_the_parameter_alone():
    quantizer = VectorQuantizer(3, 4)
    before = quantizer.codebooks.detach().clone()
    unused = torch.tensor([False, True, False, False])
    [(name, mask)] = quantizer.restart([unused], batches()[0], torch.Generator().manual_seed(0))
    assert name == "codebooks"
    assert torch.equal((quantizer.codebooks != before), mask)


def work(rank: int, folder) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder / 'store'}", rank=rank, world_size=2)
    quantizer = with_ema()
    for z in batches():
        quantizer(z.chunk(2)[rank])
    torch.save(quantizer.state_dict(), folder / f"rank{rank}.pt")
    distributed.destroy_process_group()


def test_two_processes_with_half_a_batch_each_update_as_one_with_the_whole_batch(tmp_path):
    run_pair(work, tmp_path)
    first, second = (torch.load(tmp_path / f"rank{rank}.pt") for rank in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    alone = with_ema()
    for z in batches():
        alone(z)
    torch.testing.assert_close(first, dict(alone.state_dict()), rtol=1e-5, atol=1e-6)


def test_ema_is_that_of_vector_quantize_pytorch():
    quantizer = with_ema()
    reference = VectorQuantize(3, 8, decay=DECAY, eps=1e-5, accept_image_fmap=True, rotation_trick=False)
    embed = quantizer.codebooks.clone()
    reference._codebook.embed.data.copy_(embed)
    reference._codebook.embed_avg.data.copy_(embed)
    reference._codebook.cluster_size.data.fill_(1)
    reference.train()
    for z in batches():
        _, indices, _ = reference(z)
        assert torch.equal(quantizer(z).indices[:, 0], indices)
        torch.testing.assert_close(quantizer.codebooks, reference._codebook.embed, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"codebook_size": 0}, r"codebook_size \(0\) must be at least 1"),
        ({"codebook_size": 8, "ema_decay": 1.0}, r"ema_decay \(1.0\) must be between 0 and 1, or None"),
        ({"codebook_size": 8, "ema_decay": 0.0}, r"ema_decay \(0.0\)"),
        ({"codebook_size": 8, "init": "unifrom"}, r"init \('unifrom'\) is unknown: did you mean 'uniform'"),
        ({"codebook_size": 8, "commitment_weight": -1}, r"commitment_weight \(-1\)"),
        ({"codebook_size": 8, "codebook_weight": float("nan")}, r"codebook_weight \(nan\)"),
    ],
)
def test_bad_arguments_are_named_at_construction(config, message):
    with pytest.raises(ValueError, match=message):
        build_quantizer("vector", 4, config)
