"""New values for codewords that are not used during training."""

import torch

from pqdiff.data.images.reading import normalize
from pqdiff.metrics.codebook import TokenCounts
from pqdiff.models.autoencoder_pq import AutoencoderPQ
from pqdiff.training.randomness import generator_for
from pqdiff.training.session import Session


class CodewordRestarts:
    """Every so many steps, gives codewords that no rank has used since the last time a new value, the same on all ranks.

    The new values are codes of the global batch of the step, so they do not depend on the number of processes. Which
    codewords were used is part of the checkpoints.

    Args:
        session: the run.
        model: unwrapped autoencoder.
        every: steps between restarts; 0 for none.

    Raises:
        ValueError: if codewords of the model cannot be restarted.
    """

    def __init__(self, session: Session, model: AutoencoderPQ, every: int):
        self.session, self.model, self.every = session, model, every
        self._pixels: list[torch.Tensor] = []
        if every:
            _check_restartable(model)
            sizes = model.quantizer.codebook_sizes
            self._counts = TokenCounts(sizes, sync_on_compute=False).to(session.device)
            self._used = torch.nn.Module()
            self._used.register_buffer("used", torch.zeros(sum(sizes), dtype=torch.bool, device=session.device))
            session.kept["used_codewords"] = self._used

    def count(self, indices: torch.Tensor | None, pixels: torch.Tensor, number: int) -> None:
        """Look at a micro-batch of step `number` (from 0).

        Args:
            indices: its tokens `(B, G, h, w)`; None where the quantizer gives no tokens in training.
            pixels: its images `(B, 3, H, W)`, uint8.
            number: number of the step.
        """
        if self.every and indices is not None:
            self._counts.update(indices)
        if self._is_due(number):
            self._pixels.append(pixels)

    @torch.no_grad()
    def step(self, number: int, optimizer: torch.optim.Optimizer) -> None:
        """Restart if it is due after step `number` (from 0); all ranks must call it after each step."""
        if not self.every:
            return
        accelerator, quantizer, used = self.session.accelerator, self.model.quantizer, self._used.used
        used |= torch.cat([counts > 0 for counts in self._counts.counts_per_token()]).to(used.device)
        self._counts.reset()
        if accelerator.num_processes > 1:
            used.copy_(accelerator.reduce(used.float(), "sum") > 0)
        if not self._is_due(number):
            return
        pixels, self._pixels = torch.cat(self._pixels), []
        # One by one: the last bits of convolutions depend on the size of the batch.
        images = normalize(pixels.to(self.session.device)).split(1)
        codes = torch.cat([self.model.transform.analysis(image).float() for image in images])
        if accelerator.num_processes > 1:
            codes = accelerator.gather(codes.contiguous())
        layout = self.session.layout  # what is gathered comes rank by rank, the global batch micro-step by micro-step
        codes = codes.unflatten(0, (layout.processes, layout.accumulation, -1)).transpose(0, 1).flatten(0, 2)
        unused = ~used
        used.zero_()
        if not unused.any():
            return
        generator = generator_for(self.session.options.seed, "restart", number)
        changed = quantizer.restart(list(unused.split(quantizer.codebook_sizes)), codes, generator)
        for name, mask in changed:
            self._follow(f"quantizer.{name}", mask, optimizer)
        moved = sum(int(mask.any(dim=-1).sum()) for name, mask in changed if name == "codebooks")
        self.session.say(f"step {number + 1}: {moved:,} codewords that were not used have a new value")

    def _is_due(self, number: int) -> bool:
        return bool(self.every) and (number + 1) % self.every == 0

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
