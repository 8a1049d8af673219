"""Metrics of reconstructions from noisy latents."""

import pytest
import torch
from diffusers import AutoencoderTiny
from PIL import Image

from pqdiff.data.images.crops import resize_and_crop
from pqdiff.data.images.reading import to_tensor
from pqdiff.metrics.codecs import Codec
from pqdiff.metrics.evaluation import Evaluation
from pqdiff.metrics.reconstructors import AutoencoderReconstructor, CodecReconstructor
from pqdiff.metrics.robustness import NoisyReconstructor, with_noise
from tests.tiny import tiny_autoencoder


def images(count=4):
    return torch.randint(0, 256, (count, 3, 16, 12), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def noisy(level, seed=0):
    return NoisyReconstructor(tiny_autoencoder(linear=True), level, "tiny", seed)


def changed(result) -> float:
    return (result.indices != result.clean_indices).double().mean().item()


def test_noise_changes_tokens_and_images_more_and_more():
    plain = AutoencoderReconstructor(tiny_autoencoder(linear=True))(images())
    little, some, much = (noisy(level)(images()) for level in (1e-9, 0.3, 3.0))
    assert torch.equal(little.pixels, plain.pixels)
    assert all(torch.equal(result.clean_indices, plain.indices) for result in (little, some, much))
    assert 0 == changed(little) < changed(some) < changed(much) < 1
    error = [(result.pixels.float() - images()).square().mean() for result in (little, some, much)]
    assert error[0] < error[1] < error[2]


def test_batches_and_order_change_nothing_but_the_seed_does():
    expected = noisy(0.3)(images())
    again = [noisy(0.3)(part).pixels.flip(0) for part in images().flip(0).split(3)]
    assert torch.equal(torch.cat(again[::-1]), expected.pixels)
    assert not torch.equal(noisy(0.3, seed=1)(images()).pixels, expected.pixels)


def test_an_evaluation_counts_changed_tokens_and_says_the_noise():
    photos = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in images()]
    evaluation = Evaluation(noisy(0.3), 16)
    counts = []
    for photo in photos:
        evaluation.add(photo)
        counts.append(changed(noisy(0.3)(to_tensor(resize_and_crop(photo, 16))[None])))
    result = evaluation.result()
    assert result["metrics"]["changed_tokens"] == pytest.approx(sum(counts) / len(counts), abs=1e-12)
    assert (result["protocol"]["noise"], result["protocol"]["kind"]) == (0.3, "tokenizer")
    assert "robustness" not in Evaluation(AutoencoderReconstructor(tiny_autoencoder()), 16).collections


def test_only_tokenizers_get_noise_each_level_once():
    tokenizer = AutoencoderReconstructor(tiny_autoencoder(), "tiny")
    assert [one.name for one in with_noise(tokenizer, [0.1, 0.3, 0.1])] == ["tiny + noise 0.1", "tiny + noise 0.3"]
    continuous = AutoencoderReconstructor(AutoencoderTiny())
    assert with_noise(CodecReconstructor(Codec.parse("jpeg:75")), [0.1]) == with_noise(continuous, [0.1]) == []


@pytest.mark.parametrize("level", [0.0, -1.0, float("nan"), float("inf")])
def test_levels_that_are_no_noise_are_refused(level):
    with pytest.raises(ValueError, match=r"noise \(.*\) must be a finite number above 0"):
        noisy(level)
    with pytest.raises(ValueError, match=r"noise \(.*\) must be a finite number above 0"):  # also where it is not used
        with_noise(CodecReconstructor(Codec.parse("jpeg:75")), [level])


def test_models_without_tokens_are_refused():
    with pytest.raises(ValueError, match="sd: noise on latents needs tokens"):
        NoisyReconstructor(AutoencoderTiny(), 0.1, "sd")
