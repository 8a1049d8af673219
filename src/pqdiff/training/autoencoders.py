"""The autoencoder that a run begins with, its groups of weights, and the statistics it is saved with."""

import inspect
import shutil
from collections.abc import Iterable

import torch
from PIL import Image
from torch import nn

from ..data.files import atomic_folder
from ..data.images import normalize, resize_and_crop, to_tensor
from ..models import AutoencoderPQ
from ..models.closed_form import fit_closed_form
from ..models.presets import preset_config
from ..models.standardization import LatentStandardization
from .arguments import check_keys, construct
from .session import Session

GROUPS = ("encoder", "decoder", "linear", "codebooks")


def initial_autoencoder(session: Session, images: Iterable[Image.Image], resume: bool) -> AutoencoderPQ:
    """The autoencoder of `--init`, the same on all ranks, kept as OUTPUT_DIR/init.

    Args:
        session: of the run; its arguments give init, preset, model, resolution and seed.
        images: RGB images, read by one rank, and only for `--init closed_form`.
        resume: whether there is a checkpoint to go on from: then OUTPUT_DIR/init is the beginning of this run.

    Raises:
        ValueError: for a model that cannot be built or found.
    """
    folder = session.output_dir / "init"
    if session.accelerator.is_main_process and not (resume and folder.exists()):
        shutil.rmtree(folder, ignore_errors=True)
        model = build_autoencoder(session.args, images)
        with atomic_folder(folder) as temporary:
            model.save_pretrained(temporary)
    session.accelerator.wait_for_everyone()
    return extended(AutoencoderPQ.from_pretrained(folder), {})  # whose config does not say where it was loaded from


def build_autoencoder(args, images: Iterable[Image.Image]) -> AutoencoderPQ:
    """A fresh, fitted or given autoencoder with the changes of `--model`. See `initial_autoencoder`."""
    check_keys("--model", args.model, list(inspect.signature(AutoencoderPQ).parameters))
    torch.manual_seed(args.seed)
    if args.init == "random":
        config = preset_config(args.preset) if args.preset else {}
        return construct(AutoencoderPQ, "--model", _merged(config, args.model))
    if args.init == "closed_form":
        if not args.preset:
            raise ValueError("--init closed_form needs --preset, e.g. f8-d128-s64-k512")
        pixels = (to_tensor(resize_and_crop(image, args.resolution, crop=False)) for image in images)
        shape = {key: args.model[key] for key in ("hidden_channels", "class_bases") if key in args.model}
        source = fit_closed_form(pixels, args.preset, **shape, seed=args.seed)
        torch.manual_seed(args.seed)
    else:
        from ..hub.resolve import load_autoencoder

        if args.preset:
            raise ValueError(f"--preset ({args.preset}): --init {args.init} says already what the model is")
        source = load_autoencoder(args.init)
    return extended(source, args.model)


def extended(source: AutoencoderPQ, changes: dict) -> AutoencoderPQ:
    """A copy of an autoencoder with other constructor arguments, e.g. with networks beside a linear path.

    New networks beside a path that was there begin silent: the picture is that of `source`.

    Raises:
        ValueError: if weights of `source` have no place or another shape in the copy.
    """
    config = {key: value for key, value in source.config.items() if not key.startswith("_")}
    model = construct(AutoencoderPQ, "--model", _merged(config, changes))
    weights, places = source.state_dict(), model.state_dict()
    for name, tensor in weights.items():
        if name not in places or places[name].shape != tensor.shape:
            found = f"is {tuple(places[name].shape)}" if name in places else "does not exist"
            raise ValueError(
                f"--model {changes}: {name} {tuple(tensor.shape)} of the initial model {found} in the changed one"
            )
    model.load_state_dict(weights, strict=False)
    if source.encoder is None and model.encoder is not None:
        for layer in (model.quant_conv, model.decoder.conv_out):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
    return model.eval()


def _merged(config: dict, changes: dict) -> dict:
    """Constructor arguments with changes; those of the same quantizer are merged key by key."""
    merged = {**config, **changes}
    if "quantizer_config" in changes and changes.get("quantizer_type", "product") == config.get(
        "quantizer_type", "product"
    ):
        merged["quantizer_config"] = {**config.get("quantizer_config", {}), **changes["quantizer_config"]}
    return merged


def weight_groups(model: AutoencoderPQ) -> dict[str, list[nn.Parameter]]:
    """Parameters by group: the two networks with their 1x1 convolutions, the linear path between patches and latents, and
    the codewords."""
    groups: dict[str, list[nn.Parameter]] = {name: [] for name in GROUPS}
    for name, parameter in model.named_parameters():
        if name.startswith("quantizer.") or name.endswith("hidden_codewords"):
            groups["codebooks"].append(parameter)
        elif name.startswith("patch_transform."):
            groups["linear"].append(parameter)
        else:
            encodes = name.startswith(("encoder.", "quant_conv.", "patch_encoder."))
            groups["encoder" if encodes else "decoder"].append(parameter)
    return groups


def last_layer(model: AutoencoderPQ) -> nn.Parameter:
    """Weights whose gradients balance the adversarial loss: those that make the picture."""
    if model.refiner is not None:
        return model.refiner.last.weight
    return model.patch_transform.synthesis.weight if model.decoder is None else model.decoder.conv_out.weight


@torch.no_grad()
def measure_standardization(model: AutoencoderPQ, images: Iterable[Image.Image], resolution: int) -> None:
    """Give the model the means and standard deviations of its quantized latents on RGB images, cut to the square in the
    center, so that what leaves `encode` has mean 0 and, on average, variance 1."""
    count, total, squares = 0, 0.0, 0.0
    for image in images:
        pixels = normalize(to_tensor(resize_and_crop(image, resolution)))[None].to(model.device, model.dtype)
        indices = model.encode_to_indices(pixels)
        codes = model.quantizer.indices_to_latents(indices).double().transpose(0, 1).flatten(1)  # (d, h w)
        count, total, squares = count + codes.shape[1], total + codes.sum(1), squares + codes.square().sum(1)
    mean = total / count
    std = (squares / count - mean.square()).clamp_min(1e-12).sqrt()
    config = {"channel_mean": mean.tolist(), "channel_std": std.tolist()}
    model.register_to_config(**config)
    model.standardization = LatentStandardization(len(mean), *config.values(), model.config.scaling_exponent).to(
        model.device
    )


def activation_bytes(model: AutoencoderPQ, resolution: int) -> int:
    """Bytes that the backward pass of one image needs of the forward pass, by running it."""
    sizes: dict[int, int] = {}
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    alive = []  # else the allocator hands out the same place twice

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
