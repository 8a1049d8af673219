"""Pictures and captions become batches: cut, mirrored and dropped by each sample's own random numbers."""

from collections import Counter
from types import SimpleNamespace

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from pqdiff.data.cache.reader import LatentCache
from pqdiff.data.captions.captioned import FolderImages, StreamedImages
from pqdiff.data.images.crops import resize_and_crop
from pqdiff.data.images.reading import to_tensor
from pqdiff.data.scenes.scenes import SceneDataset
from pqdiff.training.batches import Layout
from pqdiff.training.diffusion import DiffusionObjective
from pqdiff.training.randomness import generator_for
from pqdiff.training.samples import CachedSamples, ImageSamples, Preparation, StreamedSamples, latents_of
from tests.tiny import FACTOR, SIDE, tiny_autoencoder, tiny_kl_autoencoder, tiny_scheduler
from training import cache_latents

CPU = torch.device("cpu")
SIZES = ((40, 40), (36, 70), (70, 36))  # height, width


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Eleven photos of three shapes with captions."""
    folder = tmp_path_factory.mktemp("photos")
    for number in range(11):
        pixels = np.random.default_rng(number).integers(0, 256, (*SIZES[number % 3], 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:02}.png")
        (folder / f"{number:02}.txt").write_text(f"photo {number}")
    return FolderImages(folder)


@pytest.fixture(scope="module")
def table(photos):
    """The same photos as a table."""
    rows = [{"image": str(path), "text": f"photo {number}"} for number, path in enumerate(photos.paths)]
    features = datasets.Features({"image": datasets.Image(), "text": datasets.Value("string")})
    return datasets.Dataset.from_list(rows, features=features)


def generators(count, step=0):
    return [generator_for(0, "sample", step, slot) for slot in range(count)]


def batch_of(preparation, picture, count=400):
    return preparation.batch([(picture, ("a caption",))] * count, generators(count))


def numbered_picture():
    """Pixels that tell where they are."""
    rows, columns = np.mgrid[0:32, 0:64]
    return Image.fromarray(np.stack([rows, columns, rows], axis=2).astype(np.uint8))


def test_buckets_that_do_not_fill_a_batch_are_noted(tmp_path):
    for number in range(5):
        Image.new("RGB", (SIDE, SIDE) if number else (4 * SIDE, SIDE)).save(tmp_path / f"{number}.png")
    rows = datasets.Dataset.from_list(
        [{"image": {"bytes": (tmp_path / f"{number}.png").read_bytes()}, "text": "a"} for number in range(5)],
        features=datasets.Features({"image": datasets.Image(), "text": datasets.Value("string")}),
    )
    preparation = Preparation(SIDE, FACTOR, buckets=True)
    by_number = ImageSamples(FolderImages(tmp_path), preparation)
    stream = StreamedSamples(StreamedImages("rows", rows.to_iterable_dataset()), preparation)
    for samples, words in ((by_number, "are repeated, and so weigh more"), (stream, "are trained on later or never")):
        list(samples.batches(Layout(2), 0, 0, 4))
        (note,) = samples.notes
        assert note.startswith("buckets with fewer images than a batch of 2: 1 of (")
        assert words in note
    samples = ImageSamples(FolderImages(tmp_path), preparation)
    list(samples.batches(Layout(1), 0, 0, 4))
    assert samples.notes == []


# Preparation.


@pytest.mark.parametrize("probability", [0.0, 0.1, 0.5, 1.0])
def test_captions_are_dropped_as_often_as_asked(probability):
    captions = batch_of(Preparation(16, 8, caption_dropout=probability), numbered_picture())["captions"]
    assert set(captions) <= {"", "a caption"}
    assert captions.count("") / 400 == pytest.approx(probability, abs=0.05)


def test_each_of_a_pictures_captions_is_drawn_as_often():
    items = [(numbered_picture(), ("one", "two", "three"))] * 600
    counts = Counter(Preparation(16, 8).batch(items, generators(600))["captions"])
    assert counts.keys() == {"one", "two", "three"}
    assert min(counts.values()) > 150
    assert Preparation(16, 8).batch([(numbered_picture(), ())], generators(1))["captions"] == [""]


def test_captions_reach_batches_by_number_and_by_stream(tmp_path):
    Image.new("RGB", (SIDE, SIDE)).save(tmp_path / "a.png")
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.png", "text": ["one", "two"]}\n')
    rows = datasets.Dataset.from_list(
        [{"image": str(tmp_path / "a.png"), "text": ["one", "two"]}],
        features=datasets.Features({"image": datasets.Image(), "text": datasets.List(datasets.Value("string"))}),
    )
    preparation = Preparation(SIDE, FACTOR)
    for samples in (
        ImageSamples(FolderImages(tmp_path), preparation),
        StreamedSamples(StreamedImages("rows", rows.to_iterable_dataset(), paths=True), preparation),
    ):
        captions = [text for (batch,) in samples.batches(Layout(1), 0, 0, 20) for text in batch["captions"]]
        assert set(captions) == {"one", "two"}


def test_half_of_the_pictures_are_mirrored():
    pixels = batch_of(Preparation(32, 8, flip=True), numbered_picture())["pixels"]
    plain = to_tensor(resize_and_crop(numbered_picture(), (32, 32), (0.5, 0.5)))
    mirrored = [torch.equal(picture, plain.flip(2)) for picture in pixels]
    assert all(flipped or torch.equal(picture, plain) for flipped, picture in zip(mirrored, pixels, strict=True))
    assert sum(mirrored) / 400 == pytest.approx(0.5, abs=0.07)


def test_random_crops_are_anywhere_and_others_in_the_center():
    lefts = batch_of(Preparation(32, 8, random_crop=True), numbered_picture())["pixels"][:, 1, 0, 0]
    assert (lefts.min(), lefts.max()) == (0, 32)
    assert len(lefts.unique()) > 25
    assert set(batch_of(Preparation(32, 8), numbered_picture(), 5)["pixels"][:, 1, 0, 0].tolist()) == {16}


def test_the_same_place_in_a_run_gets_the_same_crop_flip_and_caption():
    preparation = Preparation(24, 8, random_crop=True, flip=True, caption_dropout=0.5)
    first, second = (batch_of(preparation, numbered_picture(), 20) for _ in range(2))
    assert torch.equal(first["pixels"], second["pixels"])
    assert first["captions"] == second["captions"]
    assert len({picture.numpy().tobytes() for picture in first["pixels"]}) > 15


def test_flags_do_not_change_each_others_draws():
    plain = batch_of(Preparation(24, 8, caption_dropout=0.5), numbered_picture(), 50)
    all_on = batch_of(Preparation(24, 8, random_crop=True, flip=True, caption_dropout=0.5), numbered_picture(), 50)
    assert plain["captions"] == all_on["captions"]


def test_a_resolution_must_be_divisible():
    with pytest.raises(ValueError, match=r"resolution \(33\) must be divisible by 2"):
        Preparation(33, 2)


# Samples by number.


def test_every_epoch_shows_every_photo(photos):
    samples = ImageSamples(photos, Preparation(SIDE, FACTOR))
    captions = [text for (batch,) in samples.batches(Layout(4), 0, 0, 6) for text in batch["captions"]]
    for epoch in (captions[:12], captions[12:]):
        assert {f"photo {number}" for number in range(11)} == set(epoch)


def test_buckets_give_one_shape_per_batch_and_show_every_photo(photos):
    samples = ImageSamples(photos, Preparation(SIDE, 8, buckets=True))
    shapes, captions = set(), set()
    for (batch,) in samples.batches(Layout(2), 0, 0, 6):
        shapes.add(tuple(batch["pixels"].shape[2:]))
        captions |= set(batch["captions"])
    assert captions == {f"photo {number}" for number in range(11)}
    assert len(shapes) == 3
    assert (SIDE, SIDE) in shapes


# Streams.


def streamed(table, **options):
    preparation = Preparation(SIDE, 8, **{"buckets": True, "caption_dropout": 0.3, "random_crop": True, **options})
    return StreamedSamples(StreamedImages("rows", table.to_iterable_dataset(), paths=True), preparation)


def content(steps):
    return [[(batch["pixels"].numpy().tobytes(), batch["captions"]) for batch in step] for step in steps]


def test_a_stream_gives_the_same_batches_on_resume(table):
    everything = content(streamed(table).batches(Layout(2), 5, 0, 9))
    assert content(streamed(table).batches(Layout(2), 5, 4, 9)) == everything[4:]
    assert content(streamed(table).batches(Layout(2), 5, 0, 4)) == everything[:4]


def test_a_stream_gives_the_same_batches_to_any_number_of_processes(table):
    alone = content(streamed(table).batches(Layout(2, 2), 5, 0, 4))
    ranks = [content(streamed(table).batches(Layout(1, 2, 2, rank), 5, 0, 4)) for rank in range(2)]
    for step, first, second in zip(alone, *ranks, strict=True):
        assert b"".join(pixels for pixels, _ in step) == b"".join(
            pixels for pair in zip(first, second, strict=True) for pixels, _ in pair
        )


def test_a_stream_shows_every_photo_in_batches_of_one_shape(table):
    steps = list(streamed(table, caption_dropout=0.0).batches(Layout(2), 5, 0, 30))
    counts = Counter(text for (batch,) in steps for text in batch["captions"])
    assert set(counts) == {f"photo {number}" for number in range(11)}
    assert max(counts.values()) - min(counts.values()) <= 3
    assert len({tuple(batch["pixels"].shape) for (batch,) in steps}) == 3


def test_threads_that_decode_ahead_change_nothing(table):
    everything = content(streamed(table).batches(Layout(2, 2), 5, 2, 9))
    for workers in (1, 3):
        assert content(streamed(table).batches(Layout(2, 2), 5, 2, 9, workers)) == everything


def test_nothing_is_read_from_a_stream_that_has_nothing_left_to_give():
    assert list(StreamedSamples(None, Preparation(SIDE, FACTOR)).batches(Layout(2), 0, 4, 4)) == []


def test_an_empty_stream_is_an_error(table):
    stream = StreamedImages("rows", table.to_iterable_dataset(), paths=True).take(0)
    with pytest.raises(ValueError, match="rows: the stream is empty"):
        list(StreamedSamples(stream, Preparation(SIDE, FACTOR)).batches(Layout(2), 0, 0, 1))


# Latents.


@pytest.fixture(scope="module")
def caches(models, tmp_path_factory):
    """Tokens and latents of twelve scenes by the tiny autoencoders."""
    folder = tmp_path_factory.mktemp("caches")
    for name, options in (("pq", ()), ("kl", ()), ("text", ("--text_encoder", models / "base"))):
        autoencoder = "pq" if name == "text" else name
        argv = ["--dataset", "scenes", "--num_samples", 12, "--autoencoder", models / autoencoder]
        argv += ["--output", folder / name, "--resolution", SIDE, "--device", "cpu", "--num_workers", 0, *options]
        cache_latents.main([*map(str, argv)])
    return folder


@pytest.mark.parametrize(("name", "build"), [("pq", tiny_autoencoder), ("kl", tiny_kl_autoencoder)])
def test_cached_samples_have_the_loss_of_the_pictures_and_their_captions(caches, name, build):
    autoencoder = build()
    pictures = ImageSamples(SceneDataset(12, SIDE), Preparation(SIDE, FACTOR, caption_dropout=0.5))
    cached = CachedSamples(LatentCache(caches / name), caption_dropout=0.5)
    objective = DiffusionObjective(tiny_scheduler())
    for step, (a, b) in enumerate(zip(*(x.batches(Layout(2, 2), 3, 0, 5) for x in (pictures, cached)), strict=True)):
        for first, second in zip(a, b, strict=True):
            latents = [latents_of(batch, autoencoder, CPU) for batch in (first, second)]
            assert "pixels" not in second
            assert first["captions"] == second["captions"]
            samples = [objective.noisy(x, generators(2, step)) for x in latents]
            losses = [objective.loss(sample.latents, sample) for sample in samples]
            if name == "pq":
                assert torch.equal(*latents)
                assert torch.equal(*losses)
            else:  # latents are stored in half precision
                torch.testing.assert_close(*losses, atol=1e-3, rtol=1e-3)


def test_cached_text_comes_only_if_it_is_asked_for_and_is_dropped_with_the_caption(caches):
    cache = LatentCache(caches / "text")
    assert "text_embeddings" not in next(CachedSamples(cache).batches(Layout(4), 0, 0, 1))[0]
    (batch,) = next(CachedSamples(cache, 0.5, use_text=True).batches(Layout(12), 0, 0, 1))
    dropped = torch.tensor([text == "" for text in batch["captions"]])
    is_empty = (batch["text_embeddings"] == cache.empty_text_embedding).flatten(1).all(dim=1)
    assert torch.equal(dropped, is_empty)
    assert 0 < dropped.sum() < 12


@torch.no_grad()
def test_latents_are_scaled_and_shifted_as_diffusion_models_see_them():
    kl = tiny_kl_autoencoder(scaling_factor=0.3, shift_factor=0.1)
    pixels = torch.randint(0, 256, (2, 3, SIDE, SIDE), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    mode = kl.encode(pixels / 127.5 - 1).latent_dist.mode()
    torch.testing.assert_close(latents_of({"pixels": pixels}, kl, CPU), (mode - 0.1) * 0.3)


def test_latents_are_full_precision_whatever_the_autoencoder_is():
    pq = tiny_autoencoder().to(torch.bfloat16)
    pixels = torch.zeros(1, 3, SIDE, SIDE, dtype=torch.uint8)
    assert latents_of({"pixels": pixels}, pq, CPU).dtype == torch.float32
    half = SimpleNamespace(config=None)
    assert latents_of({"latents": torch.zeros(1, 4, 2, 2).half()}, half, CPU).dtype == torch.float32
