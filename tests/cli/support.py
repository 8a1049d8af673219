"""Images, models and codes for the tests of the command line, whole and broken."""

import json
import shutil

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from pqdiff.data.images.reading import to_image

F8 = "f8-d128-s64-k512"
UNSEEN = (DeprecationWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning)  # Python shows no user these


def random_image(seed, height=128, width=128):
    """Smooth random colors with a little noise: uint8 `(3, H, W)`."""
    generator = torch.Generator().manual_seed(seed)
    image = F.interpolate(torch.rand(1, 3, 9, 9, generator=generator), size=(height, width), mode="bicubic")
    image += 0.05 * torch.randn(1, 3, height, width, generator=generator)
    return image[0].clamp(0, 1).mul(255).round().to(torch.uint8)


def save(path, seed, *size):
    path.parent.mkdir(parents=True, exist_ok=True)
    to_image(random_image(seed, *size)).save(path)
    return path


def assert_done(result):
    assert (result.code or 0, result.err) == (0, "")


def assert_refused(result, name, output=None):
    """Exit code 2, one line on stderr with the name, nothing on stdout, nothing written."""
    assert result.code == 2
    assert result.out == ""
    assert len(result.err.splitlines()) == 1, result.err
    assert result.err.startswith("pqdiff: ")
    assert str(name) in result.err
    assert output is None or files_in(output) == []


def files_in(folder):
    return sorted(path.name for path in folder.rglob("*")) if folder.exists() else []


def pixels_of(path):
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB")).astype(int)


# Bad inputs of each kind.


def cut(path, source, kept):
    path.write_bytes(source.read_bytes()[:kept])


def bad_image(kind, folder):
    path = folder / "bad.jpg"
    if kind == "corrupt":
        path.write_bytes(np.random.default_rng(0).bytes(3000))
    elif kind == "truncated":
        cut(path, save(folder / "aside" / "whole.jpg", 0), -500)
    elif kind == "cut tiff":
        cut(path, save(folder / "aside" / "whole.tif", 0), 60)
    elif kind == "empty":
        path.touch()
    elif kind == "foreign":
        path.write_text("This is not an image.\nReally.\n")
    elif kind == "folder":
        path.mkdir()
    return path  # "missing": never made


BAD_IMAGES = ("corrupt", "truncated", "cut tiff", "empty", "foreign", "folder", "missing")


def bad_model(kind, folder, whole):
    path = folder / "bad-model"
    weights = path / "diffusion_pytorch_model.safetensors"
    if kind == "missing":
        return path
    if kind == "image":
        return save(folder / "bad-model.png", 0)
    if kind == "empty folder":
        path.mkdir()
        return path
    shutil.copytree(whole, path)
    config = json.loads((path / "config.json").read_text())
    if kind == "another class":
        (path / "config.json").write_text(json.dumps({**config, "_class_name": "AutoencoderKL"}))
    elif kind == "no class":
        (path / "config.json").write_text(json.dumps({"hidden_size": 3}))
    elif kind == "list":
        (path / "config.json").write_text("[]")
    elif kind == "cut config":
        cut(path / "config.json", whole / "config.json", 100)
    elif kind == "wrong config":
        (path / "config.json").write_text(json.dumps({**config, "latent_channels": 100}))
    elif kind == "another size":
        quantizer = {"num_subspaces": 64, "codebook_size": 256}
        (path / "config.json").write_text(json.dumps({**config, "quantizer_config": quantizer}))
    elif kind == "no config":
        (path / "config.json").unlink()
    elif kind == "no weights":
        weights.unlink()
    elif kind == "cut weights":
        cut(weights, whole / weights.name, -1000)
    elif kind == "corrupt weights":
        weights.write_bytes(np.random.default_rng(0).bytes(3000))
    elif kind == "a tensor missing":
        tensors = load_file(weights)
        del tensors["transform.analysis_conv.bias"]  # which a convolution can also do without
        save_file(tensors, weights)
    elif kind == "weights of nan":
        tensors = load_file(weights)
        save_file({name: torch.full_like(tensor, torch.nan) for name, tensor in tensors.items()}, weights)
    elif kind == "foreign weights":
        save_file({"another": torch.zeros(3)}, weights)
    return path


BAD_MODELS = (
    *("missing", "image", "empty folder", "another class", "no class", "list", "cut config", "wrong config"),
    *("another size", "no config", "no weights", "cut weights", "corrupt weights", "foreign weights"),
    *("a tensor missing", "weights of nan"),
)


def encoded(pqdiff, folder, model, *images):
    """Files of codes of images."""
    assert_done(pqdiff("encode", *images, "-o", folder, "-m", model))
    return sorted(folder.glob("*.pq.safetensors"))


def bad_codes(kind, folder, whole):
    path = folder / "bad.pq.safetensors"
    if kind == "corrupt":
        path.write_bytes(np.random.default_rng(0).bytes(3000))
    elif kind == "truncated":
        cut(path, whole, -10)
    elif kind == "empty":
        path.touch()
    elif kind == "foreign":
        save_file({"codes": torch.zeros(4, dtype=torch.uint8)}, path)
    elif kind == "image":
        save(folder / "bad.png", 0).rename(path)
    elif kind == "folder":
        path.mkdir()
    elif kind in CHANGES:
        with safe_open(whole, framework="pt") as file:
            header, packed = json.loads(file.metadata()["pqdiff"]), file.get_tensor("codes")
        save_file({"codes": packed}, path, metadata={"pqdiff": json.dumps({**header, **CHANGES[kind]})})
    return path  # "missing": never made


CHANGES = {
    "text as height": {"height": "16"},
    "fraction as height": {"height": 16.0},
    "no model": {"model": None},
    "other extent": {"height": 64},
}
BAD_CODES = (
    *("corrupt", "truncated", "empty", "foreign", "image", "folder", "missing", "text as height"),
    *("fraction as height", "no model", "other extent"),
)


def evaluated(pqdiff, folder, model, output):
    for seed in range(2):
        save(folder / f"{seed}.png", seed, 32, 40)
    return pqdiff("evaluate", folder, "-m", model, "-o", output, "--resolution", "32", "--json")


def images_for_fit(folder, count=2):
    for seed in range(count):
        save(folder / f"{seed}.png", seed)
    return folder


def run_on_source(pqdiff, command, source, output, model, *more):
    options = ["-p", F8] if command == "fit" else ["-m", model, "--resolution", 16]
    return pqdiff(command, source, "-o", output / "result.json", *options, *more)
