"""Classes of patches: what a fit with them promises."""

import pytest
import torch
import torch.nn.functional as F

from pqdiff import AutoencoderPQ
from pqdiff.fitting.classes import class_codewords
from pqdiff.fitting.closed_form import fit_closed_form
from pqdiff.models.presets import closed_form_config

PRESET = "f4-d16-s8-k32"


def stripes(count: int = 40, seed: int = 0) -> list[torch.Tensor]:
    """Stripes of two directions, a hundred times as strong in some places as in others: where classes pay."""
    generator = torch.Generator().manual_seed(seed)
    result = []
    for _ in range(count):
        strength = (1.5 * torch.randn(1, 1, 8, 8, generator=generator) - 3.5).exp()
        shape = (64, 8) if torch.rand(1, generator=generator) < 0.5 else (8, 64)
        texture = torch.randn(1, 3, *shape, generator=generator)
        texture, strength = (F.interpolate(x, size=(64, 64), mode="bilinear")[0] for x in (texture, strength))
        result.append(((0.5 + strength * texture).clamp(0, 1) * 255).round().to(torch.uint8))
    return result


def psnr(model: AutoencoderPQ, images: list[torch.Tensor]) -> float:
    x = torch.stack(images).float() / 127.5 - 1
    with torch.no_grad():
        error = model.decode(model.encode(x).latents).sample.clamp(-1, 1) - x
    return float(10 * torch.log10(4 / error.square().mean()))


@pytest.fixture(scope="module")
def fitted():
    return fit_closed_form(stripes(), PRESET, 8, class_bases=4)


def test_classes_reconstruct_busy_and_flat_images_better_at_the_same_rate(fitted):
    plain = fit_closed_form(stripes(), PRESET, 8)
    assert fitted.bits_per_pixel == plain.bits_per_pixel
    unseen = stripes(6, seed=1)
    assert psnr(fitted, unseen) > psnr(plain, unseen) + 1


def test_in_half_precision_classes_are_chosen_as_in_full(fitted, tmp_path):
    fitted.save_pretrained(tmp_path)
    half = AutoencoderPQ.from_pretrained(tmp_path, torch_dtype=torch.bfloat16)
    assert half.quantizer.rotations.dtype == torch.float32
    x = torch.stack(stripes(6, seed=1)).float() / 127.5 - 1
    with torch.no_grad():
        expected, found = fitted.encode(x).indices[:, 0], half.encode(x.bfloat16()).indices[:, 0]
    assert (found != expected).float().mean() < 0.02  # of the class tokens


def test_fit_with_classes_is_reproducible(fitted):
    again = fit_closed_form(stripes(), PRESET, 8, class_bases=4)
    weights = fitted.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in again.state_dict().items())


def test_bases_are_orthonormal(fitted):
    for rotation in fitted.quantizer.rotations:
        torch.testing.assert_close(rotation @ rotation.T, torch.eye(len(rotation)), rtol=0, atol=1e-4)


def test_likelihoods_know_the_coding_error_of_every_class(fitted):
    """No class expects less than the error that coding leaves: else flat patches would never fit another class."""
    classes = fitted.quantizer
    with torch.no_grad():
        z = fitted.transform.analysis(torch.stack(stripes(6, seed=1)).float() / 127.5 - 1)
        error = (classes.decode(classes.encode(z)) - z).square().mean()
    assert classes.log_variances.exp().amin() > error / 2
    assert classes.log_variances.shape == (32, classes.log_scales.shape[1] + 1)
    assert len(classes.log_variances.unique(dim=0)) == 32


@torch.no_grad()
def test_tokens_of_classes_come_back_exactly(fitted):
    torch.manual_seed(0)
    indices = torch.randint(32, (2, 8, 6, 6))
    _, found = fitted.quantize(fitted.latents_from_indices(indices))
    assert torch.equal(found, indices)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.no_grad()
def test_half_precision_keeps_the_class(fitted, dtype):
    """Codewords of classes lie on a grid that rounding does not leave: a wrong class would spoil a whole patch."""
    x = torch.stack(stripes(4)).float() / 127.5 - 1
    expected = fitted.decode(fitted.encode(x).latents).sample
    half = AutoencoderPQ.from_config(fitted.config).eval()
    half.load_state_dict(fitted.state_dict())
    half = half.to(dtype)
    found = half.decode(half.encode(x.to(dtype)).latents).sample
    assert (found.float() - expected).abs().mean() < 0.01


@torch.no_grad()
def test_codewords_of_classes_are_apart(fitted):
    codewords = class_codewords(fitted.quantizer, 2, 1.0)
    torch.testing.assert_close(codewords.std(dim=0), torch.ones(2))
    distances = torch.cdist(codewords, codewords) + 9 * torch.eye(len(codewords))
    assert distances.min() > 0.3  # 32 on a grid of 6 x 6


@pytest.mark.parametrize("quantize", [True, False])
@torch.no_grad()
def test_noise_on_latents_does_not_explode(fitted, quantize):
    latents = fitted.encode(torch.stack(stripes(4)).float() / 127.5 - 1).latents
    generator = torch.Generator().manual_seed(0)
    clean = fitted.decode(latents, quantize=quantize).sample
    strongest = fitted.quantizer.log_scales.exp().max()
    for strength in (0.1, 1.0, 10.0):
        noisy = latents + strength * torch.randn(latents.shape, generator=generator)
        image = fitted.decode(noisy, quantize=quantize).sample
        assert image.isfinite().all()
        # No patch gets more than what its latents hold, in the units of the strongest class.
        assert image.square().mean().sqrt() <= clean.square().mean().sqrt() + 4 * (1 + strength) * strongest


def test_a_fit_names_bases_that_do_not_divide_the_classes():
    with pytest.raises(ValueError, match=r"class_bases \(5\) must be 0 or divide K = 512"):
        closed_form_config("f8-d128-s64-k512", class_bases=5)
