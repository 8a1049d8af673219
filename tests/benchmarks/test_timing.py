"""Calls take turns, and only what should be timed is."""

import contextlib
import time

import pytest

from benchmarks.timing import SHORT, interleaved_times, summary


def test_calls_take_turns_in_alternating_order_and_the_first_round_does_not_count():
    order = []
    times = interleaved_times({name: lambda n=name: order.append(n) for name in "ab"}, least_rounds=3)
    assert "".join(order) == "ab" + "bbaa" + "aabb" + "bbaa"  # short calls follow an untimed one of their own
    assert [len(values) for values in times.values()] == [3, 3]


def test_without_warm_up_every_round_counts():
    order = []
    times = interleaved_times({"a": lambda: order.append("a")}, least_rounds=2, warm_up=False)
    assert len(order) == 3  # the second round is known to be short, and warmed up for
    assert len(times["a"]) == 2


def test_fast_calls_get_more_rounds_up_to_the_limit():
    assert len(interleaved_times({"a": lambda: None}, 1, seconds=60, most_rounds=9)["a"]) == 9
    assert len(interleaved_times({"a": lambda: time.sleep(0.02)}, 1, seconds=0.01, most_rounds=9)["a"]) == 1


def test_long_calls_have_no_untimed_one_before_them():
    calls = []
    interleaved_times({"a": lambda: (calls.append(1), time.sleep(1.2 * SHORT))}, 2, warm_up=False)
    assert len(calls) == 2


def test_contexts_surround_their_calls_and_are_not_timed():
    state = []

    @contextlib.contextmanager
    def slow_context():
        time.sleep(0.05)
        state.append("in")
        yield
        state.append("out")

    times = interleaved_times({"a": lambda: state.append("call")}, 2, contexts={"a": slow_context}, warm_up=False)
    assert state == ["in", "call", "out", "in", "call", "call", "out"]
    assert max(times["a"]) < 0.05


def test_repeated_calls_share_a_measurement():
    calls = []
    times = interleaved_times({"a": lambda: (calls.append(1), time.sleep(0.002))}, 1, repeats=5, warm_up=False)
    assert len(calls) == 5
    assert 0.002 <= times["a"][0] < 0.01


def test_the_clock_of_the_processor_does_not_count_waiting():
    calls = {"a": lambda: time.sleep(0.05)}
    assert interleaved_times(calls, 1, clock="processor", warm_up=False)["a"][0] < 0.02
    with pytest.raises(ValueError, match=r"clock \('sun'\) must be one of wall, processor"):
        interleaved_times(calls, 1, clock="sun")


def test_no_rounds_at_all_are_refused():
    with pytest.raises(ValueError, match=r"least_rounds \(0\) must be at least 1"):
        interleaved_times({}, 0)


def test_summary_is_in_milliseconds():
    assert summary({"a": [0.003, 0.001, 0.002]}) == {"a": {"median": 2.0, "minimum": 1.0}}
