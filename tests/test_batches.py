"""The batches of an epoch, and whether `fit` sees just these."""

from types import SimpleNamespace

import keras
import numpy as np
import pytest
from conftest import refuse
from keras import ops

from vae.callbacks import Reseed, StopAtNonFinite
from vae.data.batches import Batches

COUNT = 23


@pytest.fixture
def images():
    """Bytes; each image is known by its first pixel."""
    images = np.random.default_rng(5).integers(0, 256, (COUNT, 5, 4), dtype=np.uint8)
    images[:, 0, 0] = range(COUNT)
    return images


def epoch_of(batches: Batches) -> np.ndarray:
    return np.concatenate([batches[index][0] for index in range(len(batches))])


def order_of(batches: Batches) -> list[int]:
    return np.rint(255 * epoch_of(batches)[:, 0, 0]).astype(int).tolist()


@pytest.mark.parametrize("batch_size, sizes", [(10, [8, 8, 7]), (1, [1] * 23), (22, [12, 11]), (99, [23])])
def test_all_images_in_their_order_in_batches_of_even_size(images, batch_size, sizes):
    batches = Batches(images, batch_size, seed=0)
    assert [len(batches[index][0]) for index in range(len(batches))] == sizes
    found = epoch_of(batches)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, images / 255, rtol=1e-6)
    np.testing.assert_array_equal(epoch_of(Batches(found, batch_size, seed=0)), found)  # floats stay as they are


@pytest.mark.parametrize("binarize", [False, True])
def test_a_batch_is_a_function_of_seed_epoch_and_number(images, binarize):
    def batch(seed, epoch, index, others=()):
        batches = Batches(images, 10, seed, shuffle=True, binarize=binarize)
        batches.start(epoch)
        for other in others:
            batches[other]
        return batches[index][0]

    first = batch(1, 2, 1)
    assert sorted(order_of(Batches(images, 10, 1, shuffle=True))) == list(range(COUNT))
    np.testing.assert_array_equal(first, batch(1, 2, 1, others=(0, 2, 1)))
    assert not any(np.array_equal(first, batch(*keys)) for keys in ((2, 2, 1), (1, 3, 1), (1, 2, 0), (2, 1, 1)))


def test_binary_pixels_are_drawn_afresh_in_each_epoch_and_average_to_the_grey_values(images):
    images = images[:5]
    images[:, 1, :2] = 0, 255
    batches = Batches(images, 2, seed=9, binarize=True)
    epochs = np.empty((1000, *images.shape), np.float32)
    for epoch in range(1000):
        batches.start(epoch)
        epochs[epoch] = epoch_of(batches)
    assert set(np.unique(epochs)) == {0, 1}
    grey = images / 255
    error = (epochs.mean(axis=0) - grey) / np.sqrt(np.maximum(grey * (1 - grey), 1e-9) / 1000)  # in standard errors
    assert np.abs(error).max() < 5 and error.std() == pytest.approx(1, abs=0.2)
    # Neither images nor batches share their draws.
    drawn = epoch_of(Batches(np.full((4, 28, 28), 128, np.uint8), 2, seed=9, binarize=True)).reshape(4, -1)
    assert np.abs(np.corrcoef(drawn) - np.eye(4)).max() < 0.2


class Recorder(keras.Model):
    """A model that notes, within the graph that `fit` runs, which images it is given in which order."""

    def __init__(self, places: int):
        super().__init__()
        self.seen = self.add_weight(shape=(places,), initializer="zeros", trainable=False)
        self.place = self.add_weight(shape=(), initializer="zeros", dtype="int32", trainable=False)
        self.scale = self.add_weight(shape=(), initializer="ones")

    def reseed(self, *keys):
        pass

    def call(self, images, training=False):
        return self.scale * ops.mean(images, axis=(1, 2))

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        if training:
            places = self.place + ops.arange(ops.shape(x)[0], dtype="int32")
            self.seen.assign(ops.scatter_update(self.seen, places[:, None], 255 * x[:, 0, 0]))
            self.place.assign(self.place + ops.shape(x)[0])
        return ops.mean(y_pred)


@pytest.mark.parametrize("steps_per_execution, first_epoch", [(1, 0), (20, 2)])
def test_fit_sees_the_batches_of_each_epoch_and_no_stale_ones(images, steps_per_execution, first_epoch):
    recorder = Recorder(3 * COUNT)
    recorder.compile(optimizer="sgd", jit_compile=False, steps_per_execution=steps_per_execution)
    batches = Batches(images, 4, seed=6, shuffle=True)
    fit = {"initial_epoch": first_epoch, "epochs": first_epoch + 3, "shuffle": False, "verbose": 0}
    fit |= {"callbacks": [Reseed(batches, 6), StopAtNonFinite(SimpleNamespace(rows=[]))]}
    recorder.fit(batches, validation_data=Batches(images[:7], 5, seed=6), **fit)
    seen = np.rint(ops.convert_to_numpy(recorder.seen)).astype(int).reshape(3, COUNT).tolist()
    for epoch, order in enumerate(seen, first_epoch):
        batches.start(epoch)
        assert order == order_of(batches)
    assert seen[0] != seen[1] != seen[2]


@pytest.mark.parametrize("backend, workers", [("tensorflow", 2), ("jax", 1), ("torch", 1)])
def test_no_epoch_waits_for_the_tuning_thread_of_tf_data(images, backend, workers, monkeypatch):
    monkeypatch.setattr(keras.backend, "backend", lambda: backend)
    assert Batches(images, 10, seed=0).workers == workers


# Several devices


@pytest.mark.parametrize("devices, processes", [(2, 1), (4, 1), (4, 2), (6, 3), (7, 7)])
def test_the_shares_of_all_processes_are_the_batch_but_for_a_few_images(images, devices, processes):
    """Binary pixels are those that one device draws."""
    whole = Batches(images, 10, seed=0, shuffle=True, binarize=True)
    batches = [Batches(images, 10, seed=0, shuffle=True, binarize=True) for _ in range(processes)]
    shares = [one.deal(devices, process, processes) for process, one in enumerate(batches)]
    for one in (whole, *shares):
        one.start(epoch=3)
    for index in range(len(whole)):
        parts = [share[index][0] for share in shares]
        found, wanted = np.concatenate(parts), whole[index][0]
        assert len({part.shape for part in parts}) == 1
        assert len(found) % devices == 0 and 0 <= len(wanted) - len(found) < devices
        np.testing.assert_array_equal(found, wanted[: len(found)])


def test_a_batch_smaller_than_the_number_of_devices_is_refused(images):
    assert "a batch of 7 images" in refuse(Batches(images, 8, seed=0).deal, 8, 0, 1)
