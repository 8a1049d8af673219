"""`pqdiff push`: what it lists, what it sends to a stand-in for the Hub, and how it refuses."""

import json

import pytest

from tests.cli.support import assert_done, assert_refused
from tests.hub.hub_server import serve_hub
from tests.hub.support import connect
from tests.tiny import tiny_autoencoder

FILES = ("README.md", "config.json", "diffusion_pytorch_model.safetensors")


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory, one_thread):
    folder = tmp_path_factory.mktemp("push") / "ae"
    tiny_autoencoder().save_pretrained(folder)
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n\n# ae\n")
    (folder / ".secret").touch()
    return folder


@pytest.fixture
def hub(offline, monkeypatch, tmp_path):
    with serve_hub({}, {"token of user": "user"}) as hub:
        connect(monkeypatch, hub.address, "token of user", tmp_path)
        yield hub


def sizes(folder):
    return [{"path": name, "bytes": (folder / name).stat().st_size} for name in FILES]


def test_push_sends_the_folder_and_says_where_it_is(hub, pqdiff, tokenizer):
    result = pqdiff("push", tokenizer, "user/ae")
    assert_done(result)
    assert f"{hub.address}/user/ae" in result.out
    assert all(name in result.out for name in FILES)
    assert "Left out: .secret" in result.out
    assert hub.repositories["user/ae"].files == {name: (tokenizer / name).read_bytes() for name in FILES}


def test_push_of_what_is_there_already_is_done(hub, pqdiff, tokenizer):
    assert_done(pqdiff("push", tokenizer, "user/ae"))
    assert_done(pqdiff("push", tokenizer, "user/ae"))


def test_push_as_json(hub, pqdiff, tokenizer):
    result = pqdiff("push", tokenizer, "user/ae", "--json")
    assert_done(result)
    files = sizes(tokenizer)
    assert json.loads(result.out) == {
        "url": f"{hub.address}/user/ae",
        "dry_run": False,
        "files": files,
        "bytes": sum(file["bytes"] for file in files),
        "left_out": [".secret"],
        "removed": [],
    }


def test_a_dry_run_lists_the_same_and_sends_nothing(hub, pqdiff, tokenizer):
    planned = pqdiff("push", tokenizer, "user/ae", "--dry-run", "--json")
    table = pqdiff("push", tokenizer, "user/ae", "--dry-run")
    assert_done(planned)
    assert_done(table)
    assert hub.requests == []
    assert "Nothing was sent" in table.out
    assert json.loads(planned.out)["dry_run"]
    sent = json.loads(pqdiff("push", tokenizer, "user/ae", "--json").out)
    assert {**json.loads(planned.out), "dry_run": False} == sent


def test_a_dry_run_needs_neither_network_nor_login(pqdiff, tokenizer):
    assert_done(pqdiff("push", tokenizer, "user/ae", "--dry-run"))


def test_a_private_push_makes_a_private_repository(hub, pqdiff, tokenizer):
    assert_done(pqdiff("push", tokenizer, "user/ae", "--private"))
    assert hub.repositories["user/ae"].private


def test_push_refuses_in_one_line(hub, pqdiff, tokenizer, tmp_path, monkeypatch):
    assert_refused(pqdiff("push", tmp_path / "none", "user/ae"), tmp_path / "none")
    assert_refused(pqdiff("push", tokenizer, "ae"), "repo_id (ae)")
    assert_refused(pqdiff("push", tokenizer, "another/ae"), "no permission to write to another/ae")
    connect(monkeypatch, hub.address, None, tmp_path)
    assert_refused(pqdiff("push", tokenizer, "user/ae"), "not logged in")
    assert hub.repositories == {}


def test_push_without_network_is_refused_in_one_line(pqdiff, tokenizer):
    assert_refused(pqdiff("push", tokenizer, "user/ae"), "cannot be reached")
