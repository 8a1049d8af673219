"""Cards of tokenizers show what the model has and what was measured of it, whatever its quantizer."""

from types import SimpleNamespace

import pytest
import torch
from diffusers.configuration_utils import FrozenDict
from huggingface_hub import ModelCard

from benchmarks.latent_stats import for_card, measure
from pqdiff.hub.cards import TokenizerEvaluation, render_tokenizer_card
from pqdiff.models.fingerprint import fingerprint
from tests.tiny import tiny_autoencoder

WORDS = {
    "name": "tiny",
    "load": '"user/tiny"',
    "license": "mit",
    "summary": "A tokenizer.",
    "training": "Made by hand.",
    "limits": "Small.",
}


@pytest.fixture(scope="module")
def model():
    return tiny_autoencoder(linear=True)


@pytest.fixture(scope="module")
def latents(model) -> dict:
    pixels = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    document = {"num_images": 2, "data": "noise", "resolution": 32, "autoencoders": {"tiny": measure(model, pixels)}}
    return for_card(document, "tiny")


def render(model, evaluation=None, **options) -> str:
    return render_tokenizer_card(model, evaluation=evaluation, **WORDS, **options).content


def test_facts_are_those_of_the_model(model):
    text = render(model)
    sizes, config = model.quantizer.codebook_sizes, model.config
    for key, value in (
        ("downsampling factor F", model.downsample_factor),
        ("latent channels d", config.latent_channels),
        ("quantizer", "product"),
        ("tokens per position", len(sizes)),
        ("codebook sizes", f"{sizes[0]} each"),
        ("bits per position", f"{model.quantizer.bits_per_position:g}"),
        ("bits per pixel", f"{model.bits_per_pixel:g}"),
        ("parameters", f"{sum(p.numel() for p in model.parameters()):,}"),
        ("fingerprint", f"`{fingerprint(model)}`"),
    ):
        assert f"| {key} | {value} |\n" in text
    data = ModelCard(text).data
    assert (data.license, data.library_name, data.model_name) == ("mit", "diffusers", "tiny")
    assert "product-quantization" in data.tags


def test_names_with_line_breaks_add_no_headings(model):
    evil = "a\n\n# evil\n\n```\n"
    evaluation = TokenizerEvaluation(1, evil, 32, {evil: 1.0})
    words = {**dict.fromkeys(WORDS, evil), "license": "mit"}
    text = render_tokenizer_card(model, evaluation=evaluation, paper=evil, **words).content
    assert [line for line in text.splitlines() if line.startswith(("# ", "```"))] == [
        "# a # evil ```",
        "```python",
        "```",
    ]


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ((512,) * 64, "512 each"),
        ((128, *(512,) * 63), "128, then 63 x 512"),
        ((2**40,), "2^40"),
        ((7, 5), "7, then 5"),
    ],
)
def test_codebooks_of_any_number_and_size_have_a_row(model, sizes, expected):
    """The card reads no more than this of a model: a quantizer needs neither codewords nor subspaces."""
    quantizer = SimpleNamespace(codebook_sizes=sizes, bits_per_position=1.5)
    config = FrozenDict(quantizer_type="finite_scalar", latent_channels=4)
    other = SimpleNamespace(
        quantizer=quantizer,
        config=config,
        downsample_factor=8,
        bits_per_pixel=0.25,
        parameters=model.parameters,
        state_dict=model.state_dict,
    )
    card = render_tokenizer_card(other, evaluation=None, **WORDS)
    assert f"| codebook sizes | {expected} |" in card.content
    assert "finite-scalar-quantization" in card.data.tags


def test_measurements_are_in_the_table_and_in_the_metadata(model):
    metrics = {"psnr_dataset": 31.234, "ssim": 0.9, "codebook_utilization": 0.5, "other": 3.0, "lpips_vgg": None}
    text = render(model, TokenizerEvaluation(1200, "my photos", 64, metrics))
    assert "1,200 images (my photos), 64 px: shorter side resized by Lanczos, center crop, 8-bit output." in text
    assert "| PSNR of the data set (one MSE over all pixels) | 31.23 dB |" in text
    assert "| codewords in use | 50.0% |" in text
    assert "| other | 3 |" in text
    assert "| LPIPS (VGG16), lower is better | not finite |" in text
    results = {result.metric_type: result.metric_value for result in ModelCard(text).data.eval_results}
    assert results == {"psnr_dataset": 31.234, "ssim": 0.9}
    assert ModelCard(text).data.eval_results[0].dataset_name == "my photos"


def test_measurements_on_unnamed_images_are_not_in_the_metadata(model):
    text = render(model, TokenizerEvaluation(3, "", 64, {"ssim": 0.9}))
    assert "3 images, 64 px" in text
    assert ModelCard(text).data.eval_results is None


def test_the_snippet_runs(model, tmp_path, monkeypatch):
    model.save_pretrained(tmp_path)
    text = render_tokenizer_card(model, evaluation=None, **{**WORDS, "load": repr(str(tmp_path))}).content
    names: dict = {}
    exec(text.split("```python\n")[1].split("```")[0], names)
    assert names["images"].shape == (1, 3, 256, 256)


def test_cards_show_the_statistics_of_the_latents(model, latents):
    text = render(model, latents=latents, paper="The paper's numbers.")
    assert "## Statistics of the latents\n\nStandardized latents of 2 images (noise), 32 px" in text
    noise = latents["psnr_under_noise"]
    for kind, words in (("snapped", "snapped to the nearest codewords"), ("free", "not snapped")):
        expected = " / ".join(f"{noise[std][kind]:.1f}" for std in ("0", "0.03", "0.1", "0.3", "0.5", "1"))
        assert f"with noise of 0 / 0.03 / 0.1 / 0.3 / 0.5 / 1 on the latents, {words} | {expected} |" in text
    titles = ("Measured by us", "Statistics of the latents", "Reported by the paper, not by us", "Limits")
    places = [text.index(f"## {title}\n") for title in titles]
    assert places == sorted(places)


def test_what_is_not_given_has_no_place(model):
    text = render(model)
    assert "Statistics of the latents" not in text
    assert "Reported by the paper" not in text
    assert (
        "## Measured by us\n\nNot evaluated yet. Run `pqdiff evaluate FOLDER --model THIS_FOLDER`.\n\n## Limits"
        in text
    )


def test_latents_of_another_model_are_refused(model, latents):
    other = {**latents, "fingerprint": "0" * 16}
    with pytest.raises(ValueError, match=f"fingerprint {'0' * 16}, this one has {fingerprint(model)}"):
        render(model, latents=other)
