"""What users of Stable Diffusion pipelines rely on works on product-quantized latents too."""

import pytest
import torch
from accelerate import cpu_offload
from accelerate.hooks import ModelHook, add_hook_to_module, remove_hook_from_module
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    LCMScheduler,
    PNDMScheduler,
    UniPCMultistepScheduler,
)

from pqdiff import PQStableDiffusionImg2ImgPipeline, PQStableDiffusionInpaintPipeline, PQStableDiffusionPipeline
from tests.pipelines.support import PROMPT, assert_different, build, paint, random_image, seeded
from tests.tiny import TEXT_WIDTH

KINDS = (PQStableDiffusionPipeline, PQStableDiffusionImg2ImgPipeline, PQStableDiffusionInpaintPipeline)
OTHER_PROMPT = "two blue whales"


@pytest.fixture(scope="module", params=KINDS)
def pipe(request):
    return build(request.param)


@pytest.fixture(params=KINDS)
def fresh(request):
    """A pipeline for a test that changes it."""
    return build(request.param)


def exchange_scheduler(pipe, scheduler) -> None:
    before = paint(pipe, num_inference_steps=4)
    # PNDM must be told to skip its Runge-Kutta steps, as in every Stable Diffusion.
    more = {"skip_prk_steps": True} if scheduler is PNDMScheduler else {}
    pipe.scheduler = scheduler.from_config(pipe.scheduler.config, **more)
    assert pipe.scheduler.config.prediction_type == "v_prediction"
    picture = paint(pipe, num_inference_steps=4)
    assert picture.isfinite().all()
    assert picture.std() > 0.01
    assert torch.equal(paint(pipe, num_inference_steps=4), picture)
    assert torch.equal(picture, before) == (scheduler is DDIMScheduler)


@pytest.mark.parametrize(
    "scheduler", [DDIMScheduler, EulerDiscreteScheduler, DPMSolverMultistepScheduler, UniPCMultistepScheduler]
)
def test_schedulers_can_be_exchanged(fresh, scheduler):
    exchange_scheduler(fresh, scheduler)


@pytest.mark.parametrize(
    "scheduler", [PNDMScheduler, EulerAncestralDiscreteScheduler, HeunDiscreteScheduler, LCMScheduler]
)
def test_other_schedulers_inpaint_too(scheduler):
    exchange_scheduler(build(PQStableDiffusionInpaintPipeline), scheduler)


def test_the_prompt_and_the_negative_prompt_matter(pipe):
    assert_different(paint(pipe, output_type="latent"), paint(pipe, OTHER_PROMPT, output_type="latent"))
    negative = paint(pipe, negative_prompt=OTHER_PROMPT, output_type="latent")
    assert_different(paint(pipe, output_type="latent"), negative)


@pytest.mark.parametrize("guidance_scale", [0, 1, 7])
def test_guidance_below_and_above_one(pipe, guidance_scale, monkeypatch):
    batches, forward = [], pipe.unet.forward

    def recorded(sample, *args, **kwargs):
        batches.append(len(sample))
        return forward(sample, *args, **kwargs)

    monkeypatch.setattr(pipe.unet, "forward", recorded)
    assert paint(pipe, guidance_scale=guidance_scale).std() > 0
    assert set(batches) == ({2} if guidance_scale > 1 else {1})


def test_embeddings_stand_for_their_prompts(pipe):
    prompt_embeds, negative = pipe.encode_prompt(PROMPT, "cpu", 1, True, negative_prompt=OTHER_PROMPT)
    given = paint(pipe, None, prompt_embeds=prompt_embeds, negative_prompt_embeds=negative)
    assert torch.equal(given, paint(pipe, negative_prompt=OTHER_PROMPT))


def test_the_same_seed_paints_the_same_picture_alone_and_in_a_batch(pipe):
    together = paint(pipe, num_images_per_prompt=3, generator=[seeded(3), seeded(4), seeded(5)])
    for i, seed in enumerate((3, 4, 5)):
        torch.testing.assert_close(together[i : i + 1], paint(pipe, seed=seed), atol=1e-5, rtol=1e-4)
    assert_different(together[0], together[1])


def test_prompts_of_a_batch_do_not_influence_each_other(pipe):
    def batch(second):
        return paint(pipe, [PROMPT, second], generator=[seeded(3), seeded(4)], output_type="latent")

    first, second = batch(OTHER_PROMPT), batch("a")
    assert torch.equal(first[0], second[0])
    assert_different(first[1], second[1])
    torch.testing.assert_close(first[:1], paint(pipe, seed=3, output_type="latent"), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", [PQStableDiffusionImg2ImgPipeline, PQStableDiffusionInpaintPipeline])
def test_several_pictures_of_a_prompt_start_from_the_image_of_that_prompt(kind):
    pipe, images, prompts = build(kind), [random_image(1), random_image(2)], [PROMPT, OTHER_PROMPT]
    generators = [seeded(seed) for seed in range(4)]
    call = {"num_images_per_prompt": 2, "output_type": "latent"}
    if kind is PQStableDiffusionInpaintPipeline:
        call["mask_image"] = [random_image(seed).convert("L") for seed in (3, 4)]
    together = paint(pipe, prompts, image=images, generator=generators, **call)
    for i in range(4):
        alone = {"image": images[i // 2], "output_type": "latent"}
        if "mask_image" in call:
            alone["mask_image"] = call["mask_image"][i // 2]
        picture = paint(pipe, prompts[i // 2], seed=i, **alone)
        torch.testing.assert_close(together[i : i + 1], picture, atol=1e-4, rtol=1e-4)


def test_the_callback_sees_and_changes_the_latents_of_every_step(pipe):
    seen = []

    def watch(pipe, step, timestep, tensors):
        seen.append((step, int(timestep), tensors["latents"].clone()))
        return tensors

    latents = paint(pipe, output_type="latent", callback_on_step_end=watch)
    assert [step for step, *_ in seen] == list(range(pipe.num_timesteps))
    assert [timestep for _, timestep, _ in seen] == sorted((timestep for _, timestep, _ in seen), reverse=True)
    assert torch.equal(seen[-1][2], latents)

    def clear(pipe, step, timestep, tensors):
        return {"latents": torch.zeros_like(tensors["latents"])}

    cleared = paint(pipe, output_type="latent", callback_on_step_end=clear)
    assert cleared.abs().max() == 0


def test_the_callback_may_ask_for_every_tensor_that_the_pipeline_offers(pipe):
    seen = {}
    names = pipe._callback_tensor_inputs

    def watch(pipe, step, timestep, tensors):
        seen.update(tensors)
        return {}

    paint(pipe, callback_on_step_end=watch, callback_on_step_end_tensor_inputs=names)
    assert list(seen) == names
    assert seen["prompt_embeds"].shape[-1] == TEXT_WIDTH
    with pytest.raises(ValueError, match="vae"):
        paint(pipe, callback_on_step_end=watch, callback_on_step_end_tensor_inputs=["vae"])


def test_the_callback_can_interrupt(pipe):
    steps = []

    def interrupt(pipe, step, timestep, tensors):
        steps.append(step)
        pipe._interrupt = True
        return tensors

    paint(pipe, callback_on_step_end=interrupt)
    assert steps == [0]


def test_freeu_can_be_switched_on_and_off(fresh):
    before = paint(fresh, output_type="latent")
    fresh.enable_freeu(s1=0.2, s2=0.2, b1=1.5, b2=1.6)
    assert_different(paint(fresh, output_type="latent"), before)
    fresh.disable_freeu()
    assert torch.equal(paint(fresh, output_type="latent"), before)


class Recorder(ModelHook):
    """Writes down which model is about to run, which is when an offloading hook would move it to its device."""

    def __init__(self, name: str, calls: list[str]):
        self.name, self.calls = name, calls

    def pre_forward(self, module, *args, **kwargs):
        self.calls.append(self.name)
        return args, kwargs


@pytest.mark.parametrize("quantize_latents", [True, False])
def test_every_model_wakes_when_it_is_offloaded(fresh, quantize_latents):
    calls: list[str] = []
    for name in ("text_encoder", "unet", "vae"):
        add_hook_to_module(fresh.components[name], Recorder(name, calls))
    try:
        paint(fresh, quantize_latents=quantize_latents)
    finally:
        for name in ("text_encoder", "unet", "vae"):
            remove_hook_from_module(fresh.components[name])
    assert {"text_encoder", "unet", "vae"} == set(calls)
    assert calls[-1] == "vae"


@pytest.mark.parametrize("quantize_latents", [True, False])
def test_models_go_back_after_a_call(pipe, quantize_latents, monkeypatch):
    """As with `enable_model_cpu_offload`, which refuses a machine without an accelerator."""
    order, events = pipe.model_cpu_offload_seq.split("->"), []
    assert order[-1] == "vae"
    decode = pipe.vae.decode
    monkeypatch.setattr(pipe.vae, "decode", lambda *args, **kwargs: events.append("decode") or decode(*args, **kwargs))
    monkeypatch.setattr(pipe, "maybe_free_model_hooks", lambda: events.append("free"))
    paint(pipe, quantize_latents=quantize_latents)
    assert events[-2:] == ["decode", "free"]


@pytest.mark.parametrize("quantize_latents", [True, False])
def test_offloaded_weights_paint_the_same_picture(fresh, quantize_latents):
    """What `enable_sequential_cpu_offload` does, which refuses a machine without an accelerator: every layer's weights are
    on the device only while it runs."""
    expected = paint(fresh, quantize_latents=quantize_latents)
    for name in ("text_encoder", "unet", "vae"):
        cpu_offload(fresh.components[name], torch.device("cpu"), offload_buffers=True)
    assert next(fresh.unet.parameters()).device.type == "meta"
    assert torch.equal(paint(fresh, quantize_latents=quantize_latents), expected)


def test_attention_slicing_changes_no_picture(fresh):
    before = paint(fresh, output_type="latent")
    fresh.enable_attention_slicing(1)
    torch.testing.assert_close(paint(fresh, output_type="latent"), before, atol=1e-4, rtol=1e-4)


def test_pictures_in_half_precision(fresh):
    fresh.to(torch.bfloat16)
    for quantize_latents in (True, False):
        picture = paint(fresh, quantize_latents=quantize_latents)
        assert picture.isfinite().all()
        assert picture.std() > 0
    assert paint(fresh, output_type="latent").dtype == torch.bfloat16
    assert fresh.vae.quantizer.codebooks.dtype == torch.float32


def test_the_stronger_the_change_the_farther_from_the_image():
    pipe = build(PQStableDiffusionImg2ImgPipeline)
    image = random_image()
    with torch.no_grad():
        original = pipe.vae.encode(pipe.image_processor.preprocess(image)).latents
    drift = [
        (paint(pipe, strength=strength, num_inference_steps=10, output_type="latent") - original).abs().mean()
        for strength in (0.1, 0.5, 1.0)
    ]
    assert drift[0] < drift[1] < drift[2]
    with pytest.raises(ValueError, match=r"strength.* 1\.5"):
        paint(pipe, strength=1.5)


def test_an_image_may_be_given_as_latents():
    pipe = build(PQStableDiffusionImg2ImgPipeline)
    with torch.no_grad():
        latents = pipe.vae.encode(pipe.image_processor.preprocess(random_image())).latents
    assert torch.equal(paint(pipe, image=latents), paint(pipe, image=random_image()))


@pytest.mark.parametrize("kind", [PQStableDiffusionImg2ImgPipeline, PQStableDiffusionInpaintPipeline])
def test_images_and_generators_must_fit_the_batch(kind):
    pipe = build(kind)
    with pytest.raises(ValueError, match="2 images for a batch of 3"):
        paint(pipe, [PROMPT] * 3, image=[random_image(), random_image(2)])
    with pytest.raises(ValueError, match="generator is a list of 2 for a batch of 1"):
        paint(pipe, generator=[seeded(), seeded()])
