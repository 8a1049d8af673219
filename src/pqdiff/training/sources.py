"""Where training samples come from: a folder, the Hub, generated scenes, or a latent cache."""

import argparse
from pathlib import Path

from ..data.captioned import CaptionedImages, StreamedImages, open_captioned
from ..data.latents import LatentCache
from ..models.fingerprint import fingerprint
from .samples import CachedSamples, PictureSamples, Preparation, StreamedSamples


def add_data_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags that `open_samples` reads."""
    data = parser.add_argument_group("data")
    data.add_argument("--dataset", help="folder of captioned pictures, Hub id, latent cache, or `scenes`")
    data.add_argument("--split", default="train", help="of a Hub data set")
    data.add_argument("--streaming", action="store_true", help="read a Hub data set as it comes")
    data.add_argument("--image_column", default=None, help="default: the first column of images")
    data.add_argument("--caption_column", default=None, help="default: text, caption, ...")
    data.add_argument("--num_scenes", type=int, default=100_000, help="with --dataset scenes")
    data.add_argument("--buckets", action="store_true", help="keep aspect ratios: batches of several shapes")
    data.add_argument("--random_crop", action="store_true", help="crop anywhere, not in the center")
    data.add_argument("--random_flip", action="store_true", help="mirror half of the pictures")
    data.add_argument("--caption_dropout", type=float, default=0.1, help="probability of an empty caption")


def open_samples(
    args: argparse.Namespace, resolution: int, autoencoder
) -> PictureSamples | StreamedSamples | CachedSamples:
    """Samples of `args.dataset` at a resolution, for an autoencoder.

    Several caches, one per resolution, are given with {resolution} in the name of the folder.

    Raises:
        ValueError: for a data set that cannot be opened, or a cache of another autoencoder or resolution.
    """
    if not args.dataset:
        raise ValueError("--dataset is missing: give a folder, a Hub id, a latent cache, or `scenes`")
    if not 0 <= args.caption_dropout <= 1:
        raise ValueError(f"--caption_dropout ({args.caption_dropout}) must be between 0 and 1")
    dataset = str(args.dataset).replace("{resolution}", str(resolution))
    if (Path(dataset) / "index.json").is_file():
        cache = LatentCache(dataset)
        _check_cache(cache, resolution, autoencoder)
        return CachedSamples(cache, args.caption_dropout)
    pictures = open_pictures(args, resolution, args.dataset)
    preparation = Preparation(
        resolution,
        2 ** (len(autoencoder.config.block_out_channels) - 1),
        buckets=args.buckets,
        random_crop=args.random_crop,
        flip=args.random_flip,
        caption_dropout=args.caption_dropout,
    )
    kind = StreamedSamples if isinstance(pictures, StreamedImages) else PictureSamples
    return kind(pictures, preparation)


def open_pictures(args: argparse.Namespace, resolution: int, dataset: str) -> CaptionedImages | StreamedImages:
    """Captioned pictures of a data set; `resolution` matters to generated scenes only."""
    return open_captioned(
        dataset,
        args.image_column,
        args.caption_column,
        args.split,
        streaming=args.streaming,
        num_samples=args.num_scenes,
        resolution=resolution,
        seed=args.seed,
    )


def _check_cache(cache: LatentCache, resolution: int, autoencoder) -> None:
    mark = fingerprint(autoencoder)
    if cache.fingerprint != mark:
        raise ValueError(
            f"{cache.folder}: holds {cache.kind} of {cache.autoencoder} ({cache.fingerprint}), not of the autoencoder "
            f"of this run ({mark}): cache the data set again with it"
        )
    if cache.resolution != resolution:
        raise ValueError(f"{cache.folder}: was made at {cache.resolution} px, but this stage is at {resolution} px")
