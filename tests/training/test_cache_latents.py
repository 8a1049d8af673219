"""`training/cache_latents.py` caches what the encoders make, for every kind of photos, and survives being killed."""

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from pqdiff.data.cache.reader import LatentCache
from pqdiff.data.cache.shards import INDEX, read_index
from pqdiff.data.captions.captioned import open_captioned
from pqdiff.data.images.crops import Crop, cut
from pqdiff.data.images.reading import normalize, to_tensor
from pqdiff.models.fingerprint import fingerprint
from pqdiff.training.text import encode_captions
from tests.processes import HANGS
from tests.tiny import tiny_autoencoder, tiny_base_pipeline, tiny_kl_autoencoder
from training import cache_latents

SCRIPT = Path(cache_latents.__file__)


@pytest.fixture(scope="module")
def pq():
    return tiny_autoencoder(linear=True)


@pytest.fixture(scope="module")
def kl():
    return tiny_kl_autoencoder(scaling_factor=0.3, shift_factor=0.1)


@pytest.fixture(scope="module")
def models(pq, kl, tmp_path_factory):
    """Folders of both autoencoders and of a pipeline."""
    folder = tmp_path_factory.mktemp("models")
    pq.save_pretrained(folder / "pq")
    kl.save_pretrained(folder / "kl")
    tiny_base_pipeline(vae=kl).save_pretrained(folder / "pipeline")
    return folder


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Seven photos of three sizes, with captions."""
    folder = tmp_path_factory.mktemp("photos")
    for number in range(7):
        height, width = ((40, 40), (36, 70), (70, 36))[number % 3]
        pixels = np.random.default_rng(number).integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"photo {number}")
    return folder


def cache(photos, model, output, *options, resolution=32):
    """Run the command in this process and read what it wrote."""
    arguments = ["--dataset", photos, "--autoencoder", model, "--output", output, "--resolution", resolution]
    cache_latents.main([*map(str, arguments), "--device", "cpu", "--num_workers", "0", *map(str, options)])
    return LatentCache(output)


def pixels_of(photos, entry):
    """What a sample shows, cut again from the photo by what the cache recorded."""
    (part,) = cut(open_captioned(photos)[entry["item"]]["image"], [Crop(**entry["crop"])])
    return normalize(to_tensor(part))[None]


def test_tokens_are_those_of_the_autoencoder(photos, models, pq, tmp_path):
    result = cache(photos, models / "pq", tmp_path / "c")
    assert (result.kind, result.codebook_sizes) == ("indices", pq.quantizer.codebook_sizes)
    assert result.fingerprint == fingerprint(pq)
    assert sorted(entry["caption"] for entry in result) == [f"photo {number}" for number in range(7)]
    for entry in result:
        assert entry["name"] == f"{entry['item']}.png"
        assert torch.equal(entry["indices"], pq.encode_to_indices(pixels_of(photos, entry))[0])


@torch.no_grad()
def test_latents_of_a_kl_autoencoder_are_scaled_modes(photos, models, kl, tmp_path):
    result = cache(photos, models / "kl", tmp_path / "c")
    assert (result.kind, result.settings["channels"]) == ("latents", 4)
    for entry in result:
        mode = kl.encode(pixels_of(photos, entry)).latent_dist.mode()[0]
        torch.testing.assert_close(entry["latents"], (mode - 0.1) * 0.3, atol=1e-3, rtol=1e-3)


@torch.no_grad()
def test_tokens_can_be_cached_as_latents_too(photos, models, pq, tmp_path):
    result = cache(photos, models / "pq", tmp_path / "c", "--kind", "latents")
    for entry in result:
        latents = pq.encode(pixels_of(photos, entry)).latents[0]
        torch.testing.assert_close(entry["latents"], latents, atol=2e-3, rtol=2e-3)


def test_crops_and_mirror_images_are_recorded(photos, models, pq, tmp_path):
    result = cache(photos, models / "pq", tmp_path / "c", "--crops", 3, "--flip", "--batch_size", 5)
    assert len(result) == 7 * 6
    for entry in result:
        assert torch.equal(entry["indices"], pq.encode_to_indices(pixels_of(photos, entry))[0])
    wide = [entry["crop"] for entry in result if entry["item"] == 1]
    assert len({crop["left"] for crop in wide}) == 3
    assert sum(crop["flip"] for crop in wide) == 3


def test_buckets_keep_aspect_ratios(photos, models, tmp_path):
    result = cache(photos, models / "pq", tmp_path / "c", "--buckets", 8, resolution=32)
    shapes = {entry["item"] % 3: tuple(entry["indices"].shape[1:]) for entry in result}
    assert shapes == {0: (16, 16), 1: (12, 20), 2: (20, 12)}


def test_all_captions_of_a_photo_survive_the_cache_with_their_embeddings(photos, models, tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    Image.open(photos / "1.png").save(folder / "a.png")
    (folder / "metadata.jsonl").write_text(json.dumps({"file_name": "a.png", "captions": ["one", "two", "three"]}))
    options = ("--crops", 2, "--text_encoder", models / "pipeline")
    result = cache(folder, models / "pq", tmp_path / "c", *options)
    assert [entry["captions"] for entry in result] == [("one", "two", "three")] * 2
    batch = result.get_batch([0, 1, 1, 0], [0.0, 0.99, 0.5, 0.33])
    assert batch["captions"] == ["one", "three", "two", "one"]
    assert torch.equal(batch["text_embeddings"][0], batch["text_embeddings"][3])
    assert len(torch.unique(batch["text_embeddings"], dim=0)) == 3


@pytest.mark.parametrize("change", ["image", "caption"])
@pytest.mark.parametrize("finished", [True, False])
def test_a_photo_that_changed_since_it_was_cached_is_named(photos, models, tmp_path, change, finished):
    shutil.copytree(photos, tmp_path / "photos")
    cache(tmp_path / "photos", models / "pq", tmp_path / "c", "--samples_per_shard", 4)
    if not finished:
        drop_shards(tmp_path / "c", 1)
    if change == "image":
        shutil.copy(photos / "3.png", tmp_path / "photos" / "2.png")
    else:
        (tmp_path / "photos" / "2.txt").write_text("another caption")
    with pytest.raises(ValueError, match=r"c: 2\.png has changed since it was cached; choose another folder"):
        cache(tmp_path / "photos", models / "pq", tmp_path / "c", "--samples_per_shard", 4)


@torch.no_grad()
def test_text_embeddings_are_those_of_the_pipeline(photos, models, tmp_path):
    pipe = tiny_base_pipeline()
    result = cache(photos, models / "pipeline", tmp_path / "c", "--text_encoder", models / "pipeline")
    assert result.kind == "latents"  # the autoencoder of the pipeline
    states = encode_captions(pipe.tokenizer, pipe.text_encoder, ["", *(entry["caption"] for entry in result)])
    torch.testing.assert_close(result.empty_text_embedding, states[0], atol=2e-3, rtol=2e-3)
    found = torch.stack([entry["text_embeddings"] for entry in result])
    torch.testing.assert_close(found, states[1:], atol=2e-3, rtol=2e-3)


def test_the_same_seed_gives_the_same_cache_and_workers_change_nothing(photos, models, tmp_path):
    options = ("--crops", 2, "--batch_size", 3)
    first = cache(photos, models / "pq", tmp_path / "a", *options)
    second = cache(photos, models / "pq", tmp_path / "b", *options, "--num_workers", 1)
    other = cache(photos, models / "pq", tmp_path / "c", *options, "--seed", 1)
    assert_same(first, second)
    assert [entry["crop"] for entry in first] != [entry["crop"] for entry in other]


def test_a_stream_of_tar_files_is_cached_and_continued(photos, models, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    (tmp_path / "tar").mkdir()
    with tarfile.open(tmp_path / "tar" / "0.tar", "w") as tar:
        for path in sorted(photos.iterdir()):
            member = tarfile.TarInfo(path.name)
            member.size = path.stat().st_size
            tar.addfile(member, io.BytesIO(path.read_bytes()))
    wanted = cache(photos, models / "pq", tmp_path / "a", "--num_samples", 5)
    options = ("--streaming", "--num_samples", 5, "--samples_per_shard", 2)
    cache(tmp_path / "tar", models / "pq", tmp_path / "b", *options)
    drop_shards(tmp_path / "b", 1)
    result = cache(tmp_path / "tar", models / "pq", tmp_path / "b", *options)
    assert_same(wanted, result, names=False)


def test_only_what_is_missing_is_encoded_again(photos, models, tmp_path, monkeypatch):
    options = ("--samples_per_shard", 2, "--batch_size", 2)
    wanted = cache(photos, models / "pq", tmp_path / "a")
    cache(photos, models / "pq", tmp_path / "b", *options)
    drop_shards(tmp_path / "b", 2)
    read, encoded = cache_latents.read_samples, []

    def counted(item, *args, **kwargs):
        encoded.append(item)
        return read(item, *args, **kwargs)

    monkeypatch.setattr(cache_latents, "read_samples", counted)
    result = cache(photos, models / "pq", tmp_path / "b", *options)
    assert encoded == [4, 5, 6]
    assert_same(wanted, result)


def drop_shards(folder, kept):
    """As if the run had been killed after its first shards."""
    index = json.loads((folder / INDEX).read_text())
    (folder / INDEX).write_text(json.dumps({**index, "shards": index["shards"][:kept], "complete": False}))


def assert_same(first, second, names=True):
    def content(cached):
        entries = sorted(cached, key=lambda entry: (entry["item"], entry["crop"]["left"], entry["crop"]["flip"]))
        keys = ("item", "caption", "crop", *(("name",) if names else ()))
        return [{**{key: entry[key] for key in keys}, "tokens": entry["indices"].tolist()} for entry in entries]

    assert content(first) == content(second)


@pytest.mark.slow
def test_a_process_killed_while_it_writes_is_finished_by_the_next(models, pq, tmp_path):
    arguments = [
        "--num_samples", 200, "--crops", 2, "--flip", "--samples_per_shard", 16, "--batch_size", 4,
    ]  # fmt: skip
    command = ["--dataset", "scenes", "--autoencoder", models / "pq", "--output", tmp_path / "c", "--resolution", 32]
    command = [sys.executable, SCRIPT, *command, "--device", "cpu", "--num_workers", 1, *arguments]
    with open(tmp_path / "log", "w") as log:
        process = subprocess.Popen(
            [*map(str, command)], stderr=log, stdout=log, env={**os.environ, "OMP_NUM_THREADS": "1"}
        )
        deadline = time.monotonic() + HANGS
        while shards_of(tmp_path / "c") < 3 and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.002)
        os.kill(process.pid, signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL, (tmp_path / "log").read_text()
    with pytest.raises(ValueError, match="not complete"):
        LatentCache(tmp_path / "c")
    _, shards, _ = read_index(tmp_path / "c")
    written = sum(shard.samples for shard in shards)
    assert 48 <= written < 800
    before = {shard.file: (tmp_path / "c" / shard.file).read_bytes() for shard in shards}
    result = cache("scenes", models / "pq", tmp_path / "c", *arguments)
    assert {name: (tmp_path / "c" / name).read_bytes() for name in before} == before
    assert len(result) == 800
    assert sorted({(entry["item"], entry["crop"]["flip"]) for entry in result}) == [
        (item, flip) for item in range(200) for flip in range(2)
    ]
    scenes = open_captioned("scenes", num_samples=200, resolution=32)
    for number in (0, written - 1, written, 799):
        entry = result[number]
        (part,) = cut(scenes[entry["item"]]["image"], [Crop(**entry["crop"])])
        assert torch.equal(entry["indices"], pq.encode_to_indices(normalize(to_tensor(part))[None])[0])
        assert entry["caption"] == scenes[entry["item"]]["caption"]


def shards_of(folder):
    try:
        return len(json.loads((folder / INDEX).read_text())["shards"])
    except FileNotFoundError:
        return 0


def test_a_broken_photo_stops_the_run_or_is_left_out(photos, models, tmp_path, capsys):
    folder = tmp_path / "photos"
    folder.mkdir()
    for name in ("0.png", "1.png", "2.png"):
        (folder / name).write_bytes((photos / name).read_bytes())
    (folder / "1.png").write_bytes((photos / "1.png").read_bytes()[:500])
    with pytest.raises(ValueError, match=r"1\.png"):
        cache(folder, models / "pq", tmp_path / "a", "--num_workers", 1)
    result = cache(folder, models / "pq", tmp_path / "b", "--skip_broken")
    assert sorted(entry["name"] for entry in result) == ["0.png", "2.png"]
    assert "1.png" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (("--resolution", 33), r"--resolution \(33\) must be a multiple of 2"),
        (("--buckets", 7), r"--buckets \(7\) must be a multiple of 2"),
        (("--buckets", 24), r"resolution \(32\) must be a multiple of 24"),
        (("--dataset", "nowhere"), "nowhere: neither a folder"),
        (("--autoencoder", "pqgan-f7"), "pqgan-f7"),
        (("--text_encoder", "nowhere"), "--text_encoder nowhere"),
        (("--split", "test"), r"split \(test\)"),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, tuple) else "",
)
def test_mistakes_are_named_before_anything_is_written(photos, models, tmp_path, monkeypatch, options, named):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match=named) as raised:
        cache(photos, models / "pq", tmp_path / "c", *options)
    assert len(str(raised.value).splitlines()) == 1
    assert not (tmp_path / "c").exists()


def test_a_kl_autoencoder_has_no_indices(photos, models, tmp_path):
    with pytest.raises(ValueError, match=r"--kind indices: .* has no tokens"):
        cache(photos, models / "kl", tmp_path / "c", "--kind", "indices")


def test_another_autoencoder_does_not_continue_a_cache(photos, models, tmp_path):
    cache(photos, models / "kl", tmp_path / "c")
    with pytest.raises(ValueError, match="holds a cache with kind 'latents', not 'indices'"):
        cache(photos, models / "pq", tmp_path / "c")


def test_a_mistake_ends_the_command_with_one_line_and_code_2(monkeypatch, capsys):
    command = ["cache_latents.py", "--dataset", "scenes", "--autoencoder", "pqgan-f7", "--output", "x"]
    monkeypatch.setattr(sys, "argv", [*command, "--resolution", "32"])
    handler = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(SystemExit) as raised:
            cache_latents.run()
    finally:
        signal.signal(signal.SIGTERM, handler)
    assert raised.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("cache_latents: ")
    assert len(error.splitlines()) == 1
