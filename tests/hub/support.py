"""Processes and settings that talk to the stand-in for the Hub."""

import os
import subprocess
import sys
from pathlib import Path

import huggingface_hub
import pytest
import torch

from pqdiff.hub.push import push_folder
from tests.processes import HANGS

TOKENS = {"token of user": "user", "token of another": "another"}


def connect(patch: pytest.MonkeyPatch, address: str, token: str | None, home: Path) -> None:
    """Let `huggingface_hub` in this process talk to `address`, as the owner of `token` or as nobody.

    Large files go by LFS: the stand-in does not speak the protocol of hf_xet.
    """
    for name, value in {"ENDPOINT": address, "HF_HUB_OFFLINE": False, "HF_HUB_DISABLE_XET": True}.items():
        patch.setattr(huggingface_hub.constants, name, value)
    patch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(home / "token"))
    patch.setenv("NO_PROXY", "127.0.0.1")
    patch.delenv("HUGGING_FACE_HUB_TOKEN", raising=False)
    if token is None:
        patch.delenv("HF_TOKEN", raising=False)
    else:
        patch.setenv("HF_TOKEN", token)


def run_in_fresh_process(script: str, endpoint: str, folder: Path) -> dict:
    """What `script` saves to its first argument, run in `folder` against the Hub at `endpoint` with an empty cache."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGINGFACE_"))}
    environment |= {
        "HF_ENDPOINT": endpoint,
        "HF_HOME": str(folder / "cache"),
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "NO_PROXY": "127.0.0.1",
        "OMP_NUM_THREADS": str(torch.get_num_threads()),
    }
    command = [sys.executable, "-c", script, str(folder / "facts.pt")]
    process = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=HANGS)
    assert process.returncode == 0, process.stderr
    return torch.load(folder / "facts.pt")


def tree(folder: Path) -> dict[str, bytes]:
    """All files below a folder."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def refusal(kind: type[Exception], folder: Path, repo_id: str = "user/pipe", **options) -> str:
    """Message of the error of a push, which must be one line."""
    with pytest.raises(kind) as error:
        push_folder(folder, repo_id, **options)
    assert "\n" not in str(error.value)
    return str(error.value)
