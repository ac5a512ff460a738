"""The shipped model in other programs: the code in docs/elsewhere.md, and its losses without this project."""

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile

import numpy as np
import pytest
from conftest import ROOT

import evaluate
from vae.data import load
from vae.data.dataset import to_pixels
from vae.run import LOSSES, Run
from vae.terminal import shown

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
    prior = Run.find(str(SHIPPED)).load_prior()
    wanted = prior.log_prob(prior.draw(np.random.default_rng(0), 1000)).mean()
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


@pytest.mark.parametrize("half", ["encoder", "decoder"])
def test_the_shipped_files_have_no_key_that_keras_3_8_refuses(half):
    with zipfile.ZipFile(SHIPPED / f"{half}.keras") as archive:
        config = archive.read("config.json").decode()
    assert not re.search('"(quantization_config|input_axes|output_axes)"', config)


ELSEWHERE = """
import importlib.util, json, os, sys
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "2"
import keras, numpy as np
from scipy.special import logsumexp
from scipy.stats import multivariate_normal

assert not any(map(importlib.util.find_spec, ("model", "vae", "main")))
folder, x, samples = sys.argv[1], np.load(sys.argv[2]), int(sys.argv[3])
encoder, decoder = (keras.saving.load_model(f"{folder}/{half}.keras") for half in ("encoder", "decoder"))
mean, log_var = (part.astype(np.float64) for part in encoder.predict(x, verbose=0))
prior = np.load(f"{folder}/prior.npz")
components = list(zip(*(prior[name].astype(np.float64) for name in ("weights", "means", "factors"))))
rng = np.random.default_rng(1)

log_likelihoods, log_ratios = [], []  # log p(x|z) and log p(z) / q(z|x)
for _ in range(samples):
    epsilon = rng.standard_normal(mean.shape)
    z = mean + np.exp(log_var / 2) * epsilon
    p = np.clip(decoder.predict(z.astype(np.float32), verbose=0).astype(np.float64), 1e-9, 1 - 1e-7)
    log_likelihoods.append((x * np.log(p) + (1 - x) * np.log(1 - p)).sum(axis=(1, 2)))
    log_prior = logsumexp([np.log(w) + multivariate_normal(m, f @ f.T).logpdf(z) for w, m, f in components], axis=0)
    log_ratios.append(log_prior + 0.5 * (epsilon ** 2 + log_var + np.log(2 * np.pi)).sum(axis=1))
found = {"reconstruction_loss": -np.mean(log_likelihoods), "kl_loss": -np.mean(log_ratios)}
found["general_loss"] = found["reconstruction_loss"] + found["kl_loss"]
log_weights = np.add(log_likelihoods, log_ratios)  # log p(x) ~ log mean p(x|z) p(z) / q(z|x)
found["nll"] = -np.mean(logsumexp(log_weights, axis=0) - np.log(samples))
found["active_units"] = int((mean.var(axis=0) > 0.01).sum())
print(json.dumps(found))
"""


def test_the_shipped_model_is_as_good_as_it_says_also_without_this_project(here, capsys):
    """From its files, Keras, NumPy and SciPy, in a process that cannot import this project. On MNIST if it is there."""
    mnist = os.environ.get("MNIST_DIR")
    place = ["--data", mnist] if mnist else ["--dataset", "digits"]
    evaluate.main([*place, "--json", "--arrays", "a.npz", "--importance-samples", "10"])
    printed, config = capsys.readouterr(), Run.find(None).config
    measured = json.loads(printed.out)
    assert f"-> Checkpoints are restored from {shown(SHIPPED)}\n" in printed.err
    if mnist:
        assert [measured[loss] for loss in LOSSES] == pytest.approx([config["test"][loss] for loss in LOSSES], abs=0.15)
        assert measured["active_units"] == sum(variance > 0.01 for variance in config["activity"])
        assert measured["label_accuracy"] > 0.96

    images = load.load(load.Source(data=mnist) if mnist else load.Source("digits")).test_images
    chosen = np.random.default_rng(0).permutation(len(images))[:1000]  # the likelihood was estimated on these
    np.save("x.npy", to_pixels(images[chosen]))
    command = [sys.executable, "-I", "-c", ELSEWHERE, SHIPPED, "x.npy", "10"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    arrays = np.load("a.npz")
    ours = measured | {name: arrays[name][chosen].mean() for name in LOSSES}
    for metric, value in json.loads(done.stdout).items():
        assert ours[metric] == pytest.approx(value, rel=0.004 if mnist else 0.02), metric  # other posterior samples
