"""Networks beside the linear path: silent at first, local, and they learn."""

import pytest
import torch

from pqdiff import AutoencoderPQ
from pqdiff.models.patch_networks import PatchNetwork
from pqdiff.quantizers import QUANTIZERS
from tests.quantizers.test_contract import CHANNELS, CONFIGS

from .conftest import build

NETWORKS = {"patch_network_channels": 8, "patch_network_blocks": 2}


def awake(kind: str, **overrides) -> AutoencoderPQ:
    """A tiny autoencoder whose patch networks say something."""
    model = build(kind, **{**NETWORKS, **overrides})
    torch.manual_seed(2)
    for network in (model.patch_encoder, model.patch_decoder):
        for layer in (network.last, *(block.reduce for block in network.blocks)):
            torch.nn.init.normal_(layer.weight, std=0.3)
    return model


@pytest.mark.parametrize("kind", ["linear", "hidden"])
@torch.no_grad()
def test_training_starts_from_exactly_what_the_linear_path_does(kind, images):
    plain = build(kind)
    model = build(kind, **NETWORKS)
    model.load_state_dict(plain.state_dict(), strict=False)
    expected = plain.encode(images)
    output = model.encode(images)
    assert torch.equal(output.latents, expected.latents)
    assert torch.equal(output.indices, expected.indices)
    assert torch.equal(model.decode(output.latents).sample, plain.decode(expected.latents).sample)


@pytest.mark.parametrize("kind", ["linear", "hidden"])
@torch.no_grad()
def test_tokens_and_latents_decode_alike(kind, images):
    model = awake(kind)
    output = model.encode(images)
    assert torch.equal(model.decode_from_indices(output.indices).sample, model.decode(output.latents).sample)
    assert torch.equal(model.latents_from_indices(output.indices), output.latents)


@pytest.mark.parametrize("kind", ["linear"])
@torch.no_grad()
def test_tiling_with_the_halo_of_the_blocks_changes_nothing(kind):
    """A position sees 2 neighbors to each side, one per block; so much is the halo."""
    model, images = awake(kind), torch.rand(1, 3, 100, 76, generator=torch.Generator().manual_seed(0)) * 2 - 1
    expected = model.encode(images)
    image = model.decode(expected.latents).sample
    model.enable_tiling()
    assert torch.equal(model.encode(images).indices, expected.indices)
    torch.testing.assert_close(model.decode(expected.latents).sample, image, rtol=0, atol=1e-5)


@torch.no_grad()
def test_a_position_sees_no_farther_than_its_blocks_reach():
    torch.manual_seed(0)
    network = PatchNetwork(4, 8, 2, 5)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    features = torch.randn(1, 4, 9, 9)
    changed = features.clone()
    changed[:, :, 4, 4] += 1
    different = (network(features) != network(changed)).any(dim=1)[0]
    assert different[2:7, 2:7].all()
    assert int(different.sum()) == 25


@torch.no_grad()
def test_statistics_of_a_crop_are_those_of_the_whole():
    torch.manual_seed(0)
    network = PatchNetwork(4, 8, 1, 5)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    features = torch.randn(1, 4, 12, 12)
    torch.testing.assert_close(network(features)[..., 4:7, 4:7], network(features[..., 3:8, 3:8])[..., 1:4, 1:4])


def test_everything_gets_gradients_once_the_networks_speak(images):
    model = awake("hidden").train()
    output = model(images)
    (output.sample - images).square().mean().backward()
    silent = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert silent == ["quantizer.codebooks"]  # which learn from the quantizer's own loss


def test_networks_learn_to_reconstruct_better(images):
    model = build("hidden", **NETWORKS).train()
    networks = [p for name, p in model.named_parameters() if name.startswith(("patch_encoder", "patch_decoder"))]
    optimizer = torch.optim.Adam(networks, 1e-2)
    losses = []
    for _ in range(25):
        loss = (model(images).sample - images).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]


@pytest.mark.parametrize("name", sorted(QUANTIZERS))
def test_every_quantizer_works_with_patch_networks(name, images):
    statistics = {"channel_mean": None, "channel_std": None}
    model = awake(
        "linear", quantizer_type=name, quantizer_config=CONFIGS[name], latent_channels=CHANNELS, **statistics
    )
    model(images).sample.square().mean().backward()
    assert model.patch_encoder.last.weight.grad.any()
    with torch.no_grad():
        output = model.encode(images)
        assert torch.equal(model.decode_from_indices(output.indices).sample, model.decode(output.latents).sample)


def test_width_and_blocks_are_checked():
    with pytest.raises(ValueError, match=r"patch_network_blocks \(0\) must be at least 1"):
        build("linear", patch_network_channels=8, patch_network_blocks=0)
    with pytest.raises(ValueError, match=r"patch_network_channels \(8\) needs patch_shortcut=True"):
        build("networks", patch_network_channels=8)
