"""What `fit` is given: the batches of an epoch, whether `fit` sees just these, and the log of the epochs."""

import contextlib
import re
import signal

import keras
import numpy as np
import pytest
from keras import layers, ops

import main
import model
from vae import console, data
from vae.settings import UserError
from vae.training import Batches, EpochLog

COUNT = 23


@pytest.fixture
def images():
    """Bytes; each image is known by its first pixel."""
    images = np.random.default_rng(5).integers(0, 256, (COUNT, 28, 28), dtype=np.uint8)
    images[:, 0, 0] = range(COUNT)
    return images


def epoch_of(batches: Batches) -> np.ndarray:
    return np.concatenate([batches[index][0] for index in range(len(batches))])


def order_of(batches: Batches) -> list[int]:
    return np.rint(255 * epoch_of(batches)[:, 0, 0]).astype(int).tolist()


# Batches


def test_batches_hold_all_images_in_their_order(images):
    batches = Batches(images, 10, seed=0)
    assert [batches[index][0].shape for index in range(len(batches))] == [(10, 28, 28), (10, 28, 28), (3, 28, 28)]
    found = epoch_of(batches)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, images / 255, rtol=1e-6)
    batches.start(epoch=1)
    np.testing.assert_array_equal(epoch_of(batches), found)


def test_floats_stay_as_they_are(images):
    floats = (images / 300).astype(np.float32)
    found = epoch_of(Batches(floats, 10, seed=0))
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, floats)


@pytest.mark.parametrize("batch_size, count", [(1, 23), (22, 2), (23, 1), (100, 1)])
def test_the_number_of_batches(images, batch_size, count):
    assert len(Batches(images, batch_size, seed=0)) == count


def test_each_epoch_visits_every_image_once_and_in_an_order_of_its_own(images):
    batches = Batches(images, 10, seed=4, shuffle=True)
    orders = []
    for epoch in range(3):
        batches.start(epoch)
        orders.append(order_of(batches))
        assert sorted(orders[-1]) == list(range(COUNT))
    assert len({tuple(order) for order in (*orders, range(COUNT))}) == 4


@pytest.mark.parametrize("binarize", [False, True])
def test_batches_are_a_function_of_seed_epoch_and_number(images, binarize):
    def batch(seed, epoch, index, others=()):
        batches = Batches(images, 10, seed, shuffle=True, binarize=binarize)
        batches.start(epoch)
        for other in others:
            batches[other]
        return batches[index][0]

    first = batch(1, 2, 1)
    np.testing.assert_array_equal(first, batch(1, 2, 1, others=(0, 2, 1)))
    assert not any(np.array_equal(first, batch(*keys)) for keys in ((2, 2, 1), (1, 3, 1), (1, 2, 0), (2, 1, 1)))


def test_binary_pixels_are_drawn_afresh_in_each_epoch_and_average_to_the_grey_values(images):
    images = images[:5]
    images[:, 1, :2] = 0, 255
    batches = Batches(images, 2, seed=9, binarize=True)
    epochs = []
    for epoch in range(1000):
        batches.start(epoch)
        epochs.append(epoch_of(batches))
    assert epochs[0].dtype == np.float32
    epochs = np.stack(epochs)
    assert set(np.unique(epochs)) == {0, 1}
    grey = images / 255
    error = (epochs.mean(axis=0) - grey) / np.sqrt(np.maximum(grey * (1 - grey), 1e-9) / 1000)  # in standard errors
    assert np.abs(error).max() < 5 and error.std() == pytest.approx(1, abs=0.1)
    # Neither epochs nor images share their draws.
    middling = np.abs(grey - 0.5) < 0.25
    assert (epochs[0] != epochs[1])[middling].mean() > 0.3
    flat = np.full((4, 28, 28), 128, np.uint8)
    drawn = epoch_of(Batches(flat, 2, seed=9, binarize=True)).reshape(4, -1)
    assert np.abs(np.corrcoef(drawn) - np.eye(4)).max() < 0.2


# What `fit` sees


class Recorder(keras.Model):
    """A model that notes, within the graph that `fit` runs, which image it is given as which."""

    def __init__(self, places: int):
        super().__init__()
        self.seen = self.add_weight(shape=(places,), initializer="zeros", trainable=False)
        self.place = self.add_weight(shape=(), initializer="zeros", dtype="int32", trainable=False)
        self.scale = self.add_weight(shape=(), initializer="ones")
        self.trackers = [keras.metrics.Mean(name) for name in ("general_loss", "reconstruction_loss", "kl_loss")]
        self.noise_keys = []

    @property
    def metrics(self):
        return self.trackers

    def reseed(self, *keys):
        self.noise_keys.append(keys)

    def call(self, images, training=False):
        return self.scale * ops.mean(images, axis=(1, 2))

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        if training:
            ids = 255 * x[:, 0, 0]
            places = self.place + ops.arange(ops.shape(x)[0], dtype="int32")
            self.seen.assign(ops.scatter_update(self.seen, places[:, None], ids))
            self.place.assign(self.place + ops.shape(x)[0])
        for tracker in self.trackers:
            tracker.update_state(y_pred)
        return ops.mean(y_pred)


@pytest.mark.parametrize("steps_per_execution", [1, 2, 20])
def test_fit_sees_the_batches_of_each_epoch_and_no_stale_ones(images, steps_per_execution):
    epochs = 3
    recorder = Recorder(epochs * COUNT)
    recorder.compile(optimizer="sgd", jit_compile=False, steps_per_execution=steps_per_execution)
    batches = Batches(images, 4, seed=6, shuffle=True)
    log = EpochLog(batches, 6, keep=lambda rows: None)
    validation = Batches(images[:7], 5, seed=6)
    recorder.fit(batches, epochs=epochs, validation_data=validation, callbacks=[log], shuffle=False, verbose=0)

    seen = np.rint(recorder.seen.numpy()).astype(int).reshape(epochs, COUNT).tolist()
    expected = []
    for epoch in range(epochs):
        batches.start(epoch)
        expected.append(order_of(batches))
    assert seen == expected
    assert expected[0] != expected[1] != expected[2]
    assert recorder.noise_keys == [(6, epoch) for epoch in range(epochs)]


# The log


@pytest.fixture
def vae():
    """A VAE as small as can be."""
    keras.utils.set_random_seed(2)
    image, z = keras.Input((28, 28)), keras.Input((2,))
    mean, log_var = (layers.Dense(2, name=name)(layers.Flatten()(image)) for name in ("mean", "log_var"))
    logits = layers.Reshape((28, 28), name="logits")(layers.Dense(784)(z))
    vae = model.VAE(keras.Model(image, [mean, log_var]), keras.Model(z, layers.Activation("sigmoid")(logits)))
    vae.compile(optimizer=keras.optimizers.Adam(0.001), run_eagerly=True)
    return vae


def fit(vae, images, test_images, epochs=1, keep=lambda rows: None) -> EpochLog:
    batches = Batches(images, 10, seed=0, shuffle=True)
    log = EpochLog(batches, 0, keep)
    validation = Batches(test_images, 10, seed=0)
    vae.fit(batches, epochs=epochs, validation_data=validation, callbacks=[log], shuffle=False, verbose=0)
    return log


def test_the_log_has_a_row_and_a_line_an_epoch(vae, images, capsys):
    kept = []
    log = fit(vae, images, images[:5], epochs=2, keep=lambda rows: kept.append([row["epoch"] for row in rows]))
    assert kept == [[1], [1, 2]]
    lines = capsys.readouterr().out.splitlines()
    for row, line in zip(log.rows, lines, strict=True):
        assert line == (
            f"|--- Epoch: {row['epoch']}/2 \t---> General loss: {row['general_loss']:.2f} | "
            f"Reconstruction loss: {row['reconstruction_loss']:.2f} | KL-divergence loss: {row['kl_loss']:.2f} | "
            f"Test: {row['test_general_loss']:.2f} | {row['seconds']:.1f} s"
        )
        for prefix in ("", "test_"):
            general, *parts = (row[prefix + name] for name in ("general_loss", "reconstruction_loss", "kl_loss"))
            assert general == pytest.approx(sum(parts), abs=0.001)
        assert 0 < row["seconds"] <= row["elapsed"]
    assert log.rows[0]["elapsed"] < log.rows[1]["elapsed"]


@pytest.mark.parametrize("number, status", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_whose_exception_was_lost_ends_training_at_the_next_step(
    vae, images, tmp_path, monkeypatch, number, status
):
    def keep(vae, folder, config, rows):
        kept.append(len(rows))
        with contextlib.suppress(KeyboardInterrupt):
            signal.raise_signal(number)

    monkeypatch.setattr(main, "keep", keep)
    monkeypatch.setattr(console, "_asked_to_end", None)
    settings = main.complete(main.parse(["--epochs", "3", "--batch-size", "10"]))
    dataset = data.Dataset("x", images, None, images, None, "", "")
    before, kept = {each: signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)}, []
    try:
        with pytest.raises(SystemExit) as end:
            console.run(lambda: main.train(vae, settings, dataset, None, {}, tmp_path, []))
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
    assert (end.value.code, kept) == (status, [1])


def test_the_figures_of_an_epoch_are_over_all_its_images(vae, images, capsys):
    vae.optimizer.learning_rate = 0.0  # so that the model of every batch is the same
    log = fit(vae, images, images[:15])
    for prefix, part in (("", images), ("test_", images[:15])):
        mean, log_var = map(ops.convert_to_numpy, vae.encoder((part / 255).astype(np.float32)))
        kl = np.sum(mean**2 + np.exp(log_var) - log_var - 1, axis=1).mean() / 2
        assert log.rows[0][prefix + "kl_loss"] == pytest.approx(kl, abs=2e-4)


def test_epoch_numbers_are_aligned(vae, images, capsys):
    log = fit(vae, images, images[:5])
    log.set_params({"epochs": 100})
    assert log._line(log.rows[0]).startswith("|--- Epoch:   1/100 \t---> General loss: ")


@pytest.mark.parametrize("steps_per_execution", [1, 2, 7])
def test_the_step_that_is_named_is_one_that_exists(vae, images, steps_per_execution):
    vae.compile(optimizer="adam", run_eagerly=False, jit_compile=False, steps_per_execution=steps_per_execution)
    harmed = np.where(np.arange(COUNT)[:, None, None] >= 0, np.nan, images).astype(np.float32)
    with pytest.raises(UserError, match=f"epoch 1, by step {min(3, steps_per_execution)} of 3"):
        fit(vae, harmed, images[:5])


def test_weights_that_are_not_finite_end_the_run_though_the_losses_are(vae, images, capsys, monkeypatch):
    bad = keras.Variable([1, np.inf], trainable=False)
    monkeypatch.setattr(model.VAE, "weights", property(lambda vae: [bad]))
    kept = []
    with pytest.raises(UserError, match=r"the weights.* stopped being finite in epoch 1, by its end; nothing was kept"):
        fit(vae, images, images[:5], keep=kept.append)
    assert kept == []


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("where", ["training", "test"])
def test_an_epoch_whose_loss_is_not_finite_is_not_kept(vae, images, capsys, where, bad):
    good = (images / 255).astype(np.float32)
    harmed = np.where(np.arange(COUNT)[:, None, None] == 3, bad, good).astype(np.float32)
    kept = []
    with pytest.raises(UserError) as caught:
        fit(vae, *((harmed, good) if where == "training" else (good, harmed)), keep=kept.append)
    assert kept == [] and capsys.readouterr().out == ""
    message = str(caught.value)
    assert "epoch 1" in message and "nothing was kept" in message and "--learning-rate" in message
    assert "\n" not in message
    if where == "training":
        assert re.search(r"step \d of 3", message)


def test_the_epoch_before_the_bad_one_is_kept(vae, images, capsys):
    def harm(rows):
        kept.append(len(rows))
        vae.decoder.trainable_variables[0].assign(np.full((2, 784), np.nan, np.float32))

    kept = []
    with pytest.raises(UserError, match=r"epoch 2.*the epoch before it is kept"):
        fit(vae, images, images[:5], epochs=3, keep=harm)
    assert kept == [1]
