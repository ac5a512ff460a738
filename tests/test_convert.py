"""Pixels of every range, sizes, colours and labels: what is converted, what gets a warning, and what is refused."""

import numpy as np
import pytest
from conftest import refuse
from helpers import load, make_arrays, write_npz
from PIL import Image

from vae.data import convert
from vae.data.dataset import to_pixels

X, Y, T, U = make_arrays().values()
FLOATS = X / np.float32(255)


def load_arrays(tmp_path, options: dict | None = None, **arrays):
    """Load an .npz of these arrays; the images to test on are the first of those to train on if none are given."""
    arrays.setdefault("x_test", arrays["x_train"][:3])
    return load(write_npz(tmp_path / "a.npz", **arrays), **(options or {}))


def refuse_arrays(tmp_path, **arrays) -> str:
    message = refuse(lambda: load_arrays(tmp_path, **arrays))
    assert str(tmp_path / "a.npz") in message
    return message


# Pixels

CONVERTED = {
    "floats 0..1": (FLOATS, FLOATS, None),
    "float64": (X / 255, FLOATS, None),
    "float16": (FLOATS.astype(np.float16), FLOATS.astype(np.float16).astype(np.float32), None),
    "truth values": (X > 127, (X > 127).astype(np.float32), None),
    "0 and 1 as bytes": ((X > 127).astype(np.uint8), 255 * (X > 127).astype(np.uint8), "black and white"),
    "0 and 1 as int64": ((X > 127).astype(np.int64), 255 * (X > 127).astype(np.uint8), "black and white"),
    "whole floats 0..255": (X.astype(float), X, "0 to 255 are divided by 255"),
    "floats 0..255": (X * 0.9, (X * 0.9 / 255).astype(np.float32), "divided by 255"),
    "a little above 1": (FLOATS * np.float32(1 + 1e-5), np.clip(FLOATS * np.float32(1 + 1e-5), 0, 1), "clipped"),
    "a little below 0": (FLOATS - np.float32(1e-5), np.clip(FLOATS - np.float32(1e-5), 0, 1), "clipped"),
}


@pytest.mark.parametrize("given, wanted, note", CONVERTED.values(), ids=CONVERTED)
def test_pixels_are_converted_and_a_line_says_how(tmp_path, given, wanted, note):
    dataset = load_arrays(tmp_path, x_train=given)
    assert dataset.train_images.dtype == wanted.dtype and dataset.warning is None
    np.testing.assert_allclose(dataset.train_images, wanted, rtol=1e-6, atol=0)
    assert [note in line for line in dataset.notes] == ([True] * 2 if note else [])


DARK = {
    "floats that end at 1/255": (FLOATS / 255, "from 0 to 0.00392157"),
    "bytes that end at 15": (X // 17, "from 0 to 15"),
    "floats that end at 16": (X / 15.9375, "from 0 to 16"),
    "all black": (X * 0, "all images are black"),
    "all white": (X * 0 + 255, "every pixel is 255"),
    "float zeros": (FLOATS * 0, "all images are black"),
}


@pytest.mark.parametrize("images, words", DARK.values(), ids=DARK)
def test_images_that_show_nothing_get_a_warning(tmp_path, images, words):
    dataset = load_arrays(tmp_path, x_train=images)
    assert words in dataset.warning and str(tmp_path / "a.npz") in dataset.warning


HALVES = {
    "bytes and floats": (X, FLOATS),
    "floats 0..255 and 0..1": (X.astype(float), FLOATS),
    "bytes and bytes divided by 255": (X, X // 255),
    "floats and floats divided by 255": (FLOATS, FLOATS / 255),
    "bytes and bytes divided by 16": (X, X // 16),
    "the other way round": (X // 16, X),
}


@pytest.mark.parametrize("train, test", HALVES.values(), ids=HALVES)
def test_halves_that_differ_by_a_factor_are_refused(tmp_path, train, test):
    message = refuse_arrays(tmp_path, x_train=train, x_test=test)
    assert all(word in message for word in ("x_train", "x_test", "one scale"))


@pytest.mark.parametrize("test", [(T > 127) * np.uint8(255), T, T / 255, T > 127])
def test_truth_values_go_with_every_scale(tmp_path, test):
    dataset = load_arrays(tmp_path, x_train=X > 127, x_test=test)
    assert dataset.train_images.max() == 1 and to_pixels(dataset.test_images).max() == 1


BAD_PIXELS = {
    "NaN": (np.where(np.arange(X.size).reshape(X.shape) == 1000, np.nan, FLOATS), "NaN"),
    "infinite": (FLOATS + np.inf, "inf"),
    "normalised": ((FLOATS - 0.1307) / 0.3081, "x * std + mean"),
    "from -1 to 1": (FLOATS * 2 - 1, "(x + 1) / 2"),
    "whole numbers to 256": (X.astype(int) + 1, "to 256"),
    "whole numbers below 0": (X.astype(int) - 1, "from -1"),
    "16 bits": (X.astype(np.uint16) * 257, "1 / 257"),
    "text": (X.astype(str), "str96"),
    "complex": (X.astype(complex), "complex128"),
    "records": (X.view([("a", "u1")]), "void8"),
    "a number": (np.uint8([3]), "has shape (1,)"),
    "no square": (np.ones((6, 3072), np.uint8), "has shape (6, 3072)"),
    "an image in each column": (np.ones((784, 100), np.uint8), "has shape (784, 100)"),
    "images last": (np.moveaxis(X, 0, 2), "move the axis"),
    "two channels": (np.stack([X, X], -1), "has shape (6, 28, 28, 2)"),
    "volumes": (np.ones((6, 1, 28, 28, 28), np.uint8), "has shape"),
}


@pytest.mark.parametrize("images, words", BAD_PIXELS.values(), ids=BAD_PIXELS)
def test_what_is_no_image_is_refused_with_the_cause(tmp_path, images, words):
    assert words in refuse_arrays(tmp_path, x_train=images)


def test_colours_become_luminance(tmp_path):
    colours = np.random.default_rng(0).integers(0, 256, (6, 28, 28, 3), np.uint8)
    wanted = np.stack([np.asarray(Image.fromarray(image).convert("L")) for image in colours])
    dataset = load_arrays(tmp_path, x_train=colours)
    np.testing.assert_array_equal(dataset.train_images, wanted)
    assert "grey" in dataset.notes[0]
    floats = load_arrays(tmp_path, x_train=np.moveaxis(colours, 3, 1) / 255).train_images
    np.testing.assert_allclose(floats, wanted / 255, atol=0.003)
    assert load_arrays(tmp_path, x_train=np.ones((9, 28, 28, 3)) * (X[:1] > 9)[..., None]).train_images.max() <= 1


# Size


@pytest.mark.parametrize("size", [(8, 8), (28, 28), (64, 48), (8, 128)])
def test_images_of_sizes_that_networks_take_are_read_as_they_are(tmp_path, size):
    images = np.random.default_rng(0).integers(0, 256, (9, *size), np.uint8)
    dataset = load_arrays(tmp_path, x_train=images)
    np.testing.assert_array_equal(dataset.train_images, images)
    assert dataset.image_shape == size and dataset.notes == ()


@pytest.mark.parametrize("factor", [1, np.float32(1 / 255)])
@pytest.mark.parametrize("size, nearest", [((6, 12), (8, 16)), ((480, 640), (96, 128))])
def test_other_sizes_are_scaled_to_the_nearest(tmp_path, size, nearest, factor):
    images = np.zeros((9, *size), np.uint8)
    images[:, : size[0] // 2] = 255  # the upper half is white
    dataset = load_arrays(tmp_path, x_train=images * factor)
    assert dataset.image_shape == nearest
    assert "{} x {} pixels are scaled to {} x {}".format(*size, *nearest) in dataset.notes[0]
    scaled = np.asarray(dataset.train_images, float) / dataset.train_images.max()
    assert scaled[:, 0].min() == 1 and scaled[:, -1].max() == 0


NEAREST = {
    (27, 29): (28, 28),
    (30, 30): (32, 32),
    (5, 5): (8, 8),
    (9, 5): (16, 8),
    (127, 121): (128, 120),
    (300, 200): (128, 84),
    (1000, 1000): (128, 128),
    (50, 1000): (8, 128),
}


def test_the_nearest_size_has_the_same_proportions():
    assert {size: convert.nearest_size(*size) for size in NEAREST} == NEAREST


def test_image_size_and_transpose(tmp_path):
    dataset = load_arrays(tmp_path, {"image_size": 16}, x_train=X, x_test=T[:, 2:])  # two sizes
    assert dataset.train_images.shape[1:] == dataset.test_images.shape[1:] == (16, 16)
    wanted = np.asarray(Image.fromarray(X[0]).resize((16, 16), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(dataset.train_images[0], wanted)
    dataset = load_arrays(tmp_path, {"transpose": True}, x_train=X[:, :, :24])
    np.testing.assert_array_equal(dataset.train_images, X[:, :, :24].swapaxes(1, 2))
    assert dataset.image_shape == (24, 28) and "--transpose" in dataset.notes[0]


# Labels


def test_labels_of_whole_numbers_are_not_changed(tmp_path):
    labels = {"y_train": np.arange(-3, 3, dtype=">i2"), "y_test": np.arange(200, 203, dtype=np.uint8)}
    dataset = load_arrays(tmp_path, x_train=X, **labels)
    assert (dataset.train_labels.dtype, dataset.test_labels.dtype) == (np.int64, np.uint8)
    assert (dataset.train_labels.tolist(), dataset.test_labels.tolist()) == ([-3, -2, -1, 0, 1, 2], [200, 201, 202])


def test_names_of_classes_are_numbered(tmp_path):
    train, test = ["b", "a", "ä", "a", "b", "b"], ["ä", "c", "b"]
    dataset = load_arrays(tmp_path, x_train=X, y_train=np.array(train), y_test=np.array(test))
    assert dataset.label_names == ("a", "b", "c", "ä")
    assert [dataset.label_names[label] for label in dataset.train_labels] == train
    assert [dataset.label_names[label] for label in dataset.test_labels] == test
    many = np.arange(1623)
    dataset = load_arrays(tmp_path, x_train=np.resize(X, (1623, 28, 28)), y_train=np.char.mod("class %d", many))
    assert len(dataset.label_names) == 1623


@pytest.mark.parametrize(
    "labels, words",
    [(np.ones((6, 14), int), "not one label"), (Y / 2, "fractions"), (np.where(Y > 3, np.nan, Y), "fractions")],
    ids=["several labels an image", "fractions", "NaN"],
)
def test_labels_that_are_no_classes_are_left_out(tmp_path, labels, words):
    dataset = load_arrays(tmp_path, x_train=X, y_train=labels)
    assert dataset.train_labels is None and words in dataset.notes[0]


@pytest.mark.parametrize(
    "given, names, labels",
    [
        (["3", "7", "3.0"], ("3", "3.0", "7"), [0, 2, 1]),  # two names of one number are two classes
        (["3", "07", "-1"], None, [3, 7, -1]),
        (["1_0", "2", "inf"], ("1_0", "2", "inf"), [0, 1, 2]),
    ],
)
def test_names_that_are_numbers(given, names, labels):
    numbered, found = convert.number_classes({"train": np.array(given), "test": None})
    assert (found, numbered["train"].tolist(), numbered["test"]) == (names, labels, None)


def test_one_half_may_have_no_labels(tmp_path):
    dataset = load_arrays(tmp_path, x_train=X, y_train=Y)  # as Kaggle's test.csv
    np.testing.assert_array_equal(dataset.train_labels, Y)
    assert dataset.test_labels is None


def test_pickled_or_odd_labels_are_refused(tmp_path):
    assert "pickled" in refuse_arrays(tmp_path, x_train=X, y_train=Y.astype(object))
    assert "complex" in refuse_arrays(tmp_path, x_train=X, y_train=Y.astype(complex))
