"""Token search: never worse than encoding, exact about what may change, and faithful to the loss that it was given."""

import pytest
import torch

from pqdiff import AutoencoderPQ
from pqdiff.fitting.closed_form import fit_closed_form
from pqdiff.losses.ssimulacra2 import SSIMULACRA2Loss
from pqdiff.models.token_search import search_tokens
from tests.fitting.test_closed_form import smooth_images


def image_of(seed: int = 5, size: int = 64) -> torch.Tensor:
    return smooth_images(1, size, seed)[0][None] / 127.5 - 1


def no_loss(images: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    return (images - others).sum(dim=(1, 2, 3)) * 0


@pytest.fixture(scope="module", params=[0, 4], ids=["product", "classified_product"])
def autoencoder(request):
    return fit_closed_form(
        smooth_images(12), "f8-d32-s16-k32", 0, sample_size=1500, class_bases=request.param, grids=2
    )


def value(autoencoder, image, tokens, loss, weight=25.0) -> float:
    with torch.no_grad():
        decoded = autoencoder.decode_from_indices(tokens).sample
        return float(loss(image, decoded).sum() + weight * (decoded - image).square().mean())


@pytest.mark.parametrize(
    "loss", [SSIMULACRA2Loss(), lambda x, y: (x - y).abs().mean().view(1)], ids=["ssimulacra2", "l1"]
)
def test_a_search_lowers_the_loss_it_was_given_at_the_same_rate(autoencoder, loss):
    image = image_of()
    encoded = autoencoder.encode_to_indices(image)
    tokens = search_tokens(autoencoder, image, loss, steps=60)
    assert value(autoencoder, image, tokens, loss) < value(autoencoder, image, encoded, loss)
    assert (tokens.shape, tokens.dtype) == (encoded.shape, torch.int64)
    assert not torch.equal(tokens, encoded)
    sizes = torch.tensor(autoencoder.quantizer.codebook_sizes).view(1, -1, 1, 1)
    assert ((tokens >= 0) & (tokens < sizes)).all()
    if autoencoder.config.quantizer_type == "classified_product":
        assert torch.equal(tokens[:, 0], encoded[:, 0])  # classes stay


def test_one_step_is_encoding_and_more_steps_are_never_worse(autoencoder):
    image, loss = image_of(6), SSIMULACRA2Loss()
    assert torch.equal(search_tokens(autoencoder, image, loss, steps=1), autoencoder.encode_to_indices(image))
    values = [value(autoencoder, image, search_tokens(autoencoder, image, loss, steps), loss) for steps in (1, 8, 40)]
    assert values == sorted(values, reverse=True)


def test_nearest_codewords_cannot_be_bettered_for_the_squared_error_of_an_orthonormal_transform():
    """Without a network over the pixels, encoding is the optimum of each token: the search must find nothing."""
    autoencoder = fit_closed_form(smooth_images(12), "f8-d32-s16-k32", 0, sample_size=1500)
    image = image_of(7)
    tokens = search_tokens(autoencoder, image, no_loss, steps=40)
    assert torch.equal(tokens, autoencoder.encode_to_indices(image))


def test_it_finds_the_best_of_all_tokens_where_all_can_be_tried():
    """One position of two tokens with four codewords: brute force over the sixteen images."""
    torch.manual_seed(0)
    autoencoder = AutoencoderPQ(
        "patch",
        {"patch_size": 8, "tied": True},
        "product",
        {"num_subspaces": 2, "codebook_size": 4},
        latent_channels=2,
        block_out_channels=None,
    ).eval()
    with torch.no_grad():
        autoencoder.transform.analysis_conv.weight.mul_(3)  # codes whose errors are far from those of pixels
    image = image_of(8, 8)
    loss = lambda x, y: 100 * (x - y).pow(4).mean().view(1)  # noqa: E731
    every = torch.cartesian_prod(torch.arange(4), torch.arange(4)).view(-1, 1, 2, 1, 1)
    best = min(value(autoencoder, image, tokens, loss) for tokens in every)
    found = min(
        value(autoencoder, image, search_tokens(autoencoder, image, loss, steps=80, seed=seed), loss)
        for seed in range(4)
    )
    assert found == pytest.approx(best)


def test_the_same_seed_gives_the_same_tokens_whatever_gradients_are_switched_off(autoencoder):
    image, loss = image_of(9), SSIMULACRA2Loss()
    first = search_tokens(autoencoder, image, loss, steps=20, seed=3)
    with torch.no_grad():
        again = search_tokens(autoencoder, image, loss, steps=20, seed=3)
    assert torch.equal(first, again)
    assert all(parameter.grad is None for parameter in autoencoder.parameters())


def test_an_image_with_nan_keeps_the_tokens_of_encoding(autoencoder):
    image = image_of()
    image[0, 0, 3, 3] = torch.nan
    tokens = search_tokens(autoencoder, image, SSIMULACRA2Loss(), steps=3)
    assert torch.equal(tokens, autoencoder.encode_to_indices(image))


def test_wrong_input_is_refused(autoencoder):
    loss = SSIMULACRA2Loss()
    for steps in (0, -1):
        with pytest.raises(ValueError, match=rf"steps \({steps}\) must be at least 1"):
            search_tokens(autoencoder, image_of(), loss, steps=steps)
    with pytest.raises(ValueError, match="image must be one of at most 2,097,152 pixels"):
        search_tokens(autoencoder, image_of().repeat(2, 1, 1, 1), loss)
    with pytest.raises(ValueError, match="image must be one of at most 2,097,152 pixels"):
        search_tokens(autoencoder, torch.zeros(1, 3, 8, 2**18 + 8), loss)
    with pytest.raises(ValueError, match="divisible"):
        search_tokens(autoencoder, image_of()[..., 1:], loss)
    residual = AutoencoderPQ(
        "patch", {"patch_size": 8}, "residual", {"depth": 2, "codebook_size": 8}, latent_channels=4
    ).eval()
    with pytest.raises(ValueError, match="ResidualQuantizer has no tokens that can be chosen one by one"):
        search_tokens(residual, image_of(), loss)
