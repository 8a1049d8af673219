"""Chooses the search that serves a device. All searches give the same answer, so the choice only changes the speed; of
classes that are equally good to seven digits they may take another (`native.classify`).

The automatic choice on a CPU is the native search if it is built or can be built, and plain torch everywhere else. Triton
is never chosen automatically, because its kernels have not run on a GPU yet. The environment variable
`PQDIFF_SEARCH=plain|compiled|native|triton` or `use_backend(name)` force one backend for the whole process. A device that
the forced backend cannot serve keeps the automatic choice.
"""

import contextlib
import functools
import logging
import os
from collections.abc import Iterator
from types import ModuleType

import torch

from pqdiff.quantizers.search import compiled as search_compiled
from pqdiff.quantizers.search import native as search_native
from pqdiff.quantizers.search import plain as search_plain
from pqdiff.quantizers.search import triton_search as search_triton
from pqdiff.suggestions import did_you_mean

logger = logging.getLogger(__name__)

ENVIRONMENT_VARIABLE = "PQDIFF_SEARCH"
_MODULES = {"plain": search_plain, "compiled": search_compiled, "native": search_native, "triton": search_triton}
BACKENDS = tuple(_MODULES)
_DEVICES = {"native": ("cpu",), "compiled": ("cpu", "cuda"), "triton": ("cpu", "cuda")}  # plain serves all
_forced: str | None = None  # set by use_backend


@contextlib.contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Force one search backend for the whole process until the context ends.

    Raises:
        ValueError: if there is no backend of that name.
        RuntimeError: if the backend cannot be used on this machine; the message gives the reason.
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
    return _MODULES[name].why_not()


def describe() -> list[dict]:
    """One dict for every backend: `name`, `available` (bool), `reason` (why it is not available, or None), and `serves`
    (the types of the devices that use it).

    This call builds the native search, as its first use would.
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
    automatic = "native" if device.type == "cpu" else "plain"
    return automatic if _serves(automatic, device) else "plain"


def backend(device: torch.device) -> ModuleType:
    """The search that serves tensors on `device`: a module with `nearest` and `quantize`."""
    return _MODULES[backend_name(device)]


def forced_backend() -> str | None:
    """Name of the backend that `use_backend` or the environment asks for, whether it can be used or not."""
    if _forced:
        return _forced
    name = os.environ.get(ENVIRONMENT_VARIABLE)
    if name:
        _check_name(name, ENVIRONMENT_VARIABLE)
    return name or None


def _serves(name: str, device: torch.device) -> bool:
    if device.type not in _DEVICES.get(name, (device.type,)):
        return False
    if name == "triton" and device.type == "cpu" and not search_triton.is_interpreted():
        return False
    reason = why_not(name)
    if reason:
        _report(name, reason, name == forced_backend())
    return not reason


@functools.cache  # one line per process
def _report(name: str, reason: str, is_forced: bool) -> None:
    # Many machines have no compiler. That deserves a warning only if the user asked for the native search.
    level = logging.INFO if not is_forced and reason.startswith("no C++ compiler") else logging.WARNING
    logger.log(level, "Search backend %s cannot be used: %s.", name, reason)


def _check_name(name: str, argument: str) -> None:
    if name not in BACKENDS:
        raise ValueError(f"{argument} ({name!r}) is not a search backend: {did_you_mean(name, BACKENDS)}")
