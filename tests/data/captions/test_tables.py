"""Tables and tar files are read by number and as streams; what does not fit is named."""

import datasets
import pytest

from pqdiff.data.captions.captioned import open_captioned
from pqdiff.data.captions.tables import StreamedImages, TableImages
from tests.data.captions.support import assert_shows, captions_of, parquet_folder, tar_folder


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


@pytest.mark.parametrize("kind", ["txt", "json"])
@pytest.mark.parametrize("streaming", [True, False])
def test_tar_files_are_read(tmp_path, kind, streaming):
    images = open_captioned(tar_folder(tmp_path / "x", kind=kind), streaming=streaming)
    rows = list(images) if streaming else [images.row(i) for i in range(len(images))]
    assert [row.caption for row in rows] == [f"words {part}{number}" for part in range(2) for number in range(3)]
    assert [row.name for row in rows][:2] == ["key00", "key01"]
    assert [row.size for row in rows][:3] == [(30, 20), (31, 20), (32, 20)]
    assert_shows(rows[4].load(), 11, (31, 20))


def test_a_stream_can_be_cut_skipped_and_shuffled(tmp_path):
    stream = open_captioned(tar_folder(tmp_path / "x"), streaming=True)
    assert isinstance(stream, StreamedImages)
    names = [row.name for row in stream]
    assert [row.name for row in stream.skip(4)] == names[4:]
    assert [row.name for row in stream.take(2)] == names[:2]
    shuffled = [[row.name for row in stream.shuffle(seed)] for seed in (0, 0, 1)]
    assert shuffled[0] == shuffled[1]
    assert sorted(shuffled[2]) == names
    assert len({tuple(order) for order in [names, *shuffled]}) == 3


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


def test_a_folder_of_tables_has_splits_by_the_names_of_its_files(tmp_path):
    table = parquet_folder(tmp_path / "x")
    (table / "train-0.parquet").rename(table / "test-0.parquet")
    assert len(open_captioned(table, split="test")) == 3
    with pytest.raises(ValueError, match=r"no data set can be loaded from it .*validation"):
        open_captioned(table, split="validation")


def test_an_image_whose_file_is_missing_is_named(tmp_path):
    rows = {"image": [{"path": str(tmp_path / "gone.png"), "bytes": None}]}
    table = datasets.Dataset.from_dict(rows, features=datasets.Features({"image": datasets.Image()}))
    for images in (TableImages("table", table), StreamedImages("table", table.to_iterable_dataset())):
        with pytest.raises(ValueError, match=r"table\[0\]: cannot be read"):
            images.row(0) if isinstance(images, TableImages) else next(iter(images))
