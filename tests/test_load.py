"""What is wanted becomes a data set: to train on, to hold some of it out, or to show to a trained model."""

import json
import os
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
from conftest import ROOT, refuse
from helpers import load, make_arrays, make_idx_files, show, to_npy, write, write_npz
from sklearn.datasets import load_digits

from vae.data import convert
from vae.data import load as loading
from vae.data.dataset import Subset, hold_out
from vae.data.load import Source

X, Y, T, U = make_arrays(50, 20).values()


def test_mnist_to_the_bit():
    if "MNIST_DIR" not in os.environ:
        pytest.skip("MNIST_DIR names no folder")
    dataset = load(os.environ["MNIST_DIR"])
    shipped = json.loads((ROOT / "checkpoints" / "pretrained" / "config.json").read_text())["dataset"]
    assert (dataset.sha256, len(dataset.train_images), len(dataset.test_images)) == (shipped["sha256"], 60000, 10000)
    assert (dataset.notes, dataset.warning, dataset.reading) == ((), None, {})
    np.testing.assert_array_equal(np.bincount(dataset.test_labels)[:3], [980, 1135, 1032])


def test_digits():
    small, dataset = load_digits(), loading.load(Source("digits"))
    assert (dataset.name, dataset.source, dataset.warning) == ("digits", "embedded in scikit-learn", None)
    assert (dataset.train_images.shape, dataset.test_images.shape) == ((1500, 28, 28), (297, 28, 28))
    assert dataset.sha256 == "52f13900c7c6d8fd0eb909fc494384e4fe89e60b169181355f03778ffd6f8856"
    np.testing.assert_array_equal(np.concatenate([dataset.train_labels, dataset.test_labels]), small.target)


def test_a_name_fit_for_a_folder_and_a_path_from_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))  # on Windows
    for name, safe in {"déjà vu": "d-j-vu", "..hidden": "hidden", "é": "data", "a_b-c.1": "a_b-c.1"}.items():
        folder = write(tmp_path / name, **make_idx_files())
        dataset = loading.load(Source("digits", f"~/{name}"))  # --data wins
        assert (dataset.name, dataset.source, dataset.warning) == (safe, str(folder), None)


NO_DATA_SETS = [  # what --data names, what there is, and words of the refusal
    ("https://host/a.npz", {}, "download it first"),
    ("a\0b", {}, "no such file"),
    ("seven.png", {"seven.png": X[0]}, "give their folder"),
    ("a.mat", {"a.mat": b""}, "is no folder, .npz or .csv"),
    ("", {}, "seen: nothing"),
    ("", {"0.arrow": b"x", "1.arrow": b"x", "info.json": b"{}"}, "seen: 2 .arrow, 1 .json"),
    ("", {"0.png": X[0], "docs/a.txt": b""}, "2 files that are no pictures, are damaged, or lie beside the classes'"),
    ("", {"a/train.csv": b"", "b/raw/t10k-images-idx3-ubyte.gz": b""}, f"{os.sep}raw"),
]


@pytest.mark.parametrize("name, files, words", NO_DATA_SETS)
def test_what_is_no_data_set_is_refused_with_what_to_do(tmp_path, name, files, words):
    line = refuse(load, write(tmp_path, **files) / name)
    assert words in line and line.startswith(f"--data {tmp_path / name}") and "docs/data.md" in line


def test_a_test_set_is_held_out_by_the_seed_where_there_is_none(tmp_path):
    path = write_npz(tmp_path / "a.npz", x_train=X, y_train=Y)
    dataset, other = load(path, seed=5), load(path, seed=6)
    assert (len(dataset.train_images), len(dataset.test_images)) == (45, 5)
    np.testing.assert_array_equal(X[dataset.test_labels], dataset.test_images)
    assert dataset.test_labels.tolist() != other.test_labels.tolist() and dataset.sha256 == other.sha256
    assert any(note.endswith("5 of 50 training images are held out as test images") for note in dataset.notes)
    assert "a data set needs two" in refuse(load, write_npz(tmp_path / "one.npz", x_train=X[:1]))


@pytest.fixture
def whole(tmp_path):
    """50 training images; each has its number as its label."""
    return load(write_npz(tmp_path / "a.npz", x_train=X, y_train=Y, x_test=T))


@pytest.mark.parametrize("share, held", [(0.3, 15), (0.0001, 1)])
def test_hold_out(whole, share, held):
    dataset = hold_out(whole, share, seed=3)
    assert (len(dataset.validation_images), len(dataset.train_images)) == (held, 50 - held)
    np.testing.assert_array_equal(whole.train_images[dataset.train_labels], dataset.train_images)
    rest = np.setdiff1d(np.arange(50), dataset.train_labels)
    np.testing.assert_array_equal(whole.train_images[rest], dataset.validation_images)
    np.testing.assert_array_equal(hold_out(whole, share, seed=3).train_labels, dataset.train_labels)
    assert not np.array_equal(hold_out(whole, share, seed=4).train_labels, dataset.train_labels)
    assert hold_out(whole, 0, seed=3) is whole and dataset.sha256 == whole.sha256
    assert "--validation-split" in refuse(hold_out, whole, 0.9999, 3)
    own = hold_out(replace(whole, validation_images=whole.test_images), share, seed=0)
    assert len(own.train_images) == 50 and "no --validation-split" in own.notes[-1]


def test_some_training_images_have_their_own_labels_and_depend_on_the_seed_alone(whole):
    images, labels = whole.sample_training(10, seed=1)
    assert len(images) == len(set(labels)) == 10
    np.testing.assert_array_equal(images[:], whole.train_images[labels])
    np.testing.assert_array_equal(whole.sample_training(10, seed=1)[1], labels)
    assert not np.array_equal(whole.sample_training(10, seed=2)[1], labels)
    for found, wanted in zip(whole.sample_training(50, seed=1), (whole.train_images, whole.train_labels), strict=True):
        np.testing.assert_array_equal(found[:], wanted)


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


def test_the_fingerprint_depends_on_the_images_alone(tmp_path):
    images = {"x_train": X, "x_test": T}
    sets = [images | {"y_train": Y}, images, {"x_train": T, "x_test": X}, images | {"x_val": T}, {"x_train": X}]
    labelled, *found = [load(write_npz(tmp_path / f"{number}.npz", **one)).sha256 for number, one in enumerate(sets)]
    assert labelled == found[0] and len(set(found)) == 4


def test_a_run_is_shown_its_own_held_out_images(tmp_path):
    path = str(write_npz(tmp_path / "a.npz", x_train=X, y_train=Y))
    trained_on = load(path, seed=5, transpose=True, image_size=16)
    trained = {"name": "a", "sha256": trained_on.sha256, "image_size": [16, 16], "label_names": None, "reading": {}}
    config = {"settings": {"data": path, "transpose": True, "seed": 5}, "dataset": trained}
    for source in (Source(), Source(data=path, transpose=True)):
        shown = loading.load_shown(source, config)
        np.testing.assert_array_equal(shown.test_images, trained_on.test_images)
        np.testing.assert_array_equal(shown.test_labels, trained_on.test_labels)
        assert len(shown.train_images) == 45
    assert len(loading.load_shown(Source(data=path), config).test_images) == 50  # not transposed: others
    assert loading.load_shown(Source("digits"), config).image_shape == (16, 16)
    config = {"settings": {"data": None, "transpose": False}, "dataset": trained | {"name": "digits"}}
    assert len(loading.load_shown(Source(), config).test_images) == 297


def test_a_few_images_are_shown_whole(tmp_path):
    """A set without parts, one image, one picture, and a test half alone."""
    write(tmp_path / "five", **{f"{number}.png": image for number, image in enumerate(X[:5])})
    paths = {tmp_path / "five": X[:5], tmp_path / "five" / "3.png": X[3:4]}
    paths |= {write_npz(tmp_path / "one.npz", images=X[:1]): X[:1], write_npz(tmp_path / "test.npz", x_test=T): T}
    paths |= {write(tmp_path / "half", **{"test/cat/0.png": X[0], "test/dog/1.png": X[1]}): X[:2]}
    for path, wanted in paths.items():
        shown = show(path)
        np.testing.assert_array_equal(shown.test_images, wanted)
        assert shown.train_images.shape == (0, 28, 28) and shown.train_labels is None
    for path in (tmp_path / "test.npz", tmp_path / "half"):
        assert "no images to train on" in refuse(load, path)
    assert show(write_npz(tmp_path / "large.npz", x_test=X.repeat(2, 1))).image_shape == (28, 28)


@pytest.mark.parametrize(
    "own, given, numbers, names",
    [
        (["cat", "dog", "owl"], ["dog", "ant", "owl"], [1, 3, 2], ("cat", "dog", "owl", "ant")),
        (["1", "2", "x"], [2, 1, 7], [1, 0, 3], ("1", "2", "x", "7")),
        (["cat", "dog"], [0, 1, 0], None, None),
        (None, ["3", "1", "x"], None, None),
        (None, [3, 1, 2], [3, 1, 2], None),
    ],
)
def test_labels_of_shown_images_have_the_numbers_of_the_run(tmp_path, own, given, numbers, names):
    dataset = show(write_npz(tmp_path / "a.npz", x_test=T[:3], y_test=np.array(given)), own)
    assert (dataset.test_labels is None) == (numbers is None) == any("left out" in note for note in dataset.notes)
    assert numbers is None or dataset.test_labels.tolist() == numbers
    assert dataset.label_names == names
