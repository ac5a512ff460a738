"""The batches of an epoch, and whether `fit` sees just these."""

import keras
import numpy as np
import pytest
from conftest import refuse

from vae.callbacks import Reseed
from vae.data.batches import Batches

IMAGES = np.random.default_rng(5).integers(0, 256, (23, 5, 4), dtype=np.uint8)


def epoch_of(batches: Batches) -> np.ndarray:
    return np.concatenate([batches[index][0] for index in range(len(batches))])


@pytest.mark.parametrize("batch_size, sizes", [(10, [8, 8, 7]), (1, [1] * 23), (22, [12, 11]), (99, [23])])
def test_all_images_in_their_order_in_batches_of_even_size(batch_size, sizes):
    batches = Batches(IMAGES, batch_size, seed=0)
    assert [len(batches[index][0]) for index in range(len(batches))] == sizes
    found = epoch_of(batches)
    np.testing.assert_array_equal(found, (IMAGES / 255).astype(np.float32), strict=True)
    np.testing.assert_array_equal(epoch_of(Batches(found, batch_size, seed=0)), found)  # floats stay as they are


@pytest.mark.parametrize("binarize", [False, True])
def test_a_batch_is_a_function_of_seed_epoch_and_number(binarize):
    def batch(seed, epoch, index, others=()):
        batches = Batches(IMAGES, 10, seed, shuffle=True, binarize=binarize)
        batches.start(epoch)
        for other in others:
            batches[other]
        return batches[index][0]

    first = batch(1, 2, 1)
    np.testing.assert_array_equal(first, batch(1, 2, 1, others=(0, 2, 1)))
    assert not any(np.array_equal(first, batch(*keys)) for keys in ((2, 2, 1), (1, 3, 1), (1, 2, 0), (2, 1, 1)))
    shuffled = epoch_of(Batches(IMAGES, 10, 1, shuffle=True))
    np.testing.assert_allclose(np.sort(shuffled, axis=0), np.sort(IMAGES, axis=0) / 255, rtol=1e-6)


def test_binary_pixels_are_drawn_afresh_in_each_epoch_and_average_to_the_grey_values():
    images = IMAGES[:5].copy()
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


def build_learner(steps_per_execution: int = 1) -> keras.Model:
    """A model without noise. What it learns depends on the order of the images."""
    dense = keras.layers.Dense(1, kernel_initializer="ones", activity_regularizer=keras.regularizers.L2(1.0))
    learner = keras.Sequential([keras.Input((5, 4)), keras.layers.Flatten(), dense])
    learner.reseed = lambda *keys: None
    learner.compile("sgd", jit_compile=False, steps_per_execution=steps_per_execution)
    return learner


@pytest.mark.parametrize("steps_per_execution, first_epoch", [(1, 0), (20, 2)])
def test_fit_sees_the_batches_of_each_epoch_and_no_stale_ones(steps_per_execution, first_epoch):
    learner, taught_by_hand = build_learner(steps_per_execution), build_learner()
    batches, epochs = Batches(IMAGES, 4, seed=6, shuffle=True), range(first_epoch, first_epoch + 3)
    fit = {"initial_epoch": epochs.start, "epochs": epochs.stop, "shuffle": False, "verbose": 0}
    fit |= {"validation_data": Batches(IMAGES[:7], 5, seed=6), "callbacks": [Reseed(batches, 6)]}
    learner.fit(batches, **fit)
    for epoch in epochs:
        batches.start(epoch)
        for index in range(len(batches)):
            taught_by_hand.train_on_batch(*batches[index])
    np.testing.assert_allclose(learner.get_weights()[0], taught_by_hand.get_weights()[0], rtol=1e-5)


@pytest.mark.parametrize("backend, workers", [("tensorflow", 2), ("jax", 1), ("torch", 1)])
def test_no_epoch_waits_for_the_tuning_thread_of_tf_data(backend, workers, monkeypatch):
    monkeypatch.setattr(keras.backend, "backend", lambda: backend)
    assert Batches(IMAGES, 10, seed=0).workers == workers


@pytest.mark.parametrize("devices, processes", [(2, 1), (4, 1), (4, 2), (6, 3), (7, 7)])
def test_the_shares_of_all_processes_are_the_batch_but_for_a_few_images(devices, processes):
    """Binary pixels are those that one device draws."""
    whole = Batches(IMAGES, 10, seed=0, shuffle=True, binarize=True)
    batches = [Batches(IMAGES, 10, seed=0, shuffle=True, binarize=True) for _ in range(processes)]
    for process, one in enumerate(batches):
        one.deal(devices, process, processes)
    for one in (whole, *batches):
        one.start(epoch=3)
    for index in range(len(whole)):
        parts = [one[index][0] for one in batches]
        found, wanted = np.concatenate(parts), whole[index][0]
        assert len({part.shape for part in parts}) == 1
        assert len(found) % devices == 0 and 0 <= len(wanted) - len(found) < devices
        np.testing.assert_array_equal(found, wanted[: len(found)])


def test_a_batch_smaller_than_the_number_of_devices_is_refused():
    assert "a batch of 7 images" in refuse(Batches(IMAGES, 8, seed=0).deal, 8, 0, 1)
