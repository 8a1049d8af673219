"""The adaptive weight is that of the whole batch: two processes with half a batch each train as one process."""

import pytest
import torch
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

from pqdiff.losses import VQGANLoss
from tests.losses.support import gradients, networks, photos
from tests.processes import run_pair


def train_step(images, norm, wrap=lambda network: network):
    """Gradients of both networks after one batch, both forward passes before both backward passes, and the log."""
    autoencoder, discriminator = networks(norm)
    wrapped, judge = wrap(autoencoder), wrap(discriminator)
    function = VQGANLoss(judge, perceptual_weight=0)
    for _ in range(2):  # wrappers exchange buffers from the second call on
        wrapped.zero_grad()
        judge.zero_grad()
        x, quantizer_loss = wrapped(images)
        loss, logs = function.generator(images, x, quantizer_loss, autoencoder.conv_out.weight, 1)
        judged, _ = function.discriminator(images, x, 1)
        loss.backward()
        assert all(parameter.grad is None for parameter in discriminator.parameters())
        judged.backward()
    return {"autoencoder": gradients(autoencoder), "discriminator": gradients(discriminator), "logs": logs}


def work(rank: int, folder) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder / 'store'}", rank=rank, world_size=2)
    half = photos().chunk(2)[rank]
    results = {norm: train_step(half, norm, DistributedDataParallel) for norm in ("none", "batch")}
    torch.save(results, folder / f"rank{rank}.pt")
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    run_pair(work, folder)
    return [torch.load(folder / f"rank{rank}.pt") for rank in range(2)]


def test_gradients_and_adaptive_weight_are_those_of_the_whole_batch(ranks):
    """Each half alone would have another weight, so the processes must exchange their gradients."""
    expected = train_step(photos(), "none")
    for rank in ranks:
        torch.testing.assert_close(rank["none"]["logs"]["disc_weight"], expected["logs"]["disc_weight"])
        for network in ("autoencoder", "discriminator"):
            torch.testing.assert_close(rank["none"][network], expected[network], rtol=1e-4, atol=1e-7)
    alone = train_step(photos().chunk(2)[0], "none")
    assert abs(alone["logs"]["disc_weight"] / expected["logs"]["disc_weight"] - 1) > 1e-3


def test_with_batch_norm_all_ranks_get_the_same_gradients(ranks):
    """Statistics are those of each rank's part; buffers are exchanged between the two batches."""
    for network in ("autoencoder", "discriminator"):
        first, second = (rank["batch"][network] for rank in ranks)
        assert all(torch.equal(first[name], second[name]) for name in first)
        assert all(tensor.isfinite().all() for tensor in first.values())
        assert any(tensor.abs().max() > 0 for tensor in first.values())
