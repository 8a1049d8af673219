"""The pipelines on product-quantized latents load and are made by Hub repo id, in a process that only imports pqdiff."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pqdiff import PQStableDiffusionPipeline
from tests.hub.hub_server import serve
from tests.hub.support import run_in_fresh_process
from tests.pipelines.support import build, paint
from tests.tiny import PQ_CHANNELS, tiny_autoencoder, tiny_base_pipeline

SHIM = Path(__file__).parents[2] / "pipelines" / "pqsd.py"
LOAD = """
import sys, torch
import pqdiff
from diffusers import DiffusionPipeline

facts = {}
for name in ("PQStableDiffusionPipeline", "PQStableDiffusionImg2ImgPipeline", "PQStableDiffusionInpaintPipeline"):
    pipe = getattr(pqdiff, name).from_pretrained("user/pq")
    facts[name] = {"class": type(pipe).__name__, "weights": {n: c.state_dict() for n, c in pipe.components.items()
                                                             if isinstance(c, torch.nn.Module)}}
pipe = pqdiff.PQStableDiffusionPipeline.from_pretrained("user/pq")
pipe.set_progress_bar_config(disable=True)
call = {"num_inference_steps": 2, "output_type": "pt"}
facts["generated"] = pipe("a red fox", generator=torch.manual_seed(0), **call).images

made = pqdiff.PQStableDiffusionPipeline.from_stable_diffusion("user/base", "user/ae", init="copy")
made.set_progress_bar_config(disable=True)
facts["made"] = made("a red fox", generator=torch.manual_seed(0), **call).images
assert type(DiffusionPipeline.from_pretrained("user/pq")) is pqdiff.PQStableDiffusionPipeline
generic = DiffusionPipeline.from_pretrained("user/pq", custom_pipeline="pqsd", trust_remote_code=True)
facts["generic"] = type(generic) is pqdiff.PQStableDiffusionPipeline
torch.save(facts, sys.argv[1])
"""
WITHOUT_PQDIFF = """
import runpy, sys
sys.modules["pqdiff"] = None
runpy.run_path(sys.argv[1])
"""


@pytest.fixture(scope="module")
def pipe() -> PQStableDiffusionPipeline:
    return build()


@pytest.fixture(scope="module")
def hub(pipe, tmp_path_factory):
    """Address of a Hub that holds a pipeline with its shim, a stock base and an autoencoder."""
    folder = tmp_path_factory.mktemp("repositories")
    pipe.save_pretrained(folder / "pq")
    shutil.copy(SHIM, folder / "pq")
    tiny_base_pipeline().save_pretrained(folder / "base")
    tiny_autoencoder().save_pretrained(folder / "ae")
    with serve({f"user/{name}": folder / name for name in ("pq", "base", "ae")}) as address:
        yield address


@pytest.fixture(scope="module")
def loaded(hub: str, tmp_path_factory) -> dict:
    return run_in_fresh_process(LOAD, hub, tmp_path_factory.mktemp("loaded"))


@pytest.mark.parametrize(
    "name", ["PQStableDiffusionPipeline", "PQStableDiffusionImg2ImgPipeline", "PQStableDiffusionInpaintPipeline"]
)
def test_every_pipeline_loads_by_repo_id_bit_for_bit(loaded: dict, pipe, name: str):
    assert loaded[name]["class"] == name
    weights = loaded[name]["weights"]
    assert {"vae", "unet", "text_encoder"} == set(weights)
    for component, found in weights.items():
        expected = pipe.components[component].state_dict()
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[key], expected[key]) for key in expected)


def test_loaded_by_repo_id_it_generates_the_same_image(loaded: dict, pipe):
    assert loaded["generated"].std() > 0
    torch.testing.assert_close(loaded["generated"], paint(pipe, num_inference_steps=2))


def test_base_and_autoencoder_are_found_by_repo_id(loaded: dict):
    made = PQStableDiffusionPipeline.from_stable_diffusion(tiny_base_pipeline(), tiny_autoencoder(), init="copy")
    made.set_progress_bar_config(disable=True)
    assert made.unet.config.in_channels == PQ_CHANNELS
    torch.testing.assert_close(loaded["made"], paint(made, num_inference_steps=2))


def test_the_generic_loader_finds_the_pipeline_by_its_shim(loaded: dict):
    assert loaded["generic"]


def test_without_pqdiff_the_shim_says_how_to_install_it():
    process = subprocess.run([sys.executable, "-c", WITHOUT_PQDIFF, str(SHIM)], capture_output=True, text=True)
    assert process.returncode != 0
    assert process.stderr.splitlines()[-1].startswith("ImportError: this pipeline needs the package pqdiff")
    assert process.stderr.rstrip().endswith("pip install pqdiff")
