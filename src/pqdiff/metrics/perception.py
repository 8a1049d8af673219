"""All metrics that need the weights of a network, for an evaluation. Each network sees each image once.

Without weights there is no number: the field is None, and `missing` says what to get.
"""

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path

import torch
from torchmetrics import Metric, MetricCollection

from pqdiff.losses import PerceptualLoss
from pqdiff.losses.backbones import BACKBONES
from pqdiff.metrics.agreement import ClassAgreement, FeatureDistance
from pqdiff.metrics.distribution import CMMD, FrechetDistance, InceptionScore, KernelDistance, PrecisionRecall
from pqdiff.metrics.features import EXTRACTORS, FeatureExtractor, build_features
from pqdiff.metrics.reconstruction import ImageDistance, as_number
from pqdiff.network_weights import MissingWeights
from pqdiff.suggestions import did_you_mean

LPIPS = {"lpips_alex": "alex", "lpips_vgg": "vgg"}
NETWORKS = (*EXTRACTORS, *LPIPS)


def perception_metrics(
    networks: Iterable[str] = NETWORKS,
    *,
    paired: bool = True,
    weights: Mapping[str, str | Path] | None = None,
    download: bool = False,
    device: str | torch.device = "cpu",
) -> "PerceptionMetrics":
    """Metrics of all networks whose weights can be had.

    Args:
        networks: names in `NETWORKS`.
        paired: whether results are reconstructions of the reference images, or a set of their own, as generated images
            are. LPIPS needs pairs.
        weights: files of weights by the network's name. Default: those that environment variables name, and what was
            downloaded before (docs/feature_metrics.md).
        download: whether to download what is missing: 90 MB for Inception, 1.7 GB for CLIP, 550 MB for VGG16.
        device: where the networks run and the sums are kept. MPS has no float64: there sums and LPIPS are on the CPU.

    Raises:
        ValueError: for unknown names, or a file of other weights.
        FileNotFoundError: if a given file does not exist.
    """
    networks, weights, device = tuple(networks), dict(weights or {}), torch.device(device)
    sums = torch.device("cpu") if device.type == "mps" else device
    for name in (*networks, *weights):
        if name not in NETWORKS:
            raise ValueError(f"network ({name!r}) is unknown: {did_you_mean(name, NETWORKS)}")
    extractors, distances, missing = [], {}, {}
    for name in networks:
        if name in LPIPS and not paired:
            continue
        try:
            source = BACKBONES[LPIPS[name]].weights if name in LPIPS else EXTRACTORS[name].weights
            path = source.find(weights.get(name), download)
            if name in LPIPS:
                distances[name] = PerceptualLoss(path, network=LPIPS[name]).to(sums)
            else:
                extractors.append(build_features(name, path).to(device))
        except MissingWeights as error:
            fields = [name] if name in LPIPS else _fields_of(EXTRACTORS[name], paired)
            missing |= dict.fromkeys(fields, str(error))
    return PerceptionMetrics(extractors, distances, missing, paired).to(sums)


class PerceptionMetrics(MetricCollection):
    """Metrics of networks that are there. Batches accumulate, and processes add up.

    Args:
        extractors: feature extractors.
        distances: LPIPS networks by the name of the field.
        missing: reasons by the names of the fields that have no weights.
        paired: see `perception_metrics`.

    Attributes:
        missing: reason by name of every field that is None, up to date after `compute`.
        networks: SHA-256 of the weights (`weights`) and, for extractors, the `preparation` of images, by network.
    """

    def __init__(
        self,
        extractors: Iterable[FeatureExtractor] = (),
        distances: Mapping[str, PerceptualLoss] | None = None,
        missing: Mapping[str, str] | None = None,
        paired: bool = True,
    ):
        extractors, distances = tuple(extractors), dict(distances or {})
        self._parts = extractors, distances, missing, paired
        self.paired, self._without_weights = paired, dict(missing or {})
        self.missing = dict(self._without_weights)
        # In a tuple, so that the networks' weights do not become a part of the metrics' state.
        self._extractors = tuple(
            (extractor, {name: build() for name, build in metrics_of(extractor, paired).items()})
            for extractor in extractors
        )
        self._distances = {name: ImageDistance(network) for name, network in distances.items()}
        self.networks = {
            **{e.name: {"weights": e.digest, "preparation": e.preparation} for e, _ in self._extractors},
            **{name: {"weights": network.digest} for name, network in distances.items()},
        }
        every = {name: metric for _, metrics in self._extractors for name, metric in metrics.items()}
        # No compute groups: metrics with states of the same names would be taken for equal ones.
        super().__init__({**every, **self._distances}, compute_groups=False)

    def again(self) -> "PerceptionMetrics":
        """The same metrics of the same networks, with nothing counted: for another model."""
        return PerceptionMetrics(*self._parts).to(next(iter(self.values())).device if len(self) else "cpu")

    def update(self, reference: torch.Tensor | None = None, result: torch.Tensor | None = None) -> None:
        """Add uint8 images `(B, 3, H, W)`: pairs of an image and its reconstruction, or if not paired images of either set.

        Raises:
            ValueError: for images of another type, or pairs of different shapes.
        """
        if self.paired and (reference is None or result is None or reference.shape != result.shape):
            shapes = [None if images is None else tuple(images.shape) for images in (reference, result)]
            raise ValueError(f"reference {shapes[0]} and result {shapes[1]} must both be the same (B, 3, H, W)")
        images = {"reference": reference, "result": result}
        for extractor, metrics in self._extractors:
            seen = {side: extractor(batch) for side, batch in images.items() if batch is not None}
            for metric in metrics.values():
                part = "logits" if isinstance(metric, ClassAgreement | InceptionScore) else "features"
                values = {side: getattr(output, part).to(metric.device) for side, output in seen.items()}
                if not isinstance(metric, InceptionScore):
                    metric.update(**values)
                elif "result" in values:
                    metric.update(values["result"])
        for metric in self._distances.values():
            for image, other in zip(reference.split(1), result.split(1), strict=True):  # one by one, as in extractors
                metric.update(other.to(metric.device), image.to(metric.device))

    def compute(self) -> dict[str, float | None]:
        """Numbers over all batches and processes by name, None for every name in `missing`."""
        numbers = dict.fromkeys(self._without_weights)
        for name, metric in self.items():
            value = metric.compute()
            for field in _fields(name):
                numbers[field] = as_number(value[field.split("_")[0]] if isinstance(value, dict) else value)
        self.missing = {
            name: self._without_weights.get(name, "there are too few images, or it is not finite")
            for name, number in numbers.items()
            if number is None
        }
        return dict(sorted(numbers.items()))


def metrics_of(extractor: FeatureExtractor | type[FeatureExtractor], paired: bool) -> dict[str, Callable[[], Metric]]:
    """What builds the metrics of an extractor's features, by name. Only Inception's Frechet distance is called FID."""
    name, frechet = extractor.name, partial(FrechetDistance, extractor.dim)
    kernel, classes = partial(KernelDistance, extractor.dim), extractor.num_classes
    if name == "inception":
        score = partial(InceptionScore, classes)
        metrics = {"rfid" if paired else "fid": frechet, "kid": kernel, "inception_score": score}
    elif name == "clip":
        metrics = {"cmmd": partial(CMMD, extractor.dim)}
    else:
        metrics = {f"fd_{name}": frechet, f"kd_{name}": kernel}
    if not paired:
        return {**metrics, f"precision_recall_{name}": partial(PrecisionRecall, extractor.dim)}
    metrics[f"feature_distance_{name}"] = FeatureDistance
    if classes and name != "inception":
        metrics[f"class_agreement_{name}"] = ClassAgreement
    return metrics


def _fields(name: str) -> list[str]:
    """Names of the numbers that the metric `name` gives."""
    if not name.startswith("precision_recall_"):
        return [name]
    return [name.replace("precision_recall", part) for part in ("precision", "recall")]


def _fields_of(extractor: type[FeatureExtractor], paired: bool) -> list[str]:
    return [field for name in metrics_of(extractor, paired) for field in _fields(name)]
