"""What `fit` is given: the batches of an epoch, the callback that logs, watches and keeps it, and where it stood."""

import json
import math
import sys
import time
from collections.abc import Callable

import keras
import numpy as np
from tqdm import tqdm

from vae.settings import UserError

LOSSES = ("general_loss", "reconstruction_loss", "kl_loss")


def judged_on(settings: dict) -> str:
    """What the losses after an epoch are called by: "val_" where a validation split was asked for, else "test_"."""
    return "val_" if settings["validation_split"] else "test_"


def fields(judged_on: str) -> list[str]:
    """What a row of history.csv holds, where each epoch is `judged_on` "val_" or "test_" images."""
    return ["epoch", *LOSSES, *(judged_on + name for name in LOSSES), "seconds", "elapsed"]


class Batches(keras.utils.PyDataset):
    """Images (n, 28, 28), bytes or floats in [0, 1], as float32 batches (batch, 28, 28) in [0, 1].

    What a batch holds is a function of (seed, epoch, its number) alone: the order of the images where `shuffle` is on,
    and the binary pixels where `binarize` is, each 1 with the probability that its grey value gives (Salakhutdinov &
    Murray, 2008). Images stay as they came, bytes mostly, until their batch is asked for.
    """

    def __init__(
        self, images: np.ndarray, batch_size: int, seed: int, *, shuffle: bool = False, binarize: bool = False
    ):
        # With two workers, Keras queues the batches itself. With one it leaves that to tf.data, whose self-tuning
        # thread (TensorFlow 2.21) can miss that an epoch is over, and the next one begins some seconds late. On other
        # backends Keras (3.15) would queue the first batches before `start` has said which epoch they are of.
        super().__init__(workers=2 if keras.backend.backend() == "tensorflow" else 1)
        self._images = images
        self._batch_size = batch_size
        self._seed = seed
        self._shuffle = shuffle
        self._binarize = binarize
        self.start(epoch=0)

    def start(self, epoch: int) -> None:
        """Turn to the batches of this epoch."""
        self._epoch = epoch
        count = len(self._images)
        self._order = (
            np.random.default_rng([self._seed, epoch]).permutation(count) if self._shuffle else np.arange(count)
        )

    def __len__(self) -> int:
        return math.ceil(len(self._images) / self._batch_size)

    def __getitem__(self, index: int) -> tuple[np.ndarray]:
        batch = self._images[self._order[index * self._batch_size : (index + 1) * self._batch_size]]
        batch = batch.astype(np.float32) / 255 if batch.dtype == np.uint8 else batch
        if self._binarize:
            draw = np.random.default_rng([self._seed, self._epoch, 1 + index]).random(batch.shape, np.float32)
            batch = (draw < batch).astype(np.float32)
        return (batch,)


class Adam(keras.optimizers.Adam):
    """Keras's Adam (Kingma & Ba, 2015), in one pass over the weights where the backend has an operation for that."""

    def update_step(self, gradient, variable, learning_rate):
        if keras.backend.backend() != "tensorflow":
            return super().update_step(gradient, variable, learning_rate)
        import tensorflow

        index = self._get_variable_index(variable)
        step = keras.ops.cast(self.iterations + 1, "float32")
        tensorflow.raw_ops.ResourceApplyAdam(
            var=variable.handle,
            m=self._momentums[index].value.handle,
            v=self._velocities[index].value.handle,
            beta1_power=keras.ops.power(self.beta_1, step),
            beta2_power=keras.ops.power(self.beta_2, step),
            lr=learning_rate,
            beta1=self.beta_1,
            beta2=self.beta_2,
            epsilon=self.epsilon,
            grad=gradient,
        )


def variables(vae: keras.Model) -> list:
    """All that training changes: the weights of both halves, and the optimizer's own.

    All noise and every order is a function of (seed, epoch), so there is no random state beside them.
    """
    return [*vae.encoder.weights, *vae.decoder.weights, *vae.optimizer.variables]


def state(vae: keras.Model, rows: list[dict], run: str) -> dict[str, np.ndarray]:
    """Return as plain arrays where the run of that name stands after the epochs of these rows."""
    arrays = {f"variable_{index:03d}": keras.ops.convert_to_numpy(v) for index, v in enumerate(variables(vae))}
    notes = {"history": rows, "run": run}
    return arrays | {name: np.frombuffer(json.dumps(note).encode(), np.uint8) for name, note in notes.items()}


def restore(vae: keras.Model, arrays: dict[str, np.ndarray], run: str, judged_on: str = "test_") -> list[dict]:
    """Let training stand where `state` found it, and return the rows of the epochs; UserError where it does not fit."""
    own = variables(vae)
    try:
        values = [arrays[f"variable_{index:03d}"] for index in range(len(own))]
        rows, of_run = (json.loads(arrays[name].astype(np.uint8).tobytes()) for name in ("history", "run"))
        if (
            of_run != run
            or len(arrays) != len(own) + 2
            or [row["epoch"] for row in rows] != list(range(1, len(rows) + 1))
        ):
            raise ValueError("of another network or with another history")
        if not all(list(row) == fields(judged_on) and all(map(math.isfinite, row.values())) for row in rows):
            raise ValueError("with another history")
        for variable, value in zip(own, values, strict=True):
            if (value.shape, value.dtype) != (tuple(variable.shape), variable.dtype) or not np.isfinite(value).all():
                raise ValueError("of other shapes or types")
    except (KeyError, ValueError, TypeError, AttributeError, RecursionError, OverflowError) as error:
        raise UserError("training_state.npz is not the state of this run; start a new one") from error
    for variable, value in zip(own, values, strict=True):
        variable.assign(value)
    return rows


class EpochLog(keras.callbacks.Callback):
    """A progress bar on a terminal, a line an epoch, and a row of `history.csv`, which `keep(rows)` is given to save.

    `rows` are those of the epochs before, where training goes on. Raises UserError as soon as a loss or a weight is not
    finite, before anything of that epoch is kept.
    """

    def __init__(
        self,
        batches: Batches,
        seed: int,
        keep: Callable[[list[dict]], None],
        rows: list[dict] = (),
        judged_on: str = "test_",
    ):
        super().__init__()
        self.rows = list(rows)
        self._batches = batches
        self._seed = seed
        self._keep = keep
        self._judged_on = judged_on

    def on_train_begin(self, logs=None):
        self._began = time.perf_counter() - (self.rows[-1]["elapsed"] if self.rows else 0)
        steps = {"total": len(self._batches) * self.params["epochs"], "initial": len(self._batches) * len(self.rows)}
        self._bar = tqdm(**steps, unit=" steps", leave=False, disable=None, dynamic_ncols=True)

    def on_epoch_begin(self, epoch, logs=None):
        self._epoch = epoch
        self._batches.start(epoch)
        self.model.reseed(self._seed, epoch)
        self._bar.set_description(f"Epoch {epoch + 1}/{self.params['epochs']}")
        self._epoch_began = self._steps_ended = time.perf_counter()

    def on_train_batch_end(self, batch, logs=None):
        self._steps_ended = time.perf_counter()
        done = min(batch + 1, len(self._batches))  # Keras counts whole executions, the last one's missing steps too
        self._check_finite(logs, f"step {done} of {len(self._batches)}")
        self._bar.set_postfix({name.removesuffix("_loss"): f"{logs[name]:.2f}" for name in LOSSES}, refresh=False)
        self._bar.update(self._epoch * len(self._batches) + done - self._bar.n)

    def on_epoch_end(self, epoch, logs=None):
        self._check_finite(logs, "its end")
        kept = (*self.model.weights, *self.model.optimizer.variables)
        if not all(np.isfinite(keras.ops.convert_to_numpy(variable)).all() for variable in kept):
            self._stop("the weights, or the optimizer's averages,", "its end")
        losses = [round(float(logs[prefix + name]), 4) for prefix in ("", "val_") for name in LOSSES]
        seconds = round(self._steps_ended - self._epoch_began, 3)
        elapsed = round(time.perf_counter() - self._began, 3)
        row = dict(zip(fields(self._judged_on), [epoch + 1, *losses, seconds, elapsed], strict=True))
        self.rows.append(row)
        self._keep(self.rows)
        tqdm.write(self._line(row))
        sys.stdout.flush()

    def on_train_end(self, logs=None):
        self._bar.close()

    def _line(self, row: dict) -> str:
        epochs = self.params["epochs"]
        who = {"val_": "Validation", "test_": "Test"}[self._judged_on]
        judged = row[self._judged_on + "general_loss"]
        return (
            f"|--- Epoch: {row['epoch']:>{len(str(epochs))}}/{epochs} \t---> "
            f"General loss: {row['general_loss']:.2f} | Reconstruction loss: {row['reconstruction_loss']:.2f} | "
            f"KL-divergence loss: {row['kl_loss']:.2f} | {who}: {judged:.2f} | {row['seconds']:.1f} s"
        )

    def _check_finite(self, logs: dict, where: str) -> None:
        if not all(math.isfinite(value) for value in logs.values()):
            self._stop("the loss", where)

    def _stop(self, what: str, where: str) -> None:
        self._bar.close()
        raise UserError(
            f"{what} stopped being finite in epoch {self._epoch + 1}, by {where}; "
            f"{'the epoch before it is kept' if self.rows else 'nothing was kept'}; try a lower --learning-rate"
        )
