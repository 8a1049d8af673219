"""Reconstructions of images that are not trained on: when, what is written, and what is said."""

from PIL import Image

from tests.training.pqgan import MODEL, VALIDATION, train, validations


def test_validation_is_at_the_start_between_and_at_the_end_with_panels(trained):
    lines = validations(trained)
    assert [line["step"] for line in lines] == [0, 4, 8]
    assert all(0 < line["psnr_dataset"] < 100 and 0 < line["codebook_utilization"] <= 1 for line in lines)
    assert all({"ssim", "codebook_h_n"} <= set(line) for line in lines)
    sheet = Image.open(trained / "validation" / "step-00000008.png")
    assert sheet.width > 3 * 256
    assert sheet.height > 4 * 256


def test_poor_use_of_codewords_is_told_with_a_remedy(tmp_path, capsys):
    model = {**MODEL, "quantizer_config": {"num_subspaces": 4, "codebook_size": 512}}
    train(tmp_path, model=model, steps=1, learning_rate=1e-12, **VALIDATION)
    assert "of the codewords are in use: try --init closed_form" in capsys.readouterr().out
