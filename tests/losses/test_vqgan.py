"""The loss of VQGAN is what the formulas say, in value and in every gradient."""

import copy

import pytest
import torch

from pqdiff.losses import PerceptualLoss, VQGANLoss
from tests.losses.support import gradients, networks, photos, plain_generator_loss


@pytest.fixture(scope="module")
def perceptual(vgg_file, vgg_digest):
    return PerceptualLoss(vgg_file, sha256=vgg_digest)


def run_generator(loss_function, autoencoder, images, step=1, adaptive=True):
    reconstructions, quantizer_loss = autoencoder(images)
    last_layer = autoencoder.conv_out.weight if adaptive else None
    return loss_function.generator(images, reconstructions, quantizer_loss, last_layer, step)


def assert_same(ours: dict, theirs: dict, **tolerance):
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert tensor.abs().max() > 0, name
        torch.testing.assert_close(ours[name], tensor, msg=lambda text, name=name: f"{name}: {text}", **tolerance)


@pytest.mark.parametrize("norm", ["batch", "none"])
@pytest.mark.parametrize("with_lpips", [False, True])
def test_generator_loss_and_its_gradients_are_those_of_the_formula(perceptual, norm, with_lpips):
    autoencoder, discriminator = networks(norm)
    reference, judge = copy.deepcopy(autoencoder), copy.deepcopy(discriminator)
    images, network = photos(), perceptual if with_lpips else None
    x, quantizer_loss = reference(images)
    expected, weight = plain_generator_loss(images, x, quantizer_loss, reference.conv_out.weight, judge, network)
    expected.backward()

    function = VQGANLoss(discriminator, network, perceptual_weight=float(with_lpips))
    loss, logs = run_generator(function, autoencoder, images)
    loss.backward()
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(logs["disc_weight"], weight)
    assert_same(gradients(autoencoder), gradients(reference), rtol=1e-4, atol=1e-7)
    for name, tensor in judge.state_dict().items():  # running statistics saw the reconstructions once
        torch.testing.assert_close(discriminator.state_dict()[name], tensor)


def test_every_part_has_its_weight(perceptual):
    """Against formulas in double precision where there are any, with numbers that are not the defaults."""
    autoencoder, discriminator = networks()
    images = photos()
    x, quantizer_loss = autoencoder(images)
    function = VQGANLoss(
        discriminator, perceptual, l1_weight=0.3, l2_weight=5.0, perceptual_weight=0.2, quantizer_weight=7.0
    )
    loss, logs = function.generator(images, x, quantizer_loss, None, 1)
    error = (x - images).detach().double()
    lpips = perceptual(images, x).detach().double().mean()
    nll = 0.3 * error.abs().mean() + 5 * error.square().mean() + 0.2 * lpips
    adversarial = -copy.deepcopy(discriminator)(x).double().mean()
    parts = {
        "l1_loss": error.abs().mean(),
        "l2_loss": error.square().mean(),
        "lpips_vgg": lpips,
        "nll": nll,
        "generator_loss": adversarial,
        "quantizer_loss": quantizer_loss.double(),
        "disc_weight": torch.tensor(0.8),
        "loss": nll + 0.8 * adversarial + 7 * quantizer_loss.double(),
    }
    assert logs.keys() == parts.keys()
    for name, value in parts.items():
        assert logs[name].item() == pytest.approx(value.item(), rel=1e-5), name
        assert not logs[name].requires_grad
    assert loss.item() == logs["loss"].item()


def test_loss_is_the_mean_of_its_images():
    """A sum, or a mean over pixels but not images, would make it depend on batch size and resolution."""
    autoencoder, _ = networks()
    images = photos(1)
    function = VQGANLoss(None, perceptual_weight=0)
    one, _ = run_generator(function, autoencoder, images)
    many, _ = run_generator(function, autoencoder, images.expand(3, -1, -1, -1))
    torch.testing.assert_close(one, many)
    assert one.item() == pytest.approx(
        (autoencoder(images)[0] - images).abs().mean().item() + autoencoder(images)[1].item()
    )


@pytest.mark.parametrize("kind", ["hinge", "vanilla"])
def test_discriminator_loss_and_its_gradients_are_those_of_the_formula(kind):
    autoencoder, discriminator = networks()
    judge = copy.deepcopy(discriminator)
    images = photos()
    x = autoencoder(images)[0]
    real, fake = judge(images), judge(x.detach())
    if kind == "hinge":
        assert 0 < (real < 1).float().mean() < 1  # both sides of the hinge
        expected = 0.5 * (torch.relu(1 - real).mean() + torch.relu(1 + fake).mean())
    else:
        expected = 0.5 * (-torch.sigmoid(real).log().mean() - (1 - torch.sigmoid(fake)).log().mean())
    expected.backward()

    function = VQGANLoss(discriminator, perceptual_weight=0, disc_loss=kind)
    loss, logs = function.discriminator(images, x, step=1)
    loss.backward()
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(logs["disc_loss"], expected.detach())
    torch.testing.assert_close(logs["logits_real"], real.mean().detach())
    torch.testing.assert_close(logs["logits_fake"], fake.mean().detach())
    assert_same(gradients(discriminator), gradients(judge), rtol=1e-4, atol=1e-7)
    assert all(parameter.grad is None for parameter in autoencoder.parameters())


def test_each_part_trains_its_own_network_alone():
    """The generator's pass must not leave gradients in the discriminator, least of all under accumulation."""
    autoencoder, discriminator = networks()
    images = photos()
    function = VQGANLoss(discriminator, perceptual_weight=0)
    run_generator(function, autoencoder, images)[0].backward()
    assert all(parameter.grad is None for parameter in discriminator.parameters())
    assert all(parameter.requires_grad for parameter in discriminator.parameters())
    before = gradients(autoencoder)
    function.discriminator(images, autoencoder(images)[0], 1)[0].backward()
    assert all(torch.equal(tensor, before[name]) for name, tensor in gradients(autoencoder).items())


def test_parameters_frozen_by_others_stay_frozen():
    autoencoder, discriminator = networks()
    discriminator.main[0].requires_grad_(False)
    run_generator(VQGANLoss(discriminator, perceptual_weight=0), autoencoder, photos())
    assert not any(parameter.requires_grad for parameter in discriminator.main[0].parameters())
    assert all(parameter.requires_grad for parameter in discriminator.main[2].parameters())


@pytest.mark.parametrize("order", ["generator first", "both forward first"])
def test_one_forward_pass_serves_both_optimizers_and_both_learn(order):
    autoencoder, discriminator = networks()
    function = VQGANLoss(discriminator, perceptual_weight=0)
    images, calls = photos(), []
    autoencoder.register_forward_hook(lambda *_: calls.append(1))
    before = [copy.deepcopy(network.state_dict()) for network in (autoencoder, discriminator)]
    optimizers = [torch.optim.Adam(n.parameters(), 1e-3, betas=(0.5, 0.9)) for n in (autoencoder, discriminator)]

    x, quantizer_loss = autoencoder(images)
    loss, _ = function.generator(images, x, quantizer_loss, autoencoder.conv_out.weight, 1)
    if order == "generator first":
        loss.backward()
        optimizers[0].step()
        function.discriminator(images, x, 1)[0].backward()
        optimizers[1].step()
    else:
        judged, _ = function.discriminator(images, x, 1)
        loss.backward()
        judged.backward()
        [optimizer.step() for optimizer in optimizers]
    assert len(calls) == 1
    for network, old in zip((autoencoder, discriminator), before, strict=True):
        assert all(not torch.equal(parameter, old[name]) for name, parameter in network.named_parameters())


@pytest.mark.parametrize(("scale", "expected"), [(1e7, 0.0), (1e-8, 0.8e4)], ids=["strong", "vanishing"])
def test_adaptive_weight_is_small_for_strong_and_bounded_for_vanishing_gradients(scale, expected):
    autoencoder, discriminator = networks("none")
    with torch.no_grad():
        discriminator.main[-1].weight *= scale
    function = VQGANLoss(discriminator, perceptual_weight=0, l1_weight=1e3)
    _, logs = run_generator(function, autoencoder, photos())
    assert logs["disc_weight"].item() == pytest.approx(expected, abs=1e-3)


def test_quantizer_loss_is_not_in_the_ratio():
    autoencoder, discriminator = networks()
    function = VQGANLoss(discriminator, perceptual_weight=0)
    x, _ = autoencoder(photos())
    weights = [
        function.generator(photos(), x, factor * autoencoder.conv_out.weight.sum(), autoencoder.conv_out.weight, 1)[1]
        for factor in (0, 1000)
    ]
    assert torch.equal(weights[0]["disc_weight"], weights[1]["disc_weight"])


def test_before_disc_start_the_discriminator_is_not_asked():
    autoencoder, discriminator = networks()
    calls = []
    discriminator.register_forward_hook(lambda *_: calls.append(1))
    function = VQGANLoss(discriminator, perceptual_weight=0, disc_start=3, disc_pretrain_steps=1)
    images = photos()
    for step in range(5):
        loss, logs = run_generator(function, autoencoder, images, step)
        assert (logs["disc_weight"] > 0) == (step >= 3)
        assert (logs["generator_loss"] != 0) == (step >= 3)
        assert len(calls) == max(0, step - 2)
        loss.backward()
    alone, _ = run_generator(VQGANLoss(None, perceptual_weight=0), autoencoder, images)
    early, _ = run_generator(function, autoencoder, images, 2)
    assert torch.equal(alone, early)


def test_the_discriminator_may_start_earlier_than_its_influence():
    """And before that its loss is 0 with a graph, which wrappers for several processes need."""
    autoencoder, discriminator = networks()
    function = VQGANLoss(discriminator, perceptual_weight=0, disc_start=3, disc_pretrain_steps=1)
    images = photos()
    for step in range(4):
        loss, logs = function.discriminator(images, autoencoder(images)[0], step)
        assert (function.discriminator_factor(step) > 0) == (step >= 2)
        assert (loss.item() > 0) == (step >= 2)
        assert logs["disc_loss"] > 0
        discriminator.zero_grad()
        loss.backward()
        assert (discriminator.main[0].weight.grad.abs().max() > 0) == (step >= 2)


def test_the_schedule_of_the_official_configurations():
    """Their counter goes up twice per batch: before it 2b for the autoencoder, 2b + 1 for the discriminator."""
    _, discriminator = networks()
    function = VQGANLoss(discriminator, perceptual_weight=0, disc_start=1, disc_pretrain_steps=1)
    for batch in range(3):
        assert function.generator_factor(batch) == float(2 * batch >= 1)
        assert function.discriminator_factor(batch) == float(2 * batch + 1 >= 1)


def test_validation_needs_no_gradients_and_leaves_no_traces():
    autoencoder, discriminator = networks()
    discriminator.eval()
    function = VQGANLoss(discriminator, perceptual_weight=0)
    before = copy.deepcopy(discriminator.state_dict())
    images = photos()
    with torch.no_grad():
        loss, logs = run_generator(function, autoencoder, images)
        judged, _ = function.discriminator(images, autoencoder(images)[0], 1)
        expected = (autoencoder(images)[0] - images).abs().mean() + autoencoder(images)[1]
        assert logs["generator_loss"] == -discriminator(autoencoder(images)[0]).mean()
    torch.testing.assert_close(loss, expected)
    assert logs["disc_weight"] == 0
    assert not loss.requires_grad
    assert not judged.requires_grad
    assert all(torch.equal(tensor, before[name]) for name, tensor in discriminator.state_dict().items())


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 0.03), (torch.float16, 0.01)])
def test_half_precision_loses_neither_weight_nor_gradients(dtype, tolerance):
    """L1's gradient per value is here 1e-4 / 12288, as for 4,000 images of 512 px: fp16 rounds it to zero."""
    autoencoder, discriminator = networks("none")
    images = photos()
    function = VQGANLoss(discriminator, perceptual_weight=0, l1_weight=1e-4)
    assert torch.tensor(1e-4 / images.numel()).half() == 0
    full, full_logs = run_generator(function, autoencoder, images)
    with torch.autocast("cpu", dtype):
        half, logs = run_generator(function, autoencoder, images)
    assert half.dtype == torch.float32
    assert all(value.dtype == torch.float32 for value in logs.values())
    assert logs["disc_weight"].item() == pytest.approx(full_logs["disc_weight"].item(), rel=tolerance)
    assert half.item() == pytest.approx(full.item(), rel=tolerance)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 0.03), (torch.float16, 0.01)])
def test_autocast_gradients_follow_those_in_full_precision(dtype, tolerance):
    autoencoder, discriminator = networks("none")
    other = copy.deepcopy(autoencoder)
    function = VQGANLoss(discriminator, perceptual_weight=0)
    run_generator(function, autoencoder, photos())[0].backward()
    with torch.autocast("cpu", dtype):
        loss, _ = run_generator(function, other, photos())
        judged, _ = function.discriminator(photos(), other(photos())[0], 1)
    loss.backward()
    judged.backward()
    assert judged.dtype == torch.float32
    for name, gradient in gradients(autoencoder).items():
        difference = gradients(other)[name] - gradient
        assert difference.norm() < tolerance * gradient.norm(), name


def test_accumulated_gradients_are_the_mean_of_the_parts():
    autoencoder, discriminator = networks("none")
    function = VQGANLoss(discriminator, perceptual_weight=0)
    parts = []
    for images in photos().split(2):
        autoencoder.zero_grad()
        run_generator(function, autoencoder, images)[0].backward()
        parts.append(gradients(autoencoder))
    autoencoder.zero_grad()
    for images in photos().split(2):
        (run_generator(function, autoencoder, images)[0] / 2).backward()
        function.discriminator(images, autoencoder(images)[0], 1)[0].backward()
    for name, gradient in gradients(autoencoder).items():
        torch.testing.assert_close(gradient, (parts[0][name] + parts[1][name]) / 2)


def test_a_reconstruction_that_is_no_number_shows_in_the_loss():
    autoencoder, discriminator = networks()
    images = photos()
    images[0, 0, 0, 0] = float("nan")
    loss, _ = run_generator(VQGANLoss(discriminator, perceptual_weight=0), autoencoder, images)
    assert loss.isnan()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"perceptual_weight": 1.0}, r"perceptual_weight \(1.0\) needs a PerceptualLoss; give one, or set it to 0"),
        ({"l1_weight": 0}, "l1_weight, l2_weight, perceptual_weight and ssimulacra2_weight are all 0"),
        ({"disc_loss": "wasserstein"}, r"disc_loss \('wasserstein'\) does not exist: choose one of hinge, vanilla"),
        ({"disc_weight": -0.1}, r"disc_weight \(-0.1\) must not be negative"),
        ({"l2_weight": float("nan")}, r"l2_weight \(nan\) must not be negative"),
    ],
)
def test_arguments_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        VQGANLoss(None, **{"perceptual_weight": 0, **options})


def test_what_cannot_be_is_refused():
    autoencoder, discriminator = networks()
    function, images = VQGANLoss(discriminator, perceptual_weight=0), photos()
    x, quantizer_loss = autoencoder(images)
    with pytest.raises(ValueError, match=r"images \(4, 3, 32, 32\) and reconstructions \(3, 3, 32, 32\)"):
        function.generator(images, x[:3], quantizer_loss, None, 1)
    with pytest.raises(ValueError, match=r"images \(4, 3, 32, 32\) and reconstructions \(3, 3, 32, 32\)"):
        function.discriminator(images, x[:3], 1)
    with pytest.raises(ValueError, match="last_layer did not take part in the reconstructions"):
        function.generator(images, x, quantizer_loss, discriminator.main[0].weight, 1)
    with pytest.raises(ValueError, match="last_layer is frozen"):
        function.generator(images, x, quantizer_loss, autoencoder.conv_out.weight.detach(), 1)
    with pytest.raises(ValueError, match="network is None: give VQGANLoss a discriminator"):
        VQGANLoss(None, perceptual_weight=0).discriminator(images, x, 1)
    discriminator.eval()
    for call in (lambda: run_generator(function, autoencoder, images), lambda: function.discriminator(images, x, 1)):
        with pytest.raises(ValueError, match=r"in eval mode, as after from_pretrained: call .train\(\)"):
            call()
