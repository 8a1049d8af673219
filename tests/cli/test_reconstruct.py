"""The command as a whole, and `pqdiff reconstruct`."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pqdiff import AutoencoderPQ
from pqdiff.data.images import load_image, normalize, to_pixels, to_tensor
from tests.cli.support import assert_done, files_in, photo, pixels_of, save


def test_the_installed_script_runs_and_keeps_stderr_clean(tmp_path, f8):
    save(tmp_path / "a.png", 1, 16, 24)
    script = Path(sys.executable).with_name("pqdiff")
    command = [script] if script.exists() else [sys.executable, "-c", "from pqdiff.cli import main; main()"]
    command += ["reconstruct", "a.png", "-o", "out", "-m", str(f8), "--json"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (0, "")
    assert json.loads(result.stdout)["files"] == [str(Path("out", "a.panel.png"))]
    assert files_in(tmp_path / "out") == ["a.panel.png"]


@pytest.mark.parametrize(
    "arguments", [["nonsense"], ["reconstruct"], ["encode", "a.png"], ["decode"], ["info"], ["evaluate"], ["fit", "x"]]
)
def test_wrong_usage_exits_with_2(pqdiff, arguments):
    result = pqdiff(*arguments)
    assert result.code == 2
    assert result.out == ""
    assert "Traceback" not in result.err


def test_help_names_every_command(pqdiff):
    result = pqdiff("--help")
    assert_done(result)
    for command in ("reconstruct", "encode", "decode", "info", "evaluate", "fit", "generate", "push"):
        assert command in result.out


def test_reconstruct_reports_what_it_wrote(tmp_path, pqdiff, f8, f16):
    original = save(tmp_path / "a.png", 1, 40, 56)
    output = tmp_path / "new" / "out"
    result = pqdiff("reconstruct", original, "-o", output, "-m", f8, "-m", f16, "--save-images", "--json")
    assert_done(result)
    report = json.loads(result.out)
    assert sorted(report["files"]) == sorted(str(path) for path in output.iterdir())
    assert files_in(output) == ["a.panel.png", "a.tiny-f16.png", "a.tiny-f8.png"]
    for row, name, rate in zip(report["results"], ("tiny-f8", "tiny-f16"), (9.0, 1.75), strict=True):
        assert (row["photo"], row["model"], row["bits_per_pixel"]) == (str(original), name, rate)
        error = (pixels_of(output / f"a.{name}.png") - pixels_of(original)) / 255
        assert row["psnr"] == pytest.approx(-10 * np.log10((error**2).mean()), abs=1e-3)
        assert 0 < row["ssim"] < 1
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
    original = save(tmp_path / "a photo with quite a long name.png", 1, 32, 32)
    result = pqdiff("reconstruct", original, "-o", tmp_path / "out", "-m", "pqgan-f16-d256-s128-k128-adaptive")
    assert_done(result)
    assert "f16-d256-s128-k128-adaptive" in result.out.split("Written:")[0]


def test_tables_show_names_with_brackets_as_they_are(tmp_path, pqdiff, f8):
    result = pqdiff("reconstruct", save(tmp_path / "a[b].png", 1, 16, 16), "-o", tmp_path / "out", "-m", f8)
    assert_done(result)
    assert "a[b].png" in result.out.split("Written:")[0]


@pytest.mark.parametrize("size", [(1, 1), (8, 8), (13, 29), (1, 20), (11, 11)])
def test_reconstruct_takes_photos_of_any_size(tmp_path, pqdiff, f8, size):
    original = save(tmp_path / "a.png", 1, *size)
    result = pqdiff("reconstruct", original, "-o", tmp_path / "out", "-m", f8, "--save-images", "--json")
    assert_done(result)
    row = json.loads(result.out)["results"][0]
    assert (row["ssim"] is None) == (min(size) < 11)
    assert pixels_of(tmp_path / "out" / "a.tiny-f8.png").shape == (*size, 3)
    table = pqdiff("reconstruct", original, "-o", tmp_path / "out", "-m", f8)
    assert_done(table)
    assert ("-" in table.out.split("tiny-f8")[1].split()) == (min(size) < 11)


def test_reconstruct_takes_gray_and_transparent_photos(tmp_path, pqdiff, f8):
    colors = photo(1, 16, 24).permute(1, 2, 0).numpy()
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
def test_photos_of_the_same_name_do_not_overwrite_each_other(tmp_path, pqdiff, f8, names, command):
    photos = [save(tmp_path / name, seed, 8, 8 * (seed + 1)) for seed, name in enumerate(names)]
    result = pqdiff(command, *photos, "-o", tmp_path / "out", "-m", f8, "--json")
    assert_done(result)
    assert len(files_in(tmp_path / "out")) == 3


def test_models_of_the_same_name_do_not_overwrite_each_other(tmp_path, pqdiff, f8, f16):
    other = shutil.copytree(f16, tmp_path / "other" / f8.name)
    photos = [save(tmp_path / "a.png", 1, 16, 16)]
    result = pqdiff("reconstruct", *photos, "-o", tmp_path / "out", "-m", f8, "-m", other, "--save-images", "--json")
    assert_done(result)
    assert len(files_in(tmp_path / "out")) == len(set(json.loads(result.out)["files"])) == 3
