"""Some of many captioned images can be chosen."""

import pytest

from pqdiff.data.captions.captioned import open_captioned
from tests.data.captions.support import folder_of_images


def test_the_first_images_can_be_taken(tmp_path):
    images = open_captioned(folder_of_images(tmp_path / "x"))
    assert len(images.take(2)) == 2
    assert len(images.take(9)) == 3
    assert images.take(2)[1]["name"] == "b.png"
    with pytest.raises(IndexError):
        images.take(2)[2]


def test_images_can_be_selected_in_any_order(tmp_path):
    images = open_captioned(folder_of_images(tmp_path / "x")).select([2, 0])
    assert [images[i]["name"] for i in range(len(images))] == ["deep/c.png", "a.png"]
    assert images.size_of(0) == (30, 20)
    for index in (-1, 2):
        with pytest.raises(IndexError, match=f"image {index} of 2"):
            images.row(index)
