"""VQGAN-LC's ablations: the committed results show that codewords are used, and that a step fits the memory."""

import json

from benchmarks.lc_codebook import POINTS
from benchmarks.render_readme import RESULTS


def test_committed_results_have_every_point_and_codewords_are_used():
    document = json.loads((RESULTS / "lc_codebook.json").read_text())
    found = [
        tuple(p[key] for key in ("features", "codebook_size", "latent_channels", "steps")) for p in document["points"]
    ]
    assert found == POINTS
    few, many = (p["codebook_utilization"] for p in document["points"] if p["codebook_size"] == 1024)
    assert many > few + 0.05  # by 1,000 and by 5,000 steps: it goes on to rise
    assert many > 0.9
    assert document["memory"]["step_gib"] <= 4
