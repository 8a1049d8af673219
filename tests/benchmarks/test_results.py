"""Committed numbers: the README shows them, and they reach what the project promises."""

import json
from pathlib import Path

import torch

from benchmarks.per_subspace_loop import PerSubspaceLoop
from benchmarks.quantizer_speed import build, forward_backward, interleaved_medians, search
from benchmarks.render_readme import ROOT, render

RESULTS = Path(ROOT) / "benchmarks" / "results"


def test_readme_shows_the_committed_results():
    text = (ROOT / "README.md").read_text()
    assert render(text) == text


def test_committed_speed_reaches_the_promises():
    document = json.loads((RESULTS / "quantizer_speed.json").read_text())
    results = document["results"]
    assert document["threads"] == 1
    assert results["f8-256"]["search"]["ratio"] >= 5
    assert results["f8-256"]["forward_backward"]["ratio"] >= 4
    assert results["f16-256"]["search"]["ratio"] >= 2.5
    assert results["f8-768"]["peak_extra_megabytes_beside_outputs"]["ratio"] >= 50


def test_reference_loop_quantizes_like_a_loop_should():
    codebooks = torch.tensor([[[0.0], [1.0]], [[5.0], [9.0]]])  # (S, K, d / S)
    z = torch.tensor([0.2, 8.0]).view(1, 2, 1, 1)
    z_q, indices, loss = PerSubspaceLoop(codebooks)(z)
    assert indices.flatten().tolist() == [0, 1]
    torch.testing.assert_close(z_q.flatten(), torch.tensor([0.0, 9.0]))
    torch.testing.assert_close(loss, torch.tensor(1.25 * (0.2**2 + 1) / 2))


def test_ours_is_faster_than_the_loop_here_too():
    """A loose bound, for a machine that may be busy: half of what the committed result shows."""
    quantizers, z = build((128, 64, 512, 32))
    for action, least in ((search, 2.5), (forward_backward, 2)):
        medians = interleaved_medians(action, quantizers, z, rounds=3)
        assert medians["loop"] / medians["pqdiff"] >= least
