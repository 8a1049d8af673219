"""Autoencoders that benchmarks train, all by one recipe."""

import json
from pathlib import Path

from pqdiff import AutoencoderPQ
from training import train_pqgan

_RECIPE = {
    "init": "random",
    "l1_weight": 0.0,
    "l2_weight": 10.0,
    "perceptual_weight": 0.0,
    "adversarial_weight": 0.0,
    "adam_betas": [0.9, 0.99],
    "lr_schedule": "cosine",
    "lr_warmup_steps": 50,
    "ema_decay": 0.99,
    "validation_steps": 0,
    "checkpointing_steps": 200,
}


def trained_autoencoder(folder: Path, **options) -> AutoencoderPQ:
    """An autoencoder that learned squared error by `train_pqgan.py` with these options.

    An interrupted run goes on, and one that has ended is not repeated.
    """
    result = folder / "run" / "autoencoder"
    if result.is_dir():
        return AutoencoderPQ.from_pretrained(result).eval()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "options.yaml").write_text(json.dumps({**_RECIPE, **options}))  # JSON is YAML
    resume = ["--resume"] if (folder / "run").exists() else []
    train_pqgan.main(["--config", str(folder / "options.yaml"), "--output_dir", str(folder / "run"), *resume])
    return AutoencoderPQ.from_pretrained(result).eval()
