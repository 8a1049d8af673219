"""How many pictures of the tiny pipelines show what the prompt says, on combinations that training never showed.

    python -m benchmarks.tiny_suite --output benchmarks/results/tiny_suite.json

500 prompts (`pqdiff.data.scenes.scene_prompts`), each with a pair of color and shape that is in no training scene; one
picture each, prompt i from noise of seed i, read back by `pqdiff.data.scene_checker`. A second row per pipeline says what
its autoencoder alone does: clean renders of the same scenes, encoded and decoded.
"""

import argparse
import json
import time
from pathlib import Path

import torch

from benchmarks.machine import describe_machine
from pqdiff import AutoencoderPQ, PQStableDiffusionPipeline, bundled
from pqdiff.data.grid import grid_image
from pqdiff.data.images import normalize, to_pixels, to_tensor
from pqdiff.data.scene_checker import ATTRIBUTES, count_right, read_scenes
from pqdiff.data.scenes import Scene, scene_prompts

PIPELINES = ("tiny-base", "tiny-precise", "tiny-hr", "tiny-quick")


@torch.no_grad()
def paint(pipeline, scenes: list[Scene], steps: int, guidance: float, batch_size: int, **call) -> torch.Tensor:
    """Pictures `(N, 3, H, W)`, uint8, of the scenes' captions."""
    pictures = []
    for start in range(0, len(scenes), batch_size):
        part = range(start, min(start + batch_size, len(scenes)))
        images = pipeline(
            [scenes[i].caption for i in part],
            num_inference_steps=steps,
            guidance_scale=guidance,
            generator=[torch.Generator().manual_seed(i) for i in part],
            output_type="pt",
            **call,
        ).images
        pictures.append(to_pixels(images * 2 - 1))
    return torch.cat(pictures)


@torch.no_grad()
def reconstructed(autoencoder, scenes: list[Scene], resolution: int) -> torch.Tensor:
    """Clean renders after encoding and decoding, uint8."""
    pictures = torch.stack([to_tensor(scene.render(resolution)) for scene in scenes])
    results = []
    for part in pictures.split(50):
        results.append(to_pixels(autoencoder.decode(autoencoder.encode(normalize(part)).latent_dist.mode()).sample))
    return torch.cat(results)


def evaluate(pipeline, scenes: list[Scene], args) -> dict:
    """Fractions right, per attribute, of what the pipeline paints and of what its autoencoder keeps."""
    resolution = pipeline.unet.config.sample_size * pipeline.vae_scale_factor
    results = {
        "resolution": resolution,
        "latents": [pipeline.unet.config.in_channels, *[pipeline.unet.config.sample_size] * 2],
        "unet_parameters": sum(p.numel() for p in pipeline.unet.parameters()),
    }
    start = time.perf_counter()
    pictures = paint(pipeline, scenes, args.steps, args.guidance, args.batch_size)
    results["seconds_per_picture"] = round((time.perf_counter() - start) / len(scenes), 4)
    results["right"] = rounded(count_right(read_scenes(pictures), scenes))
    if isinstance(pipeline.vae, AutoencoderPQ):
        results["bits_per_pixel"] = pipeline.vae.bits_per_pixel
    if isinstance(pipeline.vae, AutoencoderPQ) and not args.snapped_only:
        plain = paint(pipeline, scenes, args.steps, args.guidance, args.batch_size, quantize_latents=False)
        results["right_without_snapping"] = rounded(count_right(read_scenes(plain), scenes))
    kept = read_scenes(reconstructed(pipeline.vae, scenes, resolution))
    results["autoencoder_alone"] = rounded(count_right(kept, scenes))
    return results, pictures


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
    parser.add_argument("--snapped_only", action="store_true", help="leave out pictures of latents as they are")
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
        from pqdiff.data.images import to_image

        rows = [(scene.caption, [to_image(p[i]) for p in shown]) for i, scene in enumerate(scenes[:8])]
        grid_image(rows, [Path(name).name for name in args.pipelines], side=128).save(args.grid)


if __name__ == "__main__":
    main()
