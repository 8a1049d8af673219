"""Train a small KL autoencoder from scratch: the latents of a tiny base Stable Diffusion.

    accelerate launch training/train_kl.py --config training/configs/tiny_suite/kl.yaml --output_dir runs/kl

The loss is L1, L2 and the KL term, and the data are generated scenes: enough for flat shapes, not for photos.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL

from pqdiff.adaptation.stages import Stage
from pqdiff.data.images.reading import normalize, to_tensor
from pqdiff.data.scenes.scenes import SceneDataset
from pqdiff.training.arguments import TrainerParser, construct, structured
from pqdiff.training.batches import BatchPlan, Layout, iterate_batches
from pqdiff.training.run_options import RunOptions
from pqdiff.training.schedule import ScheduleOptions
from pqdiff.training.session import Session
from pqdiff.training.stopping import run


def parse(argv=None):
    parser = TrainerParser(__doc__)
    parser.add_argument("--num_scenes", type=int, default=100_000, help="number of scenes to train on")
    parser.add_argument("--resolution", type=int, default=64, help="side of the images in pixels")
    parser.add_argument("--steps", type=int, default=2000, help="optimizer steps")
    parser.add_argument("--learning_rate", type=float, default=1e-3, help="highest learning rate")
    parser.add_argument("--kl_weight", type=float, default=1e-5, help="weight of the KL term, a mean over latents")
    parser.add_argument("--init", help="folder of an autoencoder to continue from, instead of --model")
    parser.add_argument("--freeze_encoder", action="store_true", help="train the decoder only: latents do not change")
    parser.add_argument("--recolor", action="store_true", help="change the colors of half of the images at random")
    parser.add_argument("--model", type=structured, default={}, help="constructor arguments of AutoencoderKL")
    return parser.parse(argv)


def main(argv=None) -> None:
    args = parse(argv)
    stage = Stage(args.resolution, args.steps, args.learning_rate)
    session = Session(RunOptions.from_args(args), args.steps, "pqdiff-kl")
    torch.manual_seed(args.seed)
    model = build(args).to(session.device)  # before the EMA copies it
    if args.freeze_encoder:
        for part in (model.encoder, model.quant_conv):
            part.requires_grad_(False)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, args.learning_rate, args.adam_betas, weight_decay=args.weight_decay)
    models = {"model": Reconstruction(model)}
    session.start_ema(models)
    wrapped, optimizer = session.prepare(models, optimizer)

    scenes = SceneDataset(args.num_scenes, args.resolution, args.seed)
    for step in session.steps(SceneSamples(scenes, args.recolor), stage, ScheduleOptions.from_args(args)):
        for batch in step.micro_batches():
            images = normalize(batch["images"].to(session.device))
            with session.autocast():
                reconstruction, kl = wrapped["model"](images, step.generators("noise"))
            error = reconstruction.float() - images
            loss = error.abs().mean() + error.square().mean() + args.kl_weight * kl.float()
            step.backward(loss)
            step.update(optimizer)
        step.log(mse=F.mse_loss(reconstruction.float(), images).item())

    if session.accelerator.is_main_process:
        result = session.ema["model"].model.autoencoder if session.ema else model
        if not args.freeze_encoder:
            result.register_to_config(scaling_factor=round(latent_scale(result, scenes), 4))
        result.save_pretrained(session.folder.claim("vae"))
    session.close()


class SceneSamples:
    """Batches of scenes: `images` (B, 3, H, W), uint8. With `recolor`, half of them get other colors."""

    def __init__(self, scenes: SceneDataset, recolor: bool):
        self.scenes, self.recolor = scenes, recolor

    def batches(self, layout: Layout, seed: int, start: int, stop: int, workers: int = 0) -> Iterator[list[dict]]:
        """See `pqdiff.training.batches.Samples`."""
        plan = BatchPlan([0] * len(self.scenes), layout.global_batch_size, seed)
        return iterate_batches(plan, layout, self._load, seed, start, stop, workers)

    def _load(self, samples: list[int], generators: list[torch.Generator]) -> dict:
        images = [to_tensor(self.scenes[i]["image"]) for i in samples]
        if self.recolor:
            images = [recolored(image, generator) for image, generator in zip(images, generators, strict=True)]
        return {"images": torch.stack(images)}


class Reconstruction(torch.nn.Module):
    """Encoding, noise and decoding in one call, as distributed wrappers need it to average the gradients."""

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
    """A new autoencoder, or the one to continue from."""
    if args.init:
        return AutoencoderKL.from_pretrained(args.init)
    model = construct(AutoencoderKL, "--model", args.model)
    with torch.no_grad():  # noise of unit variance would hide the image for thousands of steps
        model.quant_conv.bias[model.config.latent_channels :] = -6.0
    return model


def recolored(image: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """The image `(3, H, W)`, uint8, or in half of the cases the image with its color channels in another order, each
    brighter or darker, so that the autoencoder also sees colors that the scenes never give to a shape."""
    if torch.rand(1, generator=generator).item() < 0.5:
        return image
    order = torch.randperm(3, generator=generator)
    gamma = (torch.rand(3, 1, 1, generator=generator) * 1.4 - 0.7).exp()
    return (image[order] / 255).pow(gamma).mul(255).round().to(image.dtype)


@torch.no_grad()
def latent_scale(model: AutoencoderKL, scenes: SceneDataset, count: int = 512) -> float:
    """1 / standard deviation of the latents, as the original latent diffusion defines its scaling factor."""
    model.eval()
    images = torch.stack([normalize(to_tensor(scenes[i]["image"])) for i in range(min(count, len(scenes)))])
    return 1 / model.encode(images.to(model.device)).latent_dist.mode().std().item()


if __name__ == "__main__":
    run(main)
