"""Gains: the closed form with them, and what they promise to diffusion models."""

import pytest
import torch
import torch.nn.functional as F

from pqdiff import AutoencoderPQ
from pqdiff.models.closed_form import fit_closed_form
from pqdiff.models.gain_fit import STEADY, fit_gains
from pqdiff.models.kmeans import fit_codebooks
from pqdiff.models.local_gains import LocalGains
from pqdiff.quantizers.nearest import nearest_codewords

from .conftest import build

PRESET = "f4-d16-s8-k32"


def pictures(count: int = 40, seed: int = 0) -> list[torch.Tensor]:
    """Texture that is a hundred times as strong in some places as in others: where gains pay."""
    generator = torch.Generator().manual_seed(seed)
    result = []
    for _ in range(count):
        strength = (1.5 * torch.randn(1, 1, 8, 8, generator=generator) - 3.5).exp()
        coarse = torch.randn(1, 3, 32, 32, generator=generator)
        texture, strength = (F.interpolate(x, size=(64, 64), mode="bilinear")[0] for x in (coarse, strength))
        result.append(((0.5 + strength * texture).clamp(0, 1) * 255).round().to(torch.uint8))
    return result


def psnr(model: AutoencoderPQ, images: list[torch.Tensor]) -> float:
    x = torch.stack(images).float() / 127.5 - 1
    with torch.no_grad():
        error = model.decode(model.encode(x).latents).sample.clamp(-1, 1) - x
    return float(10 * torch.log10(4 / error.square().mean()))


@pytest.fixture(scope="module")
def fitted():
    return fit_closed_form(pictures(), PRESET, 8, gain_bands=4)


def test_gains_reconstruct_busy_and_flat_pictures_better_at_the_same_rate(fitted):
    plain = fit_closed_form(pictures(), PRESET, 8)
    assert fitted.bits_per_pixel == plain.bits_per_pixel
    unseen = pictures(6, seed=1)
    assert psnr(fitted, unseen) > psnr(plain, unseen) + 0.5


def test_fit_with_gains_is_reproducible(fitted):
    again = fit_closed_form(pictures(), PRESET, 8, gain_bands=4)
    weights = fitted.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in again.state_dict().items())


@torch.no_grad()
def test_relative_coefficients_have_the_deviation_that_is_saved_with_them(fitted):
    path = fitted.patch_transform
    x = torch.stack(pictures()).float() / 127.5 - 1
    coefficients = path.analysis(F.pixel_unshuffle(x, 4))
    gains = path.local_gains.measure(coefficients)
    codewords = torch.cat([fitted.quantizer.codebooks, path.hidden_codewords], dim=2)[0]
    index = nearest_codewords(gains.flatten(2)[:, None].contiguous(), codewords[None])[:, 0]
    scales = path.local_gains.log_scales(codewords[index].movedim(2, 1)[..., None], codewords).exp()
    relative = coefficients.flatten(2) / scales[..., 0]
    # The fit saw other placements of the grid on the same pictures.
    ratio = relative.square().mean(dim=(0, 2)).sqrt() / path.local_gains.deviation
    torch.testing.assert_close(ratio.log().mean(), torch.tensor(0.0), rtol=0, atol=0.1)


@torch.no_grad()
def test_gains_of_codewords_come_back_exactly(fitted):
    """Gain round trip: the first token of a decoded latent is that of the codeword."""
    torch.manual_seed(0)
    indices = torch.randint(32, (2, 8, 6, 6))
    _, found = fitted.quantize(fitted.latents_from_indices(indices))
    assert torch.equal(found[:, 0], indices[:, 0])


@torch.no_grad()
def test_strong_patches_have_larger_gains():
    gains = LocalGains(8, 1, 4)
    torch.nn.init.constant_(gains.measurement.weight, 0.5)
    weak = torch.randn(1, 8, 3, 3, generator=torch.Generator().manual_seed(0))
    # Energies are far above the floor: logarithms grow by 2 log 10 in each of 4 bands.
    difference = gains.measure(100 * weak) - gains.measure(10 * weak)
    torch.testing.assert_close(difference, torch.full_like(difference, 4 * 0.5 * 4.60517), rtol=1e-3, atol=0)


@torch.no_grad()
def test_scales_stay_within_those_of_codewords(fitted):
    path = fitted.patch_transform
    codewords = torch.cat([fitted.quantizer.codebooks, path.hidden_codewords], dim=2)[0]
    possible = path.local_gains.log_scales(codewords.T[None, :, :, None], codewords)[0, :, :, 0]  # (M, K)
    wild = 1e3 * torch.randn(1, codewords.shape[1], 4, 4, generator=torch.Generator().manual_seed(0))
    scales = path.local_gains.log_scales(wild, codewords)[0].flatten(1)
    assert (scales <= possible.amax(dim=1, keepdim=True)).all()
    assert (scales >= possible.amin(dim=1, keepdim=True)).all()


@pytest.mark.parametrize("quantize", [True, False])
@torch.no_grad()
def test_noise_on_latents_does_not_explode(fitted, quantize):
    latents = fitted.encode(torch.stack(pictures(4)).float() / 127.5 - 1).latents
    generator = torch.Generator().manual_seed(0)
    clean = fitted.decode(latents, quantize=quantize).sample
    for strength in (0.1, 1.0, 10.0):
        noisy = latents + strength * torch.randn(latents.shape, generator=generator)
        image = fitted.decode(noisy, quantize=quantize).sample
        assert image.isfinite().all()
        # Pictures grow no faster than the latents that they are made of.
        assert image.square().mean().sqrt() <= 4 * (1 + strength) * clean.square().mean().sqrt()


def test_color_means_have_no_gain(fitted):
    profile = fitted.patch_transform.local_gains.profile.weight[:, :, 0, 0]
    assert int((profile == 0).all(dim=1).sum()) == STEADY


def test_weighted_k_means_moves_codewords_to_what_counts():
    vectors = torch.tensor([0.0, 1.0] * 50)[None, None]
    weights = torch.tensor([3.0, 1.0] * 50)[None]
    codebook = fit_codebooks(vectors, 1, torch.Generator().manual_seed(0), weights=weights)
    torch.testing.assert_close(codebook.flatten(), torch.tensor([0.25]))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"gain_bands": 3, "conv_networks": True, "patch_shortcut": False}, r"gain_bands \(3\) needs patch_shortcut"),
        ({"gain_bands": 1, "hidden_channels": 3}, r"gain_bands \(1\) must be at least the 3 gains"),
        ({"gain_bands": -1}, r"gain_bands \(-1\)"),
        ({"gain_bands": 3, "quantizer_config": {"num_subspaces": 1, "codebook_size": 8}}, r"num_subspaces \(1\)"),
    ],
)
def test_bad_gains_are_named(overrides, message):
    with pytest.raises(ValueError, match=message):
        build("linear", **overrides)


def test_more_bands_than_components_are_named():
    with pytest.raises(ValueError, match=r"gain_bands \(9\) must be at most 5"):
        fit_gains(torch.randn(64, 8), torch.ones(8), 9, 4, 2, torch.Generator())
