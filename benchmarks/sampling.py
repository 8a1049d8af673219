"""One picture of a row of table 3, from tokens to pixels, with the time and memory of its parts."""

import gc
import statistics
import time
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.sd21 import Row, Size, build_autoencoder, build_scheduler, build_text_encoder, build_unet

PARTS = ("text_encoder", "unet", "decoder")
GUIDANCE = 7.5
# Whatever fused attention fits; without the unfused fallback, whose matrices are gigabytes.
FUSED_ATTENTION = [SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION, SDPBackend.EFFICIENT_ATTENTION]


@dataclass
class Components:
    """The networks of one row and the shapes of what they see; guidance makes the batch two."""

    text_encoder: nn.Module
    unet: nn.Module
    autoencoder: nn.Module
    latent_shape: tuple[int, ...]  # (1, channels, side, side)

    @classmethod
    def build(cls, row: Row, size: Size, dtype: torch.dtype, device: str, shared: dict | None = None) -> "Components":
        """Random weights, networks in channels-last layout. Rows given the same dict `shared` share equal networks."""
        shared = {} if shared is None else shared
        text, unet, autoencoder = "text", ("unet", row.latent_channels), ("autoencoder", row.preset)
        if text not in shared:
            shared[text] = build_text_encoder(size, dtype, device)
        if unet not in shared:
            shared[unet] = build_unet(size, row.latent_channels, dtype, device).to(memory_format=torch.channels_last)
        if autoencoder not in shared:
            shared[autoencoder] = build_autoencoder(size, row.preset, dtype, device)
            shared[autoencoder].to(memory_format=torch.channels_last)
        side = row.side // size.side_divisor
        return cls(shared[text], shared[unet], shared[autoencoder], (1, row.latent_channels, side, side))

    def compile(self) -> None:
        """Compile UNet and decoder in place."""
        self.unet.compile(mode="max-autotune", fullgraph=True)
        self.autoencoder.transform.decoder.compile(mode="max-autotune", fullgraph=True)

    def encode_text(self) -> torch.Tensor:
        """Embeddings `(2, 77, width)` of the empty and of the actual prompt; their words do not matter here."""
        tokens = torch.zeros(2, 77, dtype=torch.int64, device=self.unet.device)
        return self.text_encoder(tokens).last_hidden_state

    def predict(self, latents: torch.Tensor, timestep: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        """One guided prediction, `(1, C, h, w)` like the latents: one UNet call with a batch of two."""
        pair = torch.cat([latents] * 2).to(memory_format=torch.channels_last)
        without, with_prompt = self.unet(pair, timestep, text).sample.chunk(2)
        return without + GUIDANCE * (with_prompt - without)

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Pixels `(1, 3, F h, F w)`, in one piece; product-quantized latents are snapped to codewords first."""
        return self.autoencoder.decode(latents / self.autoencoder.config.scaling_factor).sample

    def noise(self) -> torch.Tensor:
        return torch.randn(self.latent_shape, device=self.unet.device, dtype=self.unet.dtype)


class Stopwatch:
    """Seconds between marks: CUDA events on a GPU, where the host runs ahead, else the host's clock."""

    def __init__(self, device: str):
        self.on_gpu = device.startswith("cuda")
        self.marks = []

    def mark(self) -> None:
        if self.on_gpu:
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self.marks.append(event)
        else:
            self.marks.append(time.perf_counter())

    def seconds(self) -> list[float]:
        """One number per pair of successive marks."""
        pairs = list(zip(self.marks, self.marks[1:], strict=False))
        if not self.on_gpu:
            return [stop - start for start, stop in pairs]
        torch.cuda.synchronize()
        return [start.elapsed_time(stop) / 1e3 for start, stop in pairs]  # events count milliseconds


@torch.no_grad()
def sample(components: Components, steps: int, device: str) -> tuple[torch.Tensor, dict[str, float]]:
    """One picture `(1, 3, H, W)` and the seconds of each of `PARTS`; the scheduler's steps count as UNet."""
    scheduler = build_scheduler()
    scheduler.set_timesteps(steps)
    timesteps = scheduler.timesteps.to(device)
    latents = components.noise()
    watch = Stopwatch(device)
    watch.mark()
    text = components.encode_text()
    watch.mark()
    with sdpa_kernel(FUSED_ATTENTION):
        # The scheduler looks its constants up on the host: with a number there is no wait for the GPU in every step.
        for number, timestep in zip(scheduler.timesteps.tolist(), timesteps, strict=True):
            torch.compiler.cudagraph_mark_step_begin()
            prediction = components.predict(latents, timestep, text)
            latents = scheduler.step(prediction, number, latents).prev_sample
        watch.mark()
        image = components.decode(latents)
    watch.mark()
    return image, dict(zip(PARTS, watch.seconds(), strict=True))


def measure_row(
    row: Row, size: Size, dtype: torch.dtype, device: str, steps: int, samples: int, compiled: bool
) -> dict[str, float | dict]:
    """Medians over `samples` pictures after warming up, and on a GPU the peak memory of one of them, weights included.

    A compiled run replays CUDA graphs, whose memory counts as reserved but not always as allocated: both are reported.
    """
    components = Components.build(row, size, dtype, device)
    if compiled:
        components.compile()
    for _ in range(3):  # compiles, records, replays
        sample(components, min(steps, 3), device)
    on_gpu = device.startswith("cuda")
    if on_gpu:
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    times = [sample(components, steps, device)[1] for _ in range(samples)]
    parts = {part: statistics.median(each[part] for each in times) for part in PARTS}
    total = statistics.median(sum(each.values()) for each in times)
    result = {"samples_per_second": 1 / total, "seconds": {**parts, "sample": total}}
    if on_gpu:
        result["peak_allocated_gigabytes"] = torch.cuda.max_memory_allocated() / 1e9
        result["peak_reserved_gigabytes"] = torch.cuda.max_memory_reserved() / 1e9
    return result


def free_memory(device: str) -> None:
    """Give back what the previous row used, so that the next row's peak is its own."""
    gc.collect()
    if device.startswith("cuda"):
        torch.compiler.reset()
        torch.cuda.empty_cache()


def flash_attention_works(device: str, dtype: torch.dtype) -> bool:
    """Whether torch has flash attention for the UNet's heads on this device."""
    query = torch.zeros(1, 1, 64, 64, device=device, dtype=dtype)
    try:
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            torch.nn.functional.scaled_dot_product_attention(query, query, query)
    except RuntimeError:
        return False
    return True
