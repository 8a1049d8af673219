"""The network over decoded pixels."""

import pytest
import torch

from pqdiff.transforms.refiner import PixelRefiner
from tests.autoencoders import build


def awake(width: int = 8, blocks: int = 2, patch_size: int = 4) -> PixelRefiner:
    torch.manual_seed(0)
    refiner = PixelRefiner(3, patch_size, width, blocks)
    for parameter in (refiner.last.weight, refiner.places):
        torch.nn.init.normal_(parameter)
    return refiner.eval()


@torch.no_grad()
def test_it_begins_silent(images):
    plain, refined = build("linear"), build("refined")
    for tensor in (refined.refiner.last.weight, refined.refiner.last.bias):
        tensor.zero_()
    assert torch.equal(refined(images).sample, plain(images).sample)


@torch.no_grad()
def test_it_reaches_as_far_as_it_says_and_no_farther():
    refiner = awake()
    image = torch.randn(1, 3, 64, 64)
    changed = image.clone()
    changed[..., 32, 32] += 1
    rows, columns = (refiner(changed) - refiner(image)).abs().amax(dim=(0, 1)).nonzero(as_tuple=True)
    farthest = max((rows - 32).abs().max(), (columns - 32).abs().max())
    assert farthest == refiner.reach


@torch.no_grad()
def test_tiles_with_its_reach_around_them_give_the_whole_image():
    model = build("refined", refiner_config={"channels": 8, "blocks": 3})
    model.tile_sample_min_size = 16
    torch.manual_seed(0)
    latents = model.encode(torch.rand(2, 3, 64, 48) * 2 - 1).latents
    whole = model.decode(latents).sample
    model.enable_tiling()
    torch.testing.assert_close(model.decode(latents).sample, whole, rtol=0, atol=1e-5)


@torch.no_grad()
def test_it_knows_where_in_its_patch_a_pixel_lies():
    flat = torch.zeros(1, 3, 32, 32)
    correction = awake()(flat)[..., 12:20, 12:20]  # away from the borders of the image
    assert correction.std() > 0
    assert torch.equal(correction[..., :4, :4], correction[..., 4:, 4:])  # each patch alike


@torch.no_grad()
def test_an_image_does_not_depend_on_the_others_of_its_batch():
    refiner, images = awake(), torch.randn(5, 3, 32, 32)
    assert torch.equal(refiner(images), torch.cat([refiner(image[None]) for image in images]))


def test_it_learns_to_mend():
    model = build("refined").train()
    torch.nn.init.zeros_(model.refiner.last.weight)
    images = torch.nn.functional.interpolate(torch.rand(4, 3, 8, 8) * 2 - 1, size=(32, 32), mode="bilinear")
    optimizer = torch.optim.Adam(model.refiner.parameters(), 1e-2)
    losses = []
    for _ in range(30):
        loss = (model(images).sample - images).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"channels": -1}, r"channels \(-1\) must be at least 1"),
        ({"blocks": 0}, r"blocks \(0\) must be at least 1"),
    ],
)
def test_bad_sizes_are_named(overrides, message):
    with pytest.raises(ValueError, match=message):
        build("refined", refiner_config=overrides)


def test_odd_patches_are_refused():
    with pytest.raises(ValueError, match=r"refiner_config needs an even downsampling factor, got 1"):
        PixelRefiner(3, 1, 8, 1)
