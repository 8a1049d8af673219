"""Which room may import which, what importing costs, and what it prints."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import pqdiff
from tests.processes import HANGS

PACKAGE = Path(pqdiff.__file__).parent
# Modules beside the rooms. They import nothing of pqdiff, and every room may import them.
SINGLE_FILES = {path.stem for path in PACKAGE.glob("*.py")} - {"__init__"}
# From the lowest layer to the highest: each room may import itself and those named. "" is the package's own __init__.
ALLOWED = {
    "checkpoints": set(),
    "quantizers": set(),
    "transforms": {"quantizers"},
    "data": set(),
    # Inference: no losses, metrics, data, fitting or trainers.
    "models": {"quantizers", "transforms", "checkpoints"},
    "adaptation": {"models"},
    "pipelines": {"models", "adaptation", "checkpoints"},
    "losses": {"models"},
    "metrics": {"quantizers", "models", "losses", "data"},
    "fitting": {"quantizers", "transforms", "models", "data"},
    "hub": {"models", "pipelines", "adaptation", "metrics", "checkpoints"},
    "training": {
        *("quantizers", "transforms", "models", "losses", "metrics", "data", "fitting", "adaptation", "pipelines"),
        *("checkpoints", "hub"),  # a trainer finds models, and publishes its result with a card
    },
    "cli": {"losses", "quantizers", "models", "data", "metrics", "fitting", "hub", "checkpoints", "pipelines"},
    "": {"models", "checkpoints", "pipelines", "fitting"},
}
ALLOWED_OUTSIDE = {"quantizers": {"torch", "triton"}, "checkpoints": set()}
ROOMS = sorted({path.relative_to(PACKAGE).parts[0] for path in PACKAGE.glob("*/**/*.py")} | {""})
HEAVY = (
    "torch",
    "diffusers",
    "transformers",
    "numpy",
    "PIL",
    "datasets",
    "matplotlib",
    "accelerate",
    "huggingface_hub",
)
OPTIONAL = ("skimage", "matplotlib", "datasets", "torchvision", "torch_fidelity", "triton", "peft", "tensorboard")


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
        above = inside - ALLOWED[room] - SINGLE_FILES - {room}
        assert not above, f"{path.relative_to(PACKAGE)} imports {above}"
        if room in ALLOWED_OUTSIDE:
            assert outside <= ALLOWED_OUTSIDE[room], f"{path.relative_to(PACKAGE)} imports {outside}"


@pytest.mark.parametrize("name", sorted(SINGLE_FILES))
def test_a_module_beside_the_rooms_imports_no_room(name):
    inside, _ = imports_of(PACKAGE / f"{name}.py")
    assert not inside


def run(code: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-W", "error::UserWarning:pqdiff", "-c", code]
    result = subprocess.run(command, capture_output=True, text=True, timeout=HANGS)
    assert result.returncode == 0, result.stderr
    return result


def test_importing_the_package_loads_nothing_heavy_and_prints_nothing():
    result = run(f"import sys, pqdiff; loaded = set({HEAVY}) & set(sys.modules); assert not loaded, loaded")
    assert (result.stdout, result.stderr) == ("", "")


def test_what_needs_no_torch_does_not_load_it():
    light = ("checkpoints", "suggestions", "devices", "registration", "models.presets", "cli")
    modules = ", ".join(f"pqdiff.{name}" for name in light)
    run(f"import sys, {modules}; loaded = set({HEAVY}) & set(sys.modules); assert not loaded, loaded")


def test_using_the_classes_loads_no_optional_package():
    """Except those that torch, diffusers and transformers load themselves: torch loads Triton where it is installed."""
    run(
        "import sys\n"
        "from diffusers import AutoencoderKL, StableDiffusionImg2ImgPipeline, StableDiffusionInpaintPipeline\n"
        "before = set(sys.modules)\n"
        "import pqdiff\n"
        "assert all(getattr(pqdiff, name) is not None for name in pqdiff.__all__)\n"
        f"loaded = set({OPTIONAL}) & (set(sys.modules) - before)\n"
        "assert not loaded, loaded\n"
        "assert 'pqdiff.cli' not in sys.modules and 'pqdiff.training' not in sys.modules"
    )


def test_every_public_name_exists_and_no_other():
    assert set(pqdiff.__all__) <= set(dir(pqdiff))
    for name in pqdiff.__all__:
        assert getattr(pqdiff, name) is getattr(pqdiff, name)
    with pytest.raises(AttributeError, match="'pqdiff' has no attribute 'AutoencoderQP'"):
        pqdiff.AutoencoderQP  # noqa: B018
    with pytest.raises(AttributeError, match=r"'pqdiff\.models' has no attribute 'AutoencoderQP'"):
        pqdiff.models.AutoencoderQP  # noqa: B018


def test_version_is_the_one_of_the_package():
    from importlib.metadata import version

    assert pqdiff.__version__ == version("pqdiff")
