"""The notebook runs from top to bottom, and what it keeps can be read by everybody."""

import json
import shutil

import pytest
from conftest import ROOT

NOTEBOOK = ROOT / "notebooks" / "tour.ipynb"


def outputs_of(notebook: dict) -> list[dict]:
    return [output for cell in notebook["cells"] if cell["cell_type"] == "code" for output in cell["outputs"]]


def count_pictures(notebook: dict) -> int:
    return sum(any(kind.startswith("image/") for kind in output.get("data", {})) for output in outputs_of(notebook))


def test_the_tour_runs_from_top_to_bottom(tmp_path, monkeypatch):
    """In a copy of the project, with one epoch. Scripts run inside the notebook's process, also by %run."""
    packages = ("nbclient", "nbformat", "ipykernel")
    nbclient, nbformat, _ = (pytest.importorskip(package, reason=f"it takes {package}") for package in packages)
    project = tmp_path / "project"
    shutil.copytree(ROOT / "vae", project / "vae")
    shutil.copytree(ROOT / "checkpoints" / "pretrained", project / "checkpoints" / "pretrained")
    for script in ROOT.glob("*.py"):
        shutil.copy(script, project)
    (project / "notebooks").mkdir()
    monkeypatch.delenv("VAE_CHECKPOINTS")
    monkeypatch.setenv("TOUR_EPOCHS", "1")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    assert "\n%run main.py " in "".join(cell["source"] for cell in notebook["cells"])
    resources = {"metadata": {"path": str(project / "notebooks")}}
    nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3", resources=resources).execute()
    assert count_pictures(notebook) == 9
    assert (project / "explorer.html").stat().st_size > 1e6


def test_the_notebook_keeps_its_outputs_and_they_are_small():
    notebook = json.loads(NOTEBOOK.read_text("utf-8"))
    outputs = outputs_of(notebook)
    assert count_pictures(notebook) == 9
    assert not any(output["output_type"] == "error" for output in outputs)
    assert NOTEBOOK.stat().st_size < 2e6
    text = "".join("".join(output["text"]) for output in outputs if output["output_type"] == "stream")
    assert "Epoch: 30/30" in text and "Warning" not in text
    assert not any(place in text for place in ("/home", "/root", "/tmp", "/work", "/Users", ":\\"))
