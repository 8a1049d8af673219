"""A pipeline as a trainer leaves it, and a stand-in for the Hub to push it to."""

import shutil

import pytest

from pqdiff import PQStableDiffusionPipeline
from pqdiff.hub.export import export_for_hub
from tests.hub.hub_server import serve_hub
from tests.hub.support import TOKENS, connect
from tests.tiny import tiny_components


@pytest.fixture(scope="session")
def pipeline():
    pipe = PQStableDiffusionPipeline(**tiny_components())
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="session")
def exported(pipeline, tmp_path_factory):
    """A pipeline in shards and both precisions, as `adapt_sd.py --push_to_hub` leaves it."""
    folder = tmp_path_factory.mktemp("exported") / "pipe"
    export_for_hub(pipeline, folder, max_shard_size="150KB")
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n\n# pipe\n")
    (folder / "variant.yaml").write_text("name: tiny\n")
    (folder / "metrics.json").write_text('{"metrics": {"right": 0.5}}')
    (folder / "samples").mkdir()
    (folder / "samples" / "a.png").write_bytes(b"\x89PNG of a sample")
    return folder


@pytest.fixture
def folder(exported, tmp_path):
    """A copy to change."""
    return shutil.copytree(exported, tmp_path / "pipe")


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """The stand-in, and this process logged in as user."""
    with serve_hub({}, TOKENS) as hub:
        connect(monkeypatch, hub.address, "token of user", tmp_path)
        yield hub
