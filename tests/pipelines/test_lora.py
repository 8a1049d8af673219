"""LoRA layers are never lost in silence."""

import pytest
import torch
from diffusers.utils import logging

from pqdiff import PQStableDiffusionPipeline
from pqdiff.hub.pipelines import load_pipeline
from tests.pipelines.support import assert_different, build, paint

peft = pytest.importorskip("peft")


def with_lora(kind=PQStableDiffusionPipeline):
    pipe = build(kind)
    torch.manual_seed(0)
    pipe.unet.add_adapter(peft.LoraConfig(r=2, lora_alpha=2, target_modules=["to_q", "to_v"], init_lora_weights=False))
    return pipe


def test_saving_a_pipeline_with_lora_layers_says_what_to_do_and_writes_nothing(tmp_path):
    with pytest.raises(ValueError, match=r"unet has LoRA layers.*fuse_lora\(\).*or save_lora_weights\(\)"):
        with_lora().save_pretrained(tmp_path / "pipe")
    assert not (tmp_path / "pipe").exists()


def test_layers_saved_beside_the_models_are_reported_until_they_are_loaded(tmp_path, caplog):
    pipe = with_lora()
    painted = paint(pipe)
    pipe.save_lora_weights(tmp_path, unet_lora_layers=peft.utils.get_peft_model_state_dict(pipe.unet))
    pipe.unload_lora_weights()
    logging.enable_propagation()
    pipe.save_pretrained(tmp_path)
    loaded = PQStableDiffusionPipeline.from_pretrained(tmp_path)
    logging.disable_propagation()
    assert f"{tmp_path} has LoRA layers, which are not loaded yet: call load_lora_weights" in caplog.text
    loaded.set_progress_bar_config(disable=True)
    assert_different(paint(loaded), painted)
    loaded.load_lora_weights(tmp_path)
    torch.testing.assert_close(paint(loaded), painted)
    torch.testing.assert_close(paint(load_pipeline(str(tmp_path))), painted)  # as the command line does


def test_fused_layers_are_saved(tmp_path):
    pipe = with_lora()
    painted = paint(pipe)
    pipe.fuse_lora()
    pipe.unload_lora_weights()
    pipe.save_pretrained(tmp_path)
    loaded = PQStableDiffusionPipeline.from_pretrained(tmp_path)
    torch.testing.assert_close(paint(loaded), painted, atol=1e-4, rtol=1e-3)
