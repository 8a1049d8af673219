"""Train a text-to-image latent diffusion model from scratch: UNet and text encoder together.

    accelerate launch training/train_ldm.py --config training/configs/tiny_suite/ldm.yaml \\
        --dataset runs/kl-cache --autoencoder runs/kl/vae --output_dir runs/base

The result, OUTPUT_DIR/pipeline, is a stock Stable Diffusion pipeline. `--model` gives the constructor arguments of its
parts: `unet`, `text_encoder` and `scheduler`. The tokenizer is that of the scenes, or `--tokenizer FOLDER`. `--init`
goes on from the parts of a trained pipeline instead.
"""

from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from pqdiff import AutoencoderPQ
from pqdiff.checkpoints import BUNDLED_PIPELINES, bundled
from pqdiff.data.scene_tokenizer import build_scene_tokenizer
from pqdiff.pipelines.fit import check_fit
from pqdiff.pipelines.variants import Stage
from pqdiff.training.arguments import TrainerParser, check_keys, construct, structured
from pqdiff.training.diffusion import DiffusionObjective
from pqdiff.training.randomness import generator_for
from pqdiff.training.samples import latents_of
from pqdiff.training.schedule import learning_rate
from pqdiff.training.session import Session, run
from pqdiff.training.sources import add_data_arguments, open_samples
from pqdiff.training.text import encode_captions
from pqdiff.training.validation import add_validation_arguments, paint_validation


def parse(argv=None):
    parser = TrainerParser(__doc__)
    add_data_arguments(parser)
    add_validation_arguments(parser)
    parser.add_argument("--autoencoder", required=False, help="folder or Hub id of AutoencoderKL or AutoencoderPQ")
    parser.add_argument(
        "--init", help="shipped name, folder or Hub id of a pipeline to go on from; default: fresh parts"
    )
    parser.add_argument("--tokenizer", default=None, help="folder or Hub id of a CLIP tokenizer")
    parser.add_argument("--model", type=structured, default={}, help="constructor arguments of the parts")
    parser.add_argument("--resolution", type=int, default=64, help="side of the pictures in pixels")
    parser.add_argument("--steps", type=int, default=6000, help="optimizer steps")
    parser.add_argument("--learning_rate", type=float, default=5e-4, help="peak")
    parser.add_argument("--min_snr_gamma", type=float, default=None, help="weigh timesteps by min(SNR, gamma)")
    parser.add_argument(
        "--noise_density", type=float, nargs=2, default=None, help="mean and deviation of ln(noise / signal) to draw"
    )
    return parser.parse(argv)


def main(argv=None) -> None:
    args = parse(argv)
    session = Session(args, args.steps)
    accelerator = session.accelerator
    with accelerator.main_process_first():  # which writes the tokenizer that the others read
        pipeline = build_pipeline(args)
    unet, text_encoder = pipeline.unet, pipeline.text_encoder
    if accelerator.device.type == "cpu":  # the fused kernel's backward pass is many times slower there, in bf16
        unet.set_attn_processor(AttnProcessor())
        text_encoder.set_attn_implementation("eager")
    for part in (pipeline.vae, unet, text_encoder):
        part.to(accelerator.device)  # before there are averages of them
    stage = Stage(args.resolution, args.steps, args.learning_rate, "all")
    objective = DiffusionObjective(pipeline.scheduler, args.min_snr_gamma, args.noise_density)
    parameters = [*unet.parameters(), *text_encoder.parameters()]
    optimizer = torch.optim.AdamW(
        parameters, args.learning_rate, args.adam_betas, weight_decay=args.weight_decay, fused=True
    )
    models = {"unet": unet, "text_encoder": text_encoder}
    session.average(models)
    wrapped, optimizer = session.prepare(models, optimizer)
    if found := session.find():
        session.load(found[0])
    session.start_trackers("pqdiff-ldm")

    samples = open_samples(args, args.resolution, pipeline.vae, unet=unet)
    batches = samples.batches(session.layout, args.seed, session.step, args.steps, args.dataloader_workers)
    session.say(
        f"{sum(p.numel() for p in parameters):,} parameters, {session.layout.global_batch_size} samples a step"
    )
    for micro_batches in batches:
        rate = learning_rate(stage, session.step, args.lr_schedule, args.lr_warmup_steps)
        for group in optimizer.param_groups:
            group["lr"] = rate
        for micro_step, batch in enumerate(micro_batches):
            generators = [
                generator_for(args.seed, "noise", session.step, slot) for slot in session.layout.slots(micro_step)
            ]
            sample = objective.noisy(latents_of(batch, pipeline.vae, accelerator.device), generators)
            with accelerator.accumulate(*wrapped.values()):
                with accelerator.autocast():
                    states = encode_captions(pipeline.tokenizer, wrapped["text_encoder"], batch["captions"])
                    prediction = wrapped["unet"](sample.latents, sample.timesteps, states).sample
                loss = objective.loss(prediction, sample)
                session.check_finite(loss, batch)
                accelerator.backward(loss)
                session.clip_gradients(parameters)
                optimizer.step()
                optimizer.zero_grad()
        session.update_averages(models)
        session.end_of_step({"learning_rate": rate})
        paint_validation(session, pipeline)

    if accelerator.is_main_process:
        for name, ema in session.averages.items():
            models[name].load_state_dict(ema.average.state_dict())
        pipeline.save_pretrained(Path(args.output_dir) / "pipeline")
    session.close()


def build_pipeline(args) -> StableDiffusionPipeline:
    """Fresh UNet and text encoder around a trained autoencoder, or those of `--init`, with its own autoencoder if no other
    is given."""
    if args.init:
        return load_pipeline(args)
    if not args.autoencoder:
        raise ValueError("--autoencoder is missing: give the folder or Hub id of the autoencoder of the latents")
    vae = load_autoencoder(args.autoencoder)
    if args.tokenizer:
        tokenizer = CLIPTokenizer.from_pretrained(args.tokenizer)
    else:
        tokenizer = build_scene_tokenizer(Path(args.output_dir) / "tokenizer")
    torch.manual_seed(args.seed)
    check_keys("--model", args.model, ["unet", "text_encoder", "scheduler"])
    unet = construct(
        UNet2DConditionModel,
        "--model unet",
        args.model.get("unet", {}),
        sample_size=args.resolution // 2 ** (len(vae.config.block_out_channels) - 1),
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
    """A trained pipeline to go on from, in fp32."""
    for flag in ("model", "tokenizer"):
        if getattr(args, flag):
            raise ValueError(f"--{flag}: --init {args.init} says already what the parts are")
    place = bundled(args.init) if args.init in BUNDLED_PIPELINES else args.init
    pipeline = StableDiffusionPipeline.from_pretrained(place, torch_dtype=torch.float32)
    if args.autoencoder:
        pipeline.vae = load_autoencoder(args.autoencoder)
        check_fit(pipeline.vae, pipeline.text_encoder, pipeline.unet, pipeline.scheduler)
    pipeline.vae.eval().requires_grad_(False)
    return pipeline


def load_autoencoder(source: str) -> AutoencoderKL | AutoencoderPQ:
    """Frozen autoencoder of latents, by folder or Hub id."""
    config = AutoencoderKL.load_config(source)
    autoencoder_class = AutoencoderPQ if config.get("_class_name") == "AutoencoderPQ" else AutoencoderKL
    return autoencoder_class.from_pretrained(source).eval().requires_grad_(False)


if __name__ == "__main__":
    run(main)
