"""What the committed results say of training for what people see."""

import json

import pytest

from benchmarks.perceptual_training import LOSSES, PRESETS, TITLES, flags
from benchmarks.render_readme import RESULTS
from training import train_pqgan


@pytest.mark.parametrize("preset", PRESETS)
def test_both_losses_together_look_better_and_cost_less_than_a_third_of_a_decibel(preset):
    models = json.loads((RESULTS / "perceptual_training.json").read_text())["models"]
    assert list(models) == [f"{p}, {name}" for p in PRESETS for name in ("as it ships", *(TITLES[k] for k in LOSSES))]
    before, after = (models[f"{preset}, {name}"]["metrics"] for name in ("as it ships", TITLES["both"]))
    assert after["ssimulacra2"] > before["ssimulacra2"]
    assert after["fd_efficientnet_lite0"] < before["fd_efficientnet_lite0"]
    assert after["psnr_dataset"] > before["psnr_dataset"] - 0.3
    assert after["bits_per_pixel"] == before["bits_per_pixel"]


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("preset", PRESETS)
def test_its_flags_are_those_of_the_trainer(preset, loss):
    args = train_pqgan.parse(["--dataset", "photos", "--output_dir", "run", *flags(preset, loss)])
    assert (args.ssimulacra2_weight > 0) == (loss in ("ss2", "both", "strong"))
