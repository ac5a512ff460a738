"""CSV: which columns are pixels, which are labels, and what is refused."""

import numpy as np
import pytest
from conftest import refuse
from helpers import load, make_arrays, to_csv

from vae.data import tables


def test_csv_of_floats_names_and_other_columns(tmp_path):
    x = (make_arrays()["x_train"][:, :8, :8] / 255).round(4)
    rows = [["id", "letter", *(f"p{i}" for i in range(64))]]
    rows += [[number, f'"{"abc"[number % 3]}"', *image.ravel()] for number, image in enumerate(x)]
    (tmp_path / "letters.csv").write_bytes(b"\xef\xbb\xbf" + to_csv(rows) + b"\n\n")
    dataset = load(tmp_path / "letters.csv")
    assert (dataset.label_names, dataset.image_shape, len(dataset.train_images)) == (("a", "b", "c"), (8, 8), 5)
    wanted = {(image.astype(np.float32).tobytes(), number % 3) for number, image in enumerate(x)}
    found = zip(
        [*dataset.train_images, *dataset.test_images], [*dataset.train_labels, *dataset.test_labels], strict=True
    )
    assert {(image.tobytes(), label) for image, label in found} == wanted


@pytest.mark.parametrize("first", ["", "label", "7"])
def test_csv_whose_columns_are_called_by_numbers(tmp_path, first):
    """As pandas writes them, with or without the numbers of the rows; a row of data may begin with any number."""
    x = make_arrays()["x_train"][:, :8, :8].reshape(-1, 64)
    rows = [[first, *range(64)]] if first != "7" else []
    rows += [[number, *image] for number, image in enumerate(x)]
    (tmp_path / "a.csv").write_bytes(to_csv(rows))
    dataset = load(tmp_path / "a.csv")
    assert len(dataset.train_images) + len(dataset.test_images) == 6
    assert (dataset.train_labels is None) == (first == "")


SMALL = make_arrays()["x_train"][:, :8, :8].reshape(-1, 64) | 1
PIXELS = [f"pixel{i}" for i in range(64)]
LABELS_IN_CSV = {
    "a name that is not known, last": ([*PIXELS, "species"], lambda image, label: [*image, label]),
    "a name that is not known, first": (["species", *PIXELS], lambda image, label: [label, *image]),
    "no names, and labels last": (None, lambda image, label: [0, *image[1:], label]),
    "equal names made different": (["0", *(f"0.{i}" for i in range(1, 65))], lambda image, label: [label, *image]),
}


@pytest.mark.parametrize("names, to_row", LABELS_IN_CSV.values(), ids=LABELS_IN_CSV)
def test_labels_are_found_beside_the_pixels(tmp_path, names, to_row):
    rows = [] if names is None else [names]
    rows += [to_row(image, label) for label, image in enumerate(SMALL)]
    (tmp_path / "a.csv").write_bytes(to_csv(rows))
    images, labels = tables.read_csv(tmp_path / "a.csv")
    assert labels.tolist() == list("012345") and images.dtype == np.uint8
    np.testing.assert_array_equal(images[:, 1:], SMALL[:, 1:])


def test_one_class_called_0_is_no_black_pixel(tmp_path):
    rows = [[0, *image[:-1], 40 * number] for number, image in enumerate(SMALL)]
    (tmp_path / "a.csv").write_bytes(to_csv(rows))
    images, labels = tables.read_csv(tmp_path / "a.csv")
    assert labels.tolist() == ["0"] * 6
    np.testing.assert_array_equal(images[:, :-1], SMALL[:, :-1])


BAD_CSV = {
    "a row that is cut": (b"label," + b"p," * 63 + b"p\n" + b"1," * 30 + b"1\n", "damaged"),
    "no square": (b"1," * 67 + b"1\n", "no square"),
    "words": (b"label," + b"p," * 63 + b"p\n1," + b"x," * 63 + b"x\n", "damaged"),
    "names alone": (b"label," + b"p," * 63 + b"p\n", "holds no images"),
    "empty": (b"", "0 columns"),
    "binary": (bytes(range(256)), "columns"),
    "a few columns": (b"name,label\na.png,3\n", "2 columns"),
}


@pytest.mark.parametrize("content, words", BAD_CSV.values(), ids=BAD_CSV)
def test_a_bad_csv_is_refused(tmp_path, content, words):
    (tmp_path / "bad.csv").write_bytes(content)
    message = refuse(load, tmp_path / "bad.csv")
    assert words in message and str(tmp_path / "bad.csv") in message
