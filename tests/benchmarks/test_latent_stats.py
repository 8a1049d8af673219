"""Statistics of latents against numpy and against latents whose statistics are known."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks import latent_stats
from benchmarks.latent_statistics import LatentMoments, LatentSpectrum, effective_rank
from benchmarks.render_readme import RESULTS
from pqdiff import BUNDLED
from pqdiff.data.images.reading import normalize, to_pixels
from pqdiff.metrics import DatasetPSNR
from tests.tiny import tiny_autoencoder


def moments_of(latents: torch.Tensor) -> LatentMoments:
    moments = LatentMoments()
    for part in latents.split(2):
        moments.update(part)
    return moments


def spectrum_of(latents: torch.Tensor) -> dict:
    spectrum = LatentSpectrum()
    spectrum.update(latents, moments_of(latents).mean)
    return spectrum.compute()


def photos(number: int = 3, side: int = 32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(number, 3, 4, 4, generator=generator)
    return to_pixels(torch.nn.functional.interpolate(coarse, side, mode="bilinear") * 2 - 1)


def test_moments_are_those_of_numpy_whatever_the_batches():
    mixing = torch.randn(5, 5, generator=torch.Generator().manual_seed(0))
    latents = torch.einsum("ij,bjhw->bihw", mixing, torch.randn(5, 5, 4, 6)) + 3
    moments, rows = moments_of(latents), latents.transpose(0, 1).flatten(1).double().numpy()
    np.testing.assert_allclose(moments.covariance, np.cov(rows, bias=True), rtol=1e-6)
    result = moments.compute()
    np.testing.assert_allclose(result["channel_variance"], rows.var(axis=1), rtol=1e-3)
    off_diagonal = np.abs(np.corrcoef(rows))[~np.eye(5, dtype=bool)].mean()
    assert result["mean_abs_correlation"] == pytest.approx(off_diagonal, abs=1e-4)
    assert moments.deviation == pytest.approx(np.sqrt(rows.var(axis=1).mean()), rel=1e-6)


def test_effective_rank_counts_directions():
    assert effective_rank(torch.eye(7).double()) == pytest.approx(7)
    assert effective_rank(torch.ones(7, 7).double()) == pytest.approx(1)
    assert effective_rank(torch.zeros(7, 7).double()) == 0


def test_a_constant_channel_correlates_with_nothing():
    latents = torch.randn(2, 2, 4, 4)
    latents[:, 1] = 5
    result = moments_of(latents).compute()
    assert result["mean_abs_correlation"] == 0
    assert result["variance_min"] == 0


def test_white_noise_has_the_same_power_everywhere():
    result = spectrum_of(torch.randn(32, 16, 12, 12, generator=torch.Generator().manual_seed(0)))
    assert list(result["power"].values()) == pytest.approx([1, 1, 1], abs=0.05)
    assert result["lag_1_autocorrelation"] == pytest.approx(0, abs=0.02)
    assert sum(result["share"].values()) == pytest.approx(1, abs=1e-4)


def test_slow_waves_are_low_and_checkerboards_high():
    x = torch.arange(16)
    wave = torch.sin(2 * torch.pi * x / 16).expand(1, 2, 16, 16)
    checkers = ((x[:, None] + x) % 2 * 2.0 - 1).expand(1, 2, 16, 16)
    slow, fast = spectrum_of(wave), spectrum_of(checkers)
    assert slow["share"]["low"] == pytest.approx(1, abs=1e-4)
    assert fast["share"]["high"] == pytest.approx(1, abs=1e-4)
    assert slow["lag_1_autocorrelation"] > 0.9
    assert fast["lag_1_autocorrelation"] == pytest.approx(-1)


def test_single_positions_have_no_spectrum():
    with pytest.raises(ValueError, match="at least 2 x 2 positions"):
        LatentSpectrum().update(torch.zeros(1, 2, 1, 4), torch.zeros(2))


def test_noise_costs_what_it_costs():
    autoencoder, pixels = tiny_autoencoder(linear=True), photos()
    result = latent_stats.measure(autoencoder, pixels, batch_size=2)
    with torch.no_grad():
        psnr = DatasetPSNR()
        psnr.update(to_pixels(autoencoder(normalize(pixels)).sample), pixels)
    noise = result["psnr_under_noise"]
    assert noise["0"]["snapped"] == pytest.approx(float(psnr.compute()), abs=0.006)
    assert noise["0"]["free"] == noise["0"]["snapped"]  # codewords already
    assert noise["1"]["free"] < noise["0.1"]["free"]
    assert len(result["latents"]["channel_variance"]) == autoencoder.config.latent_channels
    assert 0 < result["codebook"]["p_n"] <= result["codebook"]["utilization"] <= 1


def test_noise_is_the_same_every_time_and_other_for_another_seed():
    autoencoder, pixels = tiny_autoencoder(linear=True), photos()
    first, again, other = (latent_stats.measure(autoencoder, pixels, seed=seed) for seed in (0, 0, 1))
    assert first == again
    assert first["psnr_under_noise"] != other["psnr_under_noise"]
    assert first["latents"] == other["latents"]


def test_the_command_writes_results_and_a_plot(tmp_path, capsys):
    for number, pixels in enumerate(photos(4)):
        Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(tmp_path / f"{number}.png")
    tiny_autoencoder().save_pretrained(tmp_path / "model")
    output, plot = tmp_path / "stats.json", tmp_path / "docs" / "stats.png"
    command = [str(tmp_path / "model"), "--photos", str(tmp_path), "--every", "2", "--resolution", "32"]
    latent_stats.main([*command, "--output", str(output), "--plot", str(plot)])
    document = json.loads(output.read_text())
    assert document["num_images"] == 2
    assert document["data"] == f"every 2. of {tmp_path.name}"
    assert document["autoencoders"].keys() == {"model"}
    assert "PSNR at noise" in capsys.readouterr().out
    assert plot.stat().st_size > 1000


def test_mistakes_end_in_one_line(tmp_path):
    with pytest.raises(SystemExit, match=r"latent_stats: .*: holds no images"):
        latent_stats.main(["--photos", str(tmp_path)])


def test_committed_results_are_of_every_shipped_tokenizer():
    document = json.loads((RESULTS / "latent_stats.json").read_text())
    assert set(document["autoencoders"]) == set(BUNDLED)
