"""One optimizer step as the loop of a trainer sees it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch

from pqdiff.training.randomness import generator_for

if TYPE_CHECKING:
    from pqdiff.training.session import Session


class Step:
    """One optimizer step; made by `Session.steps`.

    Attributes:
        number: number of this step, from 0.
        learning_rate: learning rate of this step.
        values: numbers for the log.
    """

    def __init__(self, session: Session, micro_batches: list[dict], learning_rate: float):
        self.session, self.number, self.learning_rate = session, session.step, learning_rate
        self.values: dict[str, float] = {}
        self._micro_batches, self._micro_step = micro_batches, 0

    def micro_batches(self) -> Iterator[dict]:
        """The micro-batches of this process. Their gradients add up; only at the last one do optimizers step."""
        for number, batch in enumerate(self._micro_batches):
            self._micro_step = number
            with self.session.accelerator.accumulate(*self.session.models.values()):
                yield batch

    def generators(self, name: str) -> list[torch.Generator]:
        """A generator (CPU) for each sample of the micro-batch; it depends on nothing but seed, name, step and the place
        of the sample in the global batch."""
        slots = self.session.layout.slots(self._micro_step)
        return [generator_for(self.session.options.seed, name, self.number, slot) for slot in slots]

    def backward(self, loss: torch.Tensor, log: bool = True) -> None:
        """Check that the loss of the micro-batch is finite, and add its gradients.

        Args:
            loss: a scalar.
            log: whether the loss is a part of the mean loss in the log.

        Raises:
            ValueError: on all ranks, if the loss is not finite on one of them. The batch is saved, and the message names
                the file.
        """
        session = self.session
        bad = (~torch.isfinite(loss.detach())).any().float().reshape(1)
        if session.accelerator.num_processes > 1:
            bad = session.accelerator.reduce(bad, "sum")
        if bad.item():
            number, batch = self.number + 1, self._micro_batches[self._micro_step]
            path = session.folder.claim(f"nonfinite-step{number}-rank{session.accelerator.process_index}.pt")
            torch.save({"step": number, "loss": loss.detach().cpu(), "batch": batch}, path)
            raise ValueError(
                f"the loss is not finite at step {number}; its batch is in {path}. Lower the learning rate, or use bf16 "
                "or fp32 instead of fp16"
            )
        if log:
            session.log.add_loss(loss)
        session.accelerator.backward(loss)

    def update(self, optimizer: torch.optim.Optimizer) -> None:
        """Clip the gradients of an optimizer's parameters, step, and reset the gradients; at the last micro-batch only."""
        accelerator, norm = self.session.accelerator, self.session.options.max_grad_norm
        if accelerator.sync_gradients and norm:
            accelerator.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], norm)
        optimizer.step()
        optimizer.zero_grad()

    @property
    def is_logged(self) -> bool:
        """Whether the log gets a line for this step."""
        return self.session.is_logged(self.number + 1)

    def log(self, **values: float) -> None:
        """Add numbers to the line that the log gets for this step."""
        self.values |= values
