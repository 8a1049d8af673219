"""The quantizer's share of an autoencoder's forward pass: its time alone beside that of the networks alone."""

import contextlib
import functools
import statistics
from collections.abc import Callable, Collection

import torch

from benchmarks.quantizer_contenders import LOOP, OURS, Config, build
from benchmarks.timing import interleaved_times
from pqdiff import AutoencoderPQ

PRESET = "f8-d128-s64-k512"
SIDE = 256  # pixels
MODES = ("eager", "compiled", "cuda_graph")
_SMALL = {"transform_config": {"block_out_channels": (32,) * 4, "mid_channels": 32}}
_LAUNCHES = ("cudaLaunch", "cuLaunch", "cudaMemsetAsync", "cudaMemcpyAsync", "cudaGraphLaunch")


def build_autoencoder(small: bool, device: str = "cpu", dtype: torch.dtype = torch.float32) -> AutoencoderPQ:
    """The paper's F8 autoencoder with random weights; `small`, with narrow networks, is for trying commands out."""
    torch.manual_seed(0)
    autoencoder = AutoencoderPQ.from_preset(PRESET, **(_SMALL if small else {})).to(device).eval()
    return autoencoder if dtype == torch.float32 else autoencoder.to(dtype)  # codewords stay in fp32


def networks(autoencoder: AutoencoderPQ, images: torch.Tensor) -> torch.Tensor:
    """The forward pass without its quantizer: images `(B, 3, H, W)` to latents and straight back."""
    return autoencoder.transform.synthesis(autoencoder.transform.analysis(images))


@torch.no_grad()
def on_cpu(small: bool, rounds: int, seconds: float, names: Collection[str] = OURS, clock: str = "wall") -> dict:
    """Milliseconds and shares at batch 1 in fp32, on the latents that the encoder really gives."""
    autoencoder = build_autoencoder(small)
    images = torch.rand(1, 3, SIDE, SIDE) * 2 - 1
    latents = autoencoder.transform.analysis(images).contiguous()
    config = Config(128, 64, 512, latents.shape[-1])
    contenders, left_out = build(config, names=[name for name in names if name in OURS])
    calls = {name: functools.partial(contender.layer.eval(), latents) for name, contender in contenders.items()}
    contexts = {name: contender.context for name, contender in contenders.items()}
    quantizers = interleaved_times(calls, rounds, seconds, contexts=contexts, clock=clock)
    whole = interleaved_times(
        {"networks": functools.partial(networks, autoencoder, images)}, min(3, rounds), clock=clock
    )
    return {
        "networks_of": "small, to try the command" if small else f"the paper's {PRESET}, {SIDE} px, batch 1, fp32",
        **_shares(statistics.median(whole["networks"]), quantizers),
        "left_out": left_out,
    }


@torch.no_grad()
def on_gpu(small: bool, rounds: int, batch: int) -> dict[str, dict]:
    """By mode: shares in bf16 and launches per call. What a mode cannot do is left out with its reason."""
    device, results = "cuda", {}
    autoencoder = build_autoencoder(small, device, torch.bfloat16)
    images = (torch.rand(batch, 3, SIDE, SIDE, device=device) * 2 - 1).bfloat16()
    latents = autoencoder.transform.analysis(images).contiguous()
    names = [name for name in OURS if name != "compiled"]  # modes compile where they should
    contenders, _ = build(Config(128, 64, 512, latents.shape[-1]), device, names)
    launches = {}
    for mode in MODES:
        calls, contexts, left_out = {}, {}, {}
        for name, contender in contenders.items():
            if mode == "compiled" and name == LOOP:
                left_out[name] = "compiling a graph of 64 searches takes minutes"
                continue
            contexts[name] = contender.context
            with contender.context():
                try:
                    calls[name] = in_mode(mode, contender.layer.eval(), latents)
                except RuntimeError as error:  # a call that cannot be captured
                    left_out[name] = " ".join(str(error).split())[:200]
                else:
                    launches.setdefault(name, {})[mode] = count_launches(calls[name])
        timing = {"seconds": 3.0, "most_rounds": 200, "device": device}
        quantizers = interleaved_times(calls, rounds, contexts=contexts, repeats=20, **timing)
        whole = {"networks": in_mode(mode, functools.partial(networks, autoencoder), images)}
        networks_seconds = statistics.median(interleaved_times(whole, rounds, **timing)["networks"])
        results[mode] = {**_shares(networks_seconds, quantizers), "left_out": left_out}
        torch.compiler.reset()
    return {"networks_of": f"the paper's {PRESET}, {SIDE} px, batch {batch}, bf16", "launches": launches, **results}


def in_mode(mode: str, function: Callable, z: torch.Tensor) -> Callable[[], object]:
    """`function` of z as a call without arguments: as it is, compiled, or recorded in a CUDA graph; warmed up."""
    if mode == "compiled":
        function = torch.compile(function, dynamic=False)
    if mode != "cuda_graph":
        function(z)
        return lambda: function(z)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            function(z)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kept = function(z)  # the graph writes its results there

    def replay() -> object:
        graph.replay()
        return kept

    return replay


def count_launches(call: Callable[[], object]) -> int:
    """Kernels, copies and graphs that one call hands to the GPU."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as profile:
        call()
        with contextlib.suppress(AssertionError):  # torch without CUDA
            torch.cuda.synchronize()
    return sum(event.name().startswith(_LAUNCHES) for event in profile.profiler.kineto_results.events())


def _shares(networks_seconds: float, quantizers: dict[str, list[float]]) -> dict:
    medians = {name: statistics.median(times) for name, times in quantizers.items()}
    return {
        "networks_milliseconds": round(networks_seconds * 1e3, 3),
        "quantizer_milliseconds": {name: round(value * 1e3, 4) for name, value in medians.items()},
        "share": {name: round(value / (networks_seconds + value), 6) for name, value in medians.items()},
    }
