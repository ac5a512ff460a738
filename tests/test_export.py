"""The code in docs/elsewhere.md runs, and what it gives is what Keras gives."""

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


@pytest.fixture
def names(here) -> dict:
    """What the code of the first section defines, in a folder of its own with the shipped model."""
    shutil.copytree(SHIPPED, here / "checkpoints" / "pretrained")
    names = {}
    run("Keras alone", names)
    return names


def test_keras_alone_draws_from_the_learned_prior(names):
    """The latent vectors are as probable as those that generator.py draws."""
    prior = Run.find(str(SHIPPED)).load_prior(24)
    wanted = prior.log_prob(prior.draw(np.random.default_rng(0), 1000, 1.0)).mean()
    assert prior.log_prob(names["z"]).mean() == pytest.approx(wanted, abs=2)
    assert names["images"].shape == (100, 28, 28)
    assert names["mean"].shape == names["log_var"].shape == (100, 24)


@pytest.mark.parametrize("section", NEEDED)
def test_exported_halves_agree_with_keras(section, names):
    for package in NEEDED[section]:
        pytest.importorskip(package, reason=f"{section} needs {package}")
    mean, log_var = names.pop("mean"), names.pop("log_var")
    digits = names["decoder"].predict(mean, verbose=0)
    names["mean"] = mean
    run(section, names)
    for name, wanted in {"mean": mean, "log_var": log_var, "digits": digits}.items():
        np.testing.assert_allclose(names[name], wanted, atol=1e-4, err_msg=name)
