"""Which files of a folder go to the Hub: those whose names and places are on a list, and nothing else."""

import os
import re
from collections.abc import Collection
from pathlib import Path, PurePosixPath

_WEIGHTS = re.compile(
    r"(diffusion_pytorch_model|model)(\.\w+)?(-\d{5}-of-\d{5})?\.safetensors(\.index(\.\w+)?\.json)?"
)
_MODEL = (
    "config.json",
    "generation_config.json",
    "scheduler_config.json",
    "preprocessor_config.json",
    "tokenizer_config.json",
)
VOCABULARIES = (
    *("tokenizer.json", "special_tokens_map.json", "added_tokens.json", "vocab.json", "vocab.txt", "merges.txt"),
    *("tokenizer.model", "spiece.model", "sentencepiece.bpe.model"),
)
_TOP = (
    *("README.md", "LICENSE", "LICENSE.md", "LICENSE.txt", "model_index.json", "config.json", "metrics.json"),
    *("variant.yaml", "pytorch_lora_weights.safetensors"),
)
_IMAGES = (".png", ".jpg", ".jpeg", ".webp")
_SAMPLES = "samples"


def split(folder: Path, components: Collection[str]) -> tuple[list[str], list[str]]:
    """Relative paths of the files below `folder` that go to the Hub, sorted, and of the files and folders that do not.

    Configurations, weights, vocabularies and the card go, each where `save_pretrained` writes it, and images that are in
    `samples/` or that the card names.

    Args:
        components: names of the folders of the pipeline's components.

    Raises:
        ValueError: for a link, unless it leads to a file below `folder` that goes too.
    """
    card = (folder / "README.md").read_text(errors="replace") if (folder / "README.md").is_file() else ""
    root = Path(os.path.realpath(folder))
    files, left_out = [], []

    def goes(path: PurePosixPath) -> bool:
        if path.suffix in _IMAGES and str(path).isprintable() and not any(part[0] == "." for part in path.parts):
            named = re.search(rf"(?<![\w./-])(\./)?{re.escape(str(path))}(?![\w-])", card)
            return path.parts[0] == _SAMPLES or named is not None
        if len(path.parts) == 1:
            return path.name in _TOP or bool(_WEIGHTS.fullmatch(path.name))
        known = path.name in (*_MODEL, *VOCABULARIES) or _WEIGHTS.fullmatch(path.name)
        return len(path.parts) == 2 and path.parts[0] in components and bool(known)

    def walk(place: Path) -> None:
        for path in sorted(place.iterdir()):
            name = PurePosixPath(path.relative_to(folder).as_posix())
            if path.is_symlink():
                target = Path(os.path.realpath(path))
                if not (target.is_relative_to(root) and target.is_file()) or not goes(
                    PurePosixPath(target.relative_to(root).as_posix())
                ):
                    raise ValueError(f"{name} is a link to what must stay here: remove it, or replace it by a copy")
            if path.is_dir():
                before = len(files)
                outer, left_out[:] = left_out[:], []
                walk(path)
                left_out[:] = [*outer, *(left_out if len(files) > before else [f"{name}/"])]
            else:
                (files if path.is_file() and goes(name) else left_out).append(str(name))

    walk(folder)
    return sorted(files), left_out
