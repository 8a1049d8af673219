"""Which search serves which device. All give the same answer, so the choice is only about speed.

Automatic: on CUDA the Triton kernel, on a CPU the native search if it is built or can be built, else plain torch.
`PQDIFF_SEARCH=plain|compiled|native|triton` in the environment or `use_backend(name)` force one for the whole process;
devices that the forced one cannot serve keep the automatic choice.
"""

import contextlib
import functools
import logging
import os
from collections.abc import Iterator
from types import ModuleType

import torch

from . import search_compiled, search_native, search_plain

logger = logging.getLogger(__name__)

ENVIRONMENT_VARIABLE = "PQDIFF_SEARCH"
BACKENDS = ("plain", "compiled", "native", "triton")
_forced: str | None = None  # by use_backend


@contextlib.contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Force one search backend for the whole process while the context lasts.

    Raises:
        ValueError: if there is no backend of that name.
        RuntimeError: if it cannot be used on this machine (with the reason).
    """
    global _forced
    _check_name(name, "name")
    reason = why_not(name)
    if reason:
        raise RuntimeError(f"search backend {name!r} cannot be used: {reason}")
    before, _forced = _forced, name
    try:
        yield
    finally:
        _forced = before


def why_not(name: str) -> str | None:
    """None if the backend can be used on this machine, else the reason. Asking for `native` builds it."""
    if name == "triton":
        return None if _triton() else "needs a CUDA GPU and the Triton package"
    return {"plain": search_plain, "compiled": search_compiled, "native": search_native}[name].why_not()


def describe() -> list[dict]:
    """Every backend with its `name`, whether it is `available`, the `reason` if not, and `serves`: the chosen devices.

    Asking builds the native search, as its first use would.
    """
    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    chosen = {device: backend_name(torch.device(device)) for device in devices}
    rows = []
    for name in BACKENDS:
        reason = why_not(name)
        serves = [device for device in devices if chosen[device] == name]
        rows.append({"name": name, "available": reason is None, "reason": reason, "serves": serves})
    return rows


def backend_name(device: torch.device) -> str:
    """Name of the search that serves tensors on `device`.

    Raises:
        ValueError: if `PQDIFF_SEARCH` names no backend.
    """
    forced = forced_backend()
    if forced and _serves(forced, device):
        return forced
    automatic = {"cpu": "native", "cuda": "triton"}.get(device.type, "plain")
    return automatic if _serves(automatic, device) else "plain"


def backend(device: torch.device) -> ModuleType:
    """The search that serves tensors on `device`: a module with `nearest` and `quantize`."""
    name = backend_name(device)
    if name == "triton":
        return _triton()
    return {"plain": search_plain, "compiled": search_compiled, "native": search_native}[name]


def forced_backend() -> str | None:
    """Name of the backend that `use_backend` or the environment demands, usable or not."""
    if _forced:
        return _forced
    name = os.environ.get(ENVIRONMENT_VARIABLE)
    if name:
        _check_name(name, ENVIRONMENT_VARIABLE)
    return name or None


def _serves(name: str, device: torch.device) -> bool:
    devices = {"native": ("cpu",), "triton": ("cuda", "cpu"), "compiled": ("cpu", "cuda")}.get(name)
    if devices and device.type not in devices:
        return False
    if name == "triton" and device.type == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
        return False
    reason = why_not(name)
    if reason:
        _report(name, reason, name == forced_backend())
    return not reason


@functools.cache  # one line per process
def _report(name: str, reason: str, is_forced: bool) -> None:
    # Nothing is wrong with a machine without a compiler or a GPU, unless the user asked for them.
    usual = not is_forced and (name == "triton" or reason.startswith("no C++ compiler"))
    logger.log(logging.INFO if usual else logging.WARNING, "Search backend %s cannot be used: %s.", name, reason)


@functools.cache
def _triton() -> ModuleType | None:
    """The Triton search if it can be used; imported only here, because importing Triton takes seconds."""
    if not torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET") != "1":
        return None
    try:
        from . import search_triton
    except ImportError:
        return None
    return search_triton if search_triton.is_available() else None


def _check_name(name: str, argument: str) -> None:
    if name not in BACKENDS:
        raise ValueError(f"{argument} ({name!r}) must be one of {', '.join(BACKENDS)}")
