"""Classes of patches: the closed form with them, and what they promise."""

import pytest
import torch
import torch.nn.functional as F

from pqdiff import AutoencoderPQ
from pqdiff.models.class_fit import class_codewords
from pqdiff.models.closed_form import fit_closed_form
from pqdiff.models.kmeans import fit_codebooks
from pqdiff.models.patch_classes import PatchClasses
from pqdiff.models.presets import closed_form_config

from .conftest import build

PRESET = "f4-d16-s8-k32"


def pictures(count: int = 40, seed: int = 0) -> list[torch.Tensor]:
    """Stripes of two directions, a hundred times as strong in some places as in others: where classes pay."""
    generator = torch.Generator().manual_seed(seed)
    result = []
    for _ in range(count):
        strength = (1.5 * torch.randn(1, 1, 8, 8, generator=generator) - 3.5).exp()
        shape = (64, 8) if torch.rand(1, generator=generator) < 0.5 else (8, 64)
        stripes = torch.randn(1, 3, *shape, generator=generator)
        texture, strength = (F.interpolate(x, size=(64, 64), mode="bilinear")[0] for x in (stripes, strength))
        result.append(((0.5 + strength * texture).clamp(0, 1) * 255).round().to(torch.uint8))
    return result


def psnr(model: AutoencoderPQ, images: list[torch.Tensor]) -> float:
    x = torch.stack(images).float() / 127.5 - 1
    with torch.no_grad():
        error = model.decode(model.encode(x).latents).sample.clamp(-1, 1) - x
    return float(10 * torch.log10(4 / error.square().mean()))


@pytest.fixture(scope="module")
def fitted():
    return fit_closed_form(pictures(), PRESET, 8, class_bases=4)


def test_classes_reconstruct_busy_and_flat_pictures_better_at_the_same_rate(fitted):
    plain = fit_closed_form(pictures(), PRESET, 8)
    assert fitted.bits_per_pixel == plain.bits_per_pixel
    unseen = pictures(6, seed=1)
    assert psnr(fitted, unseen) > psnr(plain, unseen) + 1


def test_in_half_precision_classes_are_chosen_as_in_full(fitted, tmp_path):
    fitted.save_pretrained(tmp_path)
    half = AutoencoderPQ.from_pretrained(tmp_path, torch_dtype=torch.bfloat16)
    assert half.patch_transform.patch_classes.rotations.dtype == torch.float32
    x = torch.stack(pictures(6, seed=1)).float() / 127.5 - 1
    with torch.no_grad():
        expected, found = fitted.encode(x).indices[:, 0], half.encode(x.bfloat16()).indices[:, 0]
    assert (found != expected).float().mean() < 0.02  # of the class tokens


def test_fit_with_classes_is_reproducible(fitted):
    again = fit_closed_form(pictures(), PRESET, 8, class_bases=4)
    weights = fitted.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in again.state_dict().items())


def test_bases_are_orthonormal(fitted):
    for rotation in fitted.patch_transform.patch_classes.rotations:
        torch.testing.assert_close(rotation @ rotation.T, torch.eye(len(rotation)), rtol=0, atol=1e-4)


def test_likelihoods_know_the_coding_error_of_every_class(fitted):
    """No class expects less than the error that coding leaves: else flat patches would never fit another class."""
    classes = fitted.patch_transform.patch_classes
    floor = classes.log_variances.exp().amin()
    assert floor > 1e-7
    assert classes.log_variances.shape == (32, classes.log_scales.shape[1] + 1)
    assert len(classes.log_variances.unique(dim=0)) == 32


@torch.no_grad()
def test_likeliest_classes_are_those_of_the_gaussian_density():
    """Against torch's own multivariate normal, over all components."""
    torch.manual_seed(0)
    classes = PatchClasses(6, 6, 8, 2)
    classes.log_variances[:, :-1].normal_()
    x = torch.randn(1, 6, 50)
    found = classes.likeliest(x, classes.coefficients(x), 3)[0]  # (3, 50)
    densities = []
    for k in range(8):
        rotation = classes.rotations[k // 4]
        covariance = rotation.T @ torch.diag(classes.log_variances[k, :-1].exp()) @ rotation
        normal = torch.distributions.MultivariateNormal(torch.zeros(6), covariance, validate_args=False)
        densities.append(normal.log_prob(x[0].T))
    expected = torch.stack(densities).topk(3, dim=0).indices
    assert torch.equal(found, expected)


@torch.no_grad()
def test_the_encoder_takes_the_candidate_that_reconstructs_best():
    """Against a search through every class one by one."""
    torch.manual_seed(0)
    classes = PatchClasses(10, 8, 6, 3, candidates=6)
    classes.log_scales.normal_(std=0.7)
    codewords, x = torch.randn(2, 16, 4), torch.randn(2, 10, 30)
    chosen, relative, indices = classes.encode(x, codewords)
    errors = []
    for k in range(6):
        rotation, scales = classes.rotations[k // 2], classes.log_scales[k].exp()[:, None]
        vectors = ((rotation @ x) / scales).unflatten(1, (2, 4))  # (B, S - 1, D, n)
        distances = (vectors[:, :, :, None] - codewords.transpose(1, 2)[None, ..., None]).square().sum(dim=2)
        nearest = distances.argmin(dim=2)  # (B, S - 1, n)
        decoded = torch.stack([codewords[s][nearest[:, s]].movedim(2, 1) for s in range(2)], dim=1).flatten(1, 2)
        errors.append((rotation.T @ (decoded * scales) - x).square().sum(dim=1))
    best = torch.stack(errors).min(dim=0).values
    decoded = torch.stack([codewords[s][indices[:, s]].movedim(2, 1) for s in range(2)], dim=1).flatten(1, 2)
    picture = classes.components(decoded * classes.scales(chosen), chosen)
    torch.testing.assert_close((picture - x).square().sum(dim=1), best, rtol=1e-4, atol=1e-4)
    assert relative.shape == (2, 2, 4, 30)


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
    x = torch.stack(pictures(4)).float() / 127.5 - 1
    expected = fitted.decode(fitted.encode(x).latents).sample
    half = AutoencoderPQ.from_config(fitted.config).eval()
    half.load_state_dict(fitted.state_dict())
    half = half.to(dtype)
    found = half.decode(half.encode(x.to(dtype)).latents).sample
    assert (found.float() - expected).abs().mean() < 0.01


@torch.no_grad()
def test_codewords_of_classes_are_apart(fitted):
    codewords = class_codewords(fitted.patch_transform.patch_classes, 2, 1.0)
    torch.testing.assert_close(codewords.std(dim=0), torch.ones(2))
    distances = torch.cdist(codewords, codewords) + 9 * torch.eye(len(codewords))
    assert distances.min() > 0.3  # 32 on a grid of 6 x 6


@pytest.mark.parametrize("quantize", [True, False])
@torch.no_grad()
def test_noise_on_latents_does_not_explode(fitted, quantize):
    latents = fitted.encode(torch.stack(pictures(4)).float() / 127.5 - 1).latents
    generator = torch.Generator().manual_seed(0)
    clean = fitted.decode(latents, quantize=quantize).sample
    strongest = fitted.patch_transform.patch_classes.log_scales.exp().max()
    for strength in (0.1, 1.0, 10.0):
        noisy = latents + strength * torch.randn(latents.shape, generator=generator)
        image = fitted.decode(noisy, quantize=quantize).sample
        assert image.isfinite().all()
        # No patch gets more than what its latents hold, in the units of the strongest class.
        assert image.square().mean().sqrt() <= clean.square().mean().sqrt() + 4 * (1 + strength) * strongest


def test_gradients_reach_image_and_codewords(fitted):
    model = AutoencoderPQ.from_config(fitted.config)
    model.load_state_dict(fitted.state_dict())
    x = (torch.stack(pictures(2)).float() / 127.5 - 1).requires_grad_()
    output = model(x)
    (output.sample - x.detach()).square().mean().backward()
    for tensor in (x, model.quantizer.codebooks, model.patch_transform.hidden_codewords):
        assert tensor.grad.isfinite().all()
        assert tensor.grad.abs().sum() > 0


def test_weighted_k_means_moves_codewords_to_what_counts():
    vectors = torch.tensor([0.0, 1.0] * 50)[None, None]
    weights = torch.tensor([3.0, 1.0] * 50)[None]
    codebook = fit_codebooks(vectors, 1, torch.Generator().manual_seed(0), weights=weights)
    torch.testing.assert_close(codebook.flatten(), torch.tensor([0.25]))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            {"conv_networks": True, "patch_shortcut": False, "hidden_channels": 0},
            r"class_bases \(4\) needs patch_shortcut",
        ),
        ({"conv_networks": True}, r"class_bases \(4\) codes patches without networks"),
        ({"patch_network_channels": 8}, r"class_bases \(4\) codes patches without networks"),
        ({"class_bases": 3}, r"class_bases \(3\) must divide codebook_size \(16\)"),
        ({"class_bases": -1}, r"class_bases \(-1\)"),
        ({"class_candidates": 17}, r"class_candidates \(17\) must be from 1 to the 16 classes"),
        ({"class_components": 7}, r"class_components \(7\) must be from 8 to 48"),
        ({"class_components": 49}, r"class_components \(49\) must be from 8 to 48"),
        ({"quantizer_config": {"num_subspaces": 1, "codebook_size": 8}}, r"num_subspaces \(1\)"),
    ],
)
def test_bad_classes_are_named(overrides, message):
    with pytest.raises(ValueError, match=message):
        build("classes", **overrides)


def test_a_fit_names_bases_that_do_not_divide_the_classes():
    with pytest.raises(ValueError, match=r"class_bases \(5\) must be 0 or divide K = 512"):
        closed_form_config("f8-d128-s64-k512", class_bases=5)
