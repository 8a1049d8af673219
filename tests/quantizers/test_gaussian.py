"""The Gaussian quantizer: groups, codebook, what training and evaluation give. Search and loss have their own tests."""

import math
import warnings

import pytest
import torch
from torch import nn
from torch.distributions import Normal, kl_divergence

from pqdiff.models.autoencoder_pq import AutoencoderPQ
from pqdiff.quantizers import GaussianQuantizer, build_quantizer, gaussian
from pqdiff.quantizers.gaussian import sobol_codebook

CONFIG = {"codebook_size": 64, "codebook_dim": 2}
TINY = {
    "transform_config": {"block_out_channels": [8, 8], "layers_per_block": 1, "norm_num_groups": 4, "mid_channels": 8},
    "latent_channels": 6,
    "sample_size": 16,
}


def quantizer(**config) -> GaussianQuantizer:
    return build_quantizer("gaussian", 6, {**CONFIG, **config})


def posteriors(*shape) -> torch.Tensor:
    """z of means and log-variances around -2."""
    torch.manual_seed(0)
    mean = torch.randn(*shape)
    return torch.cat([mean, torch.randn_like(mean) - 2], dim=1)


def test_channels_are_two_per_latent_in_and_one_out():
    model = quantizer()
    assert (model.in_channels, model.code_channels, model.latent_channels) == (12, 6, 6)
    assert model.codebook_sizes == (64, 64, 64)
    assert model.bits_per_position == 18


def test_a_torch_that_draws_another_sequence_is_told_of(monkeypatch):
    """The digest is that of the sequence itself: this version passes, and any change is seen."""
    gaussian._warn_if_torch_draws_otherwise.cache_clear()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sobol_codebook(4, 1)
    gaussian._warn_if_torch_draws_otherwise.cache_clear()
    monkeypatch.setattr(gaussian, "_SEED", 43)
    with pytest.warns(UserWarning, match="another Sobol sequence"):
        sobol_codebook(4, 1)
    gaussian._warn_if_torch_draws_otherwise.cache_clear()


@pytest.mark.parametrize(("size", "dim"), [(65536, 16), (4096, 1), (65536, 4)])
def test_codebook_is_finite_normal_and_always_the_same(size, dim):
    torch.manual_seed(1)
    before = torch.get_rng_state()
    codebook = sobol_codebook(size, dim)
    assert torch.equal(torch.get_rng_state(), before)
    assert codebook.dtype == torch.float32
    assert codebook.isfinite().all()
    assert codebook.mean(dim=0).abs().max() < 0.01
    assert (codebook.std(dim=0) - 1).abs().max() < 0.02
    assert torch.equal(sobol_codebook(size, dim), codebook)


def test_codebook_is_saved():
    model = quantizer()
    assert torch.equal(model.state_dict()["codebook"], sobol_codebook(64, 2))
    model.codebook.neg_()  # as if another version of torch had drawn it
    other = quantizer()
    other.load_state_dict(model.state_dict())
    assert torch.equal(other.codebook, -sobol_codebook(64, 2))


@pytest.mark.parametrize(
    ("grouping", "channels"),
    [("strided", [(0, 3), (1, 4), (2, 5)]), ("contiguous", [(0, 1), (2, 3), (4, 5)])],
)
def test_each_token_codes_its_own_channels(grouping, channels):
    model = quantizer(grouping=grouping)
    indices = torch.randint(64, (2, 3, 4, 5))
    codes, z = model.decode(indices), posteriors(2, 6, 4, 5)
    tokens = model.encode(z)
    for group, own in enumerate(channels):
        own = list(own)
        assert torch.equal(codes[:, own].movedim(1, 3), model.codebook[indices[:, group]])
        posterior = Normal(*(x[:, own].double().movedim(1, 3)[..., None, :] for x in (z[:, :6], (z[:, 6:] / 2).exp())))
        c = model.codebook.double()
        scores = (posterior.log_prob(c) - Normal(0.0, 1.0).log_prob(c)).sum(dim=-1)
        assert torch.equal(tokens[:, group], scores.argmax(dim=-1))


def test_training_samples_the_posterior_and_has_no_tokens():
    model, z = quantizer(), posteriors(2, 6, 4, 5).requires_grad_()
    torch.manual_seed(3)
    output = model(z)
    torch.manual_seed(3)
    noise = torch.randn(2, 6, 4, 5)
    torch.testing.assert_close(output.codes, z[:, :6] + (z[:, 6:] / 2).exp() * noise)
    assert output.indices is None
    (gradient,) = torch.autograd.grad(output.codes.sum(), z)
    torch.testing.assert_close(gradient[:, :6], torch.ones(2, 6, 4, 5))
    torch.testing.assert_close(gradient[:, 6:], (z[:, 6:] / 2).exp() * noise / 2)


@pytest.mark.parametrize("grouping", ["strided", "contiguous"])
def test_loss_is_of_the_divergence_in_bits(grouping):
    model, z = quantizer(grouping=grouping, kl_weight=0.3, reduction="sum"), posteriors(2, 6, 4, 5)
    output = model(z)
    bits = kl_divergence(Normal(z[:, :6], (z[:, 6:] / 2).exp()), Normal(0.0, 1.0)) / math.log(2)
    torch.testing.assert_close(output.loss, 0.3 * bits.sum(dim=(1, 2, 3)).mean())  # all controllers are 1
    groups = bits.unflatten(1, (2, 3)).sum(1) if grouping == "strided" else bits.unflatten(1, (3, 2)).sum(2)
    torch.testing.assert_close(output.logs["kl_bits_max"], groups.max())
    assert not any(value.requires_grad for value in output.logs.values())


def test_backward_works_after_the_controllers_have_moved():
    model, z = quantizer(), posteriors(2, 6, 4, 5).requires_grad_()
    loss = sum(model(z).loss for _ in range(3))
    loss.backward()
    assert z.grad.isfinite().all()


def test_evaluation_gives_the_tokens_of_encode_and_moves_nothing():
    model, z = quantizer().eval(), posteriors(2, 6, 4, 5)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    output = model(z)
    assert torch.equal(output.indices, model.encode(z))
    assert torch.equal(output.codes, model.decode(output.indices))
    assert output.loss > 0
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_controllers_are_saved():
    model = quantizer(factor=1.5)
    model(posteriors(2, 6, 4, 5))
    assert model.state_dict()["divergence.lam"] == pytest.approx(1 / 1.5)
    other = quantizer(factor=1.5)
    other.load_state_dict(model.state_dict())
    assert torch.equal(other.divergence.lam, model.divergence.lam)


def test_log_variances_are_clamped():
    z = torch.cat([torch.zeros(1, 6, 2, 2), torch.full((1, 6, 2, 2), 1e4)], dim=1)
    limited = torch.cat([torch.zeros(1, 6, 2, 2), torch.full((1, 6, 2, 2), 20.0)], dim=1)
    assert torch.equal(quantizer()(z).loss, quantizer()(limited).loss)
    assert quantizer().encode(-z).shape == (1, 3, 2, 2)


@pytest.mark.parametrize("grouping", ["strided", "contiguous"])
def test_latents_snap_to_the_nearest_codeword(grouping):
    model = quantizer(grouping=grouping)
    indices = torch.randint(64, (2, 3, 4, 5))
    latents = model.to_latents(indices)
    assert torch.equal(model.nearest(latents), indices)
    assert torch.equal(model.snap(latents + 1e-4), latents)
    assert torch.equal(model.lift(latents), latents)
    torch.testing.assert_close(model.snap(latents, torch.full((6,), 1e-3)), latents)


def test_soft_snapping_weighs_codewords_by_distance_and_frequency_of_their_group():
    model, latents = quantizer(), torch.randn(1, 6, 1, 1)
    counts = [torch.randint(1, 100, (64,)) for _ in range(3)]
    model.set_frequencies(counts)
    noise = torch.linspace(0.2, 1.2, 6)
    mean = model.snap(latents, noise)
    for group, own in enumerate([[0, 3], [1, 4], [2, 5]]):
        distance = ((latents[0, own, 0, 0] - model.codebook) / noise[own]).square().sum(dim=1)
        weights = ((counts[group] + 0.5).log() - distance / 2).softmax(dim=0)
        torch.testing.assert_close(mean[0, own, 0, 0], weights @ model.codebook)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_keeps_the_tables_and_gives_codes_in_the_dtype_of_z(dtype):
    model = nn.Sequential(quantizer()).to(dtype)[0]
    assert {tensor.dtype for tensor in model.state_dict().values()} == {torch.float32}
    z = posteriors(1, 6, 3, 3).to(dtype)
    assert model(z).codes.dtype == dtype
    assert model(z).loss.dtype == torch.float32
    assert torch.equal(model.encode(z), model.encode(z.float()))


def test_compiles_without_a_graph_break_in_both_modes():
    z = posteriors(1, 6, 3, 3)
    for mode in (True, False):
        model, other = quantizer().train(mode), quantizer().train(mode)
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")(z)
        plain = other(z)
        torch.testing.assert_close(compiled.loss, plain.loss)
        assert mode or torch.equal(compiled.indices, plain.indices)
        assert torch.equal(model.divergence.lam, other.divergence.lam)


def test_an_autoencoder_with_it_saves_loads_and_codes(tmp_path):
    torch.manual_seed(0)
    model = AutoencoderPQ(quantizer_type="gaussian", quantizer_config=CONFIG, **TINY)
    image = torch.rand(2, 3, 8, 8) * 2 - 1
    output = model.train()(image)
    assert output.indices is None
    (output.sample.square().mean() + output.commit_loss).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    model.eval().save_pretrained(tmp_path)
    loaded = AutoencoderPQ.from_pretrained(tmp_path)
    latents = loaded.encode(image).latents
    assert latents.shape == (2, 6, 4, 4)
    assert torch.equal(latents, model.encode(image).latents)
    assert loaded.quantizer.divergence.lam == model.quantizer.divergence.lam != 1
    half = AutoencoderPQ.from_pretrained(tmp_path, torch_dtype=torch.bfloat16)
    assert {tensor.dtype for tensor in half.quantizer.state_dict().values()} == {torch.float32}
    assert half.decode(latents.bfloat16()).sample.shape == (2, 3, 8, 8)


def test_building_on_the_meta_device_costs_no_memory():
    with torch.device("meta"):
        model = quantizer()
    assert {tensor.device.type for tensor in model.state_dict().values()} == {"meta"}
    assert model.bits_per_position > 0


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"codebook_dim": 4}, r"latent_channels \(6\).*codebook_dim \(4\)"),
        ({"codebook_size": 100}, r"codebook_size \(100\) must be a power of 2"),
        ({"grouping": "stride"}, "'strided' or 'contiguous'"),
        ({"kl_weight": -1}, r"kl_weight \(-1\)"),
        ({"beta": float("nan")}, "beta"),
        ({"reduction": "none"}, "'sum' or 'mean'"),
    ],
)
def test_bad_arguments_are_named_at_construction(config, message):
    with pytest.raises(ValueError, match=message):
        quantizer(**config)


def test_wrong_input_is_named():
    with pytest.raises(ValueError, match=r"z must be \(B, 12, h, w\)"):
        quantizer().encode(torch.randn(1, 6, 2, 2))
    with pytest.raises(ValueError, match=r"latents must be \(B, 6, h, w\)"):
        quantizer().nearest(torch.randn(1, 12, 2, 2))
