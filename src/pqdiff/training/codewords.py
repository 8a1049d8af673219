"""New values for codewords that are not used during training."""

import torch

from pqdiff.metrics.codebook import TokenCounts
from pqdiff.models.autoencoder_pq import AutoencoderPQ
from pqdiff.training.randomness import generator_for
from pqdiff.training.session import Session


class CodewordRestarts:
    """Every so many steps, gives codewords that no rank has used since the last time a new value, the same on all ranks.

    The counts are part of the checkpoints.

    Args:
        session: the run.
        model: unwrapped autoencoder.
        every: steps between restarts; 0 for none.

    Raises:
        ValueError: if codewords of the model cannot be restarted.
    """

    def __init__(self, session: Session, model: AutoencoderPQ, every: int):
        self.session, self.model, self.every = session, model, every
        if every:
            _check_restartable(model)
            self.counts = TokenCounts(model.quantizer.codebook_sizes, sync_on_compute=False).to(session.device)
            self.counts.persistent(True)
            session.accelerator.register_for_checkpointing(self.counts)

    def count(self, indices: torch.Tensor | None) -> None:
        """Count the tokens `(B, G, h, w)` of a micro-batch; None where the quantizer gives no tokens in training."""
        if self.every and indices is not None:
            self.counts.update(indices)

    @torch.no_grad()
    def step(self, number: int, images: torch.Tensor, optimizer: torch.optim.Optimizer) -> None:
        """Restart if it is due after step `number` (from 0), with codes of images `(B, 3, H, W)` in [-1, 1]."""
        if not self.every or (number + 1) % self.every:
            return
        accelerator, quantizer = self.session.accelerator, self.model.quantizer
        unused = torch.cat([counts == 0 for counts in self.counts.counts_per_token()])
        if accelerator.num_processes > 1:
            from accelerate.utils import broadcast

            unused = accelerator.reduce(unused.float(), "sum") == accelerator.num_processes  # on every rank
            images = broadcast(images.contiguous())
        self.counts.reset()
        if not unused.any():
            return
        generator = generator_for(self.session.options.seed, "restart", number)
        changed = quantizer.restart(
            list(unused.split(quantizer.codebook_sizes)), self.model.transform.analysis(images), generator
        )
        for name, mask in changed:
            self._follow(f"quantizer.{name}", mask, optimizer)
        self.session.say(f"step {number + 1}: {int(unused.sum()):,} codewords that were not used have a new value")

    def _follow(self, name: str, mask: torch.Tensor, optimizer: torch.optim.Optimizer) -> None:
        """Move the same entries of the EMA models, and forget what the optimizer knows of the old values."""
        tensor = self.model.state_dict(keep_vars=True)[name]
        for ema in self.session.ema.values():
            states = ema.model.state_dict()
            if name in states:
                states[name][mask] = tensor[mask].to(states[name])
        for value in optimizer.state.get(tensor, {}).values():
            if torch.is_tensor(value) and value.shape == tensor.shape:
                value[mask] = 0


def _check_restartable(model: AutoencoderPQ) -> None:
    """ValueError unless the quantizer can restart codewords."""
    quantizer = model.quantizer
    if not quantizer.can_restart:
        raise ValueError(
            f"--restart_dead_codewords: codewords of quantizer_type {model.config.quantizer_type} cannot be restarted; "
            "use 0 for none"
        )
