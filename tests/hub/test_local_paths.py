"""Folders of this machine do not reach other people through saved configurations."""

import json

import pytest

from pqdiff.hub.local_paths import forget_local_paths, public_name, without_local_paths


def test_local_paths_are_removed_and_hub_ids_stay(tmp_path):
    contents = {
        "config.json": {"_name_or_path": str(tmp_path), "a": 1},
        "unet/config.json": {"_name_or_path": "/gone/for/ever", "a": 1},
        "vae/config.json": {"_name_or_path": "", "a": 1},
        "text_encoder/config.json": {"_name_or_path": "user/model", "a": 1},
        "list.json": [1, 2],
    }
    for name, content in contents.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(json.dumps(content))
    forget_local_paths(tmp_path)
    for name, content in contents.items():
        local = isinstance(content, dict) and content["_name_or_path"] != "user/model"
        assert json.loads((tmp_path / name).read_text()) == ({"a": 1} if local else content)


@pytest.mark.parametrize(
    ("value", "public"),
    [
        (
            {"a": [{"name_or_path": "../x", "tokenizer_file": "/a/b.json", "_class_name": "A"}]},
            {"a": [{"_class_name": "A"}]},
        ),
        ({"data": "/home/me/photos", "b": "~/c/d", "c": "C:\\me\\e"}, {"data": "photos", "b": "d", "c": "e"}),
        (  # as in metrics: names of entries, and within a sentence
            {
                "/home/me/a/m": 1,
                "/home/me/b/m": 2,
                "../c/n": "weights: /home/me/.cache/x.pth (or ~/w/y.pth) are missing",
            },
            {"m": 1, "m (2)": 2, "n": "weights: x.pth (or y.pth) are missing"},
        ),
        ({"a": "https://host/u/n, a/b/c, 1/2/3, \\n\\n, </s>/<s>"}, None),
        ({"unk_token": "/", "pad": "//", "eos": "</s>", "tokenizer_file": "tokenizer.json", "x": "a / b"}, None),
    ],
)
def test_no_text_is_a_path_of_this_machine(value, public):
    assert without_local_paths(value) == (value if public is None else public)


def test_a_public_name_shows_no_folder(tmp_path, monkeypatch):
    (tmp_path / "user" / "model").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    for source in (tmp_path / "user" / "model", "user/model", "user/model/", "/gone/model", "../model", "~/model"):
        assert public_name(source) == "model"
    for source in ("user/another", "tiny-base"):
        assert public_name(source) == source
