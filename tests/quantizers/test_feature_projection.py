"""Projected rows of a table: the same bits in any company, and the gradient of an embedding followed by a linear layer."""

import pytest
import torch
from torch import nn

from benchmarks.memory import peak_tensor_bytes
from pqdiff.quantizers.feature_projection import project_features


def example(dtype=torch.float32, number=700):
    torch.manual_seed(0)
    return torch.randn(900, 24).to(dtype), torch.randint(900, (number,)), nn.Linear(24, 5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_output_and_gradients_are_those_of_a_linear_layer(dtype):
    features, rows, linear = example(dtype)
    upstream = torch.randn(700, 5)
    results = []
    for project in (
        lambda: project_features(features, rows, linear.weight, linear.bias),
        lambda: linear(features[rows].float()),
    ):
        linear.zero_grad()
        output = project()
        output.backward(upstream)
        results.append((output.detach(), linear.weight.grad.clone(), linear.bias.grad.clone()))
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-5)


def test_a_row_has_the_same_bits_alone_and_among_others():
    features, _, linear = example()
    together = project_features(features, torch.arange(900), linear.weight, linear.bias)
    for row in (0, 7, 255, 256, 899):
        alone = project_features(features, torch.tensor([row]), linear.weight, linear.bias)
        assert torch.equal(alone[0], together[row])


def test_no_rows_are_fine():
    features, rows, linear = example(number=0)
    output = project_features(features, rows, linear.weight, linear.bias)
    assert output.shape == (0, 5)
    output.sum().backward()
    assert linear.weight.grad.eq(0).all()


def test_rows_of_the_table_are_never_held_all_at_once():
    features, linear, rows = torch.randn(20_000, 256).half(), nn.Linear(256, 2), torch.arange(20_000)

    def step():
        project_features(features, rows, linear.weight, linear.bias).sum().backward()

    step()
    assert peak_tensor_bytes(step) < 2e6  # the rows in fp32 are 20 MB


def test_autocast_changes_nothing():
    features, rows, linear = example()
    expected = project_features(features, rows, linear.weight, linear.bias)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(project_features(features, rows, linear.weight, linear.bias), expected)


def test_operator_is_what_torch_expects():
    features, rows, linear = example(number=10)
    torch.library.opcheck(project_features, (features, rows, linear.weight, linear.bias))
