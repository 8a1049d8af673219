"""Hidden states of the text encoder for captions, as the pipelines of Stable Diffusion make them."""

from types import SimpleNamespace

import torch

from pqdiff.models.fingerprint import fingerprint


def encode_captions(tokenizer, text_encoder, captions: list[str]) -> torch.Tensor:
    """Hidden states `(B, T, D)` of captions, with gradients if the text encoder is trained."""
    tokens = tokenizer(
        captions, padding="max_length", max_length=tokenizer.model_max_length, truncation=True, return_tensors="pt"
    )
    device = next(text_encoder.parameters()).device
    use_mask = getattr(getattr(text_encoder, "config", None), "use_attention_mask", False)
    mask = tokens.attention_mask.to(device) if use_mask else None
    return text_encoder(tokens.input_ids.to(device), attention_mask=mask)[0]


def text_fingerprint(text_encoder) -> str:
    """16 hexadecimal digits that depend on the weights of a text encoder alone."""
    return fingerprint(SimpleNamespace(config={}, state_dict=text_encoder.state_dict))


@torch.no_grad()
def frozen_states(batch: dict, pipeline, device: torch.device) -> torch.Tensor:
    """Hidden states `(B, T, D)` of the captions of a batch, by a frozen text encoder or from the latent cache."""
    if "text_embeddings" in batch:
        return batch["text_embeddings"].to(device)
    return encode_captions(pipeline.tokenizer, pipeline.text_encoder, batch["captions"])
