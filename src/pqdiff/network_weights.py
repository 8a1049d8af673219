"""Files with the weights of public networks: where they are looked for, and whether they are the right ones.

A measure made with other weights is another measure, so a file is used only if its SHA-256 is known or given.
"""

import hashlib
import os
import pickle
from collections.abc import Iterable
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

import torch
from huggingface_hub import constants, hf_hub_download
from huggingface_hub.errors import HfHubHTTPError
from safetensors import SafetensorError
from safetensors.torch import safe_open
from torch import nn

# huggingface_hub uses requests, httpx or httpx2, depending on its version.
# torch.hub raises RuntimeError for a file with another hash.
_NO_DOWNLOAD = (OSError, RuntimeError, HfHubHTTPError, HfHubHTTPError.__bases__[0])
_UNREADABLE = (
    SafetensorError,
    pickle.UnpicklingError,
    RuntimeError,
    LookupError,
    TypeError,
    AttributeError,
    EOFError,
)


class MissingWeights(FileNotFoundError):
    """Nobody gave a file of weights, and none can be had. The message says which file, and where to put it."""


@dataclass(frozen=True)
class WeightsFile:
    """A published file of weights.

    Attributes:
        title: whose weights they are.
        variable: environment variable that may hold the path of the file.
        known: SHA-256, or its first 8 or more digits, of every file that will do, and the name of the file.
        repo_id: Hub repository to download from, or None.
        filename: file in the repository.
        revision: commit or branch of the repository.
        url: address to download from, if there is no repository. The file must be the first in `known`.
        package: name of an installable package, and the file in it, instead of a download.
        instead: what to do without the weights, for the message.
    """

    title: str
    variable: str
    known: dict[str, str] = field(hash=False)
    repo_id: str | None = None
    filename: str | None = None
    revision: str | None = None
    url: str | None = None
    package: tuple[str, str] | None = None
    instead: str | None = None

    def find(self, path: str | Path | None = None, download: bool = True) -> Path:
        """The file: `path`, else the file that the environment variable names, else a download.

        With `download` False the network is not used, but what was downloaded before is.

        Raises:
            FileNotFoundError: if `path` or the variable does not name a file; or `MissingWeights`, if there is neither and
                the file cannot be downloaded.
        """
        for source, value in (("path", path), (self.variable, os.environ.get(self.variable))):
            if value:
                if not Path(value).is_file():
                    raise FileNotFoundError(f"{source} ({value}) is not a file; it must be {self.what_to_give()}")
                return Path(value)
        try:
            return self._download(local=not download or constants.HF_HUB_OFFLINE)
        except _NO_DOWNLOAD as error:
            reason = " ".join(str(error).split())[:200]
        ways = f"set {self.variable} to it" + (", or allow downloads" if self.repo_id or self.url else "")
        raise MissingWeights(
            f"{self.title} are missing: {reason}. Get {self.what_to_give()}, put it anywhere, and give its path, {ways}"
            + (f"; or {self.instead}" if self.instead else "")
        )

    def load_into(self, network: nn.Module, path: str | Path | None = None, sha256: str | None = None) -> str:
        """Fill a network from the file, freeze it, and put it in eval mode. The file's SHA-256 is checked first.

        Args:
            network: its tensors are looked up by their names; those that the file has besides are ignored.
            path: file, `.safetensors` or of PyTorch. Default: see `find`.
            sha256: beginning (at least 8 hex digits) of the SHA-256 of the file. Default: one of `known`.

        Returns:
            The whole SHA-256.

        Raises:
            FileNotFoundError: see `find`.
            ValueError: if `sha256` is too short, the file has another one, or the file does not hold the tensors.
        """
        if sha256 is not None and len(sha256) < 8:
            raise ValueError(f"sha256 ({sha256}) must have at least 8 hex digits")
        path = self.find(path)
        digest = _sha256(path)
        if not digest.startswith(tuple(self.known) if sha256 is None else sha256.lower()):
            expected = sha256 or f"that of {self.what_to_give()}, or be given as sha256"
            raise ValueError(f"the SHA-256 of {path} begins with {digest[:16]}, but must be {expected}")
        # Old files do not have these counters, which no network uses outside training.
        names = [name for name in network.state_dict() if not name.endswith("num_batches_tracked")]
        try:
            tensors = {name: tensor.float() for name, tensor in _read(path, names).items()}
            network.load_state_dict(tensors, strict=False)
        except _UNREADABLE as error:
            reason = " ".join(str(error).split())[:200]
            raise ValueError(f"{path} does not hold {self.title}: {type(error).__name__} {reason}") from None
        network.eval().requires_grad_(False)
        return digest

    def what_to_give(self) -> str:
        """The files that will do, with their SHA-256."""
        return " or ".join(f"{name} (SHA-256 {digest[:16]}...)" for digest, name in self.known.items())

    def _download(self, local: bool) -> Path:
        if self.package:
            name, inside = self.package
            found = find_spec(name)
            if found is None:
                raise OSError(f"the package {name.replace('_', '-')} is not installed (pqdiff[eval] brings it)")
            return Path(found.origin).parent / inside
        if self.repo_id:
            return Path(hf_hub_download(self.repo_id, self.filename, revision=self.revision, local_files_only=local))
        digest, name = next(iter(self.known.items()))
        path = Path(torch.hub.get_dir(), "checkpoints", name)
        if path.is_file():
            return path
        if local or not self.url:
            raise OSError("there is no download" if not self.url else f"{path} does not exist and downloads are off")
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(self.url, str(path), hash_prefix=digest, progress=False)
        return path


def _read(path: Path, names: Iterable[str]) -> dict[str, torch.Tensor]:
    """These tensors of a file. The others, nine tenths of some published files, are not read."""
    if path.suffix == ".safetensors":
        with safe_open(path, "pt") as file:
            return {name: file.get_tensor(name) for name in names}
    tensors = torch.load(path, map_location="cpu", weights_only=True)
    return {name: tensors[name] for name in names}


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()  # `hashlib.file_digest` is not in Python 3.10
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
