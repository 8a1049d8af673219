"""Few formats are opened, sizes are checked before pixels are decoded, and every decoder's error is one line."""

import io
import zlib

import numpy as np
import pytest
from PIL import Image

from pqdiff.data.images.lazy_image import LazyImage
from pqdiff.data.images.opening import FORMATS, MOST_PIXELS, one_line_errors, open_image
from pqdiff.data.images.reading import load_image
from tests.data.images.support import chunk

POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n(hello) print showpage\n%%EOF\n"


def other_formats():
    """Small files of all formats that Pillow can write but are not in the list."""
    Image.init()
    for kind in sorted(set(Image.SAVE) - set(FORMATS) - {"JPEG", "MPO", "DIB", "PDF", "WMF", "BUFR", "GRIB", "HDF5"}):
        file = io.BytesIO()
        try:
            Image.new("RGB", (64, 64), "red").save(file, kind)
        except (OSError, ValueError, KeyError, SystemError):
            continue
        yield kind, file.getvalue()


def test_a_photo_that_is_postscript_is_refused_by_every_opener_before_anything_runs(tmp_path):
    (tmp_path / "holiday.jpg").write_bytes(POSTSCRIPT)
    of_file, of_bytes = (LazyImage("x", (), source) for source in (tmp_path / "holiday.jpg", POSTSCRIPT))
    reads = [lambda: load_image(tmp_path / "holiday.jpg")]
    reads += [read for row in (of_file, of_bytes) for read in (row.load, lambda row=row: row.size)]
    for read in reads:
        with pytest.raises(ValueError, match="is not an image, or not one of JPEG, PNG"):
            read()


def test_only_the_listed_formats_are_opened():
    kinds = dict(other_formats())
    assert {"EPS", "DDS", "ICO", "TGA"} <= set(kinds)
    for content in kinds.values():
        with pytest.raises(ValueError, match="not one of"):
            LazyImage("x", (), content).load()


def test_photos_with_several_images_are_opened():
    file = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(file, "MPO", save_all=True, append_images=[Image.new("RGB", (8, 8))])
    assert LazyImage("x", (), file.getvalue()).load().getpixel((0, 0))[0] > 250


def bomb(kind, side):
    """A tiny file of one color that claims, and has, very many pixels."""
    if kind == "png":
        header = side.to_bytes(4, "big") * 2 + bytes([8, 6, 0, 0, 0])
        pixels = zlib.compressobj(9)
        row = bytes(1 + 4 * side)
        data = b"".join([*(pixels.compress(row) for _ in range(side)), pixels.flush()])
        return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    file = io.BytesIO()
    Image.new("1", (side, side)).save(file, "tiff", compression="group4", strip_size=2**30)
    return file.getvalue()


@pytest.mark.parametrize("kind", ["png", "tiff"])
def test_a_small_file_of_very_many_pixels_is_refused_before_they_are_decoded(kind, tmp_path):
    (tmp_path / "x").write_bytes(bomb(kind, 6000))
    with pytest.raises(ValueError, match=r"x: .*6000 x 6000 pixels in [\d,]+ bytes, which no photo has"):
        load_image(tmp_path / "x")
    with pytest.raises(ValueError, match="which no photo has"):
        _ = LazyImage("x", (), tmp_path / "x").size


@pytest.mark.filterwarnings("ignore")  # Pillow warns too
def test_more_pixels_than_any_camera_has_are_refused():
    file = io.BytesIO()
    side = 2 ** (MOST_PIXELS.bit_length() // 2 + 1)
    Image.new("1", (side, MOST_PIXELS // side + 1)).save(file, "tiff", compression="group4")
    with pytest.raises(ValueError, match=r"pixels, at most 134,217,728 are read: make it smaller"):
        open_image(io.BytesIO(file.getvalue() + bytes(10**7)))


def test_a_large_flat_image_below_the_limit_is_read(tmp_path):
    Image.new("L", (4000, 4000), 7).save(tmp_path / "x.png")
    assert np.asarray(load_image(tmp_path / "x.png")).max() == 7


@pytest.mark.parametrize("error", [RuntimeError, NotImplementedError, KeyError, IndexError, MemoryError, zlib.error])
def test_whatever_a_decoder_raises_is_one_line(error):
    with pytest.raises(ValueError, match=r"^photo: cannot be read as an image \(.+\)$"), one_line_errors("photo"):
        raise error("two\nlines")
    with pytest.raises(ValueError, match=r"^photo: cannot be read as an image \(\w+\)$"), one_line_errors("photo"):
        raise error
