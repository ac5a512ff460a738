"""What `fit` calls in an epoch: the log, the saving, the frames, and the stop at a loss that is not finite."""

import re
import tempfile
from pathlib import Path
from types import SimpleNamespace

import keras
import numpy as np
import pytest
from conftest import HOME
from keras import layers, ops
from PIL import Image

import model
from vae import callbacks, plots, terminal
from vae.callbacks import LogAndSave, Reseed, StopAtNonFinite
from vae.data.batches import Batches
from vae.run import LOSSES, Run
from vae.terminal import UserError

COUNT = 23
SIDES = (4, 4)


class StubRun(Run):
    """A run that saves nothing but its rows, and calls `saved` after each."""

    def __init__(self, rows: int = 0, validation: int = 0, beta: float = 1.0, saved=lambda: None):
        settings = SimpleNamespace(seed=0, beta=beta, latent_dim=2, tensorboard=False)
        super().__init__(settings, config={"dataset": {"validation_images": validation}})
        self.saved, self.folder = saved, Path(tempfile.mkdtemp(dir=HOME))
        for epoch in range(1, rows + 1):
            self.rows.append(self.make_row([50.0 - epoch] * 6, 1.0, 10.0 * epoch))

    def save_epoch(self, vae, row, frame):
        self.rows.append(row)
        self.saved()


@pytest.fixture
def images():
    return np.random.default_rng(5).random((COUNT, *SIDES), np.float32)


@pytest.fixture
def vae():
    """A VAE as small as can be."""
    keras.utils.set_random_seed(2)
    image, z = keras.Input(SIDES), keras.Input((2,))
    encoder = model.end_encoder(image, layers.Flatten()(image), 2)
    vae = model.VAE((encoder, model.end_decoder(z, layers.Dense(16)(z), SIDES)), model.NormalPrior())
    vae.compile(optimizer=keras.optimizers.Adam(0.001), run_eagerly=True)
    return vae


def fit(vae, images, test_images, run: Run, epochs: int = 1) -> list[dict]:
    """Fit as main.py does, and return the rows."""
    batches = Batches(images, 10, seed=0, shuffle=True)
    vae.fit(
        batches,
        epochs=epochs,
        initial_epoch=len(run.rows),
        validation_data=Batches(test_images, 10, seed=0),
        callbacks=callbacks.make(run, batches, images[:3]),
        shuffle=False,
        verbose=0,
    )
    return run.rows


def test_the_order_of_the_images_and_all_noise_are_functions_of_seed_and_epoch():
    calls = []
    reseed = Reseed(SimpleNamespace(start=calls.append), 7)
    reseed.set_model(SimpleNamespace(reseed=lambda *keys: calls.append(keys)))
    reseed.on_epoch_begin(2)
    reseed.on_test_begin()
    assert calls == [2, (7, 2), (7, 3, 1)]


# The log


def test_every_epoch_is_saved_and_then_has_a_line_of_means_over_all_images(vae, images, capsys):
    vae.optimizer.learning_rate = 0.0  # so that the model of every batch is the same
    printed = []
    run = StubRun(saved=lambda: printed.append(capsys.readouterr().out))
    rows = fit(vae, images, images[:15], run, epochs=2)
    printed.append(capsys.readouterr().out)
    assert [row["epoch"] for row in rows] == [1, 2] and printed[0] == ""
    for row, line in zip(rows, printed[1:], strict=True):
        assert line == (
            f"|--- Epoch: {row['epoch']}/2 \t---> General loss: {row['general_loss']:.2f} | "
            f"Reconstruction loss: {row['reconstruction_loss']:.2f} | KL-divergence loss: {row['kl_loss']:.2f} | "
            f"Test: {row['test_general_loss']:.2f} | {row['seconds']:.1f} s\n"
        )
        for prefix, part in (("", images), ("test_", images[:15])):
            general, reconstruction, kl = (row[prefix + name] for name in LOSSES)
            assert general == pytest.approx(reconstruction + kl, abs=2e-4)
            exact = np.mean(ops.convert_to_numpy(vae.prior.kl_loss(*vae.encoder(part), None)))
            assert kl == pytest.approx(exact, abs=1e-4)
    with Image.open(run.folder / "training_images.png") as picture:  # the first batch, each pixel thrice
        assert picture.size == (114, 16)


def test_times_and_progress_of_a_resumed_run(vae, monkeypatch, capsys):
    class Bar(callbacks.tqdm):
        def __init__(self, **options):
            super().__init__(**options | {"disable": False, "file": SimpleNamespace(write=len, flush=str)})

    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(callbacks, "time", SimpleNamespace(perf_counter=lambda: clock.now))
    monkeypatch.setattr(callbacks, "tqdm", Bar)
    run = StubRun(rows=2, validation=300)  # 20 s so far
    log = LogAndSave(run, None, np.zeros((3, *SIDES), np.float32))
    log.set_params({"steps": 3, "epochs": 100})
    log.set_model(vae)
    losses = dict(zip(LOSSES, (3.00004, 2.0, 1.0), strict=True))
    log.on_train_begin()
    assert (log._bar.total, log._bar.n, list(run.folder.iterdir())) == (300, 6, [])
    clock.now += 1
    log.on_epoch_begin(2)
    for last_step, done in ((1, 8), (3, 9)):  # two steps a call: Keras counts the fourth, which does not exist
        clock.now += 5
        log.on_train_batch_end(last_step, losses)
        assert log._bar.n == done
    assert str(log._bar).startswith("Epoch 3/100: ") and "general=3.00, reconstruction=2.00, kl=1.00" in str(log._bar)
    clock.now += 7  # the images that are held out
    log.on_epoch_end(2, losses | {f"val_{name}": 2 * value for name, value in losses.items()})
    log.on_train_end()
    names = ["epoch", *LOSSES, *(f"val_{name}" for name in LOSSES), "seconds", "elapsed"]
    assert run.rows[-1] == dict(zip(names, (3, 3.0, 2.0, 1.0, 6.0001, 4.0, 2.0, 10.0, 38.0), strict=True))
    assert re.match(r"\|--- Epoch:   3/100 \t---> General.* \| Validation: 6.00 \| 10.0 s\n", capsys.readouterr().out)


def test_a_frame_has_the_same_noise_after_every_epoch(vae, images, monkeypatch):
    monkeypatch.setattr(plots, "training_frame", lambda *parts: parts)
    vae.prior = model.MixturePrior(4, 2)
    log = LogAndSave(StubRun(), None, images[:3])
    log.set_model(vae)
    draws, originals, reconstructions = log._draw_frame()
    assert draws.shape == (25, *SIDES) and originals is log._shown and reconstructions.shape == (3, *SIDES)
    assert len(np.unique(draws.round(4), axis=0)) == 25
    for one, other in zip((draws, reconstructions), log._draw_frame()[::2], strict=True):
        np.testing.assert_array_equal(one, other)
    vae.prior.means.assign(vae.prior.means + 1)  # each draw follows its Gaussian
    moved = log._draw_frame()
    assert not np.isclose(moved[0], draws).any() and np.array_equal(moved[2], reconstructions)


# The stop


@pytest.mark.parametrize("where, bad", [("training", np.nan), ("test", np.inf)])
def test_an_epoch_whose_loss_is_not_finite_is_not_saved(vae, images, capsys, where, bad):
    harmed = np.where(np.arange(COUNT)[:, None, None] == 3, bad, images).astype(np.float32)
    run = StubRun()
    when = r"by step \d of 3" if where == "training" else "by its end"
    message = rf"^the loss stopped .* in epoch 1, {when}; nothing was saved; try a lower --learning-rate$"
    with pytest.raises(UserError, match=message):
        fit(vae, *((harmed, images) if where == "training" else (images, harmed)), run)
    assert run.rows == [] and capsys.readouterr().out == ""


def test_the_epoch_before_the_bad_one_is_saved_and_a_large_beta_is_named(vae, images):
    weight = vae.decoder.trainable_variables[0]
    run = StubRun(beta=2.0, saved=lambda: weight.assign(np.full(weight.shape, np.nan, np.float32)))
    with pytest.raises(UserError, match=r"epoch 2.*the epoch before it is saved; try a smaller --beta"):
        fit(vae, images, images[:5], run, epochs=3)
    assert [row["epoch"] for row in run.rows] == [1]


def test_what_is_not_finite_is_named_though_the_losses_are(vae):
    vae.optimizer.build(vae.trainable_variables)
    stop = StopAtNonFinite(StubRun())
    stop.set_model(vae)
    stop.on_epoch_end(0, dict.fromkeys(LOSSES, 1.0))
    for variable in (vae.weights[-1], vae.optimizer.variables[-1]):
        before = variable.numpy()
        variable.assign(np.full(variable.shape, np.inf, np.float32))
        with pytest.raises(UserError, match=r"the weights.* in epoch 1, by its end; nothing was saved"):
            stop.on_epoch_end(0, dict.fromkeys(LOSSES, 1.0))
        variable.assign(before)
    stop.set_params({"steps": 3, "epochs": 1})
    for last_step, named in ((0, 1), (1, 2), (6, 3)):  # Keras counts the steps of whole calls
        with pytest.raises(UserError, match=f"by step {named} of 3"):
            stop.on_train_batch_end(last_step, {"kl_loss": np.nan})


def test_a_signal_whose_exception_was_lost_ends_training_at_the_next_step(vae, images, monkeypatch):
    run = StubRun(saved=lambda: monkeypatch.setattr(terminal, "_signal_seen", terminal.Terminated))
    with pytest.raises(terminal.Terminated):
        fit(vae, images, images[:5], run, epochs=3)
    assert len(run.rows) == 1
