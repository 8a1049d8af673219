"""VGG16 and AlexNet with random weights, built as torchvision lays them out, and files of them."""

import hashlib

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

LAYOUT = (64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512, "M")


def random_vgg() -> nn.Sequential:
    """The 31 layers of torchvision's `vgg16().features`, with weights that keep activations alive."""
    layers, channels, generator = [], 3, torch.Generator().manual_seed(0)
    for entry in LAYOUT:
        if entry == "M":
            layers.append(nn.MaxPool2d(kernel_size=2, stride=2))
            continue
        conv = nn.utils.skip_init(nn.Conv2d, channels, entry, 3, padding=1)
        nn.init.normal_(conv.weight, std=(2 / (9 * channels)) ** 0.5, generator=generator)
        nn.init.normal_(conv.bias, std=0.1, generator=generator)
        layers += [conv, nn.ReLU(inplace=True)]
        channels = entry
    return nn.Sequential(*layers)


def sha256(path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture(scope="session")
def vgg():
    return random_vgg().requires_grad_(False)


@pytest.fixture(scope="session")
def vgg_file(vgg, tmp_path_factory):
    """Safetensors as on the Hub: with a classifier, which nobody here needs."""
    path = tmp_path_factory.mktemp("vgg") / "model.safetensors"
    tensors = {f"features.{name}": tensor for name, tensor in vgg.state_dict().items()}
    save_file(tensors | {"classifier.0.weight": torch.zeros(4, 4)}, path)
    return path


@pytest.fixture(scope="session")
def vgg_digest(vgg_file):
    return sha256(vgg_file)


def random_alexnet() -> nn.Sequential:
    """The 13 layers of torchvision's `alexnet().features`."""
    convs = [
        nn.Conv2d(3, 64, kernel_size=11, stride=4, padding=2),
        nn.Conv2d(64, 192, kernel_size=5, padding=2),
        nn.Conv2d(192, 384, kernel_size=3, padding=1),
        nn.Conv2d(384, 256, kernel_size=3, padding=1),
        nn.Conv2d(256, 256, kernel_size=3, padding=1),
    ]
    relu, pool = nn.ReLU(inplace=True), nn.MaxPool2d(kernel_size=3, stride=2)
    return nn.Sequential(
        *(convs[0], relu, pool), *(convs[1], relu, pool), *(convs[2], relu, convs[3], relu, convs[4], relu, pool)
    )


@pytest.fixture(scope="session")
def alex():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return random_alexnet().requires_grad_(False)


@pytest.fixture(scope="session")
def alex_file(alex, tmp_path_factory):
    path = tmp_path_factory.mktemp("alex") / "alexnet.pth"
    torch.save({f"features.{name}": tensor for name, tensor in alex.state_dict().items()}, path)
    return path
