"""What `fit` calls in an epoch: the log, the saving, the frames, and the stop at a loss that is not finite."""

import re
import sys
from types import SimpleNamespace

import keras
import numpy as np
import pytest
from keras import layers, ops
from PIL import Image

import main
import model
from vae import callbacks, plots, terminal
from vae.callbacks import LogAndSave, Reseed, StopAtNonFinite
from vae.run import LOSSES, Run
from vae.settings import complete
from vae.terminal import UserError

COUNT = 23
SIDES = (4, 4)


@pytest.fixture
def run(tmp_path) -> Run:
    """A run whose epochs are saved in no file."""
    run = Run(complete({"latent_dim": 2}), tmp_path, {"dataset": {"validation_images": 0}})
    run._save = lambda vae: None
    return run


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


def fit(vae, run: Run, images, test_images, epochs: int = 1) -> None:
    run.settings.epochs, run.settings.batch_size = epochs, 10
    main.train(vae, SimpleNamespace(train_images=images, test_images=test_images, validation_images=None), run)


def test_the_order_of_the_images_and_all_noise_are_functions_of_seed_and_epoch():
    calls = []
    reseed = Reseed(SimpleNamespace(start=calls.append), 7)
    reseed.set_model(SimpleNamespace(reseed=lambda *keys: calls.append(keys)))
    reseed.on_epoch_begin(2)
    reseed.on_test_begin()
    assert calls == [2, (7, 2), (7, 3, 1)]


def test_every_epoch_is_saved_and_then_has_a_line_of_means_over_all_images(vae, run, images, capsys):
    vae.optimizer.learning_rate = 0.0  # so that the model of every batch is the same
    printed = []
    run._save = lambda vae: printed.append(capsys.readouterr().out)
    fit(vae, run, images, images[:15], epochs=2)
    printed.append(capsys.readouterr().out)
    assert [row["epoch"] for row in run.rows] == [1, 2] and printed[0] == "-> Training is started.\n"
    for row, line in zip(run.rows, printed[1:], strict=True):
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


def test_times_and_progress_of_a_resumed_run(vae, run, monkeypatch, capsys):
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(callbacks, "time", SimpleNamespace(perf_counter=lambda: clock.now))
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    run.config["dataset"]["validation_images"] = 300
    run.rows = [{"elapsed": 10.0}, {"elapsed": 20.0}]
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
    assert list(run.rows[-1].values()) == [3, 3.0, 2.0, 1.0, 6.0001, 4.0, 2.0, 10.0, 38.0]
    assert re.match(r"\|--- Epoch:   3/100 \t---> General.* \| Validation: 6.00 \| 10.0 s\n", capsys.readouterr().out)


def test_a_frame_has_the_same_noise_after_every_epoch(vae, run, images, monkeypatch):
    monkeypatch.setattr(plots, "training_frame", lambda *parts: parts)
    vae.prior = model.MixturePrior(4, 2)
    log = LogAndSave(run, None, images[:3])
    log.set_model(vae)
    log.set_params({"epochs": 200})
    assert log._draw_frame() is None  # after every second epoch, up to the last one
    log.set_params({"epochs": 199})
    draws, originals, reconstructions = log._draw_frame()
    assert draws.shape == (25, *SIDES) and originals is log._shown and reconstructions.shape == (3, *SIDES)
    assert len(np.unique(draws.round(4), axis=0)) == 25
    for one, other in zip((draws, reconstructions), log._draw_frame()[::2], strict=True):
        np.testing.assert_array_equal(one, other)
    vae.prior.means.assign(vae.prior.means + 1)  # each draw follows its Gaussian
    moved = log._draw_frame()
    assert not np.isclose(moved[0], draws).any() and np.array_equal(moved[2], reconstructions)


@pytest.mark.parametrize("where, bad", [("training", np.nan), ("test", np.inf)])
def test_an_epoch_whose_loss_is_not_finite_is_not_saved(vae, run, images, where, bad):
    harmed = np.where(np.arange(COUNT)[:, None, None] == 3, bad, images).astype(np.float32)
    when = r"by step \d of 3" if where == "training" else "by its end"
    message = rf"^the loss stopped .* in epoch 1, {when}; nothing was saved; try a lower --learning-rate$"
    with pytest.raises(UserError, match=message):
        fit(vae, run, *((harmed, images) if where == "training" else (images, harmed)))
    assert run.rows == []


def test_the_epoch_before_the_bad_one_is_saved_and_a_large_beta_is_named(vae, run, images):
    run.settings.beta = 2.0
    weight = vae.decoder.trainable_variables[0]
    run._save = lambda vae: weight.assign(np.full(weight.shape, np.nan, np.float32))
    with pytest.raises(UserError, match=r"epoch 2.*the epoch before it is saved; try a smaller --beta"):
        fit(vae, run, images, images[:5], epochs=3)
    assert [row["epoch"] for row in run.rows] == [1]


def test_what_is_not_finite_is_named_though_the_losses_are(vae, run):
    vae.optimizer.build(vae.trainable_variables)
    stop = StopAtNonFinite(run)
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


def test_a_signal_whose_exception_was_lost_ends_training_at_the_next_step(vae, run, images, monkeypatch):
    run._save = lambda vae: monkeypatch.setattr(terminal, "_signal_seen", terminal.Terminated)
    with pytest.raises(terminal.Terminated):
        fit(vae, run, images, images[:5], epochs=3)
    assert len(run.rows) == 1
