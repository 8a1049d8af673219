"""The shipped pipelines: complete, small, loadable, and able to paint what they are told."""

import json
import zlib
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline
from safetensors import safe_open

import pqdiff
from pqdiff import AutoencoderPQ, PQStableDiffusionPipeline
from pqdiff.adaptation.variants import load_variant
from pqdiff.checkpoints import BUNDLED_PIPELINES
from pqdiff.cli.generation_settings import TITLES
from pqdiff.cli.scene_verdicts import knows_scenes_only
from pqdiff.data.images.reading import to_pixels
from pqdiff.data.scenes.checker import count_right, read_scenes
from pqdiff.data.scenes.scenes import SceneDataset
from pqdiff.hub.check import check_folder
from pqdiff.hub.pipelines import load_pipeline

NAMES = ("tiny-base", "tiny-hr", "tiny-precise", "tiny-quick")
SIDES = {"tiny-hr": 128}  # the others: 64
ROOT = Path(pqdiff.__file__).parent / "checkpoints"
MODEL_CARDS = Path(__file__).parents[2] / "model_cards"


@pytest.fixture(scope="module", params=BUNDLED_PIPELINES)
def shipped(request):
    pipe = load_pipeline(request.param)
    pipe.set_progress_bar_config(disable=True)
    return request.param, pipe


def paint(pipe, prompts, **call):
    """Pictures (N, 3, H, W), uint8, picture i from noise of seed i."""
    images = pipe(
        prompts,
        num_inference_steps=25,
        guidance_scale=2.0,
        generator=[torch.Generator().manual_seed(i) for i in range(len(prompts))],
        output_type="pt",
        **call,
    ).images
    return to_pixels(images * 2 - 1)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "tiny-base"])
def test_without_a_data_type_all_models_come_in_the_same_and_paint(name):
    pipe = PQStableDiffusionPipeline.from_pretrained(pqdiff.bundled(name))  # as README does
    assert {pipe.unet.dtype, pipe.vae.dtype, pipe.text_encoder.dtype} == {torch.float32}
    pipe.set_progress_bar_config(disable=True)
    assert pipe("a small red circle", num_inference_steps=1).images[0].size == (SIDES.get(name, 64),) * 2


@pytest.mark.parametrize("name", [name for name in NAMES if name != "tiny-base"])
def test_the_variant_file_can_be_loaded_and_fits_the_models(name):
    variant = load_variant(Path(pqdiff.bundled(name)) / "variant.yaml")
    unet = json.loads((Path(pqdiff.bundled(name)) / "unet" / "config.json").read_text())
    assert (variant.base, variant.latent_channels) == ("tiny-base", unet["in_channels"])
    assert (variant.sample_size, variant.resolution) == (unet["sample_size"], SIDES.get(name, 64))


def test_the_four_pipelines_ship():
    assert BUNDLED_PIPELINES == NAMES
    assert set(TITLES) == set(NAMES)
    for name in NAMES:
        assert (Path(pqdiff.bundled(name)) / "model_index.json").is_file()
    with pytest.raises(ValueError, match="did you mean 'tiny-precise'"):
        pqdiff.bundled("precise")


@pytest.mark.parametrize("name", NAMES)
def test_the_card_tells_how_to_load_it_from_the_package(name):
    card = (ROOT / name / "README.md").read_text()
    assert card == (MODEL_CARDS / f"{name}.md").read_text()
    snippet = card.split("```python\n")[1].split("```")[0]
    compile(snippet, "card", "exec")
    assert f'from_pretrained(pqdiff.bundled("{name}"), dtype=torch.float16)' in snippet


def test_pipelines_are_not_taken_for_tokenizers():
    assert not set(BUNDLED_PIPELINES) & set(pqdiff.BUNDLED)
    assert all(name.startswith("pqgan-") for name in pqdiff.BUNDLED)


def test_the_tiny_suite_stays_under_sixty_megabytes():
    assert _bytes("tiny-*/**/*") < 60e6


def test_everything_that_ships_fits_into_a_package_index():
    """They take 100 MB; a wheel is compressed, and has some 0.5 MB of code beside this."""
    compressed = sum(len(zlib.compress(path.read_bytes(), 6)) for path in ROOT.glob("**/*") if path.is_file())
    assert compressed < 98e6


def _bytes(pattern: str) -> int:
    return sum(path.stat().st_size for path in ROOT.glob(pattern) if path.is_file())


def test_a_pipeline_is_complete_in_half_precision_and_without_pickles(shipped):
    name, _ = shipped
    folder = Path(pqdiff.bundled(name))
    files, left_out = check_folder(folder)
    assert not left_out
    assert max(len(Path(file).parts) for file in files) <= 2  # as deep as the package's data reaches
    weights = [folder / file for file in files if file.endswith(".safetensors")]
    assert len(weights) == 3
    for path in weights:
        with safe_open(path, framework="pt") as file:
            tensors = list(file.keys())
            kinds = {file.get_slice(name).get_dtype() for name in tensors}
        assert "F16" in kinds or path.parent.name == "vae"
        assert "F64" not in kinds


def test_parts_are_what_the_names_say(shipped):
    name, pipe = shipped
    index = json.loads((Path(pqdiff.bundled(name)) / "model_index.json").read_text())
    base = name == "tiny-base"
    kind = StableDiffusionPipeline if base else PQStableDiffusionPipeline
    assert index["_class_name"] == kind.__name__
    assert type(pipe.vae) is (AutoencoderKL if base else AutoencoderPQ)
    assert pipe.unet.dtype == pipe.vae.dtype == pipe.text_encoder.dtype == torch.float32
    assert knows_scenes_only(pipe.tokenizer)
    assert pipe.safety_checker is None
    loaded = kind.from_pretrained(pqdiff.bundled(name), torch_dtype=torch.float32)
    assert all(torch.equal(a, b) for a, b in zip(loaded.unet.parameters(), pipe.unet.parameters(), strict=True))


def test_pictures_show_what_common_prompts_say(shipped):
    name, pipe = shipped
    dataset = SceneDataset(8, 64, seed=123456)
    scenes = [dataset.scene(i) for i in range(len(dataset))]
    pictures = paint(pipe, [scene.caption for scene in scenes])
    side = SIDES.get(name, 64)
    assert pictures.shape == (len(scenes), 3, side, side)
    right = count_right(read_scenes(pictures), scenes)  # 500 others are counted in benchmarks/results
    assert right["background"] >= 0.75
    assert right["color"] >= 0.5  # one in six by chance, and less where two objects must be right
    alone = paint(pipe, [scenes[0].caption])  # the same but for rounding
    assert (alone[0].int() - pictures[0].int()).abs().float().mean() < 1
