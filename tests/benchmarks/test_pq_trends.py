"""Sweeps of d, S and K: what the paper finds, on the committed results, and where ours differ."""

import itertools
import json
import math
from types import SimpleNamespace

import pytest

from benchmarks.pq_trends import (
    CHANNELS,
    CLOSED,
    EQUAL_BITS,
    MIDDLE,
    POINTS,
    RESTARTED,
    TRAINED,
    Point,
    measured,
    plot,
)
from benchmarks.quantizers import write_crops
from benchmarks.render_readme import RESULTS
from pqdiff.data.images.reading import to_tensor
from pqdiff.data.scenes.scenes import SceneDataset

DOCUMENT = json.loads((RESULTS / "pq_trends.json").read_text())
ROWS = {Point(row["fit"], row["d"], row["S"], row["K"]): row for row in DOCUMENT["rows"]}


def psnr(fit: str, d: int, S: int, K: int = 512) -> float:
    return ROWS[Point(fit, d, S, K)]["psnr_dataset"]


def usage(fit: str, d: int, S: int, K: int = 512) -> float:
    return ROWS[Point(fit, d, S, K)]["usage"]


def test_committed_results_are_whole_and_say_their_rates():
    assert tuple(ROWS) == POINTS
    for point, row in ROWS.items():
        assert row["bits_per_pixel"] == pytest.approx(point.S * math.log2(point.K) / 64, abs=1e-5)
        assert row["entropy_bits_per_pixel"] <= row["bits_per_pixel"]
        assert 0 < row["usage"] <= 1


@pytest.mark.parametrize("bits", EQUAL_BITS)
def test_pairs_have_the_bits_under_which_they_stand(bits):
    assert {S * math.log2(K) for S, K in EQUAL_BITS[bits]} == {bits}


@pytest.mark.parametrize("fit", [CLOSED, TRAINED])
def test_product_quantization_improves_with_d(fit):
    """As in the paper, at S = d/2. Bits grow with d."""
    values = [psnr(fit, d, d // 2) for d in CHANNELS if Point(fit, d, d // 2, 512) in ROWS]
    assert len(values) >= 5
    assert all(wide > narrow + 1 for narrow, wide in itertools.pairwise(values))


def test_trained_vector_quantization_degrades_with_d_because_codewords_die():
    """As in the paper. Moving unused codewords to data is all that it takes against it."""
    channels = [d for d in CHANNELS if Point(TRAINED, d, 1, 512) in ROWS]
    for narrow, wide in itertools.pairwise(channels):
        assert psnr(TRAINED, wide, 1) < psnr(TRAINED, narrow, 1) - 0.2
        assert usage(TRAINED, wide, 1) < usage(TRAINED, narrow, 1)
    assert usage(TRAINED, channels[0], 1) > 0.7
    assert usage(TRAINED, channels[-1], 1) < 0.15
    for d in (4, 32, 128):
        assert usage(RESTARTED, d, 1) > 0.98
        assert psnr(RESTARTED, d, 1) == pytest.approx(psnr(CLOSED, d, 1), abs=0.8)
    assert psnr(RESTARTED, 128, 1) > psnr(RESTARTED, 4, 1) + 0.5


def test_codewords_die_by_the_dimension_of_a_subspace():
    """So product quantization with few subspaces degrades as well: S = 4 from 8 to 32 dimensions each."""
    assert usage(TRAINED, 128, 4) < usage(TRAINED, 32, 4) < usage(TRAINED, 4, 4)
    assert psnr(TRAINED, 128, 4) < psnr(TRAINED, 32, 4) - 1


def test_vector_quantization_in_closed_form_does_not_degrade():
    """Where the paper and we differ: k-means leaves no codeword unused, and more components take nothing away."""
    values = [psnr(CLOSED, d, 1) for d in CHANNELS if d >= 8]
    assert max(values) - min(values) < 0.2


@pytest.mark.parametrize(("fit", "d"), [*((CLOSED, d) for d in CHANNELS if 8 <= d <= 128), (TRAINED, MIDDLE)])
def test_quality_saturates_at_two_dimensions_per_subspace(fit, d):
    """From S = d/2 to d, bits double as from d/4 to d/2, for less than a third of the gain."""
    quarter, half, scalar = (psnr(fit, d, S) for S in (d // 4, d // 2, d))
    assert scalar - half < (half - quarter) / 3


@pytest.mark.parametrize(("fit", "most"), [(CLOSED, 16384), (TRAINED, 8192)])
def test_codebook_size_matters_little(fit, most):
    """At S = d/2. Bits double from S = 8 to 16 as from K = 128 to 16,384, and gain more."""
    assert psnr(fit, MIDDLE, 16, most) - psnr(fit, MIDDLE, 16, 128) < 1
    assert psnr(CLOSED, MIDDLE, 16, 128) - psnr(CLOSED, MIDDLE, 8, 128) > 1.5


def test_at_equal_bits_fewer_and_larger_subspaces_are_better():
    """Which the paper's figures do not show: its S pays with bits."""
    for pairs in EQUAL_BITS.values():
        values = [psnr(CLOSED, MIDDLE, S, K) for S, K in pairs]
        assert values == sorted(values, reverse=True)


def test_points_are_fitted_measured_and_kept(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    scenes = [scene["image"] for scene in SceneDataset(11, 64)]
    for number, image in enumerate(scenes):
        image.save(folder / f"{number:02d}.png")
    crops = write_crops(SimpleNamespace(photos=folder, also=[], work=tmp_path), 64)
    data = ([to_tensor(image) for image in scenes[1:10]], crops)
    for fit in (CLOSED, RESTARTED):
        point = Point(fit, 4, 2, 8)
        row = measured(point, tmp_path, data, scenes[:1], steps=2)
        assert row["fit"] == fit
        assert row["bits_per_pixel"] == pytest.approx(2 * 3 / 64, abs=1e-5)
        assert row == measured(point, tmp_path, ([], crops), [], steps=2)  # from the folder


@pytest.mark.slow
def test_all_committed_points_can_be_drawn(tmp_path):
    plot(DOCUMENT, tmp_path / "docs" / "trends.png")
    assert (tmp_path / "docs" / "trends.png").stat().st_size > 50_000
