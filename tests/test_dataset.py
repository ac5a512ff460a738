"""What becomes of a data set: held-out images, some of the images, and sets larger than memory."""

import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
from conftest import refuse
from helpers import load, make_arrays, to_npy, write, write_npz

from vae.data import convert
from vae.data.dataset import Subset, hold_out


@pytest.fixture
def whole(tmp_path):
    """1,500 training images; each has its number as its label."""
    arrays = make_arrays(1500, 20)
    return load(write_npz(tmp_path / "a.npz", **arrays | {"y_train": np.arange(1500)}))


@pytest.mark.parametrize("share, held", [(0.3, 450), (0.0001, 1)])
def test_hold_out(whole, share, held):
    dataset = hold_out(whole, share, seed=3)
    assert (len(dataset.validation_images), len(dataset.train_images)) == (held, 1500 - held)
    np.testing.assert_array_equal(whole.train_images[dataset.train_labels], dataset.train_images)
    rest = np.setdiff1d(np.arange(1500), dataset.train_labels)
    np.testing.assert_array_equal(whole.train_images[rest], dataset.validation_images)
    np.testing.assert_array_equal(hold_out(whole, share, seed=3).train_labels, dataset.train_labels)
    assert not np.array_equal(hold_out(whole, share, seed=4).train_labels, dataset.train_labels)
    assert hold_out(whole, 0, seed=3) is whole and dataset.sha256 == whole.sha256
    assert "--validation-split" in refuse(hold_out, whole, 0.9999, 3)
    own = hold_out(replace(whole, validation_images=whole.test_images), share, seed=0)
    assert len(own.train_images) == 1500 and "no --validation-split" in own.notes[-1]


def test_some_training_images_have_their_own_labels_and_depend_on_the_seed_alone(whole):
    images, labels = whole.sample_training(100, seed=1)
    assert len(images) == len(set(labels)) == 100
    np.testing.assert_array_equal(images[:], whole.train_images[labels])
    np.testing.assert_array_equal(whole.sample_training(100, seed=1)[1], labels)
    assert not np.array_equal(whole.sample_training(100, seed=2)[1], labels)
    assert whole.sample_training(1500, seed=1) == (whole.train_images, whole.train_labels)


@pytest.mark.parametrize("change", [lambda x: x.reshape(-1, 784), lambda x: (x / 255).astype(np.float32)])
def test_npy_files_larger_than_memory_are_mapped(tmp_path, monkeypatch, change):
    arrays = make_arrays(9000, 30)
    arrays = {"x_train": change(arrays["x_train"]), "y_train": np.resize(range(10), 9000)}
    copied = hold_out(load(write_npz(tmp_path / "a.npz", **arrays)), 0.25, seed=3)
    folder = write(tmp_path / "npy", **{f"{name}.npy": to_npy(array) for name, array in arrays.items()})
    monkeypatch.setattr(convert, "PIECE", 2**16)
    tracemalloc.start()
    mapped = hold_out(load(folder), 0.25, seed=3)
    assert tracemalloc.get_traced_memory()[1] < arrays["x_train"].nbytes / 4
    tracemalloc.stop()
    assert (mapped.sha256, mapped.image_shape) == (copied.sha256, (28, 28))
    for name in ("train_images", "validation_images", "test_images"):
        subset, array = getattr(mapped, name), getattr(copied, name)
        assert isinstance(subset, Subset)
        assert (len(subset), subset.shape, subset.dtype) == (len(array), array.shape, array.dtype)
        for index in (slice(None), slice(7, 30), np.array([40, 3, 800])):
            np.testing.assert_array_equal(subset[index], array[index])
    np.testing.assert_array_equal(mapped.train_labels, copied.train_labels)
