"""Committed numbers: the README shows them, and they reach what the project promises."""

import json
from pathlib import Path

import torch

from benchmarks.per_subspace_loop import PerSubspaceLoop
from benchmarks.render_readme import ROOT, documents, render

RESULTS = Path(ROOT) / "benchmarks" / "results"


def test_documents_show_the_committed_results():
    for file, tables in documents().items():
        text = (ROOT / file).read_text()
        assert render(text, tables) == text, file


def test_committed_speed_reaches_every_promise_that_was_measured():
    document = json.loads((RESULTS / "quantizer_speed.json").read_text())
    assert not document["quick"]
    assert [row["what"] for row in document["goals"] if row["reached"] is False] == []
    unproven = [row["what"] for row in document["goals"] if row["reached"] is None]
    assert not unproven or not document["gpu"]
    assert all("triton" in what for what in unproven)


def test_reference_loop_quantizes_like_a_loop_should():
    codebooks = torch.tensor([[[0.0], [1.0]], [[5.0], [9.0]]])  # (S, K, d / S)
    z = torch.tensor([0.2, 8.0]).view(1, 2, 1, 1)
    z_q, indices, loss = PerSubspaceLoop(codebooks)(z)
    assert indices.flatten().tolist() == [0, 1]
    torch.testing.assert_close(z_q.flatten(), torch.tensor([0.0, 9.0]))
    torch.testing.assert_close(loss, torch.tensor(1.25 * (0.2**2 + 1) / 2))


def test_committed_tiny_suite_reaches_its_goals():
    """85% of unseen prompts fully right for the base, every variant at most 3 points below it; sides and positions."""
    document = json.loads((RESULTS / "tiny_suite.json").read_text())
    pipelines = document["pipelines"]
    assert document["protocol"]["num_prompts"] == 500
    assert set(pipelines) == {"tiny-base", "tiny-precise", "tiny-hr", "tiny-quick"}
    right = {name: result["right"]["all"] for name, result in pipelines.items()}
    assert right["tiny-base"] >= 0.85
    assert {name: value for name, value in right.items() if value < right["tiny-base"] - 0.03} == {}
    base = pipelines["tiny-base"]
    assert pipelines["tiny-hr"]["resolution"] == 2 * base["resolution"]
    positions = {name: result["latents"][1] * result["latents"][2] for name, result in pipelines.items()}
    assert positions["tiny-quick"] * 4 == positions["tiny-base"] == positions["tiny-hr"]


def test_committed_adaptations_are_complete():
    """Five inits with the tokenizer's own exponent, the other exponents with one of them; three seeds each."""
    document = json.loads((RESULTS / "adaptation.json").read_text())
    runs = {(run["init"], run["gamma"], run["seed"]): run for run in document["runs"]}
    wanted = {(init, 0.5) for init in ("copy", "variance", "mmse", "zero", "lstsq")}
    wanted |= {("variance", gamma) for gamma in (0.0, 1.0)}
    assert runs.keys() == {(*pair, seed) for pair in wanted for seed in range(3)}
    for run in runs.values():
        curve = run["validation_loss_in_freeze_stage"]
        assert next(map(int, curve)) == 0
        assert int(list(curve)[-1]) == document["protocol"]["freeze_steps"]
        assert int(list(run["prompts_right_in_finetuning"])[-1]) == document["protocol"]["finetune_steps"]
