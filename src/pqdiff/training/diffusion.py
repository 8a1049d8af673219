"""The diffusion objective: noise, the target of the scheduler's own prediction type, and min-SNR weights."""

import argparse
from dataclasses import dataclass
from typing import Self

import torch
from diffusers import DDPMScheduler
from diffusers.training_utils import compute_snr

from pqdiff.adaptation.prediction_types import TRAINED_PREDICTION_TYPES
from pqdiff.training.options import Options


def add_objective_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `ObjectiveOptions`."""
    parser.add_argument("--min_snr_gamma", type=float, default=None, help="weigh timesteps by min(SNR, gamma)")
    parser.add_argument(
        "--noise_density",
        type=float,
        nargs=2,
        default=None,
        help="mean and standard deviation of ln(noise / signal) over the timesteps; default: all timesteps alike",
    )


@dataclass(frozen=True)
class ObjectiveOptions(Options):
    """See `DiffusionObjective`."""

    min_snr_gamma: float | None = None
    noise_density: tuple[float, float] | list[float] | None = None


@dataclass(frozen=True)
class NoisySample:
    """Noisy latents, and what a denoiser should predict from them.

    Attributes:
        latents: noisy latents `(B, d, h, w)`.
        timesteps: int64 `(B,)`.
        target: what the denoiser should predict, `(B, d, h, w)`.
        weights: weight of the loss of each sample, `(B,)`.
    """

    latents: torch.Tensor
    timesteps: torch.Tensor
    target: torch.Tensor
    weights: torch.Tensor


class DiffusionObjective:
    """Mean squared error of noise, velocity or clean latents, as the scheduler's configuration says.

    How the prediction type matters in channels that hold little signal: velocity prediction has nothing to learn in a
    channel of unit variance that is Gaussian noise, but in a channel of small variance it must pass the noise through, as
    noise prediction must in all channels. Prediction of clean latents (`sample`) has nothing to learn there.

    Args:
        scheduler: diffusers scheduler of the pipeline to train, which gives noise schedule and prediction type.
        min_snr_gamma: use the weights min(SNR, gamma) / SNR of Hang et al. 2023 (arXiv 2303.09556), in the form for the
            prediction type; None for equal weights of all timesteps.
        noise_density: mean and standard deviation of ln(noise / signal) over the timesteps that are drawn, as in Karras
            et al. 2022 (arXiv 2206.00364); None to draw all timesteps with equal probability.

    Raises:
        ValueError: for a prediction type that cannot be trained, for `epsilon` with a schedule that ends in pure noise
            (where the signal would not matter), and for a density whose standard deviation is not positive.
    """

    def __init__(
        self, scheduler, min_snr_gamma: float | None = None, noise_density: tuple[float, float] | None = None
    ):
        self.scheduler = DDPMScheduler.from_config(scheduler.config)
        self.prediction_type = scheduler.config.prediction_type
        self.min_snr_gamma = min_snr_gamma
        if self.prediction_type not in TRAINED_PREDICTION_TYPES:
            raise ValueError(
                f"prediction_type ({self.prediction_type!r}) must be one of {', '.join(TRAINED_PREDICTION_TYPES)}"
            )
        self._cumulative = None if noise_density is None else self._cumulative_density(*noise_density)
        if self.prediction_type == "epsilon" and self.scheduler.alphas_cumprod[-1] < 1e-6:
            raise ValueError("rescale_betas_zero_snr ends in pure noise and needs prediction_type v_prediction")

    @classmethod
    def from_options(cls, scheduler, options: ObjectiveOptions) -> Self:
        """Objective with the given options."""
        return cls(scheduler, options.min_snr_gamma, options.noise_density)

    def noisy(self, latents: torch.Tensor, generators: list[torch.Generator]) -> NoisySample:
        """Latents `(B, d, h, w)` at timesteps and with noise drawn from each sample's own generator (CPU)."""
        timesteps = torch.cat([self._timestep(g) for g in generators])
        noise = torch.stack([torch.randn(latents.shape[1:], generator=g) for g in generators])
        return self.noisy_at(latents, timesteps.to(latents.device), noise.to(latents))

    def noisy_at(self, latents: torch.Tensor, timesteps: torch.Tensor, noise: torch.Tensor) -> NoisySample:
        """Latents `(B, d, h, w)` with given noise `(B, d, h, w)` at given timesteps `(B,)`."""
        mixed = self.scheduler.add_noise(latents, noise, timesteps)
        targets = {
            "epsilon": lambda: noise,
            "v_prediction": lambda: self.scheduler.get_velocity(latents, noise, timesteps),
            "sample": lambda: latents,
        }
        target = targets[self.prediction_type]()
        weights = torch.ones_like(timesteps, dtype=torch.float)
        if self.min_snr_gamma is not None:
            snr = compute_snr(self.scheduler, timesteps).float()
            # The weight of the error in clean latents is min(SNR, gamma), whatever is predicted.
            per_error = {"epsilon": snr, "v_prediction": snr + 1, "sample": torch.ones_like(snr)}
            weights = snr.clamp(max=self.min_snr_gamma) / per_error[self.prediction_type]
        return NoisySample(mixed, timesteps, target, weights)

    def _timestep(self, generator: torch.Generator) -> torch.Tensor:
        """One timestep, int64 `(1,)`."""
        if self._cumulative is None:
            return torch.randint(self.scheduler.config.num_train_timesteps, (1,), generator=generator)
        return torch.searchsorted(self._cumulative, torch.rand(1, generator=generator, dtype=torch.float64))

    def _cumulative_density(self, mean: float, deviation: float) -> torch.Tensor:
        """Probability `(T - 1,)`, float64, that a timestep is at most this one; the last one has the rest."""
        if not 0 < deviation < float("inf"):
            raise ValueError(f"noise_density ({mean}, {deviation}): the standard deviation must be positive")
        alphas = self.scheduler.alphas_cumprod.double()
        log_noise = (
            1 / alphas - 1
        ).log() / 2  # ln(noise / signal) of every timestep, ascending; the last may be infinite
        borders = (log_noise[:-1] + log_noise[1:]) / 2
        borders = torch.where(borders.isfinite(), borders, log_noise[:-1])
        return torch.distributions.Normal(mean, deviation).cdf(borders)

    @staticmethod
    def loss(prediction: torch.Tensor, sample: NoisySample) -> torch.Tensor:
        """Weighted mean squared error, a scalar in fp32."""
        errors = (prediction.float() - sample.target.float()).square().flatten(1).mean(dim=1)  # (B,)
        return (errors * sample.weights).mean()


def shift_noise(scheduler, factor: float):
    """The same scheduler with the noise-to-signal ratio of every timestep multiplied by `factor`.

    If a few latent channels hold most of the variance (standardization exponent below 1), they stay visible under noise
    that hides the latents of the base model. A factor above 1 then gives every timestep the difficulty that the
    pretrained UNet was trained on. The schedule is stored as `trained_betas`, which every diffusers scheduler reads.

    Raises:
        ValueError: if the factor is not positive.
    """
    if not 0 < factor < float("inf"):
        raise ValueError(f"noise_shift ({factor}) must be a positive number; 1 leaves the schedule as it is")
    alphas = DDPMScheduler.from_config(scheduler.config).alphas_cumprod.double()
    shifted = alphas / (alphas + (1 - alphas) * factor**2)
    # A last step of pure noise keeps a little signal, as in diffusers' zero-SNR schedules: some schedulers divide by it.
    shifted = shifted.clamp(min=min(2**-24, shifted[shifted > 0].min().item() / 2))
    previous = torch.cat([torch.ones(1, dtype=torch.float64), shifted[:-1]])
    betas = (1 - shifted / previous).clamp(0, 1)
    # The shifted schedule ends where the rescaled one did: rescaling it again would change it.
    return type(scheduler).from_config(scheduler.config, trained_betas=betas.tolist(), rescale_betas_zero_snr=False)
