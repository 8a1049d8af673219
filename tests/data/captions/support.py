"""Folders, tables and tar files of images with captions."""

import io
import json
import tarfile

import datasets
import numpy as np
from PIL import Image


def noise(number, size=(30, 20)):
    width, height = size
    return Image.fromarray(np.random.default_rng(number).integers(0, 256, (height, width, 3), dtype=np.uint8))


def save(path, number=0, size=(30, 20), orientation=None):
    exif = Image.Exif()
    if orientation:
        exif[0x0112] = orientation
    path.parent.mkdir(parents=True, exist_ok=True)
    noise(number, size).save(path, exif=exif)
    return path


def folder_of_images(folder):
    for number, name in enumerate(("a.png", "b.png", "deep/c.png")):
        save(folder / name, number)
    return folder


def parquet_folder(folder, captions=("one", "two", "three"), column="text"):
    folder.mkdir(parents=True)
    rows = {"photo": [noise(number) for number in range(len(captions))], column: list(captions)}
    features = datasets.Features(
        {"photo": datasets.Image(), column: datasets.Dataset.from_dict(rows).features[column]}
    )
    datasets.Dataset.from_dict(rows, features=features).to_parquet(folder / "train-0.parquet")
    return folder


def tar_folder(folder, count=3, kind="txt"):
    """Tar files of the webdataset convention: images, and captions as text or JSON."""
    folder.mkdir(parents=True)
    for part in range(2):
        with tarfile.open(folder / f"{part}.tar", "w") as tar:
            for number in range(count):
                image = io.BytesIO()
                noise(10 * part + number, (30 + number, 20)).save(image, "png")
                text = f"words {part}{number}" if kind == "txt" else json.dumps({"caption": f"words {part}{number}"})
                for suffix, data in (("png", image.getvalue()), (kind, text.encode())):
                    member = tarfile.TarInfo(f"key{part}{number}.{suffix}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
    return folder


def captions_of(images):
    return [images[i]["caption"] for i in range(len(images))]


def assert_shows(image, number, size=(30, 20)):
    assert image.mode == "RGB"
    assert np.array_equal(image, noise(number, size))
