"""Speed and memory of `ProductQuantizer` with every search backend, of a loop over subspaces, and of other libraries.

    python -m benchmarks.quantizer_speed --output benchmarks/results/quantizer_speed.json --plot docs/quantizer_speed.png

Minutes on two cores; `--quick` looks at small sizes only. Contenders take turns in one process, so ratios of one cell mean
something on a shared machine, absolute times little. Actions: `search`, latents to tokens (VectorQuantize and
GroupedResidualVQ cannot do less than their whole layer; the loop, which as a layer keeps all distances, is spared that);
`forward`, the layer without gradients; `forward_backward`. Who is left out, and why, stands beside the times. The GPU is
measured where there is one (`--device cuda`; each device keeps what the file says of the other); until then
everything about it is unproven.
"""

import argparse
import json
import os
import sys
from collections.abc import Collection
from pathlib import Path

import torch

from benchmarks import quantizer_figure, quantizer_peers, quantizer_share
from benchmarks.machine import describe_machine
from benchmarks.memory import peak_resident_bytes, peak_tensor_bytes
from benchmarks.quantizer_contenders import ACTIONS, ALL, LOOP, Config, build, forward, search
from benchmarks.quantizer_goals import UNPROVEN, goals
from benchmarks.timing import CLOCKS, interleaved_times, summary
from pqdiff.quantizers.search import backends

# The paper's presets: F, d, S, K.
_PRESETS = {
    "f8": (8, 128, 64, 512),
    "f16": (16, 128, 64, 128),
    "f16-d256": (16, 256, 128, 128),
    "f32": (32, 256, 64, 256),
}
_SIDES = (256, 768, 1536)  # pixels
_QUICK = ("f16-256", "f32-256")
_MEMORY, _QUICK_MEMORY = "f8-768", "f16-256"
_SMALL_SIDE = 256  # larger pictures get fewer rounds
_ALL_THREADS = ("f8-256", "f16-256")
_GPU_BATCHES = (1, 16)
_GPU_COMMAND = "python -m benchmarks.quantizer_speed --device cuda --output benchmarks/results/quantizer_speed.json"


def configs() -> dict[str, Config]:
    """Every preset at every side, by name."""
    return {
        f"{name}-{side}": Config(d, num_subspaces, size, side // factor)
        for side in _SIDES
        for name, (factor, d, num_subspaces, size) in _PRESETS.items()
    }


def measure_cell(
    config: Config,
    actions: Collection[str],
    rounds: int,
    seconds: float,
    device: str = "cpu",
    names: Collection[str] = ALL,
    clock: str = "wall",
) -> dict:
    """Median and minimum times of the named contenders by action, and how often the loop takes them."""
    contenders, left_out = build(config, device, names)
    z = torch.randn(1, config.d, config.side, config.side, device=device)
    cell = {"sizes": config._asdict(), "left_out": left_out}
    for action in actions:
        calls = {name: ACTIONS[action](contender, z) for name, contender in contenders.items()}
        calls = {name: call for name, call in calls.items() if call is not None}
        times = interleaved_times(
            calls,
            rounds,
            seconds,
            contexts={name: contender.context for name, contender in contenders.items()},
            repeats=1 if device == "cpu" else 20,
            device=device,
            clock=clock,
        )
        milliseconds = {**summary(times), **dict.fromkeys(left_out)}
        cell[action] = {"rounds": len(next(iter(times.values()))), "milliseconds": milliseconds}
        if LOOP in calls:
            loop = milliseconds[LOOP]
            cell[action]["loop_over"] = {
                name: {key: round(loop[key] / value[key], 2) for key in loop}
                for name, value in milliseconds.items()
                if value and name != LOOP
            }
    return cell


def measure_cells(names: list[str], args: argparse.Namespace, device: str = "cpu") -> dict:
    """Cells of the named configurations; larger pictures than `_SMALL_SIDE` get fewer rounds."""
    cells = {}
    for name in names:
        config, small = configs()[name], name.endswith(f"-{_SMALL_SIDE}")
        rounds = args.rounds if small else max(1, args.rounds // 2)
        cells[name] = measure_cell(config, ACTIONS, rounds, args.seconds, device, args.only, args.clock)
        print_cell(name, cells[name])
    return cells


def measure_memory(name: str, names: Collection[str] = ALL) -> dict:
    """Most memory alive beside the outputs in one forward pass without gradients, in MB (1e6 bytes).

    `tensors` counts torch's allocations one by one, `resident` is the growth of the process and sees other allocators.
    """
    config = configs()[name]
    contenders, left_out = build(config, names=names)
    z = torch.randn(1, config.d, config.side, config.side)
    result = {}
    for contender_name, contender in contenders.items():
        call = forward(contender, z) or search(contender, z)
        with contender.context():
            output = call()  # builds, compiles
            own = sum(x.nbytes for x in output if torch.is_tensor(x)) if isinstance(output, tuple) else output.nbytes
            del output
            peaks = {"tensors": peak_tensor_bytes(call), "resident": peak_resident_bytes(call)}
        result[contender_name] = {
            key: None if peak is None else round(max(0, peak - own) / 1e6, 2) for key, peak in peaks.items()
        }
    return {"config": name, "peak_extra_megabytes": {**result, **dict.fromkeys(left_out)}, "left_out": left_out}


def measure_cpu(args: argparse.Namespace, document: dict) -> None:
    """Fill the parts of the document that are about the CPU."""
    load = os.getloadavg()[0]
    names = list(_QUICK) if args.quick else list(configs())
    torch.set_num_threads(1)
    document["cells"] = {"1": measure_cells(names, args)}
    document["share"] = quantizer_share.on_cpu(args.quick, args.rounds, args.seconds, args.only, args.clock)
    base = quantizer_figure.BASE._replace(side=8) if args.quick else quantizer_figure.BASE
    document["sweep"] = quantizer_figure.sweep(
        base, args.quick, min(3, args.rounds), names=args.only, clock=args.clock
    )
    document["memory"] = measure_memory(_QUICK_MEMORY if args.quick else _MEMORY, args.only)
    if args.threads > 1:
        torch.set_num_threads(args.threads)
        document["cells"][str(args.threads)] = measure_cells([name for name in names if name in _ALL_THREADS], args)
    document.update(
        machine={**describe_machine(), "peers": quantizer_peers.versions()},
        load_average_before_and_after=[round(load, 2), round(os.getloadavg()[0], 2)],
        protocol={"least_rounds": args.rounds, "seconds": args.seconds, "clock": args.clock},
        automatic_backend=backends.backend_name(torch.device("cpu")),
    )


def measure_gpu(args: argparse.Namespace) -> dict:
    """Everything about the GPU."""
    names = list(_QUICK) if args.quick else list(configs())
    share = {str(batch): quantizer_share.on_gpu(args.quick, args.rounds, batch) for batch in _GPU_BATCHES}
    return {
        "machine": {**describe_machine(), "peers": quantizer_peers.versions()},
        "device": torch.cuda.get_device_name(),
        "automatic_backend": backends.backend_name(torch.device("cuda")),
        "share": share,
        "cells": measure_cells(names, args, "cuda"),
        "sweep": quantizer_figure.sweep(quantizer_figure.BASE, args.quick, args.rounds, "cuda"),
    }


def print_cell(name: str, cell: dict) -> None:
    for action in ACTIONS:
        if action in cell:
            times = cell[action]["milliseconds"].items()
            shown = "  ".join(f"{contender} {value['median']:.2f}" for contender, value in times if value)
            print(f"{name:14} {action:17} {torch.get_num_threads()} thr, ms: {shown}", flush=True)


def print_goals(document: dict) -> None:
    for row in document["goals"]:
        word = row.get("note") or ("reached" if row["reached"] else "NOT REACHED")
        print(f"{row['what']:80} {row['goal']:>5}  {row['measured']}  {word}")


def load_document(path: Path | None, quick: bool) -> dict:
    """The results so far, or none: the sections of the other device stay as they are.

    Raises:
        ValueError: if the file is of a quick run and this one is not, or the other way round.
    """
    if path is None or not path.exists():
        return {"quick": quick, "cells": {"1": {}}, "gpu": None}
    document = json.loads(path.read_text())
    if document.get("quick") != quick:
        words = {True: "of a quick run", False: "of a whole run"}
        found = words.get(document.get("quick"), "of another format")
        raise ValueError(f"--output ({path}) holds results {found}, not {words[quick]}: choose another or remove it")
    return document


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="what to measure (default: cpu)")
    parser.add_argument("--rounds", type=int, default=5, help="least interleaved rounds of a 256 px cell (default: 5)")
    parser.add_argument("--seconds", type=float, default=1.0, help="further rounds up to so long (default: 1)")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="beside one (default: all)")
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="processor, on a busy machine (default: wall)")
    parser.add_argument("--only", nargs="+", choices=ALL, default=ALL, metavar="NAME", help=f"of {', '.join(ALL)}")
    parser.add_argument("--quick", action="store_true", help="small sizes, small networks: to try the command")
    parser.add_argument("--output", type=Path, help="file for the results as JSON; the other device's part is kept")
    parser.add_argument("--plot", type=Path, help="picture of the overhead against S, d and K")
    args = parser.parse_args(arguments)
    for name in ("rounds", "threads"):
        if getattr(args, name) < 1:
            parser.error(f"--{name} must be at least 1, got {getattr(args, name)}")
    if args.clock == "processor" and (args.threads > 1 or args.device != "cpu"):
        parser.error("--clock processor needs --threads 1 and --device cpu: threads that wait count as busy")
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda needs a GPU that torch can see; use --device cpu")
    return args


def main(arguments: list[str] | None = None) -> None:
    args = parse_arguments(arguments)
    try:
        document = load_document(args.output, args.quick)
    except ValueError as error:
        sys.exit(f"quantizer_speed: {error}")
    if args.device == "cuda":
        document["gpu"] = measure_gpu(args)
    else:
        measure_cpu(args, document)
    document["gpu_command"] = _GPU_COMMAND
    document["gpu_status"] = "measured" if document["gpu"] else UNPROVEN
    document["goals"] = goals(document)
    print_goals(document)
    if args.output:
        args.output.write_text(json.dumps(document, indent=1) + "\n")
    if args.plot:
        title = f"PQGAN F8 at {quantizer_share.SIDE} px, fp32, one thread of {document['machine']['processor']}"
        quantizer_figure.plot(document["sweep"], document["share"]["networks_milliseconds"], args.plot, title)


if __name__ == "__main__":
    main()
