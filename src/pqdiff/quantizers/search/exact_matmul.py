"""Matrix products in full fp32: shortcuts that are good enough for networks change which codeword is nearest."""

import contextlib

import torch


@contextlib.contextmanager
def exact_matmul():
    """Full fp32 products, whatever TF32 or bf16 shortcuts the user allowed for the networks."""
    try:
        precision = torch.get_float32_matmul_precision()
    except RuntimeError:  # chosen per backend, by torch's newer settings, beside which it refuses to answer
        backends = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)
        chosen = [backend.fp32_precision for backend in backends]
        try:
            for backend in backends:
                backend.fp32_precision = "ieee"
            yield
        finally:
            for backend, value in zip(backends, chosen, strict=True):
                backend.fp32_precision = value
        return
    if precision == "highest":
        yield
        return
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(precision)
