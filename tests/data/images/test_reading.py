"""Images of every kind become upright 8-bit RGB; what is no image is refused in one line that names it."""

import struct

import numpy as np
import pytest
import torch
from PIL import Image

from pqdiff.data.images.colors import to_rgb
from pqdiff.data.images.reading import (
    find_images,
    holds_images,
    load_image,
    normalize,
    pad_to_multiple,
    to_image,
    to_pixels,
    to_tensor,
)

# How an upright image is stored for each EXIF orientation.
STORED = {
    1: lambda x: x,
    2: lambda x: x[:, ::-1],
    3: lambda x: x[::-1, ::-1],
    4: lambda x: x[::-1],
    5: lambda x: x.swapaxes(0, 1),
    6: lambda x: np.rot90(x, 1),
    7: lambda x: x.swapaxes(0, 1)[::-1, ::-1],
    8: lambda x: np.rot90(x, -1),
}


def pixels_of(image):
    assert image.mode == "RGB"
    return np.asarray(image).astype(int)


def load(image, path, **options):
    image.save(path, **options)
    return pixels_of(load_image(path))


def gradient(height=16, width=24):
    """Smooth colors without any symmetry."""
    rows, columns = np.mgrid[:height, :width]
    return np.stack([rows * 255 // height, columns * 255 // width, (rows + columns) * 2], axis=2).astype(np.uint8)


def over_white(color, alpha):
    color, alpha = np.asarray(color, dtype=float), np.asarray(alpha)[..., None] / 255
    return color * alpha + 255 * (1 - alpha)


@pytest.mark.parametrize("orientation", STORED)
def test_exif_orientation_is_undone(tmp_path, orientation):
    upright, exif = gradient(), Image.Exif()
    exif[0x0112] = orientation
    stored = Image.fromarray(np.ascontiguousarray(STORED[orientation](upright)))
    result = load(stored, tmp_path / "x.jpg", exif=exif, quality=100, subsampling=0)
    assert result.shape == upright.shape
    assert np.abs(result - upright).max() <= 4
    assert np.array_equal(load(stored, tmp_path / "x.png", exif=exif), upright)


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize("mode", ["L", "I;16", "CMYK"])
def test_a_turned_tiff_without_compression_is_read_like_a_png(tmp_path, orientation, mode):
    upright, exif = gradient(), Image.Exif()
    exif[0x0112] = orientation
    gray = upright[..., 0].astype(np.uint16) * 257 if mode == "I;16" else upright[..., 0]
    pixels = upright if mode == "CMYK" else gray
    stored = Image.fromarray(np.ascontiguousarray(STORED[orientation](pixels)))
    stored = stored.convert("CMYK") if mode == "CMYK" else stored
    stored.save(tmp_path / "x.tif", exif=exif)
    image = load_image(tmp_path / "x.tif")
    assert image.size == (24, 16)
    expected = upright if mode == "CMYK" else np.repeat(upright[..., :1], 3, axis=2)
    assert np.abs(pixels_of(image) - expected).max() <= 1


@pytest.mark.parametrize("kind", ["jpg", "png", "webp"])
def test_damaged_exif_does_no_harm_beside_an_orientation_that_counts(tmp_path, kind):
    maker = struct.pack("<HHII", 0x010F, 5, 1, 38)  # a text by its tag, by its type a fraction
    orientation = struct.pack("<HHIHH", 0x0112, 3, 1, 6, 0)
    exif = b"Exif\0\0II*\0" + struct.pack("<IH", 8, 2) + maker + orientation + struct.pack("<III", 0, 1, 3)
    Image.fromarray(gradient()).save(tmp_path / f"x.{kind}", exif=exif)
    assert load_image(tmp_path / f"x.{kind}").size == (16, 24)


def test_an_upright_image_is_not_turned_again(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(gradient()).save(tmp_path / "x.png", exif=exif)
    once = load_image(tmp_path / "x.png")
    assert np.array_equal(pixels_of(to_rgb(once)), pixels_of(once))


@pytest.mark.parametrize("suffix", ["png", "webp", "tif"])
def test_rgba_is_laid_over_white(tmp_path, suffix):
    alpha = np.tile(np.arange(24, dtype=np.uint8) * 11, (16, 1))
    image = Image.fromarray(np.dstack([gradient(), alpha]))
    result = load(image, tmp_path / f"x.{suffix}", **({"lossless": True, "exact": True} if suffix == "webp" else {}))
    assert np.abs(result - over_white(gradient(), alpha)).max() <= 1
    assert (result[:, 0] == 255).all()


def test_gray_with_alpha_is_laid_over_white(tmp_path):
    values = np.array([[[0, 255], [100, 0], [200, 128]]], dtype=np.uint8)
    result = load(Image.fromarray(values), tmp_path / "x.png")
    assert np.abs(result - np.array([[[0] * 3, [255] * 3, [227] * 3]])).max() <= 1


def test_a_transparent_palette_color_is_laid_over_white(tmp_path):
    image = Image.fromarray(np.array([[0, 1, 2]], dtype=np.uint8)).convert("P")
    image.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    for name in ("x.png", "x.gif"):
        result = load(image, tmp_path / name, transparency=1)
        assert result.tolist() == [[[10, 20, 30], [255, 255, 255], [70, 80, 90]]]


def test_palette_with_an_alpha_per_color_is_laid_over_white(tmp_path):
    image = Image.fromarray(np.array([[0, 1, 2]], dtype=np.uint8)).convert("P")
    image.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    result = load(image, tmp_path / "x.png", transparency=bytes([255, 0, 51]))
    assert result[0, :2].tolist() == [[10, 20, 30], [255, 255, 255]]
    assert np.abs(result[0, 2] - over_white([70, 80, 90], 51)).max() <= 1


def test_a_transparent_rgb_color_is_laid_over_white(tmp_path):
    image = Image.fromarray(np.array([[[1, 2, 3], [4, 5, 6]]], dtype=np.uint8))
    assert load(image, tmp_path / "x.png", transparency=(1, 2, 3)).tolist() == [[[255, 255, 255], [4, 5, 6]]]


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_sixteen_bit_gray_is_scaled_to_eight(tmp_path, suffix):
    values = (257 * np.arange(256)).astype(np.uint16).reshape(16, 16)
    Image.fromarray(values).save(tmp_path / f"x.{suffix}")
    with Image.open(tmp_path / f"x.{suffix}") as image:
        assert image.mode.startswith("I")  # really 16 bits on disk
    result = pixels_of(load_image(tmp_path / f"x.{suffix}"))
    assert result[0, 0].tolist() == [0, 0, 0]
    assert result[15, 15].tolist() == [255, 255, 255]
    assert np.array_equal(result, np.repeat(np.arange(256).reshape(16, 16, 1), 3, axis=2))


def test_sixteen_bit_gray_is_rounded_to_the_nearest(tmp_path):
    values = np.array([[128, 129, 257 + 128, 257 + 129, 65535 - 129]], dtype=np.uint16)
    assert load(Image.fromarray(values), tmp_path / "x.png")[0, :, 0].tolist() == [0, 1, 1, 2, 254]


def test_cmyk_jpeg_keeps_its_colors(tmp_path):
    colors = np.zeros((16, 32, 4), dtype=np.uint8)
    colors[:, 16:] = [0, 255, 255, 0]  # white beside red
    result = load(Image.fromarray(colors, mode="CMYK"), tmp_path / "x.jpg", quality=100)
    with Image.open(tmp_path / "x.jpg") as image:
        assert image.mode == "CMYK"
    assert np.abs(result[:, :16] - 255).max() <= 3
    assert np.abs(result[:, 16:] - [255, 0, 0]).max() <= 3


def test_one_bit_is_black_and_white(tmp_path):
    bits = np.array([[True, False, True]])
    assert load(Image.fromarray(bits), tmp_path / "x.png").tolist() == [[[255] * 3, [0] * 3, [255] * 3]]


def test_palette_colors_are_looked_up(tmp_path):
    image = Image.fromarray(np.array([[0, 2, 1]], dtype=np.uint8)).convert("P")
    image.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    assert load(image, tmp_path / "x.bmp").tolist() == [[[10, 20, 30], [70, 80, 90], [40, 50, 60]]]


def test_gray_has_three_equal_channels(tmp_path):
    result = load(Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16)), tmp_path / "x.png")
    assert np.array_equal(result, np.repeat(np.arange(256).reshape(16, 16, 1), 3, axis=2))


def test_a_single_pixel_is_an_image(tmp_path):
    assert load(Image.new("RGB", (1, 1), (9, 8, 7)), tmp_path / "x.png").tolist() == [[[9, 8, 7]]]


def test_the_kind_is_told_by_content_not_by_name(tmp_path):
    Image.fromarray(gradient()).save(tmp_path / "x.png")
    (tmp_path / "x.png").rename(tmp_path / "x.jpg")
    assert np.array_equal(pixels_of(load_image(str(tmp_path / "x.jpg"))), gradient())


def saved(path, **options):
    Image.fromarray(gradient(64, 96)).save(path, **options)
    return path.read_bytes()


def damaged(kind, folder):
    """A file that is no readable image."""
    path = folder / "damaged.jpg"
    if kind == "noise":
        path.write_bytes(np.random.default_rng(0).bytes(4000))
    elif kind == "noise after the header":
        content = bytearray(saved(folder / "whole.png"))
        content[60:-12] = np.random.default_rng(0).bytes(len(content) - 72)
        path.write_bytes(content)
    elif kind == "truncated jpeg":
        path.write_bytes(saved(folder / "whole.jpg")[:-300])
    elif kind == "truncated png":
        path.write_bytes(saved(folder / "whole.png")[:-300])
    elif kind == "truncated tiff":
        path.write_bytes(saved(folder / "whole.tif")[:-300])
    elif kind == "tiff cut in its header":
        path.write_bytes(saved(folder / "whole.tif")[:60])
    elif kind == "truncated webp":
        path.write_bytes(saved(folder / "whole.webp")[:-100])
    elif kind == "empty":
        path.touch()
    elif kind == "text":
        path.write_text("This is not a photo.\nReally.\n")
    elif kind == "folder":
        path.mkdir()
    elif kind == "dangling link":
        path.symlink_to(folder / "nowhere.jpg")
    return path  # "missing": never made


DAMAGES = (
    *("noise", "noise after the header", "truncated jpeg", "truncated png", "truncated tiff", "truncated webp"),
    *("tiff cut in its header", "empty", "text", "folder", "dangling link", "missing"),
)


@pytest.mark.parametrize("kind", DAMAGES)
@pytest.mark.filterwarnings("error")  # a warning would be more than the one line
def test_what_is_no_image_is_refused_in_one_line_with_its_name(tmp_path, kind):
    path = damaged(kind, tmp_path)
    with pytest.raises(ValueError, match="damaged") as raised:
        load_image(path)
    message = str(raised.value)
    assert message.startswith(f"{path}: ")
    assert len(message.splitlines()) == 1


@pytest.mark.filterwarnings("error")
def test_damaged_exif_does_not_spoil_an_image(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 1
    exif[0x010E] = "a description that is longer than four bytes"
    saved(tmp_path / "x.jpg", exif=exif.tobytes()[:25], quality=100, subsampling=0)
    assert np.abs(pixels_of(load_image(tmp_path / "x.jpg")) - gradient(64, 96)).max() <= 4


def test_a_file_that_claims_a_giant_size_is_refused(tmp_path):
    content = bytearray(saved(tmp_path / "x.bmp"))
    content[18:26] = (60000).to_bytes(4, "little") * 2
    (tmp_path / "x.bmp").write_bytes(content)
    with pytest.raises(ValueError, match=r"x\.bmp: cannot be read"):
        load_image(tmp_path / "x.bmp")


def test_tensor_and_image_are_each_others_inverse():
    tensor = to_tensor(Image.fromarray(gradient()))
    assert tensor.dtype == torch.uint8
    assert tuple(tensor.shape) == (3, 16, 24)
    assert tensor[:, 5, 7].tolist() == gradient()[5, 7].tolist()
    assert np.array_equal(pixels_of(to_image(tensor)), gradient())


def test_normalizing_and_back_is_exact_for_every_value():
    pixels = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    images = normalize(pixels)
    assert images.dtype == torch.float32
    assert images.min() == -1
    assert images.max() == 1
    expected = torch.linspace(-1, 1, 256, dtype=torch.float64).view(1, 1, 16, 16)
    assert (images.double() - expected).abs().max() < 1e-6
    assert torch.equal(to_pixels(images), pixels)
    assert pixels.flatten().tolist() == list(range(256))  # the input stays as it was


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_pixels_are_clamped_and_rounded(dtype):
    images = torch.tensor([-100, -1.001, -1, -0.999, 0.0039, 0.999, 1, 1.001, 1e9], dtype=dtype)
    before = images.clone()
    assert to_pixels(images).tolist() == [0, 0, 0, 0, 128, 255, 255, 255, 255]
    assert torch.equal(images, before)


@pytest.mark.parametrize("shape", [(1, 1), (8, 8), (9, 15), (1, 17), (16, 3)])
@pytest.mark.parametrize("factor", [1, 8, 16])
def test_padding_repeats_the_edge_at_the_bottom_and_right(shape, factor):
    images = torch.rand(2, 3, *shape, generator=torch.Generator().manual_seed(0))
    height, width = (-(-side // factor) * factor for side in shape)
    expected = np.pad(images.numpy(), ((0, 0), (0, 0), (0, height - shape[0]), (0, width - shape[1])), mode="edge")
    assert np.array_equal(pad_to_multiple(images, factor).numpy(), expected)


def image_folder(folder, names):
    for value, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4), (value, value, value)).save(folder / name, format="PNG")
    return folder


def test_images_are_found_below_a_folder_in_name_order(tmp_path):
    names = ["b.jpg", "a.PNG", "deep/er/c.webp", "deep/a.tiff", "z.gif", "B.jpeg"]
    image_folder(tmp_path, names)
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / "folder.png").mkdir()
    assert find_images(str(tmp_path)) == sorted(tmp_path / name for name in names)


def test_a_folder_holds_images_if_one_can_be_found_in_it(tmp_path):
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / "folder.png").mkdir()
    assert not holds_images(tmp_path)
    image_folder(tmp_path, ["deep/er/c.webp"])
    assert holds_images(str(tmp_path))


def test_folders_without_images_are_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("no image")
    for folder, reason in ((tmp_path, "holds no images"), (tmp_path / "missing", "no such folder")):
        with pytest.raises(ValueError, match=reason) as raised:
            find_images(folder)
        assert str(folder) in str(raised.value)
        assert len(str(raised.value).splitlines()) == 1


def test_hidden_folders_and_files_are_left_out_and_links_are_followed_once(tmp_path):
    image_folder(
        tmp_path / "x", ["0.png", ".ipynb_checkpoints/0.png", "a/.hidden/0.png", "a/._0.png", "__MACOSX/._0.png"]
    )
    image_folder(tmp_path / "elsewhere", ["1.png", "deep/2.png"])
    (tmp_path / "x" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "back").symlink_to(tmp_path / "x")
    (tmp_path / "x" / "a" / "self").symlink_to(".")
    (tmp_path / "x" / "b.png").symlink_to(tmp_path / "elsewhere" / "1.png")
    found = [path.relative_to(tmp_path / "x").as_posix() for path in find_images(tmp_path / "x")]
    assert found == ["0.png", "b.png", "linked/1.png", "linked/deep/2.png"]


def test_a_hidden_folder_that_is_asked_for_is_read(tmp_path):
    image_folder(tmp_path / ".photos", ["0.png"])
    assert len(find_images(tmp_path / ".photos")) == 1


@pytest.mark.parametrize("suffix", ["jfif", "avif", "JFIF"])
def test_images_of_newer_suffixes_are_found_and_read(tmp_path, suffix):
    Image.fromarray(gradient()).save(tmp_path / f"x.{suffix}", "avif" if suffix == "avif" else "jpeg")
    (path,) = find_images(tmp_path)
    assert load_image(path).size == (24, 16)
