"""Model cards of tokenizers. Every number in a card comes from the model itself or from a measurement of it."""

import dataclasses
import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from pqdiff.clean_text import one_line
from pqdiff.hub.measured import latent_rows
from pqdiff.models.fingerprint import fingerprint

_TEMPLATE = Path(__file__).parent / "model_card.md.jinja"

# Title and format of the metrics that we know; a card shows others by their own names.
_METRICS = {
    "psnr_dataset": ("PSNR of the data set (one MSE over all pixels)", "{:.2f} dB"),
    "psnr_image_mean": ("PSNR, mean over the images", "{:.2f} dB"),
    "ssim": ("SSIM", "{:.4f}"),
    "ms_ssim": ("MS-SSIM", "{:.4f}"),
    "haarpsi": ("HaarPSI", "{:.4f}"),
    "mdsi": ("MDSI, lower is better", "{:.4f}"),
    "ssimulacra2": ("SSIMULACRA2", "{:.2f}"),
    "vif": ("VIF", "{:.4f}"),
    "lpips_alex": ("LPIPS (AlexNet), lower is better", "{:.4f}"),
    "lpips_vgg": ("LPIPS (VGG16), lower is better", "{:.4f}"),
    "feature_loss_efficientnet_lite0": ("feature loss on EfficientNet-Lite0 (not LPIPS), lower is better", "{:.4f}"),
    "bits_per_pixel": ("bits per pixel, fixed rate", "{:g}"),
    "entropy_bits_per_pixel": ("bits per pixel, entropy of the tokens", "{:.3f}"),
    "codebook_utilization": ("codewords in use", "{:.1%}"),
    "codebook_h_n": ("H_n, mean over the tokens", "{:.3f}"),
    "codebook_h_n_pooled": ("H_n, pooled as in the official code", "{:.3f}"),
    "codebook_p_n": ("P_n, mean over the tokens", "{:.3f}"),
    "codebook_p_n_pooled": ("P_n, pooled as in the official code", "{:.3f}"),
}


@dataclass(frozen=True)
class TokenizerEvaluation:
    """Measurements of a tokenizer's reconstructions, by the protocol of record.

    Attributes:
        num_images: number of images that were measured on.
        data: name of these images.
        resolution: side of their center crops in pixels.
        metrics: numbers by name; None for a number that is not finite.
    """

    num_images: int
    data: str
    resolution: int
    metrics: dict[str, float | None]

    @classmethod
    def from_file(cls, content: Mapping[str, Any]) -> "TokenizerEvaluation":
        """From the content of a metrics.json: what `evaluate_reconstruction` returns, with `data` beside it."""
        return cls(content["num_images"], content["data"], content["protocol"]["resolution"], content["metrics"])


def render_tokenizer_card(
    model,
    *,
    name: str,
    load: str,
    license: str,
    summary: str,
    training: str,
    evaluation: TokenizerEvaluation | None,
    limits: str,
    latents: Mapping[str, Any] | None = None,
    paper: str | None = None,
) -> ModelCard:
    """The model card of a tokenizer.

    Args:
        model: an `AutoencoderPQ` with any quantizer.
        name: title of the card.
        load: Python expression that `from_pretrained` takes, e.g. a quoted folder or Hub id.
        license: its id on the Hub.
        summary: first paragraph: what the model is.
        training: paragraph that says how the model was made.
        evaluation: measurements of its reconstructions; None if there are none.
        limits: paragraph that says what the model cannot do and what was not measured.
        latents: what `benchmarks/latent_stats.py` measured on this model, see `pqdiff.hub.measured.latent_rows`.
        paper: paragraph of numbers that a paper reports for a similar model.

    Raises:
        ValueError: if `latents` were measured on another model.
    """
    name, load, summary, training, limits, paper = map(in_one_line, (name, load, summary, training, limits, paper))
    if evaluation:
        evaluation = dataclasses.replace(evaluation, data=in_one_line(evaluation.data))
    quantizer, kind = model.quantizer, model.config.quantizer_type.replace("_", "-")
    mark = fingerprint(model)
    facts = [
        ("downsampling factor F", model.downsample_factor),
        ("latent channels d", model.config.latent_channels),
        ("quantizer", kind),
        ("tokens per position", len(quantizer.codebook_sizes)),
        ("codebook sizes", sizes_text(quantizer.codebook_sizes)),
        ("bits per position", f"{quantizer.bits_per_position:g}"),
        ("bits per pixel", f"{model.bits_per_pixel:g}"),
        ("parameters", f"{sum(parameter.numel() for parameter in model.parameters()):,}"),
        ("fingerprint", f"`{mark}`"),
    ]
    return ModelCard.from_template(
        ModelCardData(
            library_name="diffusers",
            license=license,
            pipeline_tag="image-to-image",
            tags=["pqdiff", "autoencoder", "tokenizer", f"{kind}-quantization"],
            model_name=name,
            eval_results=_eval_results(evaluation) if evaluation else None,
        ),
        template_path=str(_TEMPLATE),
        name=name,
        summary=summary,
        facts=facts,
        factor=model.downsample_factor,
        latent_channels=model.config.latent_channels,
        load=load,
        training=training,
        evaluation=evaluation,
        rows=[_row(key, value) for key, value in evaluation.metrics.items()] if evaluation else [],
        latents=latent_rows(latents, mark) if latents else None,
        paper=paper,
        limits=limits,
    )


def in_one_line(value: Any) -> Any:
    """The value with every text in it in one line: a name with line breaks could add headings to a card."""
    if isinstance(value, str):
        return one_line(value)
    if isinstance(value, Mapping):
        return {one_line(key): in_one_line(entry) for key, entry in value.items()}
    return type(value)(map(in_one_line, value)) if isinstance(value, list | tuple) else value


def _row(key: str, value: float | None) -> tuple[str, str]:
    title, form = _METRICS.get(key, (one_line(key), "{:.4g}"))
    return title, "not finite" if value is None else form.format(value)


def _eval_results(evaluation: TokenizerEvaluation) -> list[EvalResult] | None:
    """Metadata of the Hub, which must name a data set; None if there is no name or no number."""
    return [
        EvalResult(
            "image-reconstruction", "photos", evaluation.data, key, round(value, 4), metric_name=_METRICS[key][0]
        )
        for key, value in evaluation.metrics.items()
        if key in ("psnr_dataset", "ssim", "lpips_vgg") and value is not None and evaluation.data
    ] or None


def sizes_text(sizes: tuple[int, ...]) -> str:
    """Codebook sizes for a table: `512 each`, or in their order, e.g. `128, then 63 x 512`."""
    runs = [(len(list(equal)), _count(size)) for size, equal in itertools.groupby(sizes)]
    if len(runs) == 1:
        return f"{runs[0][1]} each" if len(sizes) > 1 else runs[0][1]
    return ", then ".join(f"{number} x {size}" if number > 1 else size for number, size in runs)


def _count(size: int) -> str:
    exponent = math.log2(size)
    return f"2^{exponent:.0f}" if size > 2**20 and exponent.is_integer() else f"{size:,}"
