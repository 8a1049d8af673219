"""A run: its folder, log, trackers, checkpoints, signals, and the guard against losses that are no numbers."""

import argparse
import json
import multiprocessing
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import ProjectConfiguration
from safetensors import SafetensorError
from tqdm.auto import tqdm

from .arguments import changed_arguments, write_config
from .batches import Layout
from .checkpoints import find_checkpoint, load_checkpoint, save_checkpoint
from .ema import EMA

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_PATIENCE = 3.0  # seconds in which a second signal is the launcher's copy of the first, not a person's second thought


class TrainingStopped(Exception):
    """The run was asked to stop, and its state is on disk; the message says where."""


def run(main: Callable[[], None]) -> None:
    """Call a trainer's `main`. What a user can mend or asked for ends it with one line in place of a traceback; signals
    are given back and loader workers ended whatever happens."""
    handlers = {number: signal.getsignal(number) for number in _SIGNALS}
    try:
        try:
            main()
        except BaseException as error:
            traceback.clear_frames(error.__traceback__)  # they hold the loader, which ends its workers when it goes
            raise
    except (ValueError, OSError, TrainingStopped, SafetensorError) as error:
        sys.exit(f"{error}")
    except KeyboardInterrupt:
        sys.exit("stopped at once: what came after the last checkpoint is lost")
    finally:
        for child in multiprocessing.active_children():
            if child.daemon:  # a worker that is stuck: Python would wait for it, and it does not heed SIGTERM
                child.kill()
        for number, handler in handlers.items():
            signal.signal(number, handler)


class Session:
    """What surrounds a training loop.

    Use: build models and optimizers, `prepare` them (again at every change of what is trainable), `load` what `find`
    found, then call `end_of_step` after every optimizer step, and `close` at the end.

    Args:
        args: of a `TrainerParser`.
        total_steps: optimizer steps of the whole run, for the progress bar.
        global_batch_size: samples per optimizer step where `args.batch_size` is None.

    Raises:
        ValueError: for arguments that do not fit each other or this launch.
    """

    def __init__(self, args: argparse.Namespace, total_steps: int, global_batch_size: int | None = None):
        self.args, self.total_steps = args, total_steps
        self.output_dir = Path(args.output_dir)
        self.accelerator = Accelerator(
            cpu=not torch.accelerator.is_available(),  # else several processes on CPUs do not find each other
            mixed_precision=args.mixed_precision,  # None: what `accelerate launch` or `accelerate config` says
            gradient_accumulation_steps=args.gradient_accumulation_steps,
            log_with=args.report_to,
            project_config=ProjectConfiguration(str(self.output_dir), str(self.output_dir / "logs")),
        )
        args.mixed_precision = self.accelerator.mixed_precision
        if args.batch_size is None:
            args.batch_size = self._batch_size_of_a_process(global_batch_size)
        self.layout = Layout(
            args.batch_size,
            args.gradient_accumulation_steps,
            self.accelerator.num_processes,
            self.accelerator.process_index,
        )
        self.averages: dict[str, EMA] = {}
        self._optimizers: tuple[torch.optim.Optimizer, ...] = ()
        self.step = 0  # optimizer steps done
        self._stop_asked: float | None = None  # when a signal came
        self._started = time.perf_counter()
        self._loss_sum, self._loss_count = torch.zeros((), device=self.accelerator.device), 0
        if not args.resume and find_checkpoint(self.output_dir):
            raise ValueError(
                f"--output_dir {self.output_dir}: holds checkpoints of a run: add --resume to go on with it, "
                "or choose another folder"
            )
        changed = []
        if self.accelerator.is_main_process:
            self.output_dir.mkdir(parents=True, exist_ok=True)
            changed = changed_arguments(args, self.output_dir / "config.yaml") if args.resume else []
            write_config(args, self.output_dir / "config.yaml")
        self.progress = tqdm(
            total=total_steps,
            desc="steps",
            mininterval=0.2 if sys.stderr.isatty() else 60,  # a log file needs fewer lines than a person
            disable=not self.accelerator.is_main_process,
        )
        if changed:
            self.say(
                f"this run began with other arguments ({', '.join(changed)}): from here on the new ones count, and the "
                "result is that of neither"
            )
        if args.report_to and not self.accelerator.log_with:
            raise ValueError(f"--report_to ({args.report_to}): that tracker is not installed")
        if self.accelerator.num_processes == 1 and "MASTER_ADDR" in os.environ and "WORLD_SIZE" not in os.environ:
            self.say(
                "this run has one process: on CPUs, several need `accelerate launch --multi_gpu --num_processes N`, "
                "or `torchrun --nproc_per_node N`"
            )
        self._handlers = {number: signal.signal(number, self._on_signal) for number in _SIGNALS}

    # Before the loop.

    def prepare(self, models: dict[str, torch.nn.Module], *optimizers: torch.optim.Optimizer) -> tuple:
        """Wrap models for this launch (unwrapped ones must be given) and the optimizers; returns the dictionary and each
        optimizer, in that form.

        Called again when other parameters become trainable: distributed wrappers look at that only once. The
        optimizers' groups and their number stay as they are.
        """
        self.accelerator.free_memory()
        prepared = self.accelerator.prepare(*models.values(), *optimizers)
        self._optimizers = prepared[len(models) :]
        return dict(zip(models, prepared, strict=False)), *self._optimizers

    def average(self, models: dict[str, torch.nn.Module]) -> None:
        """Begin averages of (unwrapped) models, if the arguments ask for them."""
        if self.args.ema_decay:
            self.averages = {name: EMA(model, self.args.ema_decay) for name, model in models.items()}

    def find(self) -> tuple[Path, int] | None:
        """Checkpoint to resume from, and its step; None without `--resume` or where there is none yet."""
        found = find_checkpoint(self.output_dir) if self.args.resume else None
        if found is None:
            self._cut_log()  # of a run that did not get as far as a checkpoint
            if self.args.resume:
                self.say(f"no complete checkpoint in {self.output_dir} yet: starting from the beginning")
        return found

    def load(self, checkpoint: Path) -> None:
        """Put the state of a checkpoint into what was prepared."""
        averages = {name: ema.average for name, ema in self.averages.items()}
        given = [{k: v for k, v in group.items() if k != "params"} for group in self._groups()]
        self.step = load_checkpoint(self.accelerator, checkpoint, averages)
        for group, values in zip(self._groups(), given, strict=True):
            group.update(values)  # the flags of this run, not those of the one that saved
        self._cut_log()
        self.progress.update(self.step - self.progress.n)
        self.say(f"resumed from {checkpoint} after step {self.step}")

    def start_trackers(self, project: str) -> None:
        """Tell the trackers what runs, with its arguments."""
        if self.args.report_to:
            simple = {k: v if isinstance(v, (int, float, str, bool)) else str(v) for k, v in vars(self.args).items()}
            self.accelerator.init_trackers(project, config=simple)

    def say(self, text: str) -> None:
        """One line for people, from one process, beside the progress bar."""
        if self.accelerator.is_main_process:
            self.progress.write(text)

    # In the loop.

    def check_finite(self, loss: torch.Tensor, batch: dict, log: bool = True) -> None:
        """If the loss of a micro-step is no number, save the batch and stop; else, if `log`, add it to the log's loss.

        Raises:
            ValueError: naming the step and the file, on all ranks.
        """
        bad = (~torch.isfinite(loss.detach())).any().float().reshape(1)
        if self.accelerator.num_processes > 1:
            bad = self.accelerator.reduce(bad, "sum")
        if bad.item():
            path = self.output_dir / f"nonfinite-step{self.step + 1}-rank{self.accelerator.process_index}.pt"
            torch.save({"step": self.step + 1, "loss": loss.detach().cpu(), "batch": batch}, path)
            raise ValueError(
                f"the loss is not finite at step {self.step + 1}; its batch is in {path}. Lower the learning rate, or "
                "use bf16 or fp32 in place of fp16"
            )
        if log:
            self._loss_sum += loss.detach().float().mean()
            self._loss_count += 1

    def end_of_step(self, values: dict[str, float]) -> None:
        """Count a finished optimizer step: log, checkpoint, and the answer to Ctrl-C or SIGTERM.

        Args:
            values: further numbers for the log, such as the learning rate.

        Raises:
            TrainingStopped: after saving, if a signal came.
        """
        self.step += 1
        self.progress.update(1)
        if self.step % self.args.log_steps == 0 or self.step == self.total_steps:
            self._log(values)
        stop = self._stop_requested()
        if self.step % self.args.checkpointing_steps == 0 or stop:
            self.checkpoint()
        if stop:
            self.close()
            raise TrainingStopped(
                f"stopped after step {self.step} of {self.total_steps}; saved in {self.output_dir}: "
                "the same command with --resume goes on"
            )

    def clip_gradients(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Scale gradients down to `--max_grad_norm`, at the last micro-step of a step; 0 leaves them alone."""
        if self.accelerator.sync_gradients and self.args.max_grad_norm:
            self.accelerator.clip_grad_norm_(parameters, self.args.max_grad_norm)

    def update_averages(self, models: dict[str, torch.nn.Module]) -> None:
        """Let the averages follow the (unwrapped) models."""
        for name, ema in self.averages.items():
            ema.update(models[name], self.step)

    def checkpoint(self) -> Path:
        """Save now."""
        averages = {name: ema.average for name, ema in self.averages.items()}
        return save_checkpoint(
            self.accelerator, self.output_dir, self.step, averages, self.args.checkpoints_total_limit
        )

    def close(self) -> None:
        """End trackers and the progress bar, and leave signals to whoever had them."""
        self.progress.close()
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        if self.args.report_to:
            self.accelerator.end_training()

    def _batch_size_of_a_process(self, global_batch_size: int) -> int:
        """Samples of a process and micro-step that make a given global batch."""
        processes, micro_steps = self.accelerator.num_processes, self.args.gradient_accumulation_steps
        size, rest = divmod(global_batch_size, processes * micro_steps)
        if rest:
            raise ValueError(
                f"--batch_size is missing: {global_batch_size} samples a step cannot be shared by {processes} process(es) "
                f"times {micro_steps} micro-step(s) (--gradient_accumulation_steps)"
            )
        return size

    def _groups(self) -> list[dict]:
        """Parameter groups of all optimizers."""
        return [group for optimizer in self._optimizers for group in optimizer.param_groups]

    def _on_signal(self, number: int, frame) -> None:
        now = time.monotonic()
        if self._stop_asked is None:
            self._stop_asked = now
        elif now - self._stop_asked > _PATIENCE:
            raise KeyboardInterrupt  # asked twice: at once

    def _stop_requested(self) -> bool:
        """Whether any rank got a signal: all must agree to save together."""
        stop = self._stop_asked is not None
        if self.accelerator.num_processes > 1:
            flag = torch.tensor([float(stop)], device=self.accelerator.device)
            stop = bool(self.accelerator.reduce(flag, "sum").item())
        return stop

    def _log(self, values: dict[str, float]) -> None:
        loss = self._loss_sum / max(1, self._loss_count)
        if self.accelerator.num_processes > 1:
            loss = self.accelerator.reduce(loss, "mean")
        self._loss_sum, self._loss_count = torch.zeros_like(self._loss_sum), 0
        seconds = time.perf_counter() - self._started
        record = {"step": self.step, "loss": round(loss.item(), 6), **values, "seconds": round(seconds, 1)}
        if self.accelerator.is_main_process:
            with (self.output_dir / "log.jsonl").open("a") as file:
                file.write(json.dumps(record) + "\n")
            self.progress.set_postfix(loss=f"{record['loss']:.4f}", refresh=False)
        if self.args.report_to:
            self.accelerator.log({k: v for k, v in record.items() if k != "step"}, step=self.step)

    def _cut_log(self) -> None:
        """Drop lines of the log that come after the checkpoint: those steps are done again."""
        path = self.output_dir / "log.jsonl"
        if self.accelerator.is_main_process and path.exists():
            lines = [line for line in path.read_text().splitlines() if line.strip().endswith("}")]
            kept = [line for line in lines if json.loads(line)["step"] <= self.step]
            path.write_text("".join(f"{line}\n" for line in kept))
