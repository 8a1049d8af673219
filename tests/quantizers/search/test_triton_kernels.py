"""The search kernels compile for A100 and H100 without spills and as tight as planned; needs Triton, but no GPU."""

import os
import re
import subprocess
from pathlib import Path

import pytest

from pqdiff.quantizers.search.triton_search import ENABLE_FP_FUSION, RESIDUAL_SUMS_CONFIG, search_config

triton = pytest.importorskip("triton", reason="needs Triton")
TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
pytestmark = [
    pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="the interpreter compiles nothing"),
    pytest.mark.skipif(not (TOOLS / "cuobjdump").exists(), reason="needs a Triton with NVIDIA's tools"),
]

POINTERS = {
    "z": "*bf16",
    "codebooks": "*fp32",
    "centers": "*fp32",
    "indices": "*i16",
    "z_q": "*bf16",
    "counts": "*i32",
    "residual_sums": "*fp32",
    "squared_errors": "*fp32",
}


class Compiled:
    """Registers, spilled bytes and instructions of a kernel compiled for a compute capability."""

    def __init__(self, name: str, capability: int, folder: Path, num_warps: int, **constants):
        from triton.backends.compiler import GPUTarget
        from triton.compiler import ASTSource

        from pqdiff.quantizers.search import triton_kernels as search_triton_kernels

        kernel = getattr(search_triton_kernels, name)
        constants["position_stride"] = 1
        constants = {name: value for name, value in constants.items() if name in kernel.arg_names}
        others = [name for name in kernel.arg_names if name not in constants]
        signature = {name: POINTERS.get(name, "i32") for name in others} | dict.fromkeys(constants, "constexpr")
        aligned = {(kernel.arg_names.index(name),): [["tt.divisibility", 16]] for name in others}
        source = ASTSource(kernel, {name: signature[name] for name in kernel.arg_names}, constants, aligned)
        target = GPUTarget("cuda", capability, 32)
        cubin = folder / "kernel.cubin"
        options = {"num_warps": num_warps, "enable_fp_fusion": ENABLE_FP_FUSION}
        cubin.write_bytes(triton.compile(source, target=target, options=options).asm["cubin"])
        usage = subprocess.run([TOOLS / "cuobjdump", "-res-usage", cubin], capture_output=True, text=True, check=True)
        self.registers, self.stack, self.local = (
            int(re.search(rf"{key}:(\d+)", usage.stdout)[1]) for key in ("REG", "STACK", "LOCAL")
        )
        self.sass = subprocess.run([TOOLS / "nvdisasm", cubin], capture_output=True, text=True, check=True).stdout

    def count(self, instruction: str) -> int:
        return len(re.findall(rf"\b{instruction}\b", self.sass))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path


@pytest.mark.parametrize("capability", [80, 90])
def test_the_paper_s_search_stays_in_registers_with_one_comparison_a_codeword(capability, folder):
    config = search_config(dim=2, num_vectors=2**20, num_subspaces=64, num_multiprocessors=132)
    compiled = Compiled("narrow_kernel", capability, folder, K=512, D=2, FUSED=True, ADD_RESIDUALS=True, **config)
    assert compiled.registers <= 64  # 8 programs of 4 warps a multiprocessor
    assert compiled.stack == compiled.local == 0
    # Sixteen codewords are unrolled: for each vector of a thread one minimum a codeword and one a run, as the rescan
    # of one run. Shuffles only add up the squared error.
    per_thread = config["BLOCK"] // (32 * config["num_warps"])
    runs, rescan = 16 // config["RUN"], config["RUN"]
    assert 16 * per_thread <= compiled.count("FMNMX") <= (16 + runs + rescan) * per_thread
    assert compiled.count("SHFL") <= 8
    assert compiled.count("FFMA") <= (16 + rescan + 2) * per_thread


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("dim", [8, 256])
def test_the_search_in_many_dimensions_uses_tensor_cores_without_spills(capability, dim, folder):
    config = search_config(dim, num_vectors=2**20, num_subspaces=1, num_multiprocessors=132)
    compiled = Compiled("wide_kernel", capability, folder, K=1000, D=dim, FUSED=True, ADD_RESIDUALS=True, **config)
    assert compiled.registers < 255
    assert compiled.stack == compiled.local == 0
    assert compiled.count({80: "HMMA", 90: "HGMMA"}[capability]) >= 3  # the three products of TF32 parts


def test_reproducible_sums_stay_in_registers(folder):
    compiled = Compiled("residual_sums_kernel", 80, folder, K=512, D=2, **RESIDUAL_SUMS_CONFIG)
    assert compiled.registers <= 128
    assert compiled.stack == compiled.local == 0


def test_plain_search_writes_indices_alone(folder):
    absent = dict.fromkeys(("z_q", "counts", "residual_sums", "squared_errors"))
    config = search_config(dim=2, num_vectors=1, num_subspaces=1, num_multiprocessors=132)
    compiled = Compiled("narrow_kernel", 80, folder, K=128, D=2, FUSED=False, ADD_RESIDUALS=False, **absent, **config)
    assert compiled.count("SHFL") == 0
    assert not re.search(r"\b(RED|ATOM)", compiled.sass)
