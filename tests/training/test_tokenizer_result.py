"""What training an autoencoder leaves: a model for stock pipelines, its numbers and card, here and on the Hub."""

import json

import pytest
import torch
from diffusers import StableDiffusionPipeline
from huggingface_hub import ModelCard

from pqdiff import AutoencoderPQ
from pqdiff.data.images.reading import normalize, to_tensor
from pqdiff.data.scenes.scenes import SceneDataset
from tests.hub.hub_server import serve_hub
from tests.hub.support import TOKENS, connect
from tests.tiny import SIDE, tiny_base_pipeline
from tests.training.pqgan import VALIDATION, train, validations


def test_the_result_is_a_vae_for_stock_pipelines_with_latents_of_unit_variance(trained):
    vae = AutoencoderPQ.from_pretrained(trained / "autoencoder")
    scenes = SceneDataset(24, SIDE)
    images = torch.stack([normalize(to_tensor(scenes[i * 3]["image"])) for i in range(8)])
    with torch.no_grad():
        latents = vae.encode(images).latents
    assert latents.mean().item() == pytest.approx(0, abs=1e-4)
    assert latents.square().mean().item() == pytest.approx(1, abs=1e-3)
    base = tiny_base_pipeline()
    components = {**base.components, "vae": vae}
    unet = type(base.unet).from_config({**base.unet.config, "in_channels": 8, "out_channels": 8})
    pipe = StableDiffusionPipeline(**{**components, "unet": unet}, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    assert pipe("a", num_inference_steps=1, output_type="pt").images.shape == (1, 3, SIDE, SIDE)


def test_the_card_has_the_numbers_and_no_folder_of_this_machine(trained):
    folder = trained / "autoencoder"
    text, metrics = (folder / "README.md").read_text(), json.loads((folder / "metrics.json").read_text())
    assert metrics["metrics"]["psnr_dataset"] == validations(trained)[-1]["psnr_dataset"]
    assert f"{metrics['metrics']['psnr_dataset']:.2f} dB" in text
    assert "Trained for 8 steps of 4 images." in text
    assert ModelCard(text).data.license == "unknown"
    everything = text + (folder / "config.json").read_text() + json.dumps(metrics)
    assert str(trained.parent) not in everything


def test_push_to_hub_uploads_weights_card_and_metrics(trained, tmp_path):
    with serve_hub({}, TOKENS) as hub, pytest.MonkeyPatch.context() as patch:
        connect(patch, hub.address, "token of user", tmp_path)
        train(tmp_path / "run", steps=1, push_to_hub="user/tiny-pq", license="mit", **VALIDATION)
        files = hub.repositories["user/tiny-pq"].files
    assert set(files) == {"README.md", "config.json", "diffusion_pytorch_model.safetensors", "metrics.json"}
    assert b'from_pretrained("user/tiny-pq")' in files["README.md"]
    assert ModelCard(files["README.md"].decode()).data.license == "mit"
