"""What can be said about pictures of models that were trained on scenes alone."""

import torch

from ..data.scene_captions import parse_caption
from ..data.scene_checker import ATTRIBUTES, check_scene, read_scenes
from ..data.scenes import HELD_OUT_PAIRS

EXAMPLE = "a small red circle above a large blue square"
_LARGEST_VOCABULARY = 1000  # tokenizers for all words have tens of thousands


def knows_scenes_only(tokenizer) -> bool:
    """Whether a tokenizer has a token for each word of the scenes' captions and few besides."""
    from ..data.scene_tokenizer import scene_words

    vocabulary = tokenizer.get_vocab()
    return len(vocabulary) <= _LARGEST_VOCABULARY and all(f"{word}</w>" in vocabulary for word in scene_words())


def wrong_attributes(prompt: str, pixels: torch.Tensor) -> list[str] | None:
    """What uint8 pixels `(3, H, W)` show otherwise than the prompt says; None if the prompt is no scene."""
    scene = parse_caption(prompt)
    if scene is None:
        return None
    verdict = check_scene(read_scenes(pixels[None])[0], scene)
    return [name for name in ATTRIBUTES if not verdict[name]]


def scene_notes(prompts: list[str]) -> list[str]:
    """What a reader should know about prompts for models of scenes: which are none, which show something new."""
    scenes = [parse_caption(prompt) for prompt in prompts]
    notes = []
    foreign = [prompt for prompt, scene in zip(prompts, scenes, strict=True) if scene is None]
    if foreign:
        notes.append(
            f"The tiny models know scenes of colored shapes only, and {foreign[0]!r} is none; one is {EXAMPLE!r}."
        )
    pairs = dict.fromkeys((item.color, item.shape) for scene in scenes if scene for item in scene.objects)
    new = [pair for pair in pairs if pair in HELD_OUT_PAIRS]
    return notes + [f"The scenes for training show no {color} {shape}." for color, shape in new]
