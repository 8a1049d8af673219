"""Whatever happens to the files of a model, it loads and works, or is refused in one line; seeded, so that a failure
comes again."""

import contextlib
import json
import resource
import struct

import numpy as np
import pytest
import torch

from pqdiff import AutoencoderPQ
from pqdiff.hub.pipelines import load_pipeline
from pqdiff.models.loading import load_autoencoder
from tests.autoencoders import build
from tests.damage import damage, damage_json
from tests.pipelines.support import build as build_pipeline
from tests.tiny import tiny_kl_autoencoder

WEIGHTS = "diffusion_pytorch_model.safetensors"
MORE_MEMORY = 2**20  # KiB: what a model of a file of some KiB may take


@pytest.fixture(autouse=True)
def bounded_memory():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < before + MORE_MEMORY


def damaged(content: bytes, number: int, generator) -> bytes:
    """A document, or weights, with wrong values at every second number, and wrong bytes at the others."""
    if number % 2:
        return damage(content, generator)
    if content.startswith(b"{"):
        return json.dumps(damage_json(json.loads(content), generator)).encode()
    length = struct.unpack("<Q", content[:8])[0]
    header = json.dumps(damage_json(json.loads(content[8 : 8 + length]), generator)).encode()
    return struct.pack("<Q", len(header)) + header + content[8 + length :]


def each_damage(path, count: int):
    """Yield `count` times, the file damaged in another way each time, and whole in the end."""
    content, generator = path.read_bytes(), np.random.default_rng(0)
    for number in range(count):
        path.unlink()  # a loaded model may have the old file in its memory
        path.write_bytes(damaged(content, number, generator))
        yield
    path.unlink()
    path.write_bytes(content)


def loaded_or_refused(load, source):
    """What was loaded, or None for a ValueError of one line that names the source."""
    try:
        return load(source)
    except ValueError as error:
        message = str(error)
        assert f"({source}) cannot be loaded: " in message, message
        assert message.isprintable(), message
        return None


@pytest.mark.parametrize(
    ("kind", "count"),
    [
        *[("classes", 12), ("kl", 6)],
        *[
            pytest.param(kind, 100, marks=pytest.mark.slow)
            for kind in ("classes", "both", "networks", "refined", "kl")
        ],
    ],
)
@pytest.mark.parametrize("file", ["config.json", WEIGHTS])
def test_damaged_autoencoders_load_or_are_refused_in_one_line(tmp_path, kind, file, count):
    (tiny_kl_autoencoder() if kind == "kl" else build(kind)).save_pretrained(tmp_path)
    for _ in each_damage(tmp_path / file, count):
        model = loaded_or_refused(load_autoencoder, tmp_path)
        if isinstance(model, AutoencoderPQ) and model.downsample_factor <= 32:
            image = torch.zeros(1, model.config.in_channels, model.downsample_factor, 2 * model.downsample_factor)
            assert model.decode(model.encode(image).latents).sample.shape == image.shape
        with contextlib.suppress(ValueError, OSError):
            AutoencoderPQ.from_pretrained(tmp_path)
    assert loaded_or_refused(load_autoencoder, tmp_path) is not None
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", WEIGHTS]


@pytest.mark.parametrize(
    ("names", "count"),
    [("model_index.json", 4), pytest.param("*", 10, marks=pytest.mark.slow)],
)
def test_damaged_pipelines_load_or_are_refused_in_one_line(tmp_path, names, count):
    build_pipeline().save_pretrained(tmp_path)
    files = sorted(path for path in tmp_path.rglob("*") if path.is_file())
    for path in (path for path in files if path.match(names)):
        for _ in each_damage(path, count):
            loaded_or_refused(load_pipeline, tmp_path)
    assert loaded_or_refused(load_pipeline, tmp_path) is not None
    assert sorted(path for path in tmp_path.rglob("*") if path.is_file()) == files
