"""Sizes need no decoding and are those of the upright image; what is no image is named in one line."""

import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from pqdiff.data.images.lazy_image import LazyImage

TURNED = 6  # EXIF orientation of an image that is to be turned by a quarter


def noise(number, size=(30, 20)):
    width, height = size
    return Image.fromarray(np.random.default_rng(number).integers(0, 256, (height, width, 3), dtype=np.uint8))


def lazy(path):
    return LazyImage("x", (), path)


def save(path, number=0, size=(30, 20), orientation=None):
    exif = Image.Exif()
    if orientation:
        exif[0x0112] = orientation
    path.parent.mkdir(parents=True, exist_ok=True)
    noise(number, size).save(path, exif=exif)
    return path


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
@pytest.mark.parametrize("orientation", [None, 1, 3, TURNED, 8])
def test_sizes_are_those_of_the_upright_image(tmp_path, suffix, orientation):
    path = save(tmp_path / f"a.{suffix}", orientation=orientation)
    for image in (lazy(path), LazyImage("x", (), path.read_bytes())):
        assert image.size == image.load().size == ((20, 30) if orientation in (TURNED, 8) else (30, 20))


def test_sizes_do_not_decode_pixels(tmp_path):
    for suffix in ("jpg", "png"):
        path = save(tmp_path / suffix / f"a.{suffix}", size=(300, 200))
        path.write_bytes(path.read_bytes()[:-50])  # the pixels are damaged, the header is not
        assert lazy(path).size == (300, 200)
        with pytest.raises(ValueError, match=f"a.{suffix}"):
            lazy(path).load()


def test_an_orientation_after_the_pixels_of_a_png_counts(tmp_path):
    path = save(tmp_path / "a.png")
    exif = Image.Exif()
    exif[0x0112] = TURNED
    data = exif.tobytes().removeprefix(b"Exif\0\0")
    chunk = struct.pack(">I", len(data)) + b"eXIf" + data + struct.pack(">I", zlib.crc32(b"eXIf" + data))
    content = path.read_bytes()
    end = content.rindex(b"IEND") - 4
    path.write_bytes(content[:end] + chunk + content[end:])
    assert lazy(path).size == lazy(path).load().size == (20, 30)


@pytest.mark.parametrize("mode", ["L", "I;16", "CMYK"])
@pytest.mark.parametrize("orientation", [1, 2, TURNED])
def test_a_turned_tiff_has_the_size_and_pixels_of_the_upright_image(tmp_path, orientation, mode):
    exif, path = Image.Exif(), tmp_path / "x.tif"
    exif[0x0112] = orientation
    gray = noise(0).convert("L")
    stored = Image.fromarray(np.asarray(gray).astype(np.uint16) * 257) if mode == "I;16" else noise(0).convert(mode)
    stored.save(path, exif=exif)
    assert lazy(path).size == lazy(path).load().size == ((20, 30) if orientation == TURNED else (30, 20))
    from_bytes = LazyImage("x", (), path.read_bytes())
    assert (from_bytes.size, from_bytes.load().tobytes()) == (lazy(path).size, lazy(path).load().tobytes())


@pytest.mark.parametrize("kind", ["jpg", "png", "webp"])
def test_damaged_exif_does_not_hide_the_orientation(tmp_path, kind):
    maker = struct.pack("<HHII", 0x010F, 5, 1, 38)  # a text by its tag, a fraction by its type
    orientation = struct.pack("<HHIHH", 0x0112, 3, 1, TURNED, 0)
    exif = b"Exif\0\0II*\0" + struct.pack("<IH", 8, 2) + maker + orientation + struct.pack("<III", 0, 1, 3)
    noise(0).save(tmp_path / f"x.{kind}", exif=exif)
    assert lazy(tmp_path / f"x.{kind}").size == (20, 30)


def test_an_image_in_memory_has_its_size_and_pixels():
    image = LazyImage("x", ("a", "b"), noise(0))
    assert image.size == (30, 20)
    assert image.load().tobytes() == noise(0).tobytes()
    assert (image.caption, LazyImage("x", (), noise(0)).caption) == ("a", "")


@pytest.mark.parametrize("source", [b"", b"no image", b"\x89PNG\r\n\x1a\n"])
def test_what_is_no_image_is_named(source, tmp_path):
    row = LazyImage("somewhere[7]", (), source)
    path = tmp_path / "x.png"
    path.write_bytes(source)
    for image, name in ((row, r"somewhere\[7\]"), (LazyImage("x", (), path), r"x\.png")):
        for use in (lambda image: image.size, LazyImage.load):
            with pytest.raises(ValueError, match=name) as raised:
                use(image)
            assert len(str(raised.value).splitlines()) == 1
