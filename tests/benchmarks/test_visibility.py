"""Measuring and using the visibility of errors: what is measured is a gradient; the committed fits show what it gives."""

import json

import pytest
import torch

from benchmarks import visibility, visible_fits
from benchmarks.render_readme import RESULTS
from pqdiff.fitting.visibility import FREQUENCIES, color_axes
from tests.benchmarks.support import save_images
from tests.fitting.test_closed_form import smooth_images


def test_coefficients_keep_sums_of_squares_and_products():
    """So a gradient of coefficients times their errors is the gradient of pixels times theirs."""
    first, second = torch.randn(2, 1, 3, 64, 96, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    axes = color_axes()
    errors = visibility.coefficients(first, axes)
    gradients = visibility.coefficients(second, torch.linalg.inv(axes).T)
    assert errors.shape == (3, 6, 32, 32)
    assert float((errors * gradients).sum()) == pytest.approx(float((first * second).sum()))


def test_slopes_are_measured_at_every_frequency_and_written(tmp_path, monkeypatch, capsys):
    save_images(smooth_images(3, 256), tmp_path / "photos")
    monkeypatch.setattr(visibility, "TOKENIZERS", ("pqgan-f16-d128-s64-k128",))
    output = tmp_path / "visibility.json"
    visibility.main(["--photos", str(tmp_path / "photos"), "--every", "2", "--output", str(output)])
    document = json.loads(output.read_text())
    assert (document["num_images"], tuple(document["frequencies"])) == (2, FREQUENCIES)
    (slopes,) = document["slopes"].values()
    assert [len(row) for row in slopes.values()] == [len(FREQUENCIES)] * 3
    assert slopes["Y"][0] == 1
    assert slopes["Y"][-1] < 0.5
    assert "Cr" in capsys.readouterr().out


def test_fits_are_measured_on_photos_that_they_did_not_see_and_not_repeated(tmp_path, monkeypatch, capsys):
    save_images(smooth_images(8, 64), tmp_path / "photos")
    monkeypatch.setattr(visible_fits, "FITS", {"f8-d32-s16-k32": (1500, [(0.0, 0), (1.0, 8)])})
    monkeypatch.setattr(visible_fits, "HOLD_OUT", 4)
    output = tmp_path / "fits.json"
    command = ["--photos", str(tmp_path / "photos"), "--output", str(output)]
    visible_fits.main(command)
    rows = json.loads(output.read_text())["presets"]["f8-d32-s16-k32"]
    assert list(rows) == ["0", "1, overlap 8"]
    assert rows["0"]["psnr_dataset"] != rows["1, overlap 8"]["psnr_dataset"]
    assert capsys.readouterr().out.count("power") == 2
    visible_fits.main(command)
    assert not capsys.readouterr().out
    held_out = [len(list(visible_fits.photos(tmp_path / "photos", held_out))) for held_out in (True, False)]
    assert held_out == [2, 6]


def committed() -> dict[str, dict[str, dict[str, float]]]:
    return json.loads((RESULTS / "visible_fits.json").read_text())["presets"]


@pytest.mark.parametrize("preset", visible_fits.FITS)
def test_committed_fits_are_those_of_the_benchmark(preset):
    rows = committed()[preset]
    assert list(rows) == [visible_fits.label(*fit) for fit in visible_fits.FITS[preset][1]]
    assert len({row["bits_per_pixel"] for row in rows.values()}) == 1


@pytest.mark.parametrize("preset", ["f16-d128-s64-k128", "f32-d256-s64-k256"])
def test_a_power_raises_ssimulacra2_and_lowers_psnr(preset):
    rows = [row for name, row in committed()[preset].items() if "overlap" not in name]
    psnr = [row["psnr_dataset"] for row in rows]
    assert psnr == sorted(psnr, reverse=True)
    assert all(row["ssimulacra2"] > rows[0]["ssimulacra2"] + 3 for row in rows[1:])


@pytest.mark.parametrize("preset", ["f8-d32-s16-k128", "f16-d32-s16-k256"])
def test_an_overlap_raises_both(preset):
    rows = committed()[preset]
    alone, lapped = rows["0.75"], rows[f"0.75, overlap {preset.split('-')[0][1:]}"]
    assert lapped["psnr_dataset"] > alone["psnr_dataset"] + 0.1
    assert lapped["ssimulacra2"] > alone["ssimulacra2"] + 0.4
