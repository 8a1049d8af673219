"""Do the components of a pipeline fit each other? Asked when it is built, where the answer can still name both sides."""

from diffusers import ModelMixin, SchedulerMixin
from transformers import PreTrainedModel

from pqdiff.adaptation.prediction_types import PREDICTION_TYPES


def check_fit(
    vae: ModelMixin | None,
    text_encoder: PreTrainedModel | None,
    unet: ModelMixin | None,
    scheduler: SchedulerMixin | None,
    inpainting: bool = False,
) -> None:
    """Check channels of UNet and autoencoder, width of the text embeddings, and the scheduler's prediction type.

    Components may be None: a pipeline may be built in parts.

    Args:
        inpainting: whether the UNet may see a mask and a masked image beside the latents (2 d + 1 channels).

    Raises:
        ValueError: naming both sides of what does not fit.
    """
    if unet is not None and vae is not None:
        _check_channels(unet.config, vae.config.latent_channels, inpainting)
    if unet is not None and text_encoder is not None:
        _check_text_width(unet.config, text_encoder.config)
    if scheduler is not None:
        # Schedulers of flow matching have no such key: there is nothing to choose.
        prediction_type = scheduler.config.get("prediction_type", PREDICTION_TYPES[0])
        if prediction_type not in PREDICTION_TYPES:
            raise ValueError(
                f"scheduler.config.prediction_type ({prediction_type!r}) is unknown: it must be what the UNet was "
                f"trained to predict, one of {', '.join(PREDICTION_TYPES)}"
            )


def _check_channels(unet, latent_channels: int, inpainting: bool) -> None:
    seen = 2 * latent_channels + 1
    allowed = (latent_channels, seen) if inpainting else (latent_channels,)
    if unet.in_channels not in allowed:
        fix = "widen the UNet with pqdiff.adaptation.widen.widen_unet or from_stable_diffusion"
        if unet.in_channels == seen:
            fix = "this UNet was made for inpainting, take PQStableDiffusionInpaintPipeline"
        also = f", or {seen} to see mask and masked image" if inpainting else ""
        raise ValueError(
            f"unet.config.in_channels ({unet.in_channels}) must be vae.config.latent_channels "
            f"({latent_channels}){also}: {fix}"
        )
    if unet.out_channels != latent_channels:
        raise ValueError(
            f"unet.config.out_channels ({unet.out_channels}) must be vae.config.latent_channels ({latent_channels}): "
            "widen the UNet with pqdiff.adaptation.widen.widen_unet or from_stable_diffusion"
        )


def _check_text_width(unet, text_encoder) -> None:
    # A UNet that projects text by itself (encoder_hid_dim) takes the width before that projection.
    key = "encoder_hid_dim" if unet.encoder_hid_dim is not None else "cross_attention_dim"
    expected = unet[key]
    widths = set(expected) if isinstance(expected, list | tuple) else {expected}
    if widths != {text_encoder.hidden_size}:
        raise ValueError(
            f"text_encoder.config.hidden_size ({text_encoder.hidden_size}) must be unet.config.{key} ({expected}): "
            "take the text encoder that the UNet was trained with"
        )
