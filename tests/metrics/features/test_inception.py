"""FID's Inception against its layers written out, and its resizing against a loop."""

import hashlib
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from pqdiff.metrics.features.inception import FIDInception, InceptionNetwork, resize_like_tensorflow1

# Every convolution: input channels, output channels, kernel, stride, padding. From the published graph.
STEM = {
    "Conv2d_1a_3x3": (3, 32, (3, 3), 2, (0, 0)),
    "Conv2d_2a_3x3": (32, 32, (3, 3), 1, (0, 0)),
    "Conv2d_2b_3x3": (32, 64, (3, 3), 1, (1, 1)),
    "Conv2d_3b_1x1": (64, 80, (1, 1), 1, (0, 0)),
    "Conv2d_4a_3x3": (80, 192, (3, 3), 1, (0, 0)),
}


def block_a(width, pool):
    return {
        "branch1x1": (width, 64, (1, 1), 1, (0, 0)),
        "branch5x5_1": (width, 48, (1, 1), 1, (0, 0)),
        "branch5x5_2": (48, 64, (5, 5), 1, (2, 2)),
        "branch3x3dbl_1": (width, 64, (1, 1), 1, (0, 0)),
        "branch3x3dbl_2": (64, 96, (3, 3), 1, (1, 1)),
        "branch3x3dbl_3": (96, 96, (3, 3), 1, (1, 1)),
        "branch_pool": (width, pool, (1, 1), 1, (0, 0)),
    }


BLOCK_B = {
    "branch3x3": (288, 384, (3, 3), 2, (0, 0)),
    "branch3x3dbl_1": (288, 64, (1, 1), 1, (0, 0)),
    "branch3x3dbl_2": (64, 96, (3, 3), 1, (1, 1)),
    "branch3x3dbl_3": (96, 96, (3, 3), 2, (0, 0)),
}


def block_c(width):
    return {
        "branch1x1": (768, 192, (1, 1), 1, (0, 0)),
        "branch7x7_1": (768, width, (1, 1), 1, (0, 0)),
        "branch7x7_2": (width, width, (1, 7), 1, (0, 3)),
        "branch7x7_3": (width, 192, (7, 1), 1, (3, 0)),
        "branch7x7dbl_1": (768, width, (1, 1), 1, (0, 0)),
        "branch7x7dbl_2": (width, width, (7, 1), 1, (3, 0)),
        "branch7x7dbl_3": (width, width, (1, 7), 1, (0, 3)),
        "branch7x7dbl_4": (width, width, (7, 1), 1, (3, 0)),
        "branch7x7dbl_5": (width, 192, (1, 7), 1, (0, 3)),
        "branch_pool": (768, 192, (1, 1), 1, (0, 0)),
    }


BLOCK_D = {
    "branch3x3_1": (768, 192, (1, 1), 1, (0, 0)),
    "branch3x3_2": (192, 320, (3, 3), 2, (0, 0)),
    "branch7x7x3_1": (768, 192, (1, 1), 1, (0, 0)),
    "branch7x7x3_2": (192, 192, (1, 7), 1, (0, 3)),
    "branch7x7x3_3": (192, 192, (7, 1), 1, (3, 0)),
    "branch7x7x3_4": (192, 192, (3, 3), 2, (0, 0)),
}


def block_e(width):
    return {
        "branch1x1": (width, 320, (1, 1), 1, (0, 0)),
        "branch3x3_1": (width, 384, (1, 1), 1, (0, 0)),
        "branch3x3_2a": (384, 384, (1, 3), 1, (0, 1)),
        "branch3x3_2b": (384, 384, (3, 1), 1, (1, 0)),
        "branch3x3dbl_1": (width, 448, (1, 1), 1, (0, 0)),
        "branch3x3dbl_2": (448, 384, (3, 3), 1, (1, 1)),
        "branch3x3dbl_3a": (384, 384, (1, 3), 1, (0, 1)),
        "branch3x3dbl_3b": (384, 384, (3, 1), 1, (1, 0)),
        "branch_pool": (width, 192, (1, 1), 1, (0, 0)),
    }


BLOCKS = {
    "Mixed_5b": block_a(192, 32),
    "Mixed_5c": block_a(256, 64),
    "Mixed_5d": block_a(288, 64),
    "Mixed_6a": BLOCK_B,
    "Mixed_6b": block_c(128),
    "Mixed_6c": block_c(160),
    "Mixed_6d": block_c(160),
    "Mixed_6e": block_c(192),
    "Mixed_7a": BLOCK_D,
    "Mixed_7b": block_e(1280),
    "Mixed_7c": block_e(2048),
}
LAYERS = {**STEM, **{f"{block}.{name}": row for block, rows in BLOCKS.items() for name, row in rows.items()}}
# Branches of a block in the order of their channels; "-" starts the next layer of a branch, "|" parts it in two.
BRANCHES = {
    "A": (
        "branch1x1",
        "branch5x5_1-branch5x5_2",
        "branch3x3dbl_1-branch3x3dbl_2-branch3x3dbl_3",
        "average-branch_pool",
    ),
    "B": ("branch3x3", "branch3x3dbl_1-branch3x3dbl_2-branch3x3dbl_3", "maximum2"),
    "C": (
        "branch1x1",
        "branch7x7_1-branch7x7_2-branch7x7_3",
        "branch7x7dbl_1-branch7x7dbl_2-branch7x7dbl_3-branch7x7dbl_4-branch7x7dbl_5",
        "average-branch_pool",
    ),
    "D": ("branch3x3_1-branch3x3_2", "branch7x7x3_1-branch7x7x3_2-branch7x7x3_3-branch7x7x3_4", "maximum2"),
    "E": (
        "branch1x1",
        "branch3x3_1-branch3x3_2a|branch3x3_2b",
        "branch3x3dbl_1-branch3x3dbl_2-branch3x3dbl_3a|branch3x3dbl_3b",
        "{pool}-branch_pool",
    ),
}
SIZES = {"Mixed_5": 35, "Mixed_6": 17, "Mixed_7": 8}  # of inputs of 299 x 299


@pytest.fixture(scope="module")
def network():
    """Random weights that keep activations alive."""
    torch.manual_seed(0)
    with torch.device("meta"):
        network = InceptionNetwork().requires_grad_(False).eval()
    network.to_empty(device="cpu")
    for module in network.modules():
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.normal_(module.weight, std=(2 / module.weight[0].numel()) ** 0.5)
        if isinstance(module, torch.nn.BatchNorm2d):
            for tensor in (module.running_mean, module.bias):
                torch.nn.init.normal_(tensor, std=0.1)
            for tensor in (module.running_var, module.weight):
                torch.nn.init.uniform_(tensor, 0.5, 1.5)
    torch.nn.init.normal_(network.fc.weight, std=0.02)
    torch.nn.init.normal_(network.fc.bias, std=0.02)
    return network


def test_names_and_shapes_are_those_of_the_published_file(network):
    expected = {"fc.weight": (1008, 2048), "fc.bias": (1008,)}
    for name, (inside, outside, kernel, _, _) in LAYERS.items():
        expected[f"{name}.conv.weight"] = (outside, inside, *kernel)
        for part in ("weight", "bias", "running_mean", "running_var"):
            expected[f"{name}.bn.{part}"] = (outside,)
    shapes = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    assert {name: shape for name, shape in shapes.items() if not name.endswith("num_batches_tracked")} == expected


def written_out(state: dict, x: torch.Tensor) -> dict[str, torch.Tensor]:
    """The outputs of all stages, by plain functions from the table."""

    def conv(name: str, x: torch.Tensor) -> torch.Tensor:
        _, _, _, stride, padding = LAYERS[name]
        x = F.conv2d(x, state[f"{name}.conv.weight"], stride=stride, padding=padding)
        mean, variance, weight, bias = (
            state[f"{name}.bn.{part}"][:, None, None] for part in ("running_mean", "running_var", "weight", "bias")
        )
        return ((x - mean) / (variance + 1e-3).sqrt() * weight + bias).clamp_min(0)

    def average(x: torch.Tensor) -> torch.Tensor:
        kernel = torch.ones(x.shape[1], 1, 3, 3)
        inside = torch.ones(1, x.shape[1], *x.shape[2:])
        return F.conv2d(x, kernel, padding=1, groups=x.shape[1]) / F.conv2d(
            inside, kernel, padding=1, groups=x.shape[1]
        )

    pools = {
        "average": average,
        "maximum": lambda x: F.max_pool2d(F.pad(x, (1, 1, 1, 1), value=-math.inf), 3, 1),
        "maximum2": lambda x: F.max_pool2d(x, 3, 2),
    }

    def branch(block: str, steps: str, x: torch.Tensor) -> torch.Tensor:
        for step in steps.split("-"):
            x = pools[step](x) if step in pools else torch.cat([conv(f"{block}.{s}", x) for s in step.split("|")], 1)
        return x

    outputs = {}
    for name in STEM:
        outputs[name] = x = conv(name, x)
        if name in ("Conv2d_2b_3x3", "Conv2d_4a_3x3"):
            x = pools["maximum2"](x)
    for block, kind in zip(BLOCKS, "AAABCCCCDEE", strict=True):
        pool = "maximum" if block == "Mixed_7c" else "average"
        outputs[block] = x = torch.cat([branch(block, steps.format(pool=pool), x) for steps in BRANCHES[kind]], 1)
    outputs["features"] = x.mean((2, 3))
    outputs["logits"] = outputs["features"] @ state["fc.weight"].T
    return outputs


def stages_of(network, x: torch.Tensor) -> dict[str, torch.Tensor]:
    """The outputs of all stages of the network."""
    stages = {}
    children = [(name, module) for name, module in network.named_children() if name != "fc"]
    handles = [
        m.register_forward_hook(lambda m, i, out, name=name: stages.update({name: out})) for name, m in children
    ]
    stages["features"], stages["logits"] = network(x)
    for handle in handles:
        handle.remove()
    return stages


def test_every_stage_computes_the_written_out_graph(network):
    x = torch.rand(1, 3, 139, 123, generator=torch.Generator().manual_seed(0)) * 2 - 1
    stages, expected = stages_of(network, x), written_out(network.state_dict(), x)
    assert stages.keys() == expected.keys()
    for name, output in stages.items():
        torch.testing.assert_close(output, expected[name], rtol=1e-3, atol=1e-4 * expected[name].abs().max().item())
    assert stages["features"].shape == (1, 2048)
    assert stages["logits"].shape == (1, 1008)


def loop_of_tensorflow1(image: np.ndarray, side: int) -> np.ndarray:
    """ResizeBilinear without align_corners or half_pixel_centers, pixel by pixel."""
    height, width = image.shape
    result = np.zeros((side, side))
    for row in range(side):
        for column in range(side):
            y, x = row * (height / side), column * (width / side)
            top, left = math.floor(y), math.floor(x)
            bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
            upper = image[top, left] + (image[top, right] - image[top, left]) * (x - left)
            lower = image[bottom, left] + (image[bottom, right] - image[bottom, left]) * (x - left)
            result[row, column] = upper + (lower - upper) * (y - top)
    return result


@pytest.mark.parametrize(("height", "width", "side"), [(32, 32, 47), (61, 50, 23), (29, 64, 29), (20, 41, 33)])
def test_resizing_is_that_of_tensorflow1(height, width, side):
    images = torch.randint(0, 256, (2, 3, height, width), generator=torch.Generator().manual_seed(height)).float()
    result = resize_like_tensorflow1(images, side)
    expected = loop_of_tensorflow1(images[1, 2].double().numpy(), side)
    np.testing.assert_allclose(result[1, 2].numpy(), expected, atol=2e-3)  # places are fp32
    other = F.interpolate(images, size=(side, side), mode="bilinear", align_corners=False)
    assert height == width == side or (other - result).abs().max() > 10  # it matters


def test_no_resizing_changes_nothing():
    images = torch.rand(1, 3, 299, 299)
    assert torch.equal(resize_like_tensorflow1(images, 299), images)


@pytest.mark.slow
def test_the_extractor_prepares_images_and_loads_files_without_counters(network, tmp_path):
    path = tmp_path / "inception.pth"
    torch.save({n: t for n, t in network.state_dict().items() if not n.endswith("tracked")}, path)
    extractor = FIDInception(path, hashlib.sha256(path.read_bytes()).hexdigest())
    images = torch.randint(0, 256, (2, 3, 40, 56), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    output = extractor(images)
    stages = stages_of(network, (resize_like_tensorflow1(images.float(), 299) - 128) / 128)
    torch.testing.assert_close(output.features, stages["features"], rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(output.logits, stages["logits"], rtol=1e-3, atol=1e-3)
    assert {name: stages[name].shape[2] for name in BLOCKS} == {name: SIZES[name[:7]] for name in BLOCKS}
