"""Which samples a step gets: this depends on the seed and the step alone, not on the number of processes."""

import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch.utils.data import DataLoader, Dataset

from pqdiff.training.randomness import generator_for


@dataclass(frozen=True)
class Layout:
    """How the samples of a step are spread over processes and micro-steps.

    Attributes:
        batch_size: samples per process and micro-step.
        accumulation: micro-steps per optimizer step.
        processes: number of processes.
        rank: number of this one.
    """

    batch_size: int
    accumulation: int = 1
    processes: int = 1
    rank: int = 0

    @property
    def global_batch_size(self) -> int:
        """Samples per optimizer step."""
        return self.batch_size * self.accumulation * self.processes

    def slots(self, micro_step: int) -> range:
        """Places in the global batch that this process works on in micro-step `micro_step` of a step."""
        start = (micro_step * self.processes + self.rank) * self.batch_size
        return range(start, start + self.batch_size)


def share_batch(global_batch_size: int, micro_steps: int, processes: int) -> int:
    """Samples per process and micro-step that make up a given global batch.

    Raises:
        ValueError: if it cannot be shared evenly.
    """
    size, rest = divmod(global_batch_size, processes * micro_steps)
    if rest:
        raise ValueError(
            f"--batch_size is missing: {global_batch_size} samples a step cannot be shared by {processes} process(es) "
            f"times {micro_steps} micro-step(s) (--gradient_accumulation_steps)"
        )
    return size


class Samples(Protocol):
    """A data set that trainers read by step.

    Attributes:
        notes: lines for the user about what is unusual, which `batches` adds while it runs.
    """

    notes: list[str]

    def batches(self, layout: Layout, seed: int, start: int, stop: int, workers: int = 0) -> Iterator[list[dict]]:
        """Micro-batches of the steps from `start` to before `stop`, one list per step.

        Args:
            layout: which samples of a step are those of this process.
            seed: of the order and of what is drawn for each sample.
            start: first step.
            stop: one beyond the last step.
            workers: processes or threads that load ahead.
        """


class BatchPlan:
    """The global batch of every step: each epoch has every sample, in a new order, in batches of one bucket.

    The last batch of a bucket in an epoch is filled up with the first samples of the bucket.

    Args:
        buckets: a hashable key for each sample, such as its shape; the samples of a batch have the same key.
        batch_size: samples per global batch.
        seed: seed of the order.

    Raises:
        ValueError: if there are no samples.
    """

    def __init__(self, buckets: Sequence[Any], batch_size: int, seed: int):
        if not len(buckets):
            raise ValueError("the data set is empty")
        members: dict[Any, list[int]] = {}
        for index, key in enumerate(buckets):
            members.setdefault(key, []).append(index)
        self._sizes = {key: len(members[key]) for key in sorted(members, key=str)}
        self.members = [torch.tensor(members[key]) for key in sorted(members, key=str)]
        self.batch_size, self.seed = batch_size, seed
        self.steps_per_epoch = sum(-(-len(bucket) // batch_size) for bucket in self.members)
        self._epoch, self._batches = -1, []

    def small_buckets(self) -> dict[Any, int]:
        """Number of samples of each bucket that does not fill a batch."""
        return {key: size for key, size in self._sizes.items() if size < self.batch_size}

    def samples(self, step: int) -> list[int]:
        """Numbers of the samples in the global batch of step `step`."""
        epoch, place = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:
            self._epoch, self._batches = epoch, self._shuffled(epoch)
        return self._batches[place].tolist()

    def _shuffled(self, epoch: int) -> list[torch.Tensor]:
        generator = generator_for(self.seed, "order", epoch)
        batches = []
        for bucket in self.members:
            bucket = bucket[torch.randperm(len(bucket), generator=generator)]
            count = -(-len(bucket) // self.batch_size) * self.batch_size
            batches += bucket[torch.arange(count) % len(bucket)].split(self.batch_size)
        return [batches[i] for i in torch.randperm(len(batches), generator=generator)]


class _MicroBatches(Dataset):
    """The micro-batches of this process in all steps, by number; a worker of the loader makes them."""

    def __init__(self, plan: BatchPlan, layout: Layout, load: Callable, seed: int):
        self.plan, self.layout, self.load, self.seed = plan, layout, load, seed

    def __getitem__(self, position: int) -> dict:
        step, micro_step = divmod(position, self.layout.accumulation)
        samples, slots = self.plan.samples(step), self.layout.slots(micro_step)
        generators = [generator_for(self.seed, "sample", step, slot) for slot in slots]
        try:
            return self.load([samples[slot] for slot in slots], generators)
        except (ValueError, OSError) as error:
            return _Failure(str(error))


@dataclass(frozen=True)
class _Failure:
    """What is wrong with a sample. If a worker raised it, the message would hold the worker's traceback."""

    text: str


def iterate_batches(
    plan: BatchPlan,
    layout: Layout,
    load: Callable[[list[int], list[torch.Generator]], dict],
    seed: int,
    start: int,
    stop: int,
    workers: int = 0,
) -> Iterator[list[dict]]:
    """The micro-batches of the steps from `start` to before `stop`, one list per step.

    Args:
        plan: samples of each step.
        layout: which of them are those of this process.
        load: makes a batch of samples by number, with a generator for each sample's crop, flip and caption dropout.
        seed: seed of those generators.
        start: first step.
        stop: one beyond the last step.
        workers: processes that load ahead.

    Raises:
        ValueError: if a sample cannot be loaded.
    """
    positions = range(start * layout.accumulation, stop * layout.accumulation)
    loader = DataLoader(
        _MicroBatches(plan, layout, load, seed),
        sampler=positions,
        batch_size=None,
        num_workers=workers,
        worker_init_fn=_leave_signals_to_the_trainer,
        persistent_workers=False,
        generator=torch.Generator(),  # so that the loader does not change the global random state
    )
    batches = iter(loader)
    for _ in range(start, stop):
        micro_batches = [next(batches) for _ in range(layout.accumulation)]
        for batch in micro_batches:
            if isinstance(batch, _Failure):
                raise ValueError(batch.text)
        yield micro_batches


def _leave_signals_to_the_trainer(worker: int) -> None:
    """Ignore signals to the whole group of processes: the trainer ends its workers itself, after it has saved."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
