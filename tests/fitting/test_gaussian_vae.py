"""Tokenizers from Gaussian autoencoders: measured divergences, tokens, and pixels of the autoencoder itself."""

import math

import pytest
import torch
from diffusers import AutoencoderDC, AutoencoderKL, AutoencoderTiny
from torch.distributions import Normal, kl_divergence

from pqdiff import AutoencoderPQ
from pqdiff.data.images.reading import normalize
from pqdiff.fitting.gaussian_vae import check_rate, convert_gaussian_vae, fit_on_latents, measure_posteriors

CONFIG = {
    "block_out_channels": (8, 16, 16),
    "down_block_types": ("DownEncoderBlock2D",) * 3,
    "up_block_types": ("UpDecoderBlock2D",) * 3,
    "norm_num_groups": 4,
    "latent_channels": 4,
    "sample_size": 32,
}


@pytest.fixture(scope="module")
def vae() -> AutoencoderKL:
    torch.manual_seed(0)
    model = AutoencoderKL(**CONFIG).eval()
    with torch.no_grad():
        model.quant_conv.weight[4:] *= 0.1
        model.quant_conv.bias[4:] = torch.tensor([-8.0, -6.0, -9.0, -5.0])  # log-variances: a few bits per channel
    return model


@pytest.fixture(scope="module")
def images() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(256, (3, 32, 48), dtype=torch.uint8, generator=generator) for _ in range(3)]


@torch.no_grad()
def posteriors_of(vae, images):
    parts = [vae.encode(normalize(image)[None]).latent_dist for image in images]
    mean, std = (
        torch.cat([getattr(p, name)[0].flatten(1) for p in parts], dim=1).double() for name in ("mean", "std")
    )
    return mean, std  # (d, N)


def test_bits_are_the_divergence_from_a_normal_of_the_same_mean_and_variance(vae, images):
    found = measure_posteriors(vae, images)
    mean, std = posteriors_of(vae, images)
    center = mean.mean(dim=1, keepdim=True)
    variance = (mean - center).square().mean(dim=1, keepdim=True) + std.square().mean(dim=1, keepdim=True)
    expected = kl_divergence(Normal(mean, std), Normal(center, variance.sqrt())).mean(dim=1) / math.log(2)
    torch.testing.assert_close(found.mean, center[:, 0], rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(found.variance, variance[:, 0], rtol=1e-5, atol=1e-9)
    torch.testing.assert_close(found.bits, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.bits_of_groups(2), expected[:2] + expected[2:], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("kind", "config"),
    [
        ("gaussian", {"codebook_size": 2**10, "codebook_dim": 1}),
        ("token_bridge", {"num_bins": 512}),
        ("finite_scalar", {"levels": 1001, "num_subspaces": 4}),
    ],
)
@torch.no_grad()
def test_with_many_bits_the_images_are_nearly_those_of_the_autoencoder(vae, images, kind, config):
    model = convert_gaussian_vae(vae, images, kind, config, force=True)
    image = normalize(images[0])[None]
    expected = vae.decode(vae.encode(image).latent_dist.mean).sample
    found = model(image).sample
    # Gaussian Quant keeps errors as small as the posterior's own, not smaller; the tanh of FSQ bends what it codes.
    most = {"gaussian": 0.05, "token_bridge": 1e-3}.get(kind, 1.0)
    assert (found - expected).square().mean() < most * expected.var()
    tokens = model.encode_to_indices(image)
    torch.testing.assert_close(model.decode(model.encode(image).latents).sample, found, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(model.decode_from_indices(tokens).sample, found, rtol=1e-3, atol=1e-4)


@torch.no_grad()
def test_product_quantization_of_latents_loses_less_with_more_codewords(vae, images):
    image = normalize(images[0])[None]
    expected = vae.encode(image).latent_dist.mean
    errors = []
    for size in (4, 32, 128):
        model = fit_on_latents(vae, images, num_subspaces=2, codebook_size=size)
        codes = model.quantizer(model.transform.analysis(image)).codes
        latents = torch.einsum("ij,bjhw->bihw", model.transform.inverse, codes) + model.transform.offset[:, None, None]
        errors.append(float((latents - expected).square().mean()))
    assert errors[0] > 2 * errors[1] > 4 * errors[2]


@torch.no_grad()
def test_a_converted_tokenizer_is_saved_whole(vae, images, tmp_path):
    model = convert_gaussian_vae(vae, images, "gaussian", {"codebook_size": 256, "codebook_dim": 1}, force=True)
    model.save_pretrained(tmp_path)
    again = AutoencoderPQ.from_pretrained(tmp_path).eval()
    image = normalize(images[1])[None]
    assert torch.equal(again.encode_to_indices(image), model.encode_to_indices(image))
    assert torch.equal(again(image).sample, model(image).sample)
    assert again.downsample_factor == 4


def test_latents_are_standardized(vae, images):
    model = fit_on_latents(vae, images, num_subspaces=4, codebook_size=16)
    with torch.no_grad():
        latents = torch.cat([model.encode(normalize(image)[None]).latents.flatten(2) for image in images], dim=2)[0]
    torch.testing.assert_close(latents.mean(dim=1), torch.zeros(4), rtol=0, atol=1e-4)
    assert float(latents.var(dim=1).mean()) == pytest.approx(1, abs=0.01)


def test_a_codebook_that_is_too_small_is_refused_with_settings_that_fit(vae, images):
    bits = measure_posteriors(vae, images).bits
    config = {"codebook_size": 2, "codebook_dim": 4}
    with pytest.raises(
        ValueError, match=r"codebook_size \(2\) has 1 bits, but groups of 4 channels carry up to"
    ) as error:
        convert_gaussian_vae(vae, images, "gaussian", config)
    advised = f"codebook_dim 1 with codebook_size {2 ** math.ceil(float(bits.max()))}"
    assert advised in str(error.value)
    convert_gaussian_vae(vae, images, "gaussian", config, force=True)
    check_rate(measure_posteriors(vae, images), 2 ** math.ceil(float(bits.max())), 1)


def test_autoencoders_without_a_gaussian_posterior_are_refused(images):
    tiny = AutoencoderTiny(
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        num_encoder_blocks=(1, 1),
        num_decoder_blocks=(1, 1),
    )
    for model in (tiny, AutoencoderDC.__new__(AutoencoderDC)):
        with pytest.raises(
            ValueError, match=rf"vae \({type(model).__name__}\) cannot be converted: it has no Gaussian"
        ):
            fit_on_latents(model, images, 2, 4)


def test_without_images_there_is_nothing_to_measure(vae):
    with pytest.raises(ValueError, match="images is empty"):
        measure_posteriors(vae, [])
    with pytest.raises(ValueError, match="images is empty"):
        fit_on_latents(vae, [], 2, 4)
