"""The layers of vae/ in pyproject.toml: imports point down, never up and never in a circle."""

import subprocess
import sys

from conftest import ROOT


def test_imports_point_down():
    command = [sys.executable, "-c", "from importlinter.cli import lint_imports_command; lint_imports_command()"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout


def test_the_model_imports_nothing_of_the_project():
    lines = (ROOT / "model.py").read_text().splitlines()
    assert [line for line in lines if line.startswith(("import vae", "from vae"))] == []
