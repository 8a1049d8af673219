"""Train an autoencoder with quantized latents (PQGAN): from random weights, the closed form, or another autoencoder.

    accelerate launch training/train_pqgan.py --config training/configs/pqgan/smoke.yaml --output_dir runs/smoke
    accelerate launch training/train_pqgan.py --preset f8-d128-s64-k512 --dataset photos/ --hold_out 10 --output_dir runs/f8

The loss has L1, L2, LPIPS (VGG16; `--perceptual` names another network) and a patch discriminator; a weight of 0 leaves a
part out. `--init closed_form` first fits a linear transform and the codebooks; with `--model` and transform_type `sum`,
networks beside it begin with an output of 0. One step is one batch, in which both optimizers step. If the process is killed
at any moment, the same command with `--resume` gives the same weights. The result is OUTPUT_DIR/autoencoder, a `vae` for
stock pipelines.
"""

import math

import torch

from pqdiff import AutoencoderPQ
from pqdiff.adaptation.stages import Stage
from pqdiff.data.images.reading import normalize
from pqdiff.fitting.latents import measure_latents
from pqdiff.hub.cards import TokenizerEvaluation
from pqdiff.metrics import CodebookUsage
from pqdiff.training.arguments import TrainerParser
from pqdiff.training.autoencoders import (
    ModelOptions,
    add_model_arguments,
    center_crops,
    initial_autoencoder,
    weight_groups,
)
from pqdiff.training.codewords import CodewordRestarts
from pqdiff.training.first_lines import say_what_runs
from pqdiff.training.images import ImageOptions, add_image_arguments, open_image_samples, open_images, spread
from pqdiff.training.publish import PublishOptions, add_publish_arguments
from pqdiff.training.reconstruction import (
    ReconstructionOptions,
    ReconstructionValidation,
    add_reconstruction_arguments,
)
from pqdiff.training.run_options import RunOptions
from pqdiff.training.schedule import ScheduleOptions
from pqdiff.training.session import Session
from pqdiff.training.stopping import run
from pqdiff.training.tokenizer_loss import LossOptions, add_loss_arguments, build_loss
from pqdiff.training.tokenizer_result import save_tokenizer


def parse(argv=None):
    parser = TrainerParser(__doc__)
    add_model_arguments(parser)
    parser.add_argument("--gradient_checkpointing", action="store_true", help="less memory, more time")
    parser.add_argument("--restart_dead_codewords", type=int, default=0, help="steps between restarts; 0: never")
    rates = parser.add_argument_group("learning")
    rates.add_argument("--steps", type=int, default=100_000, help="optimizer steps: batches")
    rates.add_argument("--learning_rate", type=float, default=4.5e-6, help="of the networks; never scaled")
    rates.add_argument("--encoder_learning_rate", type=float, help="of the encoder network; 0: frozen; default: same")
    rates.add_argument("--linear_learning_rate", type=float, help="of the linear path; 0: frozen; default: same")
    rates.add_argument("--codebook_learning_rate", type=float, help="of the codewords; 0: frozen; default: same")
    rates.add_argument("--disc_learning_rate", type=float, help="of the discriminator; default: same")
    add_loss_arguments(parser)
    add_image_arguments(parser)
    add_reconstruction_arguments(parser)
    add_publish_arguments(parser)
    parser.set_defaults(adam_betas=(0.5, 0.9), weight_decay=0.0)
    args = parser.parse(argv)
    if args.disc_learning_rate is None:
        args.disc_learning_rate = args.learning_rate
    PublishOptions.from_args(args).check()
    return args


def main(argv=None) -> AutoencoderPQ:
    """Train, and return the autoencoder that was saved."""
    args = parse(argv)
    stage = Stage(args.resolution, args.steps, 1.0)  # learning rates are parts of the peaks of the groups
    start, data, terms = ModelOptions.from_args(args), ImageOptions.from_args(args), LossOptions.from_args(args)
    images, held_out = open_images(data)
    session = Session(RunOptions.from_args(args), args.steps, "pqdiff-pqgan")
    device = session.device
    autoencoder = initial_autoencoder(session, start, spread(images, args.fit_images, args.seed), args.resolution)
    autoencoder.to(device).train()
    samples = open_image_samples(data, images, autoencoder.downsample_factor)
    if args.gradient_checkpointing:
        autoencoder.enable_gradient_checkpointing()
    loss_of = build_loss(terms, device, args.seed + 1)
    discriminator = loss_of.network
    restarts = CodewordRestarts(session, autoencoder, args.restart_dead_codewords)

    groups = optimizer_groups(args, autoencoder)
    optimizers = [torch.optim.AdamW(groups, 1.0, args.adam_betas, weight_decay=args.weight_decay)]
    models = {"autoencoder": autoencoder}
    session.start_ema(models)
    if discriminator is not None:
        models["discriminator"] = discriminator
        group = {"params": list(discriminator.parameters()), "name": "discriminator", "peak": args.disc_learning_rate}
        optimizers.append(torch.optim.AdamW([group], 1.0, args.adam_betas, weight_decay=args.weight_decay))
    say_what_runs(
        session,
        autoencoder,
        groups,
        images,
        resolution=args.resolution,
        discriminator=discriminator,
        disc_start=args.disc_start,
        disc_learning_rate=args.disc_learning_rate,
    )
    wrapped, optimizer, *disc_optimizers = session.prepare(models, *optimizers)
    loss_of.network = wrapped.get("discriminator")
    result = session.ema["autoencoder"].model if session.ema else autoencoder
    validation = None
    if held_out is not None and args.validation_steps:
        validation_images = spread(held_out, args.validation_images, args.seed)
        options = ReconstructionOptions.from_args(args)
        validation = ReconstructionValidation(session, options, result, validation_images, loss_of.perceptual)
        if session.step in (0, args.steps):  # what training begins with, or what a finished run ended with
            validation.measure(session.step)

    for step in session.steps(samples, stage, ScheduleOptions.from_args(args), validate=validation):
        for batch in step.micro_batches():
            pixels = normalize(batch["pixels"].to(device))
            with session.autocast():
                # Without tokens where the quantizer has none while it trains.
                output, quantizer_loss, indices, quantizer_logs = wrapped["autoencoder"](pixels, return_dict=False)
            loss, logs = loss_of.generator(pixels, output, quantizer_loss, autoencoder.last_layer, step.number)
            step.backward(loss)
            step.update(optimizer)
            if loss_of.discriminator_factor(step.number):
                loss, disc_logs = loss_of.discriminator(pixels, output, step.number)
                step.backward(loss, log=False)
                step.update(disc_optimizers[0])
                logs |= disc_logs
            restarts.count(indices, batch["pixels"], step.number)
        autoencoder.quantizer.after_step(step.number)
        restarts.step(step.number, optimizer)
        step.log(learning_rate=args.learning_rate * step.learning_rate)
        if step.is_logged:
            step.log(**numbers_for_log({**logs, **quantizer_logs}, indices, autoencoder))

    result.to(device).eval()
    # On every rank, so that all return the same model.
    measure_latents(result, center_crops(spread(images, args.fit_images, args.seed), args.resolution))
    if session.accelerator.is_main_process and discriminator is not None:
        discriminator.save_pretrained(session.folder.claim("discriminator"))
    evaluation = None
    if validation is not None:
        evaluation = TokenizerEvaluation(
            validation.count, data.validation_name, validation.resolution, validation.values
        )
    save_tokenizer(
        session,
        result,
        PublishOptions.from_args(args),
        training=describe_training(session, args, start, data, terms),
        evaluation=evaluation,
    )
    session.accelerator.wait_for_everyone()
    session.close()
    return result


def optimizer_groups(args, autoencoder) -> list[dict]:
    """Groups of weights that learn, each with the peak of its learning rate; all other weights are frozen."""
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


def numbers_for_log(logs: dict, indices: torch.Tensor | None, autoencoder) -> dict[str, float]:
    """Numbers of the last micro-batch of this rank: parts of the loss and, if there are tokens, use of the codebooks."""
    numbers = {name: value for name, value in logs.items() if name != "loss"}
    if indices is not None:
        usage = CodebookUsage(autoencoder.quantizer.codebook_sizes, sync_on_compute=False).to(indices.device)
        usage.update(indices)
        computed = usage.compute()
        numbers |= {f"batch_codebook_{name}": computed[name] for name in ("utilization", "h_n")}
    return {name: round(float(value), 6) for name, value in numbers.items()}


def describe_training(session: Session, args, start: ModelOptions, data: ImageOptions, terms: LossOptions) -> str:
    """How the autoencoder was trained, for its card."""
    ema = f" The weights are an EMA (decay {args.ema_decay:g})." if args.ema_decay else ""
    return (
        f"By `training/train_pqgan.py` from {start.describe()} (seed {args.seed}), on {data.name}: "
        f"{session.total_steps:,} steps of {session.layout.global_batch_size} crops of {args.resolution} px, learning "
        f"rate {args.learning_rate:g}; loss: {terms.describe()}.{ema}"
    )


if __name__ == "__main__":
    run(main)
