"""`pqdiff generate`: the images, the files and the report."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import EulerDiscreteScheduler, StableDiffusionPipeline
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from PIL import Image
from transformers import CLIPConfig, CLIPImageProcessor

from pqdiff import PQStableDiffusionPipeline
from pqdiff.cli.scene_verdicts import EXAMPLE
from pqdiff.data.scenes.captions import parse_caption
from pqdiff.data.scenes.tokenizer import build_scene_tokenizer
from pqdiff.hub.pipelines import load_pipeline
from tests.cli.support import assert_done, files_in, pixels_of
from tests.hub.hub_server import serve
from tests.tiny import SIDE, tiny_base_pipeline, tiny_components, tiny_text_encoder

CIRCLE = EXAMPLE
CROSSES = "two small blue crosses on a black background"
FOX = "a red fox"


@pytest.fixture(scope="session")
def pipelines(tmp_path_factory, one_thread):
    """Folder of tiny random pipelines: `letters`, and `scene-pq` and `scene-base` that know the words of scenes alone."""
    folder = tmp_path_factory.mktemp("pipelines")
    tokenizer = build_scene_tokenizer(folder / "tokenizer")
    text_encoder = tiny_text_encoder(
        vocab_size=len(tokenizer),
        max_position_embeddings=tokenizer.model_max_length,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    words = {"tokenizer": tokenizer, "text_encoder": text_encoder}
    PQStableDiffusionPipeline(**tiny_components(**words)).save_pretrained(folder / "scene-pq")
    tiny_base_pipeline(StableDiffusionPipeline, **words).save_pretrained(folder / "scene-base")
    PQStableDiffusionPipeline(**tiny_components()).save_pretrained(folder / "letters")
    return folder


@pytest.fixture(scope="session")
def letters(pipelines):
    return pipelines / "letters"


@pytest.fixture(scope="session")
def scene_pq(pipelines):
    return pipelines / "scene-pq"


@pytest.fixture(scope="session")
def loaded(letters):
    pipe = PQStableDiffusionPipeline.from_pretrained(letters)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def generated(pipe, prompt, seed, **options):
    """Pixels (H, W, 3) of what a pipeline generates when it is called directly."""
    call = {"num_inference_steps": 2, "guidance_scale": 7.5, **options}
    image = pipe(prompt, generator=torch.Generator().manual_seed(seed), output_type="np", **call).images[0]
    return np.rint(image * 255).astype(int)


def test_images_and_grid_are_written_and_reported(pqdiff, scene_pq, tmp_path):
    output = tmp_path / "new" / "out"
    result = pqdiff(
        "generate", CIRCLE, FOX, "-m", scene_pq, "-n", 2, "--seed", 5, "--steps", 1, "-o", output, "--json"
    )
    assert_done(result)
    report = json.loads(result.out)
    assert sorted(report["files"]) == sorted(str(path) for path in output.iterdir())
    stems = ["1-a-small-red-circle-above-a-large-blue-square", "2-a-red-fox"]
    assert files_in(output) == [*(f"{stem}.seed-{seed}.png" for stem in stems for seed in (5, 6)), "grid.png"]
    assert [(row["prompt"], row["seed"]) for row in report["images"]] == [
        *((CIRCLE, 5), (CIRCLE, 6)),
        *((FOX, 5), (FOX, 6)),
    ]
    assert [type(row["right"]) for row in report["images"]] == [bool, bool, type(None), type(None)]
    assert all(row["right"] == (not row["wrong"]) for row in report["images"][:2])
    assert all(row["seconds"] > 0 for row in report["images"])
    (model,) = report["models"]
    assert (model["width"], model["height"], model["latents"], model["checked"]) == (SIDE, SIDE, [8, 16, 16], 2)
    assert (report["steps"], report["device"], report["dtype"]) == (1, "cpu", "float32")
    for stem in stems:
        for seed in (5, 6):
            assert pixels_of(output / f"{stem}.seed-{seed}.png").shape == (SIDE, SIDE, 3)
    with Image.open(output / "grid.png") as grid:
        assert 2 * 256 < grid.width < 2.2 * 256
        assert 2 * 256 < grid.height < 2.4 * 256


def test_an_image_depends_on_its_prompt_and_seed_alone(pqdiff, letters, tmp_path):
    model = ["-m", letters, "--steps", 2]
    assert_done(pqdiff("generate", "a cat", FOX, *model, "-n", 3, "-o", tmp_path / "many"))
    assert_done(pqdiff("generate", FOX, *model, "-n", 1, "--seed", 2, "-o", tmp_path / "one"))
    alone = pixels_of(tmp_path / "one" / "1-a-red-fox.seed-2.png")
    assert np.array_equal(alone, pixels_of(tmp_path / "many" / "2-a-red-fox.seed-2.png"))
    assert not np.array_equal(alone, pixels_of(tmp_path / "many" / "2-a-red-fox.seed-1.png"))
    assert not np.array_equal(alone, pixels_of(tmp_path / "many" / "1-a-cat.seed-2.png"))


OPTIONS = {
    "none": ([], {}),
    "steps": (["--steps", 3], {"num_inference_steps": 3}),
    "guidance": (["--guidance", 30], {"guidance_scale": 30.0}),
    "no guidance": (["--guidance", 1], {"guidance_scale": 1.0}),
    "negative": (["--negative", "zzz", "--guidance", 30], {"negative_prompt": "zzz", "guidance_scale": 30.0}),
    "no snapping": (["--no-quantize"], {"quantize_latents": False}),
    "size": (["--height", 48, "--width", 16], {"height": 48, "width": 16}),
    "height alone": (["--height", 16], {"height": 16, "width": SIDE}),
}


@pytest.mark.parametrize("name", OPTIONS)
def test_options_reach_the_pipeline(name, pqdiff, letters, loaded, tmp_path):
    options, call = OPTIONS[name]
    result = pqdiff("generate", FOX, "-m", letters, "-n", 1, "--steps", 2, *options, "-o", tmp_path)
    assert_done(result)
    found = pixels_of(tmp_path / "1-a-red-fox.seed-0.png")
    assert np.array_equal(found, generated(loaded, FOX, 0, **call))
    assert name == "none" or not np.array_equal(found, generated(loaded, FOX, 0))


@pytest.mark.parametrize("name", ["ddim", "euler", "dpm++", "unipc"])
def test_every_scheduler_generates(name, pqdiff, letters, loaded, tmp_path):
    assert_done(pqdiff("generate", FOX, "-m", letters, "-n", 1, "--steps", 3, "--scheduler", name, "-o", tmp_path))
    found = pixels_of(tmp_path / "1-a-red-fox.seed-0.png")
    own = generated(loaded, FOX, 0, num_inference_steps=3)
    assert np.array_equal(found, own) == (name == "ddim")  # which is the pipeline's own
    if name == "euler":
        other = PQStableDiffusionPipeline(
            **{**loaded.components, "scheduler": EulerDiscreteScheduler.from_config(loaded.scheduler.config)},
            requires_safety_checker=False,
        )
        other.set_progress_bar_config(disable=True)
        assert np.array_equal(found, generated(other, FOX, 0, num_inference_steps=3))


def test_a_scheduler_that_clips_by_default_changes_no_color(pqdiff, tmp_path):
    pipeline = load_pipeline("tiny-precise")
    keys = ("beta_start", "beta_end", "beta_schedule", "prediction_type", "timestep_spacing", "rescale_betas_zero_snr")
    own = {key: pipeline.scheduler.config[key] for key in keys}
    pipeline.scheduler = EulerDiscreteScheduler(**own)  # this class does not have clip_sample
    pipeline.save_pretrained(tmp_path / "euler")
    found = {}
    for model in ("tiny-precise", tmp_path / "euler"):
        options = ["-n", 1, "--steps", 8, "--scheduler", "ddim", "-m", model, "-o", tmp_path / f"out{len(found)}"]
        assert_done(pqdiff("generate", CIRCLE, *options))
        (path,) = (tmp_path / f"out{len(found)}").glob("1-*.png")
        found[model] = pixels_of(path)
    first, second = found.values()
    assert np.abs(first - second).mean() < 2, np.abs(first - second).mean()


def test_comparison_has_a_column_and_the_seconds_of_each_model(pqdiff, pipelines, tmp_path):
    models = [part for name in ("scene-base", "scene-pq", "letters") for part in ("-m", pipelines / name)]
    result = pqdiff("generate", CIRCLE, CROSSES, *models, "--steps", 1, "-o", tmp_path / "out.png")
    assert_done(result)
    for text in ("scene-base", "scene-pq", "letters", "seconds per image", "32 x 32", "4 x 16 x 16", "out.png"):
        assert text in result.out
    assert files_in(tmp_path) == ["out.png"]
    with Image.open(tmp_path / "out.png") as grid:
        assert 3 * 256 < grid.width < 3.2 * 256  # one image per prompt and model
        assert 2 * 256 < grid.height < 2.4 * 256


def test_one_model_can_be_compared_over_seeds(pqdiff, letters, tmp_path):
    options = ["--compare", "-m", letters, "-n", 3, "--steps", 1, "-o", tmp_path]
    assert_done(pqdiff("generate", FOX, *options))
    with Image.open(tmp_path / "grid.png") as grid:
        assert grid.height > 3 * 256 > 2 * 256 > grid.width


def test_models_of_the_same_name_do_not_overwrite_each_other(pqdiff, pipelines, letters, tmp_path):
    (tmp_path / "letters").symlink_to(letters)
    models = ["-m", letters, "-m", tmp_path / "letters"]
    result = pqdiff("generate", FOX, *models, "--steps", 1, "-o", tmp_path / "out", "--json")
    assert_done(result)
    assert len(set(json.loads(result.out)["files"])) == len(files_in(tmp_path / "out")) == 3


def test_tables_say_which_scenes_are_right(pqdiff, scene_pq, tmp_path):
    result = pqdiff("generate", CIRCLE, CROSSES, "-m", scene_pq, "-n", 1, "--steps", 1, "-o", tmp_path / "out.png")
    assert_done(result)
    models, prompts = result.out.split("What is wrong")
    assert "of 2" in models
    assert CIRCLE[:12] in prompts
    assert "count" in prompts  # the weights are random
    assert "The training scenes contain no blue cross." in result.out


def test_a_prompt_that_is_no_scene_is_generated_with_a_note(pqdiff, scene_pq, letters, tmp_path):
    options = ["-n", 1, "--steps", 1, "-o", tmp_path / "out.png"]
    result = pqdiff("generate", FOX, "-m", scene_pq, *options)
    assert_done(result)
    assert f"{FOX!r} does not describe one" in result.out
    assert parse_caption(EXAMPLE) is not None
    assert EXAMPLE in result.out
    other = pqdiff("generate", FOX, "-m", letters, *options, "--force")  # a model of anything
    assert_done(other)
    assert "scenes" not in other.out


def test_a_prompt_that_the_model_cannot_read_to_its_end_is_noted(pqdiff, letters, tmp_path):
    options = ["-m", letters, "-n", 1, "--steps", 1, "-o", tmp_path / "out.png"]
    fits, long = "a fox in the snow", "a fox in the snow of the north"  # 13 and 23 letters, with start and end 2 more
    result = pqdiff("generate", fits, long, *options)
    assert_done(result)
    assert f"letters reads only the first 16 of the 25 tokens of {long!r}." in result.out
    assert result.out.count("reads only") == 1


def test_weights_in_half_precision_run_in_full_on_a_cpu(pqdiff, loaded, tmp_path):
    half = PQStableDiffusionPipeline.from_pretrained(loaded.config._name_or_path, torch_dtype=torch.float16)
    half.save_pretrained(tmp_path / "half")
    reference = PQStableDiffusionPipeline.from_pretrained(tmp_path / "half", torch_dtype=torch.float32)
    reference.set_progress_bar_config(disable=True)
    result = pqdiff("generate", FOX, "-m", tmp_path / "half", "-n", 1, "--steps", 2, "-o", tmp_path / "out", "--json")
    assert_done(result)
    assert json.loads(result.out)["dtype"] == "float32"
    assert np.array_equal(pixels_of(tmp_path / "out" / "1-a-red-fox.seed-0.png"), generated(reference, FOX, 0))


def test_another_data_type_generates_nearly_the_same(pqdiff, letters, loaded, tmp_path):
    result = pqdiff(
        "generate", FOX, "-m", letters, "-n", 1, "--steps", 2, "--dtype", "bfloat16", "-o", tmp_path, "--json"
    )
    assert_done(result)
    assert json.loads(result.out)["dtype"] == "bfloat16"
    difference = np.abs(pixels_of(tmp_path / "1-a-red-fox.seed-0.png") - generated(loaded, FOX, 0))
    assert 0 < difference.mean() < 20


def test_an_image_that_the_safety_checker_blacks_out_is_noted(pqdiff, loaded, tmp_path):
    tower = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    config = CLIPConfig(text_config=tower, vision_config={**tower, "image_size": 8, "patch_size": 4}, projection_dim=8)
    checker = StableDiffusionSafetyChecker(config).eval()
    with torch.no_grad():  # every image is closer than -1.1 to a forbidden concept
        checker.concept_embeds_weights.fill_(-1.1)
        checker.special_care_embeds_weights.fill_(2)
    small = {"size": {"shortest_edge": 8}, "crop_size": {"height": 8, "width": 8}}
    parts = {**loaded.components, "safety_checker": checker, "feature_extractor": CLIPImageProcessor(**small)}
    PQStableDiffusionPipeline(**parts).save_pretrained(tmp_path / "safe")
    result = pqdiff("generate", FOX, "-m", tmp_path / "safe", "-n", 1, "--steps", 1, "-o", tmp_path / "out")
    assert_done(result)
    assert f"The safety checker of safe has blacked out the image of {FOX!r}, seed 0." in result.out
    assert pixels_of(tmp_path / "out" / "1-a-red-fox.seed-0.png").max() == 0


def test_the_installed_script_loads_by_repo_id_and_keeps_stderr_clean(letters, tmp_path):
    script = Path(sys.executable).with_name("pqdiff")
    command = [script] if script.exists() else [sys.executable, "-c", "from pqdiff.cli import main; main()"]
    command += ["generate", FOX, "-m", "user/letters", "-n", "1", "--steps", "1"]
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGINGFACE_"))}
    with serve({"user/letters": letters}) as address:
        hub = {"HF_ENDPOINT": address, "HF_HOME": str(tmp_path / "cache"), "HF_HUB_DISABLE_TELEMETRY": "1"}
        environment = {**kept, **hub, "NO_PROXY": "127.0.0.1", "OMP_NUM_THREADS": "1"}
        result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (0, "")
    assert "letters" in result.stdout
    assert (tmp_path / "out.png").is_file()  # the default name
