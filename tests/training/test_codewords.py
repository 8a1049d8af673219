"""Restarts of codewords: the same for the same global batch, however it is spread, and remembered by checkpoints."""

import os

import pytest
import torch

from pqdiff.data.images.reading import normalize
from pqdiff.fitting.closed_form import fit_closed_form
from pqdiff.training.codewords import CodewordRestarts
from tests.fitting.test_closed_form import smooth_images
from tests.processes import run_pair
from tests.tiny import SIDE, tiny_autoencoder
from tests.training.loops import open_session
from tests.training.support import free_port, fresh_process


def restarted(folder, **options):
    """Codebooks of a model, of which all codewords but one are unused, after a restart with a global batch of 4."""
    session = open_session(folder, **options)
    torch.manual_seed(0)
    model = tiny_autoencoder().to(session.device)
    optimizer = torch.optim.AdamW(model.parameters())
    restarts = CodewordRestarts(session, model, 1)
    images = torch.randint(0, 256, (4, 3, SIDE, SIDE), dtype=torch.uint8)
    places = [list(session.layout.slots(number)) for number in range(session.layout.accumulation)]
    tokens = torch.zeros(2, len(model.quantizer.codebook_sizes), 2, 2, dtype=torch.int64)
    for slots in places:
        restarts.count(tokens, images[slots], 0)
    restarts.step(0, optimizer)
    return model.quantizer.codebooks.detach(), session


def _rank(rank, folder, port):
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_PORT": port, "MASTER_ADDR": "127.0.0.1"}
    os.environ.update({name: str(value) for name, value in place.items()})
    torch.set_num_threads(1)
    codebooks, _ = restarted(folder / "run", batch_size=2)
    torch.save(codebooks, folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()


def test_restarted_codewords_do_not_depend_on_processes_or_micro_steps(tmp_path):
    with fresh_process():
        alone, _ = restarted(tmp_path / "alone", batch_size=4)
        split, _ = restarted(tmp_path / "split", batch_size=2, gradient_accumulation_steps=2)
    torch.manual_seed(0)
    before = tiny_autoencoder().quantizer.codebooks
    changed = (alone != before).any(dim=2)
    assert changed[:, 1:].all()
    assert not changed[:, 0].any()
    assert all(len(table.unique(dim=0)) == len(table) for table in alone)  # no copies
    torch.testing.assert_close(split, alone, rtol=0, atol=1e-6)
    run_pair(_rank, tmp_path, free_port())
    for rank in range(2):
        torch.testing.assert_close(torch.load(tmp_path / f"{rank}.pt"), alone, rtol=0, atol=1e-5)


def test_which_codewords_were_used_survives_a_checkpoint(tmp_path):
    def opened(**options):
        session = open_session(tmp_path, **options)
        model = tiny_autoencoder()
        restarts = CodewordRestarts(session, model, 3)
        _, optimizer = session.prepare({"model": model}, torch.optim.SGD(model.parameters(), 0.1))
        return session, model, restarts, optimizer

    session, model, restarts, optimizer = opened()
    shape = (1, len(model.quantizer.codebook_sizes), 2, 2)
    restarts.count(torch.full(shape, 2), torch.zeros(1, 3, SIDE, SIDE, dtype=torch.uint8), 0)
    restarts.step(0, optimizer)
    session.save_checkpoint()
    session, model, restarts, optimizer = opened(resume=True)
    before = model.quantizer.codebooks.clone()
    restarts.count(torch.full(shape, 3), torch.randint(0, 256, (9, 3, SIDE, SIDE), dtype=torch.uint8), 2)
    restarts.step(2, optimizer)
    kept = (model.quantizer.codebooks == before).all(dim=2)
    assert kept[:, [2, 3]].all()
    assert not kept[:, [0, 1, 4]].any()


def test_classes_stay_and_restarts_make_no_image_worse(tmp_path, capsys):
    """A class is a token that says in what units the others are: a new one would fit nothing."""
    pixels = torch.stack(smooth_images(6))
    images = normalize(pixels)
    model = fit_closed_form(pixels, "f8-d32-s16-k32", hidden_channels=0, class_bases=4, sample_size=800)
    quantizer = model.quantizer
    with fresh_process(), torch.no_grad():
        for dead in (0, 4):  # classes alone, and four codewords of each of the other subspaces
            quantizer.codebooks[:, 32 - dead :] = 1000
            tokens, before = model.encode_to_indices(images), model(images)[0]
            classes = quantizer.class_codewords.clone()
            assert len(tokens[:, 0].unique()) < 32
            session = open_session(tmp_path / str(dead), batch_size=6)
            restarts = CodewordRestarts(session, model, 1)
            restarts.count(tokens, pixels, 0)
            restarts.step(0, torch.optim.SGD(model.parameters(), 0.1))
            unused = sum(32 - len(tokens[:, s].unique()) for s in range(1, 16))
            assert f"{unused} codewords that were not used" in "".join(capsys.readouterr())
            assert torch.equal(quantizer.class_codewords, classes)
            after = model.decode(model.encode(images).latents).sample
            assert (after - images).square().mean() < 1.001 * (before - images).square().mean()


def test_a_quantizer_without_codewords_cannot_restart(tmp_path):
    session = open_session(tmp_path)
    model = tiny_autoencoder(quantizer_type="finite_scalar", quantizer_config={"levels": [4] * 8})
    with pytest.raises(ValueError, match="quantizer_type finite_scalar cannot be restarted"):
        CodewordRestarts(session, model, 2)
