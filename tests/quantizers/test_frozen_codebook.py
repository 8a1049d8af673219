"""The frozen codebook: what learns, what stays, and that a saved model needs no other file."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from benchmarks.memory import peak_tensor_bytes
from pqdiff.models.autoencoder_pq import AutoencoderPQ
from pqdiff.quantizers import FrozenCodebookQuantizer, build_quantizer

CONFIG = {"codebook_size": 50, "feature_dim": 12}
TINY = {
    "transform_config": {"block_out_channels": [8, 8], "layers_per_block": 1, "norm_num_groups": 4, "mid_channels": 8},
    "latent_channels": 6,
    "sample_size": 16,
}


def quantizer(**config) -> FrozenCodebookQuantizer:
    torch.manual_seed(0)
    return build_quantizer("frozen_codebook", 6, {**CONFIG, **config})


def nearest_by_brute_force(model, z):
    table = model.features.double() @ model.projector.weight.double().T + model.projector.bias.double()
    distances = (z.double().movedim(1, 3)[..., None, :] - table).square().sum(dim=-1)
    return distances.argmin(dim=-1)[:, None]


def test_tokens_are_the_nearest_projected_features():
    model, z = quantizer(), torch.randn(2, 6, 4, 5)
    assert torch.equal(model.encode(z), nearest_by_brute_force(model, z))
    assert torch.equal(model(z).indices, model.encode(z))
    assert torch.equal(model.nearest(z), model.encode(z))
    assert model.codebook_sizes == (50,)


def test_codes_loss_and_gradients_are_those_of_a_written_out_loop():
    model = quantizer(commitment_weight=0.7, codebook_weight=0.2)
    z, upstream = torch.randn(2, 6, 3, 4, requires_grad=True), torch.randn(2, 6, 3, 4)
    output = model(z)
    found = torch.autograd.grad((output.codes * upstream).sum() + 3 * output.loss, [z, *model.parameters()])

    chosen = torch.empty_like(z)
    for b, _, y, x in torch.ones(2, 1, 3, 4).nonzero().tolist():
        feature = model.features[output.indices[b, 0, y, x]].float()
        chosen[b, :, y, x] = F.linear(feature, model.projector.weight, model.projector.bias)
    loss = 0.7 * F.mse_loss(z, chosen.detach()) + 0.2 * F.mse_loss(chosen, z.detach())
    codes = z + (chosen - z).detach()
    expected = torch.autograd.grad((codes * upstream).sum() + 3 * loss, [z, *model.parameters()])
    torch.testing.assert_close(output.loss, loss)
    torch.testing.assert_close(output.codes, codes)
    torch.testing.assert_close(found, expected)


def test_tokens_give_exactly_the_codes_back():
    model, z = quantizer(), 1e3 + torch.randn(3, 6, 4, 4)  # z + (codes - z) would round here
    output = model(z)
    for indices, codes in ((output.indices, output.codes), (output.indices[1:2], output.codes[1:2])):
        assert torch.equal(model.decode(indices), codes)
        assert torch.equal(model.to_latents(indices), codes)
    assert torch.equal(model.codewords()[0][output.indices[:, 0]].movedim(3, 1), output.codes)


def test_only_the_projector_learns():
    model = quantizer()
    assert [name for name, _ in model.named_parameters()] == ["projector.weight", "projector.bias"]
    assert "feature_bits" in model.state_dict()
    before = model.features.clone()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(torch.randn(2, 6, 4, 4)).loss.backward()
    optimizer.step()
    assert torch.equal(model.features, before)
    with pytest.raises(ValueError, match="--restart_dead_codewords 0"):
        model.restart([torch.ones(50, dtype=torch.bool)], torch.randn(1, 6, 2, 2), torch.Generator())


def test_random_start():
    """Features N(0, 1), the same whatever the seed; codewords of mean 0 and variance 1."""
    model = build_quantizer("frozen_codebook", 16, {"codebook_size": 5000, "feature_dim": 64})
    torch.manual_seed(5)
    other = build_quantizer("frozen_codebook", 16, {"codebook_size": 5000, "feature_dim": 64})
    assert torch.equal(model.features, other.features)
    assert model.features.dtype == torch.float16
    assert model.features.float().std().item() == pytest.approx(1, abs=0.01)
    assert model.codewords().std().item() == pytest.approx(1, abs=0.1)
    assert not torch.equal(model.projector.weight, other.projector.weight)


def test_codewords_begin_where_z_is_whatever_the_scale_of_the_features():
    model, channels = quantizer(), torch.logspace(-2, 2, 12)
    model.load_features(5 * channels + torch.randn(50, 12) * channels)
    codewords = model.codewords()[0]
    torch.testing.assert_close(codewords.mean(dim=0), torch.zeros(6), atol=1e-2, rtol=0)
    assert 0.2 < codewords.std() < 3


@pytest.mark.parametrize("features_dtype", ["float16", "float32"])
def test_loaded_features_are_what_is_projected(features_dtype):
    model, features = quantizer(features_dtype=features_dtype), torch.randn(50, 12)
    model.load_features(features)
    assert torch.equal(model.features, features.to(getattr(torch, features_dtype)))
    torch.testing.assert_close(model.codewords()[0], model.projector(model.features.float()))


@pytest.mark.parametrize("features_dtype", ["float16", "float32"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_casting_changes_no_token_and_no_code(dtype, features_dtype):
    model, z = quantizer(features_dtype=features_dtype), torch.randn(2, 6, 4, 4).to(dtype)
    features, indices = model.features.clone(), model.encode(z)
    codes = model.decode(indices)
    nn.Sequential(model).to(dtype)
    assert torch.equal(model.features, features)
    assert model.projector.weight.dtype == torch.float32
    assert torch.equal(model.encode(z), indices)
    assert torch.equal(model.decode(indices), codes)
    assert model(z).codes.dtype == dtype
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(model(z.float()).codes, codes)


def test_nan_stays_visible():
    model, z = quantizer(), torch.randn(1, 6, 1, 2)
    z[0, 1, 0, 1] = torch.nan
    output = model(z)
    assert output.codes[0, 1, 0, 1].isnan()
    assert output.codes[0, :, 0, 0].isfinite().all()
    assert output.loss.isnan()


def test_soft_snapping_is_between_codewords():
    model = quantizer()
    indices = torch.randint(50, (1, 1, 3, 3))
    latents = model.to_latents(indices)
    torch.testing.assert_close(model.snap(latents, torch.full((6,), 1e-3)), latents)
    model.set_frequencies([torch.bincount(indices.flatten(), minlength=50)])
    distance = ((latents[0, :, 0, 0] - model.codewords()[0]) / 2).square().sum(dim=1)
    weights = (model.frequencies[0].log() - distance / 2).softmax(dim=0)
    torch.testing.assert_close(model.snap(latents, torch.full((6,), 2.0))[0, :, 0, 0], weights @ model.codewords()[0])


def test_a_training_step_holds_no_distances_and_no_table_in_fp32():
    torch.manual_seed(0)
    model, z = (
        build_quantizer("frozen_codebook", 4, {"codebook_size": 20_000, "feature_dim": 256}),
        torch.randn(1, 4, 32, 32),
    )

    def step():
        model(z.clone().requires_grad_()).loss.backward()

    step()
    assert peak_tensor_bytes(step) < 8e6  # distances are 82 MB, the table in fp32 20 MB


def test_compiles_without_a_graph_break():
    model, z = quantizer(), torch.randn(1, 6, 4, 4)
    compiled, plain = torch.compile(model, fullgraph=True, backend="aot_eager")(z), model(z)
    assert torch.equal(compiled.indices, plain.indices)
    assert torch.equal(compiled.codes, plain.codes)
    compiled.loss.backward()
    assert model.projector.weight.grad.abs().max() > 0


def test_an_autoencoder_with_it_saves_and_loads_with_its_table(tmp_path):
    torch.manual_seed(0)
    model = AutoencoderPQ(quantizer_type="frozen_codebook", quantizer_config=CONFIG, **TINY)
    model.quantizer.load_features(torch.randn(50, 12))
    image = torch.rand(2, 3, 8, 8) * 2 - 1
    output = model(image)
    (output.sample.square().mean() + output.commit_loss).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    model.save_pretrained(tmp_path)
    for options in ({}, {"torch_dtype": torch.bfloat16}, {"torch_dtype": torch.float16, "low_cpu_mem_usage": False}):
        loaded = AutoencoderPQ.from_pretrained(tmp_path, **options)
        assert torch.equal(loaded.quantizer.features, model.quantizer.features)
        assert torch.equal(loaded.quantizer.codewords(), model.quantizer.codewords())
    loaded = AutoencoderPQ.from_pretrained(tmp_path)
    assert torch.equal(loaded.encode(image).latents, model.encode(image).latents)


def test_building_on_the_meta_device_costs_no_memory():
    with torch.device("meta"):
        model = quantizer()
    assert {tensor.device.type for tensor in model.state_dict().values()} == {"meta"}
    assert model.bits_per_position > 0


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"codebook_size": 0}, r"codebook_size \(0\)"),
        ({"feature_dim": 0}, r"feature_dim \(0\)"),
        ({"features_dtype": "bfloat16"}, "'float16' or 'float32'"),
        ({"codebook_weight": -1}, r"codebook_weight \(-1\)"),
    ],
)
def test_bad_arguments_are_named_at_construction(config, message):
    with pytest.raises(ValueError, match=message):
        quantizer(**config)


def test_features_that_do_not_fit_are_refused():
    model, before = quantizer(), quantizer().features
    for features, message in (
        (torch.randn(50, 11), r"\(50, 12\).*got \(50, 11\)"),
        (torch.ones(50, 12, dtype=torch.int64), "floating"),
        (torch.full((50, 12), 1e6), "finite in features_dtype"),
    ):
        with pytest.raises(ValueError, match=message):
            model.load_features(features)
    assert torch.equal(model.features, before)
