"""The product quantizer against a loop over its subspaces and the paper's formula."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from benchmarks.per_subspace_loop import PerSubspaceLoop
from pqdiff.quantizers import ProductQuantizer, build_quantizer


def run_both(channels, subspaces, size, commitment=1.0, codebook=0.25, shape=(2, 5, 7)):
    """Output and gradients of ours and of the loop for the same input and upstream gradient."""
    torch.manual_seed(0)
    ours = ProductQuantizer(channels, subspaces, size, commitment_weight=commitment, codebook_weight=codebook)
    loop = PerSubspaceLoop(ours.codebooks.detach(), commitment, codebook)
    z = torch.randn(shape[0], channels, *shape[1:])
    upstream = torch.randn_like(z)
    results = []
    for quantizer in (ours, loop):
        leaf = z.clone().requires_grad_()
        codes, indices, loss = quantizer(leaf)[:3]
        ((codes * upstream).sum() + 3 * loss).backward()
        codebooks = ours.codebooks.grad if quantizer is ours else torch.stack([c.grad for c in loop.codebooks])
        results.append((codes.detach(), indices, loss.detach(), leaf.grad, codebooks))
    return results


@pytest.mark.parametrize(("channels", "subspaces", "size"), [(128, 64, 512), (16, 4, 32), (8, 8, 16), (8, 1, 24)])
def test_output_loss_and_gradients_equal_the_loop(channels, subspaces, size):
    ours, loop = run_both(channels, subspaces, size)
    assert torch.equal(ours[1], loop[1])
    for mine, theirs in zip(ours, loop, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-7)


def test_weights_scale_their_own_gradient():
    only_commitment, _ = run_both(8, 4, 16, commitment=1.0, codebook=0.0)
    only_codebook, _ = run_both(8, 4, 16, commitment=0.0, codebook=1.0)
    assert only_commitment[4].abs().max() == 0
    assert only_codebook[4].abs().max() > 0


def test_default_loss_is_equation_one_of_the_paper():
    torch.manual_seed(0)
    quantizer, z = ProductQuantizer(8, 4, 16), torch.randn(2, 8, 3, 3)
    output = quantizer(z)
    mse = (z - output.codes).square().mean()
    torch.testing.assert_close(output.loss, mse + 0.25 * mse)  # commitment 1, codebook 0.25, both means


def test_one_subspace_is_vector_quantization():
    torch.manual_seed(0)
    quantizer, z = ProductQuantizer(6, 1, 50), torch.randn(2, 6, 4, 4)
    rows = z.permute(0, 2, 3, 1).reshape(-1, 6)
    expected = torch.cdist(rows.double(), quantizer.codebooks[0].double()).argmin(1)
    output = quantizer(z)
    assert torch.equal(output.indices.flatten(), expected)
    assert torch.equal(output.codes.permute(0, 2, 3, 1).reshape(-1, 6), quantizer.codebooks[0][expected])


def test_as_many_subspaces_as_channels_is_scalar_quantization():
    torch.manual_seed(0)
    quantizer, z = ProductQuantizer(6, 6, 50), torch.randn(2, 6, 4, 4)
    expected = (z[..., None] - quantizer.codebooks[:, :, 0][None, :, None, None]).abs().argmin(-1)
    assert torch.equal(quantizer(z).indices, expected)


def test_codewords_are_returned_exactly_and_the_gradient_passes_through():
    torch.manual_seed(0)
    quantizer = ProductQuantizer(8, 4, 16)
    z = (1e3 + torch.randn(2, 8, 3, 3)).requires_grad_()  # z + (codes - z) would round here
    output = quantizer(z)
    assert torch.equal(output.codes, quantizer.decode(output.indices))
    output.codes.sum().backward()
    assert torch.equal(z.grad, torch.ones_like(z))


def test_codebooks_start_normal():
    torch.manual_seed(0)
    codebooks = ProductQuantizer(128, 64, 512).codebooks
    assert codebooks.shape == (64, 512, 2)
    assert abs(codebooks.mean().item()) < 0.02
    assert abs(codebooks.std().item() - 1) < 0.02


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_casting_keeps_codebooks_in_fp32(dtype):
    model = nn.Sequential(nn.Conv2d(4, 4, 1), ProductQuantizer(4, 2, 8))
    before = model[1].codebooks.detach().clone()
    model.to(dtype)
    assert model[0].weight.dtype == dtype
    assert model[1].codebooks.dtype == torch.float32
    assert torch.equal(model[1].codebooks, before)
    assert model[1](torch.randn(1, 4, 2, 2, dtype=dtype)).codes.dtype == dtype


def test_casting_to_double_moves_nothing_but_the_device():
    quantizer = ProductQuantizer(4, 2, 8).double()
    assert quantizer.codebooks.dtype == torch.float32
    assert quantizer.to("meta").codebooks.device.type == "meta"


def test_nan_stays_visible():
    quantizer, z = ProductQuantizer(4, 2, 8), torch.zeros(1, 4, 1, 2)
    z[0, 1, 0, 1] = torch.nan
    output = quantizer(z)
    assert output.codes[0, 1, 0, 1].isnan()
    assert output.codes[0, :, 0, 0].isfinite().all()
    assert output.loss.isnan()


@pytest.mark.parametrize("weight", ["commitment_weight", "codebook_weight"])
@pytest.mark.parametrize("value", [-1, float("nan"), float("inf")])
def test_bad_weights_are_named_at_construction(weight, value):
    with pytest.raises(ValueError, match=weight):
        ProductQuantizer(8, 4, 8, **{weight: value})


def test_hidden_coordinates_are_learned_as_the_others():
    torch.manual_seed(0)
    hidden, plain = ProductQuantizer(8, 4, 16, hidden_channels=4), ProductQuantizer(12, 4, 16)
    plain.load_state_dict(hidden.state_dict())
    z = torch.randn(2, 12, 3, 3)
    for mine, theirs in zip(hidden(z)[:3], plain(z)[:3], strict=True):
        assert torch.equal(mine, theirs)


def test_unknown_names_and_keys_get_a_suggestion():
    with pytest.raises(ValueError, match="did you mean 'product'"):
        build_quantizer("produkt", 4)
    with pytest.raises(ValueError, match="did you mean 'num_subspaces'"):
        build_quantizer("product", 4, {"num_subspace": 2, "codebook_size": 8})


@settings(max_examples=40, deadline=None)
@given(
    subspaces=st.integers(1, 6),
    dim=st.integers(1, 5),
    size=st.integers(1, 40),
    batch=st.integers(1, 3),
    height=st.integers(1, 6),
    width=st.integers(1, 6),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
)
def test_quantizing_twice_changes_nothing(subspaces, dim, size, batch, height, width, dtype):
    torch.manual_seed(0)
    quantizer = ProductQuantizer(subspaces * dim, subspaces, size)
    first = quantizer(torch.randn(batch, subspaces * dim, height, width).to(dtype))
    assert first.codes.dtype == dtype
    second = quantizer(first.codes.float() if dtype == torch.float32 else quantizer.decode(first.indices))
    assert torch.equal(first.indices, second.indices)
    assert first.indices.min() >= 0
    assert first.indices.max() < size
