"""The files of a cache hold no more than they must, and those that are damaged are named."""

import json

import numpy as np
import pytest

from pqdiff.data.cache.reader import LatentCache
from pqdiff.data.cache.shards import INDEX, map_tensors, pack_texts, text_at
from tests.data.cache.support import write


def test_texts_of_any_letters_are_read_back():
    texts = ["", "a fox", "\u00fc\u4e2d \U0001f98a", "", "last"]
    packed, ends = pack_texts(texts)
    assert (packed.dtype, ends.dtype) == (np.uint8, np.int64)
    assert [text_at(packed, ends, number) for number in range(5)] == texts


def test_tokens_take_their_bits_and_no_more(tmp_path):
    folder = write(tmp_path / "c", count=1, shapes=((8, 8),))
    assert map_tensors(folder / "shard-00000.safetensors")["codes"].shape == (1, 64 * (3 + 9 + 8) // 8)


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
