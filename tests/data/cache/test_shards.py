"""The files of a cache hold no more than they must, and those that are damaged are named."""

import json

import numpy as np
import pytest

from pqdiff.data.cache.reader import LatentCache
from pqdiff.data.cache.shards import INDEX, holds_cache, map_tensors, pack_texts, text_at, write_tensors
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
    (folder / "shard-00001.safetensors").write_bytes((folder / "shard-00002.safetensors").read_bytes())
    with pytest.raises(ValueError, match="shard-00001"):
        LatentCache(folder)[3]
    (folder / "shard-00000.safetensors").unlink()
    with pytest.raises(ValueError, match=r"shard-00000.*no such file"):
        LatentCache(folder)


@pytest.mark.parametrize(
    "change",
    [
        *({name: None} for name in ("autoencoder", "codebook_sizes", "resolution", "recipe", "shards")),
        *(
            {"shards": [{"file": "shard-00000.safetensors", "samples": n, "shape": [2, 3]}]}
            for n in (0, -1, 1e400, True)
        ),
        {"shards": [{"file": "shard-00000.safetensors", "samples": 3, "shape": [2, 3, 4]}]},
        {"shards": [{"file": "../shard-00000.safetensors", "samples": 3, "shape": [2, 3]}]},
        {"codebook_sizes": [0]},
        {"autoencoder": {"name": 3, "fingerprint": "x"}},
        {"text_embeddings": 7},
        {"format": "x"},
        {"version": 1},
        {"kind": "x"},
        {"shards": 3},
        {"shards": [{}]},
        {"kind": None},
    ],
    ids=str,
)
def test_an_index_that_does_not_fit_is_named(tmp_path, change):
    folder = write(tmp_path / "cache")
    index = json.loads((folder / INDEX).read_text())
    (folder / INDEX).write_text(json.dumps({**index, **change}))
    with pytest.raises(ValueError, match=r"index\.json"):
        LatentCache(folder)


def test_more_samples_than_a_shard_can_hold_are_refused_before_memory_is_taken(tmp_path):
    folder = write(tmp_path / "cache")
    index = json.loads((folder / INDEX).read_text())
    index["shards"][0]["samples"] = 10**12
    (folder / INDEX).write_text(json.dumps(index))
    with pytest.raises(ValueError, match=r"bytes cannot hold the 1000000000000 samples"):
        LatentCache(folder)


def test_deeply_nested_json_is_named(tmp_path):
    (tmp_path / INDEX).write_text('{"format": "pqdiff-latent-cache", "x": ' + "[" * 100_000)
    with pytest.raises(ValueError, match=r"index\.json: cannot be read"):
        LatentCache(tmp_path)


@pytest.mark.parametrize("kind", ["indices", "latents"])
def test_a_shard_without_one_of_its_tensors_or_with_another_kind_of_it_is_named(tmp_path, kind):
    folder = write(tmp_path / "cache", kind=kind, count=3)
    path = folder / "shard-00000.safetensors"
    whole = {name: tensor.copy() for name, tensor in map_tensors(path).items()}
    for name, tensor in whole.items():
        others = [
            tensor[:-1],
            tensor.astype(np.int32 if tensor.dtype != np.int32 else np.uint8),
            tensor.reshape(-1, 1),
            None,
        ]
        others += [tensor + 1000, tensor - 1000] if name.endswith(("_ends", "_rows")) else []
        for other in others if name != "sources" else ():  # sources are for writers
            rest = {key: value for key, value in whole.items() if key != name}
            write_tensors(path, rest if other is None else {**rest, name: other})
            with pytest.raises(ValueError, match=r"shard-00000\.safetensors: "):
                LatentCache(folder)[0]


def test_a_folder_of_photos_with_an_index_of_its_own_is_no_cache(tmp_path):
    (tmp_path / INDEX).write_text(json.dumps({"photos": ["1.png"]}))
    assert not holds_cache(tmp_path)
    assert not holds_cache(tmp_path / "nothing")
    assert holds_cache(write(tmp_path / "cache"))


def test_a_folder_without_a_cache_is_named(tmp_path):
    with pytest.raises(ValueError, match="holds no latent cache"):
        LatentCache(tmp_path)
