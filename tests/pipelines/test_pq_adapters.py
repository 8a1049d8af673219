"""LoRA and IP-Adapters of the stock pipelines on product-quantized latents."""

import pytest
import torch
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection

from pqdiff import PQStableDiffusionImg2ImgPipeline, PQStableDiffusionInpaintPipeline, PQStableDiffusionPipeline
from tests.pipelines.support import assert_different, build, paint, random_image, seeded
from tests.tiny import TEXT_WIDTH

IMAGE_WIDTH = 8


@pytest.fixture(params=[PQStableDiffusionPipeline, PQStableDiffusionImg2ImgPipeline, PQStableDiffusionInpaintPipeline])
def fresh(request):
    """A pipeline for a test that changes it."""
    return build(request.param)


def test_lora_weights_can_be_loaded_scaled_and_unloaded(fresh, tmp_path):
    peft = pytest.importorskip("peft")
    from diffusers.utils import convert_state_dict_to_diffusers

    before = paint(fresh, output_type="latent")
    torch.manual_seed(1)
    config = peft.LoraConfig(r=2, lora_alpha=2, target_modules=["to_q", "to_v", "to_out.0"], init_lora_weights=False)
    fresh.unet.add_adapter(config)
    adapted = paint(fresh, output_type="latent")
    assert_different(adapted, before)
    weights = convert_state_dict_to_diffusers(peft.get_peft_model_state_dict(fresh.unet))
    type(fresh).save_lora_weights(tmp_path, unet_lora_layers=weights)
    fresh.unet.delete_adapters("default")
    assert torch.equal(paint(fresh, output_type="latent"), before)

    fresh.load_lora_weights(tmp_path, adapter_name="trained")
    torch.testing.assert_close(paint(fresh, output_type="latent"), adapted)
    half = paint(fresh, output_type="latent", cross_attention_kwargs={"scale": 0.5})
    assert_different(half, adapted)
    assert_different(half, before)
    fresh.fuse_lora()
    torch.testing.assert_close(paint(fresh, output_type="latent"), adapted, atol=1e-4, rtol=1e-4)
    fresh.unfuse_lora()
    fresh.unload_lora_weights()
    torch.testing.assert_close(paint(fresh, output_type="latent"), before, atol=1e-5, rtol=1e-4)


def ip_adapter_weights(unet) -> dict:
    """Random weights of an IP-Adapter with four image tokens."""
    generator = seeded(1)

    def random(*shape):
        return torch.randn(*shape, generator=generator)

    projection = {
        "proj.weight": random(4 * TEXT_WIDTH, IMAGE_WIDTH),
        "proj.bias": random(4 * TEXT_WIDTH),
        "norm.weight": torch.ones(TEXT_WIDTH),
        "norm.bias": torch.zeros(TEXT_WIDTH),
    }
    layers = [name for name in unet.attn_processors if name.endswith("attn2.processor")]
    attention = {}
    for i in range(len(layers)):  # every attention of the tiny UNet is 16 wide
        for key in ("to_k_ip", "to_v_ip"):
            attention[f"{2 * i + 1}.{key}.weight"] = random(16, TEXT_WIDTH)
    return {"image_proj": projection, "ip_adapter": attention}


def test_an_ip_adapter_can_be_loaded_scaled_and_unloaded(fresh):
    before = paint(fresh, output_type="latent")
    torch.manual_seed(0)
    config = CLIPVisionConfig(
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        image_size=8,
        patch_size=4,
        projection_dim=IMAGE_WIDTH,
    )
    fresh.register_modules(
        image_encoder=CLIPVisionModelWithProjection(config).eval(),
        feature_extractor=CLIPImageProcessor(size={"shortest_edge": 8}, crop_size={"height": 8, "width": 8}),
    )
    fresh.load_ip_adapter(ip_adapter_weights(fresh.unet), subfolder=None, weight_name=None, image_encoder_folder=None)
    call = {"ip_adapter_image": random_image(5), "output_type": "latent"}
    shown = paint(fresh, **call)
    assert_different(shown, before)
    assert_different(shown, paint(fresh, **{**call, "ip_adapter_image": random_image(6)}))
    embeddings = fresh.prepare_ip_adapter_image_embeds(call["ip_adapter_image"], None, "cpu", 1, True)
    assert torch.equal(paint(fresh, ip_adapter_image_embeds=embeddings, output_type="latent"), shown)
    fresh.set_ip_adapter_scale(0.0)
    torch.testing.assert_close(paint(fresh, **call), before)
    fresh.unload_ip_adapter()
    assert torch.equal(paint(fresh, output_type="latent"), before)
