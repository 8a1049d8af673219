"""The convolutions of VGG16 (Simonyan and Zisserman, arXiv 1409.1556), and the files with their weights.

The network is written here so that pqdiff does not need torchvision.
"""

import hashlib
import os
import pickle
from pathlib import Path

import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HfHubHTTPError
from safetensors import SafetensorError
from safetensors.torch import safe_open
from torch import nn

ENVIRONMENT_VARIABLE = "PQDIFF_VGG16"
ORIGINAL_FILE = "vgg16-397923af.pth"
REPO_ID = "timm/vgg16.tv_in1k"
REVISION = "b8d8aa2dd860af9233c8c67385a8097fd6c35d3f"
FILENAME = "model.safetensors"
# SHA-256 of the files of torchvision's ImageNet weights: as published, and as converted on the Hub.
KNOWN_FILES = {
    "397923af8e79cdbb6a7127f12361acd7a2f83e06b05044ddf496e83de57a5bf0": ORIGINAL_FILE,
    "57b026918159a6bf9faf8405c3a551903768e7138989d9c6224a14227203fad8": f"{REPO_ID}/{FILENAME}",
}
CHANNELS = (64, 128, 256, 512, 512)  # of the five stages
_CONVOLUTIONS = (2, 2, 3, 3, 3)  # per stage
# huggingface_hub uses requests, httpx or httpx2, depending on its version.
_NO_DOWNLOAD = (OSError, HfHubHTTPError, HfHubHTTPError.__bases__[0])

_UNREADABLE = (
    SafetensorError,
    pickle.UnpicklingError,
    RuntimeError,
    LookupError,
    TypeError,
    AttributeError,
    EOFError,
)


class VGG16Features(nn.Module):
    """Maps images `(B, 3, H, W)`, standardized as the weights expect, to the features of the five stages before pooling.

    Stage i has `CHANNELS[i]` channels at H / 2^i; its last ReLU is the paper's relu{i+1}_{2 or 3}. The layers have
    torchvision's numbers, `features.0` to `features.28`, so that published weights fit.
    """

    def __init__(self):
        super().__init__()
        layers, taps, channels = [], [], 3
        for width, count in zip(CHANNELS, _CONVOLUTIONS, strict=True):
            for _ in range(count):
                layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU(inplace=True)]
                channels = width
            taps.append(len(layers) - 1)
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers[:-1])
        self._taps = taps

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        """Five tensors `(B, CHANNELS[i], H / 2^i, W / 2^i)`."""
        outputs = []
        for number, layer in enumerate(self.features):
            images = layer(images)
            if number in self._taps:
                outputs.append(images)
        return outputs


def find_vgg16(
    path: str | Path | None = None, repo_id: str = REPO_ID, filename: str = FILENAME, revision: str | None = REVISION
) -> Path:
    """File with VGG16's weights: `path`, else the file that the variable PQDIFF_VGG16 names, else a download from the Hub.

    Raises:
        FileNotFoundError: if the file does not exist and cannot be downloaded. The message names the file, its hash and
            where to put it.
    """
    for source, value in (("path", path), (ENVIRONMENT_VARIABLE, os.environ.get(ENVIRONMENT_VARIABLE))):
        if value:
            if not Path(value).is_file():
                raise FileNotFoundError(f"{source} ({value}) is not a file; it must be {_what_to_give()}")
            return Path(value)
    try:
        return Path(hf_hub_download(repo_id, filename, revision=revision))
    except _NO_DOWNLOAD as error:
        reason = " ".join(str(error).split())[:200]
        raise FileNotFoundError(
            f"VGG16's weights could not be downloaded from {repo_id}/{filename} on the Hub ({reason}). Get "
            f"{_what_to_give()}, put it anywhere, and set {ENVIRONMENT_VARIABLE} to its path; or train with a perceptual "
            "weight of 0"
        ) from error


def load_vgg16(path: str | Path, sha256: str | None = None) -> tuple[VGG16Features, str]:
    """The network, frozen and in eval mode, from a `.safetensors` or PyTorch file. Its SHA-256 is checked first.

    Args:
        path: file with tensors `features.N.weight` and `features.N.bias`. Its other tensors are ignored.
        sha256: beginning (at least 8 hex digits) of the SHA-256 of the file. Default: the file must be one of
            `KNOWN_FILES`.

    Returns:
        The network and the whole SHA-256.

    Raises:
        ValueError: if `sha256` is too short, the file has another one, or the file does not hold these tensors.
    """
    path = Path(path)
    if sha256 is not None and len(sha256) < 8:
        raise ValueError(f"sha256 ({sha256}) must have at least 8 hex digits")
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else _digest(file)
    if not (digest in KNOWN_FILES if sha256 is None else digest.startswith(sha256.lower())):
        expected = sha256 or f"that of {_what_to_give()}, or be given as sha256"
        raise ValueError(f"the SHA-256 of {path} begins with {digest[:16]}, but must be {expected}")
    network = VGG16Features()
    try:
        tensors = _read(path)
        network.load_state_dict({name: tensors[name].float() for name in network.state_dict()})
    except _UNREADABLE as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{path} does not hold VGG16's weights: {type(error).__name__} {reason}") from None
    return network.eval().requires_grad_(False), digest


def _read(path: Path) -> dict[str, torch.Tensor]:
    """Tensors of the convolutions. The classifier, nine tenths of the published files, is not read."""
    if path.suffix == ".safetensors":
        with safe_open(path, "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys() if name.startswith("features.")}  # noqa: SIM118
    return torch.load(path, map_location="cpu", weights_only=True)


def _digest(file) -> str:
    """`hashlib.file_digest`, which Python 3.10 does not have."""
    digest = hashlib.sha256()
    while block := file.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()


def _what_to_give() -> str:
    files = [f"{name} (SHA-256 {digest[:16]}...)" for digest, name in KNOWN_FILES.items()]
    return "torchvision's ImageNet weights of VGG16: " + " or ".join(files)
