"""What the training of an autoencoder says before its first step."""

import torch

from pqdiff.data.captions.captioned import CaptionedImages, StreamedImages
from pqdiff.models.autoencoder_pq import AutoencoderPQ
from pqdiff.training.autoencoders import activation_bytes, weight_groups
from pqdiff.training.batches import BatchPlan
from pqdiff.training.session import Session


def say_what_runs(
    session: Session,
    autoencoder: AutoencoderPQ,
    groups: list[dict],
    images: CaptionedImages | StreamedImages,
    *,
    resolution: int,
    discriminator: torch.nn.Module | None = None,
    disc_start: int = 0,
    disc_learning_rate: float = 0.0,
) -> None:
    """Say parameters, learning rates, bits, batch, epochs and memory. Only the main process does anything.

    Args:
        session: the run.
        autoencoder: model on the device that it trains on.
        groups: parameter groups of its optimizer, each with `params`, `name` and the `peak` of its learning rate.
        images: data to train on.
        resolution: side of the training crops in pixels.
        discriminator: model, or None.
        disc_start: first step with an adversarial loss.
        disc_learning_rate: learning rate of the discriminator.
    """
    if not session.accelerator.is_main_process:
        return
    options, layout = session.options, session.layout
    sizes = {name: sum(p.numel() for p in ps) for name, ps in weight_groups(autoencoder).items()}
    session.say(
        f"autoencoder: {sum(sizes.values()):,} parameters: " + ", ".join(f"{n} {c:,}" for n, c in sizes.items())
    )
    session.say("learning rates: " + ", ".join(f"{group['name']} {group['peak']:g}" for group in groups))
    if discriminator is not None:
        session.say(
            f"discriminator: {sum(p.numel() for p in discriminator.parameters()):,} parameters, in the loss from "
            f"step {disc_start:,} on, learning rate {disc_learning_rate:g}"
        )
    quantizer = autoencoder.quantizer
    session.say(
        f"{len(quantizer.codebook_sizes)} tokens of up to {max(quantizer.codebook_sizes)} values per position, "
        f"{autoencoder.bits_per_pixel:g} bits per pixel"
    )
    batch = (
        f"{layout.global_batch_size} images of {resolution} px a step ({layout.batch_size} x "
        f"{layout.accumulation} micro-steps x {layout.processes} process(es))"
    )
    if isinstance(images, StreamedImages):
        session.say(f"{batch}; the length of an epoch is not known")
    else:
        epoch = BatchPlan([0] * len(images), layout.global_batch_size, options.seed).steps_per_epoch
        session.say(
            f"{batch}; {len(images):,} images, {epoch:,} steps an epoch, {session.total_steps / epoch:.3g} epochs"
        )
    learning = sum(p.numel() for group in groups for p in group["params"])
    weights = 4 * sum(sizes.values()) * (2 if options.ema_decay else 1) + 12 * learning
    weights += 16 * sum(p.numel() for p in discriminator.parameters()) if discriminator is not None else 0
    activations = activation_bytes(autoencoder, resolution) * layout.batch_size
    half = (
        " (half of that with --mixed_precision)"
        if options.mixed_precision == "no"
        else " in fp32, about half as it is"
    )
    session.say(
        f"memory, estimated: {weights / 2**30:.2f} GiB of weights, gradients and optimizer; {activations / 2**30:.2f} GiB "
        f"of activations{half}, without those of a perceptual network and the discriminator"
    )
