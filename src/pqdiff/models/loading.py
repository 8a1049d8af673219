"""Loads autoencoders by the name of a shipped model, by folder, or by Hub id."""

from os import PathLike
from pathlib import Path

import diffusers
from diffusers import ModelMixin

from pqdiff.checkpoints import BUNDLED, BUNDLED_PIPELINES, bundled
from pqdiff.clean_text import one_line
from pqdiff.models.autoencoder_pq import AutoencoderPQ
from pqdiff.suggestions import did_you_mean

_WITHOUT_POSTERIOR = ("AutoencoderTiny", "AutoencoderDC")  # in diffusers: `encode` gives latents alone


def load_autoencoder(source: str | PathLike, **kwargs) -> ModelMixin:
    """An `AutoencoderPQ` or any autoencoder of diffusers, such as `AutoencoderKL`, in eval mode.

    Args:
        source: name of a shipped tokenizer or pipeline, folder of an autoencoder or of a pipeline, or Hub id
            (`user/name`) of an autoencoder. A pipeline stands for its `vae`.
        kwargs: arguments of `from_pretrained`, such as `dtype`.

    Raises:
        ValueError: in one line that names the source and the fault: there is nothing of that name, it is not an
            autoencoder, or its files are missing, damaged or incomplete.
    """
    return _load("autoencoder", source, (*BUNDLED, *BUNDLED_PIPELINES), kwargs)


def load_reconstructor(source: str | PathLike, **kwargs) -> ModelMixin:
    """As `load_autoencoder`, but also an autoencoder without a distribution of latents (AutoencoderTiny, AutoencoderDC).

    Raises:
        ValueError: in one line that names the source and the fault.
    """
    return _load("autoencoder", source, (*BUNDLED, *BUNDLED_PIPELINES), kwargs, posterior=False)


def downsample_factor(autoencoder: ModelMixin) -> int:
    """Pixels per latent position along each side, of any autoencoder that this module loads."""
    for name in ("downsample_factor", "spatial_compression_ratio"):  # ours, and what some of diffusers have
        if isinstance(factor := getattr(autoencoder, name, None), int):
            return factor
    config = autoencoder.config
    return 2 ** (len(config.get("block_out_channels") or config["encoder_block_out_channels"]) - 1)


def load_tokenizer(source: str | PathLike, **kwargs) -> AutoencoderPQ:
    """An `AutoencoderPQ` in eval mode: as `load_autoencoder`, which refuses other autoencoders here.

    Raises:
        ValueError: in one line that names the source and the fault.
    """
    return _load("model", source, BUNDLED, kwargs, AutoencoderPQ)


def _load(
    argument: str, source: str | PathLike, shipped: tuple[str, ...], kwargs: dict, kind=ModelMixin, posterior=True
) -> ModelMixin:
    """The autoencoder at `source`, which must be a `kind`. Errors call the source `argument`."""
    place = Path(_place(argument, str(source), shipped))
    if (place / "model_index.json").is_file():
        place = place / "vae"
    try:
        model_class = _class_of(str(place), posterior)
        if not issubclass(model_class, kind):
            raise ValueError(f"it holds a {model_class.__name__}, not an {kind.__name__}")
        model, report = model_class.from_pretrained(str(place), output_loading_info=True, **kwargs)
        _check_weights(model, report)
    except Exception as error:  # its type depends on the library that reads the broken file
        reason = one_line(error) or type(error).__name__
        raise ValueError(f"{argument} ({source}) cannot be loaded: {reason[:300]}") from None
    return model.eval()


def _place(argument: str, source: str, shipped: tuple[str, ...]) -> str:
    """Folder or Hub id of a source."""
    if source in (*BUNDLED, *BUNDLED_PIPELINES):
        return bundled(source)
    if not Path(source).exists() and source.count("/") != 1:
        raise ValueError(
            f"{argument} ({source}) is neither a shipped model, nor a folder, nor a Hub id (user/name): "
            f"{did_you_mean(source, shipped)}"
        )
    return source


def _class_of(place: str, posterior: bool) -> type[ModelMixin]:
    """Class of the autoencoder that a configuration names; with `posterior` only one that has a distribution of latents.

    Raises:
        OSError: if there is no configuration.
        ValueError: if it does not name an autoencoder.
    """
    config = AutoencoderPQ.load_config(place)
    name = str(config.get("_class_name", "model of unknown class"))
    if name == AutoencoderPQ.__name__:
        return AutoencoderPQ
    model_class = getattr(diffusers, name, None)
    if not (isinstance(model_class, type) and issubclass(model_class, ModelMixin) and hasattr(model_class, "decode")):
        raise ValueError(f"it holds a {name}, not an AutoencoderPQ or another autoencoder")
    if name in _WITHOUT_POSTERIOR and not posterior:
        return model_class
    if name in _WITHOUT_POSTERIOR or not {"block_out_channels", "latent_channels"} <= set(config):
        raise ValueError(
            f"a {name} has no distribution of latents to encode to: choose an AutoencoderKL or AutoencoderPQ"
        )
    return model_class


def _check_weights(model: ModelMixin, report: dict) -> None:
    """ValueError if the weights are not exactly those of the model: diffusers would leave random ones and only log it; or
    if there is NaN or infinity among them."""
    for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if report.get(problem):
            names = ", ".join(map(str, sorted(report[problem], key=str)))
            raise ValueError(f"its weights have {problem.replace('_', ' ')}: {names}")
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise ValueError(f"its weights have values that are not finite: {name}")
