"""How many pictures of the tiny pipelines show what the prompt says, on combinations that training never showed.

    python -m benchmarks.tiny_suite --output benchmarks/results/tiny_suite.json

500 prompts (`scene_prompts`), each with a pair of color and shape that is in no training scene; one image each, prompt i
from noise of seed i, read back by `pqdiff.data.scenes.checker`. A second row per pipeline says what its autoencoder
alone does: clean renders of the same scenes, encoded and decoded.
"""

import argparse
import json
import time
from pathlib import Path

import torch

from benchmarks.machine import describe_machine
from pqdiff import AutoencoderPQ, PQStableDiffusionPipeline, bundled
from pqdiff.data.images.grid import grid_image
from pqdiff.data.images.reading import normalize, to_pixels, to_tensor
from pqdiff.data.scenes.checker import ATTRIBUTES, count_right, read_scenes
from pqdiff.data.scenes.scenes import Scene, scene_prompts

PIPELINES = ("tiny-base", "tiny-precise", "tiny-hr", "tiny-quick")
# Ways to decode the same latents: nearest codewords, latents as they are, soft snapping at these noise levels.
WAYS = (True, False, 0.03, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4)
_NEAR = 48  # gray levels in which a pixel of the background is near its color


@torch.no_grad()
def sample_latents(pipeline, scenes: list[Scene], steps: int, guidance: float, batch_size: int) -> torch.Tensor:
    """Denoised latents `(N, d, h, w)` of the scenes' captions."""
    latents = []
    for start in range(0, len(scenes), batch_size):
        part = range(start, min(start + batch_size, len(scenes)))
        latents.append(
            pipeline(
                [scenes[i].caption for i in part],
                num_inference_steps=steps,
                guidance_scale=guidance,
                generator=[torch.Generator().manual_seed(i) for i in part],
                output_type="latent",
            ).images
        )
    return torch.cat(latents)


@torch.no_grad()
def decoded(autoencoder, latents: torch.Tensor, **way) -> torch.Tensor:
    """uint8 images `(N, 3, H, W)` of latents."""
    parts = (autoencoder.decode(part / autoencoder.config.scaling_factor, **way).sample for part in latents.split(50))
    return torch.cat([to_pixels(part) for part in parts])


@torch.no_grad()
def reconstructed(autoencoder, images: torch.Tensor) -> torch.Tensor:
    """uint8 images after encoding and decoding."""
    results = []
    for part in images.split(50):
        results.append(to_pixels(autoencoder.decode(autoencoder.encode(normalize(part)).latent_dist.mode()).sample))
    return torch.cat(results)


def grain(images: torch.Tensor) -> float:
    """Standard deviation of the background in gray levels: of the pixels of uint8 images `(N, 3, H, W)` that are near the
    median color of the frame, from their mean; the root of the mean variance over the images."""
    variances = []
    for image in images.float():
        frame = torch.cat([image[:, :2].flatten(1), image[:, -2:].flatten(1), image[:, :, :2].flatten(1)], dim=1)
        color = frame.median(dim=1).values[:, None]
        pixels = image.flatten(1)
        background = pixels[:, ((pixels - color).abs() <= _NEAR).all(dim=0)]
        variances.append(background.var(dim=1, unbiased=False).mean())
    return torch.stack(variances).mean().sqrt().item()


def evaluate(pipeline, scenes: list[Scene], args) -> tuple[dict, torch.Tensor]:
    """Fractions right, per attribute, of what the pipeline generates and of what its autoencoder keeps, and the images."""
    resolution = pipeline.unet.config.sample_size * pipeline.vae_scale_factor
    results = {
        "resolution": resolution,
        "latents": [pipeline.unet.config.in_channels, *[pipeline.unet.config.sample_size] * 2],
        "unet_parameters": sum(p.numel() for p in pipeline.unet.parameters()),
    }
    quantized = isinstance(pipeline.vae, AutoencoderPQ)
    start = time.perf_counter()
    latents = sample_latents(pipeline, scenes, args.steps, args.guidance, args.batch_size)
    images = decoded(pipeline.vae, latents, **({"quantize": pipeline.quantize_latents} if quantized else {}))
    results["seconds_per_picture"] = round((time.perf_counter() - start) / len(scenes), 4)
    results["right"] = rounded(count_right(read_scenes(images), scenes))
    results["grain"] = round(grain(images), 2)
    if quantized:
        results["bits_per_pixel"] = pipeline.vae.bits_per_pixel
        results["quantize_latents"] = pipeline.quantize_latents
        results["ways"] = {}
        for way in WAYS:
            found = decoded(pipeline.vae, latents, quantize=way)
            right = count_right(read_scenes(found), scenes)["all"]
            results["ways"][str(way)] = {"all": round(right, 4), "grain": round(grain(found), 2)}
    renders = torch.stack([to_tensor(scene.render(resolution)) for scene in scenes])
    kept = reconstructed(pipeline.vae, renders)
    results["autoencoder_alone"] = rounded(count_right(read_scenes(kept), scenes)) | {"grain": round(grain(kept), 2)}
    results["grain_of_renders"] = round(grain(renders), 2)
    return results, images


def save(args, results: dict) -> None:
    """Write what was measured, with what the file has of the same protocol: pipelines can be measured in parts."""
    protocol = {key: getattr(args, key) for key in ("num_prompts", "steps", "guidance")}
    earlier = json.loads(args.output.read_text()) if args.output.exists() else {}
    if earlier.get("protocol") == protocol:
        results = {**earlier["pipelines"], **results}
    results = {name: results[name] for name in sorted(results, key=lambda n: (*PIPELINES, n).index(n))}
    document = {"machine": describe_machine(), "protocol": protocol, "pipelines": results}
    args.output.write_text(json.dumps(document, indent=2) + "\n")


def rounded(fractions: dict[str, float]) -> dict[str, float]:
    return {name: round(value, 4) for name, value in fractions.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pipelines", nargs="+", default=PIPELINES, help="shipped names or folders")
    parser.add_argument("--num_prompts", type=int, default=500, help="default: 500")
    parser.add_argument("--steps", type=int, default=25, help="denoising steps (default: 25)")
    parser.add_argument("--guidance", type=float, default=2.0, help="guidance scale (default: 2)")
    parser.add_argument("--batch_size", type=int, default=100, help="default: 100")
    parser.add_argument("--output", type=Path, help="file for the results as JSON")
    parser.add_argument("--grid", type=Path, help="picture of the first prompts")
    args = parser.parse_args()
    scenes = scene_prompts(args.num_prompts)
    results, shown = {}, []
    for name in args.pipelines:
        folder = name if Path(name).is_dir() else bundled(name)
        pipeline = PQStableDiffusionPipeline.from_pretrained(folder, torch_dtype=torch.float32)
        pipeline.set_progress_bar_config(disable=True)
        results[Path(name).name], pictures = evaluate(pipeline, scenes, args)
        shown.append(pictures)
        right = results[Path(name).name]["right"]
        print(f"{name:16}", *(f"{key} {right[key]:.3f}" for key in (*ATTRIBUTES, "all")), flush=True)
        if args.output:
            save(args, results)
    if args.grid:
        from pqdiff.data.images.reading import to_image

        rows = [(scene.caption, [to_image(p[i]) for p in shown]) for i, scene in enumerate(scenes[:8])]
        grid_image(rows, [Path(name).name for name in args.pipelines], side=128).save(args.grid)


if __name__ == "__main__":
    main()
