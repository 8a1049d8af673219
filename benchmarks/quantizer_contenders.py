"""What `quantizer_speed.py` compares: our quantizer with every search backend, the loop, and other libraries' quantizers.

All of one comparison hold the same codewords.
"""

import contextlib
import functools
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import nn

from benchmarks.per_subspace_loop import PerSubspaceLoop
from benchmarks.quantizer_peers import PEERS, MissingPeer
from pqdiff.quantizers import ProductQuantizer
from pqdiff.quantizers.search import backends
from pqdiff.quantizers.search.nearest import nearest_codewords

LOOP = "loop"
OURS = (LOOP, *backends.BACKENDS)
ALL = (*OURS, *PEERS)
_LOOP_LIMIT = 320e6  # distances: 1.3 GB of them in fp32, all kept
_PEER_LIMIT = 34e6  # some libraries hold several copies


class Config(NamedTuple):
    """Sizes of one comparison; latents are `(1, d, side, side)`."""

    d: int
    S: int
    K: int
    side: int

    @property
    def distances(self) -> int:
        return self.S * self.K * self.side**2


@dataclass(frozen=True)
class Contender:
    """A quantizer to be timed.

    Attributes:
        codes: latents to tokens, in whatever form; None if it has no way that does less than `layer`.
        layer: module that returns `(z_q, indices, loss)`; None if it only searches.
        context: what must surround its calls.
    """

    codes: Callable[[torch.Tensor], object] | None
    layer: nn.Module | None
    context: Callable[[], contextlib.AbstractContextManager] = contextlib.nullcontext


def build(
    config: Config, device: str = "cpu", names: Collection[str] = ALL
) -> tuple[dict[str, Contender], dict[str, str]]:
    """Those of the named contenders that can take part, and by name the reasons why the others cannot."""
    torch.manual_seed(0)
    quantizer = ProductQuantizer(config.d, config.S, config.K).to(device)
    codebooks = quantizer.codebooks.detach()
    contenders, left_out = {}, {}
    if LOOP in names and config.distances > _LOOP_LIMIT:
        left_out[LOOP] = f"{config.distances * 4e-9:.1f} GB of distances"
    elif LOOP in names:
        loop = PerSubspaceLoop(codebooks).to(device)
        contenders[LOOP] = Contender(loop.search, loop)
    for name in [name for name in backends.BACKENDS if name in names]:
        if reason := _unusable(name, device):
            left_out[name] = reason
        else:
            contenders[name] = Contender(
                functools.partial(_codes, quantizer), quantizer, functools.partial(backends.use_backend, name)
            )
    for name, peer in [(name, peer) for name, peer in PEERS.items() if name in names]:
        if not peer.frugal and config.distances > _PEER_LIMIT:
            left_out[name] = f"{config.distances * 4e-9:.1f} GB of distances, several times"
            continue
        try:
            contenders[name] = Contender(*peer.build(codebooks))
        except MissingPeer as error:
            left_out[name] = str(error)
    return contenders, left_out


def _unusable(name: str, device: str) -> str | None:
    """Why a backend cannot serve `device`, or None."""
    if reason := backends.why_not(name):
        return f"unproven: no GPU ({reason})" if name == "triton" and device == "cpu" else reason
    with backends.use_backend(name):
        served_by = backends.backend_name(torch.device(device))
    return None if served_by == name else f"does not serve {torch.device(device).type}"


def _codes(quantizer: ProductQuantizer, z: torch.Tensor) -> torch.Tensor:
    return nearest_codewords(z.reshape(len(z), quantizer.num_subspaces, -1, z[0, 0].numel()), quantizer.codebooks)


def search(contender: Contender, z: torch.Tensor) -> Callable[[], object] | None:
    """Latents to tokens; for a layer that cannot do less, the whole layer."""
    if contender.codes is None:
        return forward(contender, z)
    return torch.no_grad()(lambda: contender.codes(z))


def forward(contender: Contender, z: torch.Tensor) -> Callable[[], object] | None:
    """The layer, without gradients."""
    if contender.layer is None:
        return None
    contender.layer.eval()
    return torch.no_grad()(lambda: contender.layer(z))


def forward_backward(contender: Contender, z: torch.Tensor) -> Callable[[], object] | None:
    """The layer and its gradients, of latents and codewords."""
    if contender.layer is None:
        return None
    contender.layer.train()

    def call() -> None:
        output = contender.layer(z.detach().requires_grad_())
        (output[0].sum() + output[2].sum()).backward()

    return call


ACTIONS = {function.__name__: function for function in (search, forward, forward_backward)}
