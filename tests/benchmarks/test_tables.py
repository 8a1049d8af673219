"""Tables of the paper: rates follow from tokens, ours and theirs stand apart, every row has what fills it."""

import json

import pytest

from benchmarks import tables
from benchmarks.paper_tables import TABLE_1, TABLE_2, bits
from benchmarks.render_readme import RESULTS, ROOT
from pqdiff.checkpoints import BUNDLED
from pqdiff.metrics.codecs import Codec


def test_rates_of_the_papers_rows():
    """64 tokens of 9, 7 and 8 bits on 8, 16 and 32 px; the shipped tokenizers of the same names have them, too."""
    assert [row[1] for row in TABLE_1[:3]] == [9.0, 1.75, 0.5]
    assert bits(1, 16384, 16) == pytest.approx(14 / 256)
    assert TABLE_2["FFHQ"][0][1] == 1.75


def test_committed_tables_are_those_of_the_committed_results():
    assert (ROOT / "docs" / "tables.md").read_text() == tables.document(RESULTS)
    results = json.loads((RESULTS / "evaluation.json").read_text())
    assert set(BUNDLED) <= set(results)
    for name, result in results.items():
        assert result["metrics"]["ssimulacra2"] is not None, name
        assert result["broken"] == []
        codec = Codec.parse(name)
        if codec and codec.rate >= 1:  # below, the smallest file of a codec may be larger
            assert result["metrics"]["bits_per_pixel"] <= codec.rate


def test_rows_of_other_data_are_shown_when_somebody_has_measured_them(tmp_path):
    metrics = {"bits_per_pixel": 1.75, "psnr_dataset": 31.25, "psnr_image_mean": 32.5, "ssim": 0.9, "rfid": 0.5}
    protocol = {"resolution": 256, "resize": "squashed", "output": "8-bit"}
    result = {"num_images": 50_000, "data": "imagenet", "metrics": metrics, "protocol": protocol}
    (tmp_path / "imagenet.json").write_text(json.dumps({"mine": result}))
    text = tables.document(tmp_path)
    assert "| `mine` | 1.75 | 31.25 | 32.50 | 0.9000 | 0.500 |" in text
    assert text.count("Ours: not measured") == 2


def test_commands_name_every_model_and_data_set():
    text = tables.commands()
    assert all(name in text for name in (*BUNDLED, "IMAGENET", "FFHQ", "LSUN", "avif@0.5bpp"))
