"""Measurements as rows of a card and as metadata."""

import pytest

from pqdiff.hub.measured import eval_results, measured_on, metric_rows


def test_inner_mappings_get_names_with_points():
    metrics = {"metrics": {"right": 0.5, "parts": {"color": 1, "count": None}}}
    assert metric_rows(metrics) == [("right", 0.5), ("parts.color", 1), ("parts.count", None)]


@pytest.mark.parametrize("metrics", [{"right": 0.5}, {"metrics": {"right": "all"}}, {"metrics": {"right": True}}])
def test_what_is_not_a_number_is_refused(metrics):
    with pytest.raises(ValueError, match="metrics"):
        metric_rows(metrics)


def test_what_was_measured_on_is_a_sentence():
    metrics = {"num_images": 1000, "num_prompts": 500, "data": "scenes", "protocol": {"steps": 50}}
    assert measured_on(metrics) == "1,000 images, 500 prompts; scenes; steps: 50."
    assert measured_on({}) == "On which images was not recorded."


def test_metadata_need_a_data_set_and_a_number():
    assert eval_results({}, [("right", 0.5)]) is None
    assert eval_results({"data": "scenes"}, [("right", None)]) is None
    (result,) = eval_results({"data": "scenes"}, [("right", 0.5), ("wrong", None)])
    assert (result.dataset_name, result.metric_type, result.metric_value) == ("scenes", "right", 0.5)
