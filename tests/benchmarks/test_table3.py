"""Table 3 and the size of SD2.1: true sizes are counted on meta tensors, everything that computes is tiny."""

import itertools
import json

import pytest
import torch
import torch.nn.functional as F

from benchmarks import sd21_size, table3
from benchmarks.flops import flops_of
from benchmarks.render_readme import RESULTS
from benchmarks.sampling import PARTS, Components, flash_attention_works, measure_row, sample
from benchmarks.sd21 import (
    FULL,
    ROWS,
    TINY,
    UNET_PARAMETERS,
    build_autoencoder,
    build_text_encoder,
    build_unet,
    check_unet,
    count_parameters,
)

GPU_SECTION = {"device": "another machine"}


def tiny_components(name: str, dtype: torch.dtype = torch.float32) -> Components:
    torch.manual_seed(0)
    return Components.build(ROWS[name], TINY, dtype, "cpu")


def random_meta(*shape: int) -> torch.Tensor:
    return torch.empty(shape, device="meta")


@pytest.fixture(scope="module")
def document(tmp_path_factory) -> dict:
    """What the command writes at toy size, into a file that a GPU has filled before."""
    path = tmp_path_factory.mktemp("table3") / "table3.json"
    path.write_text(json.dumps({"networks": "tiny", "cpu": None, "gpu": GPU_SECTION}))
    command = "--tiny --device cpu --threads 1 --steps 10 --rounds 2 --decoder-rounds 1 --output"
    table3.main([*command.split(), str(path)])
    return json.loads(path.read_text())


@pytest.mark.parametrize("channels", UNET_PARAMETERS)
def test_the_unet_has_the_published_number_of_parameters(channels):
    unet = build_unet(FULL, channels, torch.bfloat16, "meta")
    assert count_parameters(unet) == UNET_PARAMETERS[channels]
    assert unet.conv_in.weight.shape == (320, channels, 3, 3)
    assert unet.dtype == torch.bfloat16


def test_text_encoder_and_decoder_have_the_published_numbers_of_parameters():
    assert count_parameters(build_text_encoder(FULL, torch.bfloat16, "meta")) == 340_387_840
    assert count_parameters(build_autoencoder(FULL, None, torch.bfloat16, "meta")) == 83_653_863


def test_another_unet_is_not_taken_for_that_of_sd21():
    with pytest.raises(ValueError, match=r"must have 865,910,724 at 4 channels"):
        check_unet(build_unet(TINY, 4, torch.float32))


def test_codewords_stay_in_fp32_beside_networks_in_bf16():
    autoencoder = build_autoencoder(TINY, "f8-d128-s64-k512", torch.bfloat16)
    assert autoencoder.quantizer.codebooks.dtype == torch.float32
    assert {parameter.dtype for parameter in autoencoder.transform.decoder.parameters()} == {torch.bfloat16}


def test_flops_of_attention_and_convolution_are_those_of_the_formula():
    query, key = random_meta(2, 5, 96, 64), random_meta(2, 5, 77, 64)
    assert flops_of(lambda: F.scaled_dot_product_attention(query, key, key)) == 2 * 2 * (2 * 5 * 96 * 77 * 64)
    image, weight = random_meta(2, 4, 8, 8), random_meta(16, 4, 3, 3)
    assert flops_of(lambda: F.conv2d(image, weight, padding=1)) == 2 * (2 * 8 * 8 * 16 * 4 * 3 * 3)


def test_flops_of_a_decoder_include_the_search_for_codewords():
    autoencoder = build_autoencoder(TINY, "f8-d128-s64-k512", torch.float32, "meta")
    latents = random_meta(1, 128, 4, 4)
    with_search, without = (
        flops_of(lambda q=quantize: autoencoder.decode(latents, quantize=q)) for quantize in (True, False)
    )
    assert with_search - without == 2 * 16 * 64 * 512 * 3  # positions, subspaces, codewords, dimensions and one


def test_a_sample_is_a_picture_and_guidance_doubles_the_unet_batch():
    for name, side in (("sd21-768", 64), ("hr-1536", 128), ("precise-768", 64), ("quick-768", 64)):
        components, batches = tiny_components(name, torch.bfloat16), []
        components.unet.register_forward_hook(lambda module, args, output, b=batches: b.append(len(args[0])))
        image, seconds = sample(components, 3, "cpu")
        assert image.shape == (1, 3, side, side)
        assert image.isfinite().all()
        assert batches == [2, 2, 2]
        assert set(seconds) == set(PARTS)
        assert min(seconds.values()) > 0


def test_guidance_moves_away_from_the_prediction_without_a_prompt():
    components = tiny_components("sd21-768")
    latents, timestep = torch.randn(components.latent_shape), torch.tensor(500)
    text = torch.randn(2, 77, 16)
    with torch.no_grad():
        without, with_prompt = (components.unet(latents, timestep, t[None]).sample for t in text)
        expected = without + 7.5 * (with_prompt - without)
        torch.testing.assert_close(components.predict(latents, timestep, text), expected, rtol=1e-4, atol=1e-4)


def test_speed_of_a_row_is_the_inverse_of_its_seconds():
    row = measure_row(ROWS["quick-768"], TINY, torch.bfloat16, "cpu", steps=2, samples=3, compiled=False)
    assert row["samples_per_second"] == pytest.approx(1 / row["seconds"]["sample"])
    assert max(row["seconds"][part] for part in PARTS) <= row["seconds"]["sample"]


@pytest.mark.filterwarnings("ignore::UserWarning")  # torch says why it has no flash attention for integers
def test_flash_attention_is_tried_and_not_assumed():
    assert flash_attention_works("cpu", torch.float32)
    assert not flash_attention_works("cpu", torch.int64)


def ticks():
    """A clock that goes on by one each time it is read: no test depends on how busy the machine is."""
    return itertools.count().__next__


def test_calls_take_turns_in_alternating_order(capsys):
    order = []
    calls = {("a",): lambda: order.append("a"), ("b",): lambda: order.append("b")}
    times = table3.interleaved_times(calls, rounds=3, clock=ticks())
    assert order == ["a", "b", "b", "a", "a", "b"]
    assert [len(seconds) for seconds in times.values()] == [3, 3]
    assert "round 3 of 3" in capsys.readouterr().out


def test_a_unet_call_remembers_the_time_of_its_projections():
    clock = ticks()
    call = table3.UnetCall(tiny_components("precise-768"), clock)
    with torch.no_grad():
        times = table3.interleaved_times({("unet", 128, 96): call}, rounds=3, clock=clock)
    assert len(call.projection_seconds) == 3
    assert all(0 < part < whole for part, whole in zip(call.projection_seconds, *times.values(), strict=True))


def test_unets_on_the_same_shapes_differ_in_their_projections_alone():
    calls, components = {}, tiny_components("quick-768")
    for channels, side, projections in (
        (4, 96, [9.0, 1.0, 1.0]),
        (128, 96, [9.0, 2.0, 3.0]),
        (128, 48, [9.0, 0.5, 0.5]),
    ):
        calls["unet", channels, side] = table3.UnetCall(components, ticks())
        calls["unet", channels, side].projection_seconds = projections  # the first of warming up
    times = {("unet", 4, 96): [11.0, 13.0], ("unet", 128, 96): [16.0, 19.0], ("unet", 128, 48): [2.5, 3.5]}
    seconds = table3.call_seconds(calls, {**times, ("text_encoder",): [0.25, 0.75]})
    # Between the projections: 10, 12, 14 and 16 seconds on 96 x 96 positions, 2 and 3 on 48 x 48.
    assert seconds == {
        ("unet", 4, 96): 14.0,
        ("unet", 128, 96): 15.5,
        ("unet", 128, 48): 3.0,
        ("text_encoder",): 0.5,
    }


def test_a_sample_on_a_cpu_is_the_sum_of_its_calls(document):
    assert set(document["cpu"]["rows"]) == set(ROWS)
    for row in document["cpu"]["rows"].values():
        seconds = row["seconds"]
        total = seconds["text_encoder"] + 10 * seconds["unet_call"] + seconds["decoder"]
        assert seconds["sample"] == pytest.approx(total, abs=12 * 0.0005 + 1e-9)  # each is rounded to a millisecond
        assert row["samples_per_second"] == pytest.approx(1 / seconds["sample"], rel=0.05)
        assert row["peak_gigabytes"] >= row["weight_gigabytes"]


def test_flops_of_a_sample_are_the_sum_of_its_calls(document):
    flops = document["flops"]
    assert flops["steps"] == 10
    for row in flops["rows"].values():
        assert row["sample"] == row["text_encoder"] + 10 * row["unet_call"] + row["decoder"]
    base, quick = (flops["rows"][name]["sample"] for name in ("sd21-768", "quick-768"))
    assert flops["ratios"]["quick-768"] == pytest.approx(base / quick, abs=1e-3)


def test_rows_with_the_same_unet_call_share_its_time(document):
    rows = document["cpu"]["rows"]
    assert rows["hr-1536"]["seconds"]["unet_call"] == rows["precise-768"]["seconds"]["unet_call"]
    assert table3.row_parts("hr-1536")["decoder"] != table3.row_parts("quick-768")["decoder"]


def test_a_run_on_a_cpu_keeps_what_a_gpu_measured(document):
    assert document["gpu"] == GPU_SECTION
    assert "--device cuda" in document["gpu_command"]


def test_toy_results_do_not_get_into_the_file_of_the_true_size(tmp_path):
    path = tmp_path / "table3.json"
    path.write_text(json.dumps({"networks": "full size, random weights", "cpu": None, "gpu": GPU_SECTION}))
    before = path.read_bytes()
    with pytest.raises(SystemExit, match="choose another"):
        table3.main(["--tiny", "--device", "cpu", "--output", str(path)])
    assert path.read_bytes() == before


def test_impossible_counts_are_refused(capsys):
    with pytest.raises(SystemExit):
        table3.main(["--tiny", "--rounds", "0"])
    assert "--rounds must be at least 1, got 0" in capsys.readouterr().err


def test_processor_time_is_refused_for_threads_that_wait_for_each_other(capsys):
    with pytest.raises(SystemExit):
        table3.main(["--tiny", "--clock", "processor", "--threads", "2"])
    assert "--clock processor needs --threads 1, got 2" in capsys.readouterr().err


def test_the_widened_unet_survives_shards_and_takes_a_step(tmp_path):
    results = sd21_size.measure(TINY, tmp_path, "50KB")
    assert results["saved"]["shards"] == len(list(tmp_path.glob("*.safetensors"))) > 1
    assert results["saved"]["loaded_bit_for_bit"]
    assert results["saved"]["bytes"] > 2 * results["parameters"]["128"]  # fp16, and the headers
    assert {"build", "widen", "save", "load", "step_4x4", "step_8x8"} <= set(results["seconds"])
    assert results["peak_resident_gigabytes"] > 0


def test_every_difference_between_state_dicts_is_found():
    state = {"zero": torch.zeros(3), "nan": torch.tensor([float("nan")]), "long": torch.zeros(2)}
    assert sd21_size.differing_tensors(state, {name: tensor.clone() for name, tensor in state.items()}) == []
    other = {"zero": -torch.zeros(3), "nan": state["nan"], "long": torch.zeros(3), "more": torch.zeros(1)}
    assert sd21_size.differing_tensors(state, other) == ["long", "more", "zero"]
    assert sd21_size.differing_tensors({"w": torch.zeros(2)}, {"w": torch.zeros(2).half()}) == ["w"]


def test_committed_table_reaches_the_promises():
    document = json.loads((RESULTS / "table3.json").read_text())
    assert document["networks"] == "full size, random weights"
    assert document["flops"]["steps"] == document["cpu"]["steps"] == 50
    for name, least in {"quick-768": 4.3, "hr-1536": 0.97, "precise-768": 0.99}.items():
        assert document["flops"]["ratios"][name] >= least
        assert document["cpu"]["ratios"][name] >= least
    parameters = {name: row["unet_parameters"] for name, row in document["flops"]["rows"].items()}
    assert parameters == {name: UNET_PARAMETERS[row.latent_channels] for name, row in ROWS.items()}
    assert max(row["peak_gigabytes"] for row in document["cpu"]["rows"].values()) < 7.7  # the paper's least


def test_committed_flops_are_those_of_this_code():
    document = json.loads((RESULTS / "table3.json").read_text())
    components = Components.build(ROWS["quick-768"], FULL, torch.bfloat16, "meta")
    latents, text = random_meta(1, 128, 48, 48).bfloat16(), random_meta(2, 77, 1024).bfloat16()
    timestep = random_meta().long()
    flops = flops_of(lambda: components.predict(latents, timestep, text))
    assert flops == document["flops"]["rows"]["quick-768"]["unet_call"]


def test_committed_size_is_that_of_sd21():
    results = json.loads((RESULTS / "sd21_size.json").read_text())["results"]
    assert results["parameters"] == {"4": 865_910_724, "128": 866_625_088}
    assert results["saved"]["loaded_bit_for_bit"]
    assert results["saved"]["shards"] > 1
    assert results["step"]["finite"]
