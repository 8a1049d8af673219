"""A training step with either quantizer is the same step, and the result file keeps what it should."""

import copy
import json

import pytest
import torch

from benchmarks import train_speed
from benchmarks.quantizer_share import build_autoencoder
from benchmarks.train_speed import LOOP, OURS, LoopQuantizer, TrainingStep

SMALL = ["--network", "small", "--batch", "1", "--side", "64", "--rounds", "1", "--threads", "1"]


@pytest.fixture(scope="module")
def document(tmp_path_factory) -> dict:
    """What the command writes at toy size, into a file that a GPU has filled before."""
    path = tmp_path_factory.mktemp("train") / "train_speed.json"
    path.write_text(json.dumps({"network": "small", "cpu": None, "gpu": {"device": "another machine"}}))
    train_speed.main([*SMALL, "--output", str(path)])
    return json.loads(path.read_text())


def test_both_quantizers_take_the_same_step():
    autoencoder = build_autoencoder(small=True).train()
    images = torch.rand(2, 3, 32, 32) * 2 - 1
    losses, codebooks, weights = [], [], []
    for name in (LOOP, OURS):
        model = copy.deepcopy(autoencoder)
        ours = model.quantizer
        step = TrainingStep(model, LoopQuantizer(ours.codebooks.detach()) if name == LOOP else ours, images)
        losses.append(step())
        parameters = list(step.quantizer.parameters())
        codebooks.append(torch.stack(parameters) if name == LOOP else parameters[0])
        weights.append(model.transform.encoder.conv_in.weight)
    torch.testing.assert_close(*losses)
    assert not torch.equal(codebooks[0], autoencoder.quantizer.codebooks)  # they learn
    torch.testing.assert_close(*codebooks, rtol=0, atol=2.1e-5)  # AdamW moves each by the learning rate, or not at all
    assert not torch.equal(weights[1], autoencoder.transform.encoder.conv_in.weight)


def test_steps_share_networks_and_have_their_own_quantizers():
    steps = train_speed.build_steps("small", batch=1, side=64)
    assert steps[LOOP].autoencoder is steps[OURS].autoencoder
    steps[LOOP]()
    assert isinstance(steps[OURS].autoencoder.quantizer, LoopQuantizer)
    before = steps[OURS].quantizer.codebooks.clone()
    steps[OURS]()
    assert not torch.equal(steps[OURS].quantizer.codebooks, before)


def test_results_say_speed_and_memory_of_a_step(document):
    cpu = document["cpu"]
    for name in (LOOP, OURS):
        row = cpu[name]
        assert 0 < row["seconds_per_step"]["minimum"] <= row["seconds_per_step"]["median"]
        assert row["images_per_second"] == pytest.approx(1 / row["seconds_per_step"]["median"], rel=1e-2)
        assert row["peak_step_megabytes"] > 1
        assert row["quantizer_share"] > 0
    assert cpu["speedup"]["quantizer_alone"] > 1
    assert cpu["threads"] == 1


def test_a_run_on_a_cpu_keeps_what_a_gpu_measured(document):
    assert document["gpu"] == {"device": "another machine"}
    assert document["gpu_status"] == "measured"


def test_small_networks_do_not_get_into_the_file_of_the_paper_s(tmp_path):
    path = tmp_path / "train_speed.json"
    path.write_text(json.dumps({"network": "the paper's f8-d128-s64-k512", "cpu": None, "gpu": None}))
    before = path.read_bytes()
    with pytest.raises(SystemExit, match="choose another"):
        train_speed.main([*SMALL, "--output", str(path)])
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--batch", "0"], "--batch must be at least 1, got 0"), (["--side", "100"], "--side must be at least 64")],
)
def test_impossible_sizes_are_refused(arguments, message, capsys):
    with pytest.raises(SystemExit):
        train_speed.main(arguments)
    assert message in capsys.readouterr().err
