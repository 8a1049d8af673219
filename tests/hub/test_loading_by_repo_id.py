"""Autoencoders and stock pipelines load by Hub repo id in a process that has only imported pqdiff.

The Hub is a stand-in on this machine; every download starts from an empty cache.
"""

import json

import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from pqdiff import AutoencoderPQ
from tests.hub.hub_server import serve
from tests.hub.support import run_in_fresh_process

IMAGE_SIZE = 32
LOAD_AUTOENCODERS = """
import sys, torch
import pqdiff
from pqdiff.models.loading import load_tokenizer

facts = {}
image = torch.load("image.pt")
with torch.no_grad():
    for way, load in (("class", pqdiff.AutoencoderPQ.from_pretrained), ("name", load_tokenizer)):
        vae = load("user/ae")
        facts[way] = {
            "class": f"{type(vae).__module__}.{type(vae).__name__}",
            "training": vae.training,
            "weights": vae.state_dict(),
            "config": dict(vae.config),
            "latents": vae.encode(image).latents,
            "reconstruction": vae(image).sample,
        }
try:
    load_tokenizer("user/missing")
except Exception as error:
    facts["missing"] = {"class": type(error).__name__, "message": str(error)}
torch.save(facts, sys.argv[1])
"""
LOAD_PIPELINE = """
import sys, torch
import pqdiff
from diffusers import StableDiffusionPipeline

pipe = StableDiffusionPipeline.from_pretrained("user/pipe")
pipe.set_progress_bar_config(disable=True)
generated = pipe(**torch.load("call.pt"), generator=torch.manual_seed(0), output_type="pt").images
torch.save(
    {
        "pipeline": type(pipe).__name__,
        "class": f"{type(pipe.vae).__module__}.{type(pipe.vae).__name__}",
        "weights": pipe.vae.state_dict(),
        "generated": generated,
    },
    sys.argv[1],
)
"""


@pytest.fixture(scope="module")
def autoencoder() -> AutoencoderPQ:
    torch.manual_seed(0)
    return AutoencoderPQ(
        transform_config={
            "block_out_channels": (8, 16),
            "layers_per_block": 1,
            "norm_num_groups": 4,
            "mid_channels": 8,
        },
        latent_channels=4,
        quantizer_config={"num_subspaces": 2, "codebook_size": 16},
        statistics_config={"mean": (0.1, -0.2, 0.3, 0.0), "std": (0.5, 1.0, 2.0, 0.8)},
        sample_size=IMAGE_SIZE,
    ).eval()


@pytest.fixture(scope="module")
def pipeline(autoencoder: AutoencoderPQ, tmp_path_factory) -> StableDiffusionPipeline:
    folder = tmp_path_factory.mktemp("tokenizer")
    (folder / "vocab.json").write_text(json.dumps({"<|startoftext|>": 0, "<|endoftext|>": 1, "a": 2, "a</w>": 3}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=IMAGE_SIZE // 2,
        in_channels=4,
        out_channels=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        attention_head_dim=4,
        cross_attention_dim=16,
    ).eval()
    torch.manual_seed(0)
    text_config = CLIPTextConfig(
        vocab_size=4,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=8,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    tokenizer = CLIPTokenizer.from_pretrained(folder, model_max_length=8)
    pipe = StableDiffusionPipeline(
        autoencoder,
        CLIPTextModel(text_config).eval(),
        tokenizer,
        unet,
        DDIMScheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def hub(autoencoder: AutoencoderPQ, pipeline: StableDiffusionPipeline, tmp_path_factory):
    """Address of a Hub that holds the autoencoder as user/ae and the pipeline as user/pipe."""
    folder = tmp_path_factory.mktemp("repositories")
    autoencoder.save_pretrained(folder / "ae")
    pipeline.save_pretrained(folder / "pipe")
    with serve({"user/ae": folder / "ae", "user/pipe": folder / "pipe"}) as address:
        yield address


@pytest.fixture(scope="module")
def image() -> torch.Tensor:
    return torch.rand(1, 3, IMAGE_SIZE, IMAGE_SIZE, generator=torch.Generator().manual_seed(1)) * 2 - 1


@pytest.fixture(scope="module")
def loaded_autoencoders(hub: str, image: torch.Tensor, tmp_path_factory) -> dict:
    folder = tmp_path_factory.mktemp("autoencoders")
    torch.save(image, folder / "image.pt")
    return run_in_fresh_process(LOAD_AUTOENCODERS, hub, folder)


@pytest.fixture(scope="module")
def call() -> dict:
    return {"prompt": "a", "height": IMAGE_SIZE, "width": IMAGE_SIZE, "num_inference_steps": 2}


@pytest.fixture(scope="module")
def loaded_pipeline(hub: str, call: dict, tmp_path_factory) -> dict:
    folder = tmp_path_factory.mktemp("pipeline")
    torch.save(call, folder / "call.pt")
    return run_in_fresh_process(LOAD_PIPELINE, hub, folder)


@pytest.mark.parametrize("way", ["class", "name"])
def test_an_autoencoder_loads_by_repo_id(way: str, loaded_autoencoders: dict, autoencoder: AutoencoderPQ, image):
    loaded = loaded_autoencoders[way]
    assert loaded["class"] == "pqdiff.models.autoencoder_pq.AutoencoderPQ"
    assert not loaded["training"]
    assert_same_weights(loaded["weights"], autoencoder)
    assert loaded["config"]["statistics_config"]["std"] == list(autoencoder.config.statistics_config["std"])
    with torch.no_grad():
        torch.testing.assert_close(loaded["latents"], autoencoder.encode(image).latents)
        torch.testing.assert_close(loaded["reconstruction"], autoencoder(image).sample)


def test_a_missing_repository_is_one_line_that_names_it(loaded_autoencoders: dict):
    error = loaded_autoencoders["missing"]
    assert error["class"] == "ValueError"
    assert error["message"].startswith("model (user/missing) cannot be loaded: ")
    assert "user/missing is not a local folder" in error["message"]
    assert "\n" not in error["message"]


def test_a_stock_pipeline_loads_its_autoencoder_by_repo_id(loaded_pipeline: dict, autoencoder: AutoencoderPQ):
    assert loaded_pipeline["pipeline"] == "StableDiffusionPipeline"
    assert loaded_pipeline["class"] == "pqdiff.models.autoencoder_pq.AutoencoderPQ"
    assert_same_weights(loaded_pipeline["weights"], autoencoder)


def test_a_stock_pipeline_by_repo_id_generates_the_same_image(loaded_pipeline: dict, pipeline, call: dict):
    generated = pipeline(**call, generator=torch.manual_seed(0), output_type="pt").images
    assert generated.std() > 0
    torch.testing.assert_close(loaded_pipeline["generated"], generated)


def assert_same_weights(weights: dict[str, torch.Tensor], autoencoder: AutoencoderPQ) -> None:
    expected = autoencoder.state_dict()
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[name], expected[name]) for name in expected)
