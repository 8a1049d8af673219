"""Classified product quantization, against its definition for one vector at a time."""

import pytest
import torch

from pqdiff.quantizers import ClassifiedProductQuantizer

CONFIG = {"num_subspaces": 4, "codebook_size": 16, "components": 14, "bases": 4, "candidates": 3}


def build(hidden_channels: int = 4, **overrides) -> ClassifiedProductQuantizer:
    """A quantizer for latents of 8 channels, whose classes differ in their scales and likelihoods."""
    torch.manual_seed(0)
    quantizer = ClassifiedProductQuantizer(8, **{**CONFIG, "hidden_channels": hidden_channels, **overrides})
    with torch.no_grad():
        quantizer.log_scales.normal_(std=0.5)
        quantizer.log_variances.normal_(std=0.5)
    return quantizer


def any_z(batch: int = 2, height: int = 4, width: int = 5) -> torch.Tensor:
    return torch.randn(batch, CONFIG["components"], height, width, generator=torch.Generator().manual_seed(1))


def any_tokens(height: int = 6, width: int = 5) -> torch.Tensor:
    return torch.randint(16, (2, 4, height, width), generator=torch.Generator().manual_seed(2))


def components_of(quantizer: ClassifiedProductQuantizer, token: int, relative: torch.Tensor) -> torch.Tensor:
    """Components `(P,)` of coefficients `(M,)` relative to a class."""
    return quantizer.rotations[token // 4].T @ (relative * quantizer.log_scales[token].exp())


@pytest.mark.parametrize("hidden_channels", [0, 4])
@torch.no_grad()
def test_codes_are_the_codewords_in_the_units_and_the_basis_of_the_class(hidden_channels):
    quantizer, indices = build(hidden_channels), any_tokens()
    codes = quantizer.decode(indices)
    for b, i, j in [(0, 0, 0), (1, 5, 4), (0, 3, 1)]:
        token, *others = indices[b, :, i, j].tolist()
        relative = torch.cat([quantizer.codebooks[s, k] for s, k in enumerate(others)])
        torch.testing.assert_close(codes[b, :, i, j], components_of(quantizer, token, relative))


@torch.no_grad()
def test_latents_are_the_codeword_of_the_class_and_what_the_other_codewords_show():
    quantizer, indices = build(), any_tokens()
    latents = quantizer.to_latents(indices)
    for b, i, j in [(0, 0, 0), (1, 5, 4)]:
        token, *others = indices[b, :, i, j].tolist()
        shown = [quantizer.codebooks[s, k, :2] for s, k in enumerate(others)]
        assert torch.equal(latents[b, :, i, j], torch.cat([quantizer.class_codewords[token], *shown]))


@pytest.mark.parametrize("hidden_channels", [0, 4])
@torch.no_grad()
def test_tokens_come_back_exactly_from_their_latents(hidden_channels):
    quantizer, indices = build(hidden_channels), any_tokens(40, 40)
    latents = quantizer.to_latents(indices)
    assert torch.equal(quantizer.nearest(latents), indices)
    assert torch.equal(quantizer.snap(latents), quantizer.decode(indices))


@torch.no_grad()
def test_more_candidates_never_reconstruct_worse():
    errors, z = [], any_z(height=16, width=16)
    for candidates in (1, 4, 16):
        quantizer = build(candidates=candidates)
        errors.append((quantizer.decode(quantizer.encode(z)) - z).square().sum(dim=1))
    assert (errors[1] <= errors[0] + 1e-4).all()
    assert (errors[2] <= errors[1] + 1e-4).all()
    assert errors[2].mean() < errors[0].mean()


@torch.no_grad()
def test_what_latents_do_not_show_is_zero_in_the_class_whose_codeword_is_nearest():
    """Noise on the latents of the class moves nothing but, at most, the class."""
    quantizer, indices = build(), any_tokens()
    latents = quantizer.to_latents(indices)
    latents += 0.01 * torch.randn(latents.shape, generator=torch.Generator().manual_seed(0))
    codes = quantizer.lift(latents)
    assert torch.equal(quantizer.nearest(latents)[:, 0], indices[:, 0])
    for b, i, j in [(0, 0, 0), (1, 5, 4), (0, 3, 1)]:
        shown = latents[b, 2:, i, j].unflatten(0, (3, 2))
        relative = torch.nn.functional.pad(shown, (0, 1)).flatten()
        torch.testing.assert_close(codes[b, :, i, j], components_of(quantizer, int(indices[b, 0, i, j]), relative))


@torch.no_grad()
def test_latents_without_hidden_coordinates_lift_to_all_of_the_codes():
    quantizer, indices = build(hidden_channels=0), any_tokens()
    torch.testing.assert_close(quantizer.lift(quantizer.to_latents(indices)), quantizer.decode(indices))


@torch.no_grad()
def test_soft_snapping_with_tiny_noise_is_the_nearest_codeword():
    quantizer, indices = build(), any_tokens()
    latents = quantizer.to_latents(indices)
    latents += 1e-4 * torch.randn(latents.shape, generator=torch.Generator().manual_seed(0))
    codes = quantizer.posterior_mean(latents, torch.full((8,), 1e-4))
    torch.testing.assert_close(codes, quantizer.decode(quantizer.nearest(latents)), rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_soft_snapping_takes_one_class_and_the_mean_of_the_codewords_in_it():
    """Against a sum over all codewords in double precision. Between two classes there would be nothing."""
    quantizer = build()
    counts = [torch.randint(100, (16,), generator=torch.Generator().manual_seed(s)) for s in range(4)]
    quantizer.set_frequencies(counts)
    latents = torch.randn(1, 8, 3, 2, generator=torch.Generator().manual_seed(0))
    noise = 0.3 + torch.rand(8, generator=torch.Generator().manual_seed(1))
    codes = quantizer.snap(latents, noise)
    tables = [quantizer.class_codewords, *quantizer.codebooks[..., :2]]
    sigma = noise.double().view(4, 2)
    for i in range(3):
        for j in range(2):
            x = latents[0, :, i, j].double().view(4, 2)
            weights = []
            for s, table in enumerate(tables):
                likelihood = (-((x[s] - table.double()) / sigma[s]).square().sum(1) / 2).exp()
                weights.append(likelihood * (counts[s] + 0.5))
            means = [
                (w @ codebook.double()) / w.sum() for w, codebook in zip(weights[1:], quantizer.codebooks, strict=True)
            ]
            expected = components_of(quantizer, int(weights[0].argmax()), torch.cat(means).float())
            torch.testing.assert_close(codes[0, :, i, j], expected, rtol=1e-4, atol=1e-5)


def trained_one_by_one(quantizer: ClassifiedProductQuantizer, z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes and loss of the tokens that `encode` gives, vector by vector, straight through the choice of codewords."""
    indices, codes, losses = quantizer.encode(z), [], []
    for b, i, j in torch.cartesian_prod(*map(torch.arange, (len(z), *z.shape[2:]))).tolist():
        token, *others = indices[b, :, i, j].tolist()
        relative = (quantizer.rotations[token // 4] @ z[b, :, i, j]) / quantizer.log_scales[token].exp()
        chosen = torch.cat([quantizer.codebooks[s, k] for s, k in enumerate(others)])
        commitment, codebook = relative - chosen.detach(), relative.detach() - chosen
        losses.append(0.7 * commitment.square().mean() + 0.2 * codebook.square().mean())
        codes.append(components_of(quantizer, token, relative + (chosen - relative).detach()))
    return torch.stack(codes).unflatten(0, (len(z), *z.shape[2:])).movedim(3, 1), torch.stack(losses).mean()


def test_training_uses_the_tokens_of_encode_and_its_codes_loss_and_gradients_are_those_of_each_vector():
    quantizer = build(commitment_weight=0.7, codebook_weight=0.2).train()
    z, upstream = any_z(), torch.randn_like(any_z())
    tensors = ("rotations", "log_scales", "codebooks")
    results = []
    for function in (lambda x: quantizer(x)[::2], lambda x: trained_one_by_one(quantizer, x)):
        quantizer.zero_grad()
        x = z.clone().requires_grad_()
        codes, loss = function(x)
        ((codes * upstream).sum() + 3 * loss).backward()
        gradients = [getattr(quantizer, name).grad.clone() for name in tensors]
        results.append((codes.detach(), loss.detach(), x.grad, *gradients))
    torch.testing.assert_close(results[0], results[1], rtol=1e-4, atol=1e-5)
    assert torch.equal(quantizer(z).indices, quantizer.eval().encode(z))
    used = torch.zeros(16).index_fill_(0, quantizer.encode(z)[:, 0].flatten(), 1).bool()
    assert (results[0][4][used].abs().sum(dim=1) > 0).all()  # scales of a class learn from its own vectors
    assert (results[0][4][~used] == 0).all()


def test_training_reconstructs_the_same_vectors_better():
    """Of the parts that learn: bases, scales and codewords. Likelihoods and names of classes stay."""
    quantizer, z = build(), any_z(height=16, width=16)
    fixed = quantizer.class_codewords.clone(), quantizer.log_variances.clone()
    optimizer = torch.optim.SGD(quantizer.parameters(), lr=0.1)
    errors = []
    for _ in range(5):
        output = quantizer(z)
        errors.append((output.codes - z).square().mean())
        optimizer.zero_grad()
        (errors[-1] + output.loss).backward()
        optimizer.step()
    assert errors[-1] < errors[0]
    assert torch.equal(quantizer.class_codewords, fixed[0])
    assert torch.equal(quantizer.log_variances, fixed[1])


@torch.no_grad()
def test_vectors_with_nan_stay_visible_and_disturb_no_other():
    quantizer, z = build(), any_z()
    expected = quantizer(z)
    z[1, 3, 2, 2] = torch.nan
    output = quantizer(z)
    broken = z.isnan().any(dim=1)
    assert output.codes.movedim(1, 3)[broken].isnan().all()
    assert output.loss.isnan()
    torch.testing.assert_close(output.codes.movedim(1, 3)[~broken], expected.codes.movedim(1, 3)[~broken])
    assert torch.equal(output.indices.movedim(1, 3)[~broken], expected.indices.movedim(1, 3)[~broken])
    latents = quantizer.to_latents(expected.indices)
    latents[1, 0, 2, 2] = torch.nan
    for codes in (quantizer.snap(latents), quantizer.snap(latents, torch.full((8,), 0.1))):
        assert torch.equal(codes.isnan().all(dim=1), broken)
        assert torch.equal(codes.isnan().any(dim=1), broken)


def test_a_restart_moves_unused_codewords_only_and_never_a_class():
    """A class that does not occur keeps its basis and scales: as a copy of another it would decode patches wrongly."""
    quantizer, z = build(), any_z()
    before = {name: value.clone() for name, value in quantizer.state_dict().items()}
    unused = torch.rand(4, 16, generator=torch.Generator().manual_seed(0)) < 0.4
    unused[0, :15] = True
    changed = dict(quantizer.restart(list(unused), z, torch.Generator().manual_seed(0)))
    assert set(changed) == {"codebooks"}
    assert torch.equal(changed["codebooks"], unused[1:, :, None].expand_as(quantizer.codebooks))
    after = quantizer.state_dict()
    assert torch.equal(after["codebooks"][~unused[1:]], before["codebooks"][~unused[1:]])
    assert all(torch.equal(after[name], before[name]) for name in before if name != "codebooks")


@torch.no_grad()
def test_codewords_restart_at_vectors_relative_to_their_class_each_at_another():
    quantizer, z = build(), any_z()
    classes, relative = quantizer.encode(z)[:, 0], []
    for b, i, j in torch.cartesian_prod(*map(torch.arange, (2, 4, 5))).tolist():
        token = int(classes[b, i, j])
        relative.append(quantizer.rotations[token // 4] @ z[b, :, i, j] / quantizer.log_scales[token].exp())
    vectors = torch.stack(relative).unflatten(1, (3, -1))  # (N, S - 1, D)
    unused = list(torch.ones(4, 16, dtype=torch.bool))
    quantizer.restart(unused, z, torch.Generator().manual_seed(0))
    for s in range(3):
        distances = (quantizer.codebooks[s][:, None] - vectors[:, s]).abs().amax(dim=2)  # (16, 40)
        assert (distances.amin(dim=1) < 1e-5).all()
        assert len(distances.argmin(dim=1).unique()) == 16


@torch.no_grad()
def test_bases_start_orthonormal():
    for rotation in ClassifiedProductQuantizer(8, **CONFIG).rotations:
        torch.testing.assert_close(rotation @ rotation.T, torch.eye(6), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"bases": 3}, r"bases \(3\) must divide codebook_size \(16\)"),
        ({"bases": 0}, r"bases \(0\) must divide codebook_size \(16\)"),
        ({"bases": -4}, r"bases \(-4\) must divide codebook_size \(16\)"),
        ({"candidates": 0}, r"candidates \(0\) must be from 1 to the 16 classes"),
        ({"candidates": 17}, r"candidates \(17\) must be from 1 to the 16 classes"),
        ({"components": 8}, r"components \(8\) must be at least the 9 coefficients"),
        ({"num_subspaces": 1}, r"num_subspaces \(1\) must be at least 2: one token is the class"),
        ({"num_subspaces": 3}, r"latent_channels \(8\) must be divisible by num_subspaces \(3\)"),
        ({"hidden_channels": 3}, r"hidden_channels \(3\)"),
        ({"commitment_weight": -1.0}, r"commitment_weight \(-1.0\)"),
        ({"codebook_weight": float("nan")}, r"codebook_weight \(nan\)"),
    ],
)
def test_numbers_that_do_not_fit_are_named_at_construction(overrides, message):
    with pytest.raises(ValueError, match=message):
        ClassifiedProductQuantizer(8, **{**CONFIG, "hidden_channels": 4, **overrides})


def test_bases_stay_orthonormal_while_they_learn():
    torch.manual_seed(0)
    quantizer = ClassifiedProductQuantizer(8, **CONFIG)
    optimizer = torch.optim.Adam(quantizer.parameters(), 0.01)

    def drift():
        product = quantizer.rotations @ quantizer.rotations.transpose(1, 2)
        return float((product - torch.eye(product.shape[1])).abs().max().detach())

    for step in range(20):
        optimizer.zero_grad()
        quantizer.rotations.square().mul(torch.rand_like(quantizer.rotations)).sum().backward()
        optimizer.step()
        before = drift()
        quantizer.after_step(step)
        assert before > 1e-3
        assert drift() < before / 10
    for step in range(3):
        quantizer.after_step(step)
    assert drift() < 1e-5
    quantizer.requires_grad_(False)
    frozen = quantizer.rotations.clone()
    quantizer.after_step(0)
    assert torch.equal(quantizer.rotations, frozen)
