"""Random numbers belong to a place: the same for the same place, others for another."""

import torch

from pqdiff.training.randomness import generator_for


def draw(*place):
    return torch.rand(4, generator=generator_for(*place))


def test_the_same_place_draws_the_same():
    assert torch.equal(draw(3, "noise", 17, 2), draw(3, "noise", 17, 2))


def test_seed_name_step_and_slot_all_count():
    places = [(0, "noise", 1, 2), (1, "noise", 1, 2), (0, "order", 1, 2), (0, "noise", 2, 2), (0, "noise", 1, 3)]
    places += [(0, "noise", 12), (0, "noise", 2, 1)]
    assert len({tuple(draw(*place).tolist()) for place in places}) == len(places)


def test_the_global_random_state_is_left_alone():
    before = torch.get_rng_state()
    draw(0, "noise")
    assert torch.equal(torch.get_rng_state(), before)


def test_neighboring_places_are_independent():
    values = torch.stack([torch.randn(2000, generator=generator_for(0, "noise", step)) for step in range(8)])
    correlation = torch.corrcoef(values) - torch.eye(8)
    assert correlation.abs().max() < 0.1
