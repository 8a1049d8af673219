"""The target divergence constraint against its published steps written out, and with two processes."""

import pytest
import torch
from torch import distributed

from pqdiff.quantizers.target_divergence import TargetDivergence
from tests.processes import run_pair

TARGET, TOLERANCE, FACTOR = 8, 0.5, 1.05


def batches(number=20):
    """Divergences `(B, G, N)` that drift from far above the target to below it."""
    torch.manual_seed(0)
    return [16 - 0.6 * step + 3 * torch.rand(4, 2, 6) for step in range(number)]


def written_out(bits, state):
    """Loss of one batch, by loops over Python floats; `state` moves."""
    total = 0.0
    for image in bits.tolist():
        for value in (value for group in image for value in group):
            weight = 1.0
            if value > TARGET + TOLERANCE:
                weight = state["lam_max"]
            if value < TARGET - TOLERANCE:
                weight = state["lam_min"]
            total += state["lam"] * weight * value
    mean, least, most = bits.mean().item(), bits.min().item(), bits.max().item()
    state["lam"] = state["lam"] * FACTOR if mean > TARGET else state["lam"] / FACTOR
    up = most > TARGET + TOLERANCE
    state["lam_max"] = min(max(state["lam_max"] * FACTOR if up else state["lam_max"] / FACTOR, 1.0), 1e3)
    down = least < TARGET - TOLERANCE
    state["lam_min"] = min(max(state["lam_min"] / FACTOR if down else state["lam_min"] * FACTOR, 1e-3), 1.0)
    return total / len(bits)


def controllers(divergence):
    return {name: value.item() for name, value in divergence.named_buffers()}


def test_twenty_steps_are_those_of_the_paper():
    divergence, state = (
        TargetDivergence(TARGET, TOLERANCE, FACTOR, "sum"),
        dict.fromkeys(("lam", "lam_min", "lam_max"), 1.0),
    )
    for bits in batches():
        loss, logs = divergence(bits)
        used = dict(state)
        assert loss.item() == pytest.approx(written_out(bits, state), rel=1e-4)  # with the values from before the step
        assert {name: logs[f"tdc_{name}"].item() for name in used} == pytest.approx(used, rel=1e-4)
        assert logs["kl_bits_mean"].item() == pytest.approx(bits.mean().item())
        assert (logs["kl_bits_min"], logs["kl_bits_max"]) == (bits.min(), bits.max())
        assert controllers(divergence) == pytest.approx(state, rel=1e-4)
    assert state["lam_max"] > 1.2
    assert state["lam_min"] < 0.9  # each of them moved


def test_controllers_stay_in_their_ranges():
    divergence = TargetDivergence(TARGET, factor=100.0)
    for _ in range(4):
        divergence(torch.tensor([[[0.0, 20.0]]]))
    assert divergence.lam_max.item() == pytest.approx(1e3)
    assert divergence.lam_min.item() == pytest.approx(1e-3)
    for _ in range(4):
        divergence(torch.full((1, 1, 1), 8.0))
    assert divergence.lam_max == 1
    assert divergence.lam_min == 1


def test_mean_differs_from_sum_by_the_number_of_groups_and_positions():
    bits = batches(1)[0]
    (summed, _), (mean, _) = (TargetDivergence(TARGET, reduction=reduction)(bits) for reduction in ("sum", "mean"))
    torch.testing.assert_close(summed, mean * bits[0].numel())


def test_gradient_is_the_weight_of_each_group():
    divergence = TargetDivergence(TARGET)
    divergence.load_state_dict({"lam": torch.tensor(2.0), "lam_min": torch.tensor(0.5), "lam_max": torch.tensor(3.0)})
    bits = torch.tensor([[[4.0, 8.0, 12.0]]], requires_grad=True)
    divergence(bits)[0].backward()
    torch.testing.assert_close(bits.grad, torch.tensor([[[1.0, 2.0, 6.0]]]))


def test_evaluation_moves_nothing():
    divergence = TargetDivergence(TARGET).eval()
    loss, _ = divergence(batches(1)[0])
    assert loss > 0
    assert set(controllers(divergence).values()) == {1.0}


def test_controllers_continue_after_a_restart():
    divergence = TargetDivergence(TARGET)
    for bits in batches(5):
        divergence(bits)
    other = TargetDivergence(TARGET)
    other.load_state_dict(divergence.state_dict())
    assert controllers(other) == controllers(divergence)
    assert controllers(other)["lam"] > 1.02


def work(rank: int, folder) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder / 'store'}", rank=rank, world_size=2)
    divergence = TargetDivergence(TARGET, TOLERANCE, FACTOR)
    logs = [divergence(bits.chunk(2)[rank])[1] for bits in batches()]
    divergence.eval()
    if rank == 0:
        divergence(batches(1)[0])  # evaluation waits for nobody
    torch.save((controllers(divergence), logs), folder / f"rank{rank}.pt")
    distributed.destroy_process_group()


def test_two_processes_move_as_one_with_the_whole_batch(tmp_path):
    run_pair(work, tmp_path)
    whole = TargetDivergence(TARGET, TOLERANCE, FACTOR)
    expected = [whole(bits)[1] for bits in batches()]
    for rank in range(2):
        found, logs = torch.load(tmp_path / f"rank{rank}.pt")
        assert found == controllers(whole)
        torch.testing.assert_close(logs, expected)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"tolerance": -1.0}, r"tolerance \(-1.0\)"),
        ({"factor": 1.0}, r"factor \(1.0\)"),
        ({"reduction": "max"}, "'sum' or 'mean'"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        TargetDivergence(8.0, **arguments)
