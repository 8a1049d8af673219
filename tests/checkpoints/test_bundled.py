"""The shipped tokenizers: complete, small, exact, and as good as their cards say."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import pqdiff
from pqdiff import AutoencoderPQ
from pqdiff.checkpoints import BEST_AT_EACH_RATE
from pqdiff.data.images.crops import resize_and_crop
from pqdiff.data.images.reading import load_image, normalize, to_pixels, to_tensor
from pqdiff.metrics import DatasetPSNR
from pqdiff.models.fingerprint import fingerprint

ROOT = Path(__file__).parents[2]
CLOSED_FORMS = [f"pqgan-{preset}" for preset in pqdiff.PRESETS]
ADAPTIVE = [name for name in pqdiff.BUNDLED if name.endswith("-adaptive")]
PERCEPTUAL = [name for name in pqdiff.BUNDLED if name.endswith("-perceptual")]
NAMES = [*CLOSED_FORMS, *ADAPTIVE, *PERCEPTUAL]
# Of the tokenizers with classes: the plain one of the same rate.
SAME_RATE = {name: name.removesuffix("-adaptive") for name in ADAPTIVE} | {
    "pqgan-f8-d32-s16-k128-perceptual": "pqgan-f16-d128-s64-k128",
    "pqgan-f16-d32-s16-k256-perceptual": "pqgan-f32-d256-s64-k256",
}
# The plain recipe's dataset PSNR on the photos of record, in dB: what the fit must reach at least.
PLAIN = dict(zip(CLOSED_FORMS, (39.3, 27.6, 31.6, 24.3), strict=True))
PLAIN |= {name: PLAIN[same] for name, same in SAME_RATE.items()}


@pytest.fixture(scope="module", params=NAMES)
def shipped(request):
    return request.param, AutoencoderPQ.from_pretrained(pqdiff.bundled(request.param)).eval()


@pytest.fixture(scope="module")
def photos():
    skimage_data = pytest.importorskip("skimage.data")
    folder = Path(skimage_data.__file__).parent
    images = [load_image(folder / name) for name in ("astronaut.png", "chelsea.png", "coffee.png")]
    return torch.stack([to_tensor(resize_and_crop(image, 256)) for image in images])


def test_every_preset_ships():
    assert sorted(pqdiff.BUNDLED) == sorted(NAMES)
    with pytest.raises(ValueError, match="did you mean 'pqgan-f8-d128-s64-k512'"):
        pqdiff.bundled("pqgan-f8-d128-s64-k51")


@pytest.mark.parametrize("name", ADAPTIVE)
def test_adaptive_tokenizers_are_much_better_at_the_same_rate(name):
    """By as much as anyone would notice a change of rate for."""
    adaptive, plain = (
        json.loads((Path(pqdiff.bundled(each)) / "metrics.json").read_text())["metrics"]
        for each in (name, name.removesuffix("-adaptive"))
    )
    assert adaptive["bits_per_pixel"] == plain["bits_per_pixel"]
    assert adaptive["psnr_dataset"] > plain["psnr_dataset"] + 1
    assert adaptive["ssim"] > plain["ssim"]


@pytest.mark.parametrize("name", PERCEPTUAL)
def test_perceptual_tokenizers_are_better_than_adaptive_ones_by_three_metrics_for_less_than_a_decibel(name):
    results = json.loads((ROOT / "benchmarks/results/evaluation.json").read_text())
    perceptual, adaptive = (results[each]["metrics"] for each in (name, f"{SAME_RATE[name]}-adaptive"))
    assert perceptual["bits_per_pixel"] == adaptive["bits_per_pixel"]
    assert perceptual["ssimulacra2"] > adaptive["ssimulacra2"] + 4
    assert perceptual["psnr_dataset"] > adaptive["psnr_dataset"] - 0.8
    assert perceptual["haarpsi"] > adaptive["haarpsi"] + 0.01
    assert perceptual["fd_efficientnet_lite0"] < adaptive["fd_efficientnet_lite0"] - 2


@pytest.mark.parametrize("name", [*ADAPTIVE, *PERCEPTUAL])
def test_cards_of_trained_tokenizers_name_the_config_that_made_them(name):
    folder = Path(pqdiff.bundled(name))
    config = f"training/configs/pqgan/learned-{name.removeprefix('pqgan-').removesuffix('-adaptive')}.yaml"
    trained = bool(AutoencoderPQ.load_config(folder)["refiner_config"])
    assert (config in (folder / "README.md").read_text()) == trained
    assert (ROOT / config).exists() == trained


def test_pictures_get_the_best_tokenizer_of_every_rate():
    assert {SAME_RATE[name] for name in BEST_AT_EACH_RATE} == set(CLOSED_FORMS)
    assert set(BEST_AT_EACH_RATE) == {*ADAPTIVE, *PERCEPTUAL}


@pytest.mark.parametrize(("names", "megabytes"), [(CLOSED_FORMS, 12), (ADAPTIVE, 40), (PERCEPTUAL, 2)])
def test_weights_of_a_kind_stay_small_together(names, megabytes):
    files = [path for name in names for path in Path(pqdiff.bundled(name)).glob("*.safetensors")]
    assert len(files) == len(names)
    assert sum(path.stat().st_size for path in files) <= megabytes * 1e6


def test_no_tokenizer_has_more_than_eight_million_parameters(shipped):
    _, model = shipped
    assert sum(parameter.numel() for parameter in model.parameters()) <= 8e6


def test_card_and_metrics_belong_to_the_weights(shipped):
    name, model = shipped
    folder = Path(pqdiff.bundled(name))
    metrics = json.loads((folder / "metrics.json").read_text())
    card = (folder / "README.md").read_text()
    assert metrics["protocol"]["fingerprint"] == fingerprint(model)
    assert fingerprint(model) in card
    assert f"{metrics['metrics']['psnr_dataset']:.2f} dB" in card
    assert metrics["num_images"] == 72
    assert card == (ROOT / "model_cards" / f"{name}.md").read_text()
    assert json.loads((ROOT / "benchmarks/results/tokenizers.json").read_text())[name]["metrics"] == metrics["metrics"]


def test_measured_psnr_is_above_the_plain_recipe(shipped):
    name, _ = shipped
    metrics = json.loads((Path(pqdiff.bundled(name)) / "metrics.json").read_text())
    assert metrics["metrics"]["psnr_dataset"] >= PLAIN[name]


@torch.no_grad()
def test_photos_come_back_as_well_as_the_rate_allows(shipped, photos):
    name, model = shipped
    psnr = DatasetPSNR()
    psnr.update(to_pixels(model.decode(model.encode(normalize(photos)).latents).sample), photos)
    assert psnr.compute() >= PLAIN[name] - 1


@torch.no_grad()
def test_batches_and_single_photos_give_identical_pixels(shipped, photos):
    _, model = shipped
    images = normalize(photos)
    together = model.encode(images)
    decoded = model.decode(together.latents).sample
    for i in range(len(images)):
        alone = model.encode(images[i : i + 1])
        assert torch.equal(alone.indices[0], together.indices[i])
        assert torch.equal(to_pixels(model.decode(alone.latents).sample[0]), to_pixels(decoded[i]))
    assert torch.equal(model.decode_from_indices(together.indices).sample, decoded)


@torch.no_grad()
def test_latents_snap_back_to_the_same_codes(shipped, photos):
    _, model = shipped
    output = model.encode(normalize(photos))
    latents, indices = model.quantize(output.latents)
    assert torch.equal(indices, output.indices)
    assert torch.equal(latents, output.latents)


@torch.no_grad()
def test_the_number_of_threads_changes_no_pixel(shipped, photos):
    _, model = shipped
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        for images in (photos, photos[:1], photos[1:2]):
            results.append(to_pixels(model.decode(model.encode(normalize(images)).latents).sample))
    torch.set_num_threads(1)
    for together, first, second in zip(results[::3], results[1::3], results[2::3], strict=True):
        assert torch.equal(together, results[0])
        assert torch.equal(first[0], results[0][0])
        assert torch.equal(second[0], results[0][1])


def test_another_process_gives_identical_pixels(photos, tmp_path):
    name = NAMES[0]
    torch.save(photos, tmp_path / "photos.pt")
    code = f"""
import torch, pqdiff
from pqdiff.data.images.reading import normalize, to_pixels
model = pqdiff.AutoencoderPQ.from_pretrained(pqdiff.bundled({name!r})).eval()
with torch.no_grad():
    images = normalize(torch.load("photos.pt"))
    torch.save(to_pixels(model.decode(model.encode(images).latents).sample), "result.pt")
"""
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
    model = AutoencoderPQ.from_pretrained(pqdiff.bundled(name)).eval()
    with torch.no_grad():
        expected = to_pixels(model.decode(model.encode(normalize(photos)).latents).sample)
    assert torch.equal(torch.load(tmp_path / "result.pt"), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.no_grad()
def test_half_precision_costs_little(shipped, photos, dtype):
    name, model = shipped
    half = AutoencoderPQ.from_pretrained(pqdiff.bundled(name), torch_dtype=dtype).eval()
    images = normalize(photos)
    full_psnr, half_psnr = DatasetPSNR(), DatasetPSNR()
    full_psnr.update(to_pixels(model.decode(model.encode(images).latents).sample), photos)
    half_psnr.update(to_pixels(half.decode(half.encode(images.to(dtype)).latents).sample), photos)
    assert half_psnr.compute() >= full_psnr.compute() - (0.3 if dtype == torch.float16 else 3)
