"""Search in one large table: VQ's, VQGAN-LC's 100,000 codewords, and Gaussian Quant's 65,536, against what others do.

    python -m benchmarks.table_search --output benchmarks/results/table_search.json

One thread, 1,024 positions, calls take turns in one run; times are medians of processor time, memory is the peak of tensors
beyond what was there, and what the native search takes beside them. `cdist` is torch.cdist and argmin, `VectorQuantize` is
vector-quantize-pytorch in eval mode with the same codewords. From 24 dimensions on the native search compares integers
first (`quantizers/search/wide.h`). Gaussian Quant's published torch path is written after its paper: positions in eight
parts, and for each part a tensor of positions x codewords x channels.
"""

import argparse
import json
from pathlib import Path

import torch

from benchmarks.machine import describe_machine
from benchmarks.memory import peak_tensor_bytes
from benchmarks.quantizer_peers import MissingPeer, vector_quantize, versions
from benchmarks.timing import interleaved_times, summary
from pqdiff.quantizers.gaussian import sobol_codebook
from pqdiff.quantizers.search import backends, native
from pqdiff.quantizers.search.gaussian import likeliest_codewords
from pqdiff.quantizers.search.nearest import nearest_codewords

POSITIONS = 1024
# name: codebook_size, dimension
TABLES = {
    "VQ, K 1024, d 256": (1024, 256),
    "VQ, K 16384, d 8": (16384, 8),
    "VQ, K 16384, d 32": (16384, 32),
    "VQ, K 16384, d 256": (16384, 256),
    "LC, K 100000, d 4": (100_000, 4),
    "LC, K 100000, d 8": (100_000, 8),
}
GAUSSIAN = "GQ, K 65536, m 16"


def table_calls(codebook_size: int, dim: int) -> dict:
    """Functions that find 1,024 codewords, ours and others', on the same numbers."""
    generator = torch.Generator().manual_seed(0)
    codewords = torch.randn(1, codebook_size, dim, generator=generator)
    z = torch.randn(1, dim, 32, 32, generator=generator)
    rows = z.flatten(2)[0].T.contiguous()
    calls = {
        "ours": lambda: nearest_codewords(z.flatten(2)[:, None], codewords).flatten(),
        "cdist": lambda: torch.cdist(rows, codewords[0]).argmin(dim=1),
    }
    try:
        layer = vector_quantize(codewords)[1].eval()
        calls["VectorQuantize"] = lambda: layer(z)[1].flatten()
    except MissingPeer as error:
        print(f"VectorQuantize is left out: {error}")
    return calls


def native_bytes(codebook_size: int, dim: int) -> int:
    """What the native search takes beside tensors; 0 if it is not the one that serves the CPU."""
    if backends.backend_name(torch.device("cpu")) != "native":
        return 0
    return native.scratch_bytes(torch.empty(1, 1, dim, POSITIONS), torch.empty(1, codebook_size, dim, device="meta"))


def gaussian_calls(codebook_size: int = 65536, dim: int = 16) -> dict:
    """Gaussian Quant's scorer, ours and as published."""
    generator = torch.Generator().manual_seed(0)
    codewords = sobol_codebook(codebook_size, dim)
    mean = 0.9 * torch.randn(POSITIONS, dim, generator=generator)
    log_variance = torch.full_like(mean, -2.0)

    def published():
        found = []
        for m, v in zip(mean.chunk(8), log_variance.exp().chunk(8), strict=True):
            likelihood = -((codewords[None] - m[:, None]) ** 2) / (2 * v[:, None])  # (rows, K, dim)
            found.append((likelihood + codewords[None] ** 2 / 2).sum(dim=2).argmax(dim=1))
        return torch.cat(found)

    as_groups = [x.T[None, None].contiguous() for x in (mean, log_variance)]
    return {"ours": lambda: likeliest_codewords(*as_groups, codewords, 1.0).flatten(), "published": published}


@torch.no_grad()
def measure(calls: dict, rounds: int, beside: dict) -> dict:
    """Milliseconds and megabytes of every call, how many times faster ours is, and how many answers are the same.

    `beside` holds bytes that are not tensors.
    """
    answers = {name: call() for name, call in calls.items()}
    times = summary(interleaved_times(calls, rounds, clock="processor"))
    memory = {name: (peak_tensor_bytes(call) + beside.get(name, 0)) / 1e6 for name, call in calls.items()}
    others = [name for name in calls if name != "ours"]
    return {
        "milliseconds": {name: round(times[name]["median"], 2) for name in calls},
        "megabytes": {name: round(value, 3) for name, value in memory.items()},
        "times_faster": {name: round(times[name]["median"] / times["ours"]["median"], 2) for name in others},
        "of_the_memory": {name: round(memory["ours"] / memory[name], 4) for name in others},
        "same_answers": {name: round((answers["ours"] == answers[name]).double().mean().item(), 5) for name in others},
    }


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="default: 5")
    parser.add_argument("--output", type=Path, help="file for the results as JSON")
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    tables = {
        name: measure(table_calls(*shape), args.rounds, {"ours": native_bytes(*shape)})
        for name, shape in TABLES.items()
    }
    tables[GAUSSIAN] = measure(gaussian_calls(), max(1, args.rounds // 2), {})
    for name, result in tables.items():
        print(f"{name:20} {result}")
    if args.output:
        document = {"machine": describe_machine(), "packages": versions(), "tables": tables}
        args.output.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
