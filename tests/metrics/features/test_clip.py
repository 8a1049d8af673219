"""CLIP's features with a small network: preparation and norm written out."""

import hashlib

import pytest
import torch
import torch.nn.functional as F
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from pqdiff.metrics.features.clip import CLIPFeatures

SMALL = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
    "projection_dim": 12,
}


@pytest.fixture
def small(monkeypatch, tmp_path):
    """The extractor, and the network that it was loaded from, in a file as published: with another part, and a buffer."""
    monkeypatch.setattr(CLIPFeatures, "config", SMALL)
    torch.manual_seed(0)
    network = CLIPVisionModelWithProjection(CLIPVisionConfig(**SMALL)).eval()
    others = {"vision_model.embeddings.position_ids": torch.arange(5), "logit_scale": torch.zeros(())}
    path = tmp_path / "pytorch_model.bin"
    torch.save({**network.state_dict(), **others}, path)
    return CLIPFeatures(path, hashlib.sha256(path.read_bytes()).hexdigest()), network


def test_features_are_normalized_embeddings_of_prepared_images(small):
    extractor, network = small
    images = torch.randint(0, 256, (3, 3, 40, 50), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    output = extractor(images)
    mean, std = torch.tensor([0.48145466, 0.4578275, 0.40821073]), torch.tensor([0.26862954, 0.26130258, 0.27577711])
    inputs = F.interpolate(images / 255, size=(28, 28), mode="bicubic")  # neither antialiased nor clamped
    inputs = (inputs - mean[:, None, None]) / std[:, None, None]
    with torch.no_grad():
        expected = network(pixel_values=inputs).image_embeds
    torch.testing.assert_close(output.features, expected / expected.norm(dim=1, keepdim=True), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(output.features.norm(dim=1), torch.ones(3))
    assert output.logits is None


def test_local_features_are_patches_seen_as_the_class_token_is(small):
    """Projected after the last norm, as published for the codebook of VQGAN-LC; rows of patches from the top."""
    extractor, network = small
    images = torch.randint(0, 256, (1, 3, 28, 28), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    local = extractor.local(images)
    assert local.shape == (1, 12, 2, 2)
    with torch.no_grad():
        model = network.vision_model
        states = model(pixel_values=extractor.prepare(images.float())).last_hidden_state
        everything = network.visual_projection(model.post_layernorm(states))
    torch.testing.assert_close(
        F.normalize(everything[:, 0]), extractor(images).features
    )  # the class token's are these
    for number in range(4):
        torch.testing.assert_close(local[0, :, number // 2, number % 2], everything[0, 1 + number])


def test_the_network_of_record_is_vit_l_14_336():
    with torch.device("meta"):
        network = CLIPVisionModelWithProjection(CLIPVisionConfig(**CLIPFeatures.config))
    shapes = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    assert shapes["visual_projection.weight"] == (CLIPFeatures.dim, 1024)
    assert shapes["vision_model.embeddings.position_embedding.weight"] == (24 * 24 + 1, 1024)
    assert shapes["vision_model.embeddings.patch_embedding.weight"] == (1024, 3, 14, 14)
    assert shapes["vision_model.encoder.layers.23.mlp.fc1.weight"] == (4096, 1024)
    assert "vision_model.encoder.layers.24.mlp.fc1.weight" not in shapes
    assert sum(tensor.numel() for tensor in network.parameters()) == 304_293_888
    assert (network.config.hidden_act, network.config.layer_norm_eps) == ("quick_gelu", 1e-5)
