"""Targets and weights are those of the schedulers and papers; a shifted schedule is shifted exactly, everywhere."""

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler

from pqdiff import PQStableDiffusionPipeline
from pqdiff.training.diffusion import DiffusionObjective, shift_noise
from pqdiff.training.randomness import generator_for
from tests.tiny import tiny_components, tiny_scheduler

TIMESTEPS = torch.tensor([0, 37, 500, 999])
SOLVERS = (DDIMScheduler, EulerDiscreteScheduler, DPMSolverMultistepScheduler)


@pytest.fixture
def latents():
    return torch.randn(4, 8, 4, 4, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def noise():
    return torch.randn(4, 8, 4, 4, generator=torch.Generator().manual_seed(1))


def alphas_of(scheduler):
    return scheduler.alphas_cumprod[TIMESTEPS].double().view(-1, 1, 1, 1)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_noisy_latents_and_targets_follow_their_definitions(latents, noise, prediction_type):
    scheduler = tiny_scheduler(prediction_type)
    sample = DiffusionObjective(scheduler).noisy_at(latents, TIMESTEPS, noise)
    a, s = alphas_of(scheduler).sqrt(), (1 - alphas_of(scheduler)).sqrt()
    torch.testing.assert_close(sample.latents.double(), a * latents + s * noise, atol=1e-6, rtol=1e-5)
    target = noise.double() if prediction_type == "epsilon" else a * noise - s * latents
    torch.testing.assert_close(sample.target.double(), target, atol=1e-6, rtol=1e-5)
    assert torch.equal(sample.weights, torch.ones(4))


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_targets_are_those_that_the_scheduler_of_the_pipeline_inverts(latents, noise, prediction_type):
    scheduler = tiny_scheduler(prediction_type)
    sample = DiffusionObjective(scheduler).noisy_at(latents[2:3], TIMESTEPS[2:3], noise[2:3])
    scheduler.set_timesteps(1000)
    step = scheduler.step(sample.target, 500, sample.latents)
    torch.testing.assert_close(step.pred_original_sample, latents[2:3], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("gamma", [1.0, 5.0])
def test_min_snr_weights_are_the_papers(latents, noise, prediction_type, gamma):
    scheduler = tiny_scheduler(prediction_type)
    weights = DiffusionObjective(scheduler, gamma).noisy_at(latents, TIMESTEPS, noise).weights
    snr = (alphas_of(scheduler) / (1 - alphas_of(scheduler))).flatten()
    expected = torch.minimum(snr, torch.tensor(gamma)) / (snr + (prediction_type == "v_prediction"))
    torch.testing.assert_close(weights.double(), expected, atol=1e-6, rtol=1e-4)


def test_min_snr_with_pure_noise_has_a_finite_loss(latents, noise):
    objective = DiffusionObjective(tiny_scheduler(rescale_betas_zero_snr=True), 5.0)
    sample = objective.noisy_at(latents, TIMESTEPS, noise)
    assert torch.equal(sample.weights[3], torch.tensor(0.0))
    assert objective.loss(sample.target + 1, sample).isfinite()


def test_the_loss_is_the_weighted_mean_of_the_samples_errors(latents, noise):
    objective = DiffusionObjective(tiny_scheduler(), 5.0)
    sample = objective.noisy_at(latents, TIMESTEPS, noise)
    errors = torch.tensor([1.0, 2.0, 3.0, 4.0]).view(4, 1, 1, 1)
    loss = objective.loss((sample.target + errors).bfloat16(), sample)
    assert loss.dtype == torch.float32
    expected = (sample.weights * errors.flatten().square()).mean()
    torch.testing.assert_close(loss, expected, atol=0, rtol=0.02)


def test_noise_and_timestep_are_the_samples_own(latents):
    objective = DiffusionObjective(tiny_scheduler())
    together = objective.noisy(latents, [generator_for(0, "noise", 1, slot) for slot in range(4)])
    apart = [objective.noisy(latents[i : i + 1], [generator_for(0, "noise", 1, i)]) for i in range(4)]
    assert torch.equal(together.latents, torch.cat([sample.latents for sample in apart]))
    assert torch.equal(together.timesteps, torch.cat([sample.timesteps for sample in apart]))


def test_timesteps_cover_the_schedule():
    objective = DiffusionObjective(tiny_scheduler())
    sample = objective.noisy(torch.zeros(2000, 1, 1, 1), [generator_for(0, i) for i in range(2000)])
    assert 0 <= sample.timesteps.min() < 10
    assert 990 <= sample.timesteps.max() < 1000
    assert abs(sample.timesteps.float().mean() - 499.5) < 25


def test_timesteps_follow_the_density_of_noise_that_is_asked_for():
    scheduler = DDIMScheduler(
        beta_schedule="scaled_linear", prediction_type="v_prediction", rescale_betas_zero_snr=True
    )
    objective = DiffusionObjective(scheduler, noise_density=(-0.3, 0.8))
    generators = [torch.Generator().manual_seed(i) for i in range(4000)]
    sample = objective.noisy(torch.zeros(4000, 1, 1, 1), generators)
    alphas = scheduler.alphas_cumprod[sample.timesteps].double()
    log_noise = (1 / alphas - 1).log() / 2
    assert log_noise.median().item() == pytest.approx(-0.3, abs=0.06)
    inner = log_noise[(log_noise > -1.1) & (log_noise < 0.5)]
    assert len(inner) / 4000 == pytest.approx(0.6827, abs=0.03)  # within one deviation
    assert sample.timesteps.min() >= 0
    assert sample.timesteps.max() <= 999


def test_a_density_without_width_is_refused():
    with pytest.raises(ValueError, match=r"noise_density \(0, 0\)"):
        DiffusionObjective(DDIMScheduler(prediction_type="v_prediction"), noise_density=(0, 0))


@pytest.mark.parametrize("kind", SOLVERS)
def test_prediction_type_and_noise_come_from_any_scheduler(latents, noise, kind):
    scheduler = kind.from_config(tiny_scheduler().config)
    sample = DiffusionObjective(scheduler).noisy_at(latents, TIMESTEPS, noise)
    assert torch.equal(sample.target, DiffusionObjective(tiny_scheduler()).noisy_at(latents, TIMESTEPS, noise).target)


def test_unknown_prediction_types_are_refused():
    with pytest.raises(ValueError, match=r"prediction_type \('mood'\) must be one of epsilon, v_prediction, sample"):
        DiffusionObjective(tiny_scheduler("mood"))


def test_clean_latents_can_be_the_target_and_min_snr_weighs_their_error_alike_whatever_is_predicted(latents, noise):
    """The error of clean latents is that of the velocity times sigma: equal errors must weigh the same."""
    sample, velocity = (
        DiffusionObjective(tiny_scheduler(kind), min_snr_gamma=5.0).noisy_at(latents, TIMESTEPS, noise)
        for kind in ("sample", "v_prediction")
    )
    assert torch.equal(sample.target, latents)
    signal = DDPMScheduler.from_config(tiny_scheduler().config).alphas_cumprod[TIMESTEPS]
    torch.testing.assert_close(sample.weights, (signal / (1 - signal)).clamp(max=5.0))
    torch.testing.assert_close(velocity.weights, sample.weights * (1 - signal))


@pytest.mark.parametrize("factor", [1.0, 2.0])
def test_epsilon_with_a_schedule_that_ends_in_pure_noise_is_refused(factor):
    scheduler = shift_noise(tiny_scheduler("epsilon", rescale_betas_zero_snr=True), factor)
    with pytest.raises(ValueError, match="needs prediction_type v_prediction"):
        DiffusionObjective(scheduler)


# A shifted schedule.


def ratios(scheduler):
    """Noise-to-signal ratio of every timestep."""
    alphas = DDPMScheduler.from_config(scheduler.config).alphas_cumprod.double()
    return ((1 - alphas) / alphas).sqrt()


@pytest.mark.parametrize("factor", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("kind", SOLVERS)
def test_the_noise_to_signal_ratio_is_multiplied_at_every_timestep(kind, factor):
    scheduler = kind.from_config(tiny_scheduler().config)
    shifted = shift_noise(scheduler, factor)
    assert type(shifted) is kind
    torch.testing.assert_close(ratios(shifted), factor * ratios(scheduler), atol=0, rtol=1e-3)
    assert shifted.config.prediction_type == scheduler.config.prediction_type


@pytest.mark.parametrize("kind", SOLVERS)
def test_every_scheduler_samples_with_the_shifted_schedule(kind, tmp_path):
    base = tiny_scheduler(rescale_betas_zero_snr=True, timestep_spacing="trailing")
    components = tiny_components(scheduler=shift_noise(base, 3.0))
    PQStableDiffusionPipeline(**components).save_pretrained(tmp_path)
    pipe = PQStableDiffusionPipeline.from_pretrained(tmp_path)
    torch.testing.assert_close(ratios(pipe.scheduler)[:-1], 3 * ratios(base)[:-1], atol=0, rtol=1e-3)
    pipe.scheduler = kind.from_config(pipe.scheduler.config)
    torch.testing.assert_close(ratios(pipe.scheduler)[:-1], 3 * ratios(base)[:-1], atol=0, rtol=1e-3)
    pipe.set_progress_bar_config(disable=True)
    latents = pipe("a", num_inference_steps=3, output_type="latent", generator=torch.manual_seed(0)).images
    assert latents.isfinite().all()


def test_a_shift_leaves_the_scheduler_that_it_is_given():
    scheduler = tiny_scheduler()
    shift_noise(scheduler, 2.0)
    assert scheduler.config.trained_betas is None


@pytest.mark.parametrize("factor", [0.0, -1.0, float("inf"), float("nan")])
def test_shifts_that_are_no_factor_are_refused(factor):
    with pytest.raises(ValueError, match=r"noise_shift .* must be a positive number"):
        shift_noise(tiny_scheduler(), factor)
