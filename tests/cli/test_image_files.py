"""Names of result files."""

import pytest
from PIL import Image

from pqdiff.cli.image_files import save_image, unique_names


@pytest.mark.parametrize(
    ("names", "unique"),
    [
        (["a", "b"], ["a", "b"]),
        (["a", "a", "a"], ["a", "a-2", "a-3"]),
        (["a", "a", "a-2"], ["a", "a-3", "a-2"]),  # a name that was given wins over one that was made
        ([], []),
    ],
)
def test_names_that_come_again_get_a_number(names, unique):
    assert unique_names(names) == unique


def test_an_image_is_written_to_a_new_folder(tmp_path):
    path = tmp_path / "new" / "a.png"
    assert save_image(Image.new("RGB", (3, 2), "red"), path) == str(path)
    with Image.open(path) as image:
        assert image.size == (3, 2)


@pytest.mark.parametrize("name", ["x.png", "x.jpg"])
def test_images_that_are_written_say_srgb(tmp_path, name):
    save_image(Image.new("RGB", (8, 8), "red"), tmp_path / name)
    with Image.open(tmp_path / name) as image:
        assert "srgb" in image.info or image.info["icc_profile"]
