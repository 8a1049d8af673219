"""Captioned photos from every kind of source, with sizes that need no decoding and errors that name the place."""

import io
import json
import pickle
import struct
import tarfile
import zlib

import datasets
import huggingface_hub
import numpy as np
import pytest
from PIL import Image

from pqdiff.data.captioned import StreamedImages, open_captioned
from pqdiff.data.lazy_image import LazyImage

TURNED = 6  # EXIF orientation of a photo that is to be turned by a quarter


@pytest.fixture(autouse=True)
def _offline(monkeypatch, tmp_path):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()


def photo(number, size=(30, 20)):
    width, height = size
    return Image.fromarray(np.random.default_rng(number).integers(0, 256, (height, width, 3), dtype=np.uint8))


def save(path, number=0, size=(30, 20), orientation=None):
    exif = Image.Exif()
    if orientation:
        exif[0x0112] = orientation
    path.parent.mkdir(parents=True, exist_ok=True)
    photo(number, size).save(path, exif=exif)
    return path


def folder_of_photos(folder):
    for number, name in enumerate(("a.png", "b.png", "deep/c.png")):
        save(folder / name, number)
    return folder


def parquet_folder(folder, captions=("one", "two", "three"), column="text"):
    folder.mkdir(parents=True)
    rows = {"photo": [photo(number) for number in range(len(captions))], column: list(captions)}
    features = datasets.Features(
        {"photo": datasets.Image(), column: datasets.Dataset.from_dict(rows).features[column]}
    )
    datasets.Dataset.from_dict(rows, features=features).to_parquet(folder / "train-0.parquet")
    return folder


def tar_folder(folder, count=3, kind="txt"):
    """Tar files of the webdataset convention: photos, and captions as text or JSON."""
    folder.mkdir(parents=True)
    for part in range(2):
        with tarfile.open(folder / f"{part}.tar", "w") as tar:
            for number in range(count):
                image = io.BytesIO()
                photo(10 * part + number, (30 + number, 20)).save(image, "png")
                text = f"words {part}{number}" if kind == "txt" else json.dumps({"caption": f"words {part}{number}"})
                for suffix, data in (("png", image.getvalue()), (kind, text.encode())):
                    member = tarfile.TarInfo(f"key{part}{number}.{suffix}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
    return folder


def captions_of(images):
    return [images[i]["caption"] for i in range(len(images))]


def assert_shows(image, number, size=(30, 20)):
    assert image.mode == "RGB"
    assert np.array_equal(image, photo(number, size))


# Folders


def test_a_folder_without_captions_has_empty_ones(tmp_path):
    images = open_captioned(folder_of_photos(tmp_path / "x"))
    assert [images[i]["name"] for i in range(3)] == ["a.png", "b.png", "deep/c.png"]
    assert captions_of(images) == ["", "", ""]
    assert_shows(images[2]["image"], 2)


def test_a_text_file_beside_a_photo_is_its_caption(tmp_path):
    folder = folder_of_photos(tmp_path / "x")
    (folder / "b.txt").write_text("\ufeffa red fox\n  in snow \n", encoding="utf-8")
    (folder / "deep" / "c.txt").write_text("\u00fcber allem\n", encoding="utf-8")
    assert captions_of(open_captioned(folder)) == ["", "a red fox in snow", "\u00fcber allem"]


def test_a_caption_that_is_no_text_is_named(tmp_path):
    folder = folder_of_photos(tmp_path / "x")
    (folder / "b.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match=r"b\.txt: is not text"):
        open_captioned(folder)[1]


def test_metadata_as_csv_says_photos_and_captions(tmp_path):
    folder = folder_of_photos(tmp_path / "x")
    (folder / "metadata.csv").write_text('file_name,text\ndeep/c.png,"one, two"\na.png,three\n')
    images = open_captioned(folder)
    assert captions_of(images) == ["one, two", "three"]
    assert [images[i]["name"] for i in range(2)] == ["deep/c.png", "a.png"]
    assert_shows(images[0]["image"], 2)


def test_metadata_as_json_lines_may_lie_deeper_and_name_its_columns(tmp_path):
    folder = folder_of_photos(tmp_path / "x")
    rows = [{"photo": "c.png", "words": "one", "text": "no"}]
    (folder / "deep" / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    images = open_captioned(folder, image_column="photo", caption_column="words")
    assert captions_of(images) == ["one"]


def test_several_captions_of_a_photo_are_kept(tmp_path):
    folder = folder_of_photos(tmp_path / "x")
    (folder / "metadata.jsonl").write_text(json.dumps({"file_name": "a.png", "captions": ["one", "two", None]}))
    row = open_captioned(folder).row(0)
    assert row.captions == ("one", "two")
    assert row.caption == "one"


@pytest.mark.parametrize(
    ("table", "options", "named"),
    [
        ("file_name,text\nmissing.png,x\n", {}, r"row 1: .*missing\.png does not exist"),
        ("name,text\na.png,x\n", {}, r"row 1: has no file_name \(columns: name, text\)"),
        ("file_name,words\na.png,x\n", {"caption_column": "text"}, r"row 1: has no caption_column \(text"),
        ("file_name,text\n", {}, "lists no photos"),
        ('{"file_name": "a.png", "text": 3}\n', {}, "captions must be text, got 3"),
        ("{broken\n", {}, "cannot be read"),
        ("[1, 2]\n", {}, "has no file_name"),
    ],
)
def test_metadata_that_does_not_fit_is_named(tmp_path, table, options, named):
    folder = folder_of_photos(tmp_path / "x")
    (folder / f"metadata.{'jsonl' if table[0] in '{[' else 'csv'}").write_text(table)
    with pytest.raises(ValueError, match=named) as raised:
        open_captioned(folder, **options)
    assert str(folder) in str(raised.value)


def test_a_caption_column_needs_metadata(tmp_path):
    with pytest.raises(ValueError, match=r"caption_column \(words\) needs a metadata"):
        open_captioned(folder_of_photos(tmp_path / "x"), caption_column="words")


def test_a_split_is_a_subfolder(tmp_path):
    for number, split in enumerate(("train", "test")):
        save(tmp_path / "x" / split / "a.png", number)
    assert_shows(open_captioned(tmp_path / "x")[0]["image"], 0)
    assert_shows(open_captioned(tmp_path / "x", split="test")[0]["image"], 1)
    with pytest.raises(ValueError, match=r"split \(validation\)"):
        open_captioned(tmp_path / "x", split="validation")


def test_the_first_photos_can_be_taken(tmp_path):
    images = open_captioned(folder_of_photos(tmp_path / "x"))
    assert len(images.take(2)) == 2
    assert len(images.take(9)) == 3
    assert images.take(2)[1]["name"] == "b.png"
    with pytest.raises(IndexError):
        images.take(2)[2]


# Sizes


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
@pytest.mark.parametrize("orientation", [None, 1, 3, TURNED, 8])
def test_sizes_are_those_of_the_upright_photo(tmp_path, suffix, orientation):
    save(tmp_path / f"a.{suffix}", orientation=orientation)
    images = open_captioned(tmp_path)
    assert images.size_of(0) == images[0]["image"].size == ((20, 30) if orientation in (TURNED, 8) else (30, 20))


def test_sizes_do_not_decode_pixels(tmp_path):
    for suffix in ("jpg", "png"):
        path = save(tmp_path / suffix / f"a.{suffix}", size=(300, 200))
        path.write_bytes(path.read_bytes()[:-50])  # the pixels are damaged, the header is not
        images = open_captioned(tmp_path / suffix)
        assert images.size_of(0) == (300, 200)
        with pytest.raises(ValueError, match=f"a.{suffix}"):
            images[0]


def test_an_orientation_behind_the_pixels_of_a_png_counts(tmp_path):
    path = save(tmp_path / "a.png")
    exif = Image.Exif()
    exif[0x0112] = TURNED
    data = exif.tobytes().removeprefix(b"Exif\0\0")
    chunk = struct.pack(">I", len(data)) + b"eXIf" + data + struct.pack(">I", zlib.crc32(b"eXIf" + data))
    content = path.read_bytes()
    end = content.rindex(b"IEND") - 4
    path.write_bytes(content[:end] + chunk + content[end:])
    images = open_captioned(tmp_path)
    assert images.size_of(0) == images[0]["image"].size == (20, 30)


@pytest.mark.parametrize("source", [b"", b"no image", b"\x89PNG\r\n\x1a\n"])
def test_what_is_no_image_is_named(source, tmp_path):
    row = LazyImage("somewhere[7]", (), source)
    path = tmp_path / "x.png"
    path.write_bytes(source)
    for image, name in ((row, r"somewhere\[7\]"), (LazyImage("x", (), path), r"x\.png")):
        for use in (lambda image: image.size, LazyImage.load):
            with pytest.raises(ValueError, match=name) as raised:
                use(image)
            assert len(str(raised.value).splitlines()) == 1


# Tables and tar files


def test_a_table_of_images_is_read_by_number(tmp_path):
    images = open_captioned(parquet_folder(tmp_path / "x"))
    assert len(images) == 3
    assert captions_of(images) == ["one", "two", "three"]
    assert images.size_of(1) == (30, 20)
    assert_shows(images[2]["image"], 2)
    with pytest.raises(IndexError):
        images[3]


def test_a_table_may_hold_several_captions(tmp_path):
    images = open_captioned(parquet_folder(tmp_path / "x", [["one", "uno"], ["two"]], "captions"))
    assert images.row(0).captions == ("one", "uno")


def test_captioned_photos_reach_worker_processes(tmp_path):
    for source in (parquet_folder(tmp_path / "x"), folder_of_photos(tmp_path / "y")):
        images = pickle.loads(pickle.dumps(open_captioned(source)))
        assert_shows(images[2]["image"], 2)


@pytest.mark.parametrize("kind", ["txt", "json"])
@pytest.mark.parametrize("streaming", [True, False])
def test_tar_files_are_read(tmp_path, kind, streaming):
    images = open_captioned(tar_folder(tmp_path / "x", kind=kind), streaming=streaming)
    rows = list(images) if streaming else [images.row(i) for i in range(len(images))]
    assert [row.caption for row in rows] == [f"words {part}{number}" for part in range(2) for number in range(3)]
    assert [row.name for row in rows][:2] == ["key00", "key01"]
    assert [row.size for row in rows][:3] == [(30, 20), (31, 20), (32, 20)]
    assert_shows(rows[4].load(), 11, (31, 20))


def test_a_stream_can_be_cut_skipped_split_and_shuffled(tmp_path):
    stream = open_captioned(tar_folder(tmp_path / "x"), streaming=True)
    assert isinstance(stream, StreamedImages)
    names = [row.name for row in stream]
    assert [row.name for row in stream.skip(4)] == names[4:]
    assert [row.name for row in stream.take(2)] == names[:2]
    parts = [[row.name for row in stream.shard(i, 2)] for i in range(2)]
    assert sorted(parts[0] + parts[1]) == names
    assert len(parts[0]) == len(parts[1]) == 3
    shuffled = [[row.name for row in stream.shuffle(seed)] for seed in (0, 0, 1)]
    assert shuffled[0] == shuffled[1]
    assert sorted(shuffled[2]) == names
    assert len({tuple(order) for order in [names, *shuffled]}) == 3


def test_a_folder_of_photos_is_read_by_number_even_when_streaming(tmp_path):
    images = open_captioned(folder_of_photos(tmp_path / "x"), streaming=True)
    assert_shows(images[1]["image"], 1)


@pytest.mark.parametrize("streaming", [True, False])
@pytest.mark.parametrize("column", ["image_column", "caption_column"])
def test_columns_that_are_missing_are_named(tmp_path, streaming, column):
    folder = parquet_folder(tmp_path / "x")
    with pytest.raises(ValueError, match=rf"{column} \(words\); columns: photo, text"):
        open_captioned(folder, streaming=streaming, **{column: "words"})


def test_a_table_without_images_is_refused(tmp_path):
    (tmp_path / "a.csv").write_text("x,text\n1,2\n")
    with pytest.raises(ValueError, match=r"no column of images; columns: x, text"):
        open_captioned(tmp_path)


def test_a_broken_tar_file_is_named(tmp_path):
    folder = tar_folder(tmp_path / "x")
    content = (folder / "1.tar").read_bytes()
    (folder / "1.tar").write_bytes(content[: len(content) // 3])
    with pytest.raises(ValueError, match=r"x\[\d\]: cannot be read"):
        list(open_captioned(folder, streaming=True))


@pytest.mark.parametrize("source", ["nowhere", "nobody/nothing"])
def test_a_source_that_does_not_exist_is_named(source):
    with pytest.raises(ValueError, match=f"{source}: neither a folder of photos nor a data set"):
        open_captioned(source)


# Scenes


def test_scenes_are_captioned_photos_too():
    images = open_captioned("scenes", num_samples=5, resolution=32, seed=3)
    assert len(images) == 5
    assert images[4]["image"].size == images.size_of(4) == (32, 32)
    assert images[4]["caption"]
    assert open_captioned("scenes", num_samples=5, resolution=32, seed=4)[4]["caption"] != images[4]["caption"]
