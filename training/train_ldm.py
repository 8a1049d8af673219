"""Train a text-to-image latent diffusion model from scratch: UNet and text encoder together.

    accelerate launch training/train_ldm.py --config training/configs/tiny_suite/ldm.yaml \\
        --dataset runs/kl-cache --autoencoder runs/kl/vae --output_dir runs/base

The result, OUTPUT_DIR/pipeline, is a stock Stable Diffusion pipeline. `--model` gives the constructor arguments of its
parts: `unet`, `text_encoder` and `scheduler`. The tokenizer is that of the scenes, or `--tokenizer FOLDER`. `--init`
continues from the models of a trained pipeline instead.
"""

import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from pqdiff.adaptation.stages import Stage
from pqdiff.checkpoints import BUNDLED_PIPELINES, bundled
from pqdiff.data.scenes.tokenizer import build_scene_tokenizer
from pqdiff.models.loading import downsample_factor, load_autoencoder
from pqdiff.pipelines.checks import check_fit
from pqdiff.training.arguments import TrainerParser, check_keys, construct, structured
from pqdiff.training.diffusion import DiffusionObjective, ObjectiveOptions, add_objective_arguments
from pqdiff.training.run_options import RunOptions
from pqdiff.training.samples import latents_of
from pqdiff.training.schedule import ScheduleOptions
from pqdiff.training.session import Session
from pqdiff.training.sources import DataOptions, add_data_arguments, open_samples
from pqdiff.training.stopping import run
from pqdiff.training.text import SpellingNote, encode_captions
from pqdiff.training.validation import PromptValidation, ValidationOptions, add_validation_arguments


def parse(argv=None):
    parser = TrainerParser(__doc__)
    add_data_arguments(parser)
    add_validation_arguments(parser)
    parser.add_argument("--autoencoder", help="shipped name, folder or Hub id of AutoencoderKL or AutoencoderPQ")
    parser.add_argument(
        "--init", help="shipped name, folder or Hub id of a pipeline to continue from; default: new models"
    )
    parser.add_argument("--tokenizer", default=None, help="folder or Hub id of a CLIP tokenizer")
    parser.add_argument("--model", type=structured, default={}, help="constructor arguments of the parts")
    parser.add_argument("--resolution", type=int, default=64, help="side of the images in pixels")
    parser.add_argument("--steps", type=int, default=6000, help="optimizer steps")
    parser.add_argument("--learning_rate", type=float, default=5e-4, help="highest learning rate")
    add_objective_arguments(parser)
    return parser.parse(argv)


def main(argv=None) -> None:
    args = parse(argv)
    stage = Stage(args.resolution, args.steps, args.learning_rate)
    session = Session(RunOptions.from_args(args), args.steps, "pqdiff-ldm")
    with session.accelerator.main_process_first():  # the main process writes the tokenizer that the others read
        pipeline = build_pipeline(args, session)
    vae, unet, text_encoder = pipeline.vae, pipeline.unet, pipeline.text_encoder
    if session.device.type == "cpu":  # the fused kernel's backward pass is many times slower there, in bf16
        unet.set_attn_processor(AttnProcessor())
        text_encoder.set_attn_implementation("eager")
    for part in (vae, unet, text_encoder):
        part.to(session.device)  # before the EMA copies them
    objective = DiffusionObjective.from_options(pipeline.scheduler, ObjectiveOptions.from_args(args))
    parameters = [*unet.parameters(), *text_encoder.parameters()]
    optimizer = torch.optim.AdamW(
        parameters, args.learning_rate, args.adam_betas, weight_decay=args.weight_decay, fused=True
    )
    models = {"unet": unet, "text_encoder": text_encoder}
    session.start_ema(models)
    wrapped, optimizer = session.prepare(models, optimizer)
    samples = open_samples(DataOptions.from_args(args), args.resolution, vae, unet=unet)
    validation = PromptValidation(session, ValidationOptions.from_args(args), pipeline)
    batch_size = session.layout.global_batch_size
    session.say(f"{sum(p.numel() for p in parameters):,} parameters, {batch_size} samples a step")

    note_spelling = SpellingNote(session, pipeline.tokenizer)
    for step in session.steps(samples, stage, ScheduleOptions.from_args(args), validate=validation):
        for batch in step.micro_batches():
            note_spelling(batch["captions"])
            sample = objective.noisy(latents_of(batch, vae, session.device), step.generators("noise"))
            with session.autocast():
                states = encode_captions(pipeline.tokenizer, wrapped["text_encoder"], batch["captions"])
                prediction = wrapped["unet"](sample.latents, sample.timesteps, states).sample
            step.backward(objective.loss(prediction, sample))
            step.update(optimizer)

    if session.accelerator.is_main_process:
        for name, ema in session.ema.items():
            models[name].load_state_dict(ema.model.state_dict())
        pipeline.save_pretrained(session.folder.claim("pipeline"))
    session.close()


def build_pipeline(args, session: Session) -> StableDiffusionPipeline:
    """New UNet and text encoder beside a trained autoencoder, or those of `--init`, with its own autoencoder if no other
    one is given."""
    if args.init:
        return load_pipeline(args)
    if not args.autoencoder:
        raise ValueError("--autoencoder is missing: give a shipped name, a folder or a Hub id")
    vae = frozen_autoencoder(args.autoencoder)
    if args.tokenizer:
        tokenizer = CLIPTokenizer.from_pretrained(args.tokenizer)
    else:
        tokenizer = build_scene_tokenizer(session.folder.claim("tokenizer"))
    torch.manual_seed(args.seed)
    check_keys("--model", args.model, ["unet", "text_encoder", "scheduler"])
    unet = construct(
        UNet2DConditionModel,
        "--model unet",
        args.model.get("unet", {}),
        sample_size=args.resolution // downsample_factor(vae),
        in_channels=vae.config.latent_channels,
        out_channels=vae.config.latent_channels,
    )
    text_config = construct(
        CLIPTextConfig,
        "--model text_encoder",
        args.model.get("text_encoder", {}),
        vocab_size=len(tokenizer),
        max_position_embeddings=tokenizer.model_max_length,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return StableDiffusionPipeline(
        vae=vae,
        text_encoder=CLIPTextModel(text_config),
        tokenizer=tokenizer,
        unet=unet,
        scheduler=construct(DDIMScheduler, "--model scheduler", args.model.get("scheduler", {})),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def load_pipeline(args) -> StableDiffusionPipeline:
    """A trained pipeline to continue from, in fp32."""
    for flag in ("model", "tokenizer"):
        if getattr(args, flag):
            raise ValueError(f"--{flag} cannot be used: --init {args.init} is a complete pipeline")
    place = bundled(args.init) if args.init in BUNDLED_PIPELINES else args.init
    pipeline = StableDiffusionPipeline.from_pretrained(place, torch_dtype=torch.float32)
    if args.autoencoder:
        pipeline.vae = frozen_autoencoder(args.autoencoder)
        check_fit(pipeline.vae, pipeline.text_encoder, pipeline.unet, pipeline.scheduler)
    factor = downsample_factor(pipeline.vae)
    pipeline.unet.register_to_config(sample_size=args.resolution // factor)  # it generates at the size of its training
    pipeline.vae.eval().requires_grad_(False)
    return pipeline


def frozen_autoencoder(source: str):
    """Autoencoder of the latents, which is not trained, by shipped name, folder or Hub id."""
    return load_autoencoder(source, dtype=torch.float32).requires_grad_(False)


if __name__ == "__main__":
    run(main)
