"""diffusers finds the classes of pqdiff after `import pqdiff`, whichever of the two was imported first."""

import subprocess
import sys

import pytest

from pqdiff import AutoencoderPQ
from tests.processes import HANGS
from tests.tiny import tiny_autoencoder, tiny_base_pipeline, tiny_unet

LOAD = """
pipeline = StableDiffusionPipeline.from_pretrained(sys.argv[1], safety_checker=None)
assert type(pipeline.vae) is pqdiff.AutoencoderPQ, type(pipeline.vae)
assert pipeline.unet.config.in_channels == pipeline.vae.config.latent_channels
"""
ORDERS = {
    "pqdiff first": "import sys, pqdiff; from diffusers import StableDiffusionPipeline",
    "diffusers first": "import sys, diffusers, pqdiff; from diffusers import StableDiffusionPipeline",
    "diffusers' loader first": "import sys; from diffusers import StableDiffusionPipeline; import pqdiff",
}


def run(code: str, *arguments) -> None:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=HANGS)
    assert result.returncode == 0, result.stderr


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A stock pipeline whose autoencoder is ours."""
    folder = tmp_path_factory.mktemp("registration") / "pipeline"
    tiny_base_pipeline(vae=tiny_autoencoder(), unet=tiny_unet()).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    "order", ["diffusers' loader first", *(pytest.param(order, marks=pytest.mark.slow) for order in list(ORDERS)[:2])]
)
def test_a_stock_pipeline_loads_our_autoencoder_from_a_folder(order, folder):
    run(ORDERS[order] + LOAD, folder)


def test_components_are_saved_under_their_short_public_name(folder):
    assert '"vae": [\n    "pqdiff",\n    "AutoencoderPQ"\n  ]' in (folder / "model_index.json").read_text()
    assert AutoencoderPQ.from_pretrained(folder, subfolder="vae").config.latent_channels == 8


def test_the_finder_waits_for_one_module_until_that_is_imported_and_then_goes_away():
    run("""
import sys
before = list(sys.meta_path)
import pqdiff
(finder,) = (finder for finder in sys.meta_path if finder not in before)
assert "diffusers" not in sys.modules
assert finder.find_spec("json") is None

import diffusers.pipelines
needed = "diffusers.utils.constants"
module, sys.modules[needed] = sys.modules[needed], None
try:
    import diffusers.pipelines.pipeline_loading_utils
    raise AssertionError("the import should have failed")
except ImportError:
    sys.modules[needed] = module
assert finder in sys.meta_path  # because the import may be tried again

import inspect
from diffusers.pipelines import pipeline_loading_utils as utils
assert finder not in sys.meta_path
assert utils.LOADABLE_CLASSES["pqdiff"] == {"ModelMixin": ["save_pretrained", "from_pretrained"]}
assert "LOADABLE_CLASSES" in inspect.getsource(utils)
""")
