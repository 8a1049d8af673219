"""Small trained models that ship with the package, found by name."""

from pathlib import Path

from pqdiff.suggestions import did_you_mean

_FOLDER = Path(__file__).parent

BUNDLED = tuple(sorted(path.parent.name for path in _FOLDER.glob("*/config.json")))
# The shipped tokenizers that reconstruct images best at each rate: the adaptive ones by PSNR, the perceptual ones by
# SSIMULACRA2. A diffusion model should be trained on the latents of the others.
BEST_AT_EACH_RATE = tuple(name for kind in ("-adaptive", "-perceptual") for name in BUNDLED if name.endswith(kind))
BUNDLED_PIPELINES = tuple(sorted(path.parent.name for path in _FOLDER.glob("*/model_index.json")))


def bundled(name: str) -> str:
    """Folder of the shipped autoencoder or pipeline `name`, for `from_pretrained`.

    The weights of the pipelines are stored in half precision: on a CPU, stock pipelines need `torch_dtype=torch.float32`.

    Raises:
        ValueError: if no model of that name ships, with the nearest name of one that does.
    """
    names = (*BUNDLED, *BUNDLED_PIPELINES)
    if name not in names:
        raise ValueError(f"model ({name!r}) does not ship with pqdiff: {did_you_mean(name, names)}")
    return str(_FOLDER / name)
