"""Lookup-free quantization, against vector-quantize-pytorch."""

import torch
from vector_quantize_pytorch import LFQ

from pqdiff.quantizers import LookupFreeQuantizer

BITS = 5


def test_codes_and_losses_are_those_of_vector_quantize_pytorch():
    reference = LFQ(
        dim=BITS, codebook_size=2**BITS, entropy_loss_weight=0.1, commitment_loss_weight=0.25, diversity_gamma=0.8
    )
    quantizer = LookupFreeQuantizer(
        BITS, diversity_weight=0.8, commitment_weight=0.25, temperature=0.5, entropy_bits=BITS
    )
    z = torch.randn(2, BITS, 4, 3, generator=torch.Generator().manual_seed(0))
    mine, theirs = z.clone().requires_grad_(), z.clone().requires_grad_()
    (codes, indices, loss), parts = reference(theirs, inv_temperature=2.0, return_loss_breakdown=True)
    output = quantizer(mine)
    torch.testing.assert_close(output.codes, codes)
    torch.testing.assert_close(output.loss, loss, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(output.logs["code_entropy"], parts.per_sample_entropy.detach(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(output.logs["mean_code_entropy"], parts.batch_entropy.detach(), rtol=1e-4, atol=1e-4)
    # There the first channel is the most significant bit.
    reversed_bits = sum(((indices >> bit) & 1) << (BITS - 1 - bit) for bit in range(BITS))
    assert torch.equal(output.indices[:, 0], reversed_bits)
    (output.codes.sum() + output.loss).backward()
    (codes.sum() + loss).backward()
    torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-4, atol=1e-5)


def test_groups_are_independent_quantizers_as_in_wetok():
    torch.manual_seed(0)
    together, alone = LookupFreeQuantizer(8, num_subspaces=2, entropy_bits=4), LookupFreeQuantizer(4, entropy_bits=4)
    z = 0.01 * torch.randn(2, 8, 3, 3)
    output, parts = together(z), [alone(part.contiguous()) for part in z.chunk(2, dim=1)]
    assert torch.equal(output.indices, torch.cat([part.indices for part in parts], dim=1))
    torch.testing.assert_close(output.loss, (parts[0].loss + parts[1].loss) / 2)
