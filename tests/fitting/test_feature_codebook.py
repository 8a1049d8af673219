"""Tables of features: clustering against loops written out, and files that say what is wrong with them."""

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from pqdiff.fitting.feature_codebook import (
    FeatureRows,
    MiniBatchKMeans,
    cluster_classes,
    read_features,
    select_rows,
    write_features,
)


def features_in_parts(*sizes, dim=3) -> tuple[FeatureRows, torch.Tensor]:
    generator = np.random.default_rng(0)
    parts = [generator.standard_normal((size, dim)).astype(np.float16) for size in sizes]
    return FeatureRows(parts), torch.from_numpy(np.concatenate(parts)).float()


def test_rows_of_several_parts_are_those_of_one_table():
    features, table = features_in_parts(5, 0, 3, 9)
    numbers = torch.tensor([16, 0, 7, 5, 4, 7])
    assert len(features) == 17
    assert torch.equal(features.rows(numbers), table[numbers])


def test_rows_of_unit_length_keep_their_direction():
    features, table = features_in_parts(5, 9)
    rows = FeatureRows(features.parts, unit_length=True).rows(torch.arange(14))
    torch.testing.assert_close(rows, table / table.square().sum(dim=1, keepdim=True).sqrt())


def test_selected_rows_are_different_ones_and_the_same_for_a_seed():
    features, table = features_in_parts(20, 20)
    chosen = select_rows(features, 30, seed=1)
    assert torch.equal(chosen, select_rows(features, 30, seed=1))
    assert len(chosen.unique(dim=0)) == 30
    assert (torch.cdist(chosen, table).amin(dim=1) == 0).all()


def test_mini_batches_move_centers_as_the_written_out_loop_does():
    features, table = features_in_parts(40, 60)
    means = MiniBatchKMeans(features, 7, seed=3, passes=2, batch_size=32)
    centers, counts = select_rows(features, 7, 3).double(), [0] * 7
    for number in range(2):
        order = torch.randperm(100, generator=torch.Generator().manual_seed(3 + 1 + number))
        if number:
            dead = [k for k in range(7) if counts[k] == 0]
            for k, row in zip(dead, order[-len(dead) :] if dead else [], strict=True):
                centers[k] = table[row]
            counts = [0] * 7
        for batch in order.split(32):
            nearest = torch.cdist(table[batch].double(), centers).argmin(dim=1)
            for k in range(7):
                members = table[batch][nearest == k].double()
                if len(members):
                    centers[k] = (centers[k] * counts[k] + members.sum(dim=0)) / (counts[k] + len(members))
                    counts[k] += len(members)
    while means.step < means.steps:
        means.advance()
    torch.testing.assert_close(means.centers.double(), centers, atol=1e-5, rtol=1e-5)
    assert means.counts.tolist() == counts


def test_an_interrupted_clustering_ends_with_the_same_centers(tmp_path):
    features, _ = features_in_parts(50, 50)
    whole = MiniBatchKMeans(features, 9, passes=3, batch_size=40)
    while whole.step < whole.steps:
        whole.advance()
    part = MiniBatchKMeans(features, 9, passes=3, batch_size=40)
    for _ in range(4):
        part.advance()
    part.save(tmp_path / "state")
    rest = MiniBatchKMeans(features, 9, passes=3, batch_size=40)
    rest.load(tmp_path / "state")
    while rest.step < rest.steps:
        rest.advance()
    assert torch.equal(rest.centers, whole.centers)


def test_each_class_has_its_own_centers():
    """Two classes far from each other: half of the centers lie in each."""
    near, far = (np.random.default_rng(i).standard_normal((60, 4)) + 100 * i for i in range(2))
    mixed, classes = np.empty((120, 4), np.float32), torch.arange(120) % 2
    mixed[0::2], mixed[1::2] = near, far
    centers = cluster_classes(FeatureRows([mixed]), classes, 10, seed=0)
    assert (centers[:5].mean(dim=1) < 50).all()
    assert (centers[5:].mean(dim=1) > 50).all()


def test_clustering_is_better_than_a_random_selection():
    features, table = features_in_parts(400, dim=2)
    means = MiniBatchKMeans(features, 16, passes=5, batch_size=100)
    while means.step < means.steps:
        means.advance()
    errors = [torch.cdist(table, c).amin(dim=1).square().mean() for c in (means.centers, select_rows(features, 16, 0))]
    assert errors[0] < 0.8 * errors[1]


def test_too_few_features_and_classes_that_do_not_divide_are_refused():
    features, _ = features_in_parts(6)
    for function in (lambda: select_rows(features, 7, 0), lambda: MiniBatchKMeans(features, 7)):
        with pytest.raises(ValueError, match=r"codebook_size \(7\).*has 6"):
            function()
    with pytest.raises(ValueError, match=r"codebook_size \(4\).*3 classes, such as 3"):
        cluster_classes(features, torch.tensor([0, 1, 2, 0, 1, 2]), 4, 0)
    with pytest.raises(ValueError, match="class 1 has 1"):
        cluster_classes(features, torch.tensor([0, 0, 0, 0, 0, 1]), 4, 0)


def test_a_table_comes_back_with_what_is_said_of_it(tmp_path):
    table = torch.randn(5, 3)
    write_features(table, tmp_path / "table", {"extractor": "none"})
    features, metadata = read_features(tmp_path / "table")
    assert torch.equal(features, table.half())
    assert metadata["extractor"] == "none"


def test_files_that_are_no_tables_are_refused_in_one_line(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file"):
        read_features(tmp_path / "missing")
    (tmp_path / "text").write_text("features")
    save_file({"features": torch.randn(2, 2)}, tmp_path / "other")
    for name in ("text", "other"):
        with pytest.raises(ValueError, match=name):
            read_features(tmp_path / name)
    with pytest.raises(ValueError, match="too large"):
        write_features(torch.full((2, 2), 1e6), tmp_path / "table", {})
