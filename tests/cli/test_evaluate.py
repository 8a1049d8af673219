"""`pqdiff evaluate`."""

import json

import pytest

from tests.cli.support import assert_done, assert_refused, files_in, save


def test_evaluate_writes_what_it_prints(tmp_path, pqdiff, f8, f16):
    for seed in range(5):
        save(tmp_path / "images" / f"{seed}.png", seed, 40, 50)
    output = tmp_path / "new" / "metrics.json"
    arguments = ["evaluate", tmp_path / "images", "-m", f8, "-m", f16, "-o", output, "--resolution", 32]
    result = pqdiff(*arguments, "--every", 2, "--json")
    assert_done(result)
    report = json.loads(result.out)
    assert report == json.loads(output.read_text())
    assert files_in(tmp_path / "new") == ["metrics.json"]
    assert list(report) == [str(f8), str(f16)]
    for model in report.values():
        assert model["num_images"] == 3
        assert model["data"] == "images, every 2"
        assert model["protocol"]["resolution"] == 32
    metrics = report[str(f8)]["metrics"]
    assert metrics["bits_per_pixel"] == pytest.approx(9)
    assert 0 < metrics["entropy_bits_per_pixel"] < 9
    assert metrics["psnr_image_mean"] >= metrics["psnr_dataset"] > report[str(f16)]["metrics"]["psnr_dataset"]
    table = pqdiff(*arguments, "--force")
    assert_done(table)
    assert "5 images at 32 px" in table.out
    assert str(output) in table.out.replace("\n", "")


def test_evaluate_measures_with_noise_on_latents(tmp_path, pqdiff, f8):
    save(tmp_path / "images" / "a.png", 3, 64, 64)
    arguments = ["evaluate", tmp_path / "images", "-m", f8, "-o", tmp_path / "m.json", "--resolution", 64]
    result = pqdiff(*arguments, "--noise", 0.5, "--json")
    assert_done(result)
    plain, noisy = (entry["metrics"] for entry in json.loads(result.out).values())
    assert noisy["psnr_dataset"] < plain["psnr_dataset"]
    assert noisy["changed_tokens"] > 0
    assert_refused(pqdiff(*arguments, "--force", "--noise", 0), "noise (0.0) must be", tmp_path / "out")


def test_evaluate_agrees_with_reconstruct(tmp_path, pqdiff, f8):
    original = save(tmp_path / "images" / "a.png", 3, 64, 64)  # no resizing, no cropping
    evaluation = pqdiff("evaluate", original.parent, "-m", f8, "-o", tmp_path / "m.json", "--resolution", 64, "--json")
    reconstruction = pqdiff("reconstruct", original, "-m", f8, "-o", tmp_path / "out", "--json")
    metrics, row = json.loads(evaluation.out)[str(f8)]["metrics"], json.loads(reconstruction.out)["results"][0]
    assert metrics["psnr_dataset"] == pytest.approx(row["psnr"], abs=1e-6)
    assert metrics["ssim"] == pytest.approx(row["ssim"], abs=1e-6)


@pytest.mark.parametrize("resolution", [100, 8, 0, -32])
def test_evaluate_refuses_a_resolution_that_does_not_fit(tmp_path, pqdiff, f8, resolution):
    save(tmp_path / "images" / "a.png", 1, 16, 16)
    arguments = ["-m", f8, "-o", tmp_path / "out" / "m.json", "--resolution", resolution]
    assert_refused(pqdiff("evaluate", tmp_path / "images", *arguments), resolution, tmp_path / "out")


def test_a_resolution_below_the_window_of_ssim_is_refused_for_that_reason(tmp_path, pqdiff, f8):
    save(tmp_path / "images" / "a.png", 1)
    arguments = ["-m", f8, "-o", tmp_path / "out" / "m.json", "--resolution"]
    assert "resolution (8) must be at least 16: SSIM" in pqdiff("evaluate", tmp_path / "images", *arguments, 8).err
    assert "(100) must be divisible by F = 8" in pqdiff("evaluate", tmp_path / "images", *arguments, 100).err


def test_evaluate_takes_codecs_and_names_broken_images(tmp_path, pqdiff, f8):
    for seed in range(2):
        save(tmp_path / "images" / f"{seed}.png", seed, 40, 50)
    (tmp_path / "images" / "broken.png").write_bytes(b"no image")
    arguments = ["evaluate", tmp_path / "images", "-m", "jpeg:75", "-m", f8, "-m", "webp@3bpp", "--resolution", 32]
    result = pqdiff(*arguments, "-o", tmp_path / "metrics.json")
    assert result.code == 0
    assert "broken.png" in result.err
    report = json.loads((tmp_path / "metrics.json").read_text())
    assert [model["num_images"] for model in report.values()] == [2, 2, 2]
    assert [len(model["broken"]) for model in report.values()] == [1, 1, 1]
    assert report["webp@3bpp"]["metrics"]["bits_per_pixel"] <= 3.2
    assert report["jpeg:75"]["protocol"]["kind"] == "codec"
    strict = pqdiff(*arguments, "--strict", "-o", tmp_path / "strict.json")
    assert_refused(strict, "broken.png", tmp_path / "strict.json")
