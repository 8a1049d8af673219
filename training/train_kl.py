"""Train a small KL autoencoder from scratch: the latents of a tiny base Stable Diffusion.

    accelerate launch training/train_kl.py --config training/configs/tiny_suite/kl.yaml --output_dir runs/kl

L1 and KL alone, on generated scenes: enough for flat shapes, not for photos.
"""

import sys

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL

from pqdiff.data.images import normalize, to_tensor
from pqdiff.data.scenes import SceneDataset
from pqdiff.pipelines.variants import Stage
from pqdiff.training.arguments import TrainerParser, structured
from pqdiff.training.batches import BatchPlan, iterate_batches
from pqdiff.training.schedule import learning_rate
from pqdiff.training.session import Session, TrainingStopped


def parse(argv=None):
    parser = TrainerParser(__doc__)
    parser.add_argument("--num_scenes", type=int, default=100_000, help="scenes to train on")
    parser.add_argument("--resolution", type=int, default=64, help="side of the pictures in pixels")
    parser.add_argument("--steps", type=int, default=2000, help="optimizer steps")
    parser.add_argument("--learning_rate", type=float, default=1e-3, help="peak")
    parser.add_argument("--kl_weight", type=float, default=1e-5, help="of the KL term, a mean over latents")
    parser.add_argument("--init", help="folder of an autoencoder to go on from, in place of --model")
    parser.add_argument("--freeze_encoder", action="store_true", help="train the decoder alone: the latents stay")
    parser.add_argument("--permute_colors", action="store_true", help="swap red, green and blue at random")
    parser.add_argument("--model", type=structured, default={}, help="constructor arguments of AutoencoderKL")
    return parser.parse(argv)


def main(argv=None) -> None:
    args = parse(argv)
    stage = Stage(args.resolution, args.steps, args.learning_rate, "all")
    session = Session(args, args.steps)
    torch.manual_seed(args.seed)
    model = build(args)
    if args.freeze_encoder:
        for part in (model.encoder, model.quant_conv):
            part.requires_grad_(False)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, args.learning_rate, args.adam_betas)
    session.average({"model": model})
    raw = {"model": model}
    prepared, optimizer = session.prepare(raw, optimizer)
    if found := session.find():
        session.load(found[0])
    session.start_trackers("pqdiff-kl")

    scenes = SceneDataset(args.num_scenes, args.resolution, args.seed)
    plan = BatchPlan([0] * len(scenes), session.layout.global_batch_size, args.seed)

    def load(samples, generators):
        pictures = [to_tensor(scenes[i]["image"]) for i in samples]
        if args.permute_colors:
            pictures = [p[torch.randperm(3, generator=g)] for p, g in zip(pictures, generators, strict=True)]
        return {"images": torch.stack(pictures)}

    batches = iterate_batches(plan, session.layout, load, args.seed, session.step, args.steps, args.dataloader_workers)
    accelerator = session.accelerator
    for micro_batches in batches:
        rate = learning_rate(stage, session.step, args.lr_schedule, args.lr_warmup_steps)
        for group in optimizer.param_groups:
            group["lr"] = rate
        for batch in micro_batches:
            with accelerator.accumulate(prepared["model"]), accelerator.autocast():
                images = normalize(batch["images"].to(accelerator.device))
                posterior = model.encode(images).latent_dist
                latents = posterior.sample()
                reconstruction = model.decode(latents).sample
                kl = posterior.kl().mean() / posterior.mean[0].numel()
                error = reconstruction.float() - images
                loss = error.abs().mean() + error.square().mean() + args.kl_weight * kl.float()
                session.check_finite(loss, batch)
                accelerator.backward(loss)
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(parameters, args.max_grad_norm)
                optimizer.step()
                optimizer.zero_grad()
        session.update_averages(raw)
        session.end_of_step({"learning_rate": rate, "mse": F.mse_loss(reconstruction.float(), images).item()})

    if accelerator.is_main_process:
        result = session.averages["model"].average if session.averages else model
        if not args.freeze_encoder:
            result.register_to_config(scaling_factor=round(latent_scale(result, scenes), 4))
        result.save_pretrained(args.output_dir / "vae")
    session.close()


def build(args) -> AutoencoderKL:
    """A fresh autoencoder, or the one to go on from."""
    if args.init:
        return AutoencoderKL.from_pretrained(args.init)
    model = AutoencoderKL(**args.model)
    with torch.no_grad():  # a posterior of unit variance would drown the picture for the first thousands of steps
        model.quant_conv.bias[model.config.latent_channels :] = -6.0
    return model


@torch.no_grad()
def latent_scale(model: AutoencoderKL, scenes: SceneDataset, count: int = 512) -> float:
    """1 / standard deviation of the latents, as the original latent diffusion defines its scaling factor."""
    model.eval()
    images = torch.stack([normalize(to_tensor(scenes[i]["image"])) for i in range(min(count, len(scenes)))])
    return 1 / model.encode(images.to(model.device)).latent_dist.mode().std().item()


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError, TrainingStopped) as error:
        sys.exit(f"{error}")
