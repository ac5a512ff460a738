"""Files by their form: what is read to the bit, what is refused and why; nothing in a file is executed."""

import gzip
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
from conftest import refuse
from helpers import (
    STEMS,
    assert_same,
    load,
    make_arrays,
    make_idx_files,
    to_csv,
    to_idx,
    to_npy,
    to_zip,
    write,
    write_npz,
)

from vae.data import readers

A = make_arrays()
X, Y, T, U = A.values()
IDX = make_idx_files()
KERAS = ("x_train", "y_train", "x_test", "y_test")
MEDMNIST = ("train_images", "train_labels", "test_images", "test_labels")


def rename(*names: str) -> dict[str, np.ndarray]:
    return dict(zip(names, A.values(), strict=True))


def csv_files(header: bool = True) -> dict[str, bytes]:
    """train.csv and test.csv: label, pixel0, pixel1 ..."""
    names = [["label", *(f"pixel{number}" for number in range(784))]] * header
    halves = {"train.csv": (X, Y), "test.csv": (T, U)}
    rows = {name: np.column_stack([y, x.reshape(-1, 784)]).tolist() for name, (x, y) in halves.items()}
    return {name: to_csv(*names, *found) for name, found in rows.items()}


def pictures(*parts: str) -> dict[str, np.ndarray]:
    """A picture in a folder of its class, for each image of training and test images; its name is its number."""
    pairs = zip(parts, ((X, Y), (T, U)), strict=True)
    return {f"{part}/{label}/{label}.png": image for part, half in pairs for image, label in zip(*half, strict=True)}


FORMS = {
    "npz": lambda at: write_npz(at / "a.npz", **A),
    "npz of MedMNIST": lambda at: write_npz(at / "a.npz", **rename(*MEDMNIST), val_labels=Y),
    "npz with X_": lambda at: write_npz(at / "a.npz", **rename("X_train", "y_train", "X_test", "y_test"), labels=U),
    "npy": lambda at: write(at, **{f"{name}.npy": to_npy(array) for name, array in A.items()}),
    "npy of MedMNIST": lambda at: write(at, **{f"{k}.npy": to_npy(a) for k, a in rename(*MEDMNIST).items()}),
    "npy in Fortran's order": lambda at: write(at, **{f"{k}.npy": to_npy(np.asfortranarray(a)) for k, a in A.items()}),
    "IDX": lambda at: write(at, **IDX),
    "IDX, zipped": lambda at: write(at, **{f"{name}.gz": gzip.compress(content) for name, content in IDX.items()}),
    "IDX, unzipped by a browser": lambda at: write(at, **{f"{name}.gz": content for name, content in IDX.items()}),
    "CSV": lambda at: write(at, **csv_files()),
    "CSV without a header": lambda at: write(at, **csv_files(header=False)),
    "pictures": lambda at: write(at, **pictures("train", "test")),
    "pictures of Train and Test": lambda at: write(at, **pictures("Train", "TEST")),
}


@pytest.mark.parametrize("make", FORMS.values(), ids=FORMS)
def test_the_same_data_set_in_every_form(tmp_path, make):
    dataset = load(make(tmp_path / "mine"))
    assert_same(dataset, A)
    assert dataset.sha256 == load(write_npz(tmp_path / "as_it_is.npz", **A)).sha256
    assert (dataset.label_names, dataset.warning, dataset.reading) == (None, None, {})


def test_what_is_not_read_is_named(tmp_path):
    more = {"names": np.array(["a"]), "y_val": Y, "hostile": np.array([Path], object)}
    dataset = load(write_npz(tmp_path / "a.npz", **A, **more, x_val=T))
    np.testing.assert_array_equal(dataset.validation_images, T)
    assert dataset.notes == (f"{tmp_path / 'a.npz'}: not read: names, y_val, hostile",)
    folder = write(tmp_path / "npy", **{"images.npy": to_npy(X), "embeddings.npy": to_npy(Y), "a.txt": b""})
    assert any(note.endswith("not read: a.txt, embeddings.npy") for note in load(folder).notes)


def test_the_first_form_of_a_folder_is_read(tmp_path):
    """IDX, .npy, CSV, pictures."""
    folder = write(tmp_path, **{"cat/0.png": X[0], "cat/1.png": X[1]})
    for files in (csv_files(), {"x_train.npy": to_npy(X[:5]), "labels.npy": to_npy(Y[:5])}, IDX):
        before = len(load(folder).train_images)
        assert len(load(write(folder, **files)).train_images) != before


def test_idx_to_the_bit(tmp_path):
    image = bytes(range(256)) * 3 + bytes(16)  # 784 pixels, row by row
    header = bytes.fromhex("00000803 00000001 0000001c 0000001c")
    dataset = load(write(tmp_path, **{STEMS[0]: header + image, STEMS[2]: header + image[::-1]}))
    assert dataset.train_images.tobytes() == image and dataset.test_images.tobytes() == image[::-1]
    assert dataset.train_images[0, 1, 0] == 28  # the second row begins with the 29th pixel
    floats = (X / 255).astype(">f4")
    dataset = load(write(tmp_path, **{STEMS[0]: to_idx(floats), STEMS[2]: to_idx(floats)}))
    np.testing.assert_array_equal(dataset.train_images, floats)
    assert dataset.train_images.dtype.str == np.dtype(np.float32).str  # in this machine's byte order


# CSV: no row is lost, and no label changed


def rows_of(*labels: str) -> list[list]:
    return [[label, *X[number % 6, :4, :4].ravel()] for number, label in enumerate(labels)]


def labels_of(path: Path) -> list[str]:
    """The names of the classes of all rows, sorted; a tenth of them are test images."""
    dataset = load(path)
    return sorted(dataset.label_names[label] for label in [*dataset.train_labels, *dataset.test_labels])


@pytest.mark.parametrize(
    "encoding, labels",
    [
        ("utf-8", ["#", "C#", "C", "#1", "a b"]),
        ("utf-8", ["é", "è", "ê", "中", "№"]),
        ("utf-8-sig", ["é", "è", "ê", "a", "a"]),
        ("cp1252", ["é", "è", "ê", "€", "“a”"]),
        ("utf-8", ["a\u2028b", "a\x85b", "a\x0cb", "a", "b"]),
    ],
)
def test_labels_are_read_as_they_are(tmp_path, encoding, labels):
    content = to_csv(["label", *(f"pixel{number}" for number in range(16))], *rows_of(*labels)).decode()
    for name, text in {"a.csv": content, "b.csv": content.replace("\n", "\r\n\r\n"), "c.csv": content + "\n\n"}.items():
        (tmp_path / name).write_bytes(text.encode(encoding))
        assert labels_of(tmp_path / name) == sorted(labels)
        assert any("cp1252" in note for note in load(tmp_path / name).notes) == (encoding == "cp1252")


@pytest.mark.parametrize("place, names", [(0, range(16)), (7, "abcdefghijklmnop"), (16, range(16))])
def test_the_column_label_may_be_anywhere(tmp_path, place, names):
    header, *rows = [
        row[1 : place + 1] + row[:1] + row[place + 1 :] for row in ([" Label ", *names], *rows_of("x", '"a, b"', "y"))
    ]
    write(tmp_path, **{"a.csv": to_csv(header, *rows)})
    assert labels_of(tmp_path / "a.csv") == ["a, b", "x", "y"]
    dataset = load(tmp_path / "a.csv", image_size=8)
    first = load(write_npz(tmp_path / "b.npz", x_train=X[:3, :4, :4]), image_size=8)
    assert dataset.sha256 == first.sha256


def test_floats_and_16_bits_in_csv(tmp_path):
    images = {"floats.csv": (X[:, :4, :4] / 255).round(4), "deep.csv": X[:, :4, :4].astype(int) * 257}
    for name, array in images.items():
        write(tmp_path, **{name: to_csv(*np.column_stack([Y, array.reshape(6, 16)]).astype(object).tolist())})
        found, wanted = load(tmp_path / name), load(write_npz(tmp_path / "a.npz", x_train=array))
        np.testing.assert_allclose(found.train_images, wanted.train_images, rtol=1e-6)
        assert found.reading == wanted.reading


PIXELS = [f"p{number}" for number in range(16)]
ROW = [7] * 16
BAD_CSV = {
    "a row that is cut": (to_csv([7, *ROW], [7, *ROW[:9]]), "row 2 has 10 cells of 17"),
    "a row that is too long": (to_csv([7, *ROW], [7, *ROW, 1]), "row 2 has 18 cells of 17"),
    "a label that is missing": (to_csv([7, *ROW], ["", *ROW]), "row 2 has 17 cells of 17, or no label"),
    "a pixel that is missing": (to_csv([7, *ROW], [7, "", *ROW[1:]]), "could not convert"),
    "a quotation mark": (to_csv([7, *ROW], ['"7', *ROW], ["8", *ROW]), "row 2 has 1 cells"),
    "names of columns are numbers": (to_csv([*range(17)], [7, *ROW]), "columns are called 0, 1, 2"),
    "a number of the row": (to_csv(["", "label", *PIXELS], [0, 7, *ROW], [1, 7, *ROW]), "shape is (2, 17)"),
    "words": (to_csv(["label", *PIXELS], [7, "x", *ROW[1:]]), "could not convert"),
    "no square": (b"1," * 67 + b"1\n", "shape is (1, 67)"),
    "semicolons": (to_csv([7, *ROW]).replace(b",", b";"), "0 lines"),
    "a header alone": (to_csv(["label", *PIXELS]), "0 lines"),
    "empty": (b"", "0 lines"),
    "UTF-16": (to_csv(["label", *PIXELS], [7, *ROW]).decode().encode("utf-16"), "cannot be read"),
    "neither UTF-8 nor cp1252": (to_csv(["label", *PIXELS], [7, *ROW]) + b"\n\x81", "charmap"),
    "a list of files": (b"file,label\na.png,3\nb.png,4\n", "could not convert"),
}


@pytest.mark.parametrize("content, words", BAD_CSV.values(), ids=BAD_CSV)
def test_a_csv_that_does_not_fit_is_refused(tmp_path, content, words):
    path = write(tmp_path, **{"bad.csv": content}) / "bad.csv"
    line = refuse(load, path)
    assert words in line and str(path) in line and "docs/data.md" in line


@pytest.mark.parametrize(
    "images, labels", [("x_train", "y_train"), ("X_test", "Y_test"), ("images", "labels"), ("train", "trainLabels")]
)
@pytest.mark.parametrize("header", [[], [PIXELS]])
def test_pixels_whose_labels_are_in_another_file_are_refused(tmp_path, images, labels, header):
    folder = write(tmp_path, **{f"{images}.csv": to_csv(*header, ROW, ROW), f"{labels}.csv": b"label\n1\n2\n"})
    line = refuse(load, folder / f"{images}.csv")
    assert f"{labels}.csv lies beside it" in line and "docs/data.md" in line
    line = refuse(load, folder)
    assert f"{images}.csv" in line and "docs/data.md" in line


# What is refused


ZIPPED = gzip.compress(IDX[STEMS[0]], mtime=0)
BAD_IDX = {
    "empty": (0, b"", "0x"),
    "header cut": (2, IDX[STEMS[2]][:11], "requires"),
    "cut": (0, IDX[STEMS[0]][:-1], "4703"),
    "too long": (0, IDX[STEMS[0]] + b"\0", "4705"),
    "gzip cut": (0, ZIPPED[:-20], "end-of-stream"),
    "gzip damaged": (0, ZIPPED[:2000] + bytes(50) + ZIPPED[2050:], "cannot be read"),
    "gzip with another checksum": (0, ZIPPED[:-8] + bytes(8), "CRC"),
    "a page of the web": (0, b"<html>No such file</html>", "0x3c68746d"),
    "labels as images": (0, IDX[STEMS[1]], "train images: their shape is (6,)"),
    "images as labels": (3, IDX[STEMS[2]], "test labels: their shape is (3, 28, 28)"),
    "another number of labels": (1, to_idx(np.zeros(5, np.uint8)), "train labels: their shape is (5,)"),
    "no images": (0, to_idx(np.zeros((0, 28, 28), np.uint8)), "train images: their shape is (0, 28, 28)"),
}


@pytest.mark.parametrize("culprit, content, words", BAD_IDX.values(), ids=BAD_IDX)
def test_damaged_idx_files_are_refused(tmp_path, culprit, content, words):
    line = refuse(load, write(tmp_path, **IDX | {STEMS[culprit]: content}))
    assert words in line and str(tmp_path) in line
    assert STEMS[culprit] in line or "shape" in line


def with_header(header: str) -> bytes:
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode() + X.tobytes()


def huge(count: int) -> bytes:
    """An array of which the header says that it has so many images."""
    return with_header(f"{{'descr': '|u1', 'fortran_order': False, 'shape': ({count}, 28, 28)}}\n")


WHOLE = to_zip(x_train=to_npy(X), x_test=to_npy(T))
BAD_NPZ = {
    "empty": (b"", "not a zip"),
    "cut": (WHOLE[:-200], "not a zip"),
    "a pixel changed": (WHOLE[:1000] + bytes([WHOLE[1000] ^ 1]) + WHOLE[1001:], "CRC"),
    "encrypted": (WHOLE.replace(b"PK\1\2\x14\3\x14\0\0\0", b"PK\1\2\x14\3\x14\0\1\0"), "encrypted"),
    "no .npy inside": (to_zip(x_train=b"hello"), "magic string"),
    "an array that is cut": (to_zip(x_train=to_npy(X)[:-1]), "EOF"),
    "far more declared than there is": (to_zip(x_train=huge(10**9)), "cannot be read"),
    "a header of code": (to_zip(x_train=with_header("__import__('os')")), "malformed"),
    "a header of brackets": (to_zip(x_train=with_header("(" * 9000)), "cannot be read"),
    "a header of signs": (to_zip(x_train=with_header("-" * 9000 + "1")), "cannot be read"),
    "no known names": (to_zip(cats=to_npy(X)), "no array in it has a known name, such as x_train (cats)"),
    "labels alone": (to_zip(y_train=to_npy(Y)), "there are train labels, but no images"),
    "validation images alone": (to_zip(x_val=to_npy(X)), "no images to train on"),
}


@pytest.mark.parametrize("content, words", BAD_NPZ.values(), ids=BAD_NPZ)
def test_damaged_archives_are_refused(tmp_path, content, words):
    path = write(tmp_path, **{"bad.npz": content}) / "bad.npz"
    line = refuse(load, path)
    assert words in line and str(path) in line


BAD_NPY = {
    "cut": to_npy(X)[:-1],
    "huge": huge(10**9),
    "text": b"x" * 999,
    "empty": b"",
    "objects": to_npy(X.astype(object)),
}


@pytest.mark.parametrize("content", BAD_NPY.values(), ids=BAD_NPY)
def test_damaged_npy_files_are_refused(tmp_path, content):
    line = refuse(load, write(tmp_path, **{"x_train.npy": content}))
    assert "x_train.npy: cannot be read" in line and str(tmp_path) in line


def test_an_archive_that_unpacks_to_too_much_is_refused_before_it_is_read(tmp_path, monkeypatch):
    bomb = to_zip(zipfile.ZIP_DEFLATED, x_train=to_npy(X), other=bytes(10**6))
    monkeypatch.setattr(readers, "LARGEST", 10**6)
    assert "more than 1,000,000 bytes" in refuse(load, write(tmp_path, **{"a.npz": bomb}) / "a.npz")
    lying = bomb.replace(struct.pack("<I", 10**6), struct.pack("<I", 100))  # its directory declares less than it holds
    assert len(load(write(tmp_path, **{"a.npz": lying}) / "a.npz").train_images) == 5  # `other` is not read


def test_pickle_is_never_run(tmp_path):
    class Trap:
        def __reduce__(self):
            return Path.touch, (tmp_path / "sprung",)

    trap = np.array([Trap()], dtype=object)
    for path in (
        write_npz(tmp_path / "trap.npz", x_train=trap),
        write(tmp_path / "npy", **{"x_train.npy": to_npy(trap)}),
    ):
        assert "bject" in refuse(load, path)
    assert not (tmp_path / "sprung").exists()
    np.load(tmp_path / "trap.npz", allow_pickle=True)["x_train"]  # the trap does work
    assert (tmp_path / "sprung").exists()
