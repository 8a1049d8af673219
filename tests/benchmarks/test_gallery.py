"""The gallery: cells of one size, numbers of the metrics, photos that are too small, files that are there."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from benchmarks.gallery import Cell, Column, Zoom, columns_at, find_zoom, load_models, main, sheet
from pqdiff.checkpoints import BEST_AT_EACH_RATE
from pqdiff.data.images.crops import resize_and_crop
from pqdiff.data.images.grid import error_map
from pqdiff.data.images.reading import to_image, to_tensor
from pqdiff.metrics.ssimulacra2 import ssimulacra2
from tests.autoencoders import build
from tests.tiny import tiny_kl_autoencoder

CELL, GAP, LINE = 128, 8, 16


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tokenizer (F = 4), and two photos of 96 x 64 and 40 x 48 pixels."""
    folder = tmp_path_factory.mktemp("gallery")
    build("linear").save_pretrained(folder / "tokenizer")
    (folder / "photos").mkdir()
    for name, shape in (("large", (64, 96, 3)), ("small", (48, 40, 3))):
        pixels = np.random.default_rng(0).normal(128, 40, shape).cumsum(1) % 256
        Image.fromarray(pixels.astype(np.uint8)).save(folder / "photos" / f"{name}.png")
    return folder


def draw(folder, output, *options):
    models = ("--models", folder / "tokenizer", "jpeg:50")
    sizes = ("--sides", 32, 64, "--cell", CELL)
    main([*map(str, (folder / "photos", *models, *sizes, "--output", output, *options))])


def cell(figure, column, top):
    left = GAP + column * (CELL + GAP)
    return np.asarray(figure.crop((left, top, left + CELL, top + CELL)))


def test_figures_show_crops_details_and_errors(folder, tmp_path, capsys):
    draw(folder, tmp_path, "--zoom", "0.5", "0.25", "0.25")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["details.png", "large.sides.png", "small.sides.png"]
    output = capsys.readouterr()
    assert [line.split(" is too")[0].split("/")[-1] for line in output.err.splitlines()] == ["small.png (40 x 48)"]
    assert "too small for 64: left out" in output.err

    with Image.open(folder / "photos" / "large.png") as photo:
        columns = columns_at(64, photo, load_models([str(folder / "tokenizer"), "jpeg:50"], codecs=False))
    for column in columns[1:]:
        assert f"{column.name:32} {', '.join(column.lines())}" in output.out
    details = [column.pixels[:, 16:32, 32:48] for column in columns]
    enlarged = [to_image(part).resize((CELL, CELL), Image.Resampling.NEAREST) for part in details]

    first, pair = GAP + LINE, 2 * (CELL + GAP) + 3 * LINE  # tops: of the first row, from one row of crops to the next
    sides = Image.open(tmp_path / "large.sides.png")
    assert sides.size == (GAP + 3 * (CELL + GAP), first + 2 * pair)
    for number, column in enumerate(columns):
        whole = to_image(column.pixels).resize((CELL, CELL), Image.Resampling.NEAREST)
        if number:  # the original has a frame where the detail is
            np.testing.assert_array_equal(cell(sides, number, first + pair), whole)
        np.testing.assert_array_equal(cell(sides, number, first + pair + CELL + 3 * LINE + GAP), enlarged[number])
    assert (cell(sides, 0, first + pair) == (255, 0, 0)).all(-1).any()
    assert Image.open(tmp_path / "small.sides.png").size == (sides.width, first + pair)

    figure = Image.open(tmp_path / "details.png")
    assert figure.size == (sides.width, first + 2 * (pair + LINE))
    for number, part in enumerate(details):
        np.testing.assert_array_equal(cell(figure, number, first), enlarged[number])
        if number:
            errors = to_image(error_map(details[0], part)).resize((CELL, CELL), Image.Resampling.NEAREST)
            np.testing.assert_array_equal(cell(figure, number, first + CELL + 3 * LINE + GAP), errors)


def test_numbers_are_those_of_other_libraries(folder, tmp_path):
    tiny_kl_autoencoder().save_pretrained(tmp_path / "kl")
    photo = Image.open(folder / "photos" / "large.png")
    models = load_models([str(folder / "tokenizer"), str(tmp_path / "kl"), "jpeg:50"], codecs=False)
    original, *columns = columns_at(64, photo, models)
    target = resize_and_crop(photo, 64)
    assert (original.name, original.lines()) == ("original", ["64 x 64"])
    np.testing.assert_array_equal(to_image(original.pixels), target)
    file = io.BytesIO()
    target.save(file, "JPEG", quality=50)
    rates = [3 * 4 / 16, None, 8 * file.tell() / 64**2]  # three tokens of 16 values for 4 x 4 pixels
    for column, rate in zip(columns, rates, strict=True):
        pair = np.asarray(target), np.asarray(to_image(column.pixels))
        ssim = structural_similarity(*pair, channel_axis=2, gaussian_weights=True, use_sample_covariance=False)
        perceived = ssimulacra2(column.pixels[None], to_tensor(target)[None]).item()
        expected = {
            "bits_per_pixel": rate,
            "psnr": peak_signal_noise_ratio(*pair),
            "ssim": ssim,
            "ssimulacra2": perceived,
        }
        assert column.numbers == pytest.approx(expected, abs=1e-4)
        assert column.lines()[0] == f"{'-' if rate is None else f'{rate:.2f}'} bpp, {expected['psnr']:.2f} dB"
        assert column.lines()[2] == f"SSIMULACRA2 {perceived:.1f}"


@pytest.mark.slow
def test_large_crops_are_tiled_and_small_ones_are_not(folder):
    photo = Image.open(folder / "photos" / "large.png")
    models = load_models([str(folder / "tokenizer")], codecs=False)
    model = models["tokenizer"].model
    tiled = columns_at(1056, photo, models)[1].pixels
    assert model.use_tiling
    assert model.tile_sample_min_size == 1024
    model.use_tiling = False
    whole = models["tokenizer"](to_tensor(resize_and_crop(photo, 1056))[None]).pixels[0]
    assert ((tiled.int() - whole.int()).abs() > 1).float().mean() < 1e-3
    model.use_tiling = True
    columns_at(64, photo, models)
    assert not model.use_tiling


def test_nothing_is_replaced_without_force(folder, tmp_path, capsys):
    there = tmp_path / "details.png"
    there.write_bytes(b"mine")
    with pytest.raises(SystemExit, match="2"):
        draw(folder, tmp_path)
    assert "details.png exists already: add --force" in capsys.readouterr().err
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"mine"]
    draw(folder, tmp_path, "--force")
    assert Image.open(there).format == "PNG"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--sides", "100"), "no photo has 100 pixels on its shorter side"),
        (("--sides", "30"), "resolution (30) must be divisible by F = 4 of tokenizer"),
        (("--zoom", "0.9", "0", "0.2"), "--zoom (0.9 0.0 0.2) must lie inside the crop"),
        (("--cell", "60"), "--cell (60) must be at least 128"),
        (("--models", "jpeg:50", "--codecs"), "--codecs needs a tokenizer"),
    ],
)
def test_wrong_options_end_with_one_line(folder, tmp_path, capsys, options, message):
    with pytest.raises(SystemExit, match="2"):
        draw(folder, tmp_path / "new", *options)
    assert message in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "new").exists()


def test_zoom_is_where_errors_are_largest_at_every_side():
    original = torch.full((3, 64, 64), 100, dtype=torch.uint8)
    result = original.clone()
    result[:, 40:48, 8:16] = 110
    zoom = find_zoom([Column("original", original, {}), Column("equal", original, {}), Column("model", result, {})])
    assert zoom == Zoom(8 / 64, 40 / 64, 1 / 8)
    assert zoom.box(128) == (16, 80, 16)
    assert Zoom(0.95, 0.95, 0.05).box(10) == (9, 9, 1)


def test_text_never_leaves_its_cell():
    blank = Image.new("RGB", (CELL, CELL), "red")
    name = "a-very-long-name-of-a-tokenizer-and-its-recipe" + "x" * 60
    figure = np.asarray(sheet([name, name], [[Cell(blank, [name])] * 2], CELL))
    gaps = [
        figure[:, left : left + GAP - 1] for left in (0, GAP + CELL, 2 * (GAP + CELL))
    ]  # a letter starts a pixel early
    assert all((gap == 255).all() for gap in gaps)
    assert ((figure == (255, 0, 0)).all(-1)).sum() == 2 * CELL**2


def test_default_is_the_best_tokenizer_at_each_rate_and_codecs_at_theirs():
    models = load_models(None, codecs=True)
    tokenizers = [model.name for model in models.values() if model.codebook_sizes]
    assert sorted(tokenizers) == sorted(BEST_AT_EACH_RATE)
    assert list(models)[len(tokenizers) :] == [
        f"{codec}@{rate}bpp" for rate in ("9", "3.5", "1.75", "0.5") for codec in ("jpeg", "avif")
    ]
