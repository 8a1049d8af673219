"""Widened UNets: what each start does to the signal, that stock diffusers keeps them, and what is trained."""

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import nn

from pqdiff.adaptation.widen import (
    WIDENING_INITS,
    backbone_parameters,
    projection_parameters,
    set_trainable,
    widen_unet,
)

from .unets import OLD, SDXL, call_inputs, old_unet

NEW = 32
RATIO = NEW // OLD
INPAINTING = {"in_channels": 2 * OLD + 1}


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def transparent_unet() -> UNet2DConditionModel:
    """conv_out after conv_in gives back the old channels: an ideal model of pure noise, and a window to its input."""
    unet = old_unet()
    with torch.no_grad():
        for conv in (unet.conv_in, unet.conv_out):
            conv.weight.zero_()
            conv.bias.zero_()
            conv.weight[range(OLD), range(OLD), 1, 1] = 1
    return unet


def white_noise(channels: int = NEW, batch: int = 64, seed: int = 0) -> torch.Tensor:
    return torch.randn(batch, channels, 16, 16, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def noise_loss(unet: UNet2DConditionModel) -> float:
    """Error of predicting pure noise with the projections alone."""
    noise = white_noise(unet.config.in_channels)
    return (unet.conv_out(unet.conv_in(noise)) - noise).square().mean().item()


@pytest.mark.parametrize("config", [{}, SDXL, INPAINTING, {"conv_in_kernel": 1, "conv_out_kernel": 5}])
def test_a_widened_unet_is_the_same_object_and_runs(config):
    unet = old_unet(**config)
    backbone = {name: p.clone() for name, p in unet.named_parameters() if not name.startswith(("conv_in", "conv_out"))}
    assert widen_unet(unet, NEW) is unet
    inputs = call_inputs(unet)
    assert inputs["sample"].shape[1] == (2 * NEW + 1 if config is INPAINTING else NEW)
    with torch.no_grad():
        output = unet(**inputs).sample
    assert output.shape[1] == NEW
    assert output.isfinite().all()
    parameters = dict(unet.named_parameters())
    assert all(torch.equal(parameters[name], value) for name, value in backbone.items())


@pytest.mark.parametrize("init", [*WIDENING_INITS, "lstsq"])
@pytest.mark.parametrize("config", [{}, SDXL, INPAINTING])
def test_stock_diffusers_loads_what_was_saved_bit_for_bit(init, config, tmp_path):
    conv_in_map = (torch.randn(OLD, NEW), torch.randn(OLD)) if init == "lstsq" else None
    unet = widen_unet(old_unet(**config), NEW, init, conv_in_map)
    unet.save_pretrained(tmp_path)
    loaded = UNet2DConditionModel.from_pretrained(tmp_path)
    assert loaded.config.in_channels == (2 * NEW + 1 if config is INPAINTING else NEW)
    assert loaded.config.out_channels == NEW
    states = unet.state_dict(), loaded.state_dict()
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    with torch.no_grad():
        assert torch.equal(unet(**call_inputs(unet)).sample, loaded(**call_inputs(loaded)).sample)


@pytest.mark.parametrize("omitted", [(), ("in_channels", "out_channels")])
def test_from_config_builds_the_widened_unet(omitted):
    config = {name: value for name, value in old_unet().config.items() if name not in omitted}
    unet = widen_unet(UNet2DConditionModel.from_config(config), NEW)
    assert (unet.config.in_channels, unet.config.out_channels) == (NEW, NEW)
    rebuilt = UNet2DConditionModel.from_config(unet.config)
    rebuilt.load_state_dict(unet.state_dict())
    assert rebuilt.config.in_channels == rebuilt.config.out_channels == NEW
    assert rebuilt.config.block_out_channels == (8, 16)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtype_flags_and_hooks_of_the_projections_stay(dtype):
    unet = old_unet().to(dtype)
    unet.conv_in.weight.requires_grad_(False)
    calls = []
    unet.conv_in.register_forward_hook(lambda *_: calls.append(1))
    widen_unet(unet, NEW)
    assert {p.dtype for p in unet.parameters()} == {dtype}
    assert [p.requires_grad for p in unet.conv_in.parameters()] == [False, True]
    assert unet.conv_in.weight.is_contiguous()
    with torch.no_grad():
        assert unet(**call_inputs(unet)).sample.dtype == dtype
    assert calls == [1]


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize("new", [OLD, 10, NEW, 3])
def test_copy_repeats_the_old_weights_exactly(dtype, new):
    old = old_unet().to(dtype)
    unet = widen_unet(old_unet().to(dtype), new, "copy")
    for j in range(new):
        assert torch.equal(unet.conv_in.weight[:, j], old.conv_in.weight[:, j % OLD])
        assert torch.equal(unet.conv_out.weight[j], old.conv_out.weight[j % OLD])
        assert torch.equal(unet.conv_out.bias[j], old.conv_out.bias[j % OLD])
    assert torch.equal(unet.conv_in.bias, old.conv_in.bias)


def test_widening_to_the_old_number_of_channels_changes_nothing():
    inputs = call_inputs(old_unet())
    with torch.no_grad():
        expected = old_unet()(**inputs).sample
        for init in ("variance", "copy", "mmse"):
            torch.testing.assert_close(widen_unet(old_unet(), OLD, init)(**inputs).sample, expected)


@pytest.mark.parametrize(("init", "ratio"), [("copy", RATIO), ("variance", 1), ("mmse", 1), ("zero", 1)])
def test_variance_after_conv_in_relative_to_the_old_one(init, ratio):
    old, unet = old_unet(), widen_unet(old_unet(), NEW, init)
    with torch.no_grad():
        before = old.conv_in(white_noise(OLD)).var(dim=(0, 2, 3))
        after = unet.conv_in(white_noise(NEW, seed=1)).var(dim=(0, 2, 3))
    torch.testing.assert_close(after / before, torch.full_like(before, ratio), rtol=0.05, atol=0)


def test_variance_keeps_the_old_covariance_when_channels_do_not_divide():
    old, unet = old_unet(), widen_unet(old_unet(), 10)

    def covariance(conv: nn.Conv2d) -> torch.Tensor:
        """Of the outputs in one position, for independent inputs of unit variance."""
        return torch.einsum("oikl,pikl->op", conv.weight, conv.weight)

    torch.testing.assert_close(covariance(unet.conv_in), covariance(old.conv_in))


def test_variance_keeps_the_total_over_fewer_channels_on_average():
    unet = widen_unet(transparent_unet(), 2)
    with torch.no_grad():
        seen = unet.conv_in(white_noise(2))[:, :OLD].var(dim=(0, 2, 3))
    torch.testing.assert_close(seen, torch.tensor([2.0, 2.0, 0.0, 0.0]), rtol=0.05, atol=0)


@pytest.mark.parametrize(
    ("init", "loss"),
    [("copy", RATIO - 1), ("variance", 2 - 2 / RATIO**0.5), ("mmse", 1 - 1 / RATIO), ("zero", 1)],
)
def test_loss_of_each_copy_on_pure_noise_with_an_ideal_backbone(init, loss):
    assert noise_loss(widen_unet(transparent_unet(), NEW, init)) == pytest.approx(loss, rel=0.02)


def test_mmse_is_variance_with_smaller_answers():
    inputs = call_inputs(widen_unet(old_unet(), NEW))
    with torch.no_grad():
        larger, smaller = (widen_unet(old_unet(), NEW, init)(**inputs).sample for init in ("variance", "mmse"))
    torch.testing.assert_close(smaller, larger / RATIO**0.5)


@pytest.mark.parametrize("preserve_noise", [True, False])
def test_lstsq_on_pure_noise_is_as_good_as_any_map_through_the_old_channels(preserve_noise):
    weight = torch.randn(OLD, NEW) + 2 * torch.randn(NEW)  # strongly correlated rows
    unet = widen_unet(transparent_unet(), NEW, "lstsq", (weight, torch.zeros(OLD)), preserve_noise)
    assert noise_loss(unet) == pytest.approx(1 - OLD / NEW, rel=0.02)


def test_lstsq_stands_before_the_old_conv_in():
    old = old_unet()
    weight, bias = torch.randn(OLD, NEW), torch.randn(OLD)
    unet = widen_unet(old_unet(), NEW, "lstsq", (weight, bias), preserve_noise=False)
    latents = white_noise(batch=2)
    with torch.no_grad():
        expected = old.conv_in(torch.einsum("cd,bdhw->bchw", weight, latents) + bias.view(-1, 1, 1))
        result = unet.conv_in(latents)
    inside = (..., slice(1, -1), slice(1, -1))
    torch.testing.assert_close(result[inside], expected[inside], rtol=1e-4, atol=1e-4)


def test_lstsq_gives_the_old_channels_noise_of_unit_variance_and_their_mean():
    weight = torch.randn(OLD, NEW) * torch.tensor([[0.01], [0.3], [1.0], [20.0]])
    bias = torch.tensor([1.0, -2.0, 0.5, 0.0])
    unet = widen_unet(transparent_unet(), NEW, "lstsq", (weight, bias))
    with torch.no_grad():
        seen = unet.conv_in(white_noise())[:, :OLD, 1:-1, 1:-1]
    torch.testing.assert_close(seen.var(dim=(0, 2, 3)), torch.ones(OLD), rtol=0.05, atol=0)
    torch.testing.assert_close(seen.mean(dim=(0, 2, 3)), bias, rtol=0, atol=0.05)


def test_lstsq_survives_old_channels_that_nothing_explains():
    weight = torch.randn(OLD, NEW)
    weight[2] = 0
    unet = widen_unet(old_unet(), NEW, "lstsq", (weight, torch.zeros(OLD)))
    assert all(parameter.isfinite().all() for parameter in projection_parameters(unet))


@pytest.mark.parametrize("init", ["variance", "copy", "mmse", "zero"])
def test_inpainting_widens_both_groups_of_latents_and_keeps_the_mask(init):
    old, unet = old_unet(**INPAINTING), widen_unet(old_unet(**INPAINTING), NEW, init)
    weight, scale = unet.conv_in.weight, 1 if init == "copy" else RATIO**-0.5
    assert weight.shape[1] == 2 * NEW + 1
    assert torch.equal(weight[:, NEW], old.conv_in.weight[:, OLD])
    torch.testing.assert_close(weight[:, :NEW], old.conv_in.weight[:, :OLD].repeat(1, RATIO, 1, 1) * scale)
    torch.testing.assert_close(weight[:, NEW + 1 :], old.conv_in.weight[:, OLD + 1 :].repeat(1, RATIO, 1, 1) * scale)


def test_inpainting_maps_the_masked_image_without_regard_to_noise():
    old = old_unet(**INPAINTING)
    weight, bias = torch.randn(OLD, NEW), torch.randn(OLD)
    unet = widen_unet(old_unet(**INPAINTING), NEW, "lstsq", (weight, bias))
    latents, mask, masked_image = white_noise(batch=2), white_noise(1, batch=2), white_noise(batch=2, seed=1)

    def mapped(x, w):
        return torch.einsum("cd,bdhw->bchw", w, x) + bias.view(-1, 1, 1)

    with torch.no_grad():
        expected = old.conv_in(
            torch.cat(
                [mapped(latents, weight / weight.norm(dim=1, keepdim=True)), mask, mapped(masked_image, weight)], dim=1
            )
        )
        result = unet.conv_in(torch.cat([latents, mask, masked_image], dim=1))
    inside = (..., slice(1, -1), slice(1, -1))
    torch.testing.assert_close(result[inside], expected[inside], rtol=1e-4, atol=1e-4)


def test_widening_uses_no_randomness():
    unet = old_unet()
    before = torch.get_rng_state()
    widen_unet(unet, NEW)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("layer", ["conv_in", "conv_out"])
def test_weights_that_are_not_there_are_an_error_with_the_fix(layer):
    unet = old_unet()
    getattr(unet, layer).to("meta")
    with pytest.raises(ValueError, match=rf"{layer} has no weights \(device meta\).*from_pretrained"):
        widen_unet(unet, NEW)


def test_other_numbers_of_channels_are_named():
    with pytest.raises(ValueError, match="takes 8 channels and gives 4: it must take 4, or 9"):
        widen_unet(old_unet(in_channels=8), NEW)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"latent_channels": 0}, r"latent_channels \(0\)"),
        ({"latent_channels": 8.0}, r"latent_channels \(8.0\)"),
        ({"init": "cpoy"}, r"init \('cpoy'\).*variance, copy, mmse, zero, lstsq"),
        ({"init": "lstsq"}, "needs conv_in_map"),
        ({"conv_in_map": (torch.zeros(OLD, NEW), torch.zeros(OLD))}, "the others take none"),
        (
            {"init": "lstsq", "conv_in_map": (torch.zeros(NEW, OLD), torch.zeros(OLD))},
            r"\[\(32, 4\), \(4,\)\].*\[\(4, 32\), \(4,\)\]",
        ),
        (
            {"init": "lstsq", "conv_in_map": (torch.full((OLD, NEW), torch.nan), torch.zeros(OLD))},
            "conv_in_map holds NaN",
        ),
    ],
)
def test_arguments_that_do_not_fit_are_named_and_change_nothing(arguments, message):
    unet = old_unet()
    with pytest.raises(ValueError, match=message):
        widen_unet(unet, **{"latent_channels": NEW, **arguments})
    assert unet.conv_in.weight.shape[1] == unet.config.in_channels == OLD


def test_a_wrapped_model_is_an_error():
    with pytest.raises(ValueError, match=r"unet \(DataParallel\).*unwrap"):
        widen_unet(nn.DataParallel(old_unet()), NEW)


def test_projections_and_backbone_are_all_the_parameters():
    unet = widen_unet(old_unet(**SDXL), NEW)
    projections, backbone = projection_parameters(unet), backbone_parameters(unet)
    names = {id(parameter): name for name, parameter in unet.named_parameters()}
    assert [names[id(p)] for p in projections] == [
        "conv_in.weight",
        "conv_in.bias",
        "conv_out.weight",
        "conv_out.bias",
    ]
    assert [names[id(p)] for p in backbone] == [name for name in names.values() if not name.startswith("conv_")] + [
        name for name in names.values() if name.startswith("conv_norm")
    ]
    assert sorted(map(id, projections + backbone)) == sorted(names)


def test_switching_what_is_trained_changes_flags_and_nothing_else():
    unet = widen_unet(old_unet(), NEW)
    before = list(unet.parameters())
    for trainable, expected in (("projections", projection_parameters(unet)), ("all", before)):
        set_trainable(unet, trainable)
        assert {id(p) for p in unet.parameters() if p.requires_grad} == {id(p) for p in expected}
        assert all(p is q for p, q in zip(unet.parameters(), before, strict=True))


def test_what_cannot_be_trained_is_an_error():
    with pytest.raises(ValueError, match=r"trainable \('everything'\) must be"):
        set_trainable(old_unet(), "everything")
    with pytest.raises(ValueError, match=r"add_adapter"):
        set_trainable(old_unet(), "lora")


def with_lora(unet: UNet2DConditionModel, *extra_targets: str) -> UNet2DConditionModel:
    peft = pytest.importorskip("peft")
    unet.add_adapter(peft.LoraConfig(r=2, target_modules=["to_q", "to_v", *extra_targets]))
    return unet


def test_lora_on_a_widened_unet_trains_with_the_projections_and_nothing_else():
    unet = with_lora(widen_unet(old_unet(), NEW))
    set_trainable(unet, "lora")
    before = {name: parameter.detach().clone() for name, parameter in unet.named_parameters()}
    optimizer = torch.optim.AdamW(unet.parameters(), lr=1e-3)
    inputs = call_inputs(unet)
    for _ in range(2):  # half of an adapter starts at zero, the other half moves from the second step on
        optimizer.zero_grad()
        unet(**inputs).sample.square().mean().backward()
        optimizer.step()
    changed = {name for name, parameter in unet.named_parameters() if not torch.equal(parameter, before[name])}
    assert changed == {name for name in before if "lora_" in name or name.startswith(("conv_in.", "conv_out."))}
    set_trainable(unet, "projections")
    assert not any(parameter.requires_grad for name, parameter in unet.named_parameters() if "lora_" in name)


def test_lora_on_a_widened_unet_is_saved_and_loaded(tmp_path):
    unet = with_lora(widen_unet(old_unet(), NEW))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in unet.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
    unet.save_lora_adapter(tmp_path)
    loaded = widen_unet(old_unet(), NEW)
    inputs = call_inputs(unet)
    with torch.no_grad():
        plain = loaded(**inputs).sample
        loaded.load_lora_adapter(tmp_path, prefix=None, use_safetensors=True)
        torch.testing.assert_close(loaded(**inputs).sample, unet(**inputs).sample)
        assert not torch.allclose(loaded(**inputs).sample, plain, atol=1e-3)


def test_widening_under_a_lora_adapter_is_an_error():
    unet = with_lora(old_unet(), "conv_in")
    with pytest.raises(ValueError, match=r"unet.conv_in \(peft.*Conv2d\) must be.*unload_lora"):
        widen_unet(unet, NEW)
