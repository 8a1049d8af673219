"""What every registered quantizer promises. A new quantizer adds a line to CONFIGS."""

import math

import pytest
import torch

from pqdiff.data.cache.bit_packing import pack_batch, unpack_batch
from pqdiff.quantizers import FP32_TENSORS, QUANTIZERS, Quantizer, build_quantizer
from pqdiff.quantizers.search.codeword_statistics import look_up

CHANNELS = 8
CONFIGS = {
    "product": ("product", {"num_subspaces": 4, "codebook_size": 16}),
    "product with hidden": ("product", {"num_subspaces": 4, "codebook_size": 16, "hidden_channels": 4}),
    "classified_product": (
        "classified_product",
        {"num_subspaces": 4, "codebook_size": 16, "components": 14, "hidden_channels": 4, "bases": 4, "candidates": 3},
    ),
    "finite_scalar": ("finite_scalar", {"levels": [8, 5, 4, 3, 7, 2, 5, 6], "num_subspaces": 2}),
    "vector": ("vector", {"codebook_size": 24}),
    "vector with ema": ("vector", {"codebook_size": 24, "ema_decay": 0.9}),
    "frozen_codebook": ("frozen_codebook", {"codebook_size": 24, "feature_dim": 12}),
    "gaussian": ("gaussian", {"codebook_size": 32, "codebook_dim": 2}),
    "multichannel": ("multichannel", {"num_subspaces": 4, "codebook_size": 16}),
    "residual": ("residual", {"depth": 3, "codebook_size": 24}),
    "residual by gradient": (
        "residual",
        {"depth": 3, "codebook_size": 24, "shared_codebook": False, "ema_decay": None},
    ),
    "lookup_free": ("lookup_free", {"num_subspaces": 2, "entropy_bits": 4, "temperature": 1.0}),
    "binary_spherical": ("binary_spherical", {"num_subspaces": 2, "temperature": 1.0}),
    "token_bridge": ("token_bridge", {"num_bins": 16}),
}


def build(name: str, seed: int = 0) -> Quantizer:
    torch.manual_seed(seed)
    kind, config = CONFIGS[name]
    return build_quantizer(kind, CHANNELS, config)


def any_z(quantizer: Quantizer, batch: int = 2, height: int = 3, width: int = 5, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, quantizer.in_channels, height, width, generator=generator)


def any_tokens(quantizer: Quantizer, batch: int = 2, height: int = 6, width: int = 5) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    maps = [torch.randint(size, (batch, height, width), generator=generator) for size in quantizer.codebook_sizes]
    return torch.stack(maps, dim=1)


def any_counts(quantizer: Quantizer) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(1, 100, (size,), generator=generator) for size in quantizer.codebook_sizes]


@pytest.fixture(params=CONFIGS)
def name(request):
    return request.param


@pytest.fixture
def quantizer(name):
    return build(name)


@pytest.fixture
def soft_quantizer(quantizer):
    if not quantizer.has_posterior_mean:
        pytest.skip("no soft snapping")
    return quantizer


def snapped(quantizer: Quantizer, latents: torch.Tensor, noise: float) -> torch.Tensor:
    """Softly, if the quantizer can."""
    return quantizer.snap(latents, torch.full((CHANNELS,), noise) if quantizer.has_posterior_mean else None)


def test_every_registered_quantizer_is_tested_here():
    assert {kind for kind, _ in CONFIGS.values()} == set(QUANTIZERS)


def test_numbers_of_channels_are_positive_and_latents_have_as_many_as_asked_for(quantizer):
    assert quantizer.latent_channels == CHANNELS
    assert quantizer.in_channels > 0
    assert quantizer.code_channels > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_forward_gives_codes_in_the_dtype_of_z_and_a_scalar_loss_in_fp32(quantizer, dtype):
    output = quantizer(any_z(quantizer).to(dtype))
    assert output.codes.shape == (2, quantizer.code_channels, 3, 5)
    assert output.codes.dtype == dtype
    assert output.loss.shape == ()
    assert output.loss.dtype == torch.float32
    assert output.loss.isfinite()
    assert all(not value.requires_grad and value.ndim == 0 for value in output.logs.values())
    if output.indices is not None:
        assert output.indices.shape == (2, len(quantizer.codebook_sizes), 3, 5)
        assert output.indices.dtype == torch.int64


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_encode_gives_tokens_in_range_and_half_precision_is_searched_as_the_same_numbers_in_fp32(quantizer, dtype):
    z = 3 * any_z(quantizer, height=16, width=16).to(dtype)
    indices = quantizer.encode(z)
    assert indices.shape == (2, len(quantizer.codebook_sizes), 16, 16)
    assert indices.dtype == torch.int64
    sizes = torch.tensor(quantizer.codebook_sizes).view(1, -1, 1, 1)
    assert ((indices >= 0) & (indices < sizes)).all()
    assert torch.equal(indices, quantizer.encode(z.float()))


def test_encode_learns_nothing_even_in_training_mode(quantizer):
    before = {key: value.clone() for key, value in quantizer.state_dict().items()}
    indices = quantizer.train().encode(any_z(quantizer).requires_grad_())
    assert not indices.requires_grad
    assert all(torch.equal(value, before[key]) for key, value in quantizer.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.int64, torch.int16])
def test_codes_and_latents_of_tokens_are_fp32(quantizer, dtype):
    indices = any_tokens(quantizer).to(dtype)
    for result, channels in (
        (quantizer.decode(indices), quantizer.code_channels),
        (quantizer.to_latents(indices), CHANNELS),
    ):
        assert result.shape == (2, channels, 6, 5)
        assert result.dtype == torch.float32
        assert result.isfinite().all()


def test_latents_of_tokens_give_the_tokens_and_their_codes_back(quantizer):
    indices = any_tokens(quantizer)
    latents = quantizer.to_latents(indices)
    if quantizer.latents_tell_tokens:
        assert torch.equal(quantizer.nearest(latents), indices)
    assert torch.equal(quantizer.snap(latents), quantizer.decode(indices))


def test_latents_that_are_not_snapped_lift_to_codes_and_miss_only_what_latents_do_not_show(quantizer):
    indices = any_tokens(quantizer)
    latents = quantizer.to_latents(indices)
    codes = quantizer.lift(latents)
    assert codes.shape == (2, quantizer.code_channels, 6, 5)
    assert codes.dtype == torch.float32
    if quantizer.code_channels == CHANNELS:
        torch.testing.assert_close(codes, quantizer.decode(indices))


@pytest.mark.parametrize("training", [True, False])
def test_codes_of_forward_are_those_of_its_tokens(quantizer, training):
    tables = {key: value.clone() for key, value in quantizer.state_dict().items()}
    z = any_z(quantizer)
    output = quantizer.train(training)(z)
    quantizer.load_state_dict(tables)  # before an update in `forward`
    if not training:
        assert output.indices is not None
    if output.indices is not None:
        assert torch.equal(output.indices, quantizer.encode(z))
        torch.testing.assert_close(output.codes, quantizer.decode(output.indices), rtol=1e-5, atol=1e-6)


def test_gradient_reaches_z_and_every_parameter(quantizer):
    z = any_z(quantizer).requires_grad_()
    output = quantizer(z)
    upstream = torch.randn_like(output.codes)
    ((output.codes * upstream).sum() + output.loss).backward()
    for key, tensor in (("z", z), *quantizer.named_parameters()):
        if not tensor.requires_grad:
            continue
        assert tensor.grad is not None, key
        assert tensor.grad.isfinite().all(), key
        assert tensor.grad.abs().max() > 0, key
    assert (z.grad.abs().amax(dim=(2, 3)) > 0).all()  # every channel learns


@torch.no_grad()
def test_images_of_a_batch_do_not_influence_each_other(quantizer):
    quantizer.eval()
    z = any_z(quantizer, batch=3)
    together, tokens = quantizer(z), quantizer.encode(z)
    for i in range(3):
        assert torch.equal(quantizer.encode(z[i : i + 1])[0], tokens[i])
        torch.testing.assert_close(quantizer(z[i : i + 1]).codes[0], together.codes[i], rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_autocast_changes_neither_tokens_nor_codes(quantizer):
    quantizer.eval()
    z = any_z(quantizer, height=8, width=8)
    tokens = quantizer.encode(z)
    latents = quantizer.to_latents(tokens)
    nearest = quantizer.nearest(latents)
    expected = (quantizer(z), tokens, quantizer.decode(tokens), latents, snapped(quantizer, latents, 0.3))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = (
            quantizer(z),
            quantizer.encode(z),
            quantizer.decode(tokens),
            quantizer.to_latents(tokens),
            snapped(quantizer, latents, 0.3),
        )
        assert torch.equal(quantizer.nearest(latents), nearest)
    torch.testing.assert_close(found[0], expected[0], rtol=0, atol=0)
    for mine, theirs in zip(found[1:], expected[1:], strict=True):
        assert mine.dtype == theirs.dtype
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_casting_the_module_leaves_what_it_keeps_in_fp32_and_its_tokens(name, dtype):
    quantizer, cast = build(name), build(name).to(dtype)
    kept = {key: value for key, value in cast.state_dict().items() if key.split(".")[0] in quantizer.fp32_tensors}
    assert kept
    for key, value in kept.items():
        assert value.dtype == torch.float32
        assert torch.equal(value, quantizer.state_dict()[key])
    assert set(quantizer.fp32_tensors) <= set(FP32_TENSORS)
    z = any_z(quantizer)
    assert torch.equal(cast.encode(z), quantizer.encode(z))


@torch.no_grad()
def test_state_dict_restores_the_same_quantizer(name):
    quantizer, other = build(name).eval(), build(name, seed=1).eval()
    quantizer.set_frequencies(any_counts(quantizer))
    z = any_z(quantizer)

    def results(model):
        tokens = model.encode(z)
        latents = model.to_latents(tokens)
        return tokens, latents, model.decode(tokens), model(z).codes, snapped(model, latents, 0.5)

    assert not torch.equal(results(other)[-1], results(quantizer)[-1])
    other.load_state_dict(quantizer.state_dict())
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(results(other), results(quantizer), strict=True))


@torch.no_grad()
def test_soft_snapping_becomes_the_nearest_codeword_as_noise_goes_to_zero(soft_quantizer):
    soft_quantizer.set_frequencies(any_counts(soft_quantizer))
    indices = any_tokens(soft_quantizer)
    latents = soft_quantizer.to_latents(indices)
    latents = latents + 1e-5 * torch.randn(latents.shape, generator=torch.Generator().manual_seed(0))
    codes = soft_quantizer.snap(latents, torch.full((CHANNELS,), 1e-5))
    torch.testing.assert_close(codes, soft_quantizer.decode(indices), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("noise", [1e-3, 0.1, 1.0, 100.0])
@torch.no_grad()
def test_soft_snapping_is_finite_at_any_noise(soft_quantizer, noise):
    soft_quantizer.set_frequencies(any_counts(soft_quantizer))
    latents = 10 * torch.randn(2, CHANNELS, 4, 3, generator=torch.Generator().manual_seed(0))
    codes = soft_quantizer.snap(latents, torch.full((CHANNELS,), noise))
    assert codes.shape == (2, soft_quantizer.code_channels, 4, 3)
    assert codes.dtype == torch.float32
    assert codes.isfinite().all()


@torch.no_grad()
def test_frequencies_pull_soft_snapping_towards_frequent_tokens(soft_quantizer):
    """With much noise only the prior counts: where one value of each token has all the weight, its codes come out."""
    favorite = any_tokens(soft_quantizer, batch=1, height=1, width=1)
    counts = []
    for size, token in zip(soft_quantizer.codebook_sizes, favorite.flatten(), strict=True):
        count = torch.zeros(size)
        count[token] = 1e9
        counts.append(count)
    soft_quantizer.set_frequencies(counts)
    latents = torch.randn(1, CHANNELS, 1, 1, generator=torch.Generator().manual_seed(0))
    codes = soft_quantizer.snap(latents, torch.full((CHANNELS,), 100.0))
    torch.testing.assert_close(codes, soft_quantizer.decode(favorite), rtol=1e-3, atol=1e-3)


@torch.no_grad()
def test_forward_encode_and_decode_compile_without_a_graph_break(quantizer):
    torch.compiler.reset()  # all quantizers share some code, and there is a limit to its compiled versions
    quantizer.eval()
    z = any_z(quantizer)
    tokens = quantizer.encode(z)

    def compiled(function):
        return torch.compile(function, fullgraph=True, backend="aot_eager")

    torch.testing.assert_close(compiled(quantizer)(z), quantizer(z))
    assert torch.equal(compiled(quantizer.encode)(z), tokens)
    torch.testing.assert_close(compiled(quantizer.decode)(tokens), quantizer.decode(tokens))


def test_training_compiles_without_a_graph_break(quantizer):
    torch.compiler.reset()
    z = any_z(quantizer)
    expected, found = z.clone().requires_grad_(), z.clone().requires_grad_()
    tables = {key: value.clone() for key, value in quantizer.state_dict().items()}
    torch.manual_seed(0)  # for a quantizer that samples
    quantizer(expected).codes.square().sum().backward()
    quantizer.load_state_dict(tables)
    torch.manual_seed(0)
    torch.compile(quantizer, fullgraph=True, backend="aot_eager")(found).codes.square().sum().backward()
    torch.testing.assert_close(found.grad, expected.grad)


def test_rate_is_the_sum_of_the_logarithms(quantizer):
    assert quantizer.bits_per_position == pytest.approx(sum(math.log2(size) for size in quantizer.codebook_sizes))


def test_tokens_survive_packing(quantizer):
    indices = any_tokens(quantizer).numpy()
    packed = pack_batch(indices, quantizer.codebook_sizes)
    assert (unpack_batch(packed, indices.shape[1:], quantizer.codebook_sizes) == indices).all()


def test_wrong_input_is_named(quantizer):
    channels, tokens = quantizer.in_channels, len(quantizer.codebook_sizes)
    for function in (quantizer, quantizer.encode):
        with pytest.raises(ValueError, match=rf"z must be \(B, {channels}, h, w\), got \(1, {channels + 1}, 2, 2\)"):
            function(torch.randn(1, channels + 1, 2, 2))
        with pytest.raises(ValueError, match="z must have a floating dtype"):
            function(torch.zeros(1, channels, 2, 2, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"latents must be \(B, 8, h, w\)"):
        quantizer.nearest(torch.randn(1, CHANNELS + 1, 2, 2))
    for function in (quantizer.decode, quantizer.to_latents):
        with pytest.raises(ValueError, match=rf"indices must be \(B, {tokens}, h, w\)"):
            function(torch.zeros(1, tokens + 1, 2, 2, dtype=torch.int64))


def test_choices_give_the_codes_of_the_tokens_they_are_for_or_are_refused(quantizer):
    tokens = any_tokens(quantizer)
    if type(quantizer).choices is Quantizer.choices:
        with pytest.raises(ValueError, match="token search needs those"):
            quantizer.choices(tokens)
        return
    choices = quantizer.choices(tokens)
    codewords = look_up(choices.codebooks, tokens[:, choices.first :].flatten(2))
    torch.testing.assert_close(choices.codes(codewords), quantizer.decode(tokens))
    # Units say how much a codeword changes codes, up to the rotation of an orthonormal basis.
    other = codewords.clone()
    other[:, -1] += 1
    change = (choices.codes(other) - choices.codes(codewords)).square().sum(dim=1).flatten(1)  # (B, n)
    units = choices.units.expand_as(codewords)[:, -1].square().sum(dim=1)
    torch.testing.assert_close(change, units, rtol=1e-3, atol=1e-3)
