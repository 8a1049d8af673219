"""What every registered quantizer promises. A new quantizer adds one line to CONFIGS."""

import math

import pytest
import torch

from pqdiff.quantizers import QUANTIZERS, build_quantizer

CHANNELS = 8
CONFIGS = {"product": {"num_subspaces": 4, "codebook_size": 16}}


@pytest.fixture(params=sorted(QUANTIZERS))
def quantizer(request):
    torch.manual_seed(0)
    return build_quantizer(request.param, CHANNELS, CONFIGS[request.param])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_shapes_and_dtypes(quantizer, dtype):
    z = torch.randn(2, CHANNELS, 3, 5).to(dtype)
    output = quantizer(z)
    tokens = len(quantizer.codebook_sizes)
    assert output.z_q.shape == z.shape
    assert output.z_q.dtype == dtype
    assert output.indices.shape == (2, tokens, 3, 5)
    assert not output.indices.is_floating_point()
    assert output.loss.shape == ()
    assert output.loss.dtype == torch.float32


def test_indices_are_in_range_and_give_the_codewords_back(quantizer):
    output = quantizer(torch.randn(2, CHANNELS, 6, 6))
    sizes = torch.tensor(quantizer.codebook_sizes).view(1, -1, 1, 1)
    assert ((output.indices >= 0) & (output.indices < sizes)).all()
    assert torch.equal(quantizer.indices_to_latents(output.indices), output.z_q)


def test_rate_is_the_sum_of_the_logarithms(quantizer):
    assert quantizer.bits_per_position == pytest.approx(sum(math.log2(size) for size in quantizer.codebook_sizes))


def test_gradient_reaches_the_input_unchanged(quantizer):
    z = torch.randn(2, CHANNELS, 3, 3, requires_grad=True)
    upstream = torch.randn(2, CHANNELS, 3, 3)
    (quantizer(z).z_q * upstream).sum().backward()
    torch.testing.assert_close(z.grad, upstream)


def test_images_of_a_batch_do_not_influence_each_other(quantizer):
    quantizer.eval()
    z = torch.randn(4, CHANNELS, 3, 3)
    together = quantizer(z)
    for i in range(4):
        alone = quantizer(z[i : i + 1])
        assert torch.equal(alone.indices[0], together.indices[i])
        assert torch.equal(alone.z_q[0], together.z_q[i])


def test_autocast_does_not_change_the_indices(quantizer):
    z = torch.randn(2, CHANNELS, 8, 8)
    expected = quantizer(z).indices
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(quantizer(z).indices, expected)


def test_state_dict_restores_the_same_quantizer(quantizer):
    torch.manual_seed(1)
    other = type(quantizer)(CHANNELS, **CONFIGS[_name_of(quantizer)])
    z = torch.randn(1, CHANNELS, 4, 4)
    assert not torch.equal(quantizer(z).z_q, other(z).z_q)
    other.load_state_dict(quantizer.state_dict())
    assert torch.equal(quantizer(z).z_q, other(z).z_q)


def test_compiles_without_a_graph_break(quantizer):
    z = torch.randn(1, CHANNELS, 4, 4)
    compiled = torch.compile(quantizer, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(z).indices, quantizer(z).indices)


def _name_of(quantizer) -> str:
    return next(name for name, cls in QUANTIZERS.items() if cls is type(quantizer))
