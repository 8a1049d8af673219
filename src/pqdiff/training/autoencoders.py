"""The autoencoder that a run begins with, and its groups of weights."""

import argparse
import inspect
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from PIL import Image
from torch import nn

from pqdiff.data.files import updated_folder
from pqdiff.data.images.crops import resize_and_crop, resize_to_cover
from pqdiff.data.images.reading import to_tensor
from pqdiff.fitting.closed_form import fit_closed_form
from pqdiff.fitting.feature_codebook import read_features
from pqdiff.hub.local_paths import public_name
from pqdiff.models.autoencoder_pq import AutoencoderPQ
from pqdiff.models.presets import PRESETS, preset_config
from pqdiff.training.arguments import check_keys, construct, structured
from pqdiff.training.options import Options
from pqdiff.training.run_options import positive
from pqdiff.training.session import Session

GROUPS = ("encoder", "decoder", "linear", "codebooks")


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `ModelOptions`."""
    model = parser.add_argument_group("model")
    model.add_argument("--preset", help=f"{', '.join(PRESETS)}, or any other name of the same form")
    model.add_argument("--init", default="random", help="random, closed_form, or an autoencoder: name, folder, Hub id")
    model.add_argument("--model", type=structured, default={}, help="constructor arguments of AutoencoderPQ")
    model.add_argument("--codebook_features", help="for --init random: file by training/build_lc_codebook.py")
    model.add_argument(
        "--fit_images", type=positive, default=1000, help="images for the closed form and the statistics of latents"
    )


@dataclass(frozen=True)
class ModelOptions(Options):
    """The autoencoder that a run begins with.

    Attributes:
        init: `random`, `closed_form`, or an autoencoder by name, folder or Hub id.
        preset: name of a preset, for `random` and `closed_form`.
        model: constructor arguments of `AutoencoderPQ`, which win over those of the preset or the given autoencoder.
        codebook_features: file with the table of a frozen codebook, for `random`.
        fit_images: number of images for the closed form and for the statistics of the latents.
    """

    init: str = "random"
    preset: str | None = None
    model: dict[str, Any] = field(default_factory=dict)
    codebook_features: str | None = None
    fit_images: int = 1000

    def describe(self) -> str:
        """The beginning of the run in words, for a card."""
        words = {"random": "random weights", "closed_form": "the closed form fitted to the same images"}
        return words.get(self.init) or public_name(self.init)


def initial_autoencoder(
    session: Session, options: ModelOptions, images: Iterable[Image.Image], resolution: int
) -> AutoencoderPQ:
    """The autoencoder that a run begins with, the same on all ranks; kept as OUTPUT_DIR/init.

    A run that is resumed takes what is in OUTPUT_DIR/init.

    Args:
        session: the run.
        options: what to begin with.
        images: RGB images; one rank reads them, and only for `closed_form`.
        resolution: side in pixels at which the closed form sees them.

    Raises:
        ValueError: for a model that cannot be built or found.
    """
    folder = session.folder.claim("init")
    if session.accelerator.is_main_process and not (session.checkpoint and folder.exists()):
        model = build_autoencoder(options, images, resolution, session.options.seed)
        with updated_folder(folder) as temporary:
            model.save_pretrained(temporary)
    session.accelerator.wait_for_everyone()
    # A copy, whose config does not say from which folder it was loaded.
    return extended(AutoencoderPQ.from_pretrained(folder), {})


def build_autoencoder(
    options: ModelOptions, images: Iterable[Image.Image], resolution: int, seed: int
) -> AutoencoderPQ:
    """A new, fitted or given autoencoder with the changes of `options.model`. See `initial_autoencoder`."""
    check_keys("--model", options.model, list(inspect.signature(AutoencoderPQ).parameters))
    torch.manual_seed(seed)
    if options.init == "random":
        config = preset_config(options.preset) if options.preset else {}
        model = construct(AutoencoderPQ, "--model", _merged(config, options.model))
        if options.codebook_features:
            _load_features(model, options.codebook_features)
        return model
    if options.codebook_features:
        raise ValueError("--codebook_features is for --init random: other autoencoders have their codewords already")
    if options.init == "closed_form":
        if not options.preset:
            raise ValueError("--init closed_form needs --preset, for example f8-d128-s64-k512")
        pixels = (to_tensor(resize_to_cover(image, resolution)) for image in images)
        quantizer = options.model.get("quantizer_config", {})
        bases = quantizer.get("bases", 16) if options.model.get("quantizer_type") == "classified_product" else 0
        hidden = quantizer.get("hidden_channels")
        source = fit_closed_form(pixels, options.preset, hidden, class_bases=bases, seed=seed)
        torch.manual_seed(seed)
    else:
        from pqdiff.models.loading import load_tokenizer

        if options.preset:
            raise ValueError(f"--preset ({options.preset}) cannot be used: --init {options.init} is a complete model")
        source = load_tokenizer(options.init)
    return extended(source, options.model)


def _load_features(model: AutoencoderPQ, path: str) -> None:
    try:
        model.quantizer.load_features(read_features(path)[0])
    except ValueError as error:
        raise ValueError(f"--codebook_features {path}: {error}") from None


def extended(source: AutoencoderPQ, changes: dict) -> AutoencoderPQ:
    """A copy of an autoencoder with other constructor arguments, e.g. with networks beside its linear transform.

    New transforms beside the one that was there start with an output of 0, so that images are those of `source`.

    Raises:
        ValueError: if weights of `source` have no place or another shape in the copy.
    """
    config = {key: value for key, value in source.config.items() if not key.startswith("_")}
    model = construct(AutoencoderPQ, "--model", _merged(config, changes))
    weights, places = source.state_dict(), model.state_dict()
    new_parts = []
    if model.config.transform_type == "sum" and source.config.transform_type != "sum":  # the first part is the old one
        weights = {re.sub(r"^transform\.", "transform.parts.0.", name): value for name, value in weights.items()}
        new_parts = list(model.transform.parts)[1:]
    for name, tensor in weights.items():
        if name not in places or places[name].shape != tensor.shape:
            found = f"is {tuple(places[name].shape)}" if name in places else "does not exist"
            raise ValueError(
                f"--model {changes}: {name} {tuple(tensor.shape)} of the initial model {found} in the changed one"
            )
    model.load_state_dict(weights, strict=False)
    for part in new_parts:
        part.silence()
    return model.eval()


def _merged(config: dict, changes: dict) -> dict:
    """Constructor arguments with changes. The configuration of a part that stays of the same type is merged key by key."""
    merged = {**config, **changes}
    if "transform_type" in changes or "transform_config" in changes:
        merged.pop("block_out_channels", None)  # derived from the transform
    for part in ("transform", "quantizer"):
        kind, options = f"{part}_type", f"{part}_config"
        if options in changes and changes.get(kind, config.get(kind)) == config.get(kind):
            merged[options] = {**(config.get(options) or {}), **changes[options]}
    return merged


def weight_groups(model: AutoencoderPQ) -> dict[str, list[nn.Parameter]]:
    """Parameters by group: networks before and behind the quantizer, linear transforms, and the quantizer's own."""
    groups: dict[str, list[nn.Parameter]] = {name: [] for name in GROUPS}
    for name, parameter in model.named_parameters():
        part, rest = name.split(".", maxsplit=1)
        group = {"quantizer": "codebooks", "refiner": "decoder"}.get(part) or model.transform.group_of(rest)
        groups[group].append(parameter)
    return groups


def center_crops(images: Iterable[Image.Image], resolution: int) -> Iterator[torch.Tensor]:
    """uint8 center crops `(3, resolution, resolution)` of RGB images."""
    return (to_tensor(resize_and_crop(image, resolution)) for image in images)


def activation_bytes(model: AutoencoderPQ, resolution: int) -> int:
    """Bytes of activations that the backward pass of one image needs, found by running the forward pass."""
    sizes: dict[int, int] = {}
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    alive = []  # otherwise the allocator would use the same address twice

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            sizes[storage.data_ptr()] = storage.nbytes()
            alive.append(tensor)
        return tensor

    image = torch.zeros(1, model.config.in_channels, resolution, resolution, device=model.device, dtype=model.dtype)
    training = model.training
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model.eval()(image)
    model.train(training)
    return sum(sizes.values())
