"""What becomes of a data set: bytes to pixels, held-out images, some of the images, and labels of a run."""

from dataclasses import replace

import numpy as np
import pytest
from conftest import refuse
from helpers import load, make_arrays, write_npz

from vae.data import formats
from vae.data import load as loading
from vae.data.dataset import Subset, hold_out, number_as_in_run, to_pixels
from vae.data.load import Options


def test_bytes_become_pixels():
    images, floats = np.arange(256, dtype=np.uint8), np.linspace(0, 1, 5, dtype=np.float32)
    assert to_pixels(images).dtype == np.float32
    np.testing.assert_array_equal(to_pixels(images), (np.arange(256) / 255).astype(np.float32))
    assert to_pixels(floats) is floats


@pytest.mark.parametrize("share, held", [(0.3, 450), (0.5, 750)])
def test_hold_out(share, held):
    whole = loading.load(Options("digits"))
    dataset = hold_out(whole, share, seed=5)
    order = np.random.default_rng(5).permutation(1500)
    np.testing.assert_array_equal(dataset.validation_images, whole.train_images[np.sort(order[:held])])
    np.testing.assert_array_equal(dataset.train_images, whole.train_images[np.sort(order[held:])])
    np.testing.assert_array_equal(dataset.train_labels, whole.train_labels[np.sort(order[held:])])
    assert (dataset.sha256, len(dataset.test_images)) == (whole.sha256, 297)
    assert (hold_out(whole, share, seed=6).train_images != dataset.train_images).any()


def test_holding_out_nothing_or_all(tmp_path):
    arrays = {name: array for name, array in make_arrays().items() if name[0] == "x"}
    dataset = load(write_npz(tmp_path / "a.npz", **arrays))
    assert hold_out(dataset, 0, seed=0) is dataset
    assert hold_out(dataset, 0.5, seed=0).train_labels is None
    for share, held in ((0.01, "0 of 6"), (0.99, "6 of 6")):
        assert held in refuse(hold_out, dataset, share, 0)


def test_parts_of_images_larger_than_memory_are_no_copies(monkeypatch):
    """Nor are parts of parts; they have the same images."""

    def hold_out_twice() -> list:
        first = hold_out(loading.load_digits(Options()), 0.25, seed=3)
        second = hold_out(replace(first, validation_images=None), 0.5, seed=4)
        return [first.train_images, first.validation_images, second.train_images, second.validation_images]

    copies = hold_out_twice()
    monkeypatch.setattr(formats, "MAX_BYTES", 10**5)
    rows = np.random.default_rng(1).permutation(375)[:50]
    for subset, copy in zip(hold_out_twice(), copies, strict=True):
        assert isinstance(subset, Subset)
        assert (len(subset), subset.shape, subset.dtype) == (len(copy), copy.shape, copy.dtype)
        assert subset.nbytes == copy.nbytes
        np.testing.assert_array_equal(subset[:], copy)
        np.testing.assert_array_equal(subset[7:30], copy[7:30])
        np.testing.assert_array_equal(subset[rows], copy[rows])


def test_validation_images_of_the_data_itself_are_used(tmp_path):
    arrays = make_arrays()
    dataset = load(write_npz(tmp_path / "a.npz", **arrays, x_val=arrays["x_test"]))
    assert hold_out(dataset, 0, seed=0) is dataset
    held_out = hold_out(dataset, 0.5, seed=0)
    np.testing.assert_array_equal(held_out.validation_images, arrays["x_test"])
    assert len(held_out.train_images) == 6 and "--validation-split" in held_out.notes[-1]


def test_some_training_images_have_their_own_labels_and_depend_on_the_seed_alone():
    dataset = loading.load_digits(loading.Options())
    images, labels = dataset.sample_training(100, seed=1)
    rows = [np.flatnonzero((dataset.train_images == image).all(axis=(1, 2))) for image in images[:]]
    assert len(images) == len(labels) == 100 and len(set(map(int, np.concatenate(rows)))) >= 99  # two may be equal
    assert all(label in dataset.train_labels[row] for label, row in zip(labels, rows, strict=True))
    np.testing.assert_array_equal(dataset.sample_training(100, seed=1)[0][:], images[:])
    assert not np.array_equal(dataset.sample_training(100, seed=2)[0][:], images[:])
    assert replace(dataset, train_labels=None).sample_training(100, seed=1)[1] is None
    assert dataset.sample_training(1500, seed=1) == (dataset.train_images, dataset.train_labels)


@pytest.mark.parametrize(
    "own, given, numbers, names",
    [
        (["cat", "dog", "owl"], ["owl", "dog", "owl"], [2, 1, 2], ("cat", "dog", "owl")),
        (["cat", "dog", "owl"], ["dog", "ant", "owl"], [1, 3, 2], ("cat", "dog", "owl", "ant")),
        (["1", "2", "x"], [2, 1, 7], [1, 0, 3], ("1", "2", "x", "7")),
        (["cat", "dog"], [0, 1, 0], None, None),
        (None, ["3", "1", "x"], None, None),
        (None, [3, 1, 2], [3, 1, 2], None),
    ],
)
def test_labels_of_shown_images_have_the_numbers_of_the_run(tmp_path, own, given, numbers, names):
    path = write_npz(tmp_path / "a.npz", x_test=make_arrays()["x_test"], y_test=np.array(given))
    config = {"settings": {}, "dataset": {}}
    dataset = number_as_in_run(loading.load_for_run(Options(data=str(path)), config), own or [])
    assert (dataset.test_labels is None) == (numbers is None)
    assert numbers is None or dataset.test_labels.tolist() == numbers
    assert dataset.label_names == names and any("other names" in note for note in dataset.notes) == (numbers is None)
    assert names is None or dataset.named_test_labels.tolist() == [str(label) for label in given]
