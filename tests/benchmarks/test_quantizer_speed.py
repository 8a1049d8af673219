"""The comparison of quantizers: all contenders quantize alike, and the result file says what was and was not measured."""

import json
import sys

import pytest
import torch

from benchmarks import quantizer_share, quantizer_speed
from benchmarks.memory import peak_resident_bytes
from benchmarks.quantizer_contenders import ALL, LOOP, Config, build, forward_backward, search
from benchmarks.quantizer_goals import CPU_SHARE, RATIOS, UNPROVEN, goals
from benchmarks.timing import interleaved_times
from pqdiff.quantizers.search import backends

TINY = Config(d=8, S=4, K=16, side=6)
FAST = ("loop", "plain", "native", "VectorQuantize", "GroupedResidualVQ", "faiss")  # all but what compiles for seconds


@pytest.fixture(scope="module")
def contenders():
    return build(TINY, names=FAST)[0]


@pytest.fixture(scope="module")
def latents() -> torch.Tensor:
    return torch.randn(1, TINY.d, TINY.side, TINY.side, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def document(tmp_path_factory) -> dict:
    """What the command writes on small sizes, with a plot, into a file that a GPU has filled before."""
    folder = tmp_path_factory.mktemp("speed")
    path, plot = folder / "speed.json", folder / "docs" / "speed.png"
    path.write_text(json.dumps({"quick": True, "cells": {"1": {}}, "gpu": {"device": "another machine"}}))
    command = [
        "--quick",
        "--rounds",
        "1",
        "--seconds",
        "0",
        "--threads",
        "1",
        "--clock",
        "processor",
        "--only",
        "loop",
        "plain",
        "native",
    ]
    threads = torch.get_num_threads()
    quantizer_speed.main([*command, "--output", str(path), "--plot", str(plot)])
    torch.set_num_threads(threads)
    assert plot.stat().st_size > 1000
    return json.loads(path.read_text())


@pytest.mark.parametrize("name", ["plain", "native", "VectorQuantize", "GroupedResidualVQ"])
def test_contenders_quantize_like_the_loop(contenders, latents, name):
    if name not in contenders:
        pytest.skip(f"{name} is not available here")
    expected = contenders[LOOP].layer(latents)[0]
    with contenders[name].context(), torch.no_grad():
        torch.testing.assert_close(contenders[name].layer.eval()(latents)[0], expected, rtol=0, atol=1e-6)


def test_faiss_finds_the_codes_of_the_loop(contenders, latents):
    pytest.importorskip("faiss")
    packed = contenders["faiss"].codes(latents)  # (N, S / 2): two subspaces of 4 bits to a byte
    indices = contenders[LOOP].codes(latents)[0].flatten(1).T  # (N, S)
    low, high = torch.from_numpy(packed & 15), torch.from_numpy(packed >> 4)
    assert torch.equal(torch.stack([low, high], dim=2).flatten(1).long(), indices)


def test_the_search_of_the_loop_gives_the_codes_of_its_layer(contenders, latents):
    loop = contenders[LOOP]
    assert torch.equal(loop.codes(latents), loop.layer(latents)[1])


def test_every_layer_is_timed_with_gradients_of_latents_and_codewords(contenders, latents):
    for name, contender in contenders.items():
        call = forward_backward(contender, latents)
        if call is None:
            assert name == "faiss"
            continue
        with contender.context():
            call()
        gradients = [parameter.grad for parameter in contender.layer.parameters()]
        assert any(gradient is not None and bool(gradient.any()) for gradient in gradients), name


def test_a_backend_serves_its_own_rows():
    contenders, _ = build(TINY, names=("plain", "native"))
    for name, contender in contenders.items():
        with contender.context():
            assert backends.backend_name(torch.device("cpu")) == name


def test_missing_libraries_are_rows_without_numbers_and_with_a_reason(monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    cell = quantizer_speed.measure_cell(TINY, ["search"], 1, 0.0, names=("loop", "plain", "faiss"))
    assert cell["search"]["milliseconds"]["faiss"] is None
    assert "pip install" in cell["left_out"]["faiss"]
    assert cell["search"]["loop_over"].keys() == {"plain"}


def test_searches_too_large_to_keep_are_left_out_with_their_size():
    _, left_out = build(Config(128, 64, 512, 192), names=("loop", "VectorQuantize"))
    assert left_out == {"loop": "4.8 GB of distances", "VectorQuantize": "4.8 GB of distances, several times"}


def test_the_paper_s_configurations_are_all_there():
    configs = quantizer_speed.configs()
    assert len(configs) == 12
    assert configs["f8-768"] == Config(128, 64, 512, 96)
    assert configs["f32-1536"] == Config(256, 64, 256, 48)


def test_a_quick_run_says_what_it_measured(document):
    assert document["quick"] is True
    for cell in document["cells"]["1"].values():
        for action in ("search", "forward", "forward_backward"):
            plain = cell[action]["milliseconds"]["plain"]
            assert 0 < plain["minimum"] <= plain["median"]
        loop, plain = (cell["search"]["milliseconds"][name]["median"] for name in ("loop", "plain"))
        assert cell["search"]["loop_over"]["plain"]["median"] == pytest.approx(loop / plain, abs=0.01)
    shares = document["share"]
    assert shares["share"]["loop"] == pytest.approx(
        shares["quantizer_milliseconds"]["loop"]
        / (shares["quantizer_milliseconds"]["loop"] + shares["networks_milliseconds"]),
        rel=1e-2,
    )
    assert [row["value"] for row in document["sweep"]["S"]] == [64, 128]


def test_memory_of_the_loop_is_that_of_its_distances(document):
    peaks = document["memory"]["peak_extra_megabytes"]
    distances = quantizer_speed.configs()["f16-256"].distances * 4e-6
    assert distances < peaks["loop"]["tensors"] < 1.5 * distances
    assert peaks["plain"]["tensors"] < distances / 4


def test_a_run_on_a_cpu_keeps_what_a_gpu_measured(document):
    assert document["gpu"] == {"device": "another machine"}
    assert document["gpu_status"] == "measured"
    assert "--device cuda" in document["gpu_command"]


def test_quick_results_do_not_get_into_the_file_of_the_whole_run(tmp_path):
    path = tmp_path / "speed.json"
    path.write_text(json.dumps({"quick": False, "cells": {"1": {}}, "gpu": None}))
    before = path.read_bytes()
    with pytest.raises(SystemExit, match="of a whole run, not of a quick run: choose another"):
        quantizer_speed.main(["--quick", "--output", str(path)])
    assert path.read_bytes() == before


def test_goals_are_reached_missed_or_not_measured():
    seconds = {"loop": 100.0, "plain": 10.0, "native": 5.0}
    times = {name: {"median": value, "minimum": value} for name, value in seconds.items()}
    document = {
        "quick": False,
        "cells": {"1": {"f8-256": {"forward": {"milliseconds": times}}}},
        "gpu": None,
        "share": {"share": {"plain": CPU_SHARE / 2, "native": CPU_SHARE * 2}},
    }
    rows = {row["what"]: row for row in goals(document)}
    plain = rows["forward, f8-256: loop / plain, at least"]
    assert (plain["measured"], plain["reached"]) == ({"median": 10.0, "minimum": 10.0}, True)
    assert rows["forward, f8-256: loop / native, at least"]["reached"] is False
    assert rows["search, f8-256: faiss / native, at least"]["reached"] is None
    shares = [row["reached"] for what, row in rows.items() if what.startswith("share of") and "CPU" in what]
    assert shares == [True, False]
    on_gpu = [row for what, row in rows.items() if "triton" in what]
    assert [row["note"] for row in on_gpu] == [UNPROVEN] * 3
    assert len(rows) == len(RATIOS) + 7


def test_networks_are_the_forward_pass_where_the_quantizer_changes_nothing():
    autoencoder = quantizer_share.build_autoencoder(small=True)
    images = torch.rand(1, 3, 16, 16) * 2 - 1  # four positions
    with torch.no_grad():
        before = autoencoder(images).sample
        autoencoder.quantizer.codebooks[:, :4] = (
            autoencoder.transform.analysis(images).reshape(64, 2, 4).transpose(1, 2)
        )
        networks = quantizer_share.networks(autoencoder, images)
        torch.testing.assert_close(networks, autoencoder(images).sample, rtol=0, atol=1e-4)
    assert not torch.allclose(networks, before)


def test_eager_calls_run_as_they_are():
    z = torch.randn(3)
    assert torch.equal(quantizer_share.in_mode("eager", torch.square, z)(), z.square())


def test_a_call_on_the_cpu_launches_nothing_on_a_gpu():
    assert quantizer_share.count_launches(lambda: torch.ones(3).sum()) == 0


def test_resident_memory_sees_what_a_call_takes():
    """In one of many calls: a busy system takes other pages away meanwhile, which hides what the call takes."""
    if peak_resident_bytes(lambda: None) is None:
        pytest.skip("needs Linux")
    assert any(peak_resident_bytes(lambda: torch.ones(2**24)) > 2**25 for _ in range(100))


@pytest.mark.slow
def test_ours_is_faster_than_the_loop_here_too():
    """A loose bound, for a machine that may be busy: half of what is promised."""
    contenders, _ = build(Config(128, 64, 512, 32), names=("loop", "plain"))
    contexts = {name: contender.context for name, contender in contenders.items()}
    z = torch.randn(1, 128, 32, 32)
    for action, least in ((search, 2.5), (forward_backward, 2)):
        calls = {name: action(contender, z) for name, contender in contenders.items()}
        times = interleaved_times(calls, 3, contexts=contexts, clock="processor")
        assert min(times["loop"]) / min(times["plain"]) >= least


def test_processor_time_of_several_threads_is_refused(capsys):
    with pytest.raises(SystemExit):
        quantizer_speed.main(["--clock", "processor", "--threads", "2"])
    assert "--clock processor needs --threads 1" in capsys.readouterr().err


def test_names_of_contenders_are_checked(capsys):
    with pytest.raises(SystemExit):
        quantizer_speed.main(["--only", "nothing"])
    message = capsys.readouterr().err
    assert all(name in message for name in ALL)
