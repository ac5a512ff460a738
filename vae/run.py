"""A run: its folder, settings and history. It is created, saved, restored and resumed here.

`training_state.npz` is the one truth of a run. After every epoch it is written first, in one atomic step, with all that
resuming needs: the config, the history, all weights, the optimizer's averages. The other files are made from it.
"""

import csv
import json
import os
import platform
import shlex
import sys
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from vae import files, parallel, runs, sampling
from vae.data import load
from vae.data.dataset import Dataset, hold_out
from vae.settings import FURTHER, check, complete, fit_defaults, flag
from vae.terminal import UserError, as_path, shown

LOSSES = ("general_loss", "reconstruction_loss", "kl_loss")
FINAL_FILES = ("loss_curves.png", "reconstructions.png", "reconstructions.npz", "training.gif")


class Run:
    """A run in `folder`: the `config` that config.json has, its `settings`, and the `rows` of its history.

    `folder` is None before a new run has begun. `frames` are the pictures of training.gif, (height, width) bytes each.
    """

    def __init__(self, settings: Namespace, folder: Path | None = None, config: dict | None = None):
        self.settings = settings
        self.folder = folder
        self.config = config
        self.rows: list[dict] = []
        self.frames: list[np.ndarray] = []
        self.given: dict = {}  # the settings that flags gave

    # Create and find

    @classmethod
    def new(cls, given: dict) -> "Run":
        """Return a new run with the settings that were given; UserError where they make no sense."""
        if given.get("name") is not None:
            runs.check_name(given["name"])
        run = cls(complete(given))
        check(run.settings, given)
        run.given = given
        return run

    @classmethod
    def find(cls, path: str | None) -> "Run":
        """Return the run in `path`; without a path, the one that finished last by its own record, else the shipped."""
        if path is not None and not as_path(path).is_dir():
            raise UserError(f"--checkpoint {path}: no such folder; the runs are in {runs.find_root()}")
        folder = as_path(path) if path is not None else runs.find_finished_last() or runs.SHIPPED
        config = runs.read_config(folder)
        return cls(Namespace(**config["settings"]), folder, config)

    @classmethod
    def resume(cls, path: str, given: dict) -> "Run":
        """Return the run to resume: in `path`, else the newest unfinished one, else the one that finished last.

        Its own settings hold. The flags may name another place of its images and, for a finished run, a larger number
        of epochs, with other importance samples. Any other difference is a UserError.
        """
        if path and not as_path(path).is_dir():
            raise UserError(f"--resume {path}: no such folder; the runs are in {runs.find_root()}")
        folder = as_path(path) if path else runs.find_resumable()
        state = files.read_arrays(folder / "training_state.npz", "start a new run")
        config, rows = (json.loads(state[name].tobytes()) for name in ("config", "history"))
        own = Namespace(**config["settings"])
        end = runs.read_end(folder, own.epochs)
        run = cls(Namespace(**config["settings"]), folder, end or config)
        run.rows, run.frames = rows, list(state["frames"])
        further = FURTHER if end and given.get("epochs", 0) > own.epochs else ()
        for name, value in given.items():
            if value != getattr(own, name) and name not in ("data", "dataset", *further):
                has = f"the run in {shown(folder)} has {getattr(own, name)}"
                raise UserError(f"{flag(name)} {value}: {has}; leave it out, or start a new run")
            setattr(run.settings, name, value)
        if "data" in given or "dataset" in given:
            run.settings.data, run.settings.dataset = given.get("data"), given.get("dataset")
        check(run.settings, {})
        return run

    @property
    def is_complete(self) -> bool:
        """Whether there is nothing left to train."""
        return self.config is not None and bool(self.config["finished"]) and self.settings.epochs <= len(self.rows)

    @property
    def held_out(self) -> str:
        """Which images each epoch is measured on: "val" (validation images, where there are some), else "test"."""
        return "val" if self.config["dataset"]["validation_images"] else "test"

    @property
    def label_names(self) -> list[str] | None:
        """The names of the labels 0, 1, ...; None where numbers are their names."""
        return self.config["dataset"]["label_names"]

    def load_data(self) -> Dataset:
        """Load the images to train on; for a run that is resumed, they must be the same as before."""
        settings = self.settings
        source = load.Source(settings.dataset, settings.data, settings.transpose, settings.image_size, settings.seed)
        dataset = load.load(source) if self.config is None else self._load_same(source)
        if settings.data:
            settings.data = os.path.abspath(as_path(settings.data))  # the run may be restored from other folders
        dataset = hold_out(dataset, settings.validation_split, settings.seed)
        count = len(dataset.train_images)
        if self.config is None:
            fit_defaults(settings, self.given, count)
        if settings.batch_size > count:
            rest = "" if dataset.validation_images is None else f" and {len(dataset.validation_images)} to validate on"
            raise UserError(f"--batch-size {settings.batch_size}: there are only {count} training images{rest}")
        return dataset

    def _load_same(self, source: load.Source) -> Dataset:
        """Load the images that the run began with; UserError where there are others now."""
        began = self.config["dataset"]
        if not source.data and not source.dataset:  # MNIST, or the digits that replaced it
            source = replace(source, dataset=began["name"])
        dataset = load.load(replace(source, image_size=began["image_size"], reading=began["reading"]))
        if dataset.sha256 != began["sha256"]:
            raise UserError(
                f"--resume: {dataset.source} holds other images than the run began with; say with --data where they are"
            )
        return replace(dataset, warning=began["warning"])

    # Train

    @contextmanager
    def begin(self, vae, dataset: Dataset) -> Iterator[None]:
        """Create the folder, or restore the model from it, and lock it. On Ctrl-C, name the command that resumes."""
        earlier, self.config = self.config, _describe(self.settings, vae, dataset)
        if earlier is not None and earlier["backend"] != self.config["backend"]:
            raise UserError(f"{self.folder} began with KERAS_BACKEND={earlier['backend']}; set it to resume")
        parallel.meet()  # or the first process might create the folder too soon for the others
        if not parallel.is_first():
            if earlier is not None:
                self.restore(vae)
            yield
            return
        if self.folder is None:
            self.folder = runs.create_folder(self.settings, dataset.name)
        with runs.lock(self.folder):
            for path in self.folder.glob(".[0-9]*-*"):  # what a killed process had half written
                path.unlink()
            if earlier is not None:
                self.restore(vae)
                print(f"-> Training is resumed after epoch {len(self.rows)} of {self.settings.epochs}.")
            self._save(vae)
            for name in FINAL_FILES:
                (self.folder / name).unlink(missing_ok=True)
            try:
                yield
            except KeyboardInterrupt as stop:
                stop.add_note(f"go on with: python main.py --resume {shlex.quote(shown(self.folder))}")
                raise

    def save_epoch(self, vae, values: list[float], frame: np.ndarray | None) -> None:
        """Save the run after an epoch.

        `values` are the losses on training and on held-out images, the seconds of training, and those since the run
        began. `frame` is the next one of training.gif, or None.
        """
        names = ["epoch", *LOSSES, *(f"{self.held_out}_{name}" for name in LOSSES), "seconds", "elapsed"]
        self.rows.append(dict(zip(names, [len(self.rows) + 1, *values], strict=True)))
        self.frames += [] if frame is None else [frame]
        if parallel.is_first():
            self._save(vae)

    def save_prior(self, prior: sampling.Mixture) -> None:
        """Write prior.npz."""
        files.write_arrays(self.folder / "prior.npz", asdict(prior))

    def save_reconstructions(self, vae, batches) -> None:
        """Write reconstructions.npz: every image of the batches from one posterior sample, as bytes."""
        images = [(255 * vae.reconstruct(*batches[index])).round().astype(np.uint8) for index in range(len(batches))]
        files.write_arrays(self.folder / "reconstructions.npz", {"images": np.concatenate(images)})
        print(f"-> Reconstructions of the training images are saved in {shown(self.folder / 'reconstructions.npz')}")

    def record_end(self, losses: dict[str, float], activity: np.ndarray) -> None:
        """Record the losses on the test images, the variance of each latent mean (D,), and the time of the end."""
        self.config |= {
            "test": {name: round(float(losses[name]), 4) for name in LOSSES},
            "activity": [round(float(variance), 6) for variance in activity],
            "finished": datetime.now(UTC).isoformat(timespec="microseconds"),
        }
        files.write_json(self.folder / "config.json", self.config)

    def restore(self, vae) -> None:
        """Load all weights and the optimizer's averages from the training state."""
        state = files.read_arrays(self.folder / "training_state.npz", "start a new run")
        for index, variable in enumerate(list_variables(vae)):
            variable.assign(state[f"variable_{index:03d}"])

    def _save(self, vae) -> None:
        """Write the training state, and then the files that are made from it."""
        import keras

        self.config |= {"epochs_done": len(self.rows), "finished": None}
        arrays = {f"variable_{i:03d}": keras.ops.convert_to_numpy(value) for i, value in enumerate(list_variables(vae))}
        texts = {"config": self.config, "history": self.rows}
        arrays |= {name: np.frombuffer(json.dumps(text).encode(), np.uint8) for name, text in texts.items()}
        arrays["frames"] = np.array(self.frames, np.uint8)
        files.write_arrays(self.folder / "training_state.npz", arrays)
        files.write_json(self.folder / "config.json", self.config)
        if not self.rows:  # nothing is trained yet
            return
        for half in (vae.encoder, vae.decoder):
            files.save_model(half, self.folder / f"{half.name}.keras")
        if self.settings.prior == "mixture":
            files.write_arrays(self.folder / "prior.npz", vae.prior.to_arrays())
        with files.replacing(self.folder / "history.csv") as path, open(path, "w", newline="") as file:
            writer = csv.DictWriter(file, self.rows[0])
            writer.writeheader()
            writer.writerows(self.rows)

    # Restore

    def load_encoder(self):
        """Load the encoder: images (n, H, W) -> [mean, log_var], each (n, D)."""
        return files.load_model(self.folder / "encoder.keras")

    def load_decoder(self):
        """Load the decoder: latent vectors (n, D) -> pixel probabilities (n, H, W)."""
        return files.load_model(self.folder / "decoder.keras")

    def load_prior(self) -> sampling.Mixture:
        """Load the prior that latent vectors of this run are drawn from."""
        if self.settings.prior == "normal":
            return sampling.make_normal(self.settings.latent_dim)
        path = self.folder / "prior.npz"
        return sampling.read_mixture(files.read_arrays(path, "choose another run"))

    def load_reconstructions(self) -> np.ndarray:
        """Load the reconstructions of the training images (n, H, W), bytes; UserError where the run has none."""
        path = self.folder / "reconstructions.npz"
        return files.read_arrays(path, "only a run with --save-reconstructions has it; draw from the decoder")["images"]


def _describe(settings: Namespace, vae, dataset: Dataset) -> dict:
    """Return the config of a run that begins, or that is resumed."""
    import keras

    backend, validation = keras.backend.backend(), dataset.validation_images
    return {
        "settings": vars(settings),
        "dataset": {name: getattr(dataset, name) for name in ("name", "sha256", "reading", "label_names", "warning")}
        | {
            "image_size": dataset.image_shape,
            "train_images": len(dataset.train_images),
            "validation_images": 0 if validation is None else len(validation),
            "test_images": len(dataset.test_images),
        },
        "backend": backend,
        "versions": {name: sys.modules[name].__version__ for name in ("keras", "numpy", backend)}
        | {"python": platform.python_version()},
        "parameters": sum(part.count_params() for part in (vae.encoder, vae.decoder, vae.prior)),
    }


def list_variables(vae) -> list:
    return [*vae.encoder.weights, *vae.decoder.weights, *vae.prior.weights, *vae.optimizer.variables]
