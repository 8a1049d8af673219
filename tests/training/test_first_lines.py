"""What the training of an autoencoder says before its first step."""

from pqdiff import AutoencoderPQ
from tests.training.pqgan import train


def test_the_first_lines_say_what_runs(tmp_path, capsys):
    train(tmp_path, steps=1, gradient_accumulation_steps=2)
    text = capsys.readouterr().out
    model = AutoencoderPQ.from_pretrained(tmp_path / "autoencoder")
    assert f"{sum(p.numel() for p in model.parameters()):,} parameters" in text
    assert "4 tokens of up to 16 values per position, 4 bits per pixel" in text
    assert "8 images of 32 px a step (4 x 2 micro-steps x 1 process(es)); 24 images, 3 steps an epoch" in text
    assert "memory, estimated:" in text
