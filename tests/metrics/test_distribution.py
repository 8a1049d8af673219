"""Distances of distributions against numpy, scipy and plain loops; batches, order and processes change nothing."""

import math

import numpy as np
import pytest
import torch
from torch import distributed

from pqdiff.metrics import distribution
from pqdiff.metrics.agreement import ClassAgreement, FeatureDistance
from pqdiff.metrics.distribution import CMMD, FrechetDistance, InceptionScore, KernelDistance, PrecisionRecall
from tests.processes import run_pair

pytestmark = pytest.mark.filterwarnings("ignore:The ``compute`` method:UserWarning")  # of torchmetrics
D, CLASSES = 12, 6
TWO_SETS = {
    "frechet": lambda: FrechetDistance(D),
    "kernel": lambda: KernelDistance(D),
    "cmmd": lambda: CMMD(D),
    "precision_recall": lambda: PrecisionRecall(D),
}


def sets(n=60, m=45, dim=D, seed=0):
    """Correlated features of two sets that overlap, fp32."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(dim, dim, generator=generator) / dim**0.5
    x = torch.randn(n, dim, generator=generator) @ mixing
    y = torch.randn(m, dim, generator=generator) @ mixing * 1.2 + 0.2
    return x, y


def measure(metric, x, y, sizes=(10_000, 10_000)):
    for part in x.split(sizes[0]):
        metric.update(reference=part)
    for part in y.split(sizes[1]):
        metric.update(result=part)
    return metric.compute()


def flat(value) -> list[float]:
    return [float(v) for v in (value.values() if isinstance(value, dict) else [value])]


def plain_frechet(x, y):
    import scipy.linalg  # not at the top: the processes of the last test do not need it

    x, y = x.double().numpy(), y.double().numpy()
    first, second = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    root = scipy.linalg.sqrtm(first @ second).real
    return np.square(x.mean(0) - y.mean(0)).sum() + np.trace(first + second - 2 * root)


@pytest.mark.parametrize(("n", "m", "dim"), [(60, 45, 12), (300, 200, 64), (30, 500, 1)])
def test_frechet_distance_is_that_of_scipy(n, m, dim):
    x, y = sets(n, m, dim)
    value = measure(FrechetDistance(dim), x, y)
    if dim == 1:
        x, y = x.double(), y.double()
        expected = (x.mean() - y.mean()) ** 2 + (x.std() - y.std()) ** 2
    else:
        expected = plain_frechet(x, y)
    assert float(value) == pytest.approx(float(expected), rel=1e-9)


def test_frechet_distance_is_exact_with_fewer_images_than_features():
    """A shift adds its square and nothing else; scipy's root of a singular matrix is off by 1e-6 here."""
    x = torch.randn(20, 128, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    shift = torch.linspace(0, 0.1, 128, dtype=torch.float64)
    assert float(measure(FrechetDistance(128), x, x)) == pytest.approx(0, abs=1e-10)
    assert float(measure(FrechetDistance(128), x, x + shift)) == pytest.approx(float(shift.square().sum()), abs=1e-10)


def test_memory_of_the_frechet_distance_does_not_grow():
    metric, (x, _) = FrechetDistance(D), sets()
    sizes = [sum(tensor.numel() for tensor in metric.metric_state.values())]
    for _ in range(3):
        metric.update(x, x)
        sizes.append(sum(tensor.numel() for tensor in metric.metric_state.values()))
    assert len(set(sizes)) == 1
    assert metric.reference_count == 3 * len(x)


def plain_kernel(x, y):
    def kernel(a, b):
        return (float(a @ b) / len(a) + 1) ** 3

    x, y = x.double().numpy(), y.double().numpy()
    n, m = len(x), len(y)
    own_x = sum(kernel(x[i], x[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    own_y = sum(kernel(y[i], y[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    return own_x + own_y - 2 * sum(kernel(a, b) for a in x for b in y) / (n * m)


def test_kernel_distance_is_the_double_sum():
    x, y = sets()
    assert float(measure(KernelDistance(D), x, y)) == pytest.approx(plain_kernel(x, y), rel=1e-9)


def test_kernel_distance_of_equally_many_images_is_that_of_torchmetrics():
    from torchmetrics.image.kid import poly_mmd

    x, y = sets(40, 40)
    theirs = poly_mmd(x.double(), y.double(), degree=3, coef=1.0)
    assert float(measure(KernelDistance(D), x, y)) == pytest.approx(float(theirs), rel=1e-9)


def unit(features):
    return torch.nn.functional.normalize(features)


def plain_cmmd(x, y):
    """In extended precision, from the kernel as it is written."""

    def mean_kernel(a, b):
        squares = ((a[:, None] - b[None]) ** 2).sum(-1)
        return np.exp(-squares / (2 * np.longdouble(10) ** 2)).mean()

    x, y = x.numpy().astype(np.longdouble), y.numpy().astype(np.longdouble)
    return float(1000 * (mean_kernel(x, x) + mean_kernel(y, y) - 2 * mean_kernel(x, y)))


def test_cmmd_is_the_kernel_in_extended_precision():
    x, y = map(unit, sets())
    assert float(measure(CMMD(D), x, y)) == pytest.approx(plain_cmmd(x, y), rel=1e-9)


def test_cmmd_of_sets_that_hardly_differ_keeps_its_digits():
    x = unit(sets()[0].double())
    y = unit(x + 1e-5 * unit(sets(60, 60)[1].double()))
    value = float(measure(CMMD(D), x, y))
    assert 0 < value < 1e-8  # fp32 would have lost it, and so would kernels without expm1 in part
    assert value == pytest.approx(plain_cmmd(x, y), rel=1e-4)


def test_cmmd_is_ten_times_the_squared_difference_of_means():
    x, y = (unit(features.double()) for features in sets(400, 300, 64))
    expected = 10 * (x.mean(0) - y.mean(0)).square().sum()
    assert float(measure(CMMD(64), x, y)) == pytest.approx(float(expected), rel=0.02)


def plain_precision_recall(x, y, k):
    x, y = x.double().numpy(), y.double().numpy()

    def covered(points, centers):
        radii = [sorted(np.linalg.norm(centers - c, axis=1))[k] for c in centers]  # [0] is c itself
        inside = [any(np.linalg.norm(p - c) <= r for c, r in zip(centers, radii, strict=True)) for p in points]
        return np.mean(inside)

    return {"precision": covered(y, x), "recall": covered(x, y)}


@pytest.mark.parametrize("k", [1, 3])
def test_precision_and_recall_are_those_of_plain_balls(k):
    x, y = sets(60, 45, 3)
    values = measure(PrecisionRecall(3, k), x, y)
    expected = plain_precision_recall(x, y, k)
    assert {name: float(value) for name, value in values.items()} == pytest.approx(expected)
    assert 0 < expected["precision"] < 1
    assert 0 < expected["recall"] < 1


def test_reconstructions_that_are_exact_are_all_covered():
    x, _ = sets()
    assert flat(measure(PrecisionRecall(D), x, x)) == [1, 1]


@pytest.mark.parametrize("name", ["kernel", "cmmd", "precision_recall"])
def test_chunks_change_nothing(name, monkeypatch):
    x, y = map(unit, sets())
    expected = flat(measure(TWO_SETS[name](), x, y))
    monkeypatch.setattr(distribution, "_CHUNK", 7)
    assert flat(measure(TWO_SETS[name](), x, y)) == pytest.approx(expected, rel=1e-9, abs=1e-15)


@pytest.mark.parametrize("name", TWO_SETS)
def test_batches_and_order_change_nothing(name):
    x, y = map(unit, sets())
    expected = flat(measure(TWO_SETS[name](), x, y))
    shuffled = [t[torch.randperm(len(t), generator=torch.Generator().manual_seed(1))] for t in (x, y)]
    assert flat(measure(TWO_SETS[name](), *shuffled, sizes=(7, 1))) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("name", TWO_SETS)
@pytest.mark.parametrize("count", [0, 1, 3])
def test_too_few_images_give_no_number(name, count):
    x, y = sets()
    least = {"frechet": 2, "kernel": 2, "cmmd": 1, "precision_recall": 4}[name]
    for pair in ((x[:count], y), (x, y[:count])):
        assert all(math.isnan(value) == (count < least) for value in flat(measure(TWO_SETS[name](), *pair)))


@pytest.mark.parametrize("name", TWO_SETS)
def test_states_survive_a_state_dict(name):
    x, y = map(unit, sets())
    first, second = TWO_SETS[name](), TWO_SETS[name]()
    first.update(x[:20], y[:20])
    first.persistent(True)
    second.persistent(True)
    second.load_state_dict(first.state_dict())
    for metric in (first, second):
        measure(metric, x[20:], y[20:])
    assert flat(second.compute()) == flat(first.compute())


def logits(n=80, seed=0):
    return 3 * torch.randn(n, CLASSES, generator=torch.Generator().manual_seed(seed))


def plain_score(values):
    p = np.exp(values.double().numpy())
    p /= p.sum(1, keepdims=True)
    return np.exp((p * (np.log(p) - np.log(p.mean(0)))).sum(1).mean())


def test_inception_score_is_its_definition():
    metric = InceptionScore(CLASSES, splits=1)
    metric.update(logits())
    assert float(metric.compute()) == pytest.approx(plain_score(logits()), rel=1e-9)


def test_splits_of_the_inception_score_do_not_depend_on_the_order():
    values, metric, other = logits(400), InceptionScore(CLASSES, splits=4), InceptionScore(CLASSES, splits=4)
    metric.update(values)
    for part in values.flip(0).split(7):
        other.update(part)
    assert torch.equal(metric.count, other.count)
    assert 60 < metric.count.min() <= metric.count.max() < 140  # of 100
    assert float(metric.compute()) == pytest.approx(float(other.compute()), rel=1e-9)
    split = distribution._hashes(values) % 4
    assert float(metric.compute()) == pytest.approx(np.mean([plain_score(values[split == i]) for i in range(4)]))


def test_inception_score_is_the_number_of_classes_at_best():
    metric = InceptionScore(CLASSES)
    metric.update(1000 * torch.eye(CLASSES).repeat(50, 1))
    assert float(metric.compute()) <= CLASSES
    alone = InceptionScore(CLASSES, splits=1)
    alone.update(1000 * torch.eye(CLASSES))
    assert float(alone.compute()) == pytest.approx(CLASSES)
    assert math.isnan(InceptionScore(CLASSES).compute())


METRICS = {
    **TWO_SETS,
    "feature_distance": FeatureDistance,
    "class_agreement": ClassAgreement,
    "inception_score": lambda: InceptionScore(CLASSES, splits=2),
}


def update(metric, x, y, scores):
    if isinstance(metric, InceptionScore):
        metric.update(scores)
    elif isinstance(metric, ClassAgreement):
        metric.update(scores, scores + 2 * x[:, :CLASSES])
    else:
        metric.update(x, y)


def work(rank: int, folder) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder / 'store'}", rank=rank, world_size=2)
    x, y = map(unit, sets(25, 25))
    parts = {"uneven": [(13, 25), (0, 13)][rank], "empty": [(0, 0), (0, 25)][rank]}
    results = {}
    for case, (start, end) in parts.items():
        for name, build in METRICS.items():
            metric = build()
            if start < end:
                update(metric, x[start:end], y[start:end], logits(25)[start:end])
            results[case, name] = (flat(metric.compute()), flat(metric.compute()))  # the exchange changes no state
    torch.save(results, folder / f"rank{rank}.pt")
    distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_give_the_numbers_of_one(tmp_path):
    run_pair(work, tmp_path)
    x, y = map(unit, sets(25, 25))
    for name, build in METRICS.items():
        metric = build()
        update(metric, x, y, logits(25))
        expected = flat(metric.compute())
        exact = name in ("precision_recall", "class_agreement")  # counts
        for rank in range(2):
            results = torch.load(tmp_path / f"rank{rank}.pt")
            for case in ("uneven", "empty"):
                for values in results[case, name]:
                    assert values == (expected if exact else pytest.approx(expected, rel=1e-9)), (name, case)
