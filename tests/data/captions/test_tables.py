"""Tables and tar files are read by number and as streams; what does not fit is named."""

import datasets
import pytest

from pqdiff.data.captions.captioned import open_captioned
from pqdiff.data.captions.tables import StreamedImages, TableImages
from tests.data.captions.support import assert_shows, captions_of, noise, parquet_folder, save, tar_folder


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


def read_first(images):
    return (images.row(0) if isinstance(images, TableImages) else next(iter(images))).load()


def tables_of(path, below):
    """One row that names a file, as a table and as a stream."""
    rows = {"image": [{"path": str(path), "bytes": None}]}
    table = datasets.Dataset.from_dict(rows, features=datasets.Features({"image": datasets.Image()}))
    return TableImages("table", table, paths=below), StreamedImages("table", table.to_iterable_dataset(), paths=below)


def test_an_image_whose_file_is_missing_is_named(tmp_path):
    for images in (*tables_of("gone.png", tmp_path), *tables_of(tmp_path / "gone.png", True)):
        with pytest.raises(ValueError, match=r"table\[0\]: .*(does not exist|cannot be read)"):
            read_first(images)


def test_a_row_may_name_a_file_below_the_folder_of_its_table(tmp_path):
    save(tmp_path / "deep" / "a.png", 1)
    for images in tables_of("deep/a.png", tmp_path):
        assert_shows(read_first(images), 1)


@pytest.mark.parametrize("name", ["hf://datasets/stranger/x/a.png", "https://example.com/a.png", "zip://a.png::b.zip"])
@pytest.mark.parametrize("below", [True, False])
def test_a_row_that_names_an_address_is_never_fetched(tmp_path, name, below, offline):
    for images in tables_of(name, tmp_path if below else None):
        with pytest.raises(ValueError, match=r"table\[0\]: names a file .* it is not fetched"):
            read_first(images)
    assert offline == []  # no connection was tried


@pytest.mark.parametrize("name", ["../a.png", "{folder}/a.png", "/dev/zero", "x/../../a.png", "deep"])
def test_a_row_that_points_out_of_the_folder_of_its_table_is_refused(tmp_path, name):
    save(tmp_path / "a.png")
    (tmp_path / "table" / "deep").mkdir(parents=True)
    for images in tables_of(name.format(folder=tmp_path), tmp_path / "table"):
        with pytest.raises(ValueError, match=r"table\[0\]: .*(must be a file below|is not a file)"):
            read_first(images)


def test_a_mask_is_not_taken_for_the_image(tmp_path):
    rows = {"mask": [noise(1)], "image": [noise(2)], "text": ["a"]}
    features = datasets.Features(
        {"mask": datasets.Image(), "image": datasets.Image(), "text": datasets.Value("string")}
    )
    datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "x.parquet")
    for streaming in (True, False):
        assert_shows(read_first(open_captioned(tmp_path, streaming=streaming)), 2)
        assert_shows(read_first(open_captioned(tmp_path, "mask", streaming=streaming)), 1)


def test_several_columns_of_images_without_a_usual_name_are_refused(tmp_path):
    features = datasets.Features({"depth": datasets.Image(), "scan": datasets.Image()})
    rows = {"depth": [noise(1)], "scan": [noise(2)]}
    datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "x.parquet")
    with pytest.raises(ValueError, match=r"several columns of images \(depth, scan\): give one as image_column"):
        open_captioned(tmp_path)


def test_shards_of_a_stream_share_what_is_left_after_skipping(tmp_path):
    stream = open_captioned(tar_folder(tmp_path / "x"), streaming=True)
    names = [row.name for row in stream]
    for rest, expected in ((stream.skip(2), names[2:]), (stream.skip(1).take(3), names[1:4]), (stream, names)):
        shards = [[row.name for row in rest.shard(index, 2)] for index in range(2)]
        assert shards == [expected[0::2], expected[1::2]]
    assert [row.name for row in stream.shard(1, 2).skip(1).take(1)] == names[3:4]
    assert sorted(row.name for row in stream.skip(2).shuffle(0)) == names[2:]
    assert sorted(row.name for row in stream.take(3).shuffle(0)) == names[:3]
    with pytest.raises(ValueError, match="shuffle the stream before"):
        stream.shard(0, 2).shuffle(0)
