"""AutoencoderPQ as a VAE: interface, round trips, precision, saving."""

import json

import pytest
import torch
from diffusers import AutoencoderKL

from pqdiff import PRESETS, AutoencoderPQ
from pqdiff.models.presets import closed_form_config
from tests.autoencoders import CONV, KINDS, PRODUCT, TINY, build


@torch.no_grad()
def test_encode_gives_latents_a_certain_distribution_and_indices(autoencoder, images):
    output = autoencoder.encode(images)
    assert output.latents.shape == (2, 6, 8, 12)
    assert output.indices.shape == (2, 3, 8, 12)
    assert torch.equal(output.latent_dist.sample(torch.Generator().manual_seed(3)), output.latents)
    assert torch.equal(output.latent_dist.mode(), output.latents)
    distribution, latents, indices = autoencoder.encode(images, return_dict=False)
    assert torch.equal(distribution.mode(), latents)
    assert torch.equal(indices, output.indices)


@torch.no_grad()
def test_decode_of_latents_equals_decode_of_indices(autoencoder, images):
    output = autoencoder.encode(images)
    expected = autoencoder.decode(output.latents).sample
    assert expected.shape == images.shape
    assert torch.equal(autoencoder.decode_from_indices(output.indices).sample, expected)
    assert torch.equal(autoencoder.decode_from_indices(output.indices.to(torch.int16), return_dict=False)[0], expected)
    assert torch.equal(autoencoder.encode_to_indices(images), output.indices)
    # Trained with straight-through codes, z + (codes - z): the last bit differs.
    torch.testing.assert_close(autoencoder(images).sample, expected, rtol=0, atol=1e-4)


@torch.no_grad()
def test_quantize_is_idempotent_and_decode_quantizes_by_default(autoencoder, images):
    latents = autoencoder.encode(images).latents
    noisy = latents + 0.3 * torch.randn_like(latents)
    snapped, indices = autoencoder.quantize(noisy)
    again, same = autoencoder.quantize(snapped)
    assert torch.equal(indices, same)
    assert torch.equal(snapped, again)
    torch.testing.assert_close(autoencoder.decode(noisy).sample, autoencoder.decode(snapped).sample, rtol=0, atol=1e-5)
    assert not torch.allclose(autoencoder.decode(noisy, quantize=False).sample, autoencoder.decode(snapped).sample)


@torch.no_grad()
def test_decode_accepts_generators_and_draws_nothing(autoencoder, images):
    latents = autoencoder.encode(images).latents
    state = torch.get_rng_state()
    expected = autoencoder.decode(latents, return_dict=False)[0]
    generator = torch.Generator().manual_seed(0)
    assert torch.equal(autoencoder.decode(latents, generator=generator).sample, expected)
    assert torch.equal(autoencoder.decode(latents, generator=[generator, generator]).sample, expected)
    assert torch.equal(torch.get_rng_state(), state)


def test_forward_trains_everything_that_has_parameters(autoencoder, images):
    autoencoder.train()
    output = autoencoder(images)
    (output.sample.square().mean() + output.commit_loss).backward()
    grads = {name: parameter.grad for name, parameter in autoencoder.named_parameters()}
    assert [name for name, grad in grads.items() if grad is None or not grad.isfinite().all()] == []
    assert [name for name, grad in grads.items() if name.startswith("quantizer.") and not grad.any()] == []
    sample, loss, indices, logs = autoencoder(images, return_dict=False)
    assert logs == output.logs
    torch.testing.assert_close(sample, output.sample)
    torch.testing.assert_close(loss, output.commit_loss)
    assert torch.equal(indices, output.indices)


def test_gradient_checkpointing_changes_no_gradient(images):
    gradients = []
    for checkpointing in (False, True):
        model = build("both").train()
        if checkpointing:
            model.enable_gradient_checkpointing()
            assert model.transform.parts[1].encoder.gradient_checkpointing
        model(images).sample.square().mean().backward()
        gradients.append([p.grad for p in model.parameters() if p.grad is not None])
    for plain, checkpointed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, checkpointed)


@torch.no_grad()
def test_latents_are_standardized_as_the_config_says(images):
    raw = build("linear", statistics_config=None)
    z_q = raw.encode(images).latents
    mean, std = z_q.mean((0, 2, 3)), z_q.std((0, 2, 3), unbiased=False)
    for exponent in (0.0, 0.5, 1.0):
        config = {"mean": mean.tolist(), "std": std.tolist(), "exponent": exponent}
        model = build("linear", statistics_config=config)
        latents = model.encode(images).latents
        assert latents.mean((0, 2, 3)).abs().max() < 1e-5
        variances = latents.var((0, 2, 3), unbiased=False)
        assert variances.mean().item() == pytest.approx(1, abs=1e-4)
        relative = variances / variances[0]
        torch.testing.assert_close(relative, (std / std[0]) ** (2 - 2 * exponent), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(model.decode(latents).sample, raw.decode(z_q).sample, rtol=0, atol=1e-4)


@torch.no_grad()
def test_image_statistics_normalize_the_input_and_come_off_the_output(images):
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    plain = build("networks")
    normalized = build("networks", transform_config={**CONV, "image_mean": mean, "image_std": std})
    scale, shift = torch.tensor(std).view(3, 1, 1), torch.tensor(mean).view(3, 1, 1)
    by_hand = ((images + 1) / 2 - shift) / scale
    assert torch.equal(normalized.encode_to_indices(images), plain.encode_to_indices(by_hand))
    expected = (plain(by_hand).sample * scale + shift) * 2 - 1
    torch.testing.assert_close(normalized(images).sample, expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_a_batch_gives_exactly_what_its_images_give(autoencoder):
    torch.manual_seed(0)
    images = torch.rand(5, 3, 32, 32) * 2 - 1
    together = autoencoder.encode(images).indices
    assert torch.equal(torch.cat([autoencoder.encode(image[None]).indices for image in images]), together)


@torch.no_grad()
def test_slicing_gives_the_same_latents_and_images(autoencoder, images):
    output = autoencoder.encode(images)
    image = autoencoder.decode(output.latents).sample
    autoencoder.enable_slicing()
    sliced = autoencoder.encode(images)
    assert torch.equal(sliced.indices, output.indices)
    torch.testing.assert_close(autoencoder.decode(sliced.latents).sample, image, rtol=0, atol=1e-5)
    torch.testing.assert_close(autoencoder.decode_from_indices(sliced.indices).sample, image, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", ["linear", "hidden", "classes"])
@torch.no_grad()
def test_tiling_of_the_patch_transform_is_exact(kind):
    model, images = build(kind), torch.rand(1, 3, 100, 76) * 2 - 1
    expected = model.encode(images)
    image = model.decode(expected.latents).sample
    model.enable_tiling()
    assert torch.equal(model.encode(images).indices, expected.indices)
    torch.testing.assert_close(model.decode(expected.latents).sample, image, rtol=0, atol=1e-6)


@torch.no_grad()
def test_tiling_of_the_networks_leaves_no_seams():
    """On a stationary texture, so that tiles and whole have alike statistics for the networks' normalization."""
    model = build("networks", sample_size=128)
    phase = torch.arange(256) * (2 * torch.pi / 32)
    texture = phase.sin()[:, None] * phase.cos()
    images = torch.stack([texture, texture.T, phase.cos().expand(256, 256)])[None]
    z = model._analysis(images)
    image = model.synthesis(z)
    model.enable_tiling()
    tiled_z, tiled_image = model._analysis(images), model.synthesis(z)
    assert (tiled_z - z).abs().mean() <= 0.2 * z.std()
    assert (tiled_image - image).abs().mean() <= 0.2 * image.std()
    for seam in (96, 128):  # where tiles of 128 pixels begin and end
        jump = (tiled_image[..., seam] - tiled_image[..., seam - 1]).abs().mean()
        usual = (tiled_image[..., 60:90] - tiled_image[..., 59:89]).abs().mean()
        assert jump <= 1.5 * usual


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@torch.no_grad()
def test_half_precision_weights_keep_fp32_codebooks(autoencoder, images, dtype, tmp_path):
    autoencoder.save_pretrained(tmp_path)
    loaded = AutoencoderPQ.from_pretrained(tmp_path, torch_dtype=dtype)
    for model in (loaded, autoencoder.to(dtype)):
        assert model.dtype == dtype
        assert model.quantizer.codebooks.dtype == torch.float32
        output = model.encode(images.to(dtype))
        assert output.latents.dtype == dtype
        image = model.decode(output.latents).sample
        assert image.dtype == dtype
        assert image.isfinite().all()
    assert torch.equal(loaded.quantizer.codebooks, autoencoder.quantizer.codebooks)


@torch.no_grad()
def test_saved_and_loaded_it_computes_the_same(autoencoder, images, tmp_path):
    autoencoder.save_pretrained(tmp_path, max_shard_size="20KB")
    if autoencoder.config.transform_type != "patch":
        assert (tmp_path / "diffusion_pytorch_model.safetensors.index.json").is_file()
    loaded = AutoencoderPQ.from_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["scaling_factor"] == 1.0
    output = autoencoder.encode(images)
    assert torch.equal(loaded.encode(images).latents, output.latents)
    assert torch.equal(loaded.decode(output.latents).sample, autoencoder.decode(output.latents).sample)


@torch.no_grad()
def test_variant_files_load(autoencoder, images, tmp_path):
    autoencoder.save_pretrained(tmp_path, variant="fp16")
    loaded = AutoencoderPQ.from_pretrained(tmp_path, variant="fp16")
    assert torch.equal(loaded.encode(images).indices, autoencoder.encode(images).indices)


@pytest.mark.parametrize("kind", ["networks", "hidden", "classes"])
@torch.no_grad()
def test_encode_and_decode_compile_as_one_graph(kind):
    model, images = build(kind), torch.rand(1, 3, 16, 16) * 2 - 1
    encode = torch.compile(lambda x: model.encode(x, return_dict=False)[1:], fullgraph=True, backend="eager")
    latents, indices = encode(images)
    expected = model.encode(images)
    assert torch.equal(indices, expected.indices)
    decode = torch.compile(lambda z: model.decode(z, return_dict=False)[0], fullgraph=True, backend="eager")
    torch.testing.assert_close(decode(latents), model.decode(latents).sample, rtol=0, atol=1e-5)
    from_indices = torch.compile(lambda i: model.decode_from_indices(i, False)[0], fullgraph=True, backend="eager")
    torch.testing.assert_close(from_indices(indices), model.decode(latents).sample, rtol=0, atol=1e-5)


@pytest.mark.slow
@torch.no_grad()
def test_inductor_gives_the_same_images():
    model, images = build("both"), torch.rand(1, 3, 16, 16) * 2 - 1
    latents = model.encode(images).latents
    decode = torch.compile(lambda z: model.decode(z, return_dict=False)[0], fullgraph=True)
    torch.testing.assert_close(decode(latents), model.decode(latents).sample, rtol=0, atol=1e-4)


@pytest.mark.parametrize("kind", ["networks", "hidden"])
@torch.no_grad()
def test_encode_and_decode_can_be_exported(kind):
    class Reconstruct(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.autoencoder = build(kind)

        def forward(self, x):
            return self.autoencoder.decode(self.autoencoder.encode(x, return_dict=False)[1], return_dict=False)[0]

    model, images = Reconstruct().eval(), torch.rand(1, 3, 16, 16) * 2 - 1
    exported = torch.export.export(model, (images,)).module()
    torch.testing.assert_close(exported(images), model(images), rtol=0, atol=1e-5)


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_have_the_papers_sizes(preset):
    with torch.device("meta"):
        model = AutoencoderPQ.from_preset(preset)
    factor, channels, subspaces, size = (int(part[1:]) for part in preset.split("-"))
    assert model.downsample_factor == factor
    assert model.config.latent_channels == channels
    assert model.quantizer.codebooks.shape == (subspaces, size, channels // subspaces)
    assert model.config.preset == preset


@pytest.mark.parametrize(
    ("preset", "encoder", "decoder"),
    [("f8-d128-s64-k512", 28.56, 41.42), ("f16-d128-s64-k128", 29.30, 42.45)],
)
def test_networks_have_the_published_number_of_parameters(preset, encoder, decoder):
    with torch.device("meta"):
        model = AutoencoderPQ.from_preset(preset)
    parts = {part: getattr(model.transform, part) for part in ("encoder", "decoder")}
    count = {name: sum(p.numel() for p in part.parameters()) for name, part in parts.items()}
    assert count["encoder"] / 1e6 == pytest.approx(encoder, abs=0.01)
    assert count["decoder"] / 1e6 == pytest.approx(decoder, abs=0.01)
    assert sum(p.numel() for p in model.transform.quant_conv.parameters()) == 32896
    assert sum(p.numel() for p in model.transform.post_quant_conv.parameters()) == 33024


def test_bits_per_pixel_of_the_presets():
    with torch.device("meta"):
        rates = [AutoencoderPQ.from_preset(preset).bits_per_pixel for preset in PRESETS]
    assert rates == [9.0, 1.75, 3.5, 0.5]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"quantizer_config": {**PRODUCT, "hidden_channels": 4}}, r"hidden_channels \(4\).*num_subspaces \(3\)"),
        ({"block_out_channels": (8, 8)}, r"block_out_channels \(\(8, 8\)\)"),
        ({"transform_type": "konv"}, "did you mean 'conv'"),
        ({"transform_config": {"block_out_chanels": (8,)}}, "did you mean 'block_out_channels'"),
        ({"transform_config": {**CONV, "norm_num_groups": 3}}, r"norm_num_groups \(3\)"),
        ({"transform_config": {**CONV, "norm_num_groups": -1}}, r"norm_num_groups \(-1\)"),
        ({"transform_config": {**CONV, "attention_levels": [3]}}, r"attention_levels \(\[3\]\)"),
        ({"transform_config": {**CONV, "image_mean": (0.5,) * 3}}, "image_mean and image_std"),
        ({"transform_type": "patch", "transform_config": {"patch_size": 6}}, r"patch_size \(6\)"),
        ({"transform_type": "sum", "transform_config": {"parts": []}}, "at least two"),
        ({"statistics_config": {"mean": [0.0] * 6}}, "mean and std"),
        ({"statistics_config": {"mean": [0.0] * 5, "std": [1.0] * 5}}, "mean has 5"),
        ({"statistics_config": {"mean": [0.0] * 6, "std": [0.0] * 6}}, "positive"),
        ({"statistics_config": {"mean": [torch.inf] * 6, "std": [1.0] * 6}}, "mean must hold finite"),
        ({"statistics_config": {"exponent": 1.5}}, r"exponent \(1.5\)"),
        ({"statistics_config": {"deviation": []}}, "unknown key 'deviation'"),
        ({"refiner_config": {"channels": 0}}, r"channels \(0\)"),
        ({"latent_channels": "6"}, "wrong type or size"),
        ({"quantizer_config": None, "quantizer_type": []}, "wrong type or size"),
        ({"scaling_factor": 0}, r"scaling_factor \(0\)"),
        ({"quantizer_type": "produkt"}, "did you mean 'product'"),
        ({"quantizer_config": {"num_subspaces": 3}}, "lacks the key 'codebook_size'"),
        ({"quantizer_config": {"num_subspaces": 4, "codebook_size": 8}}, r"latent_channels \(6\)"),
    ],
)
def test_bad_configurations_are_named_at_construction(arguments, message):
    with pytest.raises(ValueError, match=message):
        AutoencoderPQ(**{**TINY, **arguments})


def test_unknown_presets_get_a_suggestion():
    with pytest.raises(ValueError, match="did you mean 'f8-d128-s64-k512'"):
        AutoencoderPQ.from_preset("f8-d128-s64-k-512")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("f6-d8-s4-k16", "F must be one of 4, 8, 16, 32"),
        ("f8-d32-s3-k16", "divisible by S = 3"),
        ("f4-d64-s4-k16", r"from 1 to 3 F\^2 = 48"),
    ],
)
def test_presets_that_cannot_be_say_why(name, message):
    with pytest.raises(ValueError, match=message):
        AutoencoderPQ.from_preset(name)


def test_any_configuration_can_be_written_as_a_preset():
    config = closed_form_config("f8-d32-s16-k256")
    assert config["latent_channels"] == 32
    assert config["quantizer_config"] == {"num_subspaces": 16, "codebook_size": 256, "hidden_channels": 0}
    assert AutoencoderPQ(**config).config.block_out_channels == (3, 12, 48, 192)


def test_sizes_that_do_not_divide_are_answered_with_sizes_that_work(autoencoder):
    with pytest.raises(ValueError, match=r"30 x 50.*divisible by 4.*28 x 48.*32 x 52"):
        autoencoder.encode(torch.zeros(1, 3, 30, 50))


def test_wrong_shapes_and_foreign_codes_are_named(autoencoder):
    with pytest.raises(ValueError, match=r"\(B, 3, H, W\)"):
        autoencoder.encode(torch.zeros(3, 32, 32))
    with pytest.raises(ValueError, match=r"\(B, 6, h, w\)"):
        autoencoder.decode(torch.zeros(1, 4, 8, 8))
    with pytest.raises(ValueError, match=r"\(B, 3, h, w\)"):
        autoencoder.decode_from_indices(torch.zeros(1, 4, 8, 8, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"\[0, 16\)"):
        autoencoder.decode_from_indices(torch.full((1, 3, 8, 8), 16))


def test_nan_latents_do_not_become_an_image(autoencoder):
    latents, image = torch.full((1, 6, 8, 8), torch.nan), torch.zeros(1, 3, 32, 32)
    image[..., 5, 9] = torch.nan
    with torch.no_grad():
        for way in (True, False, 0.1):
            assert autoencoder.decode(latents, quantize=way).sample.isnan().any()
        lost = autoencoder.encode(image).latents.isnan()
    assert torch.equal(lost.all(dim=1), lost.any(dim=1))
    depends = torch.ones(1, 8, 8, dtype=torch.bool)  # which positions see the pixel
    if (reach := autoencoder.transform.reach) is not None:
        depends.zero_()[:, max(0, 1 - reach) : 2 + reach, 2 - reach : 3 + reach] = True
    assert torch.equal(lost.any(dim=1), depends)


def test_signatures_cover_those_of_autoencoder_kl():
    import inspect

    for method in ("encode", "decode", "forward"):
        theirs = inspect.signature(getattr(AutoencoderKL, method)).parameters
        ours = list(inspect.signature(getattr(AutoencoderPQ, method)).parameters)
        assert ours[: len(theirs)] == list(theirs)


def test_the_config_shows_nothing_that_the_model_does_not_have():
    config = build("linear").config
    assert config.transform_config == {"patch_size": 4}
    assert config.block_out_channels == (3, 12, 48)  # from which stock pipelines read F
    assert config.refiner_config is None


def test_a_config_builds_the_same_model_again(autoencoder, images):
    again = AutoencoderPQ.from_config(autoencoder.config).eval()
    again.load_state_dict(autoencoder.state_dict())
    with torch.no_grad():
        assert torch.equal(again.encode(images).latents, autoencoder.encode(images).latents)


@torch.no_grad()
def test_it_loads_without_the_memory_saving_way_and_with_other_shapes(tmp_path):
    """What diffusers refuses for models that keep some tensors in fp32, and its guide recommends for widened models."""
    build("networks").save_pretrained(tmp_path)
    for dtype in (None, torch.bfloat16):
        model = AutoencoderPQ.from_pretrained(tmp_path, low_cpu_mem_usage=False, torch_dtype=dtype)
        assert type(model) is AutoencoderPQ
        assert model.dtype == (dtype or torch.float32)
        assert model.quantizer.codebooks.dtype == torch.float32
    build("networks").half().save_pretrained(tmp_path / "half")
    assert AutoencoderPQ.from_pretrained(tmp_path / "half", low_cpu_mem_usage=False).dtype == torch.float32
    wider = {**CONV, "mid_channels": 16}
    model = AutoencoderPQ.from_pretrained(
        tmp_path, transform_config=wider, low_cpu_mem_usage=False, ignore_mismatched_sizes=True
    )
    assert model.transform.quant_conv.in_channels == 16


@torch.no_grad()
def test_weights_can_be_stored_in_eight_bits(autoencoder, images):
    """Layerwise casting of diffusers: tokens come from layers that it leaves alone, or its hooks cast."""
    autoencoder.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)
    output = autoencoder.encode(images)
    assert autoencoder.decode(output.latents).sample.isfinite().all()


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_a_model_that_is_built_without_memory_has_all_tensors_after_loading(kind, images):
    model = build(kind)
    with torch.device("meta"):
        empty = AutoencoderPQ.from_config(model.config)
    empty.load_state_dict(model.state_dict(), assign=True)
    assert torch.equal(empty.eval().encode(images).indices, model.encode(images).indices)


def test_adapters_of_peft_can_be_added(images):
    from peft import LoraConfig

    model = build("networks")
    before = model(images).sample
    model.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_v", "conv_out"], init_lora_weights="gaussian"))
    assert any("lora_A" in name for name, _ in model.named_parameters())
    torch.testing.assert_close(model(images).sample, before)  # LoRA starts silent


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_one_search_per_encode_and_per_snap(kind, images, monkeypatch):
    """No token is searched for again: searching again follows rounding."""
    from pqdiff.quantizers import classified_product, codebook
    from pqdiff.quantizers.search import classified

    model, calls = build(kind), []

    def counted(module, name):
        function = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *a, **k: (calls.append(name), function(*a, **k))[1])

    counted(codebook, "nearest_codewords")
    counted(classified_product, "classify")
    output = model.encode(images)
    assert len(calls) == 1
    calls.clear()
    model.decode(output.latents)
    assert calls == ["nearest_codewords"]
    calls.clear()
    model.decode_from_indices(output.indices)
    model.latents_from_indices(output.indices)
    assert calls == []
    assert classified.classify is not None


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@torch.no_grad()
def test_tokens_survive_half_precision_latents(autoencoder, dtype):
    """Tokens, not rounded latents, decide what is decoded: all codewords, with the coordinates that latents do not show."""
    torch.manual_seed(0)
    indices = torch.randint(16, (1, 3, 8, 8))
    expected = autoencoder.decode_from_indices(indices).sample
    half = autoencoder.to(dtype)
    found = half.decode_from_indices(indices).sample.float()
    torch.testing.assert_close(found, expected, rtol=0.05, atol=0.05 * expected.abs().max().item())


@torch.no_grad()
def test_soft_snapping_is_nearest_without_noise_and_better_with_it():
    model = build("hidden")
    torch.manual_seed(0)
    indices = torch.randint(16, (8, 3, 8, 8))
    latents, clean = model.latents_from_indices(indices), model.decode_from_indices(indices).sample
    torch.testing.assert_close(model.decode(latents, quantize=1e-3).sample, clean, rtol=0, atol=1e-4)
    noisy = latents + 0.3 * torch.randn_like(latents)
    errors = {
        way: (model.decode(noisy, quantize=way).sample - clean).square().mean().item() for way in (True, False, 0.3)
    }
    assert errors[0.3] < min(errors[True], errors[False])


@pytest.mark.parametrize("value", [-0.1, float("nan"), float("inf"), "soft", 0.0])
def test_ways_to_quantize_that_do_not_exist_are_named(value):
    with pytest.raises(ValueError, match="quantize"):
        build("linear").decode(torch.zeros(1, 6, 8, 8), quantize=value)
