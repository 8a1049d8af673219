"""Saved files are promises: what an earlier version saved loads in this one and computes the same."""

import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file

from pqdiff import AutoencoderPQ, PQStableDiffusionPipeline
from tests.saved.make import FOLDER, KINDS, generate

VERSIONS = sorted(path.parent.name for path in FOLDER.glob("*/expected.safetensors"))


@pytest.fixture(scope="module", params=VERSIONS)
def version(request):
    return FOLDER / request.param


def test_there_are_saved_files():
    assert VERSIONS


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_a_saved_autoencoder_gives_the_same_tokens_and_images(version, kind):
    expected, model = load_file(version / "expected.safetensors"), AutoencoderPQ.from_pretrained(version / kind)
    output = model.encode(expected["image"])
    assert torch.equal(output.indices, expected[f"{kind}.indices"])
    torch.testing.assert_close(output.latents, expected[f"{kind}.latents"], rtol=0, atol=1e-5)
    torch.testing.assert_close(model.decode(output.latents).sample, expected[f"{kind}.sample"], rtol=0, atol=1e-4)


def test_a_saved_pipeline_generates_the_same_image(version):
    expected = load_file(version / "expected.safetensors")["pipeline.images"]
    pipeline = PQStableDiffusionPipeline.from_pretrained(version / "pipeline")
    assert pipeline.quantize_latents == 0.2
    torch.testing.assert_close(generate(pipeline), expected, rtol=0, atol=1e-2)


def test_a_saved_pipeline_loads_in_stock_diffusers(version):
    pipeline = StableDiffusionPipeline.from_pretrained(version / "pipeline", safety_checker=None)
    assert type(pipeline.vae) is AutoencoderPQ
