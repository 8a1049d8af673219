"""The result of training an autoencoder: a folder with its card and metrics, and the way to the Hub."""

import json
import shutil
from pathlib import Path

import torch
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from ..data.files import atomic_folder
from ..models import AutoencoderPQ
from ..models.fingerprint import fingerprint
from .session import Session

_METRIC_NAMES = {
    "psnr": "PSNR of the data set (one MSE over all pixels), dB",
    "ssim": "SSIM",
    "lpips_vgg": "LPIPS (VGG16), lower is better",
    "codebook_utilization": "part of the codewords in use",
    "codebook_h_n": "H_n, mean of subspaces",
}


def save_tokenizer(session: Session, model: AutoencoderPQ, values: dict[str, float | None], num_images: int) -> None:
    """Save OUTPUT_DIR/autoencoder and push it if the arguments say so. Only the main process does anything.

    Args:
        session: of the run.
        model: the autoencoder as it shall be saved.
        values: last numbers of `ReconstructionValidation`; empty without validation.
        num_images: photos that they are of.
    """
    if not session.accelerator.is_main_process:
        return
    args, folder = session.args, session.output_dir / "autoencoder"
    model.register_to_config(preset=model.config.preset or args.preset)
    shutil.rmtree(folder, ignore_errors=True)
    with atomic_folder(folder) as temporary:
        model.save_pretrained(temporary)
        metrics = _metrics(session, model, values, num_images) if values else None
        if metrics:
            (temporary / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")
        _card(session, model, metrics).save(temporary / "README.md")
    session.say(f"saved {folder}")
    if args.push_to_hub:
        from ..hub.push import push_folder

        result = push_folder(folder, args.push_to_hub, private=args.hub_private)
        session.say(f"pushed {len(result.files)} files to {result.url}")


def _metrics(session: Session, model: AutoencoderPQ, values: dict, num_images: int) -> dict:
    args = session.args
    kept = f"1 of {args.hold_out} of {_name(args.dataset)}, not trained on" if args.hold_out else ""
    return {
        "num_images": num_images,
        "data": _name(args.validation_dataset) if args.validation_dataset else kept,
        "metrics": {**values, "bits_per_pixel": model.bits_per_pixel},
        "protocol": {
            "resolution": args.validation_resolution or args.resolution,
            "resize": "shorter side, Lanczos, center crop",
            "output": "8-bit",
            "dtype": str(model.dtype).removeprefix("torch."),
            "fingerprint": fingerprint(model),
            "torch": torch.__version__,
        },
    }


def _card(session: Session, model: AutoencoderPQ, metrics: dict | None) -> ModelCard:
    from ..hub import cards

    args = session.args
    name = (args.push_to_hub or session.output_dir.name).rsplit("/", 1)[-1]
    evaluation, results = None, None
    if metrics:
        rows = [(title, metrics["metrics"][key]) for key, title in _METRIC_NAMES.items() if key in metrics["metrics"]]
        results = "\n".join(
            [
                f"{metrics['num_images']} images ({metrics['data']}), {metrics['protocol']['resolution']} px, "
                "shorter side by Lanczos, center crop, 8-bit output.",
                "",
                "| metric | value |",
                "|---|---|",
                *(f"| {title} | {'not finite' if value is None else f'{value:.4f}'} |" for title, value in rows),
            ]
        )
        evaluation = [
            EvalResult("image-reconstruction", "photos", metrics["data"], key, round(value, 4), metric_name=title)
            for key, title in _METRIC_NAMES.items()
            if (value := metrics["metrics"].get(key)) is not None
        ]
    parts = [
        word
        for word, there in (("networks", model.encoder), ("a linear path over patches", model.patch_transform))
        if there is not None
    ]
    return ModelCard.from_template(
        ModelCardData(
            library_name="diffusers",
            license=args.license or "unknown",
            pipeline_tag="image-to-image",
            tags=["pqdiff", "autoencoder", "tokenizer", "product-quantization"],
            model_name=name,
            eval_results=evaluation or None,
        ),
        template_path=str(cards._TEMPLATE),
        name=name,
        summary=(
            f"An image tokenizer with {model.bits_per_pixel:g} bits per pixel, of {' and '.join(parts)}. Trained for "
            f"{session.total_steps:,} steps of {session.layout.global_batch_size} images."
        ),
        factor=model.downsample_factor,
        latent_channels=model.config.latent_channels,
        codebooks=", ".join(map(str, (len(model.quantizer.codebook_sizes), max(model.quantizer.codebook_sizes)))),
        bits_per_position=f"{model.quantizer.bits_per_position:g}",
        bits_per_pixel=f"{model.bits_per_pixel:g}",
        parameters=f"{sum(p.numel() for p in model.parameters()):,}",
        hidden_channels=model.config.hidden_channels,
        fingerprint=fingerprint(model),
        load=f'"{args.push_to_hub or "THIS_FOLDER"}"',
        training=_training(session),
        results=results,
        paper=None,
        limits=(
            "What it has not seen it may reconstruct worse; the numbers above, where there are some, are of the data they "
            "name. rFID and CMMD were not measured."
        ),
    )


def _training(session: Session) -> str:
    args, layout = session.args, session.layout
    terms = [
        f"{name} (weight {weight:g})" for name, weight in (("L1", args.l1_weight), ("L2", args.l2_weight)) if weight
    ]
    terms += [f"LPIPS (VGG16, weight {args.perceptual_weight:g})"] if args.perceptual_weight else []
    if args.adversarial_weight:
        terms.append(
            f"a patch discriminator from step {args.disc_start:,} on (weight {args.adversarial_weight:g}, adaptive)"
        )
    start = {"random": "random weights", "closed_form": "the closed form fitted to the same pictures"}
    return (
        f"By `training/train_pqgan.py` from {start.get(args.init, _name(args.init))} (seed {args.seed}), on "
        f"{_name(args.dataset)}: {session.total_steps:,} steps of {layout.global_batch_size} crops of "
        f"{args.resolution} px, learning rate {args.learning_rate:g}; loss: {', '.join(terms)}."
        + (f" The weights are averages (decay {args.ema_decay:g})." if args.ema_decay else "")
    )


def _name(source: str) -> str:
    """A data set or model as a card names it: of a path here only the last part."""
    return Path(source).name if Path(source).exists() else str(source)
