"""Make the frozen codebook of VQGAN-LC: cluster image features of a data set, per class or all together.

    python training/build_lc_codebook.py --dataset photos/ --codebook_size 16384 --output features.safetensors
    accelerate launch training/train_pqgan.py --codebook_features features.safetensors --config ...

As published: --extractor clip --grid 4 --method per_class --codebook_size 100000, on ImageNet in folders of classes. If the
process is killed at any moment, the same command continues. The file says which images and which network it comes from.
"""

import argparse
import contextlib
import hashlib
import itertools
import json
import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

from pqdiff.data.captions.captioned import StreamedImages, open_captioned
from pqdiff.data.files import atomic_file, check_new_file
from pqdiff.data.folder_lock import lock_folder
from pqdiff.data.images.crops import resize_and_crop
from pqdiff.data.images.reading import to_tensor
from pqdiff.devices import choose_device
from pqdiff.fitting.feature_codebook import FeatureRows, MiniBatchKMeans, cluster_classes, select_rows, write_features
from pqdiff.hub.local_paths import public_name
from pqdiff.json_text import read_json
from pqdiff.metrics.features import EXTRACTORS, build_features
from pqdiff.training.run_options import check_integers
from pqdiff.training.stopping import end_in_one_line

METHODS = ("kmeans", "per_class", "random_selection")
_IMAGES_PER_PART = 256
_SAVE_EVERY = 100  # batches of k-means
_RECIPE, _STATE = "recipe.json", "state.safetensors"


def parse(argv=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    data = parser.add_argument_group("images")
    data.add_argument("--dataset", required=True, help="folder of images or tar files, or Hub id")
    data.add_argument("--image_column", help="column of images")
    data.add_argument("--class_column", help="for per_class: column of class names (default: the folder of an image)")
    data.add_argument("--split", default="train", help="split of the data set (default: train)")
    data.add_argument("--streaming", action="store_true", help="read a Hub data set as a stream")
    data.add_argument("--num_images", type=int, help="use only the first ones")
    data.add_argument("--skip_broken", action="store_true", help="leave out images that cannot be read, and name them")
    features = parser.add_argument_group("features")
    features.add_argument(
        "--extractor", choices=sorted(name for name, kind in EXTRACTORS.items() if kind.local_dim),
        default="efficientnet_lite0", help="network (default: efficientnet_lite0)",
    )  # fmt: skip
    features.add_argument("--weights", help="file or folder of its weights (default: where the extractor looks)")
    features.add_argument("--resolution", type=int, help="side of the center crops that it sees (default: its own)")
    features.add_argument("--grid", type=int, default=4, help="features per image: GRID x GRID means (default: 4)")
    features.add_argument("--device", help="default: the accelerator, if there is one, else cpu")
    clusters = parser.add_argument_group("clusters")
    clusters.add_argument("--codebook_size", type=int, required=True, help="number of codewords")
    clusters.add_argument("--method", choices=METHODS, default="kmeans", help="default: kmeans, all images together")
    clusters.add_argument("--passes", type=int, default=4, help="of kmeans over all features (default: 4)")
    clusters.add_argument("--batch_size", type=int, default=8192, help="features at once in kmeans (default: 8192)")
    clusters.add_argument(
        "--unit_length", action="store_true",
        help="features and codewords of length 1: more codewords are used, at a slightly larger error",
    )  # fmt: skip
    clusters.add_argument("--seed", type=int, default=0, help="default: 0")
    run = parser.add_argument_group("run")
    run.add_argument("--output", type=Path, required=True, help="new file for the table")
    run.add_argument(
        "--work", type=Path, help="folder for the features, kept for other tables (default: none is kept)"
    )
    args = parser.parse_args(argv)
    check_integers(vars(args))
    for name in ("num_images", "resolution", "grid", "codebook_size", "passes", "batch_size"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            parser.error(f"--{name} must be at least 1, got {getattr(args, name)}")
    return args


def main(argv=None) -> None:
    args = parse(argv)
    check_new_file(args.output)
    args.device = choose_device(args.device)
    extractor = build_features(args.extractor, args.weights).to(args.device)
    args.resolution = args.resolution or extractor.local_side
    images = open_images(args)
    work = args.work or args.output.with_name(args.output.name + ".work")
    unlock = lock_folder(work, images)
    try:
        build(args, extractor, images, work)
    finally:
        unlock()
    if not args.work:
        with contextlib.suppress(OSError):  # other files are in it, or it is a link
            work.rmdir()


def build(args, extractor, images, work: Path) -> None:
    """Write the table, from the features that are in `work` already and those that are not yet."""
    open_work(work, recipe_of(args, extractor, images))
    names, digest, parts = extract(args, extractor, images, work)
    features = FeatureRows([open_part(path) for path in parts], args.unit_length)
    table = cluster(args, features, names, work)
    if args.unit_length:
        table = F.normalize(table, dim=1)  # a mean of features is shorter than they are
    metadata = {
        "extractor": args.extractor,
        "extractor_digest": extractor.digest,
        "resolution": args.resolution,
        "grid": args.grid,
        "method": args.method,
        "passes": args.passes if args.method == "kmeans" else None,
        "unit_length": args.unit_length,
        "seed": args.seed,
        "dataset": public_name(args.dataset),
        "dataset_digest": digest,
        "images": len(names),
        "features": len(features),
    }
    write_features(table, args.output, {key: str(value) for key, value in metadata.items() if value is not None})
    if not args.work:
        for path in (work / _RECIPE, *parts, *(part.with_suffix(".json") for part in parts)):
            path.unlink(missing_ok=True)
    print(f"{args.output}: {table.shape[0]} codewords of {table.shape[1]} numbers, from {len(features)} features of "
          f"{len(names)} images")  # fmt: skip


def open_images(args):
    images = open_captioned(
        args.dataset, args.image_column, args.class_column, args.split, args.streaming,
        captions=args.class_column is not None,
    )  # fmt: skip
    return images if args.num_images is None else images.take(args.num_images)


def recipe_of(args, extractor, images) -> dict:
    """What decides the features; the run that continues must have the same."""
    names = ("image_column", "class_column", "split", "num_images", "skip_broken", "extractor", "resolution", "grid")
    count = None if isinstance(images, StreamedImages) else len(images)
    data = public_name(args.dataset)
    return {
        **{name: getattr(args, name) for name in names},
        "dataset": data,
        "images": count,
        "digest": extractor.digest,
    }


def open_work(folder: Path, recipe: dict) -> None:
    """Begin a folder of features, or go on with one of the same recipe.

    Raises:
        ValueError: if the folder holds anything else.
    """
    if not folder.exists() or not any(folder.iterdir()):
        folder.mkdir(parents=True, exist_ok=True)
        with atomic_file(folder / _RECIPE) as temporary:
            temporary.write_text(json.dumps(recipe, indent=1) + "\n")
        return
    if not (folder / _RECIPE).is_file():
        raise ValueError(f"{folder}: holds other files: choose another folder with --work")
    before = read_json(folder / _RECIPE, _RECIPE)
    different = [key for key in recipe if before.get(key) != recipe[key]]
    if different:
        raise ValueError(
            f"{folder}: holds features with another {', '.join(different)}: choose another --work or remove it"
        )


@torch.no_grad()
def extract(args, extractor, images, folder: Path) -> tuple[list[str], str, list[Path]]:
    """Write features of all images in parts, those that are there already not again.

    Returns:
        The class of each image, a digest of all images, and the files of the parts.
    """
    rows = iter(images) if isinstance(images, StreamedImages) else map(images.row, range(len(images)))
    total = None if isinstance(images, StreamedImages) else len(images)
    names, digest, parts = [], hashlib.blake2b(digest_size=16), []
    with tqdm(total=total, unit=" images", mininterval=0.5) as progress:
        while chosen := list(itertools.islice(rows, _IMAGES_PER_PART)):
            path = folder / f"{len(parts):06d}.npy"
            if not path.exists():
                write_part(args, extractor, chosen, path, progress)
            record = read_json(path.with_suffix(".json"), path.name)
            names += record["classes"]
            digest.update("".join(record["digests"]).encode())
            progress.update(len(chosen))
            parts.append(path)
    return names, digest.hexdigest(), parts


def open_part(path: Path) -> np.ndarray:
    """What `write_part` has written, mapped into memory.

    Raises:
        ValueError: naming the file, if it is damaged.
    """
    try:
        return np.load(path, mmap_mode="r")
    except (ValueError, EOFError) as error:
        raise ValueError(f"{path}: is damaged, remove it ({error})") from None


def write_part(args, extractor, rows, path: Path, progress) -> None:
    """Features `(images x GRID x GRID, F)` of some images in fp16, and beside them their classes and digests."""
    features, record = [], {"classes": [], "digests": []}
    for row in rows:
        try:
            pixels = to_tensor(resize_and_crop(row.load(), args.resolution))[None]
        except ValueError as error:
            if not args.skip_broken:
                raise
            progress.write(f"left out: {error}", file=sys.stderr)
            continue
        local = F.adaptive_avg_pool2d(extractor.local(pixels), args.grid)[0]  # (F, GRID, GRID)
        features.append(local.flatten(1).T.half().cpu().numpy())
        record["classes"].append(row.caption if args.class_column else str(Path(row.name).parent))
        record["digests"].append(row.digest().hex())
    with atomic_file(path.with_suffix(".json")) as temporary:
        temporary.write_text(json.dumps(record))
    with atomic_file(path) as temporary, temporary.open("wb") as file:  # last: a part with it is complete
        np.save(file, np.concatenate(features) if features else np.empty((0, extractor.local_dim), np.float16))


def cluster(args, features: FeatureRows, names: list[str], folder: Path) -> torch.Tensor:
    """The table `(K, F)` of the method, fp32."""
    if args.method == "random_selection":
        return select_rows(features, args.codebook_size, args.seed)
    if args.method == "per_class":
        order = {name: number for number, name in enumerate(sorted(set(names)))}
        classes = torch.tensor([order[name] for name in names]).repeat_interleave(args.grid**2)
        with tqdm(total=len(order), unit=" classes") as progress:
            return cluster_classes(features, classes, args.codebook_size, args.seed, progress.update)
    means = MiniBatchKMeans(features, args.codebook_size, args.seed, args.passes, args.batch_size, args.device)
    settings = (args.codebook_size, args.seed, args.passes, args.batch_size, "unit" if args.unit_length else "raw")
    state = folder / "-".join([*map(str, settings), _STATE])
    if state.exists():
        means.load(state)
    with tqdm(initial=means.step, total=means.steps, unit=" batches") as progress:
        while means.step < means.steps:
            means.advance()
            progress.update()
            if means.step % _SAVE_EVERY == 0:
                means.save(state)
    state.unlink(missing_ok=True)
    return means.centers.cpu()


def run() -> None:
    """Call `main`; a user's mistake ends with one line and exit code 2."""
    with end_in_one_line("build_lc_codebook"):
        main()


if __name__ == "__main__":
    run()
