"""Fitting without gradients, against numpy and against what each step promises."""

import math

import numpy as np
import pytest
import torch

from pqdiff.fitting.closed_form import PatchStatistics, balanced_groups, fit_closed_form


def smooth_images(count: int, size: int = 96, seed: int = 0) -> list[torch.Tensor]:
    """Blurred noise with the falling spectrum of photos, uint8 (3, size, size)."""
    generator = torch.Generator().manual_seed(seed)
    images = []
    for _ in range(count):
        layers = [torch.rand(1, 3, n, n, generator=generator) - 0.5 for n in (4, 12, 32, size)]
        layers = [torch.nn.functional.interpolate(x, size=(size, size), mode="bicubic") for x in layers]
        image = 0.5 + sum(weight * layer for weight, layer in zip((0.7, 0.35, 0.15, 0.05), layers, strict=True))
        images.append((image[0].clamp(0, 1) * 255).round().to(torch.uint8))
    return images


@pytest.fixture(scope="module")
def fitted():
    return fit_closed_form(smooth_images(16), "f8-d128-s64-k512", sample_size=3000, seed=0)


def psnr(model, images) -> float:
    pixels = torch.stack(images)
    with torch.no_grad():
        output = model.decode(model.encode(pixels / 127.5 - 1).latents).sample
    mse = ((output.clamp(-1, 1) * 127.5 + 127.5).round() - pixels).square().mean() / 255**2
    return -10 * math.log10(mse)


def test_statistics_equal_numpy_on_all_patches():
    images = smooth_images(3, size=32)
    statistics = PatchStatistics(8, 10_000, torch.Generator().manual_seed(0))
    for image in images:
        statistics.update(image)
    # The same grids again, by the same generator.
    generator = torch.Generator().manual_seed(0)
    patches = []
    for image in images:
        top, left = (int(torch.randint(8, (1,), generator=generator)) for _ in range(2))
        rows, columns = (32 - top) // 8, (32 - left) // 8
        torch.rand(rows * columns, generator=generator, dtype=torch.float64)
        for r in range(rows):
            for c in range(columns):
                patch = image[:, top + 8 * r : top + 8 * r + 8, left + 8 * c : left + 8 * c + 8].double() / 127.5 - 1
                patches += [patch.flatten().numpy(), patch.flip(2).flatten().numpy()]
    mean, covariance = statistics.mean_and_covariance()
    assert statistics.count == len(patches) // 2
    np.testing.assert_allclose(mean.numpy(), np.mean(patches, axis=0), atol=1e-6)
    # Averaging over reflections keeps the mean's own square out of the mixture.
    centered = np.array(patches) - np.repeat(
        np.stack([np.mean(patches[::2], axis=0), np.mean(patches[1::2], axis=0)])[None], len(patches) // 2, axis=0
    ).reshape(len(patches), -1)
    np.testing.assert_allclose(covariance.numpy(), centered.T @ centered / len(patches), atol=1e-5)


def test_sample_is_uniform_over_the_stream_and_bounded():
    statistics = PatchStatistics(8, 500, torch.Generator().manual_seed(0))
    for value in range(100):
        statistics.update(torch.full((3, 64, 64), value, dtype=torch.uint8))
    sample = (statistics.sample()[:, 0] + 1) * 127.5
    assert sample.shape == (500,)
    assert sum(map(len, statistics._kept)) <= 500
    assert sample.mean().item() == pytest.approx(49.5, abs=6)


@pytest.mark.parametrize(("count", "groups"), [(128, 64), (256, 64), (192, 64), (8, 8), (12, 3)])
def test_groups_share_out_every_component_with_balanced_products(count, groups):
    variances = [100 * 0.9**i for i in range(count)]
    order = balanced_groups(variances, groups)
    assert sorted(order.flatten().tolist()) == list(range(count))
    assert (order[:, 1:] > order[:, :-1]).all()  # descending variance within a group
    products = torch.tensor(variances).log()[order].sum(dim=1)
    naive = torch.tensor(variances).log().view(groups, -1).sum(dim=1)
    assert products.max() - products.min() <= naive.max() - naive.min()


def test_fit_reconstructs_images_it_never_saw(fitted):
    assert psnr(fitted, smooth_images(4, seed=9)) > 30


def test_fit_is_reproducible_and_depends_on_the_seed(fitted):
    again = fit_closed_form(smooth_images(16), "f8-d128-s64-k512", sample_size=3000, seed=0)
    other = fit_closed_form(smooth_images(16), "f8-d128-s64-k512", sample_size=3000, seed=1)
    assert torch.equal(again.quantizer.codebooks, fitted.quantizer.codebooks)
    assert not torch.equal(other.quantizer.codebooks, fitted.quantizer.codebooks)


def test_latents_of_the_training_images_are_standardized(fitted):
    pixels = torch.stack(smooth_images(16))
    with torch.no_grad():
        latents = fitted.encode(pixels / 127.5 - 1).latents
    assert latents.mean().item() == pytest.approx(0, abs=0.05)
    assert latents.var(dim=(0, 2, 3)).mean().item() == pytest.approx(1, abs=0.15)


def test_synthesis_undoes_analysis_up_to_the_components_left_out(fitted):
    torch.manual_seed(0)
    codes = torch.randn(1, 128, 3, 4)
    with torch.no_grad():
        again = fitted.transform.analysis(fitted.transform.synthesis(codes))
    torch.testing.assert_close(again, codes, rtol=0, atol=1e-4)


def test_hidden_channels_code_more_components_at_the_same_rate():
    """Noise has a flat spectrum: what the latent channels cannot hold is lost without hidden ones."""
    generator = torch.Generator().manual_seed(0)
    noise = [torch.randint(0, 256, (3, 160, 160), dtype=torch.uint8, generator=generator) for _ in range(12)]
    plain, hidden = (fit_closed_form(noise, "f16-d128-s64-k128", h, sample_size=1500) for h in (0, 64))
    assert hidden.bits_per_pixel == plain.bits_per_pixel
    assert hidden.quantizer.hidden_channels == 64
    held_in = [image[:, :64, :64] for image in noise]
    assert psnr(hidden, held_in) > psnr(plain, held_in)


def test_progress_names_every_stage():
    seen = []
    fit_closed_form(
        smooth_images(16), "f8-d128-s64-k512", sample_size=1000, on_step=lambda stage, i, n: seen.append(stage)
    )
    assert list(dict.fromkeys(seen)) == ["reading patches", "principal components", "k-means"]


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="0 patches"):
        fit_closed_form([], "f8-d128-s64-k512")
    with pytest.raises(ValueError, match="codebook_size"):
        fit_closed_form(smooth_images(2, size=64), "f8-d128-s64-k512")
    with pytest.raises(ValueError, match="uint8"):
        fit_closed_form([torch.rand(3, 64, 64)], "f8-d128-s64-k512")
    with pytest.raises(ValueError, match=r"hidden_channels \(7\)"):
        fit_closed_form(smooth_images(1), "f8-d128-s64-k512", hidden_channels=7)
    with pytest.raises(ValueError, match="did you mean"):
        fit_closed_form(smooth_images(1), "f8-d128-s64-k-512")


@pytest.mark.parametrize(("overlap", "class_bases"), [(4, 0), (8, 0), (8, 4)])
def test_patches_that_overlap_reconstruct_better_at_the_same_rate(overlap, class_bases):
    images, unseen = smooth_images(16), smooth_images(4, seed=1)
    options = {"hidden_channels": 16, "sample_size": 2000, "class_bases": class_bases}
    alone, lapped = (fit_closed_form(images, "f8-d32-s16-k32", **options, overlap=o) for o in (0, overlap))
    assert lapped.bits_per_pixel == alone.bits_per_pixel
    assert lapped.transform.overlap == overlap
    assert psnr(lapped, unseen) > psnr(alone, unseen) + 0.2


def test_overlapped_patches_of_the_sample_keep_values_beyond_those_of_pixels():
    """Filtered pixels can be below 0 and above 255: cut off or wrapped around, they would be other patches."""
    image = torch.zeros(3, 16, 16, dtype=torch.uint8)
    image[:, :, 8:] = 255
    statistics = PatchStatistics(8, 100, torch.Generator().manual_seed(0), overlap=8)
    for _ in range(40):
        statistics.update(image)
    values = (statistics.sample() + 1) * 127.5
    assert values.min() < -10
    assert values.max() > 265
    mean, _ = statistics.mean_and_covariance()
    torch.testing.assert_close(statistics.sample().double().mean(dim=0).mean(), mean.mean(), rtol=0, atol=0.01)


@pytest.mark.parametrize("overlap", [-2, 3, 10])
def test_an_overlap_that_does_not_fit_the_patches_is_named(overlap):
    with pytest.raises(ValueError, match=rf"overlap \({overlap}\) must be even, from 0 to F = 8 of f8-d32-s16-k32"):
        fit_closed_form([], "f8-d32-s16-k32", overlap=overlap)
