"""Tiny models on disk, runs that several files look at, and no traces of one run in the next."""

import pytest

from tests.training import pqgan
from tests.training.support import REFERENCE, adapt, fresh_process, save_models


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    """Folder of the folders of tiny models."""
    return save_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="session")
def reference(models, tmp_path_factory):
    """Folder of an uninterrupted run of adapt_sd.py, with all its checkpoints."""
    folder = tmp_path_factory.mktemp("reference") / "run"
    adapt(models, folder, **REFERENCE)
    return folder


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """Folder of an uninterrupted run of train_pqgan.py with networks, linear path, discriminator and validation."""
    return pqgan.train(tmp_path_factory.mktemp("pqgan") / "run", **pqgan.VALIDATION)


@pytest.fixture(autouse=True)
def _fresh_process():
    with fresh_process():
        yield
