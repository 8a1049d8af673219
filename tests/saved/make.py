"""Save a tiny autoencoder and a tiny pipeline with what they compute, for `test_saved_files.py`.

    python -m tests.saved.make

Run it once per released version, never for an old one: files that were saved must load in every later version.
"""

from pathlib import Path

import torch
from safetensors.torch import save_file

from pqdiff import PQStableDiffusionPipeline, __version__
from tests.autoencoders import build
from tests.tiny import tiny_components

FOLDER = Path(__file__).parent
PROMPT = "a red fox"
KINDS = ("networks", "hidden", "classes")  # of autoencoders


def generate(pipeline: PQStableDiffusionPipeline) -> torch.Tensor:
    """Two steps from fixed noise: images `(1, 3, H, W)` in [0, 1]."""
    pipeline.set_progress_bar_config(disable=True)
    call = {"num_inference_steps": 2, "output_type": "pt", "generator": torch.Generator().manual_seed(0)}
    return pipeline(PROMPT, **call).images


@torch.no_grad()
def main() -> None:
    """Write tests/saved/VERSION."""
    folder = FOLDER / __version__
    expected = {"image": torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1}
    for kind in KINDS:
        model = build(kind)
        model.save_pretrained(folder / kind)
        output = model.encode(expected["image"])
        expected[f"{kind}.indices"], expected[f"{kind}.latents"] = output.indices, output.latents
        expected[f"{kind}.sample"] = model.decode(output.latents).sample
    pipeline = PQStableDiffusionPipeline(**tiny_components(), quantize_latents=0.2)
    pipeline.save_pretrained(folder / "pipeline")
    expected["pipeline.images"] = generate(pipeline)
    save_file({name: tensor.contiguous() for name, tensor in expected.items()}, folder / "expected.safetensors")


if __name__ == "__main__":
    main()
