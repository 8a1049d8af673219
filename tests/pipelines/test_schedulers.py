"""Whichever scheduler a pipeline gets: latents are never clipped, and what the model was trained with is kept."""

import diffusers
import pytest
import torch

from pqdiff import PQStableDiffusionPipeline
from pqdiff.cli.generation_settings import SCHEDULERS
from pqdiff.pipelines.schedulers import switch_scheduler
from tests.pipelines.support import build
from tests.tiny import tiny_components, tiny_scheduler

NOISE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
TRAINED = {**NOISE, "prediction_type": "v_prediction", "timestep_spacing": "trailing", "rescale_betas_zero_snr": True}
OFFERED = [getattr(diffusers, name) for name in SCHEDULERS.values()]
CLIPPING = [diffusers.DDIMScheduler, diffusers.DDPMScheduler, diffusers.DDIMParallelScheduler]


@pytest.mark.parametrize("source", OFFERED)
@pytest.mark.parametrize("target", OFFERED)
def test_a_switch_keeps_what_the_model_was_trained_with_and_clips_nothing(source, target):
    switched = switch_scheduler(source(**TRAINED), target)
    assert type(switched) is target
    assert {key: switched.config[key] for key in TRAINED} == TRAINED
    assert not switched.config.get("clip_sample")
    assert not switched.config.get("thresholding")
    assert switched.alphas_cumprod[-1] < 1e-6


@pytest.mark.parametrize("target", OFFERED)
def test_a_switch_keeps_settings_that_are_defaults_of_the_old_class(target):
    source = diffusers.EulerDiscreteScheduler(**NOISE)  # linspace by default; DDIM has leading
    assert switch_scheduler(source, target).config.timestep_spacing == "linspace"


@pytest.mark.parametrize("kind", CLIPPING)
@pytest.mark.parametrize("late", [True, False])
def test_a_scheduler_given_to_a_pipeline_does_not_clip(kind, late):
    scheduler = kind.from_config(diffusers.EulerDiscreteScheduler(**TRAINED).config)
    assert scheduler.config.clip_sample  # its default
    pipe = build() if late else PQStableDiffusionPipeline(**tiny_components(scheduler=scheduler))
    pipe.scheduler = scheduler
    large = torch.full((1, 8, 4, 4), 5.0)
    pipe.scheduler.set_timesteps(1)
    result = pipe.scheduler.step(-large, 999, torch.zeros_like(large)).prev_sample  # v = -x0 at pure noise
    assert result.abs().max() > 4


def test_thresholding_of_pixels_is_turned_off():
    pipe = build(scheduler=tiny_scheduler(thresholding=True))
    assert not pipe.scheduler.config.thresholding


@pytest.mark.parametrize("kind", [diffusers.PNDMScheduler, diffusers.HeunDiscreteScheduler])
def test_a_scheduler_that_cannot_have_the_noise_schedule_of_the_model_is_refused(kind):
    pipe = build(scheduler=tiny_scheduler(rescale_betas_zero_snr=True))
    before = pipe.scheduler
    message = rf"{kind.__name__} cannot have rescale_betas_zero_snr.*take DDIM, Euler"
    with pytest.raises(ValueError, match=message):
        pipe.scheduler = kind.from_config(pipe.scheduler.config)
    with pytest.raises(ValueError, match=message):
        switch_scheduler(pipe.scheduler, kind)
    with pytest.raises(ValueError, match=message):
        build(scheduler=kind.from_config(before.config))
    assert pipe.scheduler is before
