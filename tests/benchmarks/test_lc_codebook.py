"""VQGAN-LC's ablations: the committed results show that codewords are used, and that a step fits the memory."""

import json

from benchmarks.lc_codebook import CLUSTERED, POINTS, SELECTED
from benchmarks.render_readme import RESULTS


def test_committed_results_have_every_point_and_codewords_are_used():
    document = json.loads((RESULTS / "lc_codebook.json").read_text())
    found = [
        tuple(p[key] for key in ("features", "codebook_size", "latent_channels", "steps")) for p in document["points"]
    ]
    assert found == POINTS
    used = {point: p["codebook_utilization"] for point, p in zip(found, document["points"], strict=True)}
    assert used[CLUSTERED, 1024, 8, 1000] >= 0.99
    assert used[CLUSTERED, 4096, 8, 1000] >= 0.99
    assert used[SELECTED, 16384, 8, 1000] >= 0.99
    assert used["k-means", 4096, 8, 1000] < 0.9  # without unit length
    assert document["memory"]["step_gib"] <= 4
