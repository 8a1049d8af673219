"""Where training samples come from: a folder, the Hub, generated scenes, or a latent cache."""

import argparse
from pathlib import Path

from ..data.captioned import SCENES, CaptionedImages, StreamedImages, open_captioned
from ..data.latents import LatentCache
from ..models.fingerprint import fingerprint
from .samples import CachedSamples, PictureSamples, Preparation, StreamedSamples
from .text import text_fingerprint


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
    args: argparse.Namespace, resolution: int, autoencoder, text_encoder=None, unet=None
) -> PictureSamples | StreamedSamples | CachedSamples:
    """Samples of `args.dataset` at a resolution, for an autoencoder.

    Several caches, one per resolution, are given with {resolution} in the name of the folder. Text embeddings of a cache
    are used if they are those of `text_encoder`, which must be frozen; without it they are left alone. Buckets have sides
    that all levels of `unet` divide, where the resolution has.

    Raises:
        ValueError: for a data set that cannot be opened, or a cache of other models or another resolution.
    """
    if not args.dataset:
        raise ValueError("--dataset is missing: give a folder, a Hub id, a latent cache, or `scenes`")
    if not 0 <= args.caption_dropout <= 1:
        raise ValueError(f"--caption_dropout ({args.caption_dropout}) must be between 0 and 1")
    dataset = str(args.dataset).replace("{resolution}", str(resolution))
    if (Path(dataset) / "index.json").is_file():
        cache = LatentCache(dataset)
        _check_cache(cache, resolution, autoencoder, text_encoder)
        for flag in ("buckets", "random_crop", "random_flip"):
            if getattr(args, flag):
                raise ValueError(f"--{flag}: {dataset} is a latent cache, whose crops were chosen when it was made")
        return CachedSamples(cache, args.caption_dropout, use_text=text_encoder is not None)
    if dataset == SCENES and args.random_flip:
        raise ValueError("--random_flip: the captions of scenes speak of left and right, mirrored they would be wrong")
    pictures = open_pictures(args, resolution, args.dataset)
    multiple = 2 ** (len(autoencoder.config.block_out_channels) - 1)
    if args.buckets and unet is not None:
        whole = multiple * 2 ** (len(unet.config.block_out_channels) - 1)
        multiple = multiple if resolution % whole else whole
    preparation = Preparation(
        resolution,
        multiple,
        buckets=args.buckets,
        random_crop=args.random_crop,
        flip=args.random_flip,
        caption_dropout=args.caption_dropout,
    )
    kind = StreamedSamples if isinstance(pictures, StreamedImages) else PictureSamples
    return kind(pictures, preparation)


def open_pictures(args: argparse.Namespace, resolution: int, dataset: str) -> CaptionedImages | StreamedImages:
    """Captioned pictures of a data set; `resolution` matters to generated scenes and to names with {resolution}.

    Raises:
        ValueError: for a data set that cannot be opened, or a latent cache, which holds no pictures.
    """
    dataset = str(dataset).replace("{resolution}", str(resolution))
    if (Path(dataset) / "index.json").is_file():
        raise ValueError(f"{dataset}: is a latent cache, but pictures are needed: give --solve_dataset")
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


def _check_cache(cache: LatentCache, resolution: int, autoencoder, text_encoder) -> None:
    mark = fingerprint(autoencoder)
    if cache.fingerprint != mark:
        raise ValueError(
            f"{cache.folder}: holds {cache.kind} of {cache.autoencoder} ({cache.fingerprint}), not of the autoencoder "
            f"of this run ({mark}): cache the data set again with it"
        )
    if cache.resolution != resolution:
        raise ValueError(f"{cache.folder}: was made at {cache.resolution} px, but this stage is at {resolution} px")
    cached = cache.settings["recipe"].get("text_encoder")
    if text_encoder is not None and cached not in (None, text_fingerprint(text_encoder)):
        raise ValueError(
            f"{cache.folder}: holds text embeddings of another text encoder ({cached}) than the base's "
            f"({text_fingerprint(text_encoder)}): cache the data set again with --text_encoder BASE, or without"
        )
