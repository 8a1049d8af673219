"""Tables of a folder are found by their own names, and by nothing that the folder says."""

import json

import pyarrow
import pytest
from pyarrow import parquet

from pqdiff.data.captions.captioned import open_captioned
from tests.data.captions.support import captions_of, parquet_folder, tar_folder


@pytest.mark.parametrize("streaming", [True, False])
@pytest.mark.parametrize("name", ["a[1]", "b*", "c?", "d{x}"])
def test_names_with_brackets_are_no_patterns(tmp_path, name, streaming):
    for number, make in enumerate((parquet_folder, tar_folder)):
        images = open_captioned(make(tmp_path / name / str(number)), streaming=streaming)
        assert len(list(images) if streaming else captions_of(images)) == (3, 6)[number]


def test_a_readme_that_names_data_elsewhere_is_not_followed(tmp_path, offline):
    folder = parquet_folder(tmp_path / "x")
    elsewhere = parquet_folder(tmp_path / "elsewhere", captions=["secret"])
    for place in (f"{elsewhere}/*", "https://example.com/x.parquet", "hf://datasets/stranger/x/a.parquet"):
        (folder / "README.md").write_text(f"---\nconfigs:\n- config_name: default\n  data_files: {place}\n---\n")
        assert captions_of(open_captioned(folder)) == ["one", "two", "three"]
    assert offline == []


@pytest.mark.parametrize("name", ["train-00000-of-00001", "training", "data/train/x", "anything", "x.train"])
def test_files_without_the_word_of_another_split_are_for_training(tmp_path, name):
    folder = parquet_folder(tmp_path / "x")
    (folder / f"{name}.parquet").parent.mkdir(parents=True, exist_ok=True)
    (folder / "train-0.parquet").rename(folder / f"{name}.parquet")
    assert len(open_captioned(folder)) == 3


@pytest.mark.parametrize(
    ("name", "split"),
    [("val", "validation"), ("test/a", "test"), ("extra-00000-of-00001", "extra"), ("dev_1", "validation")],
)
def test_files_say_their_split(tmp_path, name, split):
    folder = parquet_folder(tmp_path / "x")
    (folder / f"{name}.parquet").parent.mkdir(parents=True, exist_ok=True)
    (folder / "train-0.parquet").rename(folder / f"{name}.parquet")
    assert len(open_captioned(folder, split=split)) == 3
    with pytest.raises(ValueError, match=f"has no split train, but {split}"):
        open_captioned(folder)


def test_hidden_tables_are_left_out(tmp_path):
    folder = parquet_folder(tmp_path / "x")
    (folder / ".hidden").mkdir()
    (folder / ".hidden" / "y.parquet").write_bytes((folder / "train-0.parquet").read_bytes())
    assert len(open_captioned(folder)) == 3


@pytest.mark.parametrize("features", [[], 5, {"photo": {"_type": 5}}, {"photo": {"_type": "Image", "decode": []}}])
@pytest.mark.parametrize("streaming", [True, False])
def test_what_a_table_says_of_its_columns_gives_one_line_or_images(tmp_path, features, streaming):
    """Kind of fault C8, tracebacks: the library `datasets` raises errors of any type."""
    file = parquet_folder(tmp_path / "x") / "train-0.parquet"
    table = parquet.read_table(file)
    said = json.dumps({"info": {"features": features}})
    parquet.write_table(table.replace_schema_metadata({"huggingface": said}), file)
    problem = ""
    try:
        images = open_captioned(tmp_path / "x", streaming=streaming)
        list(images) if streaming else [images.row(0)]
    except ValueError as error:
        problem = str(error)
    assert "\n" not in problem


@pytest.mark.parametrize("streaming", [True, False])
def test_a_small_table_of_large_content_is_refused(tmp_path, streaming):
    """Kind of fault C7: 15 KB of parquet took 3 GB of memory."""
    file = parquet_folder(tmp_path / "x") / "train-0.parquet"
    table = parquet.read_table(file)
    zeros = pyarrow.array([bytes(2**24 + 1)] * len(table), pyarrow.binary())
    parquet.write_table(table.append_column("zeros", zeros), file, compression="zstd")
    with pytest.raises(ValueError, match="which no photos are"):
        open_captioned(tmp_path / "x", streaming=streaming)
