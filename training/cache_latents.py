"""Encode a data set once, to shards of bit-packed tokens or of fp16 latents that the trainers read.

    python training/cache_latents.py --dataset photos/ --autoencoder pqgan-f8-d128-s64-k512 --resolution 512 --output cache/

If the process is killed at any moment, the same command continues.
`pqdiff.data.cache.reader.LatentCache` reads the result.
"""

import argparse
import signal
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch.utils.data import DataLoader
from tqdm import tqdm
from transformers import CLIPTextModel, CLIPTokenizer

from pqdiff import AutoencoderPQ
from pqdiff.data.cache.writer import LatentCacheWriter
from pqdiff.data.captions.captioned import SCENES, CaptionedImages, StreamedImages, open_captioned
from pqdiff.data.images.buckets import bucket_sizes, nearest_bucket
from pqdiff.data.images.crops import cut, plan_crops
from pqdiff.data.images.lazy_image import LazyImage
from pqdiff.data.images.reading import normalize, to_tensor
from pqdiff.devices import choose_device
from pqdiff.hub.local_paths import public_name
from pqdiff.json_text import read_json
from pqdiff.models.fingerprint import fingerprint
from pqdiff.models.loading import downsample_factor, load_autoencoder
from pqdiff.training.run_options import check_integers
from pqdiff.training.samples import latents_of
from pqdiff.training.stopping import end_in_one_line
from pqdiff.training.text import encode_captions, text_fingerprint

PRECISIONS = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def parse(argv=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    data = parser.add_argument_group("images")
    data.add_argument("--dataset", required=True, help=f"folder of images or tar files, Hub id, or {SCENES}")
    data.add_argument("--image_column", help="column of images; in a folder's metadata, of file names")
    data.add_argument("--caption_column", help="column of captions (default: the first of the usual names)")
    data.add_argument("--split", default="train", help="split of the data set (default: train)")
    data.add_argument("--streaming", action="store_true", help="read a Hub data set as a stream")
    data.add_argument("--num_samples", type=int, help=f"use only the first ones; number of {SCENES} (default: 10000)")
    data.add_argument("--skip_broken", action="store_true", help="leave out images that cannot be read, and name them")
    crops = parser.add_argument_group("crops")
    crops.add_argument("--resolution", type=int, required=True, help="side in pixels")
    crops.add_argument(
        "--crops", type=int, default=1, help="number per image: the center, then random places (default: 1)"
    )
    crops.add_argument(
        "--flip", action="store_true", help="also each crop mirrored; not for captions that speak of left and right"
    )
    crops.add_argument(
        "--buckets", type=int, nargs="?", const=64, metavar="MULTIPLE",
        help="keep aspect ratios: sizes of about the same area with sides divisible by MULTIPLE (64)",
    )  # fmt: skip
    crops.add_argument(
        "--max_ratio", type=float, default=2.0, help="largest ratio of the sides of a bucket (default: 2)"
    )
    crops.add_argument("--seed", type=int, default=0, help="seed of the random crops and of scenes (default: 0)")
    models = parser.add_argument_group("models")
    models.add_argument(
        "--autoencoder", required=True, help="shipped name, folder or Hub id of AutoencoderPQ or AutoencoderKL"
    )
    models.add_argument(
        "--kind", choices=("indices", "latents"), help="default: indices if the autoencoder has tokens"
    )
    models.add_argument("--text_encoder", help="folder of a pipeline: also cache embeddings of the captions")
    models.add_argument("--device", help="default: the accelerator, if there is one, else cpu")
    models.add_argument("--mixed_precision", choices=PRECISIONS, default="no", help="of the encoders (default: no)")
    run = parser.add_argument_group("run")
    run.add_argument("--output", type=Path, required=True, help="folder of the cache")
    run.add_argument("--batch_size", type=int, default=8, help="samples encoded at once (default: 8)")
    run.add_argument("--samples_per_shard", type=int, default=4096, help="default: 4096")
    run.add_argument("--num_workers", type=int, default=2, help="processes that read images (default: 2)")
    args = parser.parse_args(argv)
    for name in ("batch_size", "crops", "num_samples", "samples_per_shard"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            parser.error(f"--{name} must be at least 1, got {getattr(args, name)}")
    check_integers(vars(args))
    return args


def main(argv=None) -> None:
    args = parse(argv)
    args.device = choose_device(args.device)
    images = open_images(args)
    autoencoder = load_autoencoder(args.autoencoder)
    kind = args.kind or ("indices" if isinstance(autoencoder, AutoencoderPQ) else "latents")
    if kind == "indices" and not isinstance(autoencoder, AutoencoderPQ):
        raise ValueError(f"--kind indices: {args.autoencoder} has no tokens; use --kind latents")
    targets = target_sizes(args, autoencoder)
    text = TextEncoder(args.text_encoder, args.device) if args.text_encoder else None
    contents = {"codebook_sizes": autoencoder.quantizer.codebook_sizes} if kind == "indices" else {}
    contents = contents or {"channels": autoencoder.config.latent_channels}
    writer = LatentCacheWriter(
        args.output,
        kind=kind,
        autoencoder_name=public_name(args.autoencoder),
        fingerprint=fingerprint(autoencoder),
        resolution=args.resolution,
        samples_per_shard=args.samples_per_shard,
        source=str(Path(args.dataset)) if Path(args.dataset).is_dir() else args.dataset,
        recipe=recipe_of(args, images, text),
        empty_text_embedding=text.encode([""])[0] if text else None,
        **contents,
    )
    autoencoder.to(args.device)
    precision = PRECISIONS[args.mixed_precision]
    total = len(images) if isinstance(images, CaptionedImages) else None
    if writer.num_items_done:
        print(
            f"{args.output}: {writer.num_items_done} images are done already; what is left is encoded", file=sys.stderr
        )

    pending: dict[tuple[int, int], list[dict]] = defaultdict(list)  # samples by their size, until they fill a batch

    def encode_pending(sizes) -> None:
        for size in sizes:
            samples = pending.pop(size)
            even = -(-len(samples) // -(-len(samples) // args.batch_size))
            for start in range(0, len(samples), even):
                batch = samples[start : start + even]
                with torch.autocast(torch.device(args.device).type, precision, precision != torch.float32):
                    encoded = encode(batch, autoencoder, kind, args.device)
                    embeddings = [text.encode(sample["captions"]) if text else None for sample in batch]
                for sample, values, embedding in zip(batch, encoded, embeddings, strict=True):
                    del sample["image"]
                    sample |= {kind: values, "text_embeddings": embedding}
            writer.add(samples)

    plan = partial(read_samples, targets=targets, crops=args.crops, flip=args.flip, seed=args.seed)
    with writer, tqdm(total=total, unit=" images", mininterval=0.5) as progress:
        for samples in read_images(images, writer.done, plan, args.num_workers):
            progress.update()
            if samples is None:
                continue
            if isinstance(samples, Changed):
                raise ValueError(
                    f"{args.output}: {samples.name} has changed since it was cached; choose another folder"
                )
            if isinstance(samples, str):
                if not args.skip_broken:
                    raise ValueError(samples)
                progress.write(f"left out: {samples}", file=sys.stderr)
                continue
            size = samples[0]["image"].size
            pending[size] += samples
            if len(pending[size]) >= args.batch_size:
                encode_pending([size])
        encode_pending(list(pending))
    shards, size = writer.shards, sum(path.stat().st_size for path in args.output.iterdir())
    number = sum(shard.samples for shard in shards)
    print(f"{args.output}: {number} samples of {writer.num_items_done} images in {len(shards)} shards, "
          f"{size / 1e6:.1f} MB, {size / number / 1e3:.2f} kB a sample")  # fmt: skip


def open_images(args):
    """The data set, cut to `--num_samples`."""
    options = {"num_samples": args.num_samples or 10_000, "resolution": args.resolution, "seed": args.seed}
    images = open_captioned(
        args.dataset, args.image_column, args.caption_column, args.split, args.streaming, **options
    )
    if args.num_samples is None or args.dataset == SCENES:
        return images
    return images.take(args.num_samples)


def target_sizes(args, autoencoder) -> list[tuple[int, int]]:
    """Sizes (height, width) in pixels that images are cut to."""
    factor = downsample_factor(autoencoder)
    for name, value in (("resolution", args.resolution), ("buckets", args.buckets)):
        if value is not None and (value < factor or value % factor):
            raise ValueError(f"--{name} ({value}) must be a multiple of {factor} for {args.autoencoder}")
    if args.buckets is None:
        return [(args.resolution, args.resolution)]
    return bucket_sizes(args.resolution, args.buckets, args.max_ratio)


def recipe_of(args, images, text) -> dict:
    """What decides the samples apart from the autoencoder; the run that continues must have the same."""
    names = ("image_column", "caption_column", "split", "num_samples", "crops", "flip", "buckets", "max_ratio", "seed")
    recipe = {name: getattr(args, name) for name in (*names, "mixed_precision")}
    recipe["photos"] = len(images) if isinstance(images, CaptionedImages) else None
    recipe["text_encoder"] = text.fingerprint if text else None
    return recipe


class TextEncoder:
    """Tokenizer and CLIP text encoder of a pipeline folder."""

    def __init__(self, folder: str, device: str):
        try:
            index = read_json(Path(folder) / "model_index.json", "model_index.json")
            found = [index[name][1] for name in index if name.startswith("text_encoder")]
            if found != ["CLIPTextModel"]:
                raise ValueError(f"needs one CLIPTextModel, has {', '.join(map(str, found)) or 'none'}")
            self.tokenizer = CLIPTokenizer.from_pretrained(folder, subfolder="tokenizer")
            self.model = CLIPTextModel.from_pretrained(folder, subfolder="text_encoder").eval()
        except (OSError, ValueError, RuntimeError, TypeError, AttributeError) as error:
            reason = " ".join(str(error).split())[:300]
            raise ValueError(f"--text_encoder {folder}: cannot be used as a pipeline ({reason})") from None
        self.fingerprint = text_fingerprint(self.model)
        self.model.to(device)

    @torch.no_grad()
    def encode(self, captions: Sequence[str]) -> torch.Tensor:
        """Embeddings `(B, T, D)`, each different caption is encoded once."""
        different = list(dict.fromkeys(captions))
        embeddings = encode_captions(self.tokenizer, self.model, different)
        return embeddings[[different.index(caption) for caption in captions]]


@dataclass(frozen=True)
class Changed:
    """An image whose content, name or captions are not those that are in the cache."""

    name: str


@dataclass
class Prepare:
    """Number of an image to its samples, in a worker process; an error is returned as its text, without a traceback.

    An image that is in the cache already gives None, or `Changed`.
    """

    row: Callable[[int], LazyImage]
    plan: Callable[[int, LazyImage], list[dict]]
    done: dict[int, bytes]

    def __getitem__(self, item: int) -> list[dict] | str | Changed | None:
        try:
            row = self.row(item)
            if item in self.done:
                return None if self.done[item] == row.digest() else Changed(row.name)
            return self.plan(item, row)
        except ValueError as error:
            return str(error)


def read_images(images, done: dict[int, bytes], plan, num_workers: int) -> Iterator[list[dict] | str | Changed | None]:
    """Samples of each image that is not in the cache yet, or what is wrong with the image."""
    done = dict(done)
    if isinstance(images, StreamedImages):
        for item, row in enumerate(images):
            yield Prepare({item: row}.get, plan, done)[item]
        return
    yield from DataLoader(
        Prepare(images.row, plan, done), batch_size=None, sampler=range(len(images)),
        num_workers=min(num_workers, len(images)),
        collate_fn=as_they_are, worker_init_fn=leave_signals_to_the_parent,
    )  # fmt: skip


def as_they_are(samples):
    """Leave samples as images: tensors of a worker are shared memory, which needs the worker to be alive."""
    return samples


def leave_signals_to_the_parent(worker: int) -> None:
    """Ignore Ctrl-C in workers: only the parent has something to save."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def read_samples(item: int, row: LazyImage, targets, crops: int, flip: bool, seed: int) -> list[dict]:
    """Crops of an image with everything that is recorded of them."""
    image = row.load()
    common = {"item": item, "name": row.name, "source": row.digest(), "captions": row.captions or ("",)}
    plans = plan_crops(image.size, nearest_bucket(*image.size, targets), crops, flip, [seed, item])
    return [{**common, "crop": crop, "image": part} for crop, part in zip(plans, cut(image, plans), strict=True)]


@torch.no_grad()
def encode(samples: list[dict], autoencoder, kind: str, device: str) -> torch.Tensor:
    """Tokens `(B, G, h, w)`, or latents `(B, C, h, w)` scaled as diffusion models see them."""
    pixels = torch.stack([to_tensor(sample["image"]) for sample in samples])
    if kind == "indices":
        return autoencoder.encode_to_indices(normalize(pixels.to(device)).to(autoencoder.dtype)).cpu()
    return latents_of({"pixels": pixels}, autoencoder, torch.device(device)).cpu()


def run() -> None:
    """Call `main`; a user's mistake ends with one line and exit code 2."""
    with end_in_one_line("cache_latents"):
        main()


if __name__ == "__main__":
    run()
