"""Find an autoencoder by the name of a shipped model, by folder, or by Hub repo id."""

from pathlib import Path

from diffusers import ModelMixin
from safetensors import SafetensorError

from ..checkpoints import BUNDLED, BUNDLED_PIPELINES, bundled
from ..models import AutoencoderPQ
from ..models.any_autoencoder import find_autoencoder


def load_autoencoder(source: str, **kwargs) -> AutoencoderPQ:
    """`AutoencoderPQ` in eval mode from a shipped name, a folder or a Hub id; `kwargs` go to `from_pretrained`.

    Raises:
        ValueError: in one line, naming the source and what is wrong with it.
    """
    if source in BUNDLED:
        return AutoencoderPQ.from_pretrained(bundled(source), **kwargs).eval()
    folder = Path(source)
    if not folder.exists() and source.count("/") != 1:
        raise ValueError(
            f"model ({source}) is neither a shipped one ({', '.join(BUNDLED)}), nor a folder, nor a Hub id (user/name)"
        )
    try:
        config = AutoencoderPQ.load_config(source)
        found = config.get("_class_name", "model of unknown class") if isinstance(config, dict) else "broken config"
        if found != "AutoencoderPQ":
            raise ValueError(f"it holds a {found}, not an AutoencoderPQ")
        model, report = AutoencoderPQ.from_pretrained(source, output_loading_info=True, **kwargs)
        for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"):
            if report.get(problem):
                raise ValueError(
                    f"its weights have {problem.replace('_', ' ')}: {', '.join(map(str, report[problem]))}"
                )
        return model.eval()
    except (OSError, ValueError, RuntimeError, TypeError, SafetensorError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"model ({source}) cannot be loaded: {reason[:300]}") from None


def load_any_autoencoder(source: str, **kwargs) -> ModelMixin:
    """As `load_autoencoder`, and besides any autoencoder of diffusers, such as `AutoencoderKL`, by folder or Hub id.

    The name of a shipped pipeline and a pipeline's folder stand for its autoencoder.

    Raises:
        ValueError: in one line, naming the source and what is wrong with it.
    """
    place = bundled(source) if source in BUNDLED_PIPELINES else source
    if place in BUNDLED or not (Path(place).is_dir() or place.count("/") == 1):
        return load_autoencoder(place, **kwargs)  # or its error, which names what can be given
    try:
        kind, place = find_autoencoder(place)
        if kind is AutoencoderPQ:
            return load_autoencoder(place, **kwargs)
        return kind.from_pretrained(place, **kwargs).eval()
    except (OSError, RuntimeError, SafetensorError) as error:
        raise ValueError(f"model ({source}) cannot be loaded: {' '.join(str(error).split())[:300]}") from None
