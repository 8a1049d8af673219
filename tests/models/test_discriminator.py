"""The patch discriminator is that of pix2pix, and is saved, loaded and pushed like every model of diffusers."""

import pytest
import torch
from safetensors.torch import load_file

from pqdiff.losses import PatchDiscriminator
from pqdiff.models.discriminator import NORMS
from tests.hub.hub_server import serve_hub
from tests.hub.support import TOKENS
from tests.losses.support import use_hub

OPTIONS = ("in_channels", "base_channels", "num_layers", "norm")


@pytest.fixture
def images():
    return torch.rand(2, 3, 32, 40, generator=torch.Generator().manual_seed(0)) * 2 - 1


def tiny(**options) -> PatchDiscriminator:
    torch.manual_seed(0)
    return PatchDiscriminator(**{"base_channels": 8, **options})


@pytest.mark.parametrize(("layers", "count", "side"), [(3, 2_765_633, 30), (2, 663_361, 62)])
def test_default_sizes_are_those_of_the_paper(layers, count, side):
    network = PatchDiscriminator(num_layers=layers)
    assert sum(parameter.numel() for parameter in network.parameters()) == count
    assert network(torch.zeros(1, 3, 256, 256)).shape == (1, 1, side, side)


def test_names_are_those_of_published_checkpoints():
    keys = set(PatchDiscriminator().state_dict())
    convolutions = {f"main.{n}.weight" for n in (0, 2, 5, 8, 11)} | {"main.0.bias", "main.11.bias"}
    entries = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    assert keys == convolutions | {f"main.{n}.{entry}" for n in (3, 6, 9) for entry in entries}


@pytest.mark.parametrize(("layers", "size"), [(1, 16), (2, 34), (3, 70)])
def test_a_logit_sees_a_patch(layers, size):
    network = tiny(num_layers=layers, norm="none").double()
    image = torch.zeros(1, 3, 160, 160, dtype=torch.float64, requires_grad=True)
    logits = network(image)
    middle = logits.shape[-1] // 2
    (gradient,) = torch.autograd.grad(logits[0, 0, middle, middle], image)
    rows, columns = (gradient[0].abs().sum(0).sum(dim) > 0 for dim in (0, 1))
    assert (rows.sum(), columns.sum()) == (size, size)


@pytest.mark.parametrize(("layers", "least"), [(1, 6), (2, 12), (3, 24)])
def test_the_smallest_image_gives_one_logit_and_smaller_ones_are_refused(layers, least):
    network = tiny(num_layers=layers)
    assert network(torch.zeros(2, 3, least, least)).shape == (2, 1, 1, 1)
    with pytest.raises(ValueError, match=rf"images \({least - 1} x 64\) must have sides of at least {least} px"):
        network(torch.zeros(2, 3, least - 1, 64))
    with pytest.raises(ValueError, match=r"must be \(B, 3, H, W\), got \(2, 1, 64, 64\)"):
        network(torch.zeros(2, 1, 64, 64))


def test_weights_start_as_in_pix2pix():
    torch.manual_seed(0)
    network = PatchDiscriminator()
    for number in (2, 5, 8):
        weight = network.main[number].weight
        assert weight.std().item() == pytest.approx(0.02, rel=0.02)
        assert network.main[number].bias is None
    for number in (3, 6, 9):
        norm = network.main[number]
        assert norm.weight.mean().item() == pytest.approx(1, abs=0.01)
        assert norm.weight.std().item() == pytest.approx(0.02, rel=0.3)
        assert not norm.bias.any()


@pytest.mark.parametrize("norm", NORMS)
def test_saved_and_loaded_it_is_the_same(tmp_path, images, norm):
    network = tiny(norm=norm)
    network(images)  # running statistics
    network.save_pretrained(tmp_path)
    loaded = PatchDiscriminator.from_pretrained(tmp_path)
    assert {name: loaded.config[name] for name in OPTIONS} == {name: network.config[name] for name in OPTIONS}
    assert set(load_file(tmp_path / "diffusion_pytorch_model.safetensors")) == set(network.state_dict())
    assert not loaded.training
    assert torch.equal(loaded(images), network.eval()(images))
    for other in (loaded, network):
        other.train()
        other(images * 0.5 + 0.2)
    for name, tensor in network.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name


def test_it_is_pushed_and_loads_by_repo_id(monkeypatch, tmp_path, images):
    network = tiny().eval()
    with serve_hub({}, TOKENS) as hub:
        use_hub(monkeypatch, hub.address, "token of user", tmp_path)
        network.push_to_hub("user/disc")
        loaded = PatchDiscriminator.from_pretrained("user/disc", cache_dir=str(tmp_path / "cache"))
    assert torch.equal(loaded(images), network(images))


@pytest.mark.parametrize("norm", NORMS)
def test_batches_given_together_are_normalized_apart(images, norm):
    together, alone = tiny(norm=norm), tiny(norm=norm)
    fakes = images.flip(3) * 0.3
    both = together(images, fakes)
    assert isinstance(both, tuple)
    for logits, batch in zip(both, (images, fakes), strict=True):
        assert torch.equal(logits, alone(batch))
    for name, tensor in alone.state_dict().items():
        assert torch.equal(together.state_dict()[name], tensor), name


def test_norms_differ(images):
    results = [tiny(norm=norm)(images) for norm in NORMS]
    assert all(not torch.allclose(a, b) for n, a in enumerate(results) for b in results[:n])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"norm": "layer"}, r"norm \('layer'\) does not exist: choose one of batch, none"),
        ({"num_layers": "3"}, "wrong type or size"),
        ({"num_layers": 10**9}, r"num_layers \(1000000000\) may be at most 128"),
        ({"num_layers": 0}, r"num_layers \(0\) must be at least 1"),
    ],
)
def test_arguments_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        tiny(**options)
