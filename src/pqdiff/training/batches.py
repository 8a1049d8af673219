"""Which samples a step sees: fixed by the seed, the same for any number of processes, and known without history."""

import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from .randomness import generator_for


@dataclass(frozen=True)
class Layout:
    """How the samples of a step are spread out.

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


class BatchPlan:
    """The global batch of every step: each epoch shows every sample, in new order, in batches of one bucket.

    A bucket's last batch of an epoch is filled up from its start.

    Args:
        buckets: for every sample a hashable key, such as its shape; samples of a batch share it.
        batch_size: samples per global batch.
        seed: fixes the order.
    """

    def __init__(self, buckets: Sequence[Any], batch_size: int, seed: int):
        if not len(buckets):
            raise ValueError("the data set is empty")
        members: dict[Any, list[int]] = {}
        for index, key in enumerate(buckets):
            members.setdefault(key, []).append(index)
        self.members = [torch.tensor(members[key]) for key in sorted(members, key=str)]
        self.batch_size, self.seed = batch_size, seed
        self.steps_per_epoch = sum(-(-len(bucket) // batch_size) for bucket in self.members)
        self._epoch, self._batches = -1, []

    def samples(self, step: int) -> list[int]:
        """Samples of the global batch of step `step`."""
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
    """Micro-batch number m of this process, over all steps; what a worker of the loader makes."""

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
    """What is wrong with a sample, from a worker: raised there, it would come with the worker's traceback in its text."""

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
    """The micro-batches of the steps from `start` to before `stop`, a list per step.

    Args:
        plan: which samples.
        layout: which of them are this process's.
        load: makes a batch of samples, with a generator for each one's crop, flip and caption dropout.
        seed: of those generators.
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
        generator=torch.Generator(),  # keeps the loader off the global random state
    )
    batches = iter(loader)
    for _ in range(start, stop):
        micro_batches = [next(batches) for _ in range(layout.accumulation)]
        for batch in micro_batches:
            if isinstance(batch, _Failure):
                raise ValueError(batch.text)
        yield micro_batches


def _leave_signals_to_the_trainer(worker: int) -> None:
    """A launcher or terminal signals the whole group: the trainer saves and ends its workers, which must not die first."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
