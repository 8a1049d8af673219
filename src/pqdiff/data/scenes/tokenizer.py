"""The tokenizer of the tiny text encoder: one token for each word of the scenes' captions; other words are spelled."""

import itertools
import json
from pathlib import Path

from transformers import CLIPTokenizer

from pqdiff.data.scenes.scenes import BACKGROUNDS, COLORS, COUNTS, PLACES, RELATIONS, SHAPES, SIZES

MAX_LENGTH = 24  # tokens of a caption, with the start token and the end token


def scene_words() -> list[str]:
    """Every word that a caption can hold, in a fixed order."""
    phrases = [*SIZES, *COLORS, *SHAPES, *BACKGROUNDS, *PLACES, *RELATIONS, *COUNTS, "a in the on background"]
    phrases += [f"{shape}{'es' if shape == 'cross' else 's'}" for shape in SHAPES]
    return list(dict.fromkeys(word for phrase in phrases for word in phrase.split()))


def build_scene_tokenizer(folder: str | Path) -> CLIPTokenizer:
    """A standard CLIP tokenizer with a small vocabulary, which is written to `folder`.

    Byte-pair merges build each word of the captions from its left end, so each of these words is one token.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    alphabet = [chr(code) for code in range(33, 127)]
    tokens = [*alphabet, *(f"{letter}</w>" for letter in alphabet)]
    merges = _merges(scene_words())
    tokens += ["".join(merge) for merge in merges]
    tokens = [*dict.fromkeys(tokens), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({token: number for number, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(" ".join(merge) for merge in merges) + "\n")
    return CLIPTokenizer.from_pretrained(folder, model_max_length=MAX_LENGTH)


def _merges(words: list[str]) -> list[tuple[str, str]]:
    """Merges, in the order of their priority, that make one token of each word, built from its left end.

    A merge for one word can split another word (`r e` for `red` splits `green`), unless the merges for the other word come
    first. So words that are split move to the front, until there is none.
    """
    order = sorted(words)
    for _ in range(len(words) ** 2):
        merges: dict[tuple[str, str], int] = {}
        for word in order:
            letters = _letters(word)
            for end in range(1, len(letters)):
                merges.setdefault(("".join(letters[:end]), letters[end]), len(merges))
        split = [word for word in order if len(_apply(merges, word)) > 1]
        if not split:
            return list(merges)
        order.remove(split[0])
        order.insert(0, split[0])
    raise ValueError("no order of merges keeps every word whole")


def _apply(merges: dict[tuple[str, str], int], word: str) -> list[str]:
    """Byte-pair encoding of one word."""
    parts = _letters(word)
    while True:
        ranked = [(merges[pair], i) for i, pair in enumerate(itertools.pairwise(parts)) if pair in merges]
        if not ranked:
            return parts
        i = min(ranked)[1]
        parts[i : i + 2] = ["".join(parts[i : i + 2])]


def _letters(word: str) -> list[str]:
    return [*word[:-1], f"{word[-1]}</w>"]
