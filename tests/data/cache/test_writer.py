"""A cache goes on after every kind of interruption, and samples and settings that do not fit are refused."""

import os
import signal
from pathlib import Path

import pytest
import torch

from pqdiff.data import folder_lock
from pqdiff.data.cache.reader import LatentCache
from pqdiff.data.cache.shards import INDEX
from pqdiff.data.cache.writer import LatentCacheWriter
from tests.data.cache.support import SETTINGS, SHAPES, SIZES, assert_is, read_incomplete, sample, write


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
def test_an_interruption_keeps_whole_images(tmp_path, error):

    def interrupted():
        with LatentCacheWriter(tmp_path / "c", **SETTINGS, samples_per_shard=4) as writer:
            for item in range(3):
                writer.add([sample(item, part=part) for part in range(2)])
            assert writer.num_items_done == 2
            raise error

    with pytest.raises(error):
        interrupted()
    with pytest.raises(ValueError, match="not complete"):
        LatentCache(tmp_path / "c")
    assert len(read_incomplete(tmp_path / "c")) == 6
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
        for entry in read_incomplete(folder):
            assert_is(entry, sample(entry["item"], shape=SHAPES[entry["item"] % 2], part=entry["crop"]["left"]))
    cache = LatentCache(write(folder, count=11, parts=2, shapes=SHAPES[:2]))
    found = sorted((entry["item"], entry["crop"]["left"]) for entry in cache)
    assert found == [(item, part) for item in range(11) for part in range(2)]
    for entry in cache:
        assert_is(entry, sample(entry["item"], shape=SHAPES[entry["item"] % 2], part=entry["crop"]["left"]))
    assert {path.name for path in folder.iterdir()} == {INDEX, *(shard.file for shard in cache.shards)}


def test_much_in_memory_is_written_early(tmp_path, monkeypatch):
    monkeypatch.setattr("pqdiff.data.cache.writer._MOST_BUFFERED", 50)
    with LatentCacheWriter(tmp_path / "c", **SETTINGS) as writer:
        writer.add([sample(item) for item in range(9)])
        assert writer.num_items_done == 9


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


def test_dot_files_of_others_stay_and_leftovers_of_a_killed_writer_go(tmp_path):
    (tmp_path / "x").mkdir()
    for name in (".shard-notes", ".index-old", ".empty_room"):
        (tmp_path / "x" / name).write_text("mine")
    with pytest.raises(ValueError, match="neither empty nor a latent cache"):
        write(tmp_path / "x")
    assert len(list((tmp_path / "x").iterdir())) == 3
    folder = write(tmp_path / "c")
    (folder / ".mine").write_text("mine")
    (folder / ".pqdiff-a1b2c3d4.safetensors").write_bytes(b"half")  # of `atomic_file`
    write(folder)
    assert {path.name for path in folder.iterdir() if path.name.startswith(".")} == {".mine"}


def test_two_writers_in_one_folder_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(folder_lock, "_PATIENCE", 0.0)
    with LatentCacheWriter(tmp_path / "c", **SETTINGS) as first:
        first.add([sample(0)])
        with pytest.raises(ValueError, match="another process writes to it"):
            LatentCacheWriter(tmp_path / "c", **SETTINGS)
    with LatentCacheWriter(tmp_path / "c", **SETTINGS) as second:
        assert second.is_done(0)


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
    with pytest.raises(ValueError, match=r"kind|samples_per_shard"):
        LatentCacheWriter(tmp_path / "c", **{**SETTINGS, **options})
    assert not (tmp_path / "c").exists()


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"indices": torch.full((3, 2, 3), 300)}, r"\[0, K\)"),
        ({"indices": torch.zeros(2, 2, 3, dtype=torch.int64)}, "codebook_sizes"),
        ({"item": 0}, "item 0"),
        ({"text_embeddings": torch.zeros(1, 2, 2)}, "text_embeddings"),
    ],
    ids=["range", "groups", "twice", "text"],
)
def test_samples_that_do_not_fit_are_refused_and_the_rest_is_kept(tmp_path, change, named):
    with LatentCacheWriter(tmp_path / "c", **SETTINGS) as writer:
        writer.add([sample(0)])
        with pytest.raises(ValueError, match=named):
            writer.add([sample(1), {**sample(1, part=1), **change}])
    assert [entry["item"] for entry in LatentCache(tmp_path / "c")] == [0]


def test_an_image_with_samples_of_two_shapes_is_refused(tmp_path):
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
