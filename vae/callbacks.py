"""What `fit` calls in an epoch: reseeding, the check for losses that are not finite, the log and the saving."""

import math
import sys
import time

import keras
import numpy as np
from tqdm import tqdm

from model import NormalPrior
from vae import parallel, plots, sampling
from vae.data.batches import Batches
from vae.run import LOSSES, Run
from vae.terminal import UserError, raise_lost_signal

DRAWS = 25  # in a frame of training.gif
MOST_FRAMES = 100  # of it, as all of them are saved after every epoch


def make(run: Run, batches: Batches, shown: np.ndarray) -> list[keras.callbacks.Callback]:
    """Return all callbacks of a run that trains on these batches. `shown` are images (10, H, W) of training.gif."""
    callbacks = [Reseed(batches, run.settings.seed), StopAtNonFinite(run), LogAndSave(run, batches, shown)]
    if run.settings.tensorboard and parallel.is_first():
        callbacks.append(keras.callbacks.TensorBoard(str(run.folder / "tensorboard")))
    return callbacks


class Reseed(keras.callbacks.Callback):
    """Make the order of the images and all noise of an epoch functions of (seed, epoch)."""

    def __init__(self, batches: Batches, seed: int):
        super().__init__()
        self._batches = batches
        self._seed = seed

    def on_epoch_begin(self, epoch, logs=None):
        self._batches.start(epoch)
        self._epoch = epoch
        self.model.reseed(self._seed, epoch)

    def on_test_begin(self, logs=None):
        self.model.reseed(self._seed, self._epoch + 1, 1)  # 1: the test pass


class StopAtNonFinite(keras.callbacks.Callback):
    """Raise UserError when a loss or weight is not finite, before it is saved; raise signals that were lost."""

    def __init__(self, run: Run):
        super().__init__()
        self._run = run

    def on_train_batch_end(self, batch, logs=None):
        raise_lost_signal()
        steps = self.params["steps"]
        self._check(list(logs.values()), "the loss", f"step {min(batch + 1, steps)} of {steps}")

    def on_epoch_end(self, epoch, logs=None):
        self._check(list(logs.values()), "the loss", "its end")
        for variable in (*self.model.weights, *self.model.optimizer.variables):
            self._check(keras.ops.convert_to_numpy(variable), "the weights, or the optimizer's averages,", "its end")

    def _check(self, values, what: str, where: str) -> None:
        if not np.isfinite(values).all():
            done = len(self._run.rows)
            saved = "the epoch before it is saved" if done else "nothing was saved"
            remedy = "a smaller --beta" if self._run.settings.beta > 1 else "a lower --learning-rate"
            raise UserError(f"{what} stopped being finite in epoch {done + 1}, by {where}; {saved}; try {remedy}")


class LogAndSave(keras.callbacks.Callback):
    """Show a progress bar on a terminal; after each epoch save the run, then print a line."""

    def __init__(self, run: Run, batches: Batches, shown: np.ndarray):
        super().__init__()
        self._run = run
        self._batches = batches
        self._shown = shown

    def on_train_begin(self, logs=None):
        rows, steps = self._run.rows, self.params["steps"]
        self._began = time.perf_counter() - (rows[-1]["elapsed"] if rows else 0)
        if not rows and parallel.is_first():  # what the network learns from
            grid = plots.tile(self._batches[0][0][:100], 10)
            plots.write_picture(grid, self._run.folder / "training_images.png")
        total = {"total": steps * self.params["epochs"], "initial": steps * len(rows)}
        self._bar = tqdm(**total, unit=" steps", leave=False, disable=None, dynamic_ncols=True)

    def on_epoch_begin(self, epoch, logs=None):
        self._bar.set_description(f"Epoch {epoch + 1}/{self.params['epochs']}")
        self._epoch_began = self._steps_ended = time.perf_counter()

    def on_train_batch_end(self, batch, logs=None):
        self._steps_ended = time.perf_counter()
        steps = self.params["steps"]
        done = min(batch + 1, steps)  # Keras counts whole calls; the last call may have fewer steps
        self._bar.set_postfix({name.removesuffix("_loss"): f"{logs[name]:.2f}" for name in LOSSES}, refresh=False)
        self._bar.update(len(self._run.rows) * steps + done - self._bar.n)

    def on_epoch_end(self, epoch, logs=None):
        losses = [round(float(logs[prefix + name]), 4) for prefix in ("", "val_") for name in LOSSES]
        seconds = self._steps_ended - self._epoch_began  # of the training steps, without the test pass
        elapsed = time.perf_counter() - self._began
        self._run.save_epoch(self.model, [*losses, round(seconds, 3), round(elapsed, 3)], self._draw_frame())
        tqdm.write(self._write_line(self._run.rows[-1]))
        sys.stdout.flush()

    def on_train_end(self, logs=None):
        self._bar.close()

    def _draw_frame(self) -> np.ndarray | None:
        """Draw a frame of training.gif: always the same 25 draws, and reconstructions of the same images.

        On several devices, and after most epochs of a long run, there is no frame.
        """
        left = self.params["epochs"] - len(self._run.rows) - 1
        if parallel.find_distribution() or left % math.ceil(self.params["epochs"] / MOST_FRAMES):
            return None
        layer, latent_dim = self.model.prior, self._run.settings.latent_dim
        is_normal = isinstance(layer, NormalPrior)
        prior = sampling.make_normal(latent_dim) if is_normal else sampling.read_mixture(layer.to_arrays())
        z = prior.draw(np.random.default_rng(self._run.settings.seed), DRAWS)
        rng = np.random.default_rng(self._run.settings.seed)
        codes = sampling.draw_codes(*self.model.encoder.predict_on_batch(self._shown), rng)
        draws, reconstructions = (self.model.decoder.predict_on_batch(vectors) for vectors in (z, codes))
        return plots.training_frame(draws, self._shown, reconstructions)

    def _write_line(self, row: dict) -> str:
        epochs = self.params["epochs"]
        held_out = self._run.held_out
        who, loss = {"val": "Validation", "test": "Test"}[held_out], row[f"{held_out}_general_loss"]
        return (
            f"|--- Epoch: {row['epoch']:>{len(str(epochs))}}/{epochs} \t---> "
            f"General loss: {row['general_loss']:.2f} | Reconstruction loss: {row['reconstruction_loss']:.2f} | "
            f"KL-divergence loss: {row['kl_loss']:.2f} | {who}: {loss:.2f} | {row['seconds']:.1f} s"
        )
