"""Which data a run began with: OUTPUT_DIR/data.json."""

import contextlib
import hashlib
import json

from pqdiff.json_text import read_json
from pqdiff.training.batches import Samples
from pqdiff.training.run_folder import RunFolder


def compare_data(folder: RunFolder, samples: Samples, seed: int, resumed: bool) -> list[str]:
    """Write down the number and names of the samples of a stage, and compare them with those that it began with.

    Args:
        folder: folder of the run.
        samples: data of the stage; streams, which have no length, are not compared.
        seed: seed of the order of the data, which is another one in each stage.
        resumed: whether the run goes on from a checkpoint.

    Returns:
        What to tell the user: nothing, or a line.
    """
    if not hasattr(samples, "__len__"):
        return []
    path, known = folder.claim("data.json"), {}
    if resumed:
        with contextlib.suppress(OSError, ValueError):  # nothing can be said if it is missing or damaged
            known = read_json(path, path.name)
    names = " ".join(path.name for path in getattr(getattr(samples, "images", None), "paths", ()))
    now = [len(samples), hashlib.sha256(names.encode(errors="surrogateescape")).hexdigest()[:16]]
    before = known.get(str(seed), now)
    if not isinstance(before, list) or [type(value) for value in before] != [int, str]:
        before = now
    if folder.is_locked:
        path.write_text(json.dumps({**known, str(seed): now}))
    if before == now:
        return []
    return [
        f"the data are not those that this run began with ({before[0]:,} samples then, {now[0]:,} now): from here on steps "
        "get other samples, and the result is that of neither"
    ]
