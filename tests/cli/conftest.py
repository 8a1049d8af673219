"""Tiny fitted models, and the command as a function."""

import contextlib
import io
import sys
import warnings
from types import SimpleNamespace

import datasets
import huggingface_hub
import pytest
import torch

from pqdiff import PQStableDiffusionPipeline
from pqdiff.cli import main
from pqdiff.fitting.closed_form import fit_closed_form
from tests.cli.support import (
    F8,
    UNSEEN,
    random_image,
    save,
)
from tests.tiny import tiny_components


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """Threads that wait for each other cost more than they bring on tiny models and busy machines."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def f8(tmp_path_factory, one_thread):
    folder = tmp_path_factory.mktemp("models") / "tiny-f8"
    fit_closed_form(map(random_image, range(8)), F8, sample_size=2048, seed=0).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def f16(tmp_path_factory, one_thread):
    folder = tmp_path_factory.mktemp("models") / "tiny-f16"
    fit_closed_form(map(random_image, range(8)), "f16-d128-s64-k128", sample_size=2048, seed=0).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def letters(tmp_path_factory, one_thread):
    """A pipeline with random weights."""
    folder = tmp_path_factory.mktemp("pipelines") / "letters"
    PQStableDiffusionPipeline(**tiny_components()).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def fitted(tmp_path_factory, one_thread):
    """What `pqdiff fit --json` printed and wrote for eight images."""
    folder = tmp_path_factory.mktemp("fitted")
    for seed in range(8):
        save(folder / "images" / f"{seed}.png", seed)
    out = io.StringIO()
    arguments = ["fit", folder / "images", "-o", folder / "model", "-p", F8, "--resolution", "128", "--json"]
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out):
        patch.setattr(sys, "argv", ["pqdiff", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
    return SimpleNamespace(folder=folder, model=folder / "model", code=ended.value.code, out=out.getvalue())


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)


@pytest.fixture
def pqdiff(monkeypatch, capfd):
    """Run the command; warnings that Python would show a user count as lines on stderr."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["pqdiff", *map(str, arguments)])
        capfd.readouterr()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            with pytest.raises(SystemExit) as ended:
                main()
        out, err = capfd.readouterr()
        shown = [f"{warning.message}\n" for warning in caught if not issubclass(warning.category, UNSEEN)]
        return SimpleNamespace(code=ended.value.code, out=out, err="".join(shown) + err)

    return run
