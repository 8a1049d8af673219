"""Committed times of the metrics: what an evaluation of one image may cost, and that both SSIMULACRA2 agree."""

import json

import pytest

from benchmarks.metric_speed import METRICS
from benchmarks.render_readme import ROOT

RESULTS = json.loads((ROOT / "benchmarks" / "results" / "metric_speed.json").read_text())["results"]


def test_committed_times_of_256_pixels_are_below_a_fifth_of_a_second():
    assert RESULTS["256"]["all_of_ours_milliseconds"] < 200
    assert RESULTS["256"]["milliseconds"].keys() == {metric.__name__ for metric in METRICS} | {"ssimulacra2 package"}


@pytest.mark.parametrize("side", ["256", "768"])
def test_committed_ssimulacra2_is_the_packages_in_less_time(side):
    assert RESULTS[side]["ours"] == pytest.approx(RESULTS[side]["package"], abs=0.01)
    assert RESULTS[side]["package_over_ours"] > 3
