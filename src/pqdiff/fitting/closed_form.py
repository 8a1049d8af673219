"""Fit an AutoencoderPQ from images without a gradient step.

Principal components of F x F patches, dealt out to the subspaces so that each has the same product of variances
(optimized product quantization, Ge et al. 2013, parametric solution), then k-means per subspace. With hidden channels a
codeword stands for more components than the latents show: at few bits per patch the components that d channels cannot
hold cost more than the quantization of those they can. With classes the first codeword says what kind of patch this is
(`classes.py`). With visibility all this is done to patches whose squared errors count as much as they are seen
(`visibility.py`).
"""

import heapq
import math
from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F

from pqdiff.fitting.classes import class_codewords, fit_classes
from pqdiff.fitting.kmeans import fit_codebooks
from pqdiff.fitting.visibility import visible_weights
from pqdiff.models.autoencoder_pq import AutoencoderPQ
from pqdiff.models.presets import closed_form_config
from pqdiff.quantizers import Quantizer, build_quantizer
from pqdiff.quantizers.search.nearest import nearest_codewords
from pqdiff.transforms.borders import border_rotation, filter_borders

_PRODUCT_ROWS = 1024  # patches whose products are summed at once: large patches are few per image
_ITERATIONS = (12, 8)  # of k-means: on a quarter of the sample, on all of it


class PatchStatistics:
    """Mean, covariance and a uniform sample of the patches of a stream of images; memory does not grow with it.

    Args:
        patch_size: side F in pixels.
        sample_size: number of patches to keep, uniformly from all that were seen.
        generator: source of the sample's randomness and of the grids' offsets.
        grids: placements of the grid on each image; None for 1, and 2 for patches larger than 8.
        overlap: pixels across each border that are filtered before patches are cut. See `PatchTransform`.
    """

    def __init__(
        self,
        patch_size: int,
        sample_size: int,
        generator: torch.Generator,
        grids: int | None = None,
        overlap: int = 0,
    ):
        self.patch_size = patch_size
        self.rotation = border_rotation(overlap) if overlap else None
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
        self._kept: list[torch.Tensor] = []  # patches, 0..255; filtered ones go beyond that and are rounded
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
            pixels = image[:, :, top : top + height, left : left + width]
            if self.rotation is not None:
                pixels = filter_borders(pixels, size, self.rotation)
            patches = F.pixel_unshuffle(pixels, size)
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
        self._kept.append(patches.round().to(torch.uint8 if self.rotation is None else torch.int16))
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
    visibility: float = 0.0,
    overlap: int = 0,
    on_step: Callable[[str, int, int], None] = lambda stage, step, steps: None,
) -> AutoencoderPQ:
    """Fit the linear path and the codebooks of a preset to images.

    Args:
        images: `(3, H, W)` uint8 tensors at the resolution the model is meant for; read once.
        preset: name of a configuration, e.g. `f8-d128-s64-k512`.
        hidden_channels: coefficients per patch beyond the latent channels; None for what suits the preset.
        scaling_exponent: gamma of the latents' standardization.
        sample_size: patches for k-means; None for 2^26 pixels of them, at most 150,000 patches. They are kept as bytes,
            and with an overlap as pairs of bytes.
        seed: makes the result reproducible.
        class_bases: bases of the classes of patches that the first subspace codes; 0 for no classes.
        grids: placements of the grid of patches on each image; None for 1, and 2 for patches larger than 8.
        visibility: 0 to fit for squared error; up to 1 to weigh errors by this power of how much they are seen.
        overlap: pixels across each border between patches that are filtered, even, at most F: a lapped transform.
        on_step: told `(stage, step, steps)` as work proceeds; `steps` is 0 where the total is unknown.

    Returns:
        An `AutoencoderPQ` without networks, in fp32 and eval mode.

    Raises:
        ValueError: if there are no images, or fewer patches than codewords.
    """
    config = closed_form_config(preset, hidden_channels, class_bases, visibility, overlap)
    factor = config["transform_config"]["patch_size"]
    generator = torch.Generator().manual_seed(seed)
    sample_size = sample_size or min(150_000, 3 * 2**26 // (3 * factor**2))
    statistics = PatchStatistics(factor, sample_size, generator, grids, overlap)
    for step, image in enumerate(images, start=1):
        statistics.update(image)
        on_step("reading patches", step, 0)
    mean, covariance = statistics.mean_and_covariance()
    on_step("principal components", 0, 1)
    weights, inverse = (None, None) if visibility == 0 else visible_weights(factor, visibility)
    variances, components = torch.linalg.eigh(covariance if weights is None else weights @ covariance @ weights.T)
    shape = config["quantizer_config"]
    width = shape.get("components") or config["latent_channels"] + shape["hidden_channels"]
    variances, components = variances.flip(0)[:width], components.flip(1)[:, :width]  # descending
    on_step("principal components", 1, 1)

    num_subspaces = shape["num_subspaces"]
    if not class_bases:
        order = balanced_groups(variances.clamp_min(1e-12).tolist(), num_subspaces)  # (S, width / S)
        components = components[:, order.flatten()]  # (3 F^2, width), one subspace after the other
    analysis = (components if weights is None else weights.T @ components).float()
    synthesis = analysis if inverse is None else (inverse @ components).float()
    if class_bases:
        quantizer, tokens = _fit_with_classes(config, statistics, mean.float(), analysis, generator, on_step)
        return _assemble(config, mean.float(), analysis, synthesis, quantizer, tokens, scaling_exponent)
    coefficients = (statistics.sample() - mean.float()) @ analysis
    vectors = coefficients.T.unflatten(0, (num_subspaces, -1)).contiguous()  # (S, width / S, N)
    del coefficients
    steps = iter(range(1, sum(_ITERATIONS) + 1))
    codebooks = fit_codebooks(
        vectors,
        shape["codebook_size"],
        generator,
        *_ITERATIONS,
        on_step=lambda: on_step("k-means", next(steps), sum(_ITERATIONS)),
    )
    quantizer = build_quantizer("product", config["latent_channels"], shape)
    with torch.no_grad():
        quantizer.codebooks.copy_(codebooks)
    tokens = nearest_codewords(vectors[None], codebooks)[0]  # (S, N)
    return _assemble(config, mean.float(), analysis, synthesis, quantizer, tokens, scaling_exponent)


def _fit_with_classes(config, statistics, mean, components, generator, on_step) -> tuple[Quantizer, torch.Tensor]:
    """The quantizer of components (3 F^2, P) with classes of patches, and the tokens (S, N) of the sample."""
    quantizer = build_quantizer("classified_product", config["latent_channels"], config["quantizer_config"])
    done: dict[str, int] = {}

    def on_round(stage: str) -> None:
        done[stage] = done.get(stage, 0) + 1
        on_step(f"fitting {stage}", done[stage], 0)

    fitted = fit_classes(statistics.projected(mean, components), quantizer, balanced_groups, generator, on_round)
    # The codewords of classes are as strong as the strongest coefficients.
    strongest = fitted.vectors.square().mean(dim=2).max().sqrt()
    quantizer.class_codewords.copy_(class_codewords(quantizer, quantizer.visible, float(strongest)))
    tokens = nearest_codewords(fitted.vectors[None], quantizer.codebooks.detach())[0]  # (S - 1, N)
    return quantizer, torch.cat([fitted.tokens[None], tokens])


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


def _assemble(config, mean, analysis, synthesis, quantizer, tokens, scaling_exponent) -> AutoencoderPQ:
    """The model of two bases (3 F^2, width), one for the way in and one for the way back, a quantizer of the coefficients,
    and the tokens (S, N) of the sample, which say how often codewords occur."""
    counts = [torch.bincount(token, minlength=quantizer.codebook_size) for token in tokens]
    quantizer.set_frequencies(counts)
    mean_and_std = latent_statistics(quantizer, counts)
    model = AutoencoderPQ(**config, statistics_config={**mean_and_std, "exponent": scaling_exponent})
    model.quantizer.load_state_dict(quantizer.state_dict())
    transform = model.transform
    with torch.no_grad():
        transform.analysis_conv.weight.copy_(analysis.T[:, :, None, None])
        transform.analysis_conv.bias.copy_(-(mean @ analysis))
        if transform.tied:
            transform.analysis_conv.transposed_bias.copy_(mean)
        else:
            transform.synthesis_conv.weight.copy_(synthesis[:, :, None, None])
            transform.synthesis_conv.bias.copy_(mean)
    return model.eval()


@torch.no_grad()
def latent_statistics(quantizer: Quantizer, counts: list[torch.Tensor]) -> dict[str, list[float]]:
    """Means and standard deviations of the d latent channels of a quantizer with one codebook per subspace, by how often
    its codewords occur: S tensors `(K,)`."""
    subspaces, size = len(counts), len(counts[0])
    indices = torch.arange(size).view(1, 1, 1, size).expand(1, subspaces, -1, -1)  # every codeword once
    latents = quantizer.to_latents(indices)[0, :, 0].unflatten(0, (subspaces, -1)).double()  # (S, d / S, K)
    weights = torch.stack(counts).double()
    weights = (weights / weights.sum(dim=1, keepdim=True))[:, None]  # (S, 1, K)
    mean = (latents * weights).sum(dim=2, keepdim=True)
    std = ((latents - mean).square() * weights).sum(dim=2).sqrt().clamp_min(1e-6)
    return {"mean": mean.flatten().tolist(), "std": std.flatten().tolist()}
