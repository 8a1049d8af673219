"""Where weights are looked for, and which files are refused."""

import hashlib
import shutil
from dataclasses import replace

import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from pqdiff.network_weights import MissingWeights, WeightsFile
from tests.hub.hub_server import serve
from tests.losses.support import use_hub

SOURCE = WeightsFile(
    title="the small network's weights",
    variable="PQDIFF_SMALL",
    known={"0123456789abcdef0123": "small.pth", "89abcdef": "small.safetensors"},
    repo_id="user/small",
    filename="model.safetensors",
    revision="main",
    instead="do without",
)


def small() -> nn.Module:
    return nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))


def sha256(path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture(autouse=True)
def no_weights_around(monkeypatch, tmp_path):
    """Neither the variable nor a cache of the machine's owner."""
    monkeypatch.delenv("PQDIFF_SMALL", raising=False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))


@pytest.fixture
def file(tmp_path):
    """As published: with tensors that nobody here needs, and in an old file without counters of batches."""
    path = tmp_path / "files" / "model.safetensors"
    path.parent.mkdir()
    tensors = {name: torch.rand(tensor.shape) for name, tensor in small().state_dict().items()}
    del tensors["1.num_batches_tracked"]
    save_file(tensors | {"classifier.weight": torch.zeros(4, 4)}, path)
    return path


def same_weights(network, path) -> bool:
    tensors = load_file(path)
    return all(torch.equal(tensors[name], t) for name, t in network.state_dict().items() if name in tensors)


def test_path_comes_before_variable_and_variable_before_download(monkeypatch, tmp_path):
    first, second = tmp_path / "first.pth", tmp_path / "second.pth"
    first.touch()
    second.touch()
    monkeypatch.setenv("PQDIFF_SMALL", str(second))
    assert SOURCE.find(first) == first
    assert SOURCE.find() == second
    second.unlink()
    for arguments, name in (((), "PQDIFF_SMALL"), ((second,), "path")):
        with pytest.raises(
            FileNotFoundError, match=rf"{name} \(.*second.pth\) is not a file; it must be .*012345"
        ) as error:
            SOURCE.find(*arguments)
        assert not isinstance(error.value, MissingWeights)  # somebody meant to give weights


def test_weights_come_from_the_hub(monkeypatch, tmp_path, file):
    network = small().train()
    with serve({"user/small": file.parent}) as address:
        use_hub(monkeypatch, address, None, tmp_path)
        digest = SOURCE.load_into(network, sha256=sha256(file)[:12])
    assert digest == sha256(file)
    assert same_weights(network, file)
    assert not network.training
    assert not any(parameter.requires_grad for parameter in network.parameters())


def test_weights_come_from_an_address_once(file):
    source = replace(SOURCE, known={sha256(file): "model.safetensors"}, repo_id=None, url=file.as_uri())
    network = small()
    source.load_into(network)
    assert same_weights(network, file)
    file.unlink()
    source.load_into(small())


def test_what_the_address_gives_is_checked(file):
    source = replace(SOURCE, repo_id=None, url=file.as_uri())
    with pytest.raises(MissingWeights, match="invalid hash value"):
        source.load_into(small())


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        (SOURCE, "local"),
        (
            replace(SOURCE, repo_id=None, url="https://example.invalid/small.pth"),
            "small.pth does not exist and downloads",
        ),
        (replace(SOURCE, repo_id=None, package=("pqdiff_small", "a")), "package pqdiff-small is not installed"),
        (replace(SOURCE, repo_id=None), "there is no download"),
    ],
)
@pytest.mark.parametrize("offline", [True, False])
def test_missing_weights_say_what_to_get_and_where_to_put_it(monkeypatch, source, reason, offline):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", offline)
    with pytest.raises(MissingWeights) as error:
        source.find(download=offline)
    message = str(error.value)
    assert "\n" not in message
    assert ("or allow downloads" in message) == bool(source.repo_id or source.url)
    for part in (
        "the small network's weights are missing",
        reason,
        "Get small.pth (SHA-256 0123456789abcdef...) or small.safetensors (SHA-256 89abcdef...)",
        "give its path, set PQDIFF_SMALL to it",
        "; or do without",
    ):
        assert part in message


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "as published"])
def test_pytorch_files_are_read(file, tmp_path, zipped):
    path, network = tmp_path / "small.pth", small()
    torch.save({name: t.half() for name, t in load_file(file).items()}, path, _use_new_zipfile_serialization=zipped)
    assert SOURCE.load_into(network, path, sha256(path)[:8]) == sha256(path)
    assert network[0].weight.dtype == torch.float32
    torch.testing.assert_close(network[0].weight.data, load_file(file)["0.weight"], rtol=0, atol=1e-3)


def test_unknown_files_are_refused_unless_their_digest_is_given(file, tmp_path):
    digest, network = sha256(file), small()
    with pytest.raises(ValueError, match=rf"begins with {digest[:16]}, but must be that of small.pth .*0123456789"):
        SOURCE.load_into(network, file)
    with pytest.raises(ValueError, match=rf"begins with {digest[:16]}, but must be 9876543210"):
        SOURCE.load_into(network, file, "9876543210")
    with pytest.raises(ValueError, match=r"sha256 \(\) must have at least 8"):
        SOURCE.load_into(network, file, "")
    SOURCE.load_into(network, file, digest[:8].upper())
    replace(SOURCE, known={digest[:8]: "small.pth"}).load_into(network, file)

    changed = tmp_path / "changed.safetensors"
    shutil.copy(file, changed)
    with changed.open("r+b") as opened:
        opened.seek(-1, 2)
        opened.write(b"\x01")
    with pytest.raises(ValueError, match="SHA-256"):
        SOURCE.load_into(network, changed, digest)


class Planted:
    """What a pickle could run."""

    def __reduce__(self):
        return print, ("ran",)


def save_small(path):
    torch.save(dict.fromkeys(small().state_dict(), torch.zeros(1)), path)


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("planted.pth", lambda path: torch.save({"0.weight": Planted()}, path)),
        ("text.pth", lambda path: path.write_text("no weights")),
        ("empty.pth", lambda path: path.touch()),
        ("list.pth", lambda path: torch.save([1], path)),
        ("text.safetensors", lambda path: path.write_text("no weights")),
        ("other.safetensors", lambda path: save_file({"0.weight": torch.zeros(1)}, path)),
        ("small.pth", save_small),
    ],
)
def test_files_of_something_else_are_refused_in_one_line_and_not_run(tmp_path, capsys, name, write):
    path = tmp_path / name
    write(path)
    with pytest.raises(ValueError, match="does not hold the small network's weights") as error:
        SOURCE.load_into(small(), path, sha256(path))
    assert "\n" not in str(error.value)
    assert "ran" not in capsys.readouterr().out.split()
