"""Data of autoencoders: crops that belong to a sample, images that are kept apart, and streams."""

import numpy as np
import pytest
import torch
from PIL import Image

from pqdiff.data.captions.captioned import FolderImages
from pqdiff.data.scenes.scenes import SceneDataset
from pqdiff.training.batches import Layout
from pqdiff.training.images import CropPreparation, ImageOptions, hold_out, open_image_samples, open_images, spread
from pqdiff.training.randomness import generator_for
from tests.tiny import SIDE


def gradient_image(width=80, height=48) -> Image.Image:
    """Red tells the column, green the row."""
    columns, rows = np.meshgrid(np.arange(width), np.arange(height))
    return Image.fromarray(np.stack([columns, rows, columns * 0], axis=2).astype(np.uint8))


def samples_of(preparation, count=64):
    return [preparation.sample(gradient_image(), generator_for(0, "sample", 0, slot)) for slot in range(count)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """40 images, in two folders."""
    path = tmp_path_factory.mktemp("images")
    for number in range(40):
        place = path / f"part{number % 2}"
        place.mkdir(exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 255, (40, 50, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(place / f"{number:02d}.png")
    return path


def options_for(dataset, **changes) -> ImageOptions:
    return ImageOptions(
        **{"dataset": str(dataset), "num_scenes": 8, "resolution": SIDE, "validation_images": 4, **changes}
    )


# Crops.


def test_a_sample_is_the_same_again_and_another_one_in_another_slot():
    preparation = CropPreparation(16, 2, min_crop_scale=0.3, flip=True)
    first, second = samples_of(preparation), samples_of(preparation)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert len({sample.numpy().tobytes() for sample in first}) > 60


def test_crops_show_between_the_least_scale_and_all_of_the_shorter_side():
    widths = [
        int(sample[1].amax()) - int(sample[1].amin())
        for sample in samples_of(CropPreparation(16, 2, min_crop_scale=0.5))
    ]
    assert min(widths) < 30
    assert max(widths) > 40
    assert all(20 <= width <= 48 for width in widths)


def test_the_smallest_crops_are_pixels_as_they_are():
    sample = CropPreparation(16, 2, min_crop_scale=0.0)._cut(gradient_image(), 0.0, 0.5, 0.5)
    left, top = (80 - 16) // 2, (48 - 16) // 2
    assert np.array_equal(np.asarray(sample), np.asarray(gradient_image().crop((left, top, left + 16, top + 16))))


def test_photos_smaller_than_the_resolution_are_enlarged_whole():
    sample = CropPreparation(64, 2, min_crop_scale=0.0).sample(gradient_image(), generator_for(0))
    assert sample.shape == (3, 64, 64)
    assert int(sample[1].amin()) <= 1
    assert int(sample[1].amax()) >= 46


def test_squash_shows_the_whole_image_and_center_its_middle():
    squashed, center = (samples_of(CropPreparation(16, 2, crop), 1)[0] for crop in ("squash", "center"))
    assert int(squashed[0].amax()) - int(squashed[0].amin()) > 70
    assert 40 <= int(center[0].amax()) - int(center[0].amin()) <= 48
    assert float(center[0].float().mean()) == pytest.approx(39.5, abs=2)


def test_half_of_the_samples_are_mirrored():
    mirrored = [
        bool(sample[0, 0, 0] > sample[0, 0, -1]) for sample in samples_of(CropPreparation(16, 2, flip=True), 200)
    ]
    assert 70 < sum(mirrored) < 130
    assert not any(sample[0, 0, 0] > sample[0, 0, -1] for sample in samples_of(CropPreparation(16, 2)))


# Images that are kept apart.


def test_images_held_out_depend_on_their_names_alone(folder, tmp_path):
    train, kept = hold_out(FolderImages(folder), 5)
    names = [{part.row(i).name.rsplit("/")[-1] for i in range(len(part))} for part in (train, kept)]
    assert not names[0] & names[1]
    assert len(names[0] | names[1]) == 40
    assert 2 <= len(names[1]) <= 16
    for path in folder.rglob("*.png"):  # in another folder, without some of the others
        if path.stem > "10":
            (tmp_path / path.name).write_bytes(path.read_bytes())
    _, again = hold_out(FolderImages(tmp_path), 5)
    assert {again.row(i).name for i in range(len(again))} == {name for name in names[1] if name > "11"}


def test_held_out_images_are_validated_on_and_not_trained_on(folder):
    train, kept = open_images(options_for(folder, hold_out=4))
    pixels = [{np.asarray(part[i]["image"]).tobytes() for i in range(len(part))} for part in (train, kept)]
    assert not pixels[0] & pixels[1]
    assert len(pixels[0]) + len(pixels[1]) == 40


def test_scenes_to_validate_on_are_other_scenes():
    train, kept = open_images(options_for("scenes", validation_dataset="scenes", num_scenes=200))
    assert len(kept) == 4
    seen = {np.asarray(train[i]["image"]).tobytes() for i in range(200)}
    assert not [i for i in range(4) if np.asarray(kept[i]["image"]).tobytes() in seen]


def test_the_training_data_are_refused_for_validation(folder):
    with pytest.raises(ValueError, match=r"is trained on .*: use --hold_out instead"):
        open_images(options_for(folder, validation_dataset=str(folder)))


@pytest.mark.parametrize("kind", ["slash", "link", "around", "inside", "linked photo"])
def test_training_data_are_refused_for_validation_whatever_they_are_called(folder, tmp_path, kind):
    (tmp_path / "link").symlink_to(folder)
    (tmp_path / "other").mkdir()
    Image.new("RGB", (40, 40)).save(tmp_path / "other" / "new.png")
    if kind == "linked photo":
        (tmp_path / "other" / "a.png").symlink_to(folder / "part0" / "00.png")
    names = {"slash": f"{folder}/", "link": tmp_path / "link", "around": folder.parent, "inside": folder / "part1"}
    with pytest.raises(ValueError, match=r"is trained on.*: use --hold_out instead"):
        open_images(options_for(folder, validation_dataset=str(names.get(kind, tmp_path / "other"))))


def test_a_stream_has_nothing_to_hold_out_by_name(parquet):
    with pytest.raises(ValueError, match="--hold_out is not possible with --streaming"):
        open_images(options_for(parquet, streaming=True, hold_out=4))


def test_spread_images_come_from_all_over_the_data():
    scenes = SceneDataset(20, SIDE)
    found = [image.tobytes() for image in spread(scenes, 5, 0)]
    assert found == [scenes[i]["image"].tobytes() for i in (0, 4, 8, 12, 16)]
    assert len(list(spread(scenes, 50, 0))) == 20


# Streams.


@pytest.fixture(scope="module")
def parquet(tmp_path_factory):
    """A data set of 12 images without captions, as on the Hub."""
    import datasets

    path = tmp_path_factory.mktemp("parquet")
    images = [gradient_image(40 + i, 36) for i in range(12)]
    data = datasets.Dataset.from_dict({"image": images}, features=datasets.Features({"image": datasets.Image()}))
    data.to_parquet(path / "train.parquet")
    return path


@pytest.mark.parametrize("streaming", [False, True])
def test_data_sets_without_captions_give_batches_also_as_streams(parquet, streaming):
    options = options_for(parquet, streaming=streaming, random_flip=True)
    images, _ = open_images(options)
    samples = open_image_samples(options, images, 2)
    whole = list(samples.batches(Layout(4), 0, 0, 5))
    parts = [list(samples.batches(Layout(2, processes=2, rank=rank), 0, 0, 5)) for rank in range(2)]
    later = list(samples.batches(Layout(4), 0, 3, 5))
    for step, (batch,) in enumerate(whole):
        assert batch["pixels"].shape == (4, 3, SIDE, SIDE)
        assert torch.equal(batch["pixels"], torch.cat([parts[rank][step][0]["pixels"] for rank in range(2)]))
    assert all(torch.equal(a[0]["pixels"], b[0]["pixels"]) for a, b in zip(whole[3:], later, strict=True))
    assert len(list(spread(images, 3, 0))) == 3
