"""Tables of image features for a frozen codebook (VQGAN-LC): clustering in bounded memory, and the file that holds one.

Zhu et al. (VQGAN-LC) run k-means on the features of each class and join the centers. Data without classes is clustered by
mini-batch k-means (Sculley 2010), which keeps the centers and one batch in memory, whatever the number of features.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from pqdiff.data.files import atomic_file
from pqdiff.fitting.kmeans import fit_codebooks
from pqdiff.quantizers.search.nearest import nearest_codewords

FORMAT = "pqdiff-features-1"


class FeatureRows:
    """Features in several arrays, such as memory-mapped files, as one table that is read by row numbers.

    Args:
        parts: arrays `(n, F)` of a floating dtype.
        unit_length: divide every row by its length, as features of CLIP are compared.
    """

    def __init__(self, parts: Sequence[np.ndarray], unit_length: bool = False):
        self.parts, self.unit_length = list(parts), unit_length
        self.ends = np.cumsum([len(part) for part in parts])

    def __len__(self) -> int:
        return int(self.ends[-1]) if len(self.ends) else 0

    @property
    def dim(self) -> int:
        return self.parts[0].shape[1]

    def rows(self, numbers: torch.Tensor) -> torch.Tensor:
        """fp32 rows `(n, F)` of row numbers `(n,)`, in their order."""
        numbers = numbers.numpy()
        found = np.searchsorted(self.ends, numbers, side="right")
        result = np.empty((len(numbers), self.dim), dtype=np.float32)
        for part in np.unique(found):
            here = found == part
            start = self.ends[part] - len(self.parts[part])
            result[here] = self.parts[part][numbers[here] - start]
        table = torch.from_numpy(result)
        return F.normalize(table, dim=1) if self.unit_length else table


def select_rows(features: FeatureRows, codebook_size: int, seed: int) -> torch.Tensor:
    """`codebook_size` different rows, drawn at random: `(K, F)` fp32. The baseline for clustering.

    Raises:
        ValueError: if there are fewer features than codewords.
    """
    check_enough(len(features), codebook_size)
    order = torch.randperm(len(features), generator=torch.Generator().manual_seed(seed))
    return features.rows(order[:codebook_size])


def cluster_classes(
    features: FeatureRows,
    classes: torch.Tensor,
    codebook_size: int,
    seed: int,
    on_class: Callable[[], None] = lambda: None,
) -> torch.Tensor:
    """Centers of k-means in each class, one class after the other: `(K, F)` fp32.

    Args:
        features: features of all classes.
        classes: number of the class of each feature, int64 `(N,)`, from 0 without gaps.
        codebook_size: number of centers K of all classes together, which is divisible by the number of classes.
        seed: of the beginnings.
        on_class: called after each class.

    Raises:
        ValueError: if K is not divisible, or a class has fewer features than centers.
    """
    number = int(classes.max()) + 1
    if codebook_size % number:
        nearest = max(1, round(codebook_size / number)) * number
        raise ValueError(
            f"codebook_size ({codebook_size}) must be divisible by the {number} classes, such as {nearest}"
        )
    centers = []
    for index in range(number):
        rows = features.rows((classes == index).nonzero()[:, 0])
        check_enough(len(rows), codebook_size // number, f"class {index}")
        generator = torch.Generator().manual_seed(seed + index)
        rows = rows[torch.randperm(len(rows), generator=generator)]
        centers.append(fit_codebooks(rows.T[None].contiguous(), codebook_size // number, generator)[0])
        on_class()
    return torch.cat(centers)


class MiniBatchKMeans:
    """Mini-batch k-means over several passes, which can stop and go on after every batch.

    Within a pass each center is the mean of the features that came to it so far. Between passes, centers that nothing came
    to begin again at random features. The same seed gives the same centers, however often the work was interrupted.

    Args:
        features: what is clustered.
        codebook_size: number of centers K.
        seed: of the first centers and of the order.
        passes: how often each feature is seen.
        batch_size: features that are assigned at once.
        device: where centers are kept and compared.

    Raises:
        ValueError: if there are fewer features than centers.
    """

    def __init__(
        self,
        features: FeatureRows,
        codebook_size: int,
        seed: int = 0,
        passes: int = 4,
        batch_size: int = 8192,
        device="cpu",
    ):
        check_enough(len(features), codebook_size)
        self.features, self.seed, self.passes, self.batch_size = features, seed, passes, batch_size
        self.step = 0
        self.centers = select_rows(features, codebook_size, seed).to(device)
        self.counts = torch.zeros(codebook_size, device=device)
        self._order = (-1, torch.empty(0))

    @property
    def steps(self) -> int:
        """Number of batches of all passes."""
        return self.passes * self._batches

    @property
    def _batches(self) -> int:
        return -(-len(self.features) // self.batch_size)

    @torch.no_grad()
    def advance(self) -> None:
        """Take in one batch."""
        number, batch = divmod(self.step, self._batches)
        if self._order[0] != number:
            generator = torch.Generator().manual_seed(self.seed + 1 + number)
            self._order = number, torch.randperm(len(self.features), generator=generator)
        if batch == 0 and number:
            self._begin_pass()
        rows = self.features.rows(self._order[1][batch * self.batch_size :][: self.batch_size]).to(self.centers.device)
        index = nearest_codewords(rows.T[None, None].contiguous(), self.centers[None])[0, 0]  # (n,)
        chosen, place, came = index.unique(return_inverse=True, return_counts=True)
        sums = torch.zeros((len(chosen), rows.shape[1]), dtype=torch.float64, device=rows.device)
        sums.index_add_(0, place, rows.double())
        before = self.counts[chosen].double()
        kept = self.centers[chosen].double() * before[:, None]
        self.centers[chosen] = ((kept + sums) / (before + came)[:, None]).float()
        self.counts[chosen] += came
        self.step += 1

    def _begin_pass(self) -> None:
        dead = (self.counts == 0).nonzero()[:, 0]
        rows = self._order[1][-len(dead) :] if len(dead) else self._order[1][:0]  # those that come last
        self.centers[dead] = self.features.rows(rows).to(self.centers.device)
        self.counts.zero_()

    def save(self, path: Path) -> None:
        """Write the state, which `load` reads."""
        with atomic_file(path) as temporary:
            save_file({"centers": self.centers, "counts": self.counts, "step": torch.tensor(self.step)}, temporary)

    def load(self, path: Path) -> None:
        """Go on from a state of the same features and settings."""
        state = load_file(path)
        self.centers.copy_(state["centers"])
        self.counts.copy_(state["counts"])
        self.step = int(state["step"])


def check_enough(count: int, codebook_size: int, where: str = "the data") -> None:
    """ValueError if there are fewer features than codewords."""
    if count < codebook_size:
        raise ValueError(
            f"codebook_size ({codebook_size}) needs at least as many features, {where} has {count}: "
            "add images or a finer grid"
        )


def write_features(features: torch.Tensor, path: str | Path, metadata: dict[str, str]) -> None:
    """Write a table `(K, F)` in fp16, with texts that say where it comes from.

    Raises:
        ValueError: if a number is not finite in fp16.
    """
    half = features.half().contiguous()
    if not half.isfinite().all():
        raise ValueError("features are too large for fp16: scale them")
    with atomic_file(path) as temporary:
        save_file({"features": half}, temporary, {"format": FORMAT, **metadata})


def read_features(path: str | Path) -> tuple[torch.Tensor, dict[str, str]]:
    """A table `(K, F)` fp16 and the texts that were written with it.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: naming the file, if it holds something else.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: there is no such file; training/build_lc_codebook.py writes one")
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != FORMAT or set(file.keys()) != {"features"}:
                raise ValueError(f"{path}: is not a table of features; training/build_lc_codebook.py writes one")
            features = file.get_tensor("features")
    except SafetensorError as error:
        raise ValueError(f"{path}: cannot be read ({error})") from None
    if features.ndim != 2 or features.dtype != torch.float16:
        raise ValueError(f"{path}: features must be fp16 (K, F), got {features.dtype} {tuple(features.shape)}")
    return features, metadata
