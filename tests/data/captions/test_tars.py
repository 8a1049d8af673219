"""Every image of a tar file is read, with its own captions, wherever in the tar they begin."""

import io
import json
import tarfile

import pytest

from pqdiff.data.captions.captioned import open_captioned
from tests.data.captions.support import assert_shows, noise, save


def image(number):
    file = io.BytesIO()
    noise(number).save(file, "png")
    return file.getvalue()


def tar_of(folder, *members):
    folder.mkdir(exist_ok=True)
    with tarfile.open(folder / "x.tar", "w") as tar:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return folder


@pytest.fixture(params=[True, False], ids=["stream", "table"])
def rows_of(request):
    def rows(folder, *columns):
        images = open_captioned(folder, *columns, streaming=request.param)
        return list(images) if request.param else [images.row(number) for number in range(len(images))]

    return rows


def test_numbered_images_are_all_read(tmp_path, rows_of):
    folder = tar_of(tmp_path / "x", *((f"photo.{number}.png", image(number)) for number in range(4)))
    rows = rows_of(folder)
    assert [row.name for row in rows] == [f"photo.{number}" for number in range(4)]
    for number, row in enumerate(rows):
        assert_shows(row.load(), number)


def test_captions_that_begin_late_are_kept(tmp_path, rows_of):
    members = [(f"{number}.png", image(number)) for number in range(7)]
    members[6:] = [
        members[6],
        ("6.txt", b"late"),
        ("7.png", image(7)),
        ("7.json", json.dumps({"text": "json"}).encode()),
    ]
    rows = rows_of(tar_of(tmp_path / "x", *members))
    assert [row.captions for row in rows] == [()] * 6 + [("late",), ("json",)]


def test_images_of_several_kinds_are_all_read(tmp_path, rows_of):
    jpeg = io.BytesIO()
    noise(1).save(jpeg, "jpeg")
    rows = rows_of(tar_of(tmp_path / "x", ("a.png", image(0)), ("b.jpg", jpeg.getvalue()), ("c.PNG", image(2))))
    assert [row.size for row in rows] == [(30, 20)] * 3


def test_a_mask_beside_an_image_is_taken_only_if_asked_for(tmp_path, rows_of):
    folder = tar_of(tmp_path / "x", ("a.mask.png", image(1)), ("a.png", image(2)), ("a.txt", b"words"))
    assert_shows(rows_of(folder)[0].load(), 2)
    assert_shows(rows_of(folder, "mask.png")[0].load(), 1)
    assert len(rows_of(folder)) == 1


def test_several_images_without_a_usual_name_are_refused(tmp_path):
    folder = tar_of(tmp_path / "x", ("a.left.png", image(1)), ("a.right.png", image(2)))
    for streaming in (True, False):
        with pytest.raises(ValueError, match=r"a: has several images \(left\.png, right\.png\)"):
            list(open_captioned(folder, streaming=streaming))


def test_a_file_of_the_working_folder_is_not_taken_for_one_in_the_tar(tmp_path, rows_of, monkeypatch):
    folder = tar_of(tmp_path / "x", ("a.png", image(1)), (str(tmp_path / "b.png"), image(3)))
    save(tmp_path / "a.png", 2)
    save(tmp_path / "b.png", 2)
    monkeypatch.chdir(tmp_path)
    first, second = rows_of(folder)
    assert_shows(first.load(), 1)
    assert_shows(second.load(), 3)


def test_a_tar_that_has_changed_is_read_again(tmp_path):
    folder = tar_of(tmp_path / "x", ("a.png", image(1)))
    assert len(open_captioned(folder)) == 1
    tar_of(folder, ("a.png", image(2)), ("b.png", image(3)))
    images = open_captioned(folder)
    assert len(images) == 2
    assert_shows(images[0]["image"], 2)


@pytest.mark.parametrize("content", [b"\xff\xfe", b"{", b"[" * 100_000, b'{"text": 7}'])
def test_captions_that_cannot_be_read_are_named(tmp_path, content):
    folder = tar_of(tmp_path / "x", ("a.png", image(1)), ("a.json", content))
    with pytest.raises(ValueError, match=r"a\.json: ") as raised:
        list(open_captioned(folder, streaming=True))
    assert "\n" not in str(raised.value)


def test_columns_that_a_tar_does_not_have_are_named(tmp_path):
    folder = tar_of(tmp_path / "x", ("a.png", image(1)), ("a.txt", b"words"))
    for columns in (("jpg", None), (None, "json")):
        with pytest.raises(ValueError, match=r"a: has no (image|caption)_column .*columns: png, txt"):
            list(open_captioned(folder, *columns, streaming=True))


@pytest.mark.parametrize(
    "kind", [tarfile.REGTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE], ids=["file", "name", "pax"]
)
@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT], ids=["gnu", "pax"])
def test_sizes_that_no_sample_has_are_refused_before_anything_is_read(tmp_path, kind, form):
    """Kind of fault C7, small input and large cost: 5 MB of compressed zeros took 10 GB of memory."""
    member = tarfile.TarInfo("0.png")
    member.type, member.size = kind, 2**33 - 1
    header = member.tobuf(form)
    (tmp_path / "x.tar").write_bytes(header + bytes(20 * tarfile.BLOCKSIZE))
    with pytest.raises(ValueError, match="bytes"):
        list(open_captioned(tmp_path, streaming=True))


def test_a_sample_of_many_files_is_bounded_and_so_are_captions(tmp_path, monkeypatch, rows_of):
    """Kind of fault C7: the files of one sample are in memory together, and a text takes several times its bytes."""
    folder = tar_of(tmp_path / "x", ("0.png", image(0)), ("0.txt", bytes(2**20 + 1)))
    with pytest.raises(ValueError, match=r"0\.txt: has 1,048,577 bytes"):
        rows_of(folder)
    monkeypatch.setattr("pqdiff.data.captions.tars._MOST_BYTES", 10 * tarfile.BLOCKSIZE)
    folder = tar_of(tmp_path / "y", *((f"0.{number}.npy", b"1") for number in range(11)), ("1.png", image(1)))
    with pytest.raises(ValueError, match="its sample has more than"):
        rows_of(folder)
