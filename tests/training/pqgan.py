"""Tiny runs of train_pqgan.py: eight steps, with the discriminator from step 4 on."""

import json
import multiprocessing
import os
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from tests.processes import HANGS
from tests.tiny import SIDE
from tests.training.support import flags, free_port, fresh_process, state_of
from training import train_pqgan

STEPS, DISC_START = 8, 4


def beside_patches(patch_size: int, block_out_channels: list[int]) -> dict:
    """Constructor arguments of small networks beside a linear transform of patches."""
    conv = {"block_out_channels": block_out_channels, "layers_per_block": 1, "norm_num_groups": 4, "mid_channels": 8}
    patch = {"patch_size": patch_size, "tied": True}
    parts = [{"type": "patch", "config": patch}, {"type": "conv", "config": conv}]
    return {"transform_type": "sum", "transform_config": {"parts": parts}}


MODEL = {
    **beside_patches(2, [8, 16]),
    "quantizer_config": {"num_subspaces": 4, "codebook_size": 16},
    "latent_channels": 8,
    "sample_size": SIDE,
}
NETWORKS = beside_patches(4, [8, 8, 16])
PRESET = "f4-d8-s4-k16"
VALIDATION = {"validation_dataset": "scenes", "validation_images": 4, "validation_steps": 4}
DEFAULTS = {
    "dataset": "scenes",
    "num_scenes": 24,
    "resolution": SIDE,
    "model": MODEL,
    "steps": STEPS,
    "batch_size": 4,
    "learning_rate": 1e-3,
    "perceptual_weight": 0,
    "disc_start": DISC_START,
    "disc_pretrain_steps": 0,
    "discriminator": {"base_channels": 8, "num_layers": 1},
    "ema_decay": 0.5,
    "fit_images": 8,
    "checkpointing_steps": 2,
    "checkpoints_total_limit": 9,
    "log_steps": 1,
}


def pqgan_flags(output_dir: Path, **options) -> list[str]:
    """Command line of a run; None removes a default."""
    return flags(output_dir=output_dir, **{**DEFAULTS, **options})


def train(output_dir: Path, **options) -> Path:
    """Run train_pqgan.py here; its folder."""
    with fresh_process():
        train_pqgan.main(pqgan_flags(output_dir, **options))
    return output_dir


def train_and_keep_pair(folder: Path, **options) -> tuple[list[str], list[dict[str, torch.Tensor]]]:
    """Run two ranks in `folder`/run; what they said, and the weights that each of them has at the end."""
    context, port = multiprocessing.get_context("forkserver"), free_port()
    argv = pqgan_flags(folder / "run", **options)
    ranks = [context.Process(target=_train_and_keep, args=(argv, rank, port, folder)) for rank in range(2)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(HANGS)
    texts = [(folder / f"log.{rank}").read_text() for rank in range(2)]
    assert [process.exitcode for process in ranks] == [0, 0], "".join(texts)
    return texts, [load_file(folder / f"rank-{rank}.safetensors") for rank in range(2)]


def _train_and_keep(argv: list[str], rank: int, port: int, folder: Path) -> None:
    with (folder / f"log.{rank}").open("w") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_PORT": port, "MASTER_ADDR": "127.0.0.1"}
    place["OMP_NUM_THREADS"] = 1  # else accelerate takes all threads of the machine again
    os.environ.update({name: str(value) for name, value in place.items()})
    torch.set_num_threads(1)
    save_file(train_pqgan.main(argv).state_dict(), folder / f"rank-{rank}.safetensors")


def whole_state(output_dir: Path, step: int = STEPS) -> dict[str, torch.Tensor]:
    """Every tensor of a checkpoint: both models, the average, both optimizers and which codewords were used."""
    state, folder = state_of(output_dir, step), output_dir / f"checkpoint-{step:08d}"
    if (folder / "optimizer_1.bin").exists():
        optimizer = torch.load(folder / "optimizer_1.bin", weights_only=True)
        for number, values in optimizer["state"].items():
            state |= {f"optimizer_1 {number} {name}": value for name, value in values.items()}
    return state


def part(state: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    """The tensors whose names begin with something."""
    return {name: tensor for name, tensor in state.items() if name.startswith(prefix)}


def strip(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same without the names of files."""
    return {name.split(" ")[1]: tensor for name, tensor in tensors.items()}


def validations(output_dir: Path) -> list[dict]:
    """Lines of the validations of a run."""
    return [json.loads(line) for line in (output_dir / "validation" / "metrics.jsonl").read_text().splitlines()]
