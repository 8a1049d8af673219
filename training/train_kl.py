"""Train a small KL autoencoder from scratch: the latents of a tiny base Stable Diffusion.

    accelerate launch training/train_kl.py --config training/configs/tiny_suite/kl.yaml --output_dir runs/kl

L1 and KL alone, on generated scenes: enough for flat shapes, not for photos.
"""

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL

from pqdiff.data.images import normalize, to_tensor
from pqdiff.data.scenes import SceneDataset
from pqdiff.pipelines.variants import Stage
from pqdiff.training.arguments import TrainerParser, construct, structured
from pqdiff.training.batches import BatchPlan, iterate_batches
from pqdiff.training.randomness import generator_for
from pqdiff.training.schedule import learning_rate
from pqdiff.training.session import Session, run


def parse(argv=None):
    parser = TrainerParser(__doc__)
    parser.add_argument("--num_scenes", type=int, default=100_000, help="scenes to train on")
    parser.add_argument("--resolution", type=int, default=64, help="side of the pictures in pixels")
    parser.add_argument("--steps", type=int, default=2000, help="optimizer steps")
    parser.add_argument("--learning_rate", type=float, default=1e-3, help="peak")
    parser.add_argument("--kl_weight", type=float, default=1e-5, help="of the KL term, a mean over latents")
    parser.add_argument("--init", help="folder of an autoencoder to go on from, in place of --model")
    parser.add_argument("--freeze_encoder", action="store_true", help="train the decoder alone: the latents stay")
    parser.add_argument("--recolor", action="store_true", help="change the colors of half of the pictures at random")
    parser.add_argument("--model", type=structured, default={}, help="constructor arguments of AutoencoderKL")
    return parser.parse(argv)


def main(argv=None) -> None:
    args = parse(argv)
    stage = Stage(args.resolution, args.steps, args.learning_rate, "all")
    session = Session(args, args.steps)
    torch.manual_seed(args.seed)
    model = build(args).to(session.accelerator.device)  # before there is an average of it
    if args.freeze_encoder:
        for part in (model.encoder, model.quant_conv):
            part.requires_grad_(False)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, args.learning_rate, args.adam_betas, weight_decay=args.weight_decay)
    raw = {"model": Reconstruction(model)}
    session.average(raw)
    prepared, optimizer = session.prepare(raw, optimizer)
    if found := session.find():
        session.load(found[0])
    session.start_trackers("pqdiff-kl")

    scenes = SceneDataset(args.num_scenes, args.resolution, args.seed)
    plan = BatchPlan([0] * len(scenes), session.layout.global_batch_size, args.seed)

    def load(samples, generators):
        pictures = [to_tensor(scenes[i]["image"]) for i in samples]
        if args.recolor:
            pictures = [recolored(picture, g) for picture, g in zip(pictures, generators, strict=True)]
        return {"images": torch.stack(pictures)}

    batches = iterate_batches(plan, session.layout, load, args.seed, session.step, args.steps, args.dataloader_workers)
    accelerator = session.accelerator
    for micro_batches in batches:
        rate = learning_rate(stage, session.step, args.lr_schedule, args.lr_warmup_steps)
        for group in optimizer.param_groups:
            group["lr"] = rate
        for micro_step, batch in enumerate(micro_batches):
            slots = session.layout.slots(micro_step)
            generators = [generator_for(args.seed, "noise", session.step, slot) for slot in slots]
            with accelerator.accumulate(prepared["model"]):
                images = normalize(batch["images"].to(accelerator.device))
                with accelerator.autocast():
                    reconstruction, kl = prepared["model"](images, generators)
                error = reconstruction.float() - images
                loss = error.abs().mean() + error.square().mean() + args.kl_weight * kl.float()
                session.check_finite(loss, batch)
                accelerator.backward(loss)
                session.clip_gradients(parameters)
                optimizer.step()
                optimizer.zero_grad()
        session.update_averages(raw)
        session.end_of_step({"learning_rate": rate, "mse": F.mse_loss(reconstruction.float(), images).item()})

    if accelerator.is_main_process:
        result = session.averages["model"].average.autoencoder if session.averages else model
        if not args.freeze_encoder:
            result.register_to_config(scaling_factor=round(latent_scale(result, scenes), 4))
        result.save_pretrained(args.output_dir / "vae")
    session.close()


class Reconstruction(torch.nn.Module):
    """Encoding, noise and decoding in one call: a distributed wrapper averages the gradients of its own calls alone."""

    def __init__(self, autoencoder: AutoencoderKL):
        super().__init__()
        self.autoencoder = autoencoder

    def forward(self, images: torch.Tensor, generators: list[torch.Generator]) -> tuple[torch.Tensor, torch.Tensor]:
        """Images `(B, 3, H, W)` decoded from a sample of their latents, each by its own generator (CPU), and the KL
        term, a mean over latents."""
        posterior = self.autoencoder.encode(images).latent_dist
        noise = torch.stack([torch.randn(posterior.mean.shape[1:], generator=g) for g in generators])
        latents = posterior.mean + posterior.std * noise.to(posterior.mean)
        return self.autoencoder.decode(latents).sample, posterior.kl().mean() / latents[0].numel()


def build(args) -> AutoencoderKL:
    """A fresh autoencoder, or the one to go on from."""
    if args.init:
        return AutoencoderKL.from_pretrained(args.init)
    model = construct(AutoencoderKL, "--model", args.model)
    with torch.no_grad():  # a posterior of unit variance would drown the picture for the first thousands of steps
        model.quant_conv.bias[model.config.latent_channels :] = -6.0
    return model


def recolored(picture: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """The picture `(3, H, W)`, uint8, or in half of the cases one with its color channels in another order, each
    brighter or darker: a color that the scenes never give to a shape is then no surprise."""
    if torch.rand(1, generator=generator).item() < 0.5:
        return picture
    order = torch.randperm(3, generator=generator)
    gamma = (torch.rand(3, 1, 1, generator=generator) * 1.4 - 0.7).exp()
    return (picture[order] / 255).pow(gamma).mul(255).round().to(picture.dtype)


@torch.no_grad()
def latent_scale(model: AutoencoderKL, scenes: SceneDataset, count: int = 512) -> float:
    """1 / standard deviation of the latents, as the original latent diffusion defines its scaling factor."""
    model.eval()
    images = torch.stack([normalize(to_tensor(scenes[i]["image"])) for i in range(min(count, len(scenes)))])
    return 1 / model.encode(images.to(model.device)).latent_dist.mode().std().item()


if __name__ == "__main__":
    run(main)
