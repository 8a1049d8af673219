"""What all extractors promise: batches, settings and modes change nothing."""

import pytest
import torch
from torch import nn

from pqdiff.metrics.features.base import FeatureExtractor, FeatureOutput, full_precision


class Small(FeatureExtractor):
    """A convolution, and classes of its features."""

    name = "small"
    dim = 32
    num_classes = 5
    preparation = "24 x 24"
    digest = "0123456789"

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.network = nn.Sequential(
            nn.Conv2d(3, 32, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout()
        )
        self.classes = nn.Linear(32, 5)
        self.requires_grad_(False).eval()

    def prepare(self, image):
        return nn.functional.interpolate(image / 255, size=(24, 24), mode="bicubic", antialias=True)

    def see(self, inputs):
        features = self.network(inputs)
        return FeatureOutput(features, self.classes(features))


def images(count=7):
    return torch.randint(0, 256, (count, 3, 40, 33), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def extractor():
    return Small()


@pytest.mark.parametrize("size", [1, 2, 5])
def test_the_size_of_a_batch_changes_no_bit(extractor, size):
    whole = extractor(images())
    parts = [extractor(batch) for batch in images().split(size)]
    for index in range(2):
        assert torch.equal(torch.cat([part[index] for part in parts]), whole[index])


def test_shapes_and_types_are_those_of_the_contract(extractor):
    output = extractor(images(2))
    assert (output.features.shape, output.features.dtype) == ((2, 32), torch.float32)
    assert (output.logits.shape, output.logits.dtype) == ((2, 5), torch.float32)
    assert not output.features.requires_grad


def test_autocast_and_training_mode_change_nothing(extractor):
    expected = extractor(images(2))
    nn.ModuleList([extractor]).train()
    assert not any(module.training for module in extractor.modules())
    with torch.autocast("cpu", torch.bfloat16):
        under = extractor(images(2))
    assert torch.equal(under.features, expected.features)
    assert torch.equal(under.logits, expected.logits)


def settings():
    cudnn = torch.backends.cudnn
    tf32 = cudnn.conv.fp32_precision if hasattr(cudnn, "conv") else cudnn.allow_tf32
    return tf32, cudnn.benchmark, cudnn.deterministic


def test_tf32_is_off_inside_and_as_before_outside():
    before, precision = settings(), torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        with full_precision(torch.device("cpu")):
            assert torch.get_float32_matmul_precision() == "highest"
            assert settings() in (("ieee", False, True), (False, False, True))
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision(precision)
    assert settings() == before


@pytest.mark.skipif(not hasattr(torch.backends.cudnn, "conv"), reason="this torch has the older settings only")
@pytest.mark.parametrize("value", ["tf32", "ieee"])
def test_newer_settings_of_tf32_are_understood(value):
    """Beside them torch refuses to read the older ones."""
    conv = torch.backends.cudnn.conv
    before, conv.fp32_precision = conv.fp32_precision, value
    try:
        with full_precision(torch.device("cpu")):
            assert settings() == ("ieee", False, True)
        assert conv.fp32_precision == value
    finally:
        conv.fp32_precision = before
    assert torch.backends.cudnn.allow_tf32 == (before == "tf32")


@pytest.mark.parametrize(
    "wrong",
    [torch.zeros(1, 3, 8, 8), torch.zeros(3, 8, 8, dtype=torch.uint8), torch.zeros(1, 1, 8, 8, dtype=torch.uint8)],
)
def test_other_images_are_refused(extractor, wrong):
    with pytest.raises(ValueError, match=r"images must be uint8 \(B, 3, H, W\), got torch"):
        extractor(wrong)


def test_an_extractor_that_is_not_whole_is_not_built_and_one_without_positions_says_so():
    with pytest.raises(TypeError, match="see"):
        type("Half", (FeatureExtractor,), {"prepare": Small.prepare})()
    with pytest.raises(ValueError, match="gives no features of positions"):
        Small().local(torch.zeros(1, 3, 8, 8, dtype=torch.uint8))
