"""Each word of the captions is one token; anything else is spelled out and does no harm."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import CLIPTokenizer

from pqdiff.data.scenes.scenes import random_scene
from pqdiff.data.scenes.tokenizer import MAX_LENGTH, build_scene_tokenizer, scene_words


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return build_scene_tokenizer(tmp_path_factory.mktemp("tokenizer") / "new")


def test_every_word_is_one_token_of_its_own(tokenizer):
    tokens = {word: tokenizer.tokenize(word) for word in scene_words()}
    assert all(len(pieces) == 1 for pieces in tokens.values())
    assert len({pieces[0] for pieces in tokens.values()}) == len(tokens)


@given(st.integers(0, 10**6), st.booleans())
@settings(deadline=None)
def test_captions_are_their_words_between_start_and_end_and_fit(tokenizer, seed, held_out):
    caption = random_scene(random.Random(seed), held_out).caption
    ids = tokenizer(caption).input_ids
    assert (ids[0], ids[-1]) == (tokenizer.bos_token_id, tokenizer.eos_token_id)
    assert len(ids) == len(caption.split()) + 2 <= MAX_LENGTH
    assert tokenizer.decode(ids, skip_special_tokens=True).strip() == caption


def test_capitals_and_spaces_do_not_matter(tokenizer):
    assert tokenizer("A  Small\nRED circle").input_ids == tokenizer("a small red circle").input_ids


@given(st.text(max_size=60))
@settings(deadline=None)
def test_any_text_becomes_tokens_of_the_vocabulary(tokenizer, text):
    ids = tokenizer(text, padding="max_length", max_length=tokenizer.model_max_length, truncation=True).input_ids
    assert len(ids) == MAX_LENGTH
    assert all(0 <= number < len(tokenizer) for number in ids)


@given(st.text(alphabet="abcdefghijklmnopqrstuvwxyz", min_size=1, max_size=12))
@settings(deadline=None)
def test_unknown_words_are_spelled_and_can_be_read_back(tokenizer, word):
    ids = tokenizer(word).input_ids
    assert tokenizer.decode(ids, skip_special_tokens=True).replace(" ", "") == word


def test_long_texts_are_cut_and_keep_the_end_token(tokenizer):
    ids = tokenizer("red " * 50, truncation=True, max_length=tokenizer.model_max_length).input_ids
    assert (len(ids), ids[-1]) == (MAX_LENGTH, tokenizer.eos_token_id)


def test_it_survives_saving_and_loading(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    loaded = CLIPTokenizer.from_pretrained(tmp_path)
    texts = ["a small red circle", "four large purple crosses on a white background", "Zebra? 狐 🦊", ""]
    assert loaded(texts).input_ids == tokenizer(texts).input_ids
    assert loaded.model_max_length == MAX_LENGTH
    assert len(loaded) == len(tokenizer)


def test_it_is_the_same_wherever_it_is_built(tokenizer, tmp_path):
    assert build_scene_tokenizer(tmp_path).get_vocab() == tokenizer.get_vocab()


def test_words_are_listed_once_in_a_fixed_order():
    words = scene_words()
    assert len(words) == len(set(words))
    assert words == scene_words()
    assert {"a", "small", "red", "crosses", "background", "left", "of", "two"} <= set(words)
