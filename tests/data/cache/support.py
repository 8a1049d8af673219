"""Small latent caches that can be made again, and a count of what a function calls."""

import gc
import json
import shutil
import sys

import torch

from pqdiff.data.cache.reader import LatentCache
from pqdiff.data.cache.shards import INDEX
from pqdiff.data.cache.writer import LatentCacheWriter
from pqdiff.data.images.crops import Crop

SIZES = (5, 512, 256)
SHAPES = ((2, 3), (4, 4), (3, 2))
SETTINGS = {
    "kind": "indices", "autoencoder_name": "tiny", "fingerprint": "0123", "codebook_sizes": SIZES, "resolution": 32,
}  # fmt: skip


def sample(item, kind="indices", shape=None, part=0, text=None):
    """A sample that can be made again from its number."""
    generator = torch.Generator().manual_seed(1000 * item + part)
    height, width = shape or SHAPES[0]
    values = {"indices": torch.stack([torch.randint(size, (height, width), generator=generator) for size in SIZES])}
    values["latents"] = torch.randn(4, height, width, generator=generator).half().float()
    result = {
        "item": item,
        kind: values[kind],
        "captions": (f"caption {item % 3}: \u00fc\u4e2d",),
        "source": item.to_bytes(16, "big"),
        "name": f"image/{item}.jpg",
    }
    result["crop"] = Crop(part, 2, width, height, 9, 8, 90, 80, part % 2)
    return result if text is None else {**result, "text_embeddings": text[None]}


def write(folder, count=7, kind="indices", parts=1, shapes=SHAPES[:1], **options):
    """A cache of `count` images; whatever is there already is not made again."""
    contents = {"codebook_sizes": SIZES} if kind == "indices" else {"channels": 4}
    settings = {"kind": kind, "autoencoder_name": "tiny", "fingerprint": "0123", "resolution": 32, **contents}
    with LatentCacheWriter(folder, **{**settings, "samples_per_shard": 3, **options}) as writer:
        for item in range(count):
            if not writer.is_done(item):
                writer.add([sample(item, kind, shapes[item % len(shapes)], part) for part in range(parts)])
    return folder


def assert_is(got, wanted, kind="indices"):
    assert torch.equal(got[kind], wanted[kind])
    assert got[kind].dtype == {"indices": torch.int64, "latents": torch.float32}[kind]
    assert got["captions"] == wanted["captions"]
    assert (got["caption"], got["name"], got["item"]) == (wanted["captions"][0], wanted["name"], wanted["item"])
    assert got["crop"] == vars(wanted["crop"])


def read_incomplete(folder):
    """What is in a cache that is not complete, read from a copy that says it is."""
    copy = folder.with_name(f"{folder.name}-copy")
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(folder, copy)
    index = json.loads((copy / INDEX).read_text())
    assert not index["complete"]
    (copy / INDEX).write_text(json.dumps({**index, "complete": True}))
    return LatentCache(copy)


def count_calls(function):
    """Number of calls of functions, Python's and others, while `function` runs for the second time.

    What is computed once is not counted, and nor are the calls that the garbage collector makes.
    """
    calls = 0

    def count(frame, event, argument):
        nonlocal calls
        calls += event in ("call", "c_call")

    function()
    before, collecting = sys.getprofile(), gc.isenabled()
    gc.disable()
    sys.setprofile(count)
    try:
        function()
    finally:
        sys.setprofile(before)
        if collecting:
            gc.enable()
    return calls
