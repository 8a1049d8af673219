"""`pqdiff fit`."""

import json
import stat

import pytest
from PIL import Image

from pqdiff import AutoencoderPQ
from pqdiff.models.fingerprint import fingerprint
from tests.cli.support import F8, assert_done, assert_refused, bad_image, files_in, images_for_fit


def test_fit_writes_a_model_that_loads_with_its_card(fitted):
    assert fitted.code in (0, None)
    assert files_in(fitted.model) == ["README.md", "config.json", "diffusion_pytorch_model.safetensors"]
    model = AutoencoderPQ.from_pretrained(fitted.model)
    assert model.config.preset == F8
    report = {"preset": F8, "folder": str(fitted.model), "fingerprint": fingerprint(model)}
    assert json.loads(fitted.out) == {"fitted": [report]}
    card = (fitted.model / "README.md").read_text()
    assert card.startswith("---\n")
    assert fingerprint(model) in card
    assert f"--preset {F8}" in card
    assert sorted(path.name for path in fitted.folder.iterdir()) == ["images", "model"]


def test_a_fitted_model_reconstructs_its_images(fitted, tmp_path, pqdiff):
    result = pqdiff("reconstruct", fitted.folder / "images" / "3.png", "-m", fitted.model, "-o", tmp_path, "--json")
    assert_done(result)
    assert json.loads(result.out)["results"][0]["psnr"] > 25


def test_everyone_may_read_a_fitted_model_who_may_read_its_folder(fitted):
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) & 0o444 for path in fitted.model.iterdir()}
    assert set(modes.values()) == {stat.S_IMODE(fitted.model.stat().st_mode) & 0o444}, modes


def test_the_same_seed_fits_the_same_model(fitted, tmp_path, pqdiff):
    result = pqdiff("fit", fitted.folder / "images", "-o", tmp_path / "again", "-p", F8, "--resolution", 128)
    assert_done(result)
    assert result.out.splitlines() == ["Written:", f"  {tmp_path / 'again'}"]
    again = AutoencoderPQ.from_pretrained(tmp_path / "again")
    assert fingerprint(again) == json.loads(fitted.out)["fitted"][0]["fingerprint"]


@pytest.mark.parametrize("kind", ["full folder", "file"])
def test_fit_refuses_an_output_that_exists_before_any_work(tmp_path, pqdiff, kind):
    images, output = images_for_fit(tmp_path / "images"), tmp_path / "model"
    bad_image("corrupt", images)  # which would be found first if the work began
    if kind == "file":
        output.write_text("precious")
    else:
        output.mkdir()
        (output / "notes.txt").write_text("precious")
    result = pqdiff("fit", images, "-o", output, "-p", F8)
    assert_refused(result, output)
    assert "exists" in result.err
    assert (output if kind == "file" else output / "notes.txt").read_text() == "precious"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images", "model"]


def test_fit_of_several_presets_refuses_an_output_that_exists_before_any_work(tmp_path, pqdiff):
    images, second = images_for_fit(tmp_path / "images"), tmp_path / "models" / "pqgan-f16-d128-s64-k128"
    bad_image("corrupt", images)
    second.mkdir(parents=True)
    (second / "notes.txt").write_text("precious")
    result = pqdiff("fit", images, "-o", tmp_path / "models", "-p", F8, "-p", "f16-d128-s64-k128")
    assert_refused(result, second)
    assert files_in(tmp_path / "models") == [second.name, "notes.txt"][::-1]


def test_an_interrupted_fit_leaves_nothing_behind(tmp_path, pqdiff, monkeypatch):
    images, output = images_for_fit(tmp_path / "images", 8), tmp_path / "model"
    opened, really_open = [], Image.open

    def interrupt_at_the_fifth_image(*args, **kwargs):
        opened.append(args)
        if len(opened) == 5:
            raise KeyboardInterrupt  # as Ctrl-C does, at a moment that is the same every time
        return really_open(*args, **kwargs)

    monkeypatch.setattr(Image, "open", interrupt_at_the_fifth_image)
    result = pqdiff("fit", images, "-o", output, "-p", F8, "--resolution", 128)
    assert result.code == 130
    assert [path.name for path in tmp_path.iterdir()] == ["images"]
    assert result.err == "pqdiff: interrupted; nothing was left half-written\n"


def test_a_fit_for_visible_errors_says_so_on_its_card(fitted, tmp_path, pqdiff):
    options = ["-p", "f8-d32-s16-k32", "--resolution", 128, "--visibility", "0.5", "--overlap", 4]
    assert_done(pqdiff("fit", fitted.folder / "images", "-o", tmp_path / "model", *options))
    card = " ".join((tmp_path / "model" / "README.md").read_text().split())
    assert "--visibility 0.5 --overlap 4`" in card
    assert "weighed by how much their color and frequency lower SSIMULACRA2 (power 0.5)" in card
    assert "squared error alone" not in card


@pytest.mark.parametrize(
    ("options", "name"),
    [
        (["-p", "f8-d128"], "f8-d128"),
        (["-p", F8, "-p", "nonsense"], "nonsense"),
        (["-p", F8, "--hidden-channels", "7"], "hidden"),
        (["-p", F8, "--hidden-channels", "-64"], "hidden"),
        (["-p", F8, "--hidden-channels", "128"], "hidden"),  # more than a patch has
        (["-p", F8, "--visibility", "1.5"], "visibility (1.5) must be from 0"),
        (["-p", F8, "--visibility", "nan"], "visibility (nan) must be from 0"),
        (["-p", F8, "--overlap", "3"], "overlap (3) must be even, from 0 to F = 8"),
        (["-p", F8, "--overlap", "10"], "overlap (10) must be even, from 0 to F = 8"),
        (["-p", F8, "--overlap", "2", "--on-latents", "tiny-base"], "nor --overlap"),
        (["-p", F8, "--visibility", "0.5", "--on-latents", "tiny-base"], "nor --visibility"),
        (["-p", F8, "--exclude-every", "1"], "too few"),
        (["-p", F8, "--resolution", "16"], "512"),  # fewer patches than codewords
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_fit_refuses_options_that_cannot_work(tmp_path, pqdiff, options, name):
    images = images_for_fit(tmp_path / "images")
    assert_refused(pqdiff("fit", images, "-o", tmp_path / "out" / "model", *options), name, tmp_path / "out")
