"""Data of diffusion models: captioned images of a folder, the Hub or generated scenes, or a latent cache."""

import argparse
from dataclasses import dataclass

from pqdiff.data.cache.reader import LatentCache
from pqdiff.data.cache.shards import holds_cache
from pqdiff.data.captions.captioned import SCENES, CaptionedImages, StreamedImages, open_captioned
from pqdiff.models.fingerprint import fingerprint
from pqdiff.models.loading import downsample_factor
from pqdiff.training.options import Options
from pqdiff.training.samples import CachedSamples, ImageSamples, Preparation, StreamedSamples
from pqdiff.training.text import text_fingerprint


def add_data_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `DataOptions`, apart from `--seed`, which all trainers have."""
    data = parser.add_argument_group("data")
    data.add_argument("--dataset", help="folder of captioned images, Hub id, latent cache, or `scenes`")
    data.add_argument("--split", default="train", help="split of a Hub data set")
    data.add_argument("--streaming", action="store_true", help="read a Hub data set as a stream")
    data.add_argument("--image_column", default=None, help="default: the first column of images")
    data.add_argument("--caption_column", default=None, help="default: text, caption, ...")
    data.add_argument("--num_scenes", type=int, default=100_000, help="number of scenes with --dataset scenes")
    data.add_argument("--buckets", action="store_true", help="keep aspect ratios: batches of several shapes")
    data.add_argument("--random_crop", action="store_true", help="crop at a random place instead of the center")
    data.add_argument("--random_flip", action="store_true", help="mirror half of the images")
    data.add_argument("--caption_dropout", type=float, default=0.1, help="probability of an empty caption")


@dataclass(frozen=True)
class DataOptions(Options):
    """Which captioned images a diffusion model is trained on, and how they are cut.

    Attributes:
        dataset: folder of captioned images, Hub id, folder of a latent cache, or `scenes`; {resolution} in it stands for
            the resolution of the stage.
        split: split of a Hub data set.
        streaming: read a Hub data set as a stream.
        image_column: column of images; None for the first one.
        caption_column: column of captions; None for the first of the usual names.
        num_scenes: number of generated scenes.
        buckets, random_crop, random_flip, caption_dropout: as in `Preparation`.
        seed: seed of generated scenes.
    """

    dataset: str | None
    split: str = "train"
    streaming: bool = False
    image_column: str | None = None
    caption_column: str | None = None
    num_scenes: int = 100_000
    buckets: bool = False
    random_crop: bool = False
    random_flip: bool = False
    caption_dropout: float = 0.1
    seed: int = 0


def open_samples(
    options: DataOptions, resolution: int, autoencoder, text_encoder=None, unet=None
) -> ImageSamples | StreamedSamples | CachedSamples:
    """Samples of `options.dataset` at a resolution, for an autoencoder.

    Args:
        options: which data.
        resolution: side in pixels.
        autoencoder: model whose latents are trained on.
        text_encoder: frozen text encoder. If a cache holds its embeddings, they are used; None does not use any.
        unet: with buckets, their sides are divisible at all levels of this model, if the resolution is.

    Raises:
        ValueError: for a data set that cannot be opened, or a cache of other models or of another resolution.
    """
    if not options.dataset:
        raise ValueError("--dataset is missing: give a folder, a Hub id, a latent cache, or `scenes`")
    if not 0 <= options.caption_dropout <= 1:
        raise ValueError(f"--caption_dropout ({options.caption_dropout}) must be between 0 and 1")
    dataset = str(options.dataset).replace("{resolution}", str(resolution))
    if holds_cache(dataset):
        cache = LatentCache(dataset)
        _check_cache(cache, resolution, autoencoder, text_encoder)
        for flag in ("buckets", "random_crop", "random_flip"):
            if getattr(options, flag):
                raise ValueError(f"--{flag}: {dataset} is a latent cache, whose crops were chosen when it was made")
        return CachedSamples(cache, options.caption_dropout, use_text=text_encoder is not None)
    if dataset == SCENES and options.random_flip:
        raise ValueError(
            "--random_flip: captions of scenes speak of left and right, so mirrored scenes would be wrong"
        )
    images = open_captioned_images(options, resolution)
    multiple = downsample_factor(autoencoder)
    if options.buckets and unet is not None:
        of_all_levels = multiple * 2 ** (len(unet.config.block_out_channels) - 1)
        multiple = multiple if resolution % of_all_levels else of_all_levels
    preparation = Preparation(
        resolution,
        multiple,
        buckets=options.buckets,
        random_crop=options.random_crop,
        flip=options.random_flip,
        caption_dropout=options.caption_dropout,
    )
    kind = StreamedSamples if isinstance(images, StreamedImages) else ImageSamples
    return kind(images, preparation)


def open_captioned_images(
    options: DataOptions, resolution: int, dataset: str | None = None
) -> CaptionedImages | StreamedImages:
    """Captioned images of a data set.

    Args:
        options: which data.
        resolution: side in pixels of generated scenes; also replaces {resolution} in the name.
        dataset: another data set than `options.dataset`.

    Raises:
        ValueError: for a data set that cannot be opened, or for a latent cache, which holds no images.
    """
    dataset = str(dataset or options.dataset).replace("{resolution}", str(resolution))
    if holds_cache(dataset):
        raise ValueError(f"{dataset} is a latent cache, but images are needed: give --solve_dataset")
    return open_captioned(
        dataset,
        options.image_column,
        options.caption_column,
        options.split,
        streaming=options.streaming,
        num_samples=options.num_scenes,
        resolution=resolution,
        seed=options.seed,
    )


def _check_cache(cache: LatentCache, resolution: int, autoencoder, text_encoder) -> None:
    expected = fingerprint(autoencoder)
    if cache.fingerprint != expected:
        raise ValueError(
            f"{cache.folder} holds {cache.kind} of {cache.autoencoder} ({cache.fingerprint}), not of the autoencoder "
            f"of this run ({expected}): cache the data set again with it"
        )
    if cache.resolution != resolution:
        raise ValueError(f"{cache.folder} was made at {cache.resolution} px, but this stage is at {resolution} px")
    cached = cache.settings["recipe"].get("text_encoder")
    if text_encoder is not None and cached not in (None, text_fingerprint(text_encoder)):
        raise ValueError(
            f"{cache.folder} holds text embeddings of another text encoder ({cached}) than the base's "
            f"({text_fingerprint(text_encoder)}): cache the data set again with --text_encoder BASE, or without"
        )
