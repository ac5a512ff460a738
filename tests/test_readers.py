"""Files by their form: what is read to the bit, what is refused and why."""

import gzip
import zipfile
from pathlib import Path

import numpy as np
import pytest
from conftest import refuse
from helpers import STEMS, assert_same, load, make_arrays, make_idx_files, to_csv, to_npy, to_zip, write, write_npz

from vae.data import readers

A = make_arrays()
X, Y, T, U = A.values()
IDX = make_idx_files()
MEDMNIST = dict(zip(("train_images", "train_labels", "test_images", "test_labels"), A.values(), strict=True))
PIXELS = [f"p{number}" for number in range(16)]
ROW = [7] * 16


def npy(**arrays: np.ndarray) -> dict[str, bytes]:
    return {f"{name}.npy": to_npy(array) for name, array in arrays.items()}


def csv_files(*header: list) -> dict[str, bytes]:
    """train.csv and test.csv: a label and 784 pixels a row."""
    halves = {"train.csv": (X, Y), "test.csv": (T, U)}
    rows = {name: np.column_stack([y, x.reshape(-1, 784)]).tolist() for name, (x, y) in halves.items()}
    return {name: to_csv(*header, *found) for name, found in rows.items()}


def pictures(*parts: str) -> dict[str, np.ndarray]:
    """A picture in a folder of its class, for each image of training and test images; its name is its number."""
    pairs = zip(parts, ((X, Y), (T, U)), strict=True)
    return {f"{part}/{label}/{label}.png": image for part, half in pairs for image, label in zip(*half, strict=True)}


FOLDERS = {
    "npy": npy(**A),
    "IDX": IDX,
    "IDX of Kaggle": {f"{k}/{k}": b"" for k in STEMS} | {k.replace("-idx", ".idx"): v for k, v in IDX.items()},
    "IDX, zipped": {f"{name}.gz": gzip.compress(content) for name, content in IDX.items()},
    "IDX, unzipped by a browser": {f"{name}.gz": content for name, content in IDX.items()},
    "CSV": csv_files(["Label ", *range(784)]),
    "CSV without a header": csv_files(),
    "pictures": pictures("train", "TEST"),
}
ARCHIVES = {"npz": A, "MedMNIST": MEDMNIST | {"val_labels": Y}, "X_": {k.replace("x", "X"): v for k, v in A.items()}}


@pytest.mark.parametrize("form", [*FOLDERS, *ARCHIVES])
def test_the_same_data_set_in_every_form(tmp_path, form):
    is_folder = form in FOLDERS
    dataset = load(write(tmp_path, **FOLDERS[form]) if is_folder else write_npz(tmp_path / "a.npz", **ARCHIVES[form]))
    assert_same(dataset, A)
    assert dataset.sha256 == load(write_npz(tmp_path / "as_it_is.npz", **A)).sha256
    assert (dataset.label_names, dataset.warning, dataset.reading) == (None, None, {})


def test_what_is_not_read_is_named(tmp_path):
    more = {"names": np.array(["a"]), "y_val": Y, "labels": U, "hostile": np.array([Path], object)}
    dataset = load(write_npz(tmp_path / "a.npz", **A, **more, x_val=T))
    np.testing.assert_array_equal(dataset.validation_images, T)
    assert dataset.notes == (f"{tmp_path / 'a.npz'}: not read: names, y_val, labels, hostile",)
    folder = write(tmp_path / "npy", **npy(images=X, embeddings=Y), **{"a.txt": b""})
    assert any(note.endswith("not read: a.txt, embeddings.npy") for note in load(folder).notes)


def test_the_first_form_of_a_folder_is_read(tmp_path):
    """IDX, .npy, CSV, pictures."""
    forms = [(pictures("train", "test"), 9), (csv_files(), 9), (npy(x_train=X[:5]), 5), (make_idx_files(2, 1), 3)]
    for files, count in forms:
        dataset = load(write(tmp_path, **files))
        assert len(dataset.train_images) + len(dataset.test_images) == count


UNICODE = ["#", "C#", "C", "#1", "a b", "a\u2028b", "a\x85b", "a\x0cb", "é", "è", "中", '"a, b"']


@pytest.mark.parametrize("encoding, labels", [("utf-8", UNICODE), ("utf-8-sig", ["é"] * 2), ("cp1252", ["é", "“a”"])])
@pytest.mark.parametrize("place", [0, 16])
def test_labels_are_read_as_they_are_wherever_they_are(tmp_path, encoding, labels, place):
    rows = [["label", *PIXELS], *([label, *X[number % 6, :4, :4].ravel()] for number, label in enumerate(labels))]
    content = to_csv(*(row[1 : place + 1] + row[:1] + row[place + 1 :] for row in rows)).decode()
    images = write_npz(tmp_path / "b.npz", x_train=np.resize(X, (len(labels), 28, 28))[:, :4, :4])
    for text in (content, content.replace("\n", "\r\n\r\n"), content.replace("\n", "\r")):
        (tmp_path / "a.csv").write_bytes(text.encode(encoding))
        dataset = load(tmp_path / "a.csv")
        found = [dataset.label_names[label] for label in [*dataset.train_labels, *dataset.test_labels]]
        assert sorted(found) == sorted(label.strip('"') for label in labels)
        assert dataset.sha256 == load(images).sha256
        assert any("cp1252" in note for note in dataset.notes) == (encoding == "cp1252")


@pytest.mark.parametrize("images", [(X[:, :4, :4] / 255).round(4), X[:, :4, :4].astype(int) * 257])
def test_floats_and_16_bits_in_csv(tmp_path, images):
    write(tmp_path, **{"a.csv": to_csv(*np.column_stack([Y, images.reshape(6, 16)]).astype(object).tolist())})
    found, wanted = load(tmp_path / "a.csv"), load(write_npz(tmp_path / "a.npz", x_train=images))
    np.testing.assert_allclose(found.train_images, wanted.train_images, rtol=1e-6)


@pytest.mark.parametrize("images, labels", [("x_train", "y_train"), ("train", "trainLabels")])
@pytest.mark.parametrize("header", [[], [PIXELS]])
def test_pixels_whose_labels_are_in_another_file_are_refused(tmp_path, images, labels, header):
    folder = write(tmp_path, **{f"{images}.csv": to_csv(*header, ROW, ROW), f"{labels}.csv": b"label\n1\n2\n"})
    assert f"{labels}.csv lies beside it" in refuse(load, folder / f"{images}.csv")


LARGE = to_npy(X).replace(b"(6, 28, 28), }        ", b"(6000000, 28, 28), }  ")  # than what there is
BAD = {
    "IDX, cut": (STEMS[0], IDX[STEMS[0]][:-1], "4703"),
    "IDX, a page of the web": (STEMS[0], b"<html>No such file</html>", "0x3c68746d"),
    "gzip, cut": (STEMS[0], gzip.compress(IDX[STEMS[0]])[:-20], "end-of-stream"),
    "labels as images": (STEMS[0], IDX[STEMS[1]], "train images: their shape is (6,)"),
    "npz, an array that is cut": ("a.npz", to_zip(x_train=to_npy(X)[:-1]), "EOF"),
    "npz, no known names": ("a.npz", to_zip(cats=to_npy(X)), "such as x_train; not read: cats"),
    "npz, labels alone": ("a.npz", to_zip(y_train=to_npy(Y)), "there are train labels, but no images"),
    "npy, far more declared than there is": ("x_train.npy", LARGE, "x_train.npy: cannot be read"),
    "CSV, a row that is cut": ("a.csv", to_csv([7, *ROW], [7, *ROW[:9]]), "row 2 has 10 cells of 17"),
    "CSV, a label that is missing": ("a.csv", to_csv([7, *ROW], ["", *ROW]), "row 2 has 17 cells of 17, or no label"),
    "CSV, a pixel that is missing": ("a.csv", to_csv([7, *ROW], [7, "", *ROW[1:]]), "could not convert"),
    "CSV, a label of two lines": ("a.csv", to_csv([7, *ROW], ['"7\n8"', *ROW]), "3 lines of images, but 2 rows"),
    "CSV, names are numbers": ("a.csv", to_csv([*range(17)], [7, *ROW]), "columns are called 0, 1, 2"),
    "CSV, a number of the row": ("a.csv", to_csv(["", "label", *PIXELS], [0, 7, *ROW]), "shape is (1, 17)"),
    "CSV, no encoding": ("a.csv", to_csv([7, *ROW]) + b"\n\x81", "charmap"),
}


@pytest.mark.parametrize("name, content, words", BAD.values(), ids=BAD)
def test_a_damaged_file_is_refused(tmp_path, name, content, words):
    files = IDX if name in STEMS else {}
    line = refuse(load, write(tmp_path, **files | {name: content}) / (name if name[:2] == "a." else ""))
    assert words in line and str(tmp_path) in line


def test_an_archive_that_unpacks_to_too_much_is_refused_before_it_is_read(tmp_path, monkeypatch):
    bomb = to_zip(zipfile.ZIP_DEFLATED, x_train=to_npy(X), other=bytes(10**6))
    monkeypatch.setattr(readers, "LARGEST", 10**6)
    assert "more than 1,000,000 bytes" in refuse(load, write(tmp_path, **{"a.npz": bomb}) / "a.npz")


def test_pickle_is_never_run(tmp_path):
    class Trap:
        def __reduce__(self):
            return Path.touch, (tmp_path / "sprung",)

    trap = np.array([Trap()], dtype=object)
    for path in (write_npz(tmp_path / "trap.npz", x_train=trap), write(tmp_path / "npy", **npy(x_train=trap))):
        assert "bject" in refuse(load, path)
    assert not (tmp_path / "sprung").exists()
    np.load(tmp_path / "trap.npz", allow_pickle=True)["x_train"]  # the trap does work
    assert (tmp_path / "sprung").exists()
