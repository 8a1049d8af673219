"""Search in large tables: all contenders answer alike, and the committed results keep what is promised."""

import json

import pytest
import torch

from benchmarks.render_readme import RESULTS
from benchmarks.table_search import gaussian_calls, measure, table_calls


def test_contenders_find_the_same_codewords():
    torch.manual_seed(0)
    result = measure(table_calls(50, 4), 1, {})
    assert set(result["same_answers"].values()) == {1.0}
    result = measure(gaussian_calls(64, 4), 1, {})
    assert result["same_answers"] == {"published": 1.0}
    assert result["times_faster"]["published"] > 0


def test_memory_beside_tensors_is_counted():
    calls = {"ours": lambda: torch.zeros(1000)}
    assert measure(calls, 1, {"ours": 10_000_000})["megabytes"]["ours"] == pytest.approx(10.004, abs=0.002)


def test_committed_results_reach_the_goals():
    tables = json.loads((RESULTS / "table_search.json").read_text())["tables"]
    for name, result in tables.items():
        assert min(result["same_answers"].values()) > 0.999, name
        assert max(result["of_the_memory"].values()) <= 1 / 20, name
        assert min(result["times_faster"].values()) >= 2, name
    assert tables["GQ, K 65536, m 16"]["times_faster"]["published"] >= 3
