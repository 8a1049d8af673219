"""Fit the tokenizers of the tiny suite to generated scenes, in closed form.

python training/fit_scene_tokenizers.py --output runs/tokenizers
"""

import argparse
from pathlib import Path

from tqdm import tqdm

from pqdiff.data.files import atomic_folder
from pqdiff.data.images.reading import to_tensor
from pqdiff.data.scenes.scenes import SceneDataset
from pqdiff.fitting.closed_form import fit_closed_form

# Name: preset, side of the images in pixels.
TOKENIZERS = {
    "precise": ("f8-d32-s16-k256", 64),
    "quick": ("f16-d64-s32-k256", 64),
    "hr": ("f16-d64-s32-k256", 128),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder for one model per variant")
    parser.add_argument("--num_scenes", type=int, default=6000, help="default: 6000")
    parser.add_argument("--scaling_exponent", type=float, default=0.5, help="gamma; default: 0.5")
    parser.add_argument("--seed", type=int, default=0, help="default: 0")
    args = parser.parse_args()
    for name, (preset, resolution) in TOKENIZERS.items():
        scenes = SceneDataset(args.num_scenes, resolution, args.seed)
        images = (to_tensor(scenes[i]["image"]) for i in tqdm(range(len(scenes)), desc=name, mininterval=5))
        model = fit_closed_form(images, preset, scaling_exponent=args.scaling_exponent, seed=args.seed)
        model.register_to_config(sample_size=resolution)
        with atomic_folder(args.output / name) as folder:
            model.save_pretrained(folder)


if __name__ == "__main__":
    main()
