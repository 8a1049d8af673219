"""Whatever happens to a file, it is read, or refused by a ValueError of one line; seeded, so that a failure comes again."""

import io
import json

import numpy as np
import pytest
import torch
from PIL import Image

from pqdiff.data.cache.image_codes import ImageCodes, load_codes, save_codes
from pqdiff.data.cache.reader import LatentCache
from pqdiff.data.cache.shards import INDEX
from pqdiff.data.images.lazy_image import LazyImage
from tests.damage import damage, damage_json
from tests.data.cache.support import write
from tests.data.images.support import DISPLAY_P3, png

LENGTHS = pytest.mark.parametrize("count", [120, pytest.param(4000, marks=pytest.mark.slow)])


def assert_read_or_refused(read, name: str) -> bool:
    """Whether it was read. Any other exception than a ValueError of one line that begins with the name is a failure."""
    try:
        read()
    except ValueError as error:
        message = str(error)
        assert message.startswith(name), message
        assert message.isprintable(), message
        return False
    return True


def images():
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 40, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a description"
    for kind, options in {
        "jpeg": {"exif": exif, "icc_profile": DISPLAY_P3},
        "png": {"exif": exif, "icc_profile": DISPLAY_P3},
        "webp": {"exif": exif, "icc_profile": DISPLAY_P3},
        "avif": {"exif": exif, "icc_profile": DISPLAY_P3},
        "tiff": {"compression": "tiff_lzw"},
        "bmp": {},
        "gif": {},
    }.items():
        file = io.BytesIO()
        photo.save(file, kind, **options)
        yield kind, file.getvalue()
    yield "16-bit png", png(np.random.default_rng(1).integers(0, 65536, (12, 20, 4)))
    file = io.BytesIO()
    photo.save(file, "tiff")
    yield "uncompressed tiff", file.getvalue()


@LENGTHS
@pytest.mark.parametrize(("kind", "content"), images(), ids=lambda value: value if isinstance(value, str) else "")
def test_damaged_images_are_read_or_refused_in_one_line(kind, content, count):
    generator = np.random.default_rng(0)
    for _ in range(count):
        row = LazyImage("photo", (), damage(content, generator))
        assert_read_or_refused(lambda row=row: row.size, "photo: ")
        if assert_read_or_refused(lambda row=row: row.load(), "photo: "):
            assert (row.load().mode, row.load().size) == ("RGB", row.size)


@LENGTHS
def test_damaged_codes_are_read_or_refused_in_one_line(tmp_path, count):
    path, generator = tmp_path / "x.pq.safetensors", np.random.default_rng(0)
    tokens = torch.randint(5, (3, 4, 5), generator=torch.manual_seed(0))
    save_codes(ImageCodes(tokens, (5, 300, 2**40), 32, 40, "some-model", "0123"), path)
    content, read = path.read_bytes(), 0
    for _ in range(count):
        path.write_bytes(damage(content, generator))
        read += assert_read_or_refused(lambda: load_codes(path), f"{path}: ")
        assert_read_or_refused(lambda: load_codes(path, header_only=True), f"{path}: ")
    assert 0 < read < count


@LENGTHS
@pytest.mark.parametrize("kind", ["indices", "latents"])
def test_damaged_indexes_of_caches_are_read_or_refused_in_one_line(tmp_path, count, kind):
    folder, generator = write(tmp_path / "c", kind=kind, count=5), np.random.default_rng(0)
    content = (folder / INDEX).read_bytes()
    document, read = json.loads(content), 0
    for number in range(count):
        changed = damage(content, generator) if number % 2 else json.dumps(damage_json(document, generator)).encode()
        (folder / INDEX).write_bytes(changed)
        read += assert_read_or_refused(lambda: list(LatentCache(folder)), f"{folder}")
    assert 0 < read < count


@LENGTHS
@pytest.mark.parametrize("kind", ["indices", "latents"])
def test_damaged_shards_of_caches_are_read_or_refused_in_one_line(tmp_path, count, kind):
    folder, generator = write(tmp_path / "c", kind=kind, count=3), np.random.default_rng(0)
    path = folder / "shard-00000.safetensors"
    content, read = path.read_bytes(), 0
    for _ in range(count):
        path.write_bytes(damage(content, generator))
        read += assert_read_or_refused(lambda: list(LatentCache(folder)), f"{folder}")
    assert 0 < read < count
