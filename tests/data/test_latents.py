"""A latent cache returns what was written, goes on after every kind of interruption, and refuses what does not fit."""

import json
import os
import pickle
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from pqdiff.data.crops import Crop
from pqdiff.data.latent_shards import INDEX, map_tensors
from pqdiff.data.latents import LatentCache, LatentCacheWriter

SIZES = (5, 512, 256)
SHAPES = ((2, 3), (4, 4), (3, 2))


def sample(item, kind="indices", shape=None, part=0, text=None):
    """A sample that can be made again from its number."""
    generator = torch.Generator().manual_seed(1000 * item + part)
    height, width = shape or SHAPES[0]
    values = {"indices": torch.stack([torch.randint(size, (height, width), generator=generator) for size in SIZES])}
    values["latents"] = torch.randn(4, height, width, generator=generator).half().float()
    result = {
        "item": item,
        kind: values[kind],
        "caption": f"caption {item % 3}: \u00fc\u4e2d",
        "name": f"photo/{item}.jpg",
    }
    result["crop"] = Crop(part, 2, width, height, 9, 8, 90, 80, part % 2)
    return result if text is None else {**result, "text_embedding": text}


def write(folder, count=7, kind="indices", parts=1, shapes=SHAPES[:1], **options):
    """A cache of `count` photos; whatever is there already is not made again."""
    contents = {"codebook_sizes": SIZES} if kind == "indices" else {"channels": 4}
    settings = {"kind": kind, "autoencoder_name": "tiny", "fingerprint": "0123", "resolution": 32, **contents}
    with LatentCacheWriter(folder, **{**settings, "samples_per_shard": 3, **options}) as writer:
        for item in range(count):
            if not writer.is_done(item):
                writer.add([sample(item, kind, shapes[item % len(shapes)], part) for part in range(parts)])
    return folder


def assert_is(got, wanted, kind="indices"):
    assert torch.equal(got[kind], wanted[kind])
    assert got[kind].dtype == {"indices": torch.int64, "latents": torch.float32}[kind]
    assert (got["caption"], got["name"], got["item"]) == (wanted["caption"], wanted["name"], wanted["item"])
    assert got["crop"] == vars(wanted["crop"])


@pytest.mark.parametrize("kind", ["indices", "latents"])
def test_samples_come_back_as_they_were(tmp_path, kind):
    cache = LatentCache(write(tmp_path / "cache", kind=kind, parts=2))
    assert len(cache) == 14
    assert len(list(cache)) == 14
    for number in range(14):
        assert_is(cache[number], sample(number // 2, kind, part=number % 2), kind)


def test_a_cache_says_what_it_holds(tmp_path):
    tokens, latents = LatentCache(write(tmp_path / "a")), LatentCache(write(tmp_path / "b", kind="latents"))
    assert (tokens.kind, tokens.codebook_sizes, tokens.channels) == ("indices", SIZES, None)
    assert (latents.kind, latents.codebook_sizes, latents.channels) == ("latents", None, 4)
    assert (tokens.fingerprint, tokens.autoencoder, tokens.resolution) == ("0123", "tiny", 32)
    assert not tokens.has_text_embeddings
    assert tokens.empty_text_embedding is None


def test_shapes_are_kept_apart_and_told_without_reading(tmp_path):
    cache = LatentCache(write(tmp_path / "cache", count=12, shapes=SHAPES))
    assert len({shard.shape for shard in cache.shards}) == 3
    assert cache.shapes == [cache.shape_of(i) for i in range(12)]
    assert not cache._mapped  # nothing was opened for it
    assert sorted(cache[i]["item"] for i in range(12)) == list(range(12))
    for number in range(12):
        got = cache[number]
        assert got["indices"].shape[1:] == cache.shape_of(number)
        assert_is(got, sample(got["item"], shape=SHAPES[got["item"] % 3]))


@pytest.mark.parametrize("kind", ["indices", "latents"])
def test_a_batch_is_its_samples_in_the_order_asked_for(tmp_path, kind):
    cache = LatentCache(write(tmp_path / "cache", kind=kind, count=8))
    wanted = [6, 0, 7, 7, 3]
    batch = cache.get_batch(wanted)
    assert torch.equal(batch[kind], torch.stack([cache[i][kind] for i in wanted]))
    for name, names in (("caption", "captions"), ("name", "names"), ("item", "items"), ("crop", "crops")):
        assert batch[names] == [cache[i][name] for i in wanted]


def test_a_batch_of_several_shapes_is_refused(tmp_path):
    cache = LatentCache(write(tmp_path / "cache", count=6, shapes=SHAPES))
    with pytest.raises(ValueError, match="one shape"):
        cache.get_batch([0, 5])


@pytest.mark.parametrize("wanted", [[-1], [7], [0, 7], []])
def test_numbers_out_of_range_are_refused(tmp_path, wanted):
    with pytest.raises(IndexError, match=r"\[0, 7\)"):
        LatentCache(write(tmp_path / "cache")).get_batch(wanted)


def test_streaming_reads_everything_once_and_can_start_anywhere(tmp_path):
    cache = LatentCache(write(tmp_path / "cache", count=10))
    assert [entry["item"] for entry in cache.iterate()] == list(range(10))
    shuffled = [entry["item"] for entry in cache.iterate(shuffle_seed=1)]
    assert sorted(shuffled) == list(range(10))
    assert shuffled != list(range(10))
    assert [entry["item"] for entry in cache.iterate(shuffle_seed=1, start=4)] == shuffled[4:]
    assert [entry["item"] for entry in cache.iterate(shuffle_seed=2)] != shuffled


def test_shuffling_stays_within_a_shard_until_it_is_read(tmp_path):
    cache = LatentCache(write(tmp_path / "cache", count=12))
    shards = [number // 3 for number in cache.order(shuffle_seed=0)]
    assert [shards[i : i + 3] for i in range(0, 12, 3)] == [[shard] * 3 for shard in dict.fromkeys(shards)]


def test_worker_processes_read_too(tmp_path):
    cache = LatentCache(write(tmp_path / "cache"))
    cache[0]  # maps a shard in this process
    assert len(pickle.dumps(cache)) < 5000
    loader = DataLoader(cache, batch_size=None, num_workers=1, multiprocessing_context="fork")
    assert [entry["item"] for entry in loader] == list(range(7))


def test_text_embeddings_are_kept_once_per_caption(tmp_path):
    embeddings = [torch.full((5, 6), number / 4.0) for number in range(3)]
    empty = torch.full((5, 6), -1.0)
    settings = {"kind": "indices", "autoencoder_name": "t", "fingerprint": "0", "codebook_sizes": SIZES}
    with LatentCacheWriter(tmp_path / "c", **settings, resolution=32, empty_text_embedding=empty) as writer:
        writer.add([sample(item, text=embeddings[item % 3]) for item in range(8)])
    cache = LatentCache(tmp_path / "c")
    assert map_tensors(tmp_path / "c" / cache.shards[0].file)["text_embeddings"].shape == (3, 5, 6)
    assert torch.equal(cache.empty_text_embedding, empty)
    assert torch.equal(cache[4]["text_embeddings"], embeddings[1])
    assert torch.equal(cache.get_batch([2, 0])["text_embeddings"], torch.stack([embeddings[2], embeddings[0]]))


def test_no_caption_at_all_is_kept(tmp_path):
    settings = {"kind": "indices", "autoencoder_name": "t", "fingerprint": "0", "codebook_sizes": SIZES}
    with LatentCacheWriter(tmp_path / "c", **settings, resolution=32) as writer:
        writer.add([{**sample(0), "caption": "", "name": ""}])
    assert LatentCache(tmp_path / "c")[0]["caption"] == ""


def test_tokens_take_their_bits_and_no_more(tmp_path):
    folder = write(tmp_path / "c", count=1, shapes=((8, 8),))
    assert map_tensors(folder / "shard-00000.safetensors")["codes"].shape == (1, 64 * (3 + 9 + 8) // 8)


# Interruptions


def test_a_finished_cache_is_left_as_it_is(tmp_path):
    folder = write(tmp_path / "cache")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    write(folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_cache_grows_without_repeating_anything(tmp_path):
    folder = write(tmp_path / "cache", count=4)
    cache = LatentCache(write(folder, count=9))
    assert sorted(entry["item"] for entry in cache) == list(range(9))


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_an_interruption_keeps_whole_photos(tmp_path, error):
    settings = {"kind": "indices", "autoencoder_name": "tiny", "fingerprint": "0123", "codebook_sizes": SIZES}

    def interrupted():
        with LatentCacheWriter(tmp_path / "c", **settings, resolution=32, samples_per_shard=4) as writer:
            for item in range(3):
                writer.add([sample(item, part=part) for part in range(2)])
            assert (writer.num_items_done, writer.next_item) == (2, 2)
            raise error

    with pytest.raises(error):
        interrupted()
    with pytest.raises(ValueError, match="not complete"):
        LatentCache(tmp_path / "c")
    assert len(LatentCache(tmp_path / "c", allow_incomplete=True)) == 6
    assert sorted(entry["item"] for entry in LatentCache(write(tmp_path / "c", count=5, parts=2))) == [
        item for item in range(5) for _ in range(2)
    ]


@pytest.mark.parametrize("before", [True, False], ids=["before", "after"])
@pytest.mark.parametrize("rename", range(6))
def test_a_killed_writer_leaves_a_cache_that_can_be_finished(tmp_path, rename, before):
    """SIGKILL right before and right after each file takes its place: index, shard, index, shard, index, shard."""
    folder = tmp_path / "cache"
    child = os.fork()
    if child == 0:
        replace, calls = Path.replace, iter(range(100))

        def replace_and_die(path, target):
            last = next(calls) == rename
            if last and before:
                os.kill(os.getpid(), signal.SIGKILL)
            replace(path, target)
            if last:
                os.kill(os.getpid(), signal.SIGKILL)

        Path.replace = replace_and_die
        try:
            write(folder, count=11, parts=2, shapes=SHAPES[:2])
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WTERMSIG(status) == signal.SIGKILL
    if (folder / INDEX).exists():
        with pytest.raises(ValueError, match="not complete"):
            LatentCache(folder)
        for entry in LatentCache(folder, allow_incomplete=True):
            assert_is(entry, sample(entry["item"], shape=SHAPES[entry["item"] % 2], part=entry["crop"]["left"]))
    cache = LatentCache(write(folder, count=11, parts=2, shapes=SHAPES[:2]))
    found = sorted((entry["item"], entry["crop"]["left"]) for entry in cache)
    assert found == [(item, part) for item in range(11) for part in range(2)]
    for entry in cache:
        assert_is(entry, sample(entry["item"], shape=SHAPES[entry["item"] % 2], part=entry["crop"]["left"]))
    assert {path.name for path in folder.iterdir()} == {INDEX, *(shard.file for shard in cache.shards)}


def test_much_in_memory_is_written_early(tmp_path, monkeypatch):
    monkeypatch.setattr("pqdiff.data.latent_writer._MOST_BUFFERED", 50)
    settings = {"kind": "indices", "autoencoder_name": "t", "fingerprint": "0", "codebook_sizes": SIZES}
    with LatentCacheWriter(tmp_path / "c", **settings, resolution=32) as writer:
        writer.add([sample(item) for item in range(9)])
        assert writer.num_items_done == 9


# What is refused


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"fingerprint": "4567"}, "fingerprint '0123', not '4567'"),
        ({"resolution": 64}, "resolution 32, not 64"),
        ({"source": "elsewhere"}, "source"),
        ({"recipe": {"crops": 2}}, r"recipe.crops None, not 2"),
        ({"kind": "latents"}, "kind 'indices', not 'latents'"),
        ({"empty_text_embedding": torch.zeros(2, 3)}, "text_embeddings"),
    ],
    ids=str,
)
def test_a_cache_of_other_settings_is_not_continued(tmp_path, change, named):
    folder = write(tmp_path / "cache")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(ValueError, match=named):
        write(folder, **change)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_renamed_autoencoder_is_the_same(tmp_path):
    write(write(tmp_path / "cache"), autoencoder_name="elsewhere/tiny")


def test_a_folder_of_something_else_is_not_touched(tmp_path):
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(ValueError, match="neither empty nor a latent cache"):
        write(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["letter.txt"]


@pytest.mark.parametrize(
    "options",
    [
        {"kind": "codes"},
        {"kind": "indices", "codebook_sizes": None},
        {"kind": "latents", "codebook_sizes": SIZES},
        {"kind": "indices", "channels": 4},
        {"samples_per_shard": 0},
    ],
    ids=str,
)
def test_settings_that_do_not_fit_are_refused(tmp_path, options):
    settings = {"kind": "indices", "autoencoder_name": "t", "fingerprint": "0", "codebook_sizes": SIZES}
    with pytest.raises(ValueError, match=r"kind|samples_per_shard"):
        LatentCacheWriter(tmp_path / "c", **{**settings, "resolution": 32, **options})
    assert not (tmp_path / "c").exists()


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"indices": torch.full((3, 2, 3), 300)}, r"\[0, K\)"),
        ({"indices": torch.zeros(2, 2, 3, dtype=torch.int64)}, "codebook_sizes"),
        ({"item": 0}, "item 0"),
        ({"text_embedding": torch.zeros(2, 2)}, "text_embedding"),
    ],
    ids=["range", "groups", "twice", "text"],
)
def test_samples_that_do_not_fit_are_refused_and_the_rest_is_kept(tmp_path, change, named):
    settings = {"kind": "indices", "autoencoder_name": "tiny", "fingerprint": "0123", "codebook_sizes": SIZES}
    with LatentCacheWriter(tmp_path / "c", **settings, resolution=32) as writer:
        writer.add([sample(0)])
        with pytest.raises(ValueError, match=named):
            writer.add([sample(1), {**sample(1, part=1), **change}])
    assert [entry["item"] for entry in LatentCache(tmp_path / "c")] == [0]


def test_a_photo_with_samples_of_two_shapes_is_refused(tmp_path):
    with (
        pytest.raises(ValueError, match="several shapes"),
        LatentCacheWriter(
            tmp_path / "c", kind="latents", autoencoder_name="t", fingerprint="0", channels=4, resolution=8
        ) as writer,
    ):
        writer.add([sample(0, "latents", SHAPES[0]), sample(0, "latents", SHAPES[1], part=1)])


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e6])
def test_latents_that_half_precision_cannot_hold_are_refused(tmp_path, value):
    settings = {"kind": "latents", "autoencoder_name": "t", "fingerprint": "0", "channels": 4, "resolution": 8}
    with pytest.raises(ValueError, match="not finite"), LatentCacheWriter(tmp_path / "c", **settings) as writer:
        writer.add([{**sample(0, "latents"), "latents": torch.full((4, 2, 3), value)}])


def test_a_cache_of_nothing_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no samples"):
        write(tmp_path / "c", count=0)


@pytest.mark.parametrize("kept", [0, 7, 50, 900])
def test_a_truncated_shard_is_named(tmp_path, kept):
    folder = write(tmp_path / "cache", count=300, samples_per_shard=300)
    path = folder / "shard-00000.safetensors"
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ValueError, match="shard-00000") as raised:
        LatentCache(folder)[0]
    assert len(str(raised.value).splitlines()) == 1


def test_a_missing_shard_and_one_with_other_samples_are_named(tmp_path):
    folder = write(tmp_path / "cache")
    (folder / "shard-00000.safetensors").unlink()
    (folder / "shard-00002.safetensors").replace(folder / "shard-00001.safetensors")
    for number, file in ((0, "shard-00000"), (3, "shard-00001")):
        with pytest.raises(ValueError, match=file):
            LatentCache(folder)[number]


@pytest.mark.parametrize(
    "change",
    [{"format": "x"}, {"version": 2}, {"kind": "x"}, {"shards": 3}, {"shards": [{}]}, {"kind": None}],
    ids=str,
)
def test_an_index_that_does_not_fit_is_named(tmp_path, change):
    folder = write(tmp_path / "cache")
    index = json.loads((folder / INDEX).read_text())
    (folder / INDEX).write_text(json.dumps({**index, **change}))
    with pytest.raises(ValueError, match=r"index\.json"):
        LatentCache(folder)


def test_a_folder_without_a_cache_is_named(tmp_path):
    with pytest.raises(ValueError, match="holds no latent cache"):
        LatentCache(tmp_path)


def test_reading_a_batch_is_fast(tmp_path):
    """64 samples of 4096 tokens of 9 bits: measured at about 1 ms, bounded for a busy machine."""
    rng = np.random.default_rng(0)
    sizes = (512,) * 64
    settings = {"kind": "indices", "autoencoder_name": "t", "fingerprint": "0", "codebook_sizes": sizes}
    with LatentCacheWriter(tmp_path / "c", **settings, resolution=64) as writer:
        crop = Crop(0, 0, 64, 64, 64, 64, 64, 64)
        tokens = torch.from_numpy(rng.integers(0, 512, (256, 64, 8, 8)))
        writer.add([{"item": i, "indices": tokens[i], "caption": "x", "name": "y", "crop": crop} for i in range(256)])
    cache, times = LatentCache(tmp_path / "c"), []
    for _ in range(9):
        wanted = rng.permutation(256)[:64].tolist()
        start = time.perf_counter()
        batch = cache.get_batch(wanted)
        times.append(time.perf_counter() - start)
        assert torch.equal(batch["indices"], tokens[wanted])
    assert sorted(times)[4] < 0.02
