"""Folders of this machine do not reach other people through saved configurations."""

import json

from pqdiff.hub.local_paths import forget_local_paths


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
