"""`AutoencoderPQ` stands in for the VAE of diffusers' own Stable Diffusion pipelines, with tiny real components."""

import json
import os
import string
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.hooks import ModelHook, add_hook_to_module
from diffusers import (
    AutoPipelineForImage2Image,
    AutoPipelineForInpainting,
    DDIMScheduler,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from PIL import Image
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from pqdiff import AutoencoderPQ
from tests.processes import HANGS

HEIGHT, WIDTH = 32, 48
FACTOR = 2
CHANNELS = 4
PROMPT = "a red fox"
STEPS = 2
LOAD_AND_PAINT = """
import sys, torch
import pqdiff
from diffusers import StableDiffusionPipeline

pipe = StableDiffusionPipeline.from_pretrained(sys.argv[1])
pipe.set_progress_bar_config(disable=True)
picture = pipe(**torch.load("call.pt"), generator=torch.manual_seed(0), output_type="pt").images
torch.save({"class": type(pipe.vae).__name__, "is_ours": type(pipe.vae) is pqdiff.AutoencoderPQ, "picture": picture},
           "facts.pt")
"""


@pytest.fixture(scope="module", params=["convolutional", "linear"])
def vae(request) -> AutoencoderPQ:
    return tiny_autoencoder(linear=request.param == "linear")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> CLIPTokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    tokens = [
        "<|startoftext|>",
        "<|endoftext|>",
        *string.ascii_lowercase,
        *(f"{c}</w>" for c in string.ascii_lowercase),
    ]
    (folder / "vocab.json").write_text(json.dumps({token: index for index, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return CLIPTokenizer.from_pretrained(folder, model_max_length=16)


@pytest.fixture(scope="module")
def text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    torch.manual_seed(0)
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=16,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    return CLIPTextModel(config).eval()


@pytest.fixture(scope="module")
def build(vae: AutoencoderPQ, text_encoder: CLIPTextModel, tokenizer: CLIPTokenizer):
    """Function that puts the autoencoder into a stock pipeline: `build(pipeline_class, unet_channels)`."""

    def build(pipeline_class=StableDiffusionPipeline, unet_channels: int = CHANNELS):
        pipe = pipeline_class(
            vae=vae,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            unet=tiny_unet(unet_channels),
            scheduler=DDIMScheduler(),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
        pipe.set_progress_bar_config(disable=True)
        return pipe

    return build


@pytest.fixture(scope="module")
def text_to_image(build) -> StableDiffusionPipeline:
    return build()


@pytest.fixture(scope="module")
def saved(text_to_image: StableDiffusionPipeline, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    text_to_image.save_pretrained(folder)
    return folder


@pytest.fixture
def image() -> Image.Image:
    return random_image(seed=1)


@pytest.fixture
def mask() -> Image.Image:
    """White, to be repainted, in the left half."""
    return Image.fromarray(np.repeat([[255] * (WIDTH // 2) + [0] * (WIDTH // 2)], HEIGHT, axis=0).astype(np.uint8))


CONV = {"block_out_channels": (8, 16), "layers_per_block": 1, "norm_num_groups": 4, "mid_channels": 8}


def tiny_autoencoder(linear: bool) -> AutoencoderPQ:
    torch.manual_seed(0)
    return AutoencoderPQ(
        transform_type="patch" if linear else "conv",
        transform_config={"patch_size": FACTOR} if linear else CONV,
        quantizer_config={"num_subspaces": 2, "codebook_size": 16},
        latent_channels=CHANNELS,
        statistics_config={"mean": (0.1, -0.2, 0.3, 0.0), "std": (0.5, 1.0, 2.0, 0.8)},
        sample_size=HEIGHT,
    ).eval()


def tiny_unet(in_channels: int) -> UNet2DConditionModel:
    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=HEIGHT // FACTOR,
        in_channels=in_channels,
        out_channels=CHANNELS,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        attention_head_dim=4,
        cross_attention_dim=16,
    ).eval()


def random_image(seed: int, height: int = HEIGHT, width: int = WIDTH) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def random_pixels(batch: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(batch, 3, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def paint(pipe: StableDiffusionPipeline, generator=None, **arguments) -> torch.Tensor:
    """Pictures (or latents) of a text-to-image pipeline as a tensor."""
    arguments = {"height": HEIGHT, "width": WIDTH, "output_type": "pt", **arguments}
    return pipe(PROMPT, num_inference_steps=STEPS, generator=generator or seeded(), **arguments).images


def repaint(pipe, image, generator=None, prompt=PROMPT, **arguments) -> torch.Tensor:
    """Pictures (or latents) of an image-to-image or inpainting pipeline as a tensor."""
    arguments = {"output_type": "pt", "num_inference_steps": 4, "strength": 0.5, **arguments}
    return pipe(prompt, image=image, generator=generator or seeded(), **arguments).images


def test_text_to_image_gives_the_requested_size(text_to_image):
    pictures = text_to_image(PROMPT, height=HEIGHT, width=WIDTH, num_inference_steps=STEPS, generator=seeded()).images
    assert [picture.size for picture in pictures] == [(WIDTH, HEIGHT)]
    assert np.asarray(pictures[0]).std() > 0


def test_text_to_image_defaults_to_the_size_of_the_unet(text_to_image):
    assert paint(text_to_image, height=None, width=None).shape == (1, 3, HEIGHT, HEIGHT)


def test_a_list_of_generators_paints_each_picture_by_its_own(text_to_image):
    together = paint(text_to_image, [seeded(3), seeded(4)], num_images_per_prompt=2)
    torch.testing.assert_close(together[:1], paint(text_to_image, seeded(3)))
    torch.testing.assert_close(together[1:], paint(text_to_image, seeded(4)))
    assert not torch.equal(together[0], together[1])


def test_latents_decode_to_the_picture_that_the_pipeline_shows(text_to_image):
    vae = text_to_image.vae
    latents = paint(text_to_image, output_type="latent")
    assert latents.shape == (1, CHANNELS, HEIGHT // FACTOR, WIDTH // FACTOR)
    with torch.no_grad():
        decoded = vae.decode(latents / vae.config.scaling_factor).sample
    picture = text_to_image.image_processor.postprocess(decoded, output_type="pt")
    torch.testing.assert_close(picture, paint(text_to_image))


def test_image_to_image_gives_the_size_of_the_image(build, image):
    pictures = repaint(build(StableDiffusionImg2ImgPipeline), image, output_type="pil")
    assert [picture.size for picture in pictures] == [(WIDTH, HEIGHT)]


def test_image_to_image_depends_on_the_image(build, image):
    pipe = build(StableDiffusionImg2ImgPipeline)
    assert not torch.allclose(repaint(pipe, image), repaint(pipe, random_image(seed=2)), atol=1e-3)


def test_image_to_image_takes_a_list_of_generators(build, image):
    pipe, other = build(StableDiffusionImg2ImgPipeline), random_image(seed=2)
    together = repaint(pipe, [image, other], [seeded(3), seeded(4)], [PROMPT, PROMPT])
    torch.testing.assert_close(together[:1], repaint(pipe, image, seeded(3)))
    torch.testing.assert_close(together[1:], repaint(pipe, other, seeded(4)))


@pytest.mark.parametrize("unet_channels", [CHANNELS, 2 * CHANNELS + 1])
def test_inpainting_gives_the_requested_size(build, image, mask, unet_channels):
    pipe = build(StableDiffusionInpaintPipeline, unet_channels)
    pictures = repaint(pipe, image, mask_image=mask, height=HEIGHT, width=WIDTH, output_type="pil", strength=1.0)
    assert [picture.size for picture in pictures] == [(WIDTH, HEIGHT)]


def test_inpainting_keeps_the_latents_outside_the_mask(build, vae, image, mask):
    pipe = build(StableDiffusionInpaintPipeline)
    painted = repaint(pipe, image, mask_image=mask, height=HEIGHT, width=WIDTH, output_type="latent")
    with torch.no_grad():
        original = vae.encode(pipe.image_processor.preprocess(image)).latents
    edge = WIDTH // FACTOR // 2
    torch.testing.assert_close(painted[..., edge:], original[..., edge:])
    assert not torch.allclose(painted[..., :edge], original[..., :edge], atol=0.1)


def test_an_inpainting_unet_sees_the_picture_outside_the_mask(build, image, mask):
    pipe = build(StableDiffusionInpaintPipeline, 2 * CHANNELS + 1)
    # At full strength from the same noise, the masked picture is all that differs.
    arguments = {"mask_image": mask, "height": HEIGHT, "width": WIDTH, "strength": 1.0}
    pictures = [repaint(pipe, each, **arguments) for each in (image, random_image(seed=2))]
    assert not torch.allclose(*pictures, atol=1e-3)


def test_inpainting_takes_a_list_of_generators(build, image, mask):
    pipe, other = build(StableDiffusionInpaintPipeline), random_image(seed=2)
    arguments = {"height": HEIGHT, "width": WIDTH, "output_type": "latent"}
    together = repaint(
        pipe, [image, other], [seeded(3), seeded(4)], [PROMPT, PROMPT], mask_image=[mask, mask], **arguments
    )
    for i, each in enumerate((image, other)):
        alone = repaint(pipe, each, seeded(3 + i), mask_image=mask, **arguments)
        torch.testing.assert_close(together[i : i + 1], alone)


def test_saving_records_the_public_name_of_the_class(saved):
    assert json.loads((saved / "model_index.json").read_text())["vae"] == ["pqdiff", "AutoencoderPQ"]


def test_a_saved_pipeline_paints_the_same_picture(text_to_image, saved):
    loaded = StableDiffusionPipeline.from_pretrained(saved)
    loaded.set_progress_bar_config(disable=True)
    assert type(loaded.vae) is AutoencoderPQ
    assert loaded.vae is not text_to_image.vae
    torch.testing.assert_close(paint(loaded), paint(text_to_image))


@pytest.mark.parametrize("vae", ["linear"], indirect=True)  # tests/hub does the same with the convolutional one
def test_a_fresh_process_needs_only_to_import_pqdiff(text_to_image, saved, tmp_path):
    call = {"prompt": PROMPT, "height": HEIGHT, "width": WIDTH, "num_inference_steps": STEPS}
    torch.save(call, tmp_path / "call.pt")
    command = [sys.executable, "-c", LOAD_AND_PAINT, str(saved)]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": str(torch.get_num_threads())}
    process = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=HANGS)
    assert process.returncode == 0, process.stderr
    facts = torch.load(tmp_path / "facts.pt")
    assert facts["is_ours"], facts["class"]
    torch.testing.assert_close(facts["picture"], paint(text_to_image))


@pytest.mark.parametrize(
    ("auto_class", "stock_class"),
    [
        (AutoPipelineForImage2Image, StableDiffusionImg2ImgPipeline),
        (AutoPipelineForInpainting, StableDiffusionInpaintPipeline),
    ],
)
def test_an_auto_pipeline_made_from_a_pipeline_keeps_the_autoencoder(text_to_image, auto_class, stock_class):
    pipe = auto_class.from_pipe(text_to_image)
    assert type(pipe) is stock_class
    assert pipe.vae is text_to_image.vae


def test_the_idiom_of_training_scripts_gives_the_latents(vae):
    pixels = random_pixels(batch=2)
    with torch.no_grad():
        output = vae.encode(pixels)
        latents = vae.encode(pixels).latent_dist.sample() * vae.config.scaling_factor
    assert latents.shape == (2, CHANNELS, HEIGHT // FACTOR, WIDTH // FACTOR)
    assert torch.equal(latents, output.latents)
    assert torch.equal(latents, output.latent_dist.mode())
    assert torch.equal(latents, vae.quantize(latents)[0])


def test_a_batch_encodes_like_its_pictures_one_by_one(vae):
    pixels = random_pixels(batch=3) * torch.tensor([0.2, 1.0, 0.5]).view(-1, 1, 1, 1)
    pixels = pixels + torch.tensor([0.8, 0.0, -0.5]).view(-1, 1, 1, 1)
    with torch.no_grad():
        alone = torch.cat([vae.encode(each).latents for each in pixels.split(1)])
        assert torch.equal(vae.encode(pixels).latents, alone)


def test_slicing_paints_the_same_pictures_one_by_one(text_to_image, monkeypatch):
    monkeypatch.setattr(text_to_image.vae, "use_slicing", False)
    whole = paint(text_to_image, num_images_per_prompt=2)
    batches = record_batches(text_to_image.vae, monkeypatch)
    text_to_image.vae.enable_slicing()
    torch.testing.assert_close(paint(text_to_image, num_images_per_prompt=2), whole)
    assert batches == [1, 1]
    text_to_image.vae.disable_slicing()
    paint(text_to_image, num_images_per_prompt=2)
    assert batches == [1, 1, 2]


def test_tiling_paints_large_pictures_in_parts(text_to_image, monkeypatch):
    vae, size = text_to_image.vae, {"height": 2 * HEIGHT, "width": 2 * HEIGHT}
    monkeypatch.setattr(vae, "use_tiling", False)
    whole = paint(text_to_image, **size)
    tiles = record_batches(vae, monkeypatch)
    vae.enable_tiling()
    tiled = paint(text_to_image, **size)
    assert tiled.shape == whole.shape == (1, 3, 2 * HEIGHT, 2 * HEIGHT)
    assert len(tiles) >= 4
    if vae.transform.reach == 0:
        torch.testing.assert_close(tiled, whole)  # patches do not look at their neighbors
    tiles.clear()
    vae.disable_tiling()
    torch.testing.assert_close(paint(text_to_image, **size), whole)
    assert len(tiles) == 1


def record_batches(vae: AutoencoderPQ, monkeypatch) -> list[int]:
    """List that grows by the batch size of every pass through the layers that make pixels."""
    batches = []
    layers = vae.transform.synthesis_conv if vae.transform.reach == 0 else vae.transform.decoder
    forward = layers.forward

    def recorded(x, *args, **kwargs):
        batches.append(len(x))
        return forward(x, *args, **kwargs)

    monkeypatch.setattr(layers, "forward", recorded)
    return batches


class CountingHook(ModelHook):
    """Counts the calls that an offloading hook would take as the time to move the model to its device."""

    def __init__(self):
        self.calls = 0

    def pre_forward(self, module, *args, **kwargs):
        self.calls += 1
        return args, kwargs


@pytest.mark.parametrize("linear", [False, True])
@pytest.mark.parametrize(
    "method", ["encode", "encode_to_indices", "quantize", "decode", "decode_from_indices", "forward"]
)
def test_methods_wake_an_offloaded_model(method, linear):
    vae = tiny_autoencoder(linear)
    latents_size = (1, -1, HEIGHT // FACTOR, WIDTH // FACTOR)
    argument = {
        "quantize": torch.zeros(1, CHANNELS, *latents_size[2:]),
        "decode": torch.zeros(1, CHANNELS, *latents_size[2:]),
        "decode_from_indices": torch.zeros(1, 2, *latents_size[2:], dtype=torch.int64),
    }.get(method, random_pixels(batch=1))
    hook = CountingHook()
    add_hook_to_module(vae, hook)
    with torch.no_grad():
        getattr(vae, method)(argument)
    assert hook.calls == 1
