"""The transform with the networks of a Gaussian autoencoder."""

import pytest
import torch

from pqdiff import AutoencoderPQ
from pqdiff.transforms import build_transform
from tests.fitting.test_gaussian_vae import CONFIG


def build(z_channels: int = 8):
    torch.manual_seed(0)
    return build_transform("gaussian_vae", 3, z_channels, 4, {"vae_config": CONFIG}).eval()


@torch.no_grad()
def test_z_is_means_and_log_variances_under_the_map_and_synthesis_undoes_it():
    transform, image = build(), torch.rand(1, 3, 32, 32) * 2 - 1
    offset, scale = torch.randn(4), torch.tensor([0.5, 2.0, 3.0, 1.0])
    transform.set_map(offset, scale.diag())
    posterior = transform.vae.encode(image).latent_dist
    mean, logvar = transform.analysis(image).chunk(2, dim=1)
    torch.testing.assert_close(mean, (posterior.mean - offset.view(-1, 1, 1)) * scale.view(-1, 1, 1))
    torch.testing.assert_close(logvar.exp(), posterior.var * scale.view(-1, 1, 1) ** 2)
    torch.testing.assert_close(
        transform.synthesis(mean), transform.vae.decode(posterior.mean).sample, rtol=1e-4, atol=1e-5
    )


def test_variances_forbid_a_rotation():
    rotation = torch.linalg.qr(torch.randn(4, 4)).Q
    with pytest.raises(ValueError, match="matrix must be diagonal"):
        build(8).set_map(torch.zeros(4), rotation)
    build(4).set_map(torch.zeros(4), rotation)


@pytest.mark.parametrize(
    ("channels", "config", "message"),
    [
        ((3, 8, 4), {"vae_class": "AutoencoderDC"}, r"vae_class \('AutoencoderDC'\) has no Gaussian posterior"),
        ((1, 8, 4), {"vae_config": CONFIG}, r"in_channels \(1\)"),
        ((3, 8, 6), {"vae_config": CONFIG}, r"the quantizer's channels \(6\) must be those of vae_config: 3 and 4"),
        ((3, 6, 4), {"vae_config": CONFIG}, r"the quantizer takes 6 channels; the autoencoder has 4 means"),
    ],
)
def test_what_does_not_fit_is_named(channels, config, message):
    with pytest.raises(ValueError, match=message):
        build_transform("gaussian_vae", *channels, config)


def test_all_weights_learn_in_training():
    config = {"transform_type": "gaussian_vae", "transform_config": {"vae_config": CONFIG}}
    quantizer = {"quantizer_type": "gaussian", "quantizer_config": {"codebook_size": 16, "codebook_dim": 1}}
    model = AutoencoderPQ(**config, **quantizer, latent_channels=4)
    output = model(torch.rand(1, 3, 32, 32) * 2 - 1)
    (output.sample.square().mean() + output.commit_loss).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert {model.transform.group_of(name) for name, _ in model.transform.named_parameters()} == {"encoder", "decoder"}
