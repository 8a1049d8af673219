"""The learning rate is a function of the step; stages follow each other."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pqdiff.adaptation.stages import Stage
from pqdiff.training.schedule import ScheduleOptions, stage_at

STAGE = Stage(64, 10, 1e-3, "all")


def learning_rate(stage, step, schedule="constant", warmup=0):
    return ScheduleOptions(schedule, warmup).learning_rate(stage, step)


def test_constant_after_a_linear_warm_up():
    rates = [learning_rate(STAGE, step, "constant", 4) for step in range(10)]
    assert rates == pytest.approx([0.2e-3, 0.4e-3, 0.6e-3, 0.8e-3, *[1e-3] * 6])


def test_linear_goes_down_to_almost_zero():
    rates = [learning_rate(STAGE, step, "linear", 2) for step in range(10)]
    assert rates[2:] == pytest.approx([1e-3 * (1 - i / 8) for i in range(8)])


def test_cosine_is_half_way_down_at_half_time():
    assert learning_rate(STAGE, 0, "cosine") == 1e-3
    assert learning_rate(STAGE, 5, "cosine") == pytest.approx(0.5e-3)
    assert 0 < learning_rate(STAGE, 9, "cosine") < 0.03e-3


@given(st.integers(1, 50), st.integers(0, 60), st.sampled_from(["constant", "linear", "cosine"]), st.floats(1e-8, 1.0))
def test_rates_are_positive_and_at_most_the_peak(steps, warmup, schedule, peak):
    stage = Stage(64, steps, peak, "all")
    assert all(0 < learning_rate(stage, step, schedule, warmup) <= peak for step in range(steps))


@given(st.lists(st.integers(1, 5), min_size=1, max_size=4))
def test_every_step_belongs_to_one_stage(lengths):
    stages = [Stage(64, steps, 1e-3, "all") for steps in lengths]
    expected = [(number, within) for number, steps in enumerate(lengths) for within in range(steps)]
    assert [stage_at(stages, step) for step in range(sum(lengths))] == expected


def test_the_end_of_the_run_is_the_end_of_the_last_stage():
    assert stage_at([STAGE, Stage(64, 3, 1e-3, "all")], 13) == (1, 3)


def test_a_checkpoint_beyond_the_stages_is_an_error():
    with pytest.raises(ValueError, match="is at step 14, but its stages have only 13 steps"):
        stage_at([STAGE, Stage(64, 3, 1e-3, "all")], 14)
