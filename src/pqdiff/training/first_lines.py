"""What an autoencoder's run says before its first step."""

import torch

from ..data.captioned import StreamedImages
from ..models import AutoencoderPQ
from .autoencoders import activation_bytes, weight_groups
from .batches import BatchPlan
from .session import Session


def say_what_runs(
    session: Session, autoencoder: AutoencoderPQ, discriminator: torch.nn.Module | None, groups: list[dict], photos
) -> None:
    """Parameters, learning rates, rate in bits, batch, epochs and memory. Only the main process does anything.

    Args:
        session: of the run.
        autoencoder: on the device it trains on.
        discriminator: or None.
        groups: of the optimizer, each with `params`, `name` and the `peak` of its learning rate.
        photos: to train on.
    """
    if not session.accelerator.is_main_process:
        return
    args, layout = session.args, session.layout
    sizes = {name: sum(p.numel() for p in ps) for name, ps in weight_groups(autoencoder).items()}
    session.say(
        f"autoencoder: {sum(sizes.values()):,} parameters: " + ", ".join(f"{n} {c:,}" for n, c in sizes.items())
    )
    session.say("learning rates: " + ", ".join(f"{group['name']} {group['peak']:g}" for group in groups))
    snapped = autoencoder.config.hidden_channels and not autoencoder.config.class_bases
    if snapped and any(group["name"] == "codebooks" for group in groups):
        session.say(
            "with hidden_channels only the hidden parts of codewords learn: what the latents show of them stays"
        )
    if discriminator is not None:
        session.say(
            f"discriminator: {sum(p.numel() for p in discriminator.parameters()):,} parameters, counts from step "
            f"{args.disc_start:,}, learning rate {args.disc_learning_rate:g}"
        )
    quantizer = autoencoder.quantizer
    session.say(
        f"{len(quantizer.codebook_sizes)} tokens of up to {max(quantizer.codebook_sizes)} values per position, "
        f"{autoencoder.bits_per_pixel:g} bits per pixel"
    )
    batch = (
        f"{layout.global_batch_size} images of {args.resolution} px a step ({layout.batch_size} x "
        f"{layout.accumulation} micro-steps x {layout.processes} process(es))"
    )
    if isinstance(photos, StreamedImages):
        session.say(f"{batch}; the length of an epoch is not known")
    else:
        epoch = BatchPlan([0] * len(photos), layout.global_batch_size, args.seed).steps_per_epoch
        session.say(f"{batch}; {len(photos):,} images, {epoch:,} steps an epoch, {args.steps / epoch:.3g} epochs")
    learning = sum(p.numel() for group in groups for p in group["params"])
    weights = 4 * sum(sizes.values()) * (2 if args.ema_decay else 1) + 12 * learning
    weights += 16 * sum(p.numel() for p in discriminator.parameters()) if discriminator is not None else 0
    activations = activation_bytes(autoencoder, args.resolution) * layout.batch_size
    half = (
        " (half of that with --mixed_precision)" if args.mixed_precision == "no" else " in fp32, about half as it is"
    )
    session.say(
        f"memory, estimated: {weights / 2**30:.2f} GiB of weights, gradients and optimizer; {activations / 2**30:.2f} GiB "
        f"of activations{half}, those of VGG16 and discriminator not counted"
    )
