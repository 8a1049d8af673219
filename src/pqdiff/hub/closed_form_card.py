"""Cards of tokenizers that were fitted without gradients: the shipped ones, and those of `pqdiff fit`."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pqdiff.hub.cards import TokenizerEvaluation, render_tokenizer_card

# Zavadski, Tatsch, Rother 2026, table 1: PSNR in dB on the 50,000 validation images of ImageNet at 256 px.
_PAPER_PSNR = {"f8-d128-s64-k512": 37.4, "f16-d128-s64-k128": 28.3, "f32-d256-s64-k256": 24.6}

_BORDERS = "At low rates its images are blurred, and the borders of patches are visible. "
_NO_BORDERS = "At low rates its images are blurred. "
_LIMITS = (
    "It was not trained with a perceptual network or a discriminator. Perceptual metrics (rFID, LPIPS, CMMD) were not "
    "measured."
)
_ERRORS = "The model was fitted for squared error alone. "
_VISIBLE_ERRORS = (
    "The model was fitted for squared errors weighed by how much their color and frequency lower SSIMULACRA2 (power "
    "{:g}): it has a higher SSIMULACRA2 than one that was fitted for squared error, and a lower PSNR. "
)
_LATENT_LIMITS = (
    "The quantizer was fitted for squared error of the latents. The networks are those of the autoencoder, and so is the "
    "license; they were not trained with it. Perceptual metrics (rFID, LPIPS, CMMD) were not measured."
)
_HIDDEN_LIMIT = (
    " Its codewords stand for more coefficients than the latents show. A little noise on the latents therefore selects "
    "other codewords: decode such latents softly, with `quantize` set to the size of the noise "
    "(benchmarks/results/latent_stats.json)."
)


def write_closed_form_card(
    model,
    folder: str | Path,
    name: str,
    training: str,
    load: str,
    metrics: Mapping[str, Any] | None = None,
    latents: Mapping[str, Any] | None = None,
    visibility: float = 0.0,
) -> None:
    """Write `README.md`, and `metrics.json` if there are metrics, beside the weights in `folder`.

    Args:
        model: an `AutoencoderPQ` that was fitted in closed form.
        folder: folder of its weights.
        name: title of the card.
        training: sentences that say how the model was made.
        load: Python expression that `from_pretrained` takes, e.g. a quoted folder or Hub id.
        metrics: what `evaluate_reconstruction` returned, with a description of the images as `data`.
        latents: what `benchmarks/latent_stats.py` measured on this model.
        visibility: what `fit_closed_form` was given.

    Raises:
        ValueError: if `latents` were measured on another model. Then nothing is written.
    """
    errors = _VISIBLE_ERRORS.format(visibility) if visibility else _ERRORS
    borders = _NO_BORDERS if overlap(model) else _BORDERS
    paper = _PAPER_PSNR.get(model.config.preset)
    card = render_tokenizer_card(
        model,
        name=name,
        load=load,
        license="apache-2.0",
        summary=_summary(model),
        training=training,
        evaluation=TokenizerEvaluation.from_file(metrics) if metrics else None,
        limits=(_LATENT_LIMITS if model.config.transform_type == "gaussian_vae" else errors + borders + _LIMITS)
        + (_HIDDEN_LIMIT if model.quantizer.code_channels > model.config.latent_channels else ""),
        latents=latents,
        paper=paper
        and (
            f"PSNR {paper} dB for the trained PQGAN with the same F, d, S and K, on other images: the 50,000 validation "
            "images of ImageNet, resized to 256 x 256 without a crop, with float output (Zavadski, Tatsch, Rother 2026, "
            "table 1). The two numbers cannot be compared to the decimal."
        ),
    )
    if metrics:
        (Path(folder) / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")
    card.save(Path(folder) / "README.md")


def overlap(model) -> int:
    """Pixels across the borders of patches by which they overlap; 0 for none."""
    return model.config.transform_config.get("overlap", 0)


def _summary(model) -> str:
    """A paragraph on the kind of tokenizer."""
    kind = model.config.quantizer_type.replace("_", " ")
    if model.config.transform_type == "gaussian_vae":
        return (
            f"The networks of an {model.config.transform_config['vae_class']} with a {kind} quantizer of its latents, "
            f"fitted in closed form: {model.bits_per_pixel:g} bits per pixel."
        )
    text = (
        f"An image tokenizer with {model.bits_per_pixel:g} bits per pixel, fitted in closed form: a linear transform of "
        f"patches{' that overlap' if overlap(model) else ''} and a {kind} quantizer."
    )
    if model.refiner is not None:
        return f"{text} Only a small network over the decoded pixels was trained with gradients."
    return f"{text} It has no networks and was not trained with gradients."
