"""What `measure_latents` learns from images: the statistics of latents and the frequencies of tokens."""

import pytest
import torch

from pqdiff import AutoencoderPQ
from pqdiff.fitting.latents import measure_latents
from tests.autoencoders import build


def photos(sizes=((32, 32), (24, 40), (16, 32))) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(256, (3, *size), dtype=torch.uint8, generator=generator) for size in sizes]


@torch.no_grad()
def latents_of(model: AutoencoderPQ, images: list[torch.Tensor]) -> torch.Tensor:
    """Standardized latents `(d, N)` of all positions of all images."""
    return torch.cat([model.encode(image[None] / 127.5 - 1).latents[0].flatten(1) for image in images], dim=1)


@pytest.mark.parametrize("kind", ["networks", "hidden", "classes"])
@pytest.mark.parametrize("exponent", [0.0, 0.5, 1.0])
def test_latents_have_mean_zero_and_on_average_variance_one_and_the_exponent_stays(kind, exponent):
    """Over all positions of images of several sizes; the statistics that the model had before do not count."""
    before = {"mean": [3.0] * 6, "std": [1.0, 2.0, 3.0, 4.0, 5.0, 6.0], "exponent": exponent}
    model = build(kind, statistics_config=before)
    raw = latents_of(build(kind, statistics_config=None), photos())
    measure_latents(model, photos())
    latents = latents_of(model, photos())
    torch.testing.assert_close(latents.mean(dim=1), torch.zeros(6), rtol=0, atol=1e-4)
    torch.testing.assert_close(latents.var(dim=1, correction=0).mean(), torch.tensor(1.0), rtol=1e-4, atol=0)
    assert model.config.statistics_config["exponent"] == exponent
    varying = raw.std(dim=1, correction=0) > 1e-3
    scales = latents.std(dim=1, correction=0)[varying], raw.std(dim=1, correction=0)[varying] ** (1 - exponent)
    torch.testing.assert_close(scales[0] / scales[0].mean(), scales[1] / scales[1].mean(), rtol=1e-3, atol=1e-4)


def test_a_model_without_statistics_gets_some_with_exponent_zero():
    model = build("linear", statistics_config=None)
    measure_latents(model, photos())
    assert model.config.statistics_config["exponent"] == 0
    torch.testing.assert_close(latents_of(model, photos()).mean(dim=1), torch.zeros(6), rtol=0, atol=1e-4)


@pytest.mark.parametrize("exponent", [0.0, 0.7])
def test_a_model_built_from_the_config_gives_the_same_latents(exponent):
    """What was measured is in the config, hence in whatever is made from it."""
    model = build("classes", statistics_config={"mean": [0.0] * 6, "std": [1.0] * 6, "exponent": exponent})
    before = latents_of(model, photos())
    measure_latents(model, photos())
    other = AutoencoderPQ.from_config(model.config).eval()
    other.load_state_dict(model.state_dict())
    latents = latents_of(model, photos())
    assert torch.equal(latents_of(other, photos()), latents)
    assert not torch.equal(latents, before)
    assert torch.equal(other.quantizer.frequencies, model.quantizer.frequencies)


def test_a_model_that_was_saved_and_loaded_gives_the_same_latents(tmp_path):
    model = build("linear")
    measure_latents(model, photos())
    model.save_pretrained(tmp_path)
    loaded = AutoencoderPQ.from_pretrained(tmp_path)
    assert torch.equal(latents_of(loaded, photos()), latents_of(model, photos()))
    assert torch.equal(loaded.quantizer.frequencies, model.quantizer.frequencies)


@torch.no_grad()
def test_frequencies_are_those_of_the_tokens_and_leave_unseen_ones_possible():
    model = build("classes")
    tokens = [model.encode_to_indices(image[None] / 127.5 - 1)[0].flatten(1) for image in photos()]
    tokens = torch.cat(tokens, dim=1)  # (S, N)
    counts = torch.stack([torch.bincount(row, minlength=16) for row in tokens]) + 0.5
    measure_latents(model, photos())
    torch.testing.assert_close(model.quantizer.frequencies, counts / counts.sum(dim=1, keepdim=True))
    assert (model.quantizer.frequencies > 0).all()


def test_images_are_decoded_as_before():
    """Statistics are undone by `decode`; the reconstruction depends on neither them nor the frequencies."""
    model, image = build("classes"), photos()[0][None] / 127.5 - 1
    with torch.no_grad():
        before = model.decode(model.encode(image).latents).sample
        measure_latents(model, photos())
        after = model.decode(model.encode(image).latents).sample
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_a_model_in_half_precision_keeps_its_statistics_in_fp32():
    model = build("linear").to(torch.bfloat16)
    measure_latents(model, photos())
    assert model.statistics.mean.dtype == torch.float32
    assert model.quantizer.frequencies.dtype == torch.float32


def test_a_channel_that_never_changes_is_no_error():
    model = build("linear")
    with torch.no_grad():
        model.quantizer.codebooks[:, :, 0] = 2.5
    measure_latents(model, photos())
    latents = latents_of(model, photos())
    assert latents.isfinite().all()
    torch.testing.assert_close(latents.mean(dim=1), torch.zeros(6), rtol=0, atol=1e-4)


def test_no_images_are_named_and_the_model_stays_as_it_was():
    model = build("linear")
    config, frequencies = model.config.statistics_config, model.quantizer.frequencies.clone()
    with pytest.raises(ValueError, match="there are no images to measure latents on"):
        measure_latents(model, [])
    assert model.config.statistics_config == config
    assert torch.equal(model.quantizer.frequencies, frequencies)
