"""Pixels of every range, shapes, sizes and labels: what is converted, what gets a warning, and what is refused."""

import numpy as np
import pytest
from conftest import refuse
from helpers import load, make_arrays, show, write_npz
from PIL import Image

from vae.data.dataset import to_pixels

X, Y, T, U = make_arrays().values()
FLOATS = X / np.float32(255)
BINARY = (X > 127).astype(np.uint8)
DEEP = X.astype(np.uint16)


def load_arrays(tmp_path, options: dict | None = None, **arrays):
    """Load an .npz of these arrays; the images to test on are the first of those to train on if none are given."""
    arrays.setdefault("x_test", arrays["x_train"][:3])
    return load(write_npz(tmp_path / "a.npz", **arrays), **(options or {}))


# Pixels: given, wanted, and words of the note

CONVERTED = {
    "bytes": (X, X, None),
    "floats 0..1": (FLOATS, FLOATS, None),
    "float64": (X / 255, FLOATS, None),
    "truth values": (X > 127, 255 * BINARY, None),
    "0 and 1": (BINARY.astype(int), 255 * BINARY, "up to 1 are read with 1 as white"),
    "int64": (X.astype(int), X, "up to 255 are read with 255 as white"),
    "whole floats 0..255": (X.astype(float), X, "255 as white"),
    "floats 0..255": (X * 0.9, (X * 0.9 / 255).astype(np.float32), "255 as white"),
    "a little above 1": (FLOATS * np.float32(1 + 1e-5), np.minimum(FLOATS * np.float32(1 + 1e-5), 1), None),
    "16 bits": (DEEP * 257, X, "up to 65,535 are read with 65,535 as white"),
    "12 bits": (DEEP * 16, X, "up to 4,080 are read with 4,080 as white"),
}


@pytest.mark.parametrize("given, wanted, note", CONVERTED.values(), ids=CONVERTED)
def test_pixels_are_converted_and_a_line_says_how(tmp_path, given, wanted, note):
    dataset = load_arrays(tmp_path, x_train=given)
    assert (dataset.train_images.dtype, dataset.warning) == (wanted.dtype, None)
    assert bool(dataset.reading) == (given.max() > 255)  # it is stored
    np.testing.assert_allclose(dataset.train_images, wanted, rtol=1e-6, atol=0)
    assert [note in line for line in dataset.notes] == ([True] if note else [])


@pytest.mark.parametrize("train, test, white", [(DEEP * 16, DEEP // 2, 4080), (X, X * 200.0, 65535)])
def test_one_factor_for_all_parts_of_a_set(tmp_path, train, test, white):
    """Also where one part is dim, or of another type."""
    dataset = load_arrays(tmp_path, x_train=train, x_test=test)
    assert (X.max(), dataset.reading) == (255, {"white": white})
    for images, given in ((dataset.train_images, train), (dataset.test_images, test)):
        np.testing.assert_array_equal(images, np.rint(given * (255 / white)))


def test_a_run_s_factor_holds_for_the_images_that_it_is_shown(tmp_path):
    pairs = [(DEEP // 2, np.rint(DEEP // 2 * 0.0625)), (DEEP * 30, np.minimum(DEEP * 30 / 16, 255).round()), (X, X)]
    for given, wanted in pairs:
        dataset = show(write_npz(tmp_path / "a.npz", x_test=given), reading={"white": 4080})
        np.testing.assert_array_equal(dataset.test_images, wanted)
        assert any("what is brighter is cut off" in note for note in dataset.notes) == (given.max() > 4080)


DARK = {
    "from 0 to 0.00392157, where 1 is white: the images are almost black": (FLOATS / 255, FLOATS),
    "from 0 to 60, where 255 is white": (np.minimum(X, 60), X),
    "from 255 to 255, where 255 is white: the images show nothing": (X * 0 + 255, X),
}


@pytest.mark.parametrize("words, images", DARK.items())
def test_images_that_show_nothing_are_read_with_a_warning(tmp_path, words, images):
    for names in (("x_train", "x_test"), ("x_test", "x_train")):
        dataset = load_arrays(tmp_path, **dict(zip(names, images, strict=True)))
        assert dataset.warning.startswith(f"{names[0][2:]} images: pixels go {words}") and "\n" not in dataset.warning
        dark = {"x_train": dataset.train_images, "x_test": dataset.test_images}[names[0]]
        np.testing.assert_array_equal(dark, images[0])


@pytest.mark.parametrize("shape", [(784,), (1, 28, 28), (28, 28, 1)])
def test_shapes(tmp_path, shape):
    dataset = load_arrays(tmp_path, x_train=X.reshape(6, *shape), x_test=T[:1].reshape(1, *shape))
    np.testing.assert_array_equal(dataset.train_images, X)
    np.testing.assert_array_equal(dataset.test_images, T[:1])


def test_colours_become_luminance(tmp_path):
    colours = np.random.default_rng(0).integers(0, 256, (6, 28, 28, 3), np.uint8)
    wanted = np.stack([np.asarray(Image.fromarray(image).convert("L")) for image in colours])
    for given in (colours, np.moveaxis(colours, 3, 1), colours / 255):
        dataset = load_arrays(tmp_path, x_train=given)
        np.testing.assert_allclose(255 * to_pixels(dataset.train_images), wanted, atol=1)
        assert "grey" in dataset.notes[0] and to_pixels(dataset.train_images).max() <= 1


NEAREST = {(27, 29): (28, 28), (30, 30): (32, 32), (9, 5): (16, 8), (480, 640): (96, 128), (60, 900): (8, 128)}


@pytest.mark.parametrize("size, nearest", [((8, 128), (8, 128)), *NEAREST.items()])
def test_images_of_any_size_are_scaled_to_the_nearest(tmp_path, size, nearest):
    images = np.zeros((7, *size), np.float32)
    images[:, : size[0] // 2] = 1  # the upper half is white
    dataset = load_arrays(tmp_path, x_train=images)
    assert dataset.image_shape == dataset.test_images.shape[1:] == nearest
    note = "{} x {} pixels are scaled to {} x {}".format(*size, *nearest)
    assert [note in line for line in dataset.notes] == [True] * 2 * (size != nearest)
    assert dataset.train_images[:, 0].min() == 1 and dataset.train_images[:, -1].max() == 0


def test_image_size_and_transpose(tmp_path):
    dataset = load_arrays(tmp_path, {"image_size": 16}, x_train=X, x_test=T[:, 2:])  # two sizes
    wanted = [np.asarray(Image.fromarray(image).resize((16, 16), Image.Resampling.BILINEAR)) for image in X]
    np.testing.assert_array_equal(dataset.train_images, wanted)
    assert dataset.test_images.shape[1:] == (16, 16)
    dataset = load_arrays(tmp_path, {"transpose": True}, x_train=X[:, :, :24])
    np.testing.assert_array_equal(dataset.train_images, X[:, :, :24].swapaxes(1, 2))
    assert dataset.image_shape == (24, 28) and "--transpose" in dataset.notes[0]


# Labels: given, the names of the classes (None where they are numbers), and the numbers

KINDS = [Y, Y[:, None], Y.astype(float), Y.astype(str), np.eye(6)[Y], np.eye(6, dtype=bool)[Y], Y.astype(">i2")]
LABELS = [(kind, None, [0, 1, 2, 3, 4, 5]) for kind in (*KINDS, np.char.add(Y.astype(str), ".0"))]
LABELS += [(["3", "07", "-1"], None, [3, 7, -1]), ([-3, 200, 5], None, [-3, 200, 5])]
LABELS += [(["3", "7", "3.0"], ("3", "3.0", "7"), [0, 2, 1]), (["1_0", "2", "inf"], ("1_0", "2", "inf"), [0, 1, 2])]


@pytest.mark.parametrize("given, names, numbers", LABELS)
def test_labels_that_are_whole_numbers_keep_them(tmp_path, given, names, numbers):
    dataset = load_arrays(tmp_path, x_train=X[: len(given)], y_train=np.array(given))
    assert (dataset.label_names, dataset.train_labels.tolist(), dataset.test_labels) == (names, numbers, None)


def test_names_of_classes_are_numbered(tmp_path):
    train, test = ["b", "a", "ä", "a", "b", "b"], ["ä", "c", "b"]
    dataset = load_arrays(tmp_path, x_train=X, y_train=np.array(train), y_test=np.array(test))
    assert dataset.label_names == ("a", "b", "c", "ä")
    assert (dataset.train_labels.tolist(), dataset.test_labels.tolist()) == ([1, 0, 3, 0, 1, 1], [3, 2, 1])
    assert dataset.notes[-1].endswith("classes of test images that no training image has: c")


REFUSED = [
    (np.where(Y[:, None, None] > 4, np.nan, FLOATS), Y, "go from nan"),
    ((FLOATS - 0.13) / 0.3, Y, "go from -0.4"),
    (X * 1.5, Y, "whole numbers"),
    (X.astype(str), Y, "of str96"),
    (np.moveaxis(X, 0, 2), Y, "shape is (28, 28, 6)"),
    (np.moveaxis(X, 0, 2), Y, "(H, H, n) has the number of images last"),
    (np.zeros((784, 100)), Y, "shape is (784, 100)"),  # an image in each column
    (np.zeros((6, 28, 28, 2)), Y, "shape is (6, 28, 28, 2)"),
    (np.zeros((28, 24, 500)), Y, "shape is (28, 24, 500)"),
    (X, Y[:5], "shape is (5,)"),
    (X, Y / 2, "of float64"),
    (X, np.array([b"a"] * 6), "of bytes8"),
    (X, np.ones((6, 14), int), "shape is (6, 14)"),
    (X, FLOATS, "in all parts of a set"),  # test images in place of labels
    (FLOATS, X, "in all parts of a set"),
    (X, X // 255, "in all parts of a set"),
]


@pytest.mark.parametrize("images, other, words", REFUSED, ids=[words for *_, words in REFUSED])
def test_what_does_not_fit_is_refused_with_the_cause(tmp_path, images, other, words):
    more = {"x_test": other} if words.startswith("in all") else {"x_test": X, "y_train": other}
    line = refuse(lambda: load_arrays(tmp_path, x_train=images, **more))
    assert words in line and str(tmp_path / "a.npz") in line and "docs/data.md" in line
