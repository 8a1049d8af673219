"""Every quantizer goes the whole way by its config file: training, saving, codes on disk, latent cache, metrics, card."""

import json
from pathlib import Path

import pytest
import torch

from pqdiff import AutoencoderPQ
from pqdiff.data.cache.image_codes import ImageCodes, load_codes, save_codes
from pqdiff.data.cache.reader import LatentCache
from pqdiff.data.images.reading import normalize, to_tensor
from pqdiff.data.scenes.scenes import SceneDataset
from pqdiff.metrics.evaluation import evaluate_reconstruction
from pqdiff.models.fingerprint import fingerprint
from pqdiff.quantizers import QUANTIZERS
from training import cache_latents, train_pqgan

CONFIGS = Path(train_pqgan.__file__).parent / "configs" / "quantizers"
SHORT = ["--steps", "2", "--num_scenes", "16", "--batch_size", "4", "--fit_images", "4"]
SHORT += ["--validation_images", "2", "--validation_steps", "2", "--checkpointing_steps", "2", "--log_steps", "1"]


def test_every_registered_quantizer_has_a_config_file():
    assert {path.stem for path in CONFIGS.glob("*.yaml")} == set(QUANTIZERS)


def go_the_whole_way(name: str, folder: Path, *flags: str) -> None:
    train_pqgan.main(["--config", str(CONFIGS / f"{name}.yaml"), "--output_dir", str(folder / "run"), *flags])
    with torch.no_grad():
        check_result(name, folder)


def check_result(name: str, folder: Path) -> None:
    result = folder / "run" / "autoencoder"
    model = AutoencoderPQ.from_pretrained(result).eval()
    assert model.config.quantizer_type == name
    card = (result / "README.md").read_text()
    assert fingerprint(model) in card
    assert name.replace("_", "-") in card

    image = SceneDataset(1, 64)[0]["image"]
    indices = model.encode_to_indices(normalize(to_tensor(image))[None])
    sizes = model.quantizer.codebook_sizes
    save_codes(ImageCodes(indices[0], sizes, 64, 64, "model", fingerprint(model)), folder / "codes.safetensors")
    loaded = load_codes(folder / "codes.safetensors").indices[None]
    assert torch.equal(loaded, indices)
    expected = model.decode(model.encode(normalize(to_tensor(image))[None]).latents).sample
    torch.testing.assert_close(model.decode_from_indices(loaded).sample, expected, rtol=0, atol=1e-4)

    cache = ["--dataset", "scenes", "--num_samples", "3", "--autoencoder", str(result), "--resolution", "64"]
    cache_latents.main([*cache, "--output", str(folder / "cache"), "--num_workers", "0", "--device", "cpu"])
    batch = LatentCache(folder / "cache").get_batch([0, 1, 2])
    assert batch["indices"].shape[1:] == indices.shape[1:]

    metrics = evaluate_reconstruction(model, [image], 64)["metrics"]
    assert metrics["bits_per_pixel"] == pytest.approx(model.bits_per_pixel)
    assert metrics["psnr_dataset"] is not None
    lines = [json.loads(line) for line in (folder / "run" / "log.jsonl").read_text().splitlines()]
    assert all(line["loss"] == line["loss"] for line in lines)


@pytest.mark.parametrize("name", sorted(QUANTIZERS))
def test_a_quantizer_goes_the_whole_way(name, tmp_path):
    go_the_whole_way(name, tmp_path, *SHORT)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(QUANTIZERS))
def test_a_quantizer_trains_as_its_config_file_says(name, tmp_path):
    go_the_whole_way(name, tmp_path)


def test_logs_of_a_quantizer_are_in_the_log(tmp_path):
    """Gaussian Quant has no tokens while it trains, and logs its divergence and controllers."""
    train_pqgan.main(
        ["--config", str(CONFIGS / "gaussian.yaml"), "--output_dir", str(tmp_path), *SHORT, "--validation_steps", "0"]
    )
    line = json.loads((tmp_path / "log.jsonl").read_text().splitlines()[-1])
    assert any(name.startswith("kl") for name in line)
    assert not any(name.startswith("batch_codebook") for name in line)
