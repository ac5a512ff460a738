"""Runs in which nothing is trained: `Model` counts epochs instead."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from vae import files, run, runs
from vae.data.dataset import Dataset
from vae.run import Run

IMAGES = np.random.default_rng(0).integers(0, 256, (30, 8, 8), np.uint8)
DATASET = Dataset("tiny", IMAGES, None, None, IMAGES[:5], None, sha256="0" * 64, source="memory")
CONFIG = {
    "format": runs.FORMAT,
    "settings": {"data": None, "binarize": False},
    "dataset": {"name": "digits", "sha256": "0"},
    "versions": {},
    "epochs_done": 0,
    "finished": None,
}


class Half:
    """Replaces an encoder or a decoder. What it saves is its value as a text."""

    def __init__(self, variable):
        self.weights = [variable]

    def count_params(self) -> int:
        return 3

    def save(self, path: Path) -> None:
        path.write_text(str(float(np.asarray(self.weights[0])[0])))


class Prior(Half):
    """Replaces a learned prior, likewise."""

    def to_arrays(self) -> dict[str, np.ndarray]:
        return {"epochs": np.asarray(self.weights[0])}


class Model:
    """Replaces a VAE: encoder, decoder, prior and optimizer have a variable each: the epochs that it has seen."""

    def __init__(self):
        import keras

        variables = [keras.Variable(np.zeros(3, np.float32)) for _ in range(4)]
        self.encoder, self.decoder, self.prior = Half(variables[0]), Half(variables[1]), Prior(variables[2])
        self.optimizer = SimpleNamespace(variables=variables[3:])

    def see_an_epoch(self) -> None:
        for variable in run._variables(self):
            variable.assign(variable + 1)


def train_epoch(one: Run, model: Model) -> None:
    model.see_an_epoch()
    one.save_epoch(model, one.make_row([3.0, 2.0, 1.0, 3.5, 2.25, 1.25], 0.5, len(one.rows) + 1.0))


def train(one: Run) -> Path:
    """Train a run to its end, and return its folder."""
    model = Model()
    with one.begin(model, DATASET):
        while len(one.rows) < one.settings.epochs:
            train_epoch(one, model)
        one.save_prior({"epochs": np.asarray(model.encoder.weights[0])})
        one.finish(one.test_losses, [0.5, 0.25])
    return one.folder


def new(**settings) -> Run:
    return Run.new({"epochs": 2, "seed": 3} | settings)


def epochs_in(folder: Path) -> list[float]:
    """Return what encoder, decoder, history, state and prior (where there is one) say of the epochs they are from."""
    found = [float((folder / f"{half}.keras").read_text()) for half in ("encoder", "decoder")]
    found.append(len((folder / "history.csv").read_text().splitlines()) - 1)
    state = files.read_arrays(folder / "training_state.npz", "")
    found += [state["variable_000"][0], state["variable_003"][0]]
    prior = files.read_arrays(folder / "prior.npz", "")
    return found if prior is None else [*found, prior["epochs"][0]]


def write_config(folder: Path, **changes) -> Path:
    """Change config.json by hand."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "config.json"
    config = json.loads(path.read_text()) if path.exists() else CONFIG
    path.write_text(json.dumps(config | changes))
    return folder
