"""What a step sees depends on the seed and the step alone: not on processes, workers, or what came before."""

from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pqdiff.training.batches import BatchPlan, Layout, iterate_batches

SHAPES = st.lists(st.sampled_from([(8, 8), (8, 4), (4, 8)]), min_size=1, max_size=40)


@given(SHAPES, st.integers(1, 7), st.integers(0, 3))
@settings(max_examples=50)
def test_every_epoch_shows_every_sample_in_batches_of_one_shape(shapes, batch_size, seed):
    plan = BatchPlan(shapes, batch_size, seed)
    for epoch in range(2):
        batches = [plan.samples(epoch * plan.steps_per_epoch + i) for i in range(plan.steps_per_epoch)]
        assert all(len(batch) == batch_size for batch in batches)
        assert all(len({shapes[i] for i in batch}) == 1 for batch in batches)
        seen = Counter(i for batch in batches for i in batch)
        assert set(seen) == set(range(len(shapes)))
        assert plan.steps_per_epoch * batch_size - len(shapes) < batch_size * len(set(shapes))


def test_epochs_and_seeds_have_their_own_order():
    plan, other = BatchPlan([0] * 12, 4, 0), BatchPlan([0] * 12, 4, 1)
    epochs = [tuple(i for step in range(3) for i in plan.samples(epoch * 3 + step)) for epoch in range(3)]
    assert len(set(epochs)) == 3
    assert [plan.samples(step) for step in range(3)] != [other.samples(step) for step in range(3)]


def test_any_step_is_known_without_the_ones_before():
    plan = BatchPlan([(8, 8)] * 9 + [(8, 4)] * 6, 4, 0)
    forward = [plan.samples(step) for step in range(12)]
    assert [BatchPlan([(8, 8)] * 9 + [(8, 4)] * 6, 4, 0).samples(step) for step in reversed(range(12))] == forward[
        ::-1
    ]


def test_a_data_set_without_samples_is_refused():
    with pytest.raises(ValueError, match="empty"):
        BatchPlan([], 4, 0)


@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 3))
def test_ranks_and_micro_steps_share_the_global_batch_without_overlap(batch_size, accumulation, processes):
    layouts = [Layout(batch_size, accumulation, processes, rank) for rank in range(processes)]
    slots = [slot for layout in layouts for m in range(accumulation) for slot in layout.slots(m)]
    assert sorted(slots) == list(range(layouts[0].global_batch_size))


def load(samples, generators):
    return {"samples": samples, "draws": [torch.rand((), generator=g).item() for g in generators]}


def batches(layout, start=0, stop=6, workers=0, seed=3):
    plan = BatchPlan([0] * 10, layout.global_batch_size, seed)
    return list(iterate_batches(plan, layout, load, seed, start, stop, workers))


def merged(*ranks):
    """Samples and draws of every step in the order of the global batch."""
    steps = []
    for step in zip(*ranks, strict=True):
        micro = [batch for micro_step in zip(*step, strict=True) for batch in micro_step]
        steps.append([pair for batch in micro for pair in zip(batch["samples"], batch["draws"], strict=True)])
    return steps


def test_one_process_and_two_see_the_same_samples_with_the_same_random_numbers():
    alone = merged(batches(Layout(4)))
    assert merged(batches(Layout(2, 1, 2, 0)), batches(Layout(2, 1, 2, 1))) == alone
    assert merged(batches(Layout(2, 2))) == alone
    assert merged(batches(Layout(1, 2, 2, 0)), batches(Layout(1, 2, 2, 1))) == alone


def test_a_resumed_run_sees_what_the_uninterrupted_one_does():
    layout = Layout(2, 2)
    assert batches(layout, start=4) == batches(layout)[4:]


def test_workers_change_nothing():
    layout = Layout(2, 2)
    assert batches(layout, stop=3, workers=1) == batches(layout, stop=3)


def test_loading_leaves_the_global_random_state_alone():
    before = torch.get_rng_state()
    batches(Layout(2))
    assert torch.equal(torch.get_rng_state(), before)
