"""Components that do not fit are refused when the pipeline is built, in words that name both sides."""

import re

import pytest
from diffusers import FlowMatchEulerDiscreteScheduler

from pqdiff import PQStableDiffusionImg2ImgPipeline, PQStableDiffusionInpaintPipeline, PQStableDiffusionPipeline
from pqdiff.adaptation.prediction_types import PREDICTION_TYPES
from pqdiff.pipelines.checks import check_fit
from tests.pipelines.support import build
from tests.tiny import TEXT_WIDTH, tiny_autoencoder, tiny_scheduler, tiny_text_encoder, tiny_unet

KINDS = (PQStableDiffusionPipeline, PQStableDiffusionImg2ImgPipeline, PQStableDiffusionInpaintPipeline)


@pytest.mark.parametrize("kind", KINDS)
def test_a_unet_must_take_the_channels_of_the_latents(kind):
    with pytest.raises(ValueError, match=r"in_channels \(4\) must be vae.config.latent_channels \(8\).*widen"):
        build(kind, unet=tiny_unet(4))


@pytest.mark.parametrize("kind", KINDS)
def test_a_unet_must_give_the_channels_of_the_latents(kind):
    with pytest.raises(ValueError, match=r"out_channels \(16\) must be vae.config.latent_channels \(8\).*widen"):
        build(kind, unet=tiny_unet(8, out_channels=16))


def test_an_inpainting_unet_belongs_into_an_inpainting_pipeline():
    unet = tiny_unet(8, in_channels=17)
    for kind in KINDS[:2]:
        with pytest.raises(ValueError, match=r"in_channels \(17\).*\(8\): .*take PQStableDiffusionInpaintPipeline"):
            build(kind, unet=unet)
    assert build(KINDS[2], unet=unet).unet is unet


def test_an_inpainting_pipeline_says_which_channels_it_takes():
    with pytest.raises(ValueError, match=r"in_channels \(9\) must be .* \(8\), or 17 to see mask and masked image"):
        build(KINDS[2], unet=tiny_unet(8, in_channels=9))


@pytest.mark.parametrize("kind", KINDS)
def test_text_embeddings_must_have_the_width_that_the_unet_attends_to(kind):
    with pytest.raises(ValueError, match=r"hidden_size \(16\) must be unet.config.cross_attention_dim \(24\)"):
        build(kind, unet=tiny_unet(cross_attention_dim=24))


def test_a_unet_that_projects_text_by_itself_names_the_width_before():
    unet = tiny_unet(encoder_hid_dim=TEXT_WIDTH, encoder_hid_dim_type="text_proj", cross_attention_dim=24)
    assert build(unet=unet).unet is unet
    with pytest.raises(ValueError, match=r"hidden_size \(32\) must be unet.config.encoder_hid_dim \(16\)"):
        build(unet=unet, text_encoder=tiny_text_encoder(hidden_size=32))


def test_a_unet_may_name_its_width_once_per_block():
    check_fit(None, tiny_text_encoder(), tiny_unet(cross_attention_dim=(TEXT_WIDTH, TEXT_WIDTH)), None)
    with pytest.raises(ValueError, match=re.escape("cross_attention_dim ((16, 24))")):
        check_fit(None, tiny_text_encoder(), tiny_unet(cross_attention_dim=(TEXT_WIDTH, 24)), None)


@pytest.mark.parametrize("kind", KINDS)
def test_the_prediction_type_must_be_known(kind):
    with pytest.raises(ValueError, match=r"prediction_type \('velocity'\) is unknown.*epsilon, v_prediction, sample"):
        build(kind, scheduler=tiny_scheduler("velocity"))


def test_every_prediction_type_of_diffusers_is_known():
    for prediction_type in PREDICTION_TYPES:
        check_fit(None, None, None, tiny_scheduler(prediction_type))
    check_fit(None, None, None, FlowMatchEulerDiscreteScheduler())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("missing", ["vae", "unet", "text_encoder", "tokenizer", "scheduler"])
def test_components_may_be_missing(kind, missing):
    pipe = kind(
        **{
            "vae": tiny_autoencoder(),
            "text_encoder": tiny_text_encoder(),
            "tokenizer": None,
            "unet": tiny_unet(),
            "scheduler": tiny_scheduler(),
            "safety_checker": None,
            "feature_extractor": None,
            "requires_safety_checker": False,
            missing: None,
        }
    )
    assert pipe.components[missing] is None
