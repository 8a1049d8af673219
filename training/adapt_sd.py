"""Adapt a pretrained Stable Diffusion to product-quantized latents: first the new projections, then all of the UNet.

    accelerate launch training/adapt_sd.py --variant quick --dataset photos/ --output_dir runs/quick
    accelerate launch training/adapt_sd.py --config training/configs/adapt_sd/smoke.yaml --output_dir runs/smoke

Stages, autoencoder, sizes and samples per step come from `--variant` (hr, precise, quick or a YAML file) or from flags;
flags win. The data are a folder with captions, a Hub id (`--streaming`), tar files, generated scenes, or what
`cache_latents.py` wrote ({resolution} in the folder's name stands for the stage's). Killed at any moment, the same command
with `--resume` ends in the same weights. The result is OUTPUT_DIR/pipeline.
"""

import torch
from diffusers import DiffusionPipeline
from diffusers.models.attention_processor import AttnProcessor

from pqdiff import PQStableDiffusionPipeline
from pqdiff.checkpoints import BUNDLED_PIPELINES, bundled
from pqdiff.hub.resolve import load_any_autoencoder
from pqdiff.models.unet_adapter import WIDENING_INITS, backbone_parameters, projection_parameters, set_trainable
from pqdiff.pipelines.conversion import check_not_removed
from pqdiff.pipelines.variants import load_variant
from pqdiff.training.arguments import TrainerParser, structured
from pqdiff.training.diffusion import PREDICTION_TYPES, DiffusionObjective, shift_noise
from pqdiff.training.publish import add_publish_arguments, check_publish_arguments, save_result
from pqdiff.training.randomness import generator_for
from pqdiff.training.samples import latents_of
from pqdiff.training.schedule import learning_rate, parse_stages, stage_at
from pqdiff.training.session import Session, run
from pqdiff.training.solve import solve_conv_in, solve_conv_out
from pqdiff.training.sources import add_data_arguments, open_pictures, open_samples
from pqdiff.training.text import frozen_states
from pqdiff.training.validation import add_validation_arguments, paint_validation


def parse(argv=None):
    parser = TrainerParser(__doc__)
    parser.set_defaults(batch_size=None)
    model = parser.add_argument_group("model")
    model.add_argument("--base", help="folder or Hub id of a Stable Diffusion; default: the variant's")
    model.add_argument("--autoencoder", help="shipped name, folder or Hub id; default: the variant's")
    model.add_argument("--variant", help="hr, precise, quick or a YAML file")
    model.add_argument("--init", choices=(*WIDENING_INITS, "lstsq"), default="variance", help="of the projections")
    model.add_argument("--solve_batches", type=int, default=32, help="with lstsq: batches to solve conv_out from")
    model.add_argument("--solve_dataset", help="with lstsq: pictures to solve conv_in from; default: --dataset")
    model.add_argument("--noise_shift", type=float, default=1.0, help="noise-to-signal ratio of every timestep x this")
    model.add_argument("--prediction_type", choices=PREDICTION_TYPES, help="default: the base's")
    model.add_argument("--sample_size", type=int, help="side of the latents by default; default: the variant's")
    model.add_argument("--lora_rank", type=int, default=16, help="of stages with trainable: lora")
    model.add_argument("--gradient_checkpointing", action="store_true", help="less memory, more time")
    parser.add_argument("--stages", type=structured, help="YAML list of {resolution, steps, learning_rate, trainable}")
    parser.add_argument("--min_snr_gamma", type=float, default=None, help="weigh timesteps by min(SNR, gamma)")
    parser.add_argument(
        "--noise_density", type=float, nargs=2, default=None, help="mean and deviation of ln(noise / signal) to draw"
    )
    add_data_arguments(parser)
    add_validation_arguments(parser)
    add_publish_arguments(parser)
    args = parser.parse(argv)
    if args.variant is None and not (args.stages and args.base and args.autoencoder):
        raise ValueError("give --variant, or all of --base, --autoencoder and --stages")
    check_publish_arguments(args)
    return args


def main(argv=None) -> PQStableDiffusionPipeline:
    """Train, and give the pipeline that was saved."""
    args = parse(argv)
    variant = load_variant(args.variant) if args.variant else None
    stages = parse_stages(args.stages) if args.stages else list(variant.stages)
    total_steps = sum(stage.steps for stage in stages)
    session = Session(args, total_steps, variant.batch_size if variant else 4)
    accelerator, device = session.accelerator, session.accelerator.device
    checkpoint = session.find()

    pipeline = build_pipeline(args, variant, stages, device, solve=checkpoint is None)
    unet = pipeline.unet
    objective = DiffusionObjective(pipeline.scheduler, args.min_snr_gamma, args.noise_density)
    # All before the first step: what is wrong with a later stage shows now.
    samples = {
        resolution: open_samples(args, resolution, pipeline.vae, pipeline.text_encoder, unet)
        for resolution in dict.fromkeys(stage.resolution for stage in stages)
    }
    if args.init == "lstsq" and checkpoint is None:
        batches = samples[stages[0].resolution].batches(session.layout, args.seed + 1, 0, args.solve_batches)
        solve_conv_out(pipeline, objective, batches, args.seed, device)
    if any(stage.trainable == "lora" for stage in stages):
        add_lora(unet, args.lora_rank, args.seed)
    if args.gradient_checkpointing:
        unet.enable_gradient_checkpointing()
    if device.type == "cpu":  # the fused kernel's backward pass is many times slower there, in bf16
        unet.set_attn_processor(AttnProcessor())

    # Two groups for the whole run, so that the optimizer's state has one shape on both sides of the freeze switch.
    groups = [{"params": projection_parameters(unet)}, {"params": backbone_parameters(unet)}]
    optimizer = torch.optim.AdamW(groups, 1e-4, args.adam_betas, weight_decay=args.weight_decay)
    models = {"unet": unet}
    session.average(models)
    session.start_trackers("pqdiff-adapt-sd")
    say_what_runs(session, pipeline, stages)

    while session.step < total_steps or checkpoint:
        number, done = stage_at(stages, checkpoint[1] if checkpoint else session.step)
        stage = stages[number]
        set_trainable(unet, stage.trainable)
        wrapped, prepared_optimizer = session.prepare(models, optimizer)
        if checkpoint:
            session.load(checkpoint[0])
            checkpoint = None
        batches = samples[stage.resolution].batches(
            session.layout, args.seed + 1000 * number, done, stage.steps, args.dataloader_workers
        )
        for within, micro_batches in enumerate(batches, start=done):
            rate = learning_rate(stage, within, args.lr_schedule, args.lr_warmup_steps)
            for group in prepared_optimizer.param_groups:
                group["lr"] = rate
            for micro_step, batch in enumerate(micro_batches):
                slots = session.layout.slots(micro_step)
                generators = [generator_for(args.seed, "noise", session.step, slot) for slot in slots]
                sample = objective.noisy(latents_of(batch, pipeline.vae, device), generators)
                states = frozen_states(batch, pipeline, device)
                with accelerator.accumulate(wrapped["unet"]):
                    with accelerator.autocast():
                        prediction = wrapped["unet"](sample.latents, sample.timesteps, states).sample
                    loss = objective.loss(prediction, sample)
                    session.check_finite(loss, batch)
                    accelerator.backward(loss)
                    session.clip_gradients(unet.parameters())
                    prepared_optimizer.step()
                    prepared_optimizer.zero_grad()
            session.update_averages(models)
            session.end_of_step({"learning_rate": rate, "stage": number + 1})
            paint_validation(session, pipeline)

    save_result(session, pipeline, stages, variant)
    session.close()
    return pipeline


def build_pipeline(args, variant, stages, device, solve: bool) -> PQStableDiffusionPipeline:
    """The base on the new latents, before training. `solve`: whether to look at data for it, or leave that to a
    checkpoint that will be loaded."""
    base_name = args.base or variant.base
    check_not_removed(base_name)
    source = args.autoencoder or f"pqgan-{variant.autoencoder}"
    autoencoder = load_any_autoencoder(source, torch_dtype=torch.float32).to(device)
    place = bundled(base_name) if base_name in BUNDLED_PIPELINES else base_name
    base = DiffusionPipeline.from_pretrained(place, torch_dtype=torch.float32).to(device)
    init, conv_in_map = args.init, None
    if init == "lstsq":
        init = "lstsq" if solve else "variance"
        if solve:
            pictures = open_pictures(args, stages[0].resolution, args.solve_dataset or args.dataset)
            conv_in_map = solve_conv_in(pictures, stages[0].resolution, base.vae, autoencoder, device)
    pipeline = PQStableDiffusionPipeline.from_stable_diffusion(
        base, autoencoder, variant=variant, init=init, conv_in_map=conv_in_map
    )
    if args.sample_size:
        pipeline.unet.register_to_config(sample_size=args.sample_size)
    if args.prediction_type:
        config = {"prediction_type": args.prediction_type}
        pipeline.scheduler = type(pipeline.scheduler).from_config(pipeline.scheduler.config, **config)
    if args.noise_shift != 1:
        pipeline.scheduler = shift_noise(pipeline.scheduler, args.noise_shift)
    for frozen in (pipeline.vae, pipeline.text_encoder):
        frozen.eval().requires_grad_(False)
    return pipeline


def add_lora(unet, rank: int, seed: int) -> None:
    """Low-rank adapters beside the attention's projections, the same for every run of a seed and on every rank."""
    try:
        from peft import LoraConfig
    except ImportError:
        raise ValueError("trainable: lora needs peft: pip install 'pqdiff[train]'") from None
    torch.manual_seed(seed)
    unet.add_adapter(
        LoraConfig(
            r=rank,
            lora_alpha=rank,
            init_lora_weights="gaussian",
            target_modules=["to_k", "to_q", "to_v", "to_out.0"],
        )
    )


def say_what_runs(session: Session, pipeline, stages) -> None:
    unet, layout = pipeline.unet, session.layout
    projections = sum(p.numel() for p in projection_parameters(unet))
    session.say(
        f"UNet {sum(p.numel() for p in unet.parameters()):,} parameters, {projections:,} of them in the projections; "
        f"{unet.config.in_channels} channels; predicts {pipeline.scheduler.config.prediction_type}; "
        f"{layout.global_batch_size} samples a step on {layout.processes} process(es); "
        f"mixed precision: {session.accelerator.mixed_precision}"
    )
    for number, stage in enumerate(stages, start=1):
        session.say(
            f"stage {number}: {stage.steps:,} steps of {stage.trainable} at {stage.resolution} px, "
            f"learning rate {stage.learning_rate:g}"
        )


if __name__ == "__main__":
    run(main)
