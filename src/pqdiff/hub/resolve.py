"""Find an autoencoder by the name of a shipped model, by folder, or by Hub repo id."""

from pathlib import Path

from safetensors import SafetensorError

from ..checkpoints import BUNDLED, bundled
from ..models import AutoencoderPQ


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
