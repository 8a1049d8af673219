"""A latent cache returns what was written, at any position and in any order."""

import pickle

import pytest
import torch
from torch.utils.data import DataLoader

from pqdiff.data.cache.reader import LatentCache
from pqdiff.data.cache.shards import map_tensors
from pqdiff.data.cache.writer import LatentCacheWriter
from tests.data.cache.support import SETTINGS, SHAPES, SIZES, assert_is, count_calls, sample, write


@pytest.mark.parametrize("kind", ["indices", "latents"])
def test_samples_come_back_as_they_were(tmp_path, kind):
    cache = LatentCache(write(tmp_path / "cache", kind=kind, parts=2))
    assert len(cache) == 14
    assert len(list(cache)) == 14
    for number in range(14):
        assert_is(cache[number], sample(number // 2, kind, part=number % 2), kind)


def test_a_cache_says_what_it_holds(tmp_path):
    tokens, latents = LatentCache(write(tmp_path / "a")), LatentCache(write(tmp_path / "b", kind="latents"))
    assert (tokens.kind, tokens.codebook_sizes) == ("indices", SIZES)
    assert (latents.kind, latents.codebook_sizes, latents.settings["channels"]) == ("latents", None, 4)
    assert (tokens.fingerprint, tokens.autoencoder, tokens.resolution) == ("0123", "tiny", 32)
    assert not tokens.has_text_embeddings
    assert tokens.empty_text_embedding is None


def test_shapes_are_kept_apart_and_known_without_reading(tmp_path):
    cache = LatentCache(write(tmp_path / "cache", count=12, shapes=SHAPES))
    assert len({shard.shape for shard in cache.shards}) == 3
    assert len(cache.shapes) == 12
    assert not cache._mapped  # nothing was opened for it
    assert sorted(cache[i]["item"] for i in range(12)) == list(range(12))
    for number in range(12):
        got = cache[number]
        assert got["indices"].shape[1:] == cache.shapes[number]
        assert_is(got, sample(got["item"], shape=SHAPES[got["item"] % 3]))


@pytest.mark.parametrize("kind", ["indices", "latents"])
def test_a_batch_is_its_samples_in_the_order_given(tmp_path, kind):
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


def test_worker_processes_read_too(tmp_path):
    cache = LatentCache(write(tmp_path / "cache"))
    cache[0]  # maps a shard in this process
    assert len(pickle.dumps(cache)) < 5000
    loader = DataLoader(cache, batch_size=None, num_workers=1, multiprocessing_context="fork")
    assert [entry["item"] for entry in loader] == list(range(7))


def test_text_embeddings_are_kept_once_per_caption(tmp_path):
    embeddings = [torch.full((5, 6), number / 4.0) for number in range(3)]
    empty = torch.full((5, 6), -1.0)
    with LatentCacheWriter(tmp_path / "c", **SETTINGS, empty_text_embedding=empty) as writer:
        writer.add([sample(item, text=embeddings[item % 3]) for item in range(8)])
    cache = LatentCache(tmp_path / "c")
    assert map_tensors(tmp_path / "c" / cache.shards[0].file)["text_embeddings"].shape == (3, 5, 6)
    assert torch.equal(cache.empty_text_embedding, empty)
    assert torch.equal(cache[4]["text_embeddings"], embeddings[1])
    assert torch.equal(cache.get_batch([2, 0])["text_embeddings"], torch.stack([embeddings[2], embeddings[0]]))


def test_no_caption_at_all_is_kept(tmp_path):
    with LatentCacheWriter(tmp_path / "c", **SETTINGS) as writer:
        writer.add([{**sample(0), "captions": (), "name": ""}])
    assert LatentCache(tmp_path / "c")[0]["caption"] == ""


def test_tokens_of_codebooks_of_any_sizes_are_cached(tmp_path):
    sizes = (2**57, 3, 1)
    tokens = torch.stack([torch.randint(size, (4, 2, 3), generator=torch.manual_seed(size)) for size in sizes], dim=1)
    tokens[0, 0, 0, 0] = 2**57 - 1
    with LatentCacheWriter(tmp_path / "c", **{**SETTINGS, "codebook_sizes": sizes}) as writer:
        writer.add([{**sample(item), "indices": tokens[item]} for item in range(4)])
    cache = LatentCache(tmp_path / "c")
    assert cache.codebook_sizes == sizes
    assert torch.equal(cache.get_batch(range(4))["indices"], tokens)


def test_reading_a_batch_takes_no_more_calls_for_more_tokens_and_few_for_more_samples(tmp_path):
    """Tokens of a batch are unpacked together; only names and captions are read one by one."""

    def calls(side, count):
        folder = tmp_path / str(side)
        if not folder.exists():
            write(folder, count=40, shapes=((side, side),), samples_per_shard=40)
        cache = LatentCache(folder)
        return count_calls(lambda: cache.get_batch(list(range(count))))

    assert calls(2, 20) == calls(16, 20)
    assert calls(2, 40) - calls(2, 20) <= 20 * 20
