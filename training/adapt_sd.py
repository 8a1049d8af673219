"""Adapt a pretrained Stable Diffusion to product-quantized latents: first the new projections, then the whole UNet.

    accelerate launch training/adapt_sd.py --variant quick --dataset photos/ --output_dir runs/quick
    accelerate launch training/adapt_sd.py --config training/configs/adapt_sd/smoke.yaml --output_dir runs/smoke

Stages, autoencoder, sizes and samples per step come from `--variant` (hr, precise, quick or a YAML file) or from flags,
which win. The data are a folder with captions, a Hub id (maybe with `--streaming`), tar files, generated scenes, or a cache
of `cache_latents.py` ({resolution} in the name of its folder stands for that of the stage). If the process is killed at any
moment, the same command with `--resume` gives the same weights. The result is OUTPUT_DIR/pipeline.
"""

import torch
from diffusers import DiffusionPipeline
from diffusers.models.attention_processor import AttnProcessor

from pqdiff import PQStableDiffusionPipeline
from pqdiff.adaptation.prediction_types import TRAINED_PREDICTION_TYPES
from pqdiff.adaptation.stages import read_stages
from pqdiff.adaptation.variants import load_variant
from pqdiff.adaptation.widen import WIDENING_INITS, backbone_parameters, projection_parameters, set_trainable
from pqdiff.checkpoints import BUNDLED_PIPELINES, bundled
from pqdiff.models.loading import load_autoencoder
from pqdiff.pipelines.conversion import check_not_removed
from pqdiff.training.arguments import TrainerParser, structured
from pqdiff.training.diffusion import DiffusionObjective, ObjectiveOptions, add_objective_arguments, shift_noise
from pqdiff.training.publish import PublishOptions, add_publish_arguments, save_pipeline
from pqdiff.training.run_options import RunOptions
from pqdiff.training.samples import latents_of
from pqdiff.training.schedule import ScheduleOptions, stage_at
from pqdiff.training.session import Session
from pqdiff.training.solve import solve_conv_in, solve_conv_out
from pqdiff.training.sources import DataOptions, add_data_arguments, open_captioned_images, open_samples
from pqdiff.training.stopping import run
from pqdiff.training.text import SpellingNote, frozen_states
from pqdiff.training.validation import PromptValidation, ValidationOptions, add_validation_arguments


def parse(argv=None):
    parser = TrainerParser(__doc__)
    parser.set_defaults(batch_size=None)
    model = parser.add_argument_group("model")
    model.add_argument("--base", help="folder or Hub id of a Stable Diffusion; default: the variant's")
    model.add_argument("--autoencoder", help="shipped name, folder or Hub id; default: the variant's")
    model.add_argument("--variant", help="hr, precise, quick or a YAML file")
    model.add_argument("--init", choices=(*WIDENING_INITS, "lstsq"), default="variance", help="of the projections")
    model.add_argument("--solve_batches", type=int, default=32, help="with lstsq: batches to solve conv_out from")
    model.add_argument("--solve_dataset", help="with lstsq: images to solve conv_in from; default: --dataset")
    model.add_argument("--noise_shift", type=float, default=1.0, help="factor on noise / signal at every timestep")
    model.add_argument("--prediction_type", choices=TRAINED_PREDICTION_TYPES, help="default: the base's")
    model.add_argument("--sample_size", type=int, help="default side of the latents; default: as trained")
    model.add_argument("--lora_rank", type=int, default=16, help="rank in stages with trainable: lora")
    model.add_argument("--gradient_checkpointing", action="store_true", help="less memory, more time")
    parser.add_argument("--stages", type=structured, help="YAML list of {resolution, steps, learning_rate, trainable}")
    add_objective_arguments(parser)
    add_data_arguments(parser)
    add_validation_arguments(parser)
    add_publish_arguments(parser)
    args = parser.parse(argv)
    if args.variant is None and not (args.stages and args.base and args.autoencoder):
        raise ValueError("give --variant, or all of --base, --autoencoder and --stages")
    PublishOptions.from_args(args).check()
    return args


def main(argv=None) -> PQStableDiffusionPipeline:
    """Train, and return the pipeline that was saved."""
    args = parse(argv)
    variant = load_variant(args.variant) if args.variant else None
    stages = read_stages(args.stages) if args.stages else variant.stages
    batch_size = variant.batch_size if variant else 4
    session = Session(RunOptions.from_args(args), sum(s.steps for s in stages), "pqdiff-adapt-sd", batch_size)
    base, autoencoder = args.base or variant.base, args.autoencoder or f"pqgan-{variant.autoencoder}"
    data, device = DataOptions.from_args(args), session.device
    pipeline = build_pipeline(session, args, data, variant, base, autoencoder, stages[0].resolution)
    unet, vae = pipeline.unet, pipeline.vae
    # What is saved generates at the size that it was trained at last.
    trained = stages[-1].resolution // pipeline.vae_scale_factor if args.stages else variant.sample_size
    unet.register_to_config(sample_size=args.sample_size or trained)
    objective = DiffusionObjective.from_options(pipeline.scheduler, ObjectiveOptions.from_args(args))
    # All are opened before the first step, so that a mistake in a later stage shows now.
    samples = {
        resolution: open_samples(data, resolution, vae, pipeline.text_encoder, unet)
        for resolution in dict.fromkeys(stage.resolution for stage in stages)
    }
    if args.init == "lstsq" and session.checkpoint is None:
        batches = samples[stages[0].resolution].batches(session.layout, args.seed + 1, 0, args.solve_batches)
        solve_conv_out(pipeline, objective, batches, args.seed, device)
    if any(stage.trainable == "lora" for stage in stages):
        add_lora(unet, args.lora_rank, args.seed)
    if args.gradient_checkpointing:
        unet.enable_gradient_checkpointing()
    if device.type == "cpu":  # the fused kernel's backward pass is many times slower there, in bf16
        unet.set_attn_processor(AttnProcessor())

    # Two groups in all stages, so that the optimizer's state has the same form whatever is trainable.
    groups = [{"params": projection_parameters(unet)}, {"params": backbone_parameters(unet)}]
    adamw = torch.optim.AdamW(groups, 1e-4, args.adam_betas, weight_decay=args.weight_decay)
    models, schedule = {"unet": unet}, ScheduleOptions.from_args(args)
    session.start_ema(models)
    validation = PromptValidation(session, ValidationOptions.from_args(args), pipeline)
    say_what_runs(session, pipeline, stages)

    note_spelling = SpellingNote(session, pipeline.tokenizer)
    first, done = stage_at(stages, session.step)
    for number, stage in enumerate(stages[first:], start=first):
        set_trainable(unet, stage.trainable)
        wrapped, optimizer = session.prepare(models, adamw)
        seed, stage_samples = args.seed + 1000 * number, samples[stage.resolution]
        for step in session.steps(stage_samples, stage, schedule, done=done, seed=seed, validate=validation):
            for batch in step.micro_batches():
                note_spelling(batch["captions"])
                sample = objective.noisy(latents_of(batch, vae, device), step.generators("noise"))
                states = frozen_states(batch, pipeline, device)
                with session.autocast():
                    prediction = wrapped["unet"](sample.latents, sample.timesteps, states).sample
                step.backward(objective.loss(prediction, sample))
                step.update(optimizer)
            step.log(stage=number + 1)
        done = 0

    name = variant.name if variant else args.output_dir.name
    save_pipeline(
        session,
        validation,
        PublishOptions.from_args(args),
        stages,
        name=name,
        base=base,
        autoencoder=args.autoencoder or variant.autoencoder,
        dataset=args.dataset,
    )
    session.close()
    return pipeline


def build_pipeline(
    session: Session, args, data: DataOptions, variant, base_name: str, autoencoder: str, resolution: int
) -> PQStableDiffusionPipeline:
    """The base on the new latents, before training. Data for `--init lstsq` is read only if there is no checkpoint."""
    check_not_removed(base_name)
    device = session.device
    vae = load_autoencoder(autoencoder, dtype=torch.float32).to(device)
    place = bundled(base_name) if base_name in BUNDLED_PIPELINES else base_name
    base = DiffusionPipeline.from_pretrained(place, torch_dtype=torch.float32).to(device)
    init, conv_in_map = args.init, None
    if init == "lstsq" and session.checkpoint is None:
        images = open_captioned_images(data, resolution, args.solve_dataset)
        conv_in_map = solve_conv_in(images, resolution, base.vae, vae, device)
    elif init == "lstsq":
        init = "variance"  # the checkpoint has the solution
    pipeline = PQStableDiffusionPipeline.from_stable_diffusion(
        base, vae, pq_variant=variant, init=init, conv_in_map=conv_in_map
    )
    if args.prediction_type:
        config = {"prediction_type": args.prediction_type}
        pipeline.scheduler = type(pipeline.scheduler).from_config(pipeline.scheduler.config, **config)
    if args.noise_shift != 1:
        pipeline.scheduler = shift_noise(pipeline.scheduler, args.noise_shift)
    for frozen in (pipeline.vae, pipeline.text_encoder):
        frozen.eval().requires_grad_(False)
    return pipeline


def add_lora(unet, rank: int, seed: int) -> None:
    """Add LoRA layers to the projections of attention, with the same weights for every run of a seed and on every rank."""
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
