"""Variants are data: the shipped ones say what the paper says, and mistakes in others are named."""

import dataclasses
from pathlib import Path

import pytest
import yaml

import pqdiff
from pqdiff import PRESETS
from pqdiff.adaptation.stages import Stage
from pqdiff.adaptation.variants import VARIANTS, Variant, load_variant
from pqdiff.pipelines.conversion import MIRRORS

ROOT = Path(__file__).parents[2]
FREEZE = (384, 20_000, 8e-5, "projections")


@pytest.fixture
def content() -> dict:
    """A valid variant, as a file holds it."""
    return {
        "name": "small",
        "base": "some/base",
        "autoencoder": "f8-d128-s64-k512",
        "sample_size": 32,
        "resolution": 256,
        "batch_size": 4,
        "stages": [
            {"resolution": 128, "steps": 10, "learning_rate": 1.0e-4, "trainable": "projections"},
            {"resolution": 256, "steps": 20, "learning_rate": 1.0e-5, "trainable": "lora"},
        ],
    }


@pytest.fixture
def load(content, tmp_path):
    """Function that changes the content, writes it to a file and loads that."""

    def load(stage: dict | None = None, **changes) -> Variant:
        content.update(changes)
        if stage is not None:
            content["stages"][1].update(stage)
        path = tmp_path / "small.yaml"
        path.write_text(yaml.safe_dump(content))
        return load_variant(path)

    return load


@pytest.mark.parametrize(
    ("name", "autoencoder", "sample_size", "resolution", "stages"),
    [
        ("precise", "f8-d128-s64-k512", 96, 768, [(768, 800_000, 8e-5), (768, 200_000, 2e-5)]),
        ("quick", "f16-d128-s64-k128", 48, 768, [(768, 800_000, 8e-5), (768, 200_000, 2e-5)]),
        (
            "hr",
            "f16-d128-s64-k128",
            96,
            1536,
            [(768, 400_000, 8e-5), (1024, 400_000, 8e-5), (1536, 200_000, 2e-5)],
        ),
    ],
)
def test_shipped_variants_hold_the_schedule_of_the_paper(name, autoencoder, sample_size, resolution, stages):
    variant = load_variant(name)
    assert (variant.name, variant.autoencoder) == (name, autoencoder)
    assert (variant.sample_size, variant.resolution, variant.batch_size) == (sample_size, resolution, 32)
    expected = [FREEZE, *((*stage, "all") for stage in stages)]
    assert [dataclasses.astuple(stage) for stage in variant.stages] == expected
    # The paper: 20 thousand steps with everything else frozen, then a million.
    assert sum(stage.steps for stage in variant.stages[1:]) == 1_000_000


def test_shipped_variants_start_from_a_base_that_exists():
    assert {load_variant(name).base for name in VARIANTS} == {MIRRORS["stabilityai/stable-diffusion-2-1"]}


def test_three_variants_ship():
    assert VARIANTS == ("hr", "precise", "quick")
    assert {load_variant(name).autoencoder for name in VARIANTS} <= set(PRESETS)


def test_the_folder_for_the_hub_shows_the_same_files():
    link = ROOT / "pipelines" / "variants"
    assert link.is_symlink()
    assert link.resolve() == Path(pqdiff.__file__).resolve().parent / "adaptation" / "recipes"


def test_factor_and_channels_come_from_the_autoencoder():
    assert [(v.downsample_factor, v.latent_channels) for v in map(load_variant, VARIANTS)] == [
        (16, 128),
        (8, 128),
        (16, 128),
    ]


def test_a_file_with_the_same_keys_makes_another_variant(load):
    variant = load()
    assert variant.stages == (Stage(128, 10, 1e-4, "projections"), Stage(256, 20, 1e-5, "lora"))
    assert (variant.name, variant.downsample_factor) == ("small", 8)
    with pytest.raises(dataclasses.FrozenInstanceError):
        variant.sample_size = 1


def test_a_learning_rate_without_a_point_is_a_number_too(load, tmp_path):
    load()
    path = tmp_path / "small.yaml"
    path.write_text(path.read_text().replace("1.0e-05", "1e-5"))
    assert "learning_rate: 1e-5" in path.read_text()
    assert load_variant(path).stages[1].learning_rate == 1e-5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sample_sizes": 1}, r"key 'sample_sizes' is unknown: did you mean 'sample_size'\?"),
        ({"zzz": 1}, "key 'zzz' is unknown: choose one of name, base"),
        ({"stage": {"step": 1}}, r"stage 2: key 'step' is unknown: did you mean 'steps'\?"),
        ({"stage": {"trainable": "everything"}}, r"stage 2: trainable \('everything'\) must be one of projections"),
        ({"stage": {"learning_rate": 0}}, r"stage 2: learning_rate \(0\) must be a positive number"),
        ({"stage": {"learning_rate": "fast"}}, r"stage 2: learning_rate \('fast'\) must be a positive number"),
        ({"stage": {"learning_rate": True}}, r"stage 2: learning_rate \(True\) must be a positive number"),
        ({"stage": {"steps": 1.5}}, r"stage 2: steps \(1.5\) must be a positive integer"),
        ({"stage": {"resolution": 100}}, r"resolution \(100\) of a stage must be divisible by F = 8"),
        ({"stages": []}, r"stages \(\[\]\) must be a list of .* at least one"),
        ({"stages": "many"}, r"stages \('many'\) must be a list of"),
        ({"stages": ["all"]}, "stage 1: expected the keys resolution, steps"),
        ({"name": ""}, r"name \(''\) must be a text"),
        ({"base": 3}, r"base \(3\) must be a text"),
        ({"sample_size": True}, r"sample_size \(True\) must be a positive integer"),
        ({"sample_size": 33}, r"resolution \(256\) must be sample_size \(33\) times F = 8 of .*: 264"),
        (
            {"autoencoder": "f8-d128"},
            r"autoencoder: preset \('f8-d128'\) is unknown: did you mean 'f8-d128-s64-k512'\?",
        ),
    ],
)
def test_mistakes_are_named(load, changes, message):
    with pytest.raises(ValueError, match=r"small\.yaml: .*" + message):
        load(**changes)


@pytest.mark.parametrize("key", ["name", "base", "autoencoder", "sample_size", "resolution", "batch_size", "stages"])
def test_a_missing_key_is_named(content, load, key):
    del content[key]
    with pytest.raises(ValueError, match=f"key '{key}' is missing"):
        load()


def test_a_missing_key_of_a_stage_is_named(content, load):
    del content["stages"][0]["steps"]
    with pytest.raises(ValueError, match="stage 1: key 'steps' is missing"):
        load()


@pytest.mark.parametrize("text", ["- 1\n", "just text\n", ""])
def test_a_file_without_keys_is_refused(tmp_path, text):
    (tmp_path / "odd.yaml").write_text(text)
    with pytest.raises(ValueError, match=r"odd\.yaml: expected the keys name, base"):
        load_variant(tmp_path / "odd.yaml")


def test_broken_yaml_is_one_line(tmp_path):
    (tmp_path / "broken.yaml").write_text("name: [1\n")
    with pytest.raises(ValueError, match=r"broken\.yaml: ") as raised:
        load_variant(tmp_path / "broken.yaml")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("name", "hint"), [("precis", "did you mean 'precise'"), ("zzz", "choose one of hr, precise, quick")]
)
def test_an_unknown_name_is_met_with_the_nearest(name, hint):
    with pytest.raises(ValueError, match=rf"variant \('{name}'\) is neither a known name nor a file: {hint}"):
        load_variant(name)
