"""Where a result was measured."""

import platform
import subprocess
from pathlib import Path

import diffusers
import torch


def describe_machine() -> dict[str, str | int]:
    """Processor, versions and commit, for result files."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, cwd=Path(__file__).parent
    )
    return {
        "processor": models[0] if models else platform.processor(),
        "cores": len(models),
        "system": platform.system(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
        "commit": commit.stdout.strip() or "unknown",
    }
