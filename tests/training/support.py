"""Runs of the trainers on tiny components: in this process, or in processes of their own, which can be killed."""

import contextlib
import importlib
import json
import multiprocessing
import os
import shutil
import signal
import socket
import sys
import time
from pathlib import Path

import torch
from accelerate.state import AcceleratorState, GradientState
from safetensors.torch import load_file

from pqdiff.training.stopping import SIGNALS, run
from tests.processes import HANGS
from tests.tiny import SIDE, tiny_autoencoder, tiny_base_pipeline, tiny_kl_autoencoder
from training import adapt_sd

STAGES = [
    {"resolution": SIDE, "steps": 4, "learning_rate": 2e-3, "trainable": "projections"},
    {"resolution": SIDE, "steps": 4, "learning_rate": 1e-3, "trainable": "all"},
]
STEPS = 8
REFERENCE = {"ema_decay": 0.5, "checkpoints_total_limit": 9, "random_crop": True, "caption_dropout": 0.3}


def save_models(folder: Path) -> Path:
    """Folders of the tiny base and of autoencoders: `pq` with networks, `linear` without, `kl`."""
    tiny_base_pipeline().save_pretrained(folder / "base")
    tiny_autoencoder().save_pretrained(folder / "pq")
    tiny_autoencoder(linear=True).save_pretrained(folder / "linear")
    tiny_kl_autoencoder().save_pretrained(folder / "kl")
    return folder


def flags(**options) -> list[str]:
    """Options as a command line: None is left out, True is a switch, what is nested is JSON."""
    argv = []
    for name, value in options.items():
        if value is None:
            continue
        argv.append(f"--{name}")
        if isinstance(value, tuple):
            argv += map(str, value)
        elif value is not True:
            argv.append(json.dumps(value) if isinstance(value, list | dict) else str(value))
    return argv


def adapt_flags(models: Path, output_dir: Path, **options) -> list[str]:
    """Command line of adapt_sd.py: eight steps, with the freeze switch in the middle."""
    defaults = {
        "base": models / "base",
        "autoencoder": models / "linear",
        "dataset": "scenes",
        "num_scenes": 24,
        "stages": STAGES,
        "batch_size": 2,
        "checkpointing_steps": 2,
        "log_steps": 1,
    }
    return flags(output_dir=output_dir, **{**defaults, **options})


@contextlib.contextmanager
def fresh_process():
    """As if a run had a process to itself: accelerate keeps settings of the first, and signals are pytest's."""
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    _forget()
    try:
        yield
    finally:
        _forget()
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _forget() -> None:
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def adapt(models: Path, output_dir: Path, **options):
    """Run adapt_sd.py here; the pipeline that it made."""
    with fresh_process():
        return adapt_sd.main(adapt_flags(models, output_dir, **options))


def start(trainer: str, argv: list[str], log: Path, *, rank=0, processes=1, port=0, moment=None):
    """Start a trainer in a new process, forked from a server that has imported what it needs.

    `moment` is what `kill_at` takes. Messages go to the file `log`.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    environment = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "MASTER_PORT": port}
    environment = {name: str(value) for name, value in environment.items()} | {"MASTER_ADDR": "127.0.0.1"}
    process = context.Process(
        target=_in_child, args=(trainer, argv, log, environment if processes > 1 else {}, moment)
    )
    log.touch()
    process.start()
    return process


def start_ranks(trainer: str, argv: list[str], log: Path, moment=None) -> list:
    """Two ranks of a trainer, which talk over loopback; the first is killed at `moment`."""
    port = free_port()
    return [
        start(trainer, argv, log.with_suffix(f".{rank}"), rank=rank, processes=2, port=port,
              moment=None if rank else moment)
        for rank in range(2)
    ]  # fmt: skip


def _in_child(trainer: str, argv: list[str], log: Path, environment: dict[str, str], moment) -> None:
    with log.open("a") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    sys.stdout.reconfigure(line_buffering=True)
    os.environ.update(environment)
    torch.set_num_threads(1)
    main = importlib.import_module(f"training.{trainer}").main
    if moment:
        kill_at(*moment)
    run(lambda: main(argv))


def kill_at(event: str, text: str, count: int = 1, number: int = signal.SIGKILL) -> None:
    """A signal, kill -9 by default, to this process when it is about to do something to a file for the `count`-th time.

    `event` is one of Python's audit events, such as open or os.rename; `text` is in the file's path.
    """
    left = count

    def hook(name: str, arguments: tuple) -> None:
        nonlocal left
        if name == event and any(text in str(argument) for argument in arguments):
            left -= 1
            if not left:
                os.kill(os.getpid(), number)

    sys.addaudithook(hook)


def join(process, log: Path, timeout: float = HANGS) -> int:
    """Exit code of a process; negative for the signal that killed it."""
    process.join(timeout)
    if process.exitcode is None:
        process.kill()
        raise AssertionError(f"still running: {log.read_text()}")
    return process.exitcode


def wait_for(condition, process, seconds: float = HANGS) -> None:
    """Wait until something holds, while a process runs."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.is_alive(), "ended too early"
        assert time.monotonic() < deadline
        time.sleep(0.001)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def steps_of(output_dir: Path) -> list[dict]:
    """Lines of the log of a run; none if there is no log yet."""
    path = output_dir / "log.jsonl"
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]


def losses(output_dir: Path) -> list[tuple[int, float, float]]:
    """Step, loss and learning rate of every line of the log."""
    return [(line["step"], line["loss"], line["learning_rate"]) for line in steps_of(output_dir)]


def state_of(output_dir: Path, step: int = STEPS) -> dict[str, torch.Tensor]:
    """Every tensor of a checkpoint: weights, EMA and the optimizer's state."""
    folder = output_dir / f"checkpoint-{step:08d}"
    state = {
        f"{path.name} {name}": tensor
        for path in folder.glob("*.safetensors")
        for name, tensor in load_file(path).items()
    }
    optimizer = torch.load(folder / "optimizer.bin", weights_only=True)
    for number, values in optimizer["state"].items():
        state |= {f"optimizer {number} {name}": value for name, value in values.items()}
    return state


def copy_until(source: Path, target: Path, step: int) -> Path:
    """A run as it was when its checkpoint of a step was the newest."""
    shutil.copytree(source, target)
    shutil.rmtree(target / "pipeline", ignore_errors=True)
    for checkpoint in target.glob("checkpoint-*"):
        if int(checkpoint.name.split("-")[1]) > step:
            shutil.rmtree(checkpoint)
    return target


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    """Weights of a saved model."""
    return load_file(folder / "diffusion_pytorch_model.safetensors")


def is_projection(name: str) -> bool:
    """Whether a weight of the UNet belongs to conv_in or conv_out."""
    return name.startswith(("conv_in.", "conv_out."))


def assert_same_state(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    """Equal bit for bit."""
    assert first.keys() == second.keys()
    different = [name for name in first if not torch.equal(first[name], second[name])]
    assert different == [], different
