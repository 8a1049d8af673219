"""Captions are read from metadata and text files; what does not fit is named."""

import json
import os

import pytest

from pqdiff.data.captions.captioned import open_captioned
from tests.data.captions.support import assert_shows, captions_of, folder_of_images, save


def test_a_text_file_beside_an_image_is_its_caption(tmp_path):
    folder = folder_of_images(tmp_path / "x")
    (folder / "b.txt").write_text("\ufeffa red fox\n  in snow \n", encoding="utf-8")
    (folder / "deep" / "c.txt").write_text("\u00fcber allem\n", encoding="utf-8")
    assert captions_of(open_captioned(folder)) == ["", "a red fox in snow", "\u00fcber allem"]


def test_a_caption_that_is_no_text_is_named(tmp_path):
    folder = folder_of_images(tmp_path / "x")
    (folder / "b.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match=r"b\.txt: is not text"):
        open_captioned(folder)[1]


def test_metadata_as_csv_says_images_and_captions(tmp_path):
    folder = folder_of_images(tmp_path / "x")
    (folder / "metadata.csv").write_text('file_name,text\ndeep/c.png,"one, two"\na.png,three\n')
    images = open_captioned(folder)
    assert captions_of(images) == ["one, two", "three"]
    assert [images[i]["name"] for i in range(2)] == ["deep/c.png", "a.png"]
    assert_shows(images[0]["image"], 2)


def test_metadata_as_json_lines_may_lie_deeper_and_name_its_columns(tmp_path):
    folder = folder_of_images(tmp_path / "x")
    rows = [{"photo": "c.png", "words": "one", "text": "no"}]
    (folder / "deep" / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    images = open_captioned(folder, image_column="photo", caption_column="words")
    assert captions_of(images) == ["one"]


def test_several_captions_of_an_image_are_kept(tmp_path):
    folder = folder_of_images(tmp_path / "x")
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
        ("file_name,text\n", {}, "lists no images"),
        ('{"file_name": "a.png", "text": 3}\n', {}, "captions must be text, got 3"),
        ("{broken\n", {}, "cannot be read"),
        ("[1, 2]\n", {}, "has no file_name"),
    ],
)
def test_metadata_that_does_not_fit_is_named(tmp_path, table, options, named):
    folder = folder_of_images(tmp_path / "x")
    (folder / f"metadata.{'jsonl' if table[0] in '{[' else 'csv'}").write_text(table)
    with pytest.raises(ValueError, match=named) as raised:
        open_captioned(folder, **options)
    assert str(folder) in str(raised.value)


def test_a_caption_column_needs_metadata(tmp_path):
    with pytest.raises(ValueError, match=r"caption_column \(words\) needs a metadata"):
        open_captioned(folder_of_images(tmp_path / "x"), caption_column="words")


@pytest.mark.parametrize("cells", ["0.png,a cat, sitting, on a mat", '0.png,"a cat', '0.png,"a" cat'])
def test_captions_with_commas_or_open_quotes_are_refused_not_cut(tmp_path, cells):
    save(tmp_path / "0.png")
    (tmp_path / "metadata.csv").write_text(f"file_name,text\n{cells}\n")
    with pytest.raises(ValueError, match=r"metadata\.csv.*: (has more cells than columns: put|cannot be read)"):
        open_captioned(tmp_path)


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
@pytest.mark.parametrize(
    "name", ["../0.png", "{folder}/0.png", "/dev/zero", "/etc/passwd", "x/../../0.png", "pipe.png"]
)
def test_metadata_that_points_out_of_its_folder_is_refused(tmp_path, name, kind):
    save(tmp_path / "0.png")
    save(tmp_path / "x" / "1.png")
    os.mkfifo(tmp_path / "x" / "pipe.png")
    name = name.format(folder=tmp_path)
    table = f"file_name,text\n{name},secret\n" if kind == "csv" else json.dumps({"file_name": name, "text": "secret"})
    (tmp_path / "x" / f"metadata.{kind}").write_text(table)
    with pytest.raises(ValueError, match=rf"metadata\.{kind}, row 1: .*(must be a file below|is not a file)"):
        open_captioned(tmp_path / "x")


def test_deeply_nested_metadata_is_one_line(tmp_path):
    save(tmp_path / "0.png")
    (tmp_path / "metadata.jsonl").write_text("[" * 100_000)
    with pytest.raises(ValueError, match=r"metadata\.jsonl: cannot be read") as raised:
        open_captioned(tmp_path)
    assert "\n" not in str(raised.value)
