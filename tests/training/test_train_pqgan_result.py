"""What train_pqgan.py measures, logs, saves and pushes."""

import hashlib
import json

import pytest
import torch
from diffusers import StableDiffusionPipeline
from huggingface_hub import ModelCard
from PIL import Image

from pqdiff import AutoencoderPQ
from pqdiff.data.images import normalize, to_tensor
from pqdiff.data.scenes import SceneDataset
from pqdiff.losses import PatchDiscriminator
from pqdiff.losses.vgg import VGG16Features
from tests.hub.hub_server import serve_hub
from tests.hub.support import TOKENS, connect
from tests.tiny import SIDE, tiny_base_pipeline
from tests.training.pqgan import DISC_START, MODEL, STEPS, VALIDATION, part, strip, train, validations, whole_state
from tests.training.support import steps_of


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Folder of a run with networks, linear path, discriminator and validation."""
    return train(tmp_path_factory.mktemp("pqgan") / "run", **VALIDATION)


def test_validation_is_at_the_start_between_and_at_the_end_with_panels(trained):
    lines = validations(trained)
    assert [line["step"] for line in lines] == [0, 4, 8]
    assert all(0 < line["psnr"] < 100 and 0 < line["codebook_utilization"] <= 1 for line in lines)
    assert all({"ssim", "codebook_h_n"} <= set(line) for line in lines)
    sheet = Image.open(trained / "validation" / "step-00000008.png")
    assert sheet.width > 3 * 256
    assert sheet.height > 4 * 256


def test_every_line_of_the_log_has_losses_use_of_codewords_and_judgements(trained):
    log = steps_of(trained)
    assert [line["step"] for line in log] == list(range(1, STEPS + 1))
    expected = {"l1_loss", "nll", "quantizer_loss", "generator_loss", "disc_weight", "batch_codebook_utilization"}
    assert all(expected <= set(line) for line in log)
    assert all({"logits_real", "logits_fake", "disc_loss"} <= set(line) for line in log[DISC_START:])
    assert log[DISC_START]["disc_weight"] > 0


def test_the_first_lines_say_what_runs(tmp_path, capsys):
    train(tmp_path, steps=1, gradient_accumulation_steps=2)
    text = capsys.readouterr().out
    model = AutoencoderPQ.from_pretrained(tmp_path / "autoencoder")
    assert f"{sum(p.numel() for p in model.parameters()):,} parameters" in text
    assert "4 tokens of up to 16 values per position, 4 bits per pixel" in text
    assert "8 images of 32 px a step (4 x 2 micro-steps x 1 process(es)); 24 images, 3 steps an epoch" in text
    assert "memory, estimated:" in text


def test_poor_use_of_codewords_is_told_with_a_remedy(tmp_path, capsys):
    model = {**MODEL, "quantizer_config": {"num_subspaces": 4, "codebook_size": 512}}
    train(tmp_path, model=model, steps=1, learning_rate=1e-12, **VALIDATION)
    assert "of the codewords are in use: try --init closed_form" in capsys.readouterr().out


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


def test_the_discriminator_is_saved_as_a_model(trained):
    state = strip(part(whole_state(trained), "model_1.safetensors"))
    saved = PatchDiscriminator.from_pretrained(trained / "discriminator").state_dict()
    assert all(torch.equal(saved[name], tensor) for name, tensor in state.items())


def test_the_card_has_the_numbers_and_no_folder_of_this_machine(trained):
    folder = trained / "autoencoder"
    text, metrics = (folder / "README.md").read_text(), json.loads((folder / "metrics.json").read_text())
    assert metrics["metrics"]["psnr"] == validations(trained)[-1]["psnr"]
    assert f"{metrics['metrics']['psnr']:.4f}" in text
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


def test_lpips_is_a_part_of_the_loss_and_of_validation_but_not_of_checkpoints(tmp_path):
    torch.manual_seed(0)
    torch.save(VGG16Features().state_dict(), tmp_path / "vgg.pt")
    digest = hashlib.sha256((tmp_path / "vgg.pt").read_bytes()).hexdigest()
    options = {"perceptual_weight": 1, "perceptual_weights": tmp_path / "vgg.pt", "perceptual_sha256": digest[:16]}
    train(tmp_path / "run", **options, steps=1, batch_size=1, checkpointing_steps=1, **VALIDATION)
    (line,) = steps_of(tmp_path / "run")
    assert line["nll"] == pytest.approx(line["l1_loss"] + line["perceptual_loss"], rel=1e-4)
    assert all(row["lpips_vgg"] > 0 for row in validations(tmp_path / "run"))
    assert sum(path.stat().st_size for path in (tmp_path / "run").rglob("*.safetensors")) < 2**20
