"""Product quantizers of other libraries, with given codewords: vector-quantize-pytorch and faiss.

Neither is needed: who lacks one gets its reason instead (`pip install pqdiff[benchmarks]`).
"""

from collections.abc import Callable
from importlib import metadata
from typing import NamedTuple

import torch
from torch import nn


class MissingPeer(Exception):
    """A library is not there or cannot do what is asked; the message is one line that says why."""


class Peer(NamedTuple):
    """How to build a peer's quantizer of codebooks `(S, K, D)`.

    Attributes:
        build: gives `(codes, layer)` as `quantizer_contenders.Contender` has them.
        package: distribution it comes from.
        frugal: whether its memory stays small however many distances there are.
    """

    build: Callable[[torch.Tensor], tuple]
    package: str
    frugal: bool


class _OnRows(nn.Module):
    """A layer of vector-quantize-pytorch for `(B, N, d)`, for latents `(B, d, H, W)`: gives `(z_q, indices, loss)`.

    The library's own way for images, `accept_image_fmap`, fails in its residual quantizers.
    """

    def __init__(self, layer: nn.Module):
        super().__init__()
        self.layer = layer

    def forward(self, z: torch.Tensor):
        z_q, indices, loss = self.layer(z.flatten(2).transpose(1, 2))[:3]
        return z_q.transpose(1, 2).unflatten(2, z.shape[2:]), indices, loss


def vector_quantize(codebooks: torch.Tensor):
    """`VectorQuantize` with a head per subspace; codewords learn by gradient, as ours do."""
    package = _import("vector_quantize_pytorch", "vector-quantize-pytorch")
    num_subspaces, codebook_size, dim = codebooks.shape
    layer = package.VectorQuantize(
        dim=num_subspaces * dim,
        codebook_size=codebook_size,
        codebook_dim=dim,
        heads=num_subspaces,
        separate_codebook_per_head=True,
        learnable_codebook=True,
        rotation_trick=False,
        ema_update=False,
    )
    layer._codebook.embed.data.copy_(codebooks)
    return None, _OnRows(layer.to(codebooks.device))


def grouped_residual_vq(codebooks: torch.Tensor):
    """`GroupedResidualVQ` with a group per subspace and one quantizer in each."""
    package = _import("vector_quantize_pytorch", "vector-quantize-pytorch")
    num_subspaces, codebook_size, dim = codebooks.shape
    layer = package.GroupedResidualVQ(
        dim=num_subspaces * dim,
        codebook_size=codebook_size,
        groups=num_subspaces,
        num_quantizers=1,
        learnable_codebook=True,
        rotation_trick=False,
        ema_update=False,
    )
    for group, codebook in zip(layer.rvqs, codebooks, strict=True):
        group.layers[0]._codebook.embed.data.copy_(codebook[None])
    return None, _OnRows(layer.to(codebooks.device))


def faiss_product_quantizer(codebooks: torch.Tensor):
    """`ProductQuantizer.compute_codes`: rows of latents to packed bits, on the CPU only, without gradients."""
    package = _import("faiss", "faiss-cpu")
    num_subspaces, codebook_size, dim = codebooks.shape
    bits = codebook_size.bit_length() - 1
    if 2**bits != codebook_size:
        raise MissingPeer(f"faiss needs a power of two of codewords, not {codebook_size}")
    if codebooks.device.type != "cpu":
        raise MissingPeer("faiss-cpu searches on the CPU")
    quantizer = package.ProductQuantizer(num_subspaces * dim, num_subspaces, bits)
    package.copy_array_to_vector(codebooks.flatten().numpy(), quantizer.centroids)

    def codes(z: torch.Tensor):
        package.omp_set_num_threads(torch.get_num_threads())
        return quantizer.compute_codes(z.permute(0, 2, 3, 1).reshape(-1, z.shape[1]).numpy())

    return codes, None


PEERS = {
    "VectorQuantize": Peer(vector_quantize, "vector-quantize-pytorch", False),
    "GroupedResidualVQ": Peer(grouped_residual_vq, "vector-quantize-pytorch", False),
    "faiss": Peer(faiss_product_quantizer, "faiss-cpu", True),
}


def versions() -> dict[str, str | None]:
    """Version of every peer's distribution, None where it is missing."""
    found = {}
    for peer in PEERS.values():
        try:
            found[peer.package] = metadata.version(peer.package)
        except metadata.PackageNotFoundError:
            found[peer.package] = None
    return found


def _import(module: str, package: str):
    try:
        return __import__(module)
    except ImportError as error:
        raise MissingPeer(f"{package} cannot be imported ({error}): pip install 'pqdiff[benchmarks]'") from error
