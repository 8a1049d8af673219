"""Where VGG16's weights are looked for, and what is refused."""

import shutil

import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file, save_file

from pqdiff.losses import PerceptualLoss
from pqdiff.losses.vgg import ENVIRONMENT_VARIABLE, VGG16Features, find_vgg16, load_vgg16
from tests.hub.hub_server import serve
from tests.losses.conftest import sha256
from tests.losses.support import use_hub


@pytest.fixture(autouse=True)
def no_weights_around(monkeypatch, tmp_path):
    """Neither the variable nor a cache of the machine's owner."""
    monkeypatch.delenv(ENVIRONMENT_VARIABLE, raising=False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))


def same_weights(network, path) -> bool:
    tensors = load_file(path)
    return all(torch.equal(tensor, tensors[name]) for name, tensor in network.state_dict().items())


def test_taps_are_the_last_relus_before_pooling(vgg, vgg_file, vgg_digest):
    network, _ = load_vgg16(vgg_file, vgg_digest)
    images = torch.randn(1, 3, 48, 40, generator=torch.Generator().manual_seed(0))
    outputs = network(images)
    assert [tuple(o.shape[1:]) for o in outputs] == [
        (64, 48, 40),
        (128, 24, 20),
        (256, 12, 10),
        (512, 6, 5),
        (512, 3, 2),
    ]
    for output, end in zip(outputs, (4, 9, 16, 23, 30), strict=True):
        torch.testing.assert_close(output, vgg[:end](images))


def test_path_comes_before_variable_and_variable_before_hub(monkeypatch, tmp_path):
    first, second = tmp_path / "first.pth", tmp_path / "second.pth"
    first.touch()
    second.touch()
    monkeypatch.setenv("PQDIFF_VGG16", str(second))
    assert find_vgg16(first) == first
    assert find_vgg16() == second
    second.unlink()
    with pytest.raises(FileNotFoundError, match=r"PQDIFF_VGG16 \(.*second.pth\) is not a file"):
        find_vgg16()
    with pytest.raises(FileNotFoundError, match=r"path \(.*second.pth\) is not a file; it must be .*397923af"):
        find_vgg16(second)


def test_weights_come_from_the_hub(monkeypatch, tmp_path, vgg_file, vgg_digest):
    with serve({"user/vgg": vgg_file.parent}) as address:
        use_hub(monkeypatch, address, None, tmp_path)
        loss = PerceptualLoss(repo_id="user/vgg", revision="main", sha256=vgg_digest[:12])
    assert loss.digest == vgg_digest
    assert same_weights(loss.trunk, vgg_file)


def test_missing_download_says_what_to_get_and_where_to_put_it(monkeypatch, tmp_path):
    with serve({}) as address:
        use_hub(monkeypatch, address, None, tmp_path)
        with pytest.raises(FileNotFoundError) as error:
            PerceptualLoss()
    message = str(error.value)
    assert "\n" not in message
    for part in ("timm/vgg16.tv_in1k", "vgg16-397923af.pth (SHA-256 397923af", "set PQDIFF_VGG16 to its path"):
        assert part in message


def test_without_a_network_the_message_is_the_same(monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(
        FileNotFoundError, match="set PQDIFF_VGG16 to its path; or train with a perceptual weight of 0"
    ):
        find_vgg16()


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "as published"])
def test_pytorch_files_are_read(vgg_file, tmp_path, zipped):
    path = tmp_path / "vgg16.pth"
    torch.save(load_file(vgg_file), path, _use_new_zipfile_serialization=zipped)
    network, digest = load_vgg16(path, sha256(path)[:8])
    assert digest == sha256(path)
    assert same_weights(network, vgg_file)


def test_unknown_files_are_refused_unless_their_digest_is_given(vgg_file, vgg_digest, tmp_path):
    with pytest.raises(
        ValueError, match=rf"begins with {vgg_digest[:16]}, but must be that of torchvision's .*397923af"
    ):
        load_vgg16(vgg_file)
    with pytest.raises(ValueError, match=rf"begins with {vgg_digest[:16]}, but must be 0123456789"):
        load_vgg16(vgg_file, "0123456789")
    with pytest.raises(ValueError, match=r"sha256 \(\) must have at least 8"):
        load_vgg16(vgg_file, "")
    load_vgg16(vgg_file, vgg_digest[:8].upper())

    changed = tmp_path / "changed.safetensors"
    shutil.copy(vgg_file, changed)
    with changed.open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x01")
    with pytest.raises(ValueError, match="SHA-256"):
        load_vgg16(changed, vgg_digest)


class Planted:
    """What a pickle could run."""

    def __reduce__(self):
        return print, ("ran",)


def save_pickle(path):
    torch.save({"features.0.weight": Planted()}, path)


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("planted.pth", save_pickle),
        ("text.pth", lambda path: path.write_text("no weights")),
        ("empty.pth", lambda path: path.touch()),
        ("list.pth", lambda path: torch.save([1], path)),
        ("text.safetensors", lambda path: path.write_text("no weights")),
        ("other.safetensors", lambda path: save_file({"features.0.weight": torch.zeros(1)}, path)),
        ("small.pth", lambda path: torch.save(dict.fromkeys(VGG16Features().state_dict(), torch.zeros(1)), path)),
    ],
)
def test_files_of_something_else_are_refused_in_one_line_and_not_run(tmp_path, capsys, name, write):
    path = tmp_path / name
    write(path)
    with pytest.raises(ValueError, match="does not hold VGG16's weights") as error:
        load_vgg16(path, sha256(path))
    assert "\n" not in str(error.value)
    assert "ran" not in capsys.readouterr().out.split()
