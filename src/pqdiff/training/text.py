"""Captions to the text encoder's states, as Stable Diffusion's pipelines make them."""

from types import SimpleNamespace

import torch

from ..models.fingerprint import fingerprint


def encode_captions(tokenizer, text_encoder, captions: list[str]) -> torch.Tensor:
    """States `(B, T, D)` of captions; gradients flow if the encoder is trained."""
    tokens = tokenizer(
        captions, padding="max_length", max_length=tokenizer.model_max_length, truncation=True, return_tensors="pt"
    )
    device = next(text_encoder.parameters()).device
    use_mask = getattr(getattr(text_encoder, "config", None), "use_attention_mask", False)
    mask = tokens.attention_mask.to(device) if use_mask else None
    return text_encoder(tokens.input_ids.to(device), attention_mask=mask)[0]


def text_fingerprint(text_encoder) -> str:
    """16 hexadecimal digits that text encoders of equal weights share."""
    return fingerprint(SimpleNamespace(config={}, state_dict=text_encoder.state_dict))


@torch.no_grad()
def frozen_states(batch: dict, pipeline, device: torch.device) -> torch.Tensor:
    """States `(B, T, D)` of a batch's captions by a frozen text encoder, from the latent cache if it holds them."""
    if "text_embeddings" in batch:
        return batch["text_embeddings"].to(device)
    return encode_captions(pipeline.tokenizer, pipeline.text_encoder, batch["captions"])
