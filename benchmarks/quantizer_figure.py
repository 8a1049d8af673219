"""Overhead of the quantizer against S, d and K (the questions of the PQGAN paper's figure 5), measured and drawn."""

from collections.abc import Collection
from pathlib import Path

import torch

from benchmarks.quantizer_contenders import LOOP, OURS, Config, build, forward
from benchmarks.timing import interleaved_times, summary

BASE = Config(128, 64, 512, 32)
_VALUES = {"S": (1, 4, 16, 32, 64, 128), "d": (64, 128, 256, 512), "K": (32, 128, 512, 2048)}
_QUICK_VALUES = {"S": (64, 128), "d": (64, 128), "K": (32, 64)}
_NAMES = tuple(name for name in OURS if name != "compiled")  # it would compile anew for every d / S
_TITLES = {"S": "subspaces S", "d": "latent channels d", "K": "codewords K of a subspace"}
_COLORS = {LOOP: "#b2182b", "plain": "#92c5de", "native": "#2166ac", "triton": "#1b7837"}


def sweep(
    base: Config, quick: bool, rounds: int, device: str = "cpu", names: Collection[str] = _NAMES, clock: str = "wall"
) -> dict:
    """Milliseconds of the layer's forward pass when one size changes at a time: `{size: [{value, milliseconds}]}`."""
    result = {"base": base._asdict()}
    for size, values in (_QUICK_VALUES if quick else _VALUES).items():
        result[size] = []
        for value in values:
            config = base._replace(**{size: value})
            contenders, _ = build(config, device, [name for name in names if name in _NAMES])
            z = torch.randn(1, config.d, config.side, config.side, device=device)
            times = interleaved_times(
                {name: forward(contender, z) for name, contender in contenders.items()},
                rounds,
                contexts={name: contender.context for name, contender in contenders.items()},
                repeats=1 if device == "cpu" else 20,
                device=device,
                clock=clock,
            )
            result[size].append({"value": value, "milliseconds": summary(times)})
    return result


def plot(points: dict, networks_milliseconds: float, path: Path, title: str) -> None:
    """Three panels of overhead in percent of the autoencoder's networks, on logarithmic axes."""
    from matplotlib.figure import Figure  # without pyplot: needs no display, leaves no state

    figure = Figure(figsize=(11, 3.6), layout="constrained")
    panels = figure.subplots(1, 3, sharey=True)
    for axes, size in zip(panels, _TITLES, strict=True):
        rows = points[size]
        for name in rows[0]["milliseconds"]:
            overheads = [100 * row["milliseconds"][name]["median"] / networks_milliseconds for row in rows]
            label = "loop over subspaces" if name == LOOP else f"pqdiff, {name}"
            axes.plot([row["value"] for row in rows], overheads, "o-", color=_COLORS.get(name), label=label)
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_xlabel(_TITLES[size])
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}%")
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("time of the quantizer / networks")
    panels[0].legend(fontsize=8)
    base = points["base"]
    figure.suptitle(f"{title}; else d = {base['d']}, S = {base['S']}, K = {base['K']}", fontsize=10)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
