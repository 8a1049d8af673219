"""Schedulers for latents: switching between classes keeps what the model was trained with, and nothing is clipped."""

from diffusers import SchedulerMixin


def switch_scheduler(scheduler: SchedulerMixin, kind: type[SchedulerMixin]) -> SchedulerMixin:
    """A `kind` with all settings of `scheduler` that it knows: noise schedule, what the model predicts, and timesteps.

    `from_config` alone takes the defaults of `kind` for settings that `scheduler` has by its own defaults.

    Raises:
        ValueError: if a `kind` cannot have the noise schedule; see `fit_latents`.
    """
    config = {key: value for key, value in scheduler.config.items() if key != "_use_default_values"}
    return fit_latents(kind.from_config(config))


def fit_latents(scheduler: SchedulerMixin) -> SchedulerMixin:
    """The same scheduler, made not to clip: some do by default, and latents are not pixels in [-1, 1].

    Raises:
        ValueError: for a class that ignores the noise schedule of its config, with those that do not.
    """
    config = scheduler.config
    clips = {key: False for key in ("clip_sample", "thresholding") if config.get(key)}
    if clips:
        scheduler.register_to_config(**clips)
    # A class that does not know the setting keeps it in its config without following it.
    if (
        config.get("rescale_betas_zero_snr")
        and not config.get("trained_betas")
        and scheduler.alphas_cumprod[-1] > 1e-6
    ):
        raise ValueError(
            f"{type(scheduler).__name__} cannot have rescale_betas_zero_snr, with which the model was trained, so its "
            "images would be wrong: take DDIM, Euler, DPMSolverMultistep or UniPC"
        )
    return scheduler
