"""The closed forms of conv_in and conv_out against dense solutions and against training."""

import pytest
import torch
import torch.nn.functional as F
from diffusers import UNet2DConditionModel

from pqdiff.adaptation import regression as unet_regression
from pqdiff.adaptation.regression import ConvInRegression, ConvOutRegression, RidgeEquations
from pqdiff.adaptation.widen import widen_unet

from .unets import OLD, call_inputs, old_unet

NEW = 12


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def mix(weight: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
    return torch.einsum("cd,bdhw->bchw", weight, latents)


def pairs() -> tuple[torch.Tensor, torch.Tensor]:
    """New latents (6, NEW, 8, 8) with correlated, shifted channels, and old ones that depend on them and on noise."""
    new = mix(normal(NEW, NEW, seed=1) * torch.linspace(0.3, 2, NEW), normal(6, NEW, 8, 8)) + 0.5
    return new, mix(normal(OLD, NEW, seed=2), new) + normal(6, OLD, 8, 8, seed=3) - 2


def rows(latents: torch.Tensor) -> torch.Tensor:
    """Channels last and one position per row: (B, C, ...) -> (n, C)."""
    return latents.movedim(1, -1).flatten(0, -2).double()


def dense_ridge(features, targets, ridge, weights=None) -> tuple[torch.Tensor, torch.Tensor]:
    """Centered ridge regression as an ordinary least-squares problem with more rows."""
    weights = features.new_ones(len(features)) if weights is None else weights.double()
    share = (weights / weights.sum())[:, None]
    mean_x, mean_y = (share * features).sum(dim=0), (share * targets).sum(dim=0)
    x, y = ((t - m) * share.sqrt() for t, m in ((features, mean_x), (targets, mean_y)))
    penalty = (ridge * x.square().sum(dim=0).mean()).sqrt() * torch.eye(x.shape[1], dtype=x.dtype)
    right = torch.cat([y, y.new_zeros(len(penalty), y.shape[1])])
    weight = torch.linalg.lstsq(torch.cat([x, penalty]), right).solution.T
    return weight, mean_y - weight @ mean_x


@pytest.mark.parametrize("ridge", [0, 1e-3, 1])
def test_conv_in_equals_a_dense_solve_however_the_data_is_cut(ridge, monkeypatch):
    monkeypatch.setattr(unet_regression, "_CHUNK_ELEMENTS", 1000)
    new, old = pairs()
    regression = ConvInRegression(NEW, OLD)
    for part in ((new[:1], old[:1]), (new[1:], old[1:])):
        regression.update(*part)
    weight, bias = regression.solve(ridge)
    assert weight.dtype == bias.dtype == torch.float32
    expected = dense_ridge(rows(new), rows(old), ridge)
    torch.testing.assert_close((weight.double(), bias.double()), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_conv_in_takes_half_precision(dtype):
    new, old = (latents.to(dtype) for latents in pairs())
    regression = ConvInRegression(NEW, OLD)
    regression.update(new, old)
    weight, bias = regression.solve()
    expected = dense_ridge(rows(new), rows(old), 1e-3)
    torch.testing.assert_close((weight.double(), bias.double()), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("preserve_noise", [False, True])
def test_the_old_activations_return_if_the_old_latents_are_hidden_in_the_new_ones(preserve_noise):
    old, mixing = normal(4, OLD, 8, 8, seed=3), normal(NEW, NEW, seed=4)
    if preserve_noise:  # then neither signal nor noise may be scaled by the way there
        mixing = torch.linalg.qr(mixing)[0]
    new = mix(mixing, torch.cat([old, normal(4, NEW - OLD, 8, 8)], dim=1))
    regression = ConvInRegression(NEW, OLD)
    regression.update(new, old)
    unet = widen_unet(old_unet(), NEW, "lstsq", regression.solve(ridge=0), preserve_noise=preserve_noise)
    with torch.no_grad():
        torch.testing.assert_close(unet.conv_in(new), old_unet().conv_in(old), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "shapes", [((2, NEW, 8, 8), (2, OLD, 16, 16)), ((2, NEW, 8, 8), (1, OLD, 8, 8)), ((2, OLD, 8, 8), (2, OLD, 8, 8))]
)
def test_pairs_that_do_not_fit_are_an_error(shapes):
    with pytest.raises(ValueError, match=r"must be \(B, 12, h, w\) and \(B, 4, h, w\) on the same grid"):
        ConvInRegression(NEW, OLD).update(*map(torch.zeros, shapes))


def test_too_little_data_is_an_error():
    regression = ConvInRegression(NEW, OLD)
    with pytest.raises(ValueError, match="call update with data first"):
        regression.solve()
    regression.update(torch.ones(1, NEW, 2, 2), torch.ones(1, OLD, 2, 2))
    with pytest.raises(ValueError, match=r"12 features cannot be told apart.*raise ridge"):
        regression.solve()


def test_a_negative_ridge_and_values_that_are_not_finite_are_errors():
    equations = RidgeEquations(2, 1)
    with pytest.raises(ValueError, match="NaN or infinity"):
        equations.update(torch.tensor([[1.0, torch.inf]]), torch.ones(1, 1))
    equations.update(normal(9, 2), normal(9, 1))
    with pytest.raises(ValueError, match=r"ridge \(-1\) must be at least 0"):
        equations.solve(-1)


def batches(unet: UNet2DConditionModel, count: int = 3) -> list[dict]:
    """Arguments for `ConvOutRegression.update`, with targets that the inputs tell something about."""
    result = []
    for seed in range(count):
        inputs = call_inputs(unet, batch=4, seed=seed)
        channels = unet.config.out_channels
        shift = torch.linspace(-1, 1, channels, dtype=unet.dtype).view(-1, 1, 1)
        inputs["target"] = inputs["sample"][:, :channels].roll(1, dims=3) + shift
        result.append({"noisy_latents": inputs.pop("sample"), "timesteps": inputs.pop("timestep"), **inputs})
    return result


def predict(unet: UNet2DConditionModel, batch: dict) -> torch.Tensor:
    with torch.no_grad():
        return unet(batch["noisy_latents"].to(unet.dtype), batch["timesteps"], batch["encoder_hidden_states"]).sample


def last_activations(unet: UNet2DConditionModel, batch: dict) -> torch.Tensor:
    """What conv_out receives, from a UNet that has none."""
    conv, unet.conv_out = unet.conv_out, torch.nn.Identity()
    try:
        return predict(unet, batch)
    finally:
        unet.conv_out = conv


def solve(unet: UNet2DConditionModel, data: list[dict], ridge: float, weights=None) -> UNet2DConditionModel:
    regression = ConvOutRegression(unet)
    for batch, weight in zip(data, weights or [None] * len(data), strict=True):
        regression.update(**batch, weights=weight)
    regression.solve(ridge)
    return unet


def mean_loss(predictions, data: list[dict]) -> torch.Tensor:
    errors = [F.mse_loss(p.float(), batch["target"].float()) for p, batch in zip(predictions, data, strict=True)]
    return torch.stack(errors).mean()


@pytest.mark.parametrize("config", [{}, {"in_channels": 2 * OLD + 1}, {"conv_out_kernel": 1}])
@pytest.mark.parametrize("ridge", [0, 1e-2])
@pytest.mark.parametrize("chunk", [None, 20_000, 1])  # all of it, some samples, single rows of a sample
def test_conv_out_equals_a_dense_solve_of_what_the_convolution_sees(config, ridge, chunk, monkeypatch):
    if chunk:
        monkeypatch.setattr(unet_regression, "_CHUNK_ELEMENTS", chunk)
    unet = widen_unet(old_unet(**config), NEW)
    data = batches(unet)
    kernel, padding = unet.conv_out.kernel_size, unet.conv_out.padding
    features = torch.cat([rows(F.unfold(last_activations(unet, batch), kernel, padding=padding)) for batch in data])
    weights = [torch.tensor([0.5, 1.0, 0.0, 3.0]), torch.ones(4), torch.tensor([1.0, 2.0, 1.0, 2.0])]
    per_row = torch.cat(weights).repeat_interleave(data[0]["target"][0, 0].numel())
    weight, bias = dense_ridge(features, torch.cat([rows(batch["target"]) for batch in data]), ridge, per_row)
    conv = solve(unet, data, ridge, weights).conv_out
    torch.testing.assert_close(conv.weight.flatten(1).double(), weight, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(conv.bias.double(), bias, rtol=1e-3, atol=1e-4)


def test_conv_out_leaves_nothing_for_training_to_improve():
    trained = widen_unet(old_unet(), NEW)
    data = batches(trained)
    hidden = [last_activations(trained, batch) for batch in data]
    optimizer = torch.optim.LBFGS(trained.conv_out.parameters(), max_iter=300, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = mean_loss(map(trained.conv_out, hidden), data)
        loss.backward()
        return loss

    start = closure().item()
    optimizer.step(closure)
    end = closure().item()
    assert end < 0.9 * start

    unet = solve(widen_unet(old_unet(), NEW), data, ridge=0)
    loss = mean_loss(map(unet.conv_out, hidden), data)
    loss.backward()
    assert loss.item() <= end * (1 + 1e-6)
    assert max(parameter.grad.abs().max() for parameter in unet.conv_out.parameters()) < 1e-6
    whole = mean_loss([predict(unet, batch) for batch in data], data)
    torch.testing.assert_close(whole, loss.detach())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_conv_out_of_a_unet_in_half_precision_is_as_good(dtype):
    losses = []
    for unet in (old_unet(), old_unet().to(dtype)):
        data = batches(widen_unet(unet, NEW))
        for batch in data:  # trainers make these in fp32
            batch["noisy_latents"], batch["target"] = batch["noisy_latents"].float(), batch["target"].float()
        before = unet.dtype
        solve(unet, data, ridge=1e-4)
        assert {parameter.dtype for parameter in unet.parameters()} == {before}
        losses.append(float(mean_loss([predict(unet, batch) for batch in data], data)))
    assert losses[1] == pytest.approx(losses[0], rel=0.02)


def test_solving_leaves_no_gradients_or_hooks_and_the_same_parameters():
    unet = widen_unet(old_unet(), NEW)
    parameters = list(unet.parameters())
    solve(unet, batches(unet), ridge=1e-4)
    assert all(p is q and p.grad is None for p, q in zip(unet.parameters(), parameters, strict=True))
    assert all(parameter.requires_grad for parameter in parameters)
    assert not unet.conv_out._forward_pre_hooks


def test_a_failing_unet_leaves_no_hook():
    unet = widen_unet(old_unet(), NEW)
    batch = batches(unet, 1)[0]
    with pytest.raises(RuntimeError):
        ConvOutRegression(unet).update(**{**batch, "encoder_hidden_states": torch.zeros(4, 3, 5)})
    assert not unet.conv_out._forward_pre_hooks


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"target": torch.zeros(4, OLD, 8, 10)}, r"target has shape \(4, 4, 8, 10\), .* gives \(4, 12, 8, 10\)"),
        ({"weights": torch.ones(4, 1)}, r"weights \(4, 1\) must be \(4,\)"),
        ({"weights": torch.tensor([1.0, 1, 1, -1])}, "not negative"),
        ({"target": torch.full((4, NEW, 8, 10), torch.nan)}, "NaN or infinity"),
    ],
)
def test_batches_that_do_not_fit_are_an_error(changed, message):
    unet = widen_unet(old_unet(), NEW)
    with pytest.raises(ValueError, match=message):
        ConvOutRegression(unet).update(**{**batches(unet, 1)[0], **changed})


def test_conv_out_under_an_adapter_is_an_error():
    peft = pytest.importorskip("peft")
    unet = widen_unet(old_unet(), NEW)
    unet.add_adapter(peft.LoraConfig(r=2, target_modules=["conv_out"]))
    with pytest.raises(ValueError, match=r"unet.conv_out \(peft.*before LoRA"):
        ConvOutRegression(unet)
