"""What --dataset may be, and what is said when it does not fit."""

import datasets
import pytest

from pqdiff.training.samples import CachedSamples, ImageSamples
from pqdiff.training.sources import DataOptions, open_captioned_images, open_samples
from tests.tiny import FACTOR, SIDE, tiny_autoencoder, tiny_text_encoder, tiny_unet
from training import cache_latents


@pytest.fixture(scope="module")
def pq():
    return tiny_autoencoder()


@pytest.fixture(scope="module")
def cache(models, tmp_path_factory):
    folder = tmp_path_factory.mktemp("cache") / f"at-{SIDE}"
    argv = ["--dataset", "scenes", "--num_samples", 4, "--autoencoder", models / "pq", "--output", folder]
    argv += ["--resolution", SIDE, "--text_encoder", models / "base", "--device", "cpu", "--num_workers", 0]
    cache_latents.main([*map(str, argv)])
    return folder


def options_for(dataset, **changes) -> DataOptions:
    return DataOptions(str(dataset), **changes)


def test_scenes_are_drawn_at_the_resolution_of_the_stage(pq):
    samples = open_samples(options_for("scenes", num_scenes=7), SIDE, pq)
    assert isinstance(samples, ImageSamples)
    assert len(samples) == 7
    assert samples.images[0]["image"].size == (SIDE, SIDE)


def test_sides_of_buckets_are_divisible_at_every_level_of_the_unet(pq):
    samples = open_samples(options_for("scenes", buckets=True), 64, pq, unet=tiny_unet(4))
    deepest = FACTOR * 2 ** (len(tiny_unet(4).config.block_out_channels) - 1)
    sides = {side for size in samples.preparation.sizes for side in size}
    assert len(sides) > 1
    assert not [side for side in sides if side % deepest]


def test_a_folder_with_an_index_is_a_cache_and_its_name_may_hold_the_resolution(pq, cache):
    for name in (cache, cache.with_name("at-{resolution}")):
        samples = open_samples(options_for(name), SIDE, pq, tiny_text_encoder())
        assert isinstance(samples, CachedSamples)
        assert (len(samples), samples.use_text) == (4, True)


def test_a_cache_of_other_models_or_another_resolution_is_refused(pq, cache):
    with pytest.raises(ValueError, match="not of the autoencoder of this run"):
        open_samples(options_for(cache), SIDE, tiny_autoencoder(linear=True))
    with pytest.raises(ValueError, match="was made at 32 px, but this stage is at 64 px"):
        open_samples(options_for(cache), 64, pq)
    with pytest.raises(ValueError, match="text embeddings of another text encoder"):
        open_samples(options_for(cache), SIDE, pq, tiny_text_encoder(hidden_size=8, intermediate_size=8))


@pytest.mark.parametrize("flag", ["random_crop", "random_flip", "buckets"])
def test_flags_that_a_cache_cannot_obey_are_refused(pq, cache, flag):
    with pytest.raises(ValueError, match=f"--{flag}: .* is a latent cache"):
        open_samples(options_for(cache, **{flag: True}), SIDE, pq)


def test_scenes_are_not_mirrored_because_their_captions_say_left_and_right(pq):
    with pytest.raises(ValueError, match="--random_flip: captions of scenes speak of left and right"):
        open_samples(options_for("scenes", random_flip=True), SIDE, pq)


def test_a_cache_holds_no_images_to_solve_from(cache):
    with pytest.raises(ValueError, match="images are needed: give --solve_dataset"):
        open_captioned_images(options_for(cache), SIDE)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"dataset": None}, "--dataset is missing"),
        ({"dataset": "nowhere"}, "nowhere: neither a folder"),
        ({"caption_dropout": 1.5}, r"--caption_dropout \(1.5\) must be between 0 and 1"),
        ({"num_scenes": 0}, "must be at least 1"),
    ],
)
def test_mistakes_are_named(pq, monkeypatch, options, named):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    options = DataOptions(**{"dataset": "scenes", **options})
    with pytest.raises(ValueError, match=named):
        open_samples(options, SIDE, pq)


def test_a_resolution_that_the_autoencoder_cannot_divide_is_named(pq):
    with pytest.raises(ValueError, match=r"resolution \(33\) must be divisible by 2"):
        open_samples(options_for("scenes"), 33, pq)
