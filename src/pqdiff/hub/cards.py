"""Model cards: every number in them comes from the model itself or from a metrics file."""

import json
from pathlib import Path

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from ..models.fingerprint import fingerprint

_TEMPLATE = Path(__file__).parent / "model_card.md.jinja"

# Zavadski, Tatsch, Rother 2026, table 1: PSNR in dB on the 50,000 validation images of ImageNet at 256 px.
_PAPER_PSNR = {"f8-d128-s64-k512": 37.4, "f16-d128-s64-k128": 28.3, "f32-d256-s64-k256": 24.6}

_HIDDEN_LIMIT = (
    " Its codewords stand for coefficients that the latents do not show: a little noise on the latents picks other "
    "codewords, and snapping then loses more than not snapping (benchmarks/results/latent_stats.json). For a diffusion "
    "model decode with `quantize=False`, or fit a plain one with `pqdiff fit --hidden-channels 0`."
)


def write_card(
    model,
    folder: str | Path,
    name: str,
    training: str,
    load: str,
    metrics: dict | None = None,
    latents: dict | None = None,
) -> None:
    """Write `README.md`, and `metrics.json` if there are metrics, beside the weights in `folder`.

    Args:
        model: a closed-form `AutoencoderPQ`.
        folder: where its weights are.
        name: title of the card.
        training: sentences that say how it was made.
        load: Python expression, e.g. a quoted folder or Hub id, that `from_pretrained` takes.
        metrics: what `evaluate_reconstruction` returned, with `data` describing the images.
        latents: what `latent_rows` takes.

    Raises:
        ValueError: if `latents` were measured on another model.
    """
    rows = latent_rows(latents, fingerprint(model)) if latents else None
    folder = Path(folder)
    results, evaluation = None, None
    if metrics:
        (folder / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")
        values, protocol = metrics["metrics"], metrics["protocol"]
        evaluation = [
            EvalResult(
                "image-reconstruction", "photos", metrics["data"], key, round(values[key], 4), metric_name=title
            )
            for key, title in (("psnr_dataset", "PSNR (data set), dB"), ("ssim", "SSIM"))
        ]
        results = "\n".join(
            [
                f"{metrics['num_images']} images ({metrics['data']}), {protocol['resolution']} px, "
                f"{protocol['resize']}, {protocol['output']} output, {protocol['dtype']}.",
                "",
                "| metric | value |",
                "|---|---|",
                f"| PSNR of the data set (one MSE over all pixels) | {values['psnr_dataset']:.2f} dB |",
                f"| PSNR, mean of the images | {values['psnr_image_mean']:.2f} dB |",
                f"| SSIM | {values['ssim']:.4f} |",
                f"| bits per pixel, fixed rate | {values['bits_per_pixel']:g} |",
                f"| bits per pixel, entropy of the tokens | {values['entropy_bits_per_pixel']:.3f} |",
                f"| codewords used | {values['codebook_utilization']:.1%} |",
                f"| H_n, mean of subspaces | {values['codebook_h_n']:.3f} |",
                f"| H_n, pooled as in the official code | {values['codebook_h_n_pooled']:.3f} |",
                f"| P_n, mean of subspaces | {values['codebook_p_n']:.3f} |",
                f"| P_n, pooled as in the official code | {values['codebook_p_n_pooled']:.3f} |",
            ]
        )
    paper = _PAPER_PSNR.get(model.config.preset)
    config = model.config.quantizer_config
    card = ModelCard.from_template(
        ModelCardData(
            library_name="diffusers",
            license="apache-2.0",
            pipeline_tag="image-to-image",
            tags=["pqdiff", "autoencoder", "tokenizer", "product-quantization"],
            model_name=name,
            eval_results=evaluation,
        ),
        template_path=str(_TEMPLATE),
        name=name,
        summary=_summary(model),
        factor=model.downsample_factor,
        latent_channels=model.config.latent_channels,
        codebooks=f"{config['num_subspaces']}, {config['codebook_size']}",
        bits_per_position=f"{model.quantizer.bits_per_position:g}",
        bits_per_pixel=f"{model.bits_per_pixel:g}",
        parameters=f"{sum(p.numel() for p in model.parameters()):,}",
        hidden_channels=model.config.hidden_channels,
        fingerprint=fingerprint(model),
        load=load,
        training=training,
        results=results,
        latents=rows,
        paper=paper
        and (
            f"PSNR {paper} dB for the trained PQGAN with the same F, d, S and K, on other images: the 50,000 validation "
            "images of ImageNet, squashed to 256 x 256, float output (Zavadski, Tatsch, Rother 2026, table 1). Not "
            "comparable to the decimal."
        ),
        limits=(
            "Fitted for squared error alone: at low rates it blurs, and the borders of patches show. It was not trained "
            "with a perceptual or adversarial loss. Perceptual metrics (rFID, LPIPS, CMMD) were not measured."
            + (_HIDDEN_LIMIT if model.config.hidden_channels else "")
        ),
    )
    card.save(folder / "README.md")


def _summary(model) -> str:
    """What kind of tokenizer this is, in a paragraph."""
    text = f"An image tokenizer with product-quantized latents, {model.bits_per_pixel:g} bits per pixel, fitted in closed "
    text += "form: a linear transform of patches"
    if model.config.class_bases:
        text += ", chosen by the class of each,"
    text += " and one small codebook per subspace."
    if model.config.refiner_channels:
        return f"{text} A small network over the decoded pixels is all that was trained by gradients."
    return f"{text} It has no networks and saw no gradient."


def latent_rows(latents: dict, expected: str) -> str:
    """Markdown of what `benchmarks/latent_stats.py` measured on one model.

    Args:
        latents: its entry for the model, with `num_images`, `data` and `resolution` of the whole file.
        expected: fingerprint of the model.

    Raises:
        ValueError: if the fingerprints differ.
    """
    if latents["fingerprint"] != expected:
        raise ValueError(
            f"latents were measured on a model with fingerprint {latents['fingerprint']}, this one has {expected}: "
            "run benchmarks/latent_stats.py again"
        )
    channels, positions, noise = latents["latents"], latents["positions"], latents["psnr_under_noise"]
    stds = [std for std in noise if float(std) in (0.0, 0.03, 0.1, 0.3, 0.5, 1.0)]
    power = " / ".join("-" if value is None else f"{value:g}" for value in positions["power"].values())
    neighbors = positions["lag_1_autocorrelation"]
    rows = [
        ("variance of the channels, smallest / median / largest",
         " / ".join(f"{channels[f'variance_{key}']:.3g}" for key in ("min", "median", "max"))),
        ("correlation of two channels, mean of the absolute values", f"{channels['mean_abs_correlation']:.3f}"),
        (f"effective rank of the {len(channels['channel_variance'])} channels: of covariance, of correlation",
         f"{channels['effective_rank']:.1f}, {channels['effective_rank_of_correlation']:.1f}"),
        ("correlation of neighboring positions", "-" if neighbors is None else f"{neighbors:.3f}"),
        (f"power at {' / '.join(positions['power'])} spatial frequencies, relative to white noise", power),
        (f"PSNR in dB with noise of {' / '.join(stds)} on the latents, snapped to codewords",
         " / ".join(f"{noise[std]['snapped']:.1f}" for std in stds)),
        ("the same, not snapped", " / ".join(f"{noise[std]['free']:.1f}" for std in stds)),
    ]  # fmt: skip
    return "\n".join(
        [
            f"Standardized latents of {latents['num_images']} images ({latents['data']}), {latents['resolution']} px; "
            "noise relative to their standard deviation.",
            "",
            "| | |",
            "|---|---|",
            *(f"| {title} | {value} |" for title, value in rows),
        ]
    )
