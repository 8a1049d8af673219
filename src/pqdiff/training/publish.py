"""The result of a run: a pipeline folder with its variant, samples and card, and the way to the Hub."""

import argparse
import dataclasses
from os import PathLike
from pathlib import Path

import yaml

from ..data.grid import grid_image
from .session import Session
from .validation import paint


def add_publish_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags that `save_result` reads."""
    group = parser.add_argument_group("result")
    group.add_argument("--push_to_hub", metavar="REPO", help="upload the result to this Hub id")
    group.add_argument("--license", help="Hub id of the result's license; default: the base's where it is known")
    group.add_argument("--hub_private", action="store_true", help="make a new repository private")


def check_publish_arguments(args: argparse.Namespace) -> None:
    """What would fail after the last step and can be known before the first.

    Raises:
        ValueError: if `--push_to_hub` names no repository, or there is no token to write to it.
    """
    if args.push_to_hub is None:
        return
    from huggingface_hub import get_token

    from ..hub.push import check_repo_id

    try:
        check_repo_id(args.push_to_hub)
    except ValueError as error:
        raise ValueError(f"--push_to_hub: {error}") from None
    if get_token() is None:
        raise ValueError("--push_to_hub: not logged in to the Hub: run `hf auth login`, or set HF_TOKEN")


def save_result(session: Session, pipeline, stages: list, variant) -> None:
    """Save OUTPUT_DIR/pipeline, by the averaged weights where there are some: models, `variant.yaml`, `samples/`, card.

    LoRA layers are saved beside the UNet as `pytorch_lora_weights.safetensors`, as `load_lora_weights` reads them.
    """
    if not session.accelerator.is_main_process:
        return
    from ..hub.pipeline_cards import known_license, write_pipeline_card

    args, folder = session.args, session.output_dir / "pipeline"
    pictures = paint(session, pipeline, args.validation_prompts) if args.validation_prompts else []
    for name, ema in session.averages.items():
        getattr(pipeline, name).load_state_dict(ema.average.state_dict())
    unet = pipeline.unet
    unet.set_default_attn_processor()
    unet.requires_grad_(False)
    if getattr(unet, "peft_config", None):
        from peft.utils import get_peft_model_state_dict

        layers = get_peft_model_state_dict(unet)
        unet.unload_lora() if hasattr(unet, "unload_lora") else unet.delete_adapters(list(unet.peft_config))
        _export(session, pipeline, folder)
        pipeline.save_lora_weights(folder, unet_lora_layers=layers)
    else:
        _export(session, pipeline, folder)
    description = _describe(session, stages, variant, pipeline)
    (folder / "variant.yaml").write_text(yaml.safe_dump(description, sort_keys=False))
    if pictures:
        (folder / "samples").mkdir(exist_ok=True)
        rows = [(prompt, [picture]) for prompt, picture in zip(args.validation_prompts, pictures, strict=True)]
        grid_image(rows).save(folder / "samples" / "validation.png")
    base = args.base or (variant.base if variant else None)
    write_pipeline_card(
        folder,
        name=args.push_to_hub or session.output_dir.name,
        base_model=base,
        variant=description,
        license=args.license or known_license(base) or "unknown",
        training={
            "steps": session.total_steps,
            "dataset": Path(str(args.dataset)).name,
            "batch_size": session.layout.global_batch_size,
            "stages": [dataclasses.asdict(stage) for stage in stages],
        },
    )
    if args.push_to_hub:
        from ..hub.push import push_folder

        result = push_folder(folder, args.push_to_hub, private=args.hub_private)
        session.say(f"pushed {len(result.files)} files to {result.url}")


def _export(session: Session, pipeline, folder: Path) -> None:
    """The models in full precision and, as far as it can hold them, in half."""
    from ..hub.export import export_for_hub

    try:
        export_for_hub(pipeline, folder)
    except ValueError as error:
        session.say(f"no files in half precision: {error}")
        export_for_hub(pipeline, folder, fp16=False)


def _describe(session: Session, stages: list, variant, pipeline) -> dict:
    """What `load_variant` reads back, where the autoencoder is made from a preset."""
    args = session.args
    return {
        "name": variant.name if variant else Path(args.output_dir).name,
        "base": _public_name(args.base or variant.base),
        "autoencoder": getattr(pipeline.vae.config, "preset", None)
        or _public_name(args.autoencoder or variant.autoencoder),
        "sample_size": pipeline.unet.config.sample_size,
        "resolution": pipeline.unet.config.sample_size * pipeline.vae_scale_factor,
        "batch_size": session.layout.global_batch_size,
        "stages": [dataclasses.asdict(stage) for stage in stages],
    }


def _public_name(source: str | PathLike) -> str:
    """A Hub id as it is, a folder without the path to it, which is this machine's."""
    return Path(source).name if Path(source).exists() else str(source)
