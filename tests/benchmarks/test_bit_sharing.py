"""Sharing bits between patches: the allocation against brute force, and the committed results."""

import itertools
import json

import pytest
import torch

from benchmarks.bit_sharing import allocate, errors_at, squares_of
from benchmarks.render_readme import RESULTS


def test_the_allocation_is_the_best_of_all_of_its_rate():
    generator = torch.Generator().manual_seed(0)
    rates = torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64)
    scale, slope = (torch.rand(20, 3, generator=generator, dtype=torch.float64) + 0.2 for _ in range(2))
    errors = scale * torch.exp(-slope * rates[:, None, None])  # (rates, squares, patches)
    found = allocate(errors, rates, 2.5)
    for square in range(20):
        rate_of = {}
        for choice in itertools.product(range(4), repeat=3):
            total = sum(errors[k, square, i].item() for i, k in enumerate(choice))
            rate_of[total] = sum(rates[k].item() for k in choice) / 3
        total = found[square].sum().item()
        reached = min(rate_of.items(), key=lambda item: abs(item[0] - total))[1]
        assert reached <= 2.5
        assert total == pytest.approx(min(error for error, rate in rate_of.items() if rate <= reached), rel=1e-9)


def test_errors_between_rates_are_joined_and_go_through_what_was_measured():
    known = torch.tensor([[[[100.0]]], [[[10.0]]], [[[1.0]]]], dtype=torch.float64)
    found = errors_at(torch.tensor([1.0, 2.0, 3.0, 4.0, 0.0]), [1.0, 2.0, 4.0], known).flatten()
    assert found.tolist() == pytest.approx([100, 10, 10**0.5, 1, 1000])


def test_squares_hold_neighbors():
    patches = torch.arange(16.0).view(1, 1, 4, 4)
    assert squares_of(patches, 2)[0, 0].tolist() == [0, 1, 4, 5]
    assert squares_of(patches, 4).shape == (1, 1, 16)


def test_committed_results_grow_with_the_square():
    rows = json.loads((RESULTS / "bit_sharing.json").read_text())["rows"]
    for rate in (0.5, 1.75):
        values = [row["psnr"] for row in rows if row["bits_per_pixel"] == rate]
        assert values == sorted(values)
        assert len(values) == 5
