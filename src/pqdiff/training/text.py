"""Captions to the text encoder's states, as Stable Diffusion's pipelines make them."""

import torch


def encode_captions(tokenizer, text_encoder, captions: list[str]) -> torch.Tensor:
    """States `(B, T, D)` of captions; gradients flow if the encoder is trained."""
    tokens = tokenizer(
        captions, padding="max_length", max_length=tokenizer.model_max_length, truncation=True, return_tensors="pt"
    )
    device = next(text_encoder.parameters()).device
    use_mask = getattr(getattr(text_encoder, "config", None), "use_attention_mask", False)
    mask = tokens.attention_mask.to(device) if use_mask else None
    return text_encoder(tokens.input_ids.to(device), attention_mask=mask)[0]
