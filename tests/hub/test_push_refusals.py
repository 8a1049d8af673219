"""A push that is incomplete, forbidden or without a connection is refused in one line and changes nothing on the Hub."""

import json
import shutil
from pathlib import Path

import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file, save_file

from pqdiff.hub.push import push_folder
from tests.hub.hub_server import serve_hub
from tests.hub.support import connect, refusal
from tests.tiny import tiny_autoencoder

OUTSIDE = Path(__file__)  # a file that is not in the folder
UNET = "unet/diffusion_pytorch_model"


# Folders that are not whole.


def cut(path):
    path.write_bytes(path.read_bytes()[:-1])


def edit(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def move_tensor(path):
    """The index says another shard than the one that has it."""
    places = json.loads(path.read_text())["weight_map"]
    shards = sorted(set(places.values()))
    name = next(name for name, shard in places.items() if shard == shards[0])
    edit(path, weight_map={**places, name: shards[1]})


BREAKS = {
    "is missing": lambda folder: (folder / "unet" / "config.json").unlink(),
    "no folder vae/": lambda folder: shutil.rmtree(folder / "vae"),
    "tokenizer/ (CLIPTokenizer) has no vocabulary": lambda folder: (folder / "tokenizer/tokenizer.json").unlink(),
    "scheduler/ (DDIMScheduler) has no conf": lambda folder: (folder / "scheduler/scheduler_config.json").unlink(),
    "text_encoder/ (CLIPTextModel) has no weights": lambda folder: (
        folder / "text_encoder/model.safetensors"
    ).unlink(),
    "text_encoder/model.safetensors is damaged": lambda folder: cut(folder / "text_encoder/model.safetensors"),
    "text_encoder/model.fp16.safetensors is damaged": lambda folder: cut(
        folder / "text_encoder/model.fp16.safetensors"
    ),
    "00001-of-00002.safetensors is damaged": lambda folder: cut(folder / f"{UNET}-00001-of-00002.safetensors"),
    "which does not exist": lambda folder: (folder / f"{UNET}-00002-of-00002.safetensors").unlink(),
    "no index names": lambda folder: (folder / f"{UNET}.safetensors.index.fp16.json").unlink(),
    "disagree about": lambda folder: move_tensor(folder / f"{UNET}.safetensors.index.json"),
    "has no weight_map": lambda folder: edit(folder / f"{UNET}.safetensors.index.json", weight_map={}),
    "remove the older of the two": lambda folder: save_file({"a": torch.zeros(1)}, folder / f"{UNET}.safetensors"),
    "is of a AutoencoderKL": lambda folder: edit(folder / "unet/config.json", _class_name="AutoencoderKL"),
    "model_index.json cannot be read": lambda folder: (folder / "model_index.json").write_text("{"),
    "must hold a JSON object": lambda folder: (folder / "model_index.json").write_text("[]"),
    "names no component": lambda folder: (folder / "model_index.json").write_text("{}"),
    "neither model_index.json nor config.json": lambda folder: (folder / "model_index.json").unlink(),
    "README.md has no valid metadata": lambda folder: (folder / "README.md").write_text("---\na: [\n---\n"),
    "lora_weights.safetensors is damaged": lambda folder: (folder / "pytorch_lora_weights.safetensors").touch(),
    "names '../other', which is no folder": lambda folder: edit(
        folder / "model_index.json", **{"../other": ["a", "B"]}
    ),
    "samples/b.png is a link": lambda folder: (folder / "samples/b.png").symlink_to(OUTSIDE),
    "notes is a link": lambda folder: (folder / "notes").symlink_to(OUTSIDE),
    "home is a link": lambda folder: (folder / "home").symlink_to(OUTSIDE.parent),
    "vae/a is a link": lambda folder: [(folder / "vae" / name).symlink_to(".") for name in "ab"],
    "gone is a link": lambda folder: (folder / "gone").symlink_to("gone"),
    "README.md is a link": lambda folder: [
        (folder / ".env").write_text("secret"),
        (folder / "README.md").unlink(),
        (folder / "README.md").symlink_to(".env"),
    ],
}


@pytest.mark.parametrize("reason", BREAKS)
def test_a_folder_that_is_not_whole_is_refused_before_anything_is_sent(hub, folder, reason):
    BREAKS[reason](folder)
    message = refusal(ValueError, folder)
    assert reason in message
    assert str(folder) in message
    assert hub.requests == []


def test_pickled_weights_are_no_weights(hub, folder):
    weights = folder / "text_encoder" / "model.safetensors"
    torch.save(load_file(weights), folder / "text_encoder" / "pytorch_model.bin")
    for path in (folder / "text_encoder").glob("*.safetensors"):
        path.unlink()
    assert "pytorch_model.bin alone is not enough" in refusal(ValueError, folder)
    assert hub.requests == []


def test_a_model_whose_weights_are_cut_short_is_refused(hub, tmp_path):
    tiny_autoencoder().save_pretrained(tmp_path / "ae")
    cut(tmp_path / "ae" / "diffusion_pytorch_model.safetensors")
    assert "damaged or cut short" in refusal(ValueError, tmp_path / "ae")
    assert hub.requests == []


def test_folders_without_a_model_are_refused(hub, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text('{"hidden_size": 3}')
    for name, reason in {
        "missing": "does not exist",
        "file": "is a file",
        "empty": "is empty",
        "other": "names no class",
    }.items():
        assert reason in refusal(ValueError, tmp_path / name)
    assert hub.requests == []


@pytest.mark.parametrize(
    "repo_id", ["", "pipe", "a/b/c", "user/a b", "user/", "/pipe", "user/x--y", "https://hub/user/pipe"]
)
def test_a_bad_repo_id_is_refused(hub, exported, repo_id):
    assert f"repo_id ({repo_id})" in refusal(ValueError, exported, repo_id)
    assert hub.requests == []


# A Hub that does not want it, or is not there.


def test_a_push_without_login_says_how_to_log_in(hub, exported, monkeypatch, tmp_path):
    connect(monkeypatch, hub.address, None, tmp_path)
    message = refusal(PermissionError, exported)
    assert message.startswith("not logged in")
    assert "hf auth login" in message
    assert hub.repositories == {}


def test_a_push_without_login_to_what_exists_changes_nothing(hub, exported, monkeypatch, tmp_path):
    push_folder(exported, "user/pipe")
    before = hub.repositories["user/pipe"].commit
    connect(monkeypatch, hub.address, None, tmp_path)
    assert refusal(PermissionError, exported).startswith("not logged in")
    assert hub.repositories["user/pipe"].commit == before


def test_a_token_that_the_hub_does_not_know_is_named_as_the_reason(hub, exported):
    assert "does not accept the token" in refusal(PermissionError, exported, token="no token")
    assert hub.repositories == {}


@pytest.mark.parametrize("exists", [False, True])
def test_what_belongs_to_another_is_not_written_to(hub, exported, exists):
    if exists:
        push_folder(exported, "another/pipe", token="token of another")
    before = {name: repository.commit for name, repository in hub.repositories.items()}
    message = refusal(PermissionError, exported, "another/pipe")
    assert "no permission to write to another/pipe" in message
    assert {name: repository.commit for name, repository in hub.repositories.items()} == before


def test_a_hub_that_cannot_be_reached_is_one_line(exported, monkeypatch, tmp_path):
    with serve_hub({}) as hub:
        address = hub.address  # free again after the block
    connect(monkeypatch, address, "token of user", tmp_path)
    assert "cannot be reached" in refusal(ConnectionError, exported)


def test_offline_mode_is_one_line(hub, exported, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert "cannot be reached" in refusal(ConnectionError, exported)
    assert hub.requests == []


@pytest.mark.parametrize("token", ["hf_secret\u2026", "hf_secret\x00", "hf_secret one", "hf_secret\nX: y"])
def test_a_token_with_a_stray_character_is_not_shown(hub, exported, monkeypatch, token):
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", "/no/such/file")
    with pytest.raises((ValueError, OSError)) as error:
        push_folder(exported, "user/pipe", token=token)
    assert "secret" not in str(error.value)
    assert "\n" not in str(error.value)


def test_a_password_in_the_address_of_the_hub_is_not_shown(hub, exported, monkeypatch, tmp_path):
    connect(monkeypatch, hub.address.replace("://", "://user:secret@"), "token of user", tmp_path)
    assert "secret" not in push_folder(exported, "user/pipe", dry_run=True).url
    hub.fails = True
    assert "secret" not in refusal(ConnectionError, exported)


def test_a_hub_that_fails_is_one_line(hub, exported):
    hub.fails = True
    assert "503" in refusal(ConnectionError, exported)


def test_a_variant_file_that_cannot_be_read_is_refused(hub, folder):
    (folder / "README.md").unlink()
    for text in ("a: [", "only text"):
        (folder / "variant.yaml").write_text(text)
        assert "variant.yaml" in refusal(ValueError, folder)
    assert hub.requests == []


# Private repositories.


def test_a_private_push_can_be_read_by_its_owner_alone(hub, exported):
    push_folder(exported, "user/pipe", private=True)
    api = huggingface_hub.HfApi()
    assert api.model_info("user/pipe").private
    with pytest.raises(huggingface_hub.errors.RepositoryNotFoundError):
        api.model_info("user/pipe", token="token of another")
    push_folder(exported, "user/pipe", private=True)  # again, now that it exists


def test_a_private_push_does_not_go_to_a_public_repository(hub, exported, folder):
    push_folder(exported, "user/pipe")
    before = hub.repositories["user/pipe"].commit
    (folder / "variant.yaml").write_text("name: secret\n")
    assert "is public, nothing was sent" in refusal(ValueError, folder, private=True)
    assert hub.repositories["user/pipe"].commit == before
