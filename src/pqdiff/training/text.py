"""Hidden states of the text encoder for captions, as the pipelines of Stable Diffusion make them."""

import re
from types import SimpleNamespace

import torch

from pqdiff.models.fingerprint import fingerprint
from pqdiff.training.session import Session


def encode_captions(tokenizer, text_encoder, captions: list[str]) -> torch.Tensor:
    """Hidden states `(B, T, D)` of captions, with gradients if the text encoder is trained."""
    tokens = tokenizer(
        captions, padding="max_length", max_length=tokenizer.model_max_length, truncation=True, return_tensors="pt"
    )
    device = next(text_encoder.parameters()).device
    use_mask = getattr(getattr(text_encoder, "config", None), "use_attention_mask", False)
    mask = tokens.attention_mask.to(device) if use_mask else None
    return text_encoder(tokens.input_ids.to(device), attention_mask=mask)[0]


def are_spelled(tokenizer, captions: list[str]) -> bool:
    """Whether a tokenizer has no tokens for the words of captions, but spells them letter by letter."""
    words = [word for caption in captions for word in re.findall(r"[^\W\d_]{3,}", caption)]
    tokens = sum(len(tokenizer(word, add_special_tokens=False).input_ids) for word in words)
    return tokens > 0.5 * sum(map(len, words))


class SpellingNote:
    """Says once that the words of captions are spelled, after the first batch with captions.

    Args:
        session: the run.
        tokenizer: that of the text encoder.
    """

    def __init__(self, session: Session, tokenizer):
        self.session, self.tokenizer, self._done = session, tokenizer, False

    def __call__(self, captions: list[str]) -> None:
        """Look at the captions of a batch."""
        if self._done or not any(captions):
            return
        self._done = True
        if are_spelled(self.tokenizer, captions):
            example = next(filter(None, captions))
            self.session.say(
                f"the tokenizer spells the words of captions like {example!r} letter by letter: its text encoder does not "
                "know them, and long captions are cut"
            )


def text_fingerprint(text_encoder) -> str:
    """16 hexadecimal digits that depend on the weights of a text encoder alone."""
    return fingerprint(SimpleNamespace(config={}, state_dict=text_encoder.state_dict))


@torch.no_grad()
def frozen_states(batch: dict, pipeline, device: torch.device) -> torch.Tensor:
    """Hidden states `(B, T, D)` of the captions of a batch, by a frozen text encoder or from the latent cache."""
    if "text_embeddings" in batch:
        return batch["text_embeddings"].to(device)
    return encode_captions(pipeline.tokenizer, pipeline.text_encoder, batch["captions"])
