"""Exports for the Hub hold both precisions, in shards, and no files of an earlier export."""

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from pqdiff import PQStableDiffusionPipeline
from pqdiff.hub.export import export_for_hub
from tests.tiny import tiny_components

UNET = "diffusion_pytorch_model"


@pytest.fixture
def pipeline():
    return PQStableDiffusionPipeline(**tiny_components())


def names(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_shards_are_no_larger_than_asked_and_hold_the_weights_of_the_pipeline(tmp_path, pipeline):
    export_for_hub(pipeline, tmp_path / "out", max_shard_size=100_000)
    shards = sorted((tmp_path / "out" / "unet").glob(f"{UNET}-*.safetensors"))
    assert len(shards) > 2
    merged = {}
    for shard in shards:
        tensors = load_file(shard)
        assert sum(tensor.nbytes for tensor in tensors.values()) <= 100_000
        merged |= tensors
    expected = pipeline.unet.state_dict()
    assert merged.keys() == expected.keys()
    assert all(torch.equal(merged[name], expected[name]) for name in expected)


def test_the_index_of_the_fp16_shards_says_where_each_tensor_is_and_how_large_they_are(tmp_path, pipeline):
    export_for_hub(pipeline, tmp_path / "out", max_shard_size=100_000)
    folder = tmp_path / "out" / "unet"
    index = json.loads((folder / f"{UNET}.safetensors.index.fp16.json").read_text())
    assert index["weight_map"].keys() == pipeline.unet.state_dict().keys()
    assert all(".fp16-0" in shard for shard in index["weight_map"].values())
    for name, shard in index["weight_map"].items():
        with safe_open(folder / shard, framework="pt") as file:
            assert file.get_tensor(name).dtype == torch.float16
    assert index["metadata"]["total_size"] == 2 * sum(p.numel() for p in pipeline.unet.parameters())


def test_without_fp16_there_is_only_the_full_precision(tmp_path, pipeline):
    export_for_hub(pipeline, tmp_path / "out", fp16=False)
    assert not [name for name in names(tmp_path / "out") if "fp16" in name]
    assert f"unet/{UNET}.safetensors" in names(tmp_path / "out")


def test_the_pipeline_is_left_as_it_was(tmp_path, pipeline):
    before = {name: tensor.clone() for name, tensor in pipeline.unet.state_dict().items()}
    export_for_hub(pipeline, tmp_path / "out")
    after = pipeline.unet.state_dict()
    assert all(torch.equal(after[name], before[name]) and after[name].dtype == torch.float32 for name in before)


def test_the_configurations_beside_the_fp16_weights_are_of_the_full_precision(tmp_path, pipeline):
    export_for_hub(pipeline, tmp_path / "out")
    pipeline.save_pretrained(tmp_path / "stock")
    for name in ("unet/config.json", "text_encoder/config.json", "vae/config.json", "model_index.json"):
        assert (tmp_path / "out" / name).read_text() == (tmp_path / "stock" / name).read_text()


def test_an_export_replaces_weights_in_any_shards_and_keeps_other_files(tmp_path, pipeline):
    folder = tmp_path / "out"
    export_for_hub(pipeline, folder, max_shard_size=100_000)
    (folder / "variant.yaml").write_text("name: tiny\n")
    (folder / "samples").mkdir()
    (folder / "samples" / "a.png").touch()
    mine = ["unet/notes.txt", "unet/my-ema.safetensors", "unet/runs/log.txt", "vae/diffusion_pytorch_model.bin"]
    (folder / "unet" / "runs").mkdir()
    for name in mine:
        (folder / name).write_text("mine")
    export_for_hub(pipeline, folder)
    export_for_hub(pipeline, tmp_path / "fresh")
    assert names(folder) == sorted([*names(tmp_path / "fresh"), "samples/a.png", "variant.yaml", *mine])
    assert all((folder / name).read_text() == "mine" for name in mine)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fresh", "out"]


def test_a_pipeline_may_be_exported_to_the_folder_it_was_loaded_from(tmp_path, pipeline):
    expected = pipeline.unet.state_dict()
    pipeline.save_pretrained(tmp_path / "out")
    export_for_hub(PQStableDiffusionPipeline.from_pretrained(tmp_path / "out"), tmp_path / "out")
    again = PQStableDiffusionPipeline.from_pretrained(tmp_path / "out").unet.state_dict()
    assert all(torch.equal(again[name], expected[name]) for name in expected)


def test_all_files_of_a_component_have_the_same_permissions(tmp_path, pipeline):
    export_for_hub(pipeline, tmp_path / "out")
    (full,) = (tmp_path / "out" / "unet").glob(f"{UNET}.safetensors")
    (half,) = (tmp_path / "out" / "unet").glob(f"{UNET}.fp16.safetensors")
    assert half.stat().st_mode == full.stat().st_mode


@pytest.mark.parametrize("value", [1e5, -1e5])
def test_weights_that_half_precision_cannot_hold_are_refused_and_nothing_is_written(tmp_path, pipeline, value):
    pipeline.unet.conv_in.bias.data[0] = value
    with pytest.raises(ValueError, match=r"conv_in.bias of unet reaches 100000.*fp16=False"):
        export_for_hub(pipeline, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
    export_for_hub(pipeline, tmp_path / "out", fp16=False)
    assert load_file(tmp_path / "out" / "unet" / f"{UNET}.safetensors")["conv_in.bias"][0] == value


def test_weights_that_are_no_numbers_are_refused(tmp_path, pipeline):
    pipeline.unet.conv_in.bias.data[0] = float("nan")
    with pytest.raises(ValueError, match=r"conv_in.bias of unet reaches nan"):
        export_for_hub(pipeline, tmp_path / "out")


def test_lora_layers_must_be_fused_before(tmp_path, pipeline):
    peft = pytest.importorskip("peft")
    pipeline.unet.add_adapter(peft.LoraConfig(r=2, target_modules=["to_q"]))
    with pytest.raises(ValueError, match=r"unet has LoRA layers.*fuse_lora"):
        export_for_hub(pipeline, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
