"""The code in docs/elsewhere.md runs, and what it gives is what Keras gives."""

import contextlib
import re
import shutil

import numpy as np
import pytest
from conftest import ROOT

from vae.run import Run

SHIPPED = ROOT / "checkpoints" / "pretrained"
DOCS = (ROOT / "docs" / "elsewhere.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", DOCS, re.MULTILINE | re.DOTALL))
NEEDED = {"ONNX": ["onnx", "tf2onnx", "onnxruntime"], "SavedModel": ["tensorflow"], "LiteRT": ["ai_edge_litert"]}


def run(section: str, names: dict) -> None:
    """Run the code of a section. It reads and defines what is in `names`."""
    exec("".join(re.findall(r"```python\n(.*?)```", SECTIONS[section], re.DOTALL)), names)


@pytest.fixture(scope="module")
def keras_alone(tmp_path_factory) -> dict:
    """What the code of the first section defines, in a folder with the shipped model."""
    folder, names = tmp_path_factory.mktemp("project"), {}
    shutil.copytree(SHIPPED, folder / "checkpoints" / "pretrained")
    with contextlib.chdir(folder):
        run("Keras alone", names)
    return names


def test_keras_alone_draws_from_the_learned_prior(keras_alone):
    """The latent vectors are as probable as those that generator.py draws."""
    prior = Run.find(str(SHIPPED)).load_prior(24)
    wanted = prior.log_prob(prior.draw(np.random.default_rng(0), 1000, 1.0)).mean()
    assert prior.log_prob(keras_alone["z"]).mean() == pytest.approx(wanted, abs=2)
    assert keras_alone["images"].shape == (100, 28, 28)
    assert keras_alone["mean"].shape == keras_alone["log_var"].shape == (100, 24)


@pytest.mark.parametrize("section", NEEDED)
def test_exported_halves_agree_with_keras(section, keras_alone, here):
    for package in NEEDED[section]:
        pytest.importorskip(package, reason=f"{section} needs {package}")
    names = {name: value for name, value in keras_alone.items() if name != "log_var"}  # the section defines it
    run(section, names)
    digits = keras_alone["decoder"].predict(keras_alone["mean"], verbose=0)
    for name, wanted in {"mean": keras_alone["mean"], "log_var": keras_alone["log_var"], "digits": digits}.items():
        np.testing.assert_allclose(names[name], wanted, atol=1e-4, err_msg=name)
