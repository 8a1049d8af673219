"""A training run: device, folder, checkpoints, EMA, log and signals, and the loop over its steps."""

import dataclasses
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import ProjectConfiguration
from tqdm.auto import tqdm

from pqdiff.adaptation.stages import Stage
from pqdiff.training.batches import Layout, Samples, share_batch
from pqdiff.training.checkpoints import find_checkpoint, load_checkpoint, save_checkpoint
from pqdiff.training.data_record import compare_data
from pqdiff.training.ema import EMA
from pqdiff.training.log import TrainingLog
from pqdiff.training.run_folder import take_folder
from pqdiff.training.run_options import RunOptions, changed_arguments, write_config
from pqdiff.training.schedule import ScheduleOptions
from pqdiff.training.step import Step
from pqdiff.training.stopping import StopSignals, TrainingStopped


class Session:
    """What surrounds the training loop of every trainer.

    A trainer builds models and optimizers, calls `prepare` (which also loads the checkpoint to resume from), loops over
    `steps`, saves its result, and calls `close`:

        session = Session(RunOptions.from_args(args), args.steps, "my-project")
        session.start_ema({"model": model})
        wrapped, optimizer = session.prepare({"model": model}, optimizer)
        for step in session.steps(samples, stage, schedule):
            for batch in step.micro_batches():
                with session.autocast():
                    loss = wrapped["model"](batch["pixels"].to(session.device))
                step.backward(loss)
                step.update(optimizer)
        session.close()

    Attributes:
        accelerator: of accelerate.
        device: where the models of this process are.
        layout: how the samples of a step are spread over processes and micro-steps.
        output_dir: folder of the run.
        folder: the same, which says what in it the run may replace.
        options: as given, with `mixed_precision` and `batch_size` filled in.
        checkpoint: folder of the checkpoint that `prepare` loads, or None for a run from the beginning.
        step: number of optimizer steps done.
        ema: the EMA of each model of `start_ema`, by name; empty if there is none.
        kept: further modules for checkpoints, the same on all ranks, by the name of their file.

    Args:
        options: options of the run.
        total_steps: optimizer steps of the whole run, for progress and log.
        project: name of the run for trackers.
        global_batch_size: samples per optimizer step where `options.batch_size` is None.

    Raises:
        ValueError: for options that do not fit each other or this launch, or a folder that is not for this run. Then
            nothing in the folder was changed.
    """

    def __init__(self, options: RunOptions, total_steps: int, project: str, global_batch_size: int | None = None):
        self.total_steps, self.project, self.output_dir = total_steps, project, Path(options.output_dir)
        self.accelerator = Accelerator(
            cpu=not torch.accelerator.is_available(),  # without this, several processes on CPUs do not find each other
            mixed_precision=options.mixed_precision,  # None: what `accelerate launch` or `accelerate config` says
            gradient_accumulation_steps=options.gradient_accumulation_steps,
            log_with=options.report_to,
            project_config=ProjectConfiguration(str(self.output_dir), str(self.output_dir / "logs")),
        )
        self.device = self.accelerator.device
        processes, rank = self.accelerator.num_processes, self.accelerator.process_index
        micro_steps = options.gradient_accumulation_steps
        batch_size = options.batch_size or share_batch(global_batch_size, micro_steps, processes)
        self.layout = Layout(batch_size, micro_steps, processes, rank)
        found = {"mixed_precision": self.accelerator.mixed_precision, "batch_size": batch_size}
        self.options = dataclasses.replace(options, **found, arguments={**options.arguments, **found})
        self.ema: dict[str, EMA] = {}
        self.kept: dict[str, torch.nn.Module] = {}
        self._followed: dict[str, torch.nn.Module] = {}  # by the EMA
        self.models: dict[str, torch.nn.Module] = {}  # as they were prepared
        self._optimizers: tuple[torch.optim.Optimizer, ...] = ()
        if options.report_to and not self.accelerator.log_with:
            raise ValueError(f"--report_to ({options.report_to}): that tracker is not installed")
        self.folder = take_folder(self.accelerator, self.output_dir)
        checkpoint, damaged = find_checkpoint(self.folder)
        self.folder.check_use(bool(checkpoint or damaged), options.resume)
        self.folder.claim("log.jsonl")
        self.log = TrainingLog(self.accelerator, self.output_dir / "log.jsonl", bool(options.report_to))
        self.checkpoint, self.step = checkpoint or (None, 0)
        self._loaded = checkpoint is None
        changed = self._write_config()
        self.progress = tqdm(
            total=total_steps,
            desc="steps",
            mininterval=0.2 if sys.stderr.isatty() else 60,  # a log file needs fewer lines than a terminal
            disable=not self.accelerator.is_main_process,
        )
        self._say_what_is_unusual(changed, damaged)
        self._signals = StopSignals()

    # Before the loop.

    def start_ema(self, models: dict[str, torch.nn.Module]) -> None:
        """Start an EMA of these (unwrapped) models, if the options ask for one."""
        if self.options.ema_decay:
            self._followed = models
            self.ema = {name: EMA(model, self.options.ema_decay) for name, model in models.items()}

    def prepare(self, models: dict[str, torch.nn.Module], *optimizers: torch.optim.Optimizer) -> tuple:
        """Wrap models and optimizers for this launch, and at the first call load the checkpoint to resume from.

        Call it again when other parameters become trainable, because distributed wrappers look at that only once. The
        number of optimizers and their groups must stay the same.

        Args:
            models: unwrapped models by name.
            optimizers: their optimizers.

        Returns:
            The dictionary of wrapped models, then each wrapped optimizer.
        """
        self.accelerator.free_memory()
        prepared = self.accelerator.prepare(*models.values(), *optimizers)
        self.models, self._optimizers = dict(zip(models, prepared, strict=False)), prepared[len(models) :]
        if not self._loaded:
            self._load()
        if self.options.report_to and not self.accelerator.trackers:
            self.folder.claim("logs")
            simple = (int, float, str, bool)
            arguments = {k: v if isinstance(v, simple) else str(v) for k, v in self.options.arguments.items()}
            self.accelerator.init_trackers(self.project, config=arguments)
        return self.models, *self._optimizers

    def say(self, text: str) -> None:
        """Show one line to the user, from the main process, beside the progress bar."""
        if self.accelerator.is_main_process:
            self.progress.write(text)

    # The loop.

    def steps(
        self,
        samples: Samples,
        stage: Stage,
        schedule: ScheduleOptions = ScheduleOptions(),
        *,
        done: int | None = None,
        seed: int | None = None,
        validate: Callable[[int], None] | None = None,
    ) -> Iterator[Step]:
        """The optimizer steps of a stage that are not done yet.

        Before each step all learning rates are set; a parameter group with a key `peak` gets its part of `peak`. After
        the body of the loop the EMA is updated, `validate` is called, a line is logged and a checkpoint is saved, each
        when it is due. The last step of the run is always saved, because its result is not.

        Args:
            samples: data of the stage.
            stage: number of steps and learning rate.
            schedule: how the learning rate changes within the stage.
            done: steps of the stage that are done; None if the stage is the whole run.
            seed: seed of the order of the data; None for that of the run.
            validate: called after each step with the number of steps of the run that are done.

        Raises:
            TrainingStopped: after saving, if a signal came.
            ValueError: after saving, if a rank cannot load its samples.
        """
        done = self.step if done is None else done
        seed = self.options.seed if seed is None else seed
        for note in compare_data(self.folder, samples, seed, resumed=self.checkpoint is not None):
            self.say(note)
        batches = samples.batches(self.layout, seed, done, stage.steps, self.options.dataloader_workers)
        for number in range(done, stage.steps):
            micro_batches = self._load_samples(samples, batches)
            rate = schedule.learning_rate(stage, number)
            for group in self._groups():
                group["lr"] = group.get("peak", 1.0) * rate
            step = Step(self, micro_batches, rate)
            yield step
            for name, ema in self.ema.items():
                ema.update(self._followed[name], self.step)
            if validate is not None:
                validate(self.step + 1)
            self._end_of_step({"learning_rate": rate, **step.values})

    def autocast(self):
        """Context in which models compute in the precision of the run."""
        return self.accelerator.autocast()

    def is_logged(self, step: int) -> bool:
        """Whether the log gets a line after `step` steps."""
        return step % self.options.log_steps == 0 or step == self.total_steps

    def save_checkpoint(self) -> Path:
        """Save now; all ranks must call it."""
        limit = self.options.checkpoints_total_limit
        return save_checkpoint(self.accelerator, self.folder, self.step, self._modules(), limit)

    def close(self) -> None:
        """End trackers and progress bar, and give the signals back."""
        self.progress.close()
        self._signals.restore()
        if self.options.report_to:
            self.accelerator.end_training()

    def _end_of_step(self, values: dict[str, float]) -> None:
        self.step += 1
        self.progress.update(1)
        if self.is_logged(self.step):
            loss = self.log.write(self.step, values)
            self.progress.set_postfix(loss=f"{loss:.4f}", refresh=False)
        stop = self._on_any_rank(self._signals.stop_asked)  # all ranks must agree to save together
        if self.step % self.options.checkpointing_steps == 0 or self.step == self.total_steps or stop:
            self.save_checkpoint()
        if stop:
            self.close()
            raise TrainingStopped(
                f"stopped after step {self.step} of {self.total_steps}; saved in {self.output_dir}: "
                "the same command with --resume goes on"
            )

    def _load_samples(self, samples: Samples, batches: Iterator[list[dict]]) -> list[dict]:
        """The micro-batches of the next step. If a rank cannot load them, all ranks save the steps before and stop."""
        micro_batches, problem = [], None
        try:
            micro_batches = next(batches)
        except (ValueError, OSError) as error:
            problem = str(error)
        while notes := getattr(samples, "notes", None):
            self.say(notes.pop(0))
        if self._on_any_rank(problem is not None):
            problem = problem or "another process could not load its samples"
            if self.step:
                saved = self.save_checkpoint()
                problem += (
                    f"; the {self.step} steps before are saved in {saved}: without that file, or with a whole one, "
                    "the same command with --resume goes on"
                )
            self.close()
            raise ValueError(problem)
        return micro_batches

    def _on_any_rank(self, flag: bool) -> bool:
        if self.accelerator.num_processes > 1:
            flag = self.accelerator.reduce(torch.tensor([float(flag)], device=self.device), "sum").item()
        return bool(flag)

    def _load(self) -> None:
        """Load the checkpoint into what was prepared."""
        given = [{k: v for k, v in group.items() if k != "params"} for group in self._groups()]
        self.step = load_checkpoint(self.accelerator, self.checkpoint, self._modules())
        for group, values in zip(self._groups(), given, strict=True):
            group.update(values)  # the flags of this run, not those of the run that saved
        self._loaded = True
        self.log.cut(self.step)
        self.progress.update(self.step - self.progress.n)
        self.say(f"resumed from {self.checkpoint} after step {self.step}")

    def _modules(self) -> dict[str, torch.nn.Module]:
        """What checkpoints hold beside what was prepared, by the name of the file."""
        return {f"ema_{name}": ema.model for name, ema in self.ema.items()} | self.kept

    def _groups(self) -> list[dict]:
        """Parameter groups of all optimizers."""
        return [group for optimizer in self._optimizers for group in optimizer.param_groups]

    def _write_config(self) -> list[str]:
        """Write OUTPUT_DIR/config.yaml; returns what differs from the arguments of the run that is resumed."""
        changed, path, arguments = [], self.folder.claim("config.yaml"), self.options.arguments
        if self.accelerator.is_main_process:
            changed = changed_arguments(arguments, path) if self.options.resume else []
            if not (arguments.get("config") and path.exists() and path.samefile(arguments["config"])):
                write_config(arguments, path)
        return changed

    def _say_what_is_unusual(self, changed: list[str], damaged: list[Path]) -> None:
        options = self.options
        for path in damaged:
            self.say(f"{path} is not complete, so the newest complete checkpoint before it is used")
        if changed:
            self.say(
                f"this run began with other arguments ({', '.join(changed)}): from here on the new ones are used, and "
                "the result is that of neither"
            )
        if self.accelerator.num_processes == 1 and "MASTER_ADDR" in os.environ and "WORLD_SIZE" not in os.environ:
            self.say(
                "this run has one process: on CPUs, several need `accelerate launch --multi_gpu --num_processes N`, "
                "or `torchrun --nproc_per_node N`"
            )
        if self.checkpoint is None:
            self.log.cut(0)  # lines of a run that was killed before its first checkpoint
            if options.resume:
                self.say(f"no complete checkpoint in {self.output_dir} yet: starting from the beginning")
