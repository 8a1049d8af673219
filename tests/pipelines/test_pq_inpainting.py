"""Inpainting on product-quantized latents: UNets that see the latents alone, and UNets that see mask and picture too."""

import numpy as np
import pytest
import torch
from diffusers import EulerDiscreteScheduler, StableDiffusionInpaintPipeline
from PIL import Image

from pqdiff import PQStableDiffusionInpaintPipeline
from tests.pipelines.support import (
    PROMPT,
    assert_different,
    build,
    build_inpainting,
    left_half,
    paint,
    random_image,
    seeded,
)
from tests.tiny import BASE_CHANNELS, FACTOR, PQ_CHANNELS, SIDE, tiny_autoencoder, tiny_kl_autoencoder, tiny_unet

EDGE = SIDE // FACTOR // 2


@pytest.fixture(scope="module", params=[False, True], ids=["latents_alone", "sees_mask"])
def pipe(request):
    return build_inpainting(request.param)


@pytest.fixture(scope="module")
def sees_mask():
    return build_inpainting(True)


def encoded(pipe, image: Image.Image) -> torch.Tensor:
    with torch.no_grad():
        return pipe.vae.encode(pipe.image_processor.preprocess(image)).latents


@pytest.mark.parametrize("make_autoencoder", [tiny_kl_autoencoder, tiny_autoencoder])
@pytest.mark.parametrize("sees_mask", [False, True])
@pytest.mark.parametrize("scheduler", [None, EulerDiscreteScheduler])
def test_with_four_channels_the_stock_pipeline_paints_the_same(make_autoencoder, sees_mask, scheduler):
    vae = make_autoencoder(latent_channels=BASE_CHANNELS)
    pipe = build_inpainting(sees_mask, channels=BASE_CHANNELS, vae=vae)
    if scheduler is not None:
        pipe.scheduler = scheduler.from_config(pipe.scheduler.config)
    stock = StableDiffusionInpaintPipeline(**pipe.components, requires_safety_checker=False)
    stock.set_progress_bar_config(disable=True)
    image = {"image": random_image(), "mask_image": left_half(), "num_inference_steps": 3}
    calls = [
        {"strength": 0.7, "num_images_per_prompt": 2},
        {"strength": 1.0, "guidance_scale": 1.0},
        {"strength": 1.0, "latents": torch.randn(1, BASE_CHANNELS, 16, 16, generator=seeded(3))},
    ]
    if (
        make_autoencoder is tiny_autoencoder
    ):  # a KL autoencoder draws, and the stock one encodes more often than needed
        calls += [{"strength": 0.7, "eta": 1.0}]
    for call in calls:
        ours = paint(pipe, **image, **call, quantize_latents=True)
        torch.testing.assert_close(ours, paint(stock, **image, **call), atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("make_autoencoder", [tiny_kl_autoencoder, tiny_autoencoder])
@pytest.mark.parametrize("sees_mask", [False, True])
def test_with_its_own_generator_each_picture_is_the_one_painted_alone(make_autoencoder, sees_mask):
    pipe = build_inpainting(sees_mask, vae=make_autoencoder(latent_channels=PQ_CHANNELS))
    together = paint(pipe, num_images_per_prompt=2, generator=[seeded(1), seeded(2)])
    for i in range(2):
        torch.testing.assert_close(together[i : i + 1], paint(pipe, seed=i + 1), atol=1e-4, rtol=1e-3)


def test_what_the_mask_leaves_out_keeps_its_latents():
    pipe = build_inpainting(False)
    latents = paint(pipe, output_type="latent")
    original = encoded(pipe, random_image())
    torch.testing.assert_close(latents[..., EDGE:], original[..., EDGE:])
    assert_different(latents[..., :EDGE], original[..., :EDGE])


def test_a_unet_that_sees_the_mask_sees_the_picture_outside_it(sees_mask):
    def picture_of(image):
        return paint(sees_mask, image=image, strength=1.0, output_type="latent")

    image, other = random_image(1), random_image(2)
    assert_different(picture_of(image), picture_of(other))
    # Only the repainted half differs: all that the UNet may see is the same.
    half = image.copy()
    half.paste(other.crop((0, 0, SIDE // 2, SIDE)), (0, 0))
    assert torch.equal(picture_of(half), picture_of(image))


def test_images_and_masked_images_may_be_given_as_latents(pipe):
    image = random_image()
    mask = np.asarray(left_half())[..., None] > 127
    masked = pipe.image_processor.preprocess(image)
    masked = masked * torch.from_numpy(~mask).permute(2, 0, 1)
    with torch.no_grad():
        masked_latents = pipe.vae.encode(masked).latents
    given = paint(pipe, image=encoded(pipe, image), masked_image_latents=masked_latents)
    torch.testing.assert_close(given, paint(pipe, image=image))


def test_an_image_given_as_latents_needs_its_masked_latents(sees_mask):
    with pytest.raises(ValueError, match="give masked_image_latents too"):
        paint(sees_mask, image=encoded(sees_mask, random_image()))


def test_sizes_are_those_asked_for_or_those_of_the_unet(pipe):
    assert paint(pipe).shape == (1, 3, SIDE, SIDE)
    wide = {"image": random_image(1, SIDE, 2 * SIDE), "mask_image": left_half().resize((2 * SIDE, SIDE))}
    assert paint(pipe, height=SIDE, width=2 * SIDE, **wide).shape == (1, 3, SIDE, 2 * SIDE)
    with pytest.raises(ValueError, match=r"height \(33\) must be a positive multiple of 8 "):
        paint(pipe, height=33, width=SIDE)
    pipe.unet.register_to_config(sample_size=[SIDE // FACTOR, SIDE // 2 // FACTOR])
    assert paint(pipe).shape == (1, 3, SIDE, SIDE // 2)
    pipe.unet.register_to_config(sample_size=SIDE // FACTOR)


def test_every_position_that_a_thin_mask_touches_is_painted():
    pipe = build_inpainting(False)
    pixels = np.zeros((SIDE, SIDE), dtype=np.uint8)
    pixels[:, 7] = pixels[21, :] = pixels[3, 29] = 255  # odd: not the pixels at which the stock pipeline looks
    latents = paint(pipe, mask_image=Image.fromarray(pixels), output_type="latent")
    changed = (latents - encoded(pipe, random_image())).abs().amax(dim=(0, 1)) > 1e-3
    cells = pixels.reshape(SIDE // FACTOR, FACTOR, SIDE // FACTOR, FACTOR).max(axis=(1, 3)) > 0
    assert np.array_equal(changed.numpy(), cells)


@pytest.mark.parametrize("quantize_latents", [True, False])
def test_around_a_cropped_mask_the_picture_stays_as_it_was(pipe, quantize_latents):
    image = random_image(1, 2 * SIDE, 2 * SIDE)
    mask = Image.new("L", image.size)
    mask.paste(255, (8, 8, 24, 24))
    call = {"padding_mask_crop": 4, "output_type": "pil", "strength": 1.0, "quantize_latents": quantize_latents}
    (painted,) = paint(pipe, image=image, mask_image=mask, **call)
    assert painted.size == image.size
    before, after = (np.asarray(each, dtype=float) for each in (image, painted.convert("RGB")))
    changed = np.abs(after - before).max(axis=-1)
    outside = np.asarray(mask) == 0
    assert changed[outside].max() <= 1
    assert changed[~outside].mean() > 5


def test_strength_must_leave_a_step(pipe):
    with pytest.raises(ValueError, match=r"strength \(0.1\) leaves no step"):
        paint(pipe, strength=0.1)


def test_masks_must_fit_the_batch(pipe):
    with pytest.raises(ValueError, match="2 masks for a batch of 3"):
        paint(pipe, [PROMPT] * 3, mask_image=[left_half(), left_half()])


def test_without_return_dict_pictures_and_flags_are_a_tuple(pipe):
    call = {"image": random_image(), "mask_image": left_half(), "num_inference_steps": 2, "output_type": "pt"}
    pictures, flags = pipe(PROMPT, generator=seeded(), return_dict=False, **call)
    assert torch.equal(pictures, pipe(PROMPT, generator=seeded(), **call).images)
    assert flags is None


@pytest.mark.parametrize("inputs", [["latents"], ["latents", "prompt_embeds"]])
def test_the_callback_can_end_guidance(pipe, inputs):
    def end(pipe, step, timestep, tensors):
        pipe._guidance_scale = 0.0
        return {"something": "else"}

    ended = paint(pipe, callback_on_step_end=end, callback_on_step_end_tensor_inputs=inputs, quantize_latents=True)
    assert ended.std() > 0
    assert_different(ended, paint(pipe, quantize_latents=True))


def test_guidance_that_the_callback_changes_is_the_stock_pipelines():
    pipe = build(PQStableDiffusionInpaintPipeline, vae=tiny_kl_autoencoder(), unet=tiny_unet(BASE_CHANNELS))
    stock = StableDiffusionInpaintPipeline(**pipe.components, requires_safety_checker=False)
    stock.set_progress_bar_config(disable=True)

    def raise_guidance(pipe, step, timestep, tensors):
        pipe._guidance_scale = 20.0
        return {}

    changed = paint(pipe, callback_on_step_end=raise_guidance)
    torch.testing.assert_close(changed, paint(stock, callback_on_step_end=raise_guidance))
    assert_different(changed, paint(pipe))


def test_the_callback_can_change_the_mask():
    pipe = build_inpainting(False)
    original = encoded(pipe, random_image())

    def keep_all(pipe, step, timestep, tensors):
        assert tensors["mask"].shape == (2, 1, SIDE // FACTOR, SIDE // FACTOR)
        return {"mask": torch.zeros_like(tensors["mask"])}

    call = {"callback_on_step_end": keep_all, "callback_on_step_end_tensor_inputs": ["latents", "mask"]}
    torch.testing.assert_close(paint(pipe, output_type="latent", **call), original)
    assert original.shape[1] == PQ_CHANNELS
