"""Images from every kind of source are opened by one function; sources that do not fit are named in one line."""

import itertools
import json
import os
import pickle

import datasets
import pytest
from PIL import Image

from pqdiff.data.captions.captioned import iterate_images, open_captioned
from tests.data.captions.support import assert_shows, captions_of, folder_of_images, parquet_folder, save, tar_folder


def test_a_folder_without_captions_has_empty_ones(tmp_path):
    images = open_captioned(folder_of_images(tmp_path / "x"))
    assert [images[i]["name"] for i in range(3)] == ["a.png", "b.png", "deep/c.png"]
    assert captions_of(images) == ["", "", ""]
    assert_shows(images[2]["image"], 2)


def test_a_split_is_a_subfolder(tmp_path):
    for number, split in enumerate(("train", "test")):
        save(tmp_path / "x" / split / "a.png", number)
    assert_shows(open_captioned(tmp_path / "x")[0]["image"], 0)
    assert_shows(open_captioned(tmp_path / "x", split="test")[0]["image"], 1)
    with pytest.raises(ValueError, match=r"split \(validation\)"):
        open_captioned(tmp_path / "x", split="validation")


def test_captioned_images_reach_worker_processes(tmp_path):
    for source in (parquet_folder(tmp_path / "x"), folder_of_images(tmp_path / "y")):
        images = pickle.loads(pickle.dumps(open_captioned(source)))
        assert_shows(images[2]["image"], 2)


def test_a_folder_of_images_is_read_by_number_even_when_streaming(tmp_path):
    images = open_captioned(folder_of_images(tmp_path / "x"), streaming=True)
    assert_shows(images[1]["image"], 1)


@pytest.mark.parametrize("source", ["nowhere", "nobody/nothing"])
def test_a_source_that_does_not_exist_is_named(source):
    with pytest.raises(ValueError, match=f"{source}: neither a folder of images nor a data set"):
        open_captioned(source)


def test_scenes_are_captioned_images_too():
    images = open_captioned("scenes", num_samples=5, resolution=32, seed=3)
    assert len(images) == 5
    assert images[4]["image"].size == images.size_of(4) == (32, 32)
    assert images[4]["caption"]
    assert open_captioned("scenes", num_samples=5, resolution=32, seed=4)[4]["caption"] != images[4]["caption"]


# Images without captions


def gray_folder(folder, names):
    for value, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4), (value, value, value)).save(folder / name, format="PNG")
    return folder


def grays(images):
    return [(image.mode, image.getpixel((0, 0))[0]) for image in images]


def test_images_of_a_folder_come_in_name_order(tmp_path):
    gray_folder(tmp_path, ["c.png", "a.png", "b.jpg", "deep/a.png"])
    assert grays(iterate_images(tmp_path)) == [("RGB", 1), ("RGB", 2), ("RGB", 0), ("RGB", 3)]


def test_images_of_a_split_are_those_of_its_subfolder(tmp_path):
    gray_folder(tmp_path, ["train/a.png", "test/a.png"])
    assert grays(iterate_images(tmp_path, "test")) == [("RGB", 1)]
    with pytest.raises(ValueError, match=r"split \(validation\) must be the name of a subfolder"):
        next(iterate_images(tmp_path, "validation"))


def test_images_alone_need_neither_metadata_nor_text_files_that_can_be_read(tmp_path):
    gray_folder(tmp_path, ["a.png", "b.png"])
    (tmp_path / "metadata.csv").write_text("x,y\n1,2\n")
    (tmp_path / "a.txt").write_bytes(b"\xff\xfe\x00")
    assert grays(iterate_images(tmp_path)) == [("RGB", 0), ("RGB", 1)]


def test_images_of_a_folder_are_read_one_at_a_time(tmp_path):
    gray_folder(tmp_path, ["a.png"])
    (tmp_path / "b.png").write_text("no image")
    images = iterate_images(str(tmp_path))
    assert next(images).size == (4, 4)
    with pytest.raises(ValueError, match=r"b\.png"):
        next(images)


def test_images_of_tables_tar_files_and_scenes_are_iterated_too(tmp_path):
    for source in (parquet_folder(tmp_path / "x"), tar_folder(tmp_path / "y"), "scenes"):
        assert next(iterate_images(source)).mode == "RGB"


def test_a_folder_of_nothing_is_refused_in_one_line(tmp_path):
    with pytest.raises(ValueError, match=r"holds no images \(\.jpg, .*\), and no data set can be loaded") as raised:
        next(iterate_images(tmp_path))
    assert str(raised.value).startswith(f"{tmp_path}: ")
    assert len(str(raised.value).splitlines()) == 1


@pytest.mark.parametrize("name", ["some-user/some-photos", "some-photos", "no/such/folder", "photo.jpg"])
def test_a_data_set_that_cannot_be_loaded_is_refused_in_one_line(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="neither a folder of images nor a data set") as raised:
        next(iterate_images(name))
    assert str(raised.value).startswith(f"{name}: ")
    assert len(str(raised.value).splitlines()) == 1


def test_images_of_a_data_set_are_streamed(tmp_path, monkeypatch):
    gray_folder(tmp_path, ["a.png", "b.png"])
    Image.new("LA", (5, 3), (0, 0)).save(tmp_path / "c.png")
    monkeypatch.chdir(tmp_path)
    result = list(iterate_images("imagefolder"))  # a data set by name, with its files in the working folder
    assert [image.getpixel((0, 0)) for image in result] == [(0, 0, 0), (1, 1, 1), (255, 255, 255)]


def test_only_as_much_of_a_data_set_is_read_as_is_asked_for(tmp_path, monkeypatch):
    gray_folder(tmp_path, ["a.png", "b.png"])
    (tmp_path / "c.png").write_text("no image")
    monkeypatch.chdir(tmp_path)
    assert len(list(itertools.islice(iterate_images("imagefolder"), 2))) == 2


def test_a_split_that_does_not_exist_is_refused(tmp_path, monkeypatch):
    gray_folder(tmp_path, ["a.png"])
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"imagefolder: .*validation"):
        next(iterate_images("imagefolder", split="validation"))


def test_a_data_set_without_images_is_refused(tmp_path, monkeypatch):
    (tmp_path / "a.csv").write_text("x,y\n1,2\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="csv: has no column of images"):
        next(iterate_images("csv"))


def test_a_broken_image_in_a_data_set_is_named(tmp_path, monkeypatch):
    gray_folder(tmp_path, ["a.png"])
    path = save(tmp_path / "b.png")
    path.write_bytes(path.read_bytes()[:-200])
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"b\.png: cannot be read as an image"):
        list(iterate_images("imagefolder"))


def test_a_missing_image_in_a_data_set_is_named(tmp_path, monkeypatch):
    features = datasets.Features({"photo": datasets.Image()})
    rows = {"photo": [Image.new("RGB", (4, 4)), None]}
    datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "train.parquet")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"parquet\[1\]: has no image"):
        list(iterate_images("parquet"))


# What a folder holds is what is read.


def names_in(folder, **options):
    images = open_captioned(folder, **options)
    return [images.row(number).name for number in range(len(images))]


def test_train_beside_other_classes_is_a_class(tmp_path):
    gray_folder(tmp_path, ["aeroplane/0.png", "car/0.png", "train/0.png"])
    assert names_in(tmp_path) == ["aeroplane/0.png", "car/0.png", "train/0.png"]


@pytest.mark.parametrize("other", ["test", "val", "validation", "labels", ".hidden"])
def test_train_beside_splits_or_folders_without_images_is_a_split(tmp_path, other):
    gray_folder(tmp_path, ["train/0.png"] + [f"{other}/1.png"] * (other != "labels"))
    (tmp_path / other).mkdir(exist_ok=True)
    assert names_in(tmp_path) == ["0.png"]


def test_classes_and_splits_side_by_side_are_refused(tmp_path):
    gray_folder(tmp_path, ["car/0.png", "train/0.png", "test/0.png"])
    with pytest.raises(
        ValueError, match=r"holds splits \(train, test\) beside other folders \(car\): give the folder"
    ):
        open_captioned(tmp_path)
    assert names_in(tmp_path, split="test") == ["0.png"]


def test_metadata_beside_a_split_has_its_captions(tmp_path):
    gray_folder(tmp_path, ["train/0.png", "train/1.png", "test/0.png"])
    lines = [{"file_name": f"{name}.png", "text": name} for name in ("train/1", "test/0", "train/0")]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert captions_of(open_captioned(tmp_path)) == ["train/1", "train/0"]
    assert captions_of(open_captioned(tmp_path, split="test")) == ["test/0"]


def test_two_tables_that_list_the_same_image_are_refused(tmp_path):
    gray_folder(tmp_path, ["0.png"])
    (tmp_path / "metadata.csv").write_text("file_name,text\n0.png,a\n")
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "0.png", "text": "a"}')
    with pytest.raises(ValueError, match=r"0\.png: is listed in .*metadata\.csv and in .*metadata\.jsonl: remove one"):
        open_captioned(tmp_path)


def test_an_image_that_a_table_lists_twice_is_one_image_with_two_captions(tmp_path):
    gray_folder(tmp_path, ["0.png"])
    (tmp_path / "metadata.csv").write_text("file_name,text\n0.png,a\n0.png,b\n0.png,a\n")
    images = open_captioned(tmp_path)
    assert [images.row(number).captions for number in range(len(images))] == [("a", "b")]


@pytest.mark.parametrize("table", ["none", "some", "metadata", "parquet"])
def test_images_without_captions_are_said(tmp_path, caplog, table):
    gray_folder(tmp_path / "x", ["0.png", "1.png", "2.png"])
    if table == "some":
        (tmp_path / "x" / "1.txt").write_text("words")
    if table == "metadata":
        (tmp_path / "x" / "metadata.csv").write_text("file_name,text\n0.png,\n1.png,words\n")
    if table == "parquet":
        parquet_folder(tmp_path / "y", column="number")
    open_captioned(tmp_path / ("y" if table == "parquet" else "x"))
    said = {"none": "3 of 3 images have no caption", "some": "2 of 3 images have no caption"}
    said |= {
        "metadata": "1 of 2 images have no caption, and 1 images are not listed",
        "parquet": "no column of captions",
    }
    assert said[table] in caplog.text
    caplog.clear()
    open_captioned(tmp_path / ("y" if table == "parquet" else "x"), captions=False)
    assert caplog.text == ""


def test_a_file_name_that_is_not_utf_8_is_written_out(tmp_path):
    save(tmp_path / "x.png").rename(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9\n.png"))
    (row,) = (open_captioned(tmp_path).row(0),)
    assert row.name == "caf\\xe9\\n.png"
    assert row.size == (30, 20)
    assert row.name.encode()
