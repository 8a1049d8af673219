"""The command as a whole: help, wrong usage, and how soon they come."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.support import assert_done, files_in, save
from tests.processes import HANGS

COMMANDS = ("generate", "reconstruct", "encode", "decode", "info", "evaluate", "fit", "convert-vae", "push")
# Of each command: an unknown option, a missing argument, a value of a wrong kind, a value that the command refuses itself.
WRONG = {
    "generate": [
        *(["--stepz", "3"], [], ["fox", "--steps", "many"], ["fox", "--steps", "0"], ["fox", "--dtype", "int8"]),
        *(["fox", "-n", "0"], ["fox", "--scheduler", "ddpm"], ["fox", "-o", "out.txt"], [""]),
    ],
    "reconstruct": [["--models", "x"], [], ["a.png"], ["a.png", "-o", "out", "--save-images=3"]],
    "encode": [["--models", "x"], [], ["a.png"], ["a.png", "-o", "out", "--json=3"]],
    "decode": [["--models", "x"], [], ["a.pq"], ["a.pq", "-o", "out", "--json=3"]],
    "info": [["--backend"], [], ["a", "b"], ["a", "--backends"]],
    "evaluate": [["--model"], [], ["folder", "--every", "0"], ["folder", "--resolution", "x"], ["folder", "-o", "."]],
    "fit": [
        ["--presets"],
        ["folder"],
        ["folder", "-o", "a", "-p", "b", "--seed", "x"],
        ["folder", "-o", "a", "-p", "b"],
    ],
    "convert-vae": [["--on"], ["vae"], ["vae", "folder"], ["vae", "folder", "-o", "a", "--method", "b"]],
    "push": [["--dry"], ["folder"], ["folder", "user/name", "--private=3"]],
}
HEAVY = ("torch", "diffusers", "transformers", "numpy", "datasets", "matplotlib")
RUN_ALL = """
import contextlib, io, json, sys
from pqdiff.cli import main
runs, heavy = json.loads(sys.argv[1])
for arguments, code in runs:
    sys.argv = ["pqdiff", *arguments]
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        try:
            main()
        except SystemExit as ended:
            assert (ended.code or 0) == code, (arguments, ended.code)
    loaded = set(heavy) & set(sys.modules)
    assert not loaded, (arguments, loaded)
"""


def assert_light(*runs):
    """Run lists of arguments, each with its expected exit code, in one process that must import nothing heavy."""
    arguments = json.dumps([runs, HEAVY])
    result = subprocess.run([sys.executable, "-c", RUN_ALL, arguments], capture_output=True, text=True, timeout=HANGS)
    assert result.returncode == 0, result.stderr


def test_help_and_unknown_commands_import_nothing_heavy():
    assert_light((["--help"], 0), ([], 2), (["nonsense"], 2), (["--nonsense"], 2))


@pytest.mark.parametrize("command", COMMANDS)
def test_help_and_wrong_usage_of_a_command_import_nothing_heavy(command):
    assert_light(([command, "--help"], 0), *(([command, *arguments], 2) for arguments in WRONG[command]))


def test_help_names_every_command(pqdiff):
    result = pqdiff("--help")
    assert_done(result)
    for command in COMMANDS:
        assert command in result.out


@pytest.mark.parametrize(
    "arguments", [["nonsense"], ["reconstruct"], ["encode", "a.png"], ["decode"], ["info"], ["evaluate"], ["fit", "x"]]
)
def test_wrong_usage_exits_with_2(pqdiff, arguments):
    result = pqdiff(*arguments)
    assert result.code == 2
    assert result.out == ""
    assert "Traceback" not in result.err


def test_the_installed_script_runs_and_keeps_stderr_clean(tmp_path, f8):
    save(tmp_path / "a.png", 1, 16, 24)
    script = Path(sys.executable).with_name("pqdiff")
    command = [script] if script.exists() else [sys.executable, "-c", "from pqdiff.cli import main; main()"]
    command += ["reconstruct", "a.png", "-o", "out", "-m", str(f8), "--json"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (0, "")
    assert json.loads(result.stdout)["files"] == [str(Path("out", "a.panel.png"))]
    assert files_in(tmp_path / "out") == ["a.panel.png"]
