"""Colors become those of sRGB, 16 bits are rounded, and what is transparent becomes white, in files of every kind."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms

from pqdiff.data.images.colors import srgb_tag, to_rgb
from pqdiff.data.images.reading import decode_image
from tests.data.images.support import DISPLAY_P3, P3_GAMMA_22, png


def read(content):
    return np.asarray(decode_image(io.BytesIO(content))).astype(int)


def saved(image, kind, **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


WIDE = {
    "png": {},
    "jpeg": {"quality": 100, "subsampling": 0},
    "webp": {"lossless": True},
    "tiff": {},
    "avif": {"quality": 100},
}


@pytest.mark.parametrize("kind", WIDE)
@pytest.mark.parametrize(("profile", "color"), [(DISPLAY_P3, (217, 42, 23)), (P3_GAMMA_22, (219, 37, 13))])
def test_display_p3_becomes_srgb_in_every_format_that_can_be_tagged(kind, profile, color):
    for mode in ("RGB",) if kind == "jpeg" else ("RGB", "RGBA"):
        image = Image.new("RGB", (16, 16), (200, 60, 40)).convert(mode)
        result = read(saved(image, kind, icc_profile=profile, **WIDE[kind]))
        assert np.abs(result - color).max() <= (4 if kind in ("jpeg", "avif") else 1)


def test_sixteen_bits_with_a_profile_are_converted_too():
    values = np.full((4, 4, 3), (200, 60, 40)) * 257
    assert read(png(values))[0, 0].tolist() == [200, 60, 40]
    tagged = png(values, (b"iCCP", b"p3\0\0" + zlib.compress(DISPLAY_P3)))
    assert read(tagged)[0, 0].tolist() == [217, 42, 23]


def test_a_palette_is_converted_by_its_profile():
    image = Image.new("P", (4, 4))
    image.putpalette([200, 60, 40])
    assert read(saved(image, "png", icc_profile=DISPLAY_P3))[0, 0].tolist() == [217, 42, 23]


def test_colors_tagged_as_srgb_stay_exactly_as_they_are():
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    assert np.array_equal(read(saved(Image.fromarray(noise), "png", icc_profile=profile)), noise)


@pytest.mark.parametrize("profile", [b"nonsense", DISPLAY_P3[:200], b""])
def test_a_damaged_profile_is_ignored(profile):
    image = Image.new("RGB", (4, 4), (200, 60, 40))
    assert read(saved(image, "tiff", icc_profile=profile))[0, 0].tolist() == [200, 60, 40]


def test_a_profile_of_other_colors_than_the_images_is_ignored():
    assert read(saved(Image.new("L", (4, 4), 77), "png", icc_profile=DISPLAY_P3))[0, 0].tolist() == [77] * 3


def test_the_gamma_of_a_png_counts_unless_it_says_srgb():
    values = np.full((2, 2, 3), (128, 0, 255))
    gamma = (b"gAMA", struct.pack(">I", 100_000))  # linear light
    assert read(png(values, gamma, bits=8))[0, 0].tolist() == [188, 0, 255]
    assert read(png(values, gamma, (b"sRGB", b"\0"), bits=8))[0, 0].tolist() == [128, 0, 255]
    assert read(png(values, (b"gAMA", struct.pack(">I", 45_455)), bits=8))[0, 0].tolist() == [128, 0, 255]


def rounded(values):
    return np.rint(values / 257).astype(int)


def sixteen_bits(channels):
    values = np.random.default_rng(channels).integers(0, 65536, (8, 40, channels))
    values[0, :4, 0] = [128, 129, 383, 65535 - 128]
    return values


@pytest.mark.parametrize("channels", [1, 3])
def test_sixteen_bits_of_a_png_are_rounded(channels):
    values = sixteen_bits(channels)
    assert np.array_equal(read(png(values)), np.broadcast_to(rounded(values), (8, 40, 3)))


@pytest.mark.parametrize("channels", [2, 4])
def test_sixteen_bits_with_alpha_are_rounded_and_laid_over_white(channels):
    values = sixteen_bits(channels)
    values[:4, :, -1] = 65535
    result, color, alpha = read(png(values)), rounded(values[..., :-1]), rounded(values[..., -1:]) / 255
    assert np.array_equal(result[:4], np.broadcast_to(color[:4], (4, 40, 3)))
    assert np.abs(result - (color * alpha + 255 * (1 - alpha))).max() <= 1


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("channels", [3, 4])
def test_sixteen_bits_of_a_tiff_are_rounded(order, channels):
    values = sixteen_bits(channels)
    values[..., 3:] = 65535
    assert np.array_equal(read(tiff(values, order)), rounded(values[..., :3]))


def tiff(values, order):
    """An uncompressed TIFF with 16 bits per color."""
    height, width, channels = values.shape
    data = values.astype(f"{order}u2").tobytes()
    bits = struct.pack(f"{order}{channels}H", *[16] * channels)
    entries = [(256, 4, 1, width), (257, 4, 1, height), (258, 3, channels, 8), (259, 3, 1, 1), (262, 3, 1, 2)]
    entries += [(273, 4, 1, 16), (277, 3, 1, channels), (278, 4, 1, height), (279, 4, 1, len(data))]
    entries += [(338, 3, 1, 2)] if channels == 4 else []
    start = 16 + len(data)
    content = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", start) + bits + data
    content = content[:8] + bits[:8].ljust(8, b"\0") + data
    table = struct.pack(f"{order}H", len(entries))
    for tag, kind, count, value in entries:
        short = kind == 3 and count == 1
        table += struct.pack(f"{order}HHI", tag, kind, count)
        table += struct.pack(f"{order}HH", value, 0) if short else struct.pack(f"{order}I", value)
    return content + table + bytes(4)


def test_a_transparent_value_of_sixteen_bit_gray_is_white():
    values = np.array([[[1000], [1001], [40000]]])
    result = read(png(values, (b"tRNS", struct.pack(">H", 1000))))
    assert result[0, :, 0].tolist() == [255, 4, 156]


def test_a_transparent_color_of_sixteen_bits_is_white_and_its_neighbors_are_not():
    values = np.array([[[1000, 2000, 3000], [1000, 2000, 3001], [65535, 0, 0]]])
    result = read(png(values, (b"tRNS", struct.pack(">HHH", 1000, 2000, 3000))))
    assert result[0].tolist() == [[255, 255, 255], [4, 8, 12], [255, 0, 0]]


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_a_transparent_value_of_gray_with_few_bits_is_white(bits):
    values = np.array([[[0], [1], [2**bits - 1]]])
    for value in (0, 2**bits - 1):
        result = read(png(values, (b"tRNS", struct.pack(">H", value)), bits=bits))
        grays = [255 if gray == value else gray * 255 // (2**bits - 1) for gray in values[0, :, 0].tolist()]
        assert result[0, :, 0].tolist() == grays


def test_wide_integers_are_sixteen_bits_or_refused():
    values = np.array([[0, 257, 65535]], dtype=np.int32)
    assert np.asarray(to_rgb(Image.fromarray(values)))[0, :, 1].tolist() == [0, 1, 255]
    for value in (-1, 65536):
        with pytest.raises(ValueError, match="beyond 16 bits"):
            to_rgb(Image.fromarray(np.array([[0, value]], dtype=np.int32)))


def test_floating_point_images_are_fractions_or_refused():
    values = np.array([[0, 0.5, 1]], dtype=np.float32)
    assert np.asarray(to_rgb(Image.fromarray(values)))[0, :, 2].tolist() == [0, 128, 255]
    for value in (-0.1, 1.1, np.nan, np.inf):
        with pytest.raises(ValueError, match="floating-point"):
            to_rgb(Image.fromarray(np.array([[0, value]], dtype=np.float32)))


def test_large_images_are_converted_in_bands_without_seams():
    values = np.random.default_rng(0).integers(0, 256, (1100, 1000, 4), dtype=np.uint8)
    values[..., 3] = 255
    assert np.array_equal(np.asarray(to_rgb(Image.fromarray(values))), values[..., :3])


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp", "tiff", "avif"])
def test_files_say_that_their_colors_are_srgb(kind):
    tag = srgb_tag(f".{kind}")
    with Image.open(io.BytesIO(saved(Image.new("RGB", (4, 4), "red"), kind, **tag))) as image:
        if kind == "png":
            assert image.info["srgb"] == 0
        else:
            assert "sRGB" in ImageCms.getProfileDescription(
                ImageCms.ImageCmsProfile(io.BytesIO(image.info["icc_profile"]))
            )
            assert tag["icc_profile"][24:36] == bytes(12)  # no date: the same image is the same file
