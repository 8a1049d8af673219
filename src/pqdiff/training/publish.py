"""The result of adapting a model: a pipeline folder with variant, samples and card, and the upload to the Hub."""

import argparse
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pqdiff.adaptation.stages import Stage
from pqdiff.hub.local_paths import public_name
from pqdiff.training.options import Options
from pqdiff.training.session import Session
from pqdiff.training.validation import PromptValidation
from pqdiff.yaml_text import dump_yaml


def add_publish_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `PublishOptions`."""
    group = parser.add_argument_group("result")
    group.add_argument("--push_to_hub", metavar="REPO", help="upload the result to this Hub id")
    group.add_argument("--license", help="Hub id of the result's license; default: the base's, if it is known")
    group.add_argument("--hub_private", action="store_true", help="if the repository is new, make it private")


@dataclass(frozen=True)
class PublishOptions(Options):
    """Where a result goes.

    Attributes:
        push_to_hub: Hub id to upload to, or None.
        license: Hub id of the license, or None.
        hub_private: make a new repository private.
    """

    push_to_hub: str | None = None
    license: str | None = None
    hub_private: bool = False

    def check(self) -> None:
        """Find out before the first step what would fail after the last one.

        Raises:
            ValueError: if `push_to_hub` is no Hub id, or if there is no token to write to it.
        """
        if self.push_to_hub is None:
            return
        from huggingface_hub import get_token

        from pqdiff.hub.push import check_repo_id

        try:
            check_repo_id(self.push_to_hub)
        except ValueError as error:
            raise ValueError(f"--push_to_hub: {error}") from None
        if get_token() is None:
            raise ValueError("--push_to_hub: not logged in to the Hub: run `hf auth login`, or set HF_TOKEN")

    def push(self, session: Session, folder: Path) -> None:
        """Upload a folder, if a Hub id is given."""
        if self.push_to_hub:
            from pqdiff.hub.push import push_folder

            result = push_folder(folder, self.push_to_hub, private=self.hub_private)
            session.say(f"pushed {len(result.files)} files to {result.url}")


def save_pipeline(
    session: Session,
    validation: PromptValidation,
    options: PublishOptions,
    stages: Sequence[Stage],
    *,
    name: str,
    base: str,
    autoencoder: str,
    dataset: str,
) -> None:
    """Save OUTPUT_DIR/pipeline with EMA weights if there are any: models, `variant.yaml`, `samples/` and card.

    LoRA layers are saved beside the models as `pytorch_lora_weights.safetensors`, as `load_lora_weights` reads them.
    Only the main process does anything.

    Args:
        session: run that ends.
        validation: its pipeline is saved, and its images are the samples.
        options: where the result goes.
        stages: stages of the run.
        name: name of the variant.
        base: Hub id or folder of the model that was adapted.
        autoencoder: Hub id, folder or preset of the autoencoder.
        dataset: data that was trained on.
    """
    if not session.accelerator.is_main_process:
        return
    from pqdiff.hub.pipeline_cards import known_license, write_pipeline_card

    pipeline, folder = validation.pipeline, session.folder.claim("pipeline")
    images = validation.generate()
    for component, ema in session.ema.items():
        getattr(pipeline, component).load_state_dict(ema.model.state_dict())
    _save_models(session, pipeline, folder)
    description = {
        "name": name,
        "base": public_name(base),
        "autoencoder": getattr(pipeline.vae.config, "preset", None) or public_name(autoencoder),
        "sample_size": pipeline.unet.config.sample_size,
        "resolution": pipeline.unet.config.sample_size * pipeline.vae_scale_factor,
        "batch_size": session.layout.global_batch_size,
        "stages": [dataclasses.asdict(stage) for stage in stages],
    }  # `load_variant` reads this back if the autoencoder was made from a preset
    (folder / "variant.yaml").write_text(dump_yaml(description))
    if images:
        (folder / "samples").mkdir(exist_ok=True)
        validation.grid(images).save(folder / "samples" / "validation.png")
    write_pipeline_card(
        folder,
        name=options.push_to_hub or session.output_dir.name,
        base_model=base,
        variant=description,
        license=options.license or known_license(base) or "unknown",
        training={
            "steps": session.total_steps,
            "dataset": Path(dataset).name,
            "batch_size": session.layout.global_batch_size,
            "stages": description["stages"],
        },
    )
    options.push(session, folder)


def _save_models(session: Session, pipeline, folder: Path) -> None:
    unet = pipeline.unet
    unet.set_default_attn_processor()
    unet.requires_grad_(False)
    if not getattr(unet, "peft_config", None):
        _export(session, pipeline, folder)
        return
    from peft.utils import get_peft_model_state_dict

    layers = get_peft_model_state_dict(unet)
    unet.unload_lora() if hasattr(unet, "unload_lora") else unet.delete_adapters(list(unet.peft_config))
    _export(session, pipeline, folder)
    pipeline.save_lora_weights(folder, unet_lora_layers=layers)


def _export(session: Session, pipeline, folder: Path) -> None:
    """Save the models in full precision and, if their values fit, in half precision."""
    from pqdiff.hub.export import export_for_hub

    try:
        export_for_hub(pipeline, folder)
    except ValueError as error:
        session.say(f"no files in half precision: {error}")
        export_for_hub(pipeline, folder, fp16=False)
