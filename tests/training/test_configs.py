"""Every config file in training/configs is one that its trainer takes."""

from pathlib import Path

import pytest

from pqdiff.adaptation.stages import Stage, read_stages
from training import adapt_sd, train_kl, train_ldm, train_pqgan

CONFIGS = Path(adapt_sd.__file__).parent / "configs"
OTHERS = {
    "tiny_suite/kl.yaml": train_kl,
    "tiny_suite/kl_colors.yaml": train_kl,
    "tiny_suite/ldm.yaml": train_ldm,
    "tiny_suite/ldm_more.yaml": train_ldm,
}
FILES = [path.relative_to(CONFIGS).as_posix() for path in sorted(CONFIGS.rglob("*.yaml"))]


@pytest.mark.parametrize("name", FILES)
def test_a_config_file_fits_its_trainer(name):
    trainer = train_pqgan if name.startswith(("pqgan/", "quantizers/")) else OTHERS.get(name, adapt_sd)
    models = ["--base", "a", "--autoencoder", "b"] if trainer is adapt_sd else []  # some leave them to the user
    args = trainer.parse(["--config", str(CONFIGS / name), "--output_dir", "run", *models])
    if models:
        assert read_stages(args.stages)
    else:
        assert Stage(args.resolution, args.steps, args.learning_rate, "all")


def test_there_are_config_files():
    assert {"adapt_sd/smoke.yaml", "pqgan/smoke.yaml", *OTHERS} <= set(FILES)
