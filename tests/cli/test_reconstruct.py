"""`pqdiff reconstruct`."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from pqdiff import AutoencoderPQ
from pqdiff.data.images.reading import load_image, normalize, to_pixels, to_tensor
from pqdiff.losses.ssimulacra2 import SSIMULACRA2Loss
from tests.cli.support import assert_done, assert_refused, files_in, pixels_of, random_image, save


def test_reconstruct_reports_what_it_wrote(tmp_path, pqdiff, f8, f16):
    original = save(tmp_path / "a.png", 1, 40, 56)
    output = tmp_path / "new" / "out"
    result = pqdiff("reconstruct", original, "-o", output, "-m", f8, "-m", f16, "--save-images", "--json")
    assert_done(result)
    report = json.loads(result.out)
    assert sorted(report["files"]) == sorted(str(path) for path in output.iterdir())
    assert files_in(output) == ["a.panel.png", "a.tiny-f16.png", "a.tiny-f8.png"]
    for row, name, rate in zip(report["results"], ("tiny-f8", "tiny-f16"), (9.0, 1.75), strict=True):
        assert (row["image"], row["model"], row["bits_per_pixel"]) == (str(original), name, rate)
        error = (pixels_of(output / f"a.{name}.png") - pixels_of(original)) / 255
        assert row["psnr"] == pytest.approx(-10 * np.log10((error**2).mean()), abs=1e-3)
        assert 0 < row["ssim"] < 1
        paths = (original, output / f"a.{name}.png")
        images = [torch.tensor(pixels_of(path)).movedim(2, 0)[None] / 127.5 - 1 for path in paths]
        assert row["ssimulacra2"] == pytest.approx(100 - 100 * float(SSIMULACRA2Loss()(*images)), abs=0.05)
        assert row["seconds"] >= 0
    assert report["results"][0]["psnr"] > report["results"][1]["psnr"] > 15
    with Image.open(output / "a.panel.png") as panel:
        assert panel.width > 3 * 150


def test_reconstruct_prints_a_table(tmp_path, pqdiff, f8):
    result = pqdiff("reconstruct", save(tmp_path / "a.png", 1, 16, 24), "-o", tmp_path / "out", "-m", f8)
    assert_done(result)
    for text in ("a.png", "tiny-f8", "PSNR", "SSIM", "Written:", "a.panel.png"):
        assert text in result.out
    assert files_in(tmp_path / "out") == ["a.panel.png"]


def test_names_of_models_are_not_broken_in_a_terminal_of_80_columns(tmp_path, pqdiff):
    """They are copied from there into the next command."""
    original = save(tmp_path / "an image with quite a long name.png", 1, 32, 32)
    result = pqdiff("reconstruct", original, "-o", tmp_path / "out", "-m", "pqgan-f16-d256-s128-k128-adaptive")
    assert_done(result)
    assert "f16-d256-s128-k128-adaptive" in result.out.split("Written:")[0]


def test_tables_show_names_with_brackets_as_they_are(tmp_path, pqdiff, f8):
    result = pqdiff("reconstruct", save(tmp_path / "a[b].png", 1, 16, 16), "-o", tmp_path / "out", "-m", f8)
    assert_done(result)
    assert "a[b].png" in result.out.split("Written:")[0]


@pytest.mark.parametrize("size", [(1, 1), (8, 8), (13, 29), (1, 20), (11, 11)])
def test_reconstruct_takes_images_of_any_size(tmp_path, pqdiff, f8, size):
    original = save(tmp_path / "a.png", 1, *size)
    result = pqdiff("reconstruct", original, "-o", tmp_path / "out", "-m", f8, "--save-images", "--json")
    assert_done(result)
    row = json.loads(result.out)["results"][0]
    assert (row["ssim"] is None) == (min(size) < 11)
    assert (row["ssimulacra2"] is None) == (min(size) < 8)
    assert pixels_of(tmp_path / "out" / "a.tiny-f8.png").shape == (*size, 3)
    table = pqdiff("reconstruct", original, "-o", tmp_path / "out", "-m", f8, "--force")
    assert_done(table)
    assert ("-" in table.out.split("tiny-f8")[1].split()) == (min(size) < 11)


def test_reconstruct_takes_gray_and_transparent_images(tmp_path, pqdiff, f8):
    colors = random_image(1, 16, 24).permute(1, 2, 0).numpy()
    pairs = {
        "gray": (Image.fromarray(colors[..., 0]), colors[..., :1].repeat(3, axis=2)),
        "clear": (Image.fromarray(np.dstack([colors, np.zeros_like(colors[..., 0])])), np.full_like(colors, 255)),
    }
    for name, (image, same_in_rgb) in pairs.items():
        image.save(tmp_path / f"{name}.png")
        Image.fromarray(same_in_rgb).save(tmp_path / f"{name}-rgb.png")
    assert_done(pqdiff("reconstruct", *tmp_path.glob("*.png"), "-o", tmp_path / "out", "-m", f8, "--save-images"))
    for name in pairs:
        ours, expected = (pixels_of(tmp_path / "out" / f"{stem}.tiny-f8.png") for stem in (name, f"{name}-rgb"))
        assert np.array_equal(ours, expected)


def test_reconstruct_is_the_model_itself_also_in_tiles(tmp_path, pqdiff, f8):
    original = save(tmp_path / "a.png", 1, 16, 1096)  # wider than a tile
    assert_done(pqdiff("reconstruct", original, "-o", tmp_path / "out", "-m", f8, "--save-images"))
    model = AutoencoderPQ.from_pretrained(f8).eval()
    with torch.no_grad():
        expected = to_pixels(model(normalize(to_tensor(load_image(original))[None])).sample[0])
    assert np.array_equal(pixels_of(tmp_path / "out" / "a.tiny-f8.png"), expected.permute(1, 2, 0).numpy())


@pytest.mark.parametrize("names", [["x/a.png", "y/a.png", "z/a.jpg"], ["x/a.png", "y/a.png", "a-2.png"]])
@pytest.mark.parametrize("command", ["reconstruct", "encode"])
def test_images_of_the_same_name_do_not_overwrite_each_other(tmp_path, pqdiff, f8, names, command):
    images = [save(tmp_path / name, seed, 8, 8 * (seed + 1)) for seed, name in enumerate(names)]
    result = pqdiff(command, *images, "-o", tmp_path / "out", "-m", f8, "--json")
    assert_done(result)
    assert len(files_in(tmp_path / "out")) == 3


def test_models_of_the_same_name_do_not_overwrite_each_other(tmp_path, pqdiff, f8, f16):
    other = shutil.copytree(f16, tmp_path / "other" / f8.name)
    images = [save(tmp_path / "a.png", 1, 16, 16)]
    result = pqdiff("reconstruct", *images, "-o", tmp_path / "out", "-m", f8, "-m", other, "--save-images", "--json")
    assert_done(result)
    assert len(files_in(tmp_path / "out")) == len(set(json.loads(result.out)["files"])) == 3


@pytest.mark.parametrize("command", ["reconstruct", "encode"])
def test_folders_are_taken_as_evaluate_and_fit_take_them(tmp_path, pqdiff, f8, command):
    for name in ("a.png", "deep/b.png", ".hidden/c.png"):
        save(tmp_path / "images" / name, 1, 16, 16)
    (tmp_path / "images" / "notes.txt").write_text("no image")
    result = pqdiff(
        command, tmp_path / "images", save(tmp_path / "d.png", 1, 16, 16), "-o", tmp_path / "out", "-m", f8
    )
    assert_done(result)
    assert [name.partition(".")[0] for name in files_in(tmp_path / "out")] == ["a", "b", "d"]


@pytest.mark.parametrize("command", ["reconstruct", "encode"])
def test_a_folder_without_images_is_refused(tmp_path, pqdiff, f8, command):
    (tmp_path / "empty").mkdir()
    result = pqdiff(command, tmp_path / "empty", "-o", tmp_path / "out", "-m", f8)
    assert_refused(result, tmp_path / "empty", tmp_path / "out")
