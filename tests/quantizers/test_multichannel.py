"""Multichannel quantization, against product quantization with equal codebooks and vector quantization of all slices."""

import pytest
import torch
from vector_quantize_pytorch import VectorQuantize

from pqdiff.quantizers import MultichannelQuantizer, ProductQuantizer, VectorQuantizer
from tests.autoencoders import CONV
from tests.autoencoders import build as build_autoencoder


def build(**config) -> MultichannelQuantizer:
    torch.manual_seed(0)
    return MultichannelQuantizer(12, num_subspaces=3, codebook_size=16, **config)


def any_z(seed: int = 1) -> torch.Tensor:
    return torch.randn(2, 12, 4, 5, generator=torch.Generator().manual_seed(seed))


def test_it_is_product_quantization_with_one_codebook_for_all_subspaces():
    quantizer = build()
    reference = ProductQuantizer(12, 3, 16, commitment_weight=0.25, codebook_weight=1.0)
    reference.codebooks.data.copy_(quantizer.codebooks.data.expand(3, -1, -1))
    z, other = any_z().requires_grad_(), any_z().requires_grad_()
    mine, theirs = quantizer(z), reference(other)
    (mine.loss + mine.codes.square().sum()).backward()
    (theirs.loss + theirs.codes.square().sum()).backward()
    assert torch.equal(mine.indices, theirs.indices)
    assert torch.equal(mine.codes, theirs.codes)
    torch.testing.assert_close(mine.loss, theirs.loss)
    torch.testing.assert_close(z.grad, other.grad)
    torch.testing.assert_close(quantizer.codebooks.grad, reference.codebooks.grad.sum(dim=0, keepdim=True))
    assert torch.equal(quantizer.encode(z), reference.encode(z))


def test_tokens_and_codes_are_those_of_vector_quantize_pytorch():
    quantizer = build().eval()
    reference = VectorQuantize(
        dim=12, codebook_size=16, heads=3, codebook_dim=4, separate_codebook_per_head=False, accept_image_fmap=True
    )
    reference.project_in, reference.project_out = torch.nn.Identity(), torch.nn.Identity()
    reference._codebook.embed.data.copy_(quantizer.codebooks.data)
    codes, indices, _ = reference.eval()(any_z())
    output = quantizer(any_z())
    torch.testing.assert_close(output.codes, codes)
    assert torch.equal(output.indices, indices.movedim(-1, 1))


def test_the_ema_counts_all_slices():
    quantizer, reference = build(ema_decay=0.9), VectorQuantizer(4, 16, ema_decay=0.9)
    reference.codebooks.copy_(quantizer.codebooks)
    reference.embedding_sums.copy_(quantizer.embedding_sums)
    for seed in range(2):
        quantizer(any_z(seed))
        reference(any_z(seed).unflatten(1, (3, 4)).flatten(0, 1))
    torch.testing.assert_close(quantizer.codebooks, reference.codebooks)


def test_a_codeword_restarts_only_if_no_slice_uses_it():
    quantizer, z = build(ema_decay=0.9), any_z()
    unused = torch.zeros(3, 16, dtype=torch.bool)
    unused[:, 2] = unused[1, 5] = True
    before = quantizer.codebooks.clone()
    changed = dict(quantizer.restart(list(unused), z, torch.Generator().manual_seed(0)))
    assert (quantizer.codebooks != before).any(dim=2).nonzero().tolist() == [[0, 2]]
    assert set(changed) == {"codebooks", "cluster_sizes", "embedding_sums"}
    slices = z.unflatten(1, (3, 4)).movedim(2, -1).flatten(0, -2)
    assert (slices == quantizer.codebooks[0, 2]).all(dim=1).any()


def test_the_decoder_of_movq_sees_the_codes():
    spatial = {**CONV, "block_out_channels": (32, 32, 64), "mid_channels": 6, "norm_type": "spatial"}
    quantizer = {"quantizer_type": "multichannel", "quantizer_config": {"num_subspaces": 2, "codebook_size": 8}}
    model = build_autoencoder("networks", transform_config=spatial, **quantizer)
    names = [name for name, module in model.named_modules() if type(module).__name__ == "SpatialNorm"]
    assert names
    image = torch.rand(1, 3, 32, 32) * 2 - 1
    assert model(image).sample.shape == image.shape
    with pytest.raises(ValueError, match=r"norm_type 'spatial' needs mid_channels \(8\) = channels of codes \(6\)"):
        build_autoencoder("networks", transform_config={**spatial, "mid_channels": 8}, **quantizer)
    with pytest.raises(ValueError, match=r"needs block_out_channels \(\(8, 8, 16\)\) divisible by 32"):
        build_autoencoder("networks", transform_config={**CONV, "norm_type": "spatial"}, **quantizer)
    with pytest.raises(ValueError, match=r"norm_type \('layer'\) must be"):
        build_autoencoder("networks", transform_config={**spatial, "norm_type": "layer"}, **quantizer)
