"""Who may import whom, what importing costs, and what it prints."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import pqdiff

PACKAGE = Path(pqdiff.__file__).parent
# Each room may import itself and those named; "" is the package's own __init__.
ALLOWED = {
    "quantizers": set(),
    "models": {"quantizers"},
    "losses": set(),
    "checkpoints": set(),
    "data": set(),
    "metrics": {"models", "data"},
    "pipelines": {"models", "checkpoints"},
    # Training saves its result with a card and pushes it: the one place where it looks up.
    "training": {"quantizers", "models", "losses", "metrics", "data", "pipelines", "hub"},
    "hub": {"models", "checkpoints", "pipelines"},
    "cli": {"quantizers", "models", "data", "metrics", "hub", "checkpoints", "pipelines"},
    "": {"models", "checkpoints", "pipelines"},
}
ALLOWED_OUTSIDE = {"quantizers": {"torch", "triton"}, "checkpoints": set()}
ROOMS = sorted({path.relative_to(PACKAGE).parts[0] for path in PACKAGE.glob("*/**/*.py")} | {""})


def imports_of(path: Path) -> tuple[set[str], set[str]]:
    """Rooms of pqdiff and outside packages that a file imports, wherever in the file."""
    inside, outside = set(), set()
    package = ["pqdiff", *path.relative_to(PACKAGE).parts[:-1]]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            names = [f"{module}.{alias.name}" if module == "pqdiff" else module for alias in node.names]
        else:
            continue
        for name in names:
            top, *rest = name.split(".")
            if top == "pqdiff":
                inside.add(rest[0] if rest else "")
            elif top not in sys.stdlib_module_names:
                outside.add(top)
    return inside, outside


@pytest.mark.parametrize("room", ROOMS)
def test_imports_point_down(room):
    paths = [PACKAGE / "__init__.py"] if not room else sorted((PACKAGE / room).rglob("*.py"))
    assert paths
    for path in paths:
        inside, outside = imports_of(path)
        assert inside <= ALLOWED[room] | {room}, f"{path.relative_to(PACKAGE)} imports {inside}"
        if room in ALLOWED_OUTSIDE:
            assert outside <= ALLOWED_OUTSIDE[room], f"{path.relative_to(PACKAGE)} imports {outside}"


def test_import_prints_nothing_and_leaves_optional_packages_alone():
    code = (
        "import sys, pqdiff; "
        "loud = {'skimage', 'matplotlib', 'datasets', 'gradio', 'torchvision', 'torch_fidelity', 'triton'}; "
        "loud &= set(sys.modules); "
        "assert not loud, loud; assert 'pqdiff.cli' not in sys.modules"
    )
    result = subprocess.run(
        [sys.executable, "-W", "error::UserWarning:pqdiff", "-c", code], capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout == ""


def test_version_is_the_one_of_the_package():
    from importlib.metadata import version

    assert pqdiff.__version__ == version("pqdiff")
