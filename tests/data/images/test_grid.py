"""Labelled grids of images, and maps of errors."""

import numpy as np
import torch
from PIL import Image

from pqdiff.data.images.grid import ERROR_GAIN, error_map, grid_image

COLORS = ("red", "lime", "blue")
RGB = {"red": (255, 0, 0), "lime": (0, 255, 0), "blue": (0, 0, 255)}


def squares(*names, side=8):
    return [Image.new("RGB", (side, side), name) for name in names]


def boxes(sheet):
    """Left, top, width and height of the area of each color."""
    pixels = np.asarray(sheet)
    found = {}
    for name, color in RGB.items():
        rows, columns = np.nonzero((pixels == color).all(axis=2))
        if len(rows):
            found[name] = (columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1)
    return found


def test_images_stand_in_rows_and_columns_at_the_asked_size():
    found = boxes(grid_image([("one", squares("red", "lime")), ("two", squares("blue"))], side=64))
    assert [found[name][2:] for name in COLORS] == [(64, 64)] * 3
    assert found["red"][0] == found["blue"][0] < found["lime"][0]
    assert found["red"][1] == found["lime"][1] < found["blue"][1]


def test_large_images_are_shrunk_and_keep_their_shape():
    found = boxes(grid_image([("", [Image.new("RGB", (400, 200), "red")])], side=100))
    assert found["red"][2:] == (100, 50)


def test_long_labels_are_wrapped_and_move_the_images_down():
    short, long = (grid_image([(label, squares("red"))], side=64) for label in ("fox", "fox " * 100))
    assert long.width == short.width
    assert long.height > short.height + 64
    assert boxes(long)["red"][1] - boxes(short)["red"][1] == long.height - short.height


def test_a_title_stays_in_its_column_however_long_it_is():
    rows = [("", squares("red", "lime"))]
    plain, titled = grid_image(rows, ["", "b"], side=96), grid_image(rows, ["a" * 500, "b"], side=96)
    assert plain.size == titled.size
    second = boxes(titled)["lime"][0]
    changed = np.nonzero((np.asarray(plain) != np.asarray(titled)).any(axis=(0, 2)))[0]
    assert len(changed) > 0
    assert changed.max() < second


def test_a_word_without_an_end_does_not_widen_the_sheet():
    rows = squares("red")
    assert grid_image([("w" * 3000, rows)], side=64).size == grid_image([("w", rows)], side=64).size


def test_titles_may_have_two_lines_and_labels_any_letters():
    one, two = (grid_image([("狐 🦊 é\n", squares("red"))], [title], side=64) for title in ("a", "a\nb"))
    assert 10 < boxes(two)["red"][1] - boxes(one)["red"][1] < 30


def test_an_error_map_is_black_where_images_are_equal_and_never_wraps_around():
    original = torch.tensor([0, 255, 100, 100, 100], dtype=torch.uint8)
    image = torch.tensor([255, 0, 100, 101, 90], dtype=torch.uint8)
    result = error_map(original, image)
    assert result.dtype == torch.uint8
    assert result.tolist() == [255, 255, 0, ERROR_GAIN, 10 * ERROR_GAIN]
    assert torch.equal(result, error_map(image, original))
