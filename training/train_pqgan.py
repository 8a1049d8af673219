"""Train an autoencoder with quantized latents: PQGAN, from random weights, the closed form, or another autoencoder.

    accelerate launch training/train_pqgan.py --config training/configs/pqgan/smoke.yaml --output_dir runs/smoke
    accelerate launch training/train_pqgan.py --preset f8-d128-s64-k512 --dataset photos/ --hold_out 10 --output_dir runs/f8

The loss is L1, LPIPS (VGG16) and a patch discriminator, each of which a weight of 0 leaves out. `--init closed_form`
fits the linear path and the codebooks first; with `--model '{conv_networks: true}'` networks begin beside it, silent.
One step is one batch, in which both optimizers step. Killed at any moment, the same command with `--resume` ends in the
same weights. The result is OUTPUT_DIR/autoencoder, which stock pipelines take as their `vae`.
"""

import math

import torch

from pqdiff import AutoencoderPQ
from pqdiff.data.images import normalize
from pqdiff.losses import PatchDiscriminator, PerceptualLoss, VQGANLoss
from pqdiff.metrics import CodebookUsage
from pqdiff.models.presets import PRESETS
from pqdiff.pipelines.variants import Stage
from pqdiff.training.arguments import TrainerParser, construct, positive, structured
from pqdiff.training.autoencoders import (
    initial_autoencoder,
    last_layer,
    measure_standardization,
    weight_groups,
)
from pqdiff.training.codewords import CodewordCounts, check_restartable, restart_codewords
from pqdiff.training.first_lines import say_what_runs
from pqdiff.training.photos import add_photo_arguments, open_photo_samples, open_photos, spread
from pqdiff.training.publish import add_publish_arguments, check_publish_arguments
from pqdiff.training.randomness import generator_for
from pqdiff.training.reconstruction import ReconstructionValidation, add_reconstruction_arguments
from pqdiff.training.schedule import learning_rate
from pqdiff.training.session import Session, run
from pqdiff.training.tokenizer_result import save_tokenizer


def parse(argv=None):
    parser = TrainerParser(__doc__)
    model = parser.add_argument_group("model")
    model.add_argument("--preset", help=f"{', '.join(PRESETS)}, or any other by the same scheme")
    model.add_argument("--init", default="random", help="random, closed_form, or an autoencoder: name, folder, Hub id")
    model.add_argument("--model", type=structured, default={}, help="constructor arguments of AutoencoderPQ")
    model.add_argument(
        "--fit_images", type=positive, default=1000, help="to fit the closed form, and latents' statistics, to"
    )
    model.add_argument("--gradient_checkpointing", action="store_true", help="less memory, more time")
    model.add_argument("--restart_dead_codewords", type=int, default=0, help="steps between restarts; 0: never")
    rates = parser.add_argument_group("learning")
    rates.add_argument("--steps", type=int, default=100_000, help="optimizer steps: batches")
    rates.add_argument("--learning_rate", type=float, default=4.5e-6, help="of the networks, as it is: never scaled")
    rates.add_argument("--encoder_learning_rate", type=float, help="of the encoder network; 0: frozen; default: same")
    rates.add_argument("--linear_learning_rate", type=float, help="of the path over patches; 0: frozen; default: same")
    rates.add_argument("--codebook_learning_rate", type=float, help="of the codewords; 0: frozen; default: same")
    rates.add_argument(
        "--networks_first_steps", type=int, default=0, help="steps before linear path and codewords learn"
    )
    loss = parser.add_argument_group("loss")
    loss.add_argument("--l1_weight", type=float, default=1.0, help="of absolute differences")
    loss.add_argument("--l2_weight", type=float, default=0.0, help="of squared differences")
    loss.add_argument("--quantizer_weight", type=float, default=1.0, help="of the quantizer's loss")
    loss.add_argument("--perceptual_weight", type=float, default=1.0, help="of LPIPS; 0: VGG16 is not needed")
    loss.add_argument("--perceptual_weights", help="file with VGG16's weights; default: $PQDIFF_VGG16, else the Hub's")
    loss.add_argument("--perceptual_sha256", help="beginning of that file's SHA-256, if it is another than usual")
    loss.add_argument("--adversarial_weight", type=float, default=0.8, help="on top of the adaptive one; 0: no GAN")
    loss.add_argument("--disc_start", type=int, default=1, help="first step in which the discriminator counts")
    loss.add_argument("--disc_pretrain_steps", type=int, default=1, help="steps that it learns before that")
    loss.add_argument("--disc_loss", choices=("hinge", "vanilla"), default="hinge", help="of the discriminator")
    loss.add_argument("--disc_learning_rate", type=float, help="default: same")
    loss.add_argument("--disc_init", help="folder or Hub id of a discriminator to go on from")
    loss.add_argument(
        "--discriminator", type=structured, default={}, help="constructor arguments of PatchDiscriminator"
    )
    add_photo_arguments(parser)
    add_reconstruction_arguments(parser)
    add_publish_arguments(parser)
    parser.set_defaults(adam_betas=(0.5, 0.9), weight_decay=0.0)
    args = parser.parse(argv)
    check_publish_arguments(args)
    return args


def main(argv=None) -> AutoencoderPQ:
    """Train, and give the autoencoder that was saved."""
    args = parse(argv)
    stage = Stage(args.resolution, args.steps, 1.0, "all")  # learning rates are parts of their peaks
    photos, held_out = open_photos(args)
    session = Session(args, args.steps)
    accelerator, device = session.accelerator, session.accelerator.device
    checkpoint = session.find()
    autoencoder = initial_autoencoder(session, spread(photos, args.fit_images, args.seed), bool(checkpoint))
    autoencoder.to(device).train()
    samples = open_photo_samples(args, photos, autoencoder.downsample_factor)
    if args.gradient_checkpointing:
        autoencoder.enable_gradient_checkpointing()
    discriminator = build_discriminator(args, device)
    perceptual = None
    if args.perceptual_weight:
        perceptual = PerceptualLoss(args.perceptual_weights, sha256=args.perceptual_sha256).to(device)
    criterion = VQGANLoss(
        discriminator,
        perceptual,
        l1_weight=args.l1_weight,
        l2_weight=args.l2_weight,
        perceptual_weight=args.perceptual_weight,
        quantizer_weight=args.quantizer_weight,
        disc_start=args.disc_start,
        disc_pretrain_steps=args.disc_pretrain_steps,
        disc_weight=args.adversarial_weight,
        disc_loss=args.disc_loss,
    )
    counts = CodewordCounts(autoencoder.quantizer.codebook_sizes).to(device)
    if args.restart_dead_codewords:
        check_restartable(autoencoder)
        accelerator.register_for_checkpointing(counts)

    groups = optimizer_groups(args, autoencoder)
    parameters = [parameter for group in groups for parameter in group["params"]]
    optimizer = torch.optim.AdamW(groups, 1.0, args.adam_betas, weight_decay=args.weight_decay)
    models, optimizers = {"autoencoder": autoencoder}, [optimizer]
    session.average(models)
    if discriminator is not None:
        models["discriminator"] = discriminator
        group = {"params": list(discriminator.parameters()), "name": "discriminator", "peak": args.disc_learning_rate}
        optimizers.append(torch.optim.AdamW([group], 1.0, args.adam_betas, weight_decay=args.weight_decay))
    say_what_runs(session, autoencoder, discriminator, groups, photos)
    wrapped, optimizer, *disc_optimizers = session.prepare(models, *optimizers)
    criterion.network = wrapped.get("discriminator")
    if checkpoint:
        session.load(checkpoint[0])
    session.start_trackers("pqdiff-pqgan")

    validation, numbers = None, {}
    if held_out is not None and args.validation_steps:
        validation = ReconstructionValidation(session, spread(held_out, args.validation_images, args.seed), perceptual)
        if session.step in (0, args.steps):  # what training starts from; what a run that was done ended with
            numbers = validation(result_of(session, autoencoder), session.step)

    batches = samples.batches(session.layout, args.seed, session.step, args.steps, args.dataloader_workers)
    for micro_batches in batches:
        step = session.step
        factor = learning_rate(stage, step, args.lr_schedule, args.lr_warmup_steps)
        for group in (group for opt in (optimizer, *disc_optimizers) for group in opt.param_groups):
            resting = step < args.networks_first_steps and group["name"] in ("linear", "codebooks")
            group["lr"] = 0.0 if resting else group["peak"] * factor
        for batch in micro_batches:
            with accelerator.accumulate(*wrapped.values()):
                images = normalize(batch["pixels"].to(device))
                with accelerator.autocast():
                    output, quantizer_loss, indices = wrapped["autoencoder"](images, return_dict=False)
                loss, logs = criterion.generator(images, output, quantizer_loss, last_layer(autoencoder), step)
                session.check_finite(loss, batch)
                accelerator.backward(loss)
                session.clip_gradients(parameters)
                optimizer.step()
                optimizer.zero_grad()
                if criterion.discriminator_factor(step):
                    loss, disc_logs = criterion.discriminator(images, output, step)
                    session.check_finite(loss, batch, log=False)
                    accelerator.backward(loss)
                    session.clip_gradients(discriminator.parameters())
                    disc_optimizers[0].step()
                    disc_optimizers[0].zero_grad()
                    logs |= disc_logs
            if args.restart_dead_codewords:
                counts.update(indices)
        session.update_averages(models)
        if args.restart_dead_codewords and (step + 1) % args.restart_dead_codewords == 0:
            restart(session, autoencoder, counts, images, optimizer)
        if validation is not None and validation.due(step + 1):
            numbers = validation(result_of(session, autoencoder), step + 1)
        logged = numbers_for_log(session, logs, indices, autoencoder)
        session.end_of_step({"learning_rate": args.learning_rate * factor, **logged})

    result = result_of(session, autoencoder).to(device).eval()
    if accelerator.is_main_process:
        measure_standardization(result, spread(photos, args.fit_images, args.seed), args.resolution)
        if discriminator is not None:
            discriminator.save_pretrained(args.output_dir / "discriminator")
    save_tokenizer(session, result, numbers, validation.count if validation is not None else 0)
    accelerator.wait_for_everyone()
    session.close()
    return result


def build_discriminator(args, device) -> PatchDiscriminator | None:
    """A fresh discriminator, that of `--disc_init`, or None without an adversarial loss."""
    if not args.adversarial_weight:
        return None
    args.disc_learning_rate = args.learning_rate if args.disc_learning_rate is None else args.disc_learning_rate
    if args.disc_init:
        return PatchDiscriminator.from_pretrained(args.disc_init).to(device).train()
    torch.manual_seed(args.seed + 1)
    return construct(PatchDiscriminator, "--discriminator", args.discriminator).to(device).train()


def optimizer_groups(args, autoencoder) -> list[dict]:
    """Groups of weights that learn, each with the peak of its learning rate; the others are frozen."""
    groups = []
    given = {
        "encoder": args.encoder_learning_rate,
        "linear": args.linear_learning_rate,
        "codebooks": args.codebook_learning_rate,
    }
    for name, parameters in weight_groups(autoencoder).items():
        peak = args.learning_rate if given.get(name) is None else given[name]
        if not 0 <= peak < math.inf:
            raise ValueError(f"learning rate of the {name} ({peak}) must be a finite number, 0 or greater")
        if not peak:
            for parameter in parameters:
                parameter.requires_grad_(False)
        elif parameters:
            groups.append({"params": parameters, "name": name, "peak": peak})
    if not groups:
        raise ValueError("nothing learns: one of the learning rates must be above 0")
    return groups


def result_of(session: Session, autoencoder):
    """The averaged weights where there are some."""
    return session.averages["autoencoder"].average if session.averages else autoencoder


def restart(session: Session, autoencoder, counts: CodewordCounts, images, optimizer) -> None:
    """Give codewords that no rank has used since the last time a new place, the same on all ranks."""
    accelerator = session.accelerator
    total = counts.counts
    if accelerator.num_processes > 1:
        from accelerate.utils import broadcast

        total, images = accelerator.reduce(total, "sum"), broadcast(images.contiguous())
    generator = generator_for(session.args.seed, "restart", session.step)
    moved = restart_codewords(autoencoder, total, images, generator, optimizer, session.averages)
    counts.counts.zero_()
    if moved:
        session.say(f"step {session.step + 1}: {moved:,} codewords that were not in use have a new place")


def numbers_for_log(session: Session, logs: dict, indices, autoencoder) -> dict[str, float]:
    """What the last micro-batch of this rank says, for lines of the log that are written."""
    if (session.step + 1) % session.args.log_steps and session.step + 1 != session.total_steps:
        return {}
    usage = CodebookUsage(autoencoder.quantizer.codebook_sizes, sync_on_compute=False).to(indices.device)
    usage.update(indices)
    used = {
        f"batch_codebook_{name}": value for name, value in usage.compute().items() if name in ("utilization", "h_n")
    }
    return {name: round(float(value), 6) for name, value in {**logs, **used}.items() if name != "loss"}


if __name__ == "__main__":
    run(main)
