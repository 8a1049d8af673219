"""The smallest training: a linear layer that learns to give 0, through `Session.steps`."""

import torch
from torch import nn

from pqdiff.adaptation.stages import Stage
from pqdiff.training.arguments import TrainerParser
from pqdiff.training.run_options import RunOptions
from pqdiff.training.session import Session
from tests.training.support import flags


class Numbers:
    """Samples whose batches hold the number of their step, their slots and a caption."""

    def batches(self, layout, seed, start, stop, workers=0):
        for step in range(start, stop):
            yield [
                {"step": step, "slots": list(layout.slots(m)), "captions": ["a"]} for m in range(layout.accumulation)
            ]


def open_session(output_dir, total_steps=6, global_batch_size=None, **options) -> Session:
    """A session of the flags of all trainers."""
    options = {"checkpointing_steps": 3, "log_steps": 2, **options}
    parser = TrainerParser("A trainer.")
    if global_batch_size:
        parser.set_defaults(batch_size=None)
    args = parser.parse(flags(output_dir=output_dir, **options))
    return Session(RunOptions.from_args(args), total_steps, "test", global_batch_size)


def train(session, until=None, factors=None, signal_at=None, validate=None, samples=None):
    """Train to the step `until`; returns the layer. The loss is multiplied by `factors`, one for each step; `signal_at`
    is a step and a function that is called in it."""
    torch.manual_seed(0)
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    session.start_ema({"model": model})
    wrapped, optimizer = session.prepare({"model": model}, optimizer)
    for step in session.steps(samples or Numbers(), Stage(1, until or session.total_steps, 0.1), validate=validate):
        for _ in step.micro_batches():
            loss = wrapped["model"](torch.ones(1, 2)).square().mean()
            step.backward(loss * factors[step.number] if factors else loss)
            step.update(optimizer)
        if signal_at and step.number == signal_at[0]:
            signal_at[1]()
    return model
