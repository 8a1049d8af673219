"""Panels that show an image, its reconstructions and their errors."""

import pytest
import torch

from pqdiff.cli.panels import panel
from pqdiff.data.images.grid import error_map


def test_the_error_map_shows_four_times_the_absolute_error():
    original = torch.tensor([100, 100, 0, 255], dtype=torch.uint8).expand(3, 1, 4)
    pixels = torch.tensor([101, 90, 255, 0], dtype=torch.uint8).expand(3, 1, 4)
    assert error_map(original, pixels)[0, 0].tolist() == [4, 40, 255, 255]


@pytest.mark.parametrize(("height", "width"), [(1, 1), (16, 24), (40, 3000)])
def test_a_panel_has_a_column_for_each_reconstruction(height, width):
    image = torch.zeros(3, height, width, dtype=torch.uint8)
    one, two = (panel(image, [("model", "9 bpp", image)] * count) for count in (1, 2))
    column = two.width - one.width
    assert 150 <= column <= 520
    assert one.width == pytest.approx(2 * column, abs=16)
