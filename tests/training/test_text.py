"""Captions become what the stock pipeline makes of prompts."""

import pytest
import torch

from pqdiff.hub.pipelines import load_pipeline
from pqdiff.training.text import are_spelled, encode_captions, frozen_states, text_fingerprint
from tests.tiny import tiny_base_pipeline, tiny_text_encoder

CAPTIONS = ["a red circle", "", "much too long " * 9]


@pytest.mark.parametrize("use_attention_mask", [False, True, None])
@torch.no_grad()
def test_states_are_those_of_the_stock_pipeline(use_attention_mask):
    pipe = tiny_base_pipeline()
    if use_attention_mask is not None:
        pipe.text_encoder.config.use_attention_mask = use_attention_mask
    expected, _ = pipe.encode_prompt(CAPTIONS, "cpu", 1, do_classifier_free_guidance=False)
    assert torch.equal(encode_captions(pipe.tokenizer, pipe.text_encoder, CAPTIONS), expected)


@torch.no_grad()
def test_an_encoder_that_wants_the_attention_mask_gets_it():
    pipe = tiny_base_pipeline()
    without = encode_captions(pipe.tokenizer, pipe.text_encoder, CAPTIONS[:1])
    pipe.text_encoder.config.use_attention_mask = True
    assert not torch.equal(encode_captions(pipe.tokenizer, pipe.text_encoder, CAPTIONS[:1]), without)


def test_gradients_reach_an_encoder_that_is_trained():
    pipe = tiny_base_pipeline()
    encode_captions(pipe.tokenizer, pipe.text_encoder, CAPTIONS).sum().backward()
    assert pipe.text_encoder.get_input_embeddings().weight.grad.abs().sum() > 0


def test_frozen_states_are_those_of_the_captions_or_of_the_cache():
    pipe = tiny_base_pipeline()
    states = frozen_states({"captions": CAPTIONS}, pipe, torch.device("cpu"))
    assert not states.requires_grad
    assert torch.equal(states, encode_captions(pipe.tokenizer, pipe.text_encoder, CAPTIONS))
    cached = torch.zeros(3, 16, 16)
    assert frozen_states({"captions": CAPTIONS, "text_embeddings": cached}, pipe, torch.device("cpu")) is cached


def test_fingerprints_tell_text_encoders_apart():
    encoder = tiny_text_encoder()
    assert text_fingerprint(encoder) == text_fingerprint(tiny_text_encoder())
    with torch.no_grad():
        next(encoder.parameters())[0] += 1
    assert text_fingerprint(encoder) != text_fingerprint(tiny_text_encoder())


def test_captions_without_tokens_of_their_own_are_spelled():
    scenes = load_pipeline("tiny-base").tokenizer
    assert are_spelled(scenes, ["a photograph of an old fisherman", ""])
    assert not are_spelled(scenes, ["a small red circle above a large blue square on a white background"])
    assert not are_spelled(scenes, ["", "an ox"])
