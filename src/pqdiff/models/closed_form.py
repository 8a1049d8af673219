"""Fit an AutoencoderPQ from photos without a gradient step.

Principal components of F x F patches, dealt out to the subspaces so that each has the same product of variances
(optimized product quantization, Ge et al. 2013, parametric solution), then k-means per subspace. With hidden channels a
codeword stands for more components than the latents show: at few bits per patch the components that d channels cannot
hold cost more than the quantization of those they can. With classes the first codeword says what kind of patch this is
(`class_fit.py`).
"""

import heapq
import math
from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F

from ..quantizers.nearest import nearest_codewords
from .autoencoder_pq import AutoencoderPQ
from .class_fit import class_codewords, fit_classes
from .kmeans import fit_codebooks
from .presets import closed_form_config

_PRODUCT_ROWS = 1024  # patches whose products are summed at once: large patches are few per image
_ITERATIONS = (12, 8)  # of k-means: on a quarter of the sample, on all of it


class PatchStatistics:
    """Mean, covariance and a uniform sample of the patches of a stream of images; memory does not grow with it.

    Args:
        patch_size: side F in pixels.
        sample_size: number of patches to keep, uniformly from all that were seen.
        generator: source of the sample's randomness and of the grids' offsets.
        grids: placements of the grid on each image; None for 1, and 2 for patches larger than 8.
    """

    def __init__(self, patch_size: int, sample_size: int, generator: torch.Generator, grids: int | None = None):
        self.patch_size = patch_size
        self.sample_size = sample_size
        self.generator = generator
        self.grids = grids or (
            1 if patch_size <= 8 else 2
        )  # larger patches are fewer: look at two placements of the grid
        self.count = 0
        size = 3 * patch_size**2
        self._sum = torch.zeros(size, dtype=torch.float64)
        self._products = torch.zeros(size, size, dtype=torch.float64)
        self._waiting: list[torch.Tensor] = []  # not yet in the sums
        self._kept: list[torch.Tensor] = []  # uint8 patches
        self._keys: list[torch.Tensor] = []  # a random key each; the smallest stay

    def update(self, image: torch.Tensor) -> None:
        """Take in one image `(3, H, W)`, uint8. Images smaller than a patch are padded by repeating their edge."""
        if image.ndim != 3 or image.shape[0] != 3 or image.dtype != torch.uint8:
            raise ValueError(f"image must be (3, H, W) uint8, got {tuple(image.shape)} {image.dtype}")
        size = self.patch_size
        bottom, right = max(0, size - image.shape[1]), max(0, size - image.shape[2])
        image = F.pad(image[None].float(), (0, right, 0, bottom), mode="replicate")
        for _ in range(self.grids):
            top, left = (self._random_offset(side) for side in image.shape[2:])
            height, width = (
                (side - start) // size * size for side, start in zip(image.shape[2:], (top, left), strict=True)
            )
            patches = F.pixel_unshuffle(image[:, :, top : top + height, left : left + width], size)
            self._add(patches[0].flatten(1).T.contiguous())  # (n, 3 F^2), 0..255

    def mean_and_covariance(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean `(3 F^2,)` and covariance of patches in [-1, 1], float64, symmetrized under left-right reflection."""
        if self.count < 2:
            raise ValueError(
                f"{self.count} patches are too few to fit anything: give at least one image of normal size"
            )
        self._multiply()
        mirrored = torch.arange(len(self._sum)).view(-1, self.patch_size).flip(1).flatten()
        mean = self._sum / self.count
        covariance = self._products / self.count - mean[:, None] * mean
        mean = (mean + mean[mirrored]) / 2
        covariance = (covariance + covariance[mirrored][:, mirrored]) / 2
        return mean, covariance

    def sample(self) -> torch.Tensor:
        """Kept patches `(n, 3 F^2)` in [-1, 1], fp32, in random order."""
        self._prune()
        return self._kept[0].float() / 127.5 - 1

    def projected(self, mean: torch.Tensor, basis: torch.Tensor) -> torch.Tensor:
        """Kept patches without `mean` (3 F^2,), in the coordinates of `basis` (3 F^2, n), a few at a time."""
        self._prune()
        return torch.cat([(part.float() / 127.5 - 1 - mean) @ basis for part in self._kept[0].split(8192)])

    def _random_offset(self, side: int) -> int:
        room = min(self.patch_size, side - self.patch_size + 1)
        return int(torch.randint(room, (1,), generator=self.generator))

    def _add(self, patches: torch.Tensor) -> None:
        self._kept.append(patches.to(torch.uint8))
        self._keys.append(torch.rand(len(patches), generator=self.generator, dtype=torch.float64))
        if sum(map(len, self._keys)) > 2 * self.sample_size:
            self._prune()
        self.count += len(patches)
        self._waiting.append(patches)
        if sum(map(len, self._waiting)) >= _PRODUCT_ROWS:
            self._multiply()

    def _multiply(self) -> None:
        """Take the patches that wait into the sums: in fp32 among them, in float64 across."""
        if self._waiting:
            patches = torch.cat(self._waiting) / 127.5 - 1
            self._sum += patches.sum(dim=0, dtype=torch.float64)
            self._products += patches.T @ patches
            self._waiting = []

    def _prune(self) -> None:
        keys, kept = torch.cat(self._keys), torch.cat(self._kept)
        order = keys.argsort()[: self.sample_size]
        self._keys, self._kept = [keys[order]], [kept[order]]


def fit_closed_form(
    images: Iterable[torch.Tensor],
    preset: str,
    hidden_channels: int | None = None,
    scaling_exponent: float = 0.0,
    sample_size: int | None = None,
    seed: int = 0,
    class_bases: int = 0,
    grids: int | None = None,
    on_step: Callable[[str, int, int], None] = lambda stage, step, steps: None,
) -> AutoencoderPQ:
    """Fit the linear path and the codebooks of a preset to images.

    Args:
        images: `(3, H, W)` uint8 tensors at the resolution the model is meant for; read once.
        preset: name of a configuration, e.g. `f8-d128-s64-k512`.
        hidden_channels: coefficients per patch beyond the latent channels; None for what suits the preset.
        scaling_exponent: gamma of the latents' standardization.
        sample_size: patches for k-means; None for about 48 MiB of them, at most 150,000.
        seed: makes the result reproducible.
        class_bases: bases of the classes of patches that the first subspace codes; 0 for no classes.
        grids: placements of the grid of patches on each image; None for 1, and 2 for patches larger than 8.
        on_step: told `(stage, step, steps)` as work proceeds; `steps` is 0 where the total is unknown.

    Returns:
        An `AutoencoderPQ` without networks, in fp32 and eval mode.

    Raises:
        ValueError: if there are no images, or fewer patches than codewords.
    """
    config = closed_form_config(preset, hidden_channels, class_bases)
    factor = 2 ** (len(config["block_out_channels"]) - 1)
    generator = torch.Generator().manual_seed(seed)
    sample_size = sample_size or min(150_000, 3 * 2**26 // (3 * factor**2))
    statistics = PatchStatistics(factor, sample_size, generator, grids)
    for step, image in enumerate(images, start=1):
        statistics.update(image)
        on_step("reading patches", step, 0)
    mean, covariance = statistics.mean_and_covariance()
    on_step("principal components", 0, 1)
    variances, components = torch.linalg.eigh(covariance)
    width = config["class_components"] or config["latent_channels"] + config["hidden_channels"]
    variances, components = variances.flip(0)[:width], components.flip(1)[:, :width]  # descending
    on_step("principal components", 1, 1)

    num_subspaces = config["quantizer_config"]["num_subspaces"]
    if class_bases:
        return _fit_with_classes(
            config, statistics, mean.float(), components.float(), scaling_exponent, generator, on_step
        )
    order = balanced_groups(variances.clamp_min(1e-12).tolist(), num_subspaces)  # (S, width / S)
    basis = components[:, order.flatten()].float()  # (3 F^2, width), one subspace after the other
    coefficients = (statistics.sample() - mean.float()) @ basis
    vectors = coefficients.T.unflatten(0, (num_subspaces, -1)).contiguous()  # (S, width / S, N)
    del coefficients
    steps = iter(range(1, sum(_ITERATIONS) + 1))
    codebooks = fit_codebooks(
        vectors,
        config["quantizer_config"]["codebook_size"],
        generator,
        *_ITERATIONS,
        on_step=lambda: on_step("k-means", next(steps), sum(_ITERATIONS)),
    )
    return _assemble(config, mean.float(), basis, codebooks, vectors, scaling_exponent).eval()


def _fit_with_classes(config, statistics, mean, components, scaling_exponent, generator, on_step) -> AutoencoderPQ:
    """The model of components (3 F^2, P) with classes of patches."""
    num_subspaces, codebook_size = (config["quantizer_config"][key] for key in ("num_subspaces", "codebook_size"))
    width = (config["latent_channels"] + config["hidden_channels"]) // num_subspaces
    done: dict[str, int] = {}

    def on_round(stage: str) -> None:
        done[stage] = done.get(stage, 0) + 1
        on_step(f"fitting {stage}", done[stage], 0)

    fitted = fit_classes(
        statistics.projected(mean, components),
        width * (num_subspaces - 1),
        num_subspaces,
        codebook_size,
        config["class_bases"],
        config["class_candidates"],
        balanced_groups,
        generator,
        on_round,
    )
    # As strong as the strongest coefficients; only what the latents show: the token alone says which class it is.
    visible = config["latent_channels"] // num_subspaces
    names = torch.zeros(codebook_size, width)
    strongest = fitted.vectors.square().mean(dim=2).max().sqrt()
    names[:, :visible] = class_codewords(fitted.classes, visible, float(strongest))
    codebooks = torch.cat([names[None], fitted.codebooks])
    vectors = torch.cat([names[fitted.tokens].T[None], fitted.vectors])
    model = _assemble(config, mean, components, codebooks, vectors, scaling_exponent)
    model.patch_transform.patch_classes.load_state_dict(fitted.classes.state_dict())
    return model.eval()


def balanced_groups(variances: list[float], num_groups: int) -> torch.Tensor:
    """Deal descending variances out to groups of equal size and, as nearly as a greedy rule can, equal product.

    The next variance goes to the group with the smallest product that still has room (Ge et al. 2013, section 3.2.2).

    Returns:
        Positions `(num_groups, len(variances) / num_groups)`, descending in variance within a group.
    """
    room = len(variances) // num_groups
    groups: list[list[int]] = [[] for _ in range(num_groups)]
    # Log-products; an empty group comes before any other.
    heap = [(-math.inf, g) for g in range(num_groups)]
    for position, variance in enumerate(variances):
        product, g = heapq.heappop(heap)
        groups[g].append(position)
        if len(groups[g]) < room:
            product = 0.0 if product == -math.inf else product
            heapq.heappush(heap, (product + math.log(variance), g))
    return torch.tensor(groups)


def _assemble(config, mean, basis, codebooks, vectors, scaling_exponent) -> AutoencoderPQ:
    """The model of a basis (3 F^2, width) and codebooks (S, K, width / S) in the order of the subspaces; with classes the
    basis has an order of its own."""
    visible = config["latent_channels"] // len(codebooks)  # coordinates per subspace that the latents show
    quantized = codebooks[..., :visible]
    if not config["class_bases"]:
        columns = torch.arange(basis.shape[1]).view(-1, codebooks.shape[2])
        basis = basis[:, torch.cat([columns[:, :visible].flatten(), columns[:, visible:].flatten()])]

    indices = nearest_codewords(vectors[None], codebooks)[0]  # (S, N)
    counts = torch.stack([torch.bincount(index, minlength=codebooks.shape[1]) for index in indices]).double()
    weights = (counts / counts.sum(dim=1, keepdim=True))[..., None]  # (S, K, 1)
    channel_mean = (quantized.double() * weights).sum(dim=1).flatten()
    centered = quantized.double() - channel_mean.view(len(codebooks), 1, -1)
    channel_std = (centered.square() * weights).sum(dim=1).flatten().sqrt().clamp_min(1e-6)

    model = AutoencoderPQ(
        **config,
        channel_mean=channel_mean.tolist(),
        channel_std=channel_std.tolist(),
        scaling_exponent=scaling_exponent,
    )
    path = model.patch_transform
    with torch.no_grad():
        model.quantizer.codebooks.copy_(quantized)
        if path.hidden_codewords is not None:
            path.hidden_codewords.copy_(codebooks[..., visible:])
        path.analysis.weight.copy_(basis.T[:, :, None, None])
        path.analysis.bias.copy_(-(mean @ basis))
        path.synthesis.weight.copy_(basis[:, :, None, None])
        path.synthesis.bias.copy_(mean)
    return model
