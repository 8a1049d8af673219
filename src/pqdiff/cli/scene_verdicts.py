"""Check images of models that were trained on synthetic scenes only."""

import torch

from pqdiff.data.scenes.captions import parse_caption
from pqdiff.data.scenes.checker import ATTRIBUTES, check_scene, read_scenes
from pqdiff.data.scenes.scenes import HELD_OUT_PAIRS
from pqdiff.data.scenes.tokenizer import scene_words

EXAMPLE = "a small red circle above a large blue square"
_LARGEST_VOCABULARY = 1000  # tokenizers for any text have tens of thousands of tokens


def knows_scenes_only(tokenizer) -> bool:
    """Whether a tokenizer has a token for each word of the captions of scenes, and few other tokens."""
    vocabulary = tokenizer.get_vocab()
    return len(vocabulary) <= _LARGEST_VOCABULARY and all(f"{word}</w>" in vocabulary for word in scene_words())


def wrong_attributes(prompt: str, pixels: torch.Tensor) -> list[str] | None:
    """The attributes in which uint8 pixels `(3, H, W)` differ from the prompt; None if the prompt describes no scene."""
    scene = parse_caption(prompt)
    if scene is None:
        return None
    verdict = check_scene(read_scenes(pixels[None])[0], scene)
    return [name for name in ATTRIBUTES if not verdict[name]]


def scene_notes(prompts: list[str]) -> list[str]:
    """Notes on prompts for models of scenes: which describe no scene, and which describe one unlike those of training."""
    scenes = [parse_caption(prompt) for prompt in prompts]
    notes = []
    foreign = [prompt for prompt, scene in zip(prompts, scenes, strict=True) if scene is None]
    if foreign:
        notes.append(
            "The tiny models know only scenes of colored shapes. "
            f"{foreign[0]!r} does not describe one; {EXAMPLE!r} does."
        )
    pairs = dict.fromkeys((item.color, item.shape) for scene in scenes if scene for item in scene.objects)
    new = [pair for pair in pairs if pair in HELD_OUT_PAIRS]
    return notes + [f"The training scenes contain no {color} {shape}." for color, shape in new]
