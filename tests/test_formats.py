"""Reading files: IDX to the bit, .npy larger than memory, what is refused and why, and hostile files."""

import gzip
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
from conftest import refuse
from helpers import (
    STEMS,
    little_memory,
    load,
    make_arrays,
    make_idx_files,
    to_idx,
    to_npy,
    to_zip,
    write_folder,
    write_npz,
)

from vae.data import formats
from vae.data.dataset import hold_out

TRAIN_IMAGES, TRAIN_LABELS, TEST_IMAGES, TEST_LABELS = STEMS


# What is read


def test_idx_is_read_to_the_bit(tmp_path):
    image = bytes(range(256)) * 3 + bytes(16)  # 784 pixels, row by row
    header = bytes.fromhex("00000803 00000001 0000001c 0000001c")
    dataset = load(write_folder(tmp_path, {TRAIN_IMAGES: header + image, TEST_IMAGES: header + image[::-1]}))
    assert dataset.train_images.tobytes() == image and dataset.test_images.tobytes() == image[::-1]
    assert dataset.train_images[0, 1, 0] == 28  # the second row begins with the 29th pixel
    assert dataset.train_labels is None and dataset.test_labels is None


def test_idx_of_floats(tmp_path):
    images = (make_arrays()["x_train"] / 255).astype(">f4")
    header = struct.pack(">4I", 0x0D03, *images.shape)
    dataset = load(write_folder(tmp_path, {TRAIN_IMAGES: header + images.tobytes()}))
    np.testing.assert_array_equal(np.sort(dataset.train_images.ravel())[-1], images.max())
    assert dataset.train_images.dtype == np.dtype("float32")  # of this machine's byte order


@pytest.mark.parametrize("change", [np.asarray, lambda x: x.reshape(-1, 784), lambda x: (x / 255).astype(np.float32)])
def test_npy_files_larger_than_memory_are_mapped(tmp_path, monkeypatch, change):
    rng = np.random.default_rng(0)
    arrays = {"x_train": rng.integers(0, 256, (9000, 28, 28), np.uint8), "y_train": np.resize(range(10), 9000)}
    arrays |= {"x_test": rng.integers(0, 256, (3000, 28, 28), np.uint8)}
    arrays = {name: change(array) if name[0] == "x" else array for name, array in arrays.items()}
    whole = hold_out(load(write_npz(tmp_path / "a.npz", **arrays)), 0.25, seed=3)
    write_folder(tmp_path / "npy", {f"{name}.npy": to_npy(array) for name, array in arrays.items()})

    monkeypatch.setattr(formats, "MAX_BYTES", 2**20)
    assert "vae.unpack" in refuse(load, tmp_path / "a.npz")
    with little_memory(4 * 2**20 * whole.train_images.dtype.itemsize):
        mapped = hold_out(load(tmp_path / "npy"), 0.25, seed=3)
    assert (mapped.sha256, mapped.image_shape) == (whole.sha256, (28, 28))
    assert mapped.test_labels is None
    for field in ("train_images", "train_labels", "validation_images", "test_images"):
        np.testing.assert_array_equal(getattr(mapped, field)[:], getattr(whole, field))


def test_npy_files_that_must_be_converted_have_to_fit_in_memory(tmp_path, monkeypatch):
    folder = write_folder(tmp_path, {"x_train.npy": to_npy(np.asfortranarray(make_arrays(2000)["x_train"]))})
    assert len(load(folder).train_images) == 1800
    monkeypatch.setattr(formats, "MAX_BYTES", 2**20)
    assert "more than" in refuse(load, folder)


# What is refused: files, the one that is named, and words of the line

FILES = make_idx_files()
ZIPPED = gzip.compress(FILES[TRAIN_IMAGES], mtime=0)
LARGER = np.full((6, 32, 32), 99, np.uint8)
BAD_FOLDERS = {
    "nothing at all": (dict.fromkeys(STEMS), "", ["holds no images"]),
    "no test images": ({TEST_IMAGES: None}, TEST_LABELS, ["no test images"]),
    "empty": ({TRAIN_IMAGES: b""}, TRAIN_IMAGES, ["empty"]),
    "empty inside gzip": ({TRAIN_IMAGES: gzip.compress(b"")}, TRAIN_IMAGES, ["empty"]),
    "header cut": ({TEST_IMAGES: FILES[TEST_IMAGES][:11]}, TEST_IMAGES, ["truncated"]),
    "truncated": ({TRAIN_IMAGES: FILES[TRAIN_IMAGES][:-1]}, TRAIN_IMAGES, ["truncated", "4,703", "4,704"]),
    "labels truncated": ({TEST_LABELS: FILES[TEST_LABELS][:-1]}, TEST_LABELS, ["truncated", "2 bytes"]),
    "trailing": ({TRAIN_IMAGES: FILES[TRAIN_IMAGES] + b"\0"}, TRAIN_IMAGES, ["goes on after", "4,704"]),
    "gzip cut": ({TRAIN_IMAGES: ZIPPED[:-20]}, TRAIN_IMAGES, ["damaged", "end-of-stream"]),
    "gzip damaged": ({TRAIN_IMAGES: ZIPPED[:2000] + bytes(50) + ZIPPED[2050:]}, TRAIN_IMAGES, ["damaged"]),
    "gzip checksum": ({TRAIN_IMAGES: ZIPPED[:-8] + bytes(8)}, TRAIN_IMAGES, ["damaged", "CRC"]),
    "gzip trailing": ({TRAIN_IMAGES: ZIPPED + b"more"}, TRAIN_IMAGES, ["damaged"]),
    "not IDX": ({TRAIN_IMAGES: b"<html>No such file</html>"}, TRAIN_IMAGES, ["0x3c68746d", "0x00000803"]),
    "labels as images": ({TRAIN_IMAGES: to_idx(np.zeros(9, np.uint8))}, TRAIN_IMAGES, ["0x00000801"]),
    "images as labels": ({TEST_LABELS: FILES[TEST_IMAGES]}, TEST_LABELS, ["0x00000803"]),
    "two sizes": ({TRAIN_IMAGES: to_idx(LARGER)}, "", ["32 x 32", "28 x 28", "--image-size"]),
    "label count": ({TRAIN_LABELS: to_idx(np.zeros(5, np.uint8))}, TRAIN_LABELS, ["5 labels", "6 images"]),
    "no images": ({TRAIN_IMAGES: to_idx(np.zeros((0, 28, 28), np.uint8))}, TRAIN_IMAGES, ["holds nothing"]),
    "half divided by 255": ({TEST_IMAGES: to_idx(np.eye(28, dtype=np.uint8)[None])}, "", ["one scale", TEST_IMAGES]),
    "too large": ({TRAIN_IMAGES: struct.pack(">4I", 0x803, 2**32 - 1, 28, 28)}, TRAIN_IMAGES, ["more than"]),
}  # fmt: skip


@pytest.mark.parametrize("changes, culprit, words", BAD_FOLDERS.values(), ids=BAD_FOLDERS)
def test_a_bad_folder_is_refused(tmp_path, changes, culprit, words):
    files = {stem: content for stem, content in (FILES | changes).items() if content is not None}
    message = refuse(load, write_folder(tmp_path, files))
    assert [word for word in [str(tmp_path / culprit), *words] if word not in message] == []


X = make_arrays()["x_train"]


def to_npy_with_header(header: str) -> bytes:
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode() + X.tobytes()


WHOLE = to_zip(x_train=to_npy(X), x_test=to_npy(X))
BAD_ARCHIVES = {
    "empty": (b"", ["not a zip"]),
    "no zip": (b"x_train", ["not a zip"]),
    "cut": (WHOLE[:-200], ["not a zip"]),
    "one pixel changed": (WHOLE[:1000] + bytes([WHOLE[1000] ^ 1]) + WHOLE[1001:], ["CRC"]),
    "encrypted": (WHOLE.replace(b"PK\1\2\x14\3\x14\0\0\0", b"PK\1\2\x14\3\x14\0\1\0"), ["encrypted"]),
    "LZMA": (to_zip(zipfile.ZIP_LZMA, x_train=to_npy(X), x_test=to_npy(X)), ["x_train", "compressed"]),
    "other endings": (WHOLE.replace(b"x_train.npy", b"x_train.txt"), ["test images only"]),
    "no .npy inside": (to_zip(x_train=b"hello", x_test=to_npy(X)), ["damaged"]),
    "array cut": (to_zip(x_train=to_npy(X)[:-1], x_test=to_npy(X)), ["x_train", "4,704"]),
    "array too long": (to_zip(x_train=to_npy(X) + b"\0", x_test=to_npy(X)), ["x_train", "4,704"]),
    "header of code": (to_zip(x_train=to_npy_with_header("import os"), x_test=to_npy(X)), ["damaged"]),
    "header too deep": (to_zip(x_train=to_npy_with_header("-" * 1000 + "1"), x_test=to_npy(X)), ["damaged"]),
    "header of brackets": (to_zip(x_train=to_npy_with_header("(" * 1000), x_test=to_npy(X)), ["damaged"]),
    "header far too deep": (to_zip(x_train=to_npy_with_header("-" * 9000 + "1"), x_test=to_npy(X)), ["damaged"]),
}  # fmt: skip


@pytest.mark.parametrize("content, words", BAD_ARCHIVES.values(), ids=BAD_ARCHIVES)
def test_a_bad_archive_is_refused(tmp_path, content, words):
    (tmp_path / "bad.npz").write_bytes(content)
    message = refuse(load, tmp_path / "bad.npz")
    assert [word for word in [str(tmp_path / "bad.npz"), *words] if word not in message] == []


def test_pickle_is_never_run(tmp_path):
    class Trap:
        def __reduce__(self):
            return Path.touch, (tmp_path / "sprung",)

    path = write_npz(tmp_path / "trap.npz", x_train=np.array([Trap()], dtype=object), x_test=X)
    assert "pickled" in refuse(load, path)
    assert not (tmp_path / "sprung").exists()
    np.load(path, allow_pickle=True)["x_train"]  # the trap does work
    assert (tmp_path / "sprung").exists()


@pytest.mark.parametrize("kind", ["idx", "npz"])
def test_a_file_that_may_not_be_read(tmp_path, monkeypatch, kind):
    def forbid(*arguments):
        raise PermissionError(13, "Permission denied")

    path = write_folder(tmp_path, FILES) if kind == "idx" else write_npz(tmp_path / "a.npz", x_train=X, x_test=X)
    monkeypatch.setattr(formats, "open", forbid, raising=False)
    monkeypatch.setattr(formats.zipfile, "ZipFile", forbid)
    message = refuse(load, path)
    assert str(path) in message and "Permission denied" in message


# Hostile files take no more memory than the limit: here 1 MiB, and the files hold or declare 64 MiB

BOMB = 2**26


def long_header() -> bytes:
    """Version 2.0, whose header may declare 4 GiB."""
    return b"\x93NUMPY\x02\x00" + struct.pack("<I", BOMB) + bytes(BOMB)


def huge(kind: str) -> bytes:
    header = f"{{'descr': '|{kind}', 'fortran_order': False, 'shape': ({BOMB // 784}, 28, 28)}}\n"
    return to_npy_with_header(header) + bytes(BOMB)


def lying_zip() -> bytes:
    """A zip archive whose directory declares less than it holds."""
    bomb = to_zip(zipfile.ZIP_DEFLATED, x_train=to_npy(X) + bytes(BOMB), x_test=to_npy(X))
    size = len(to_npy(X))
    return bomb.replace(struct.pack("<I", size + BOMB), struct.pack("<I", size))


def bomb_zip(content: bytes) -> bytes:
    return to_zip(zipfile.ZIP_DEFLATED, x_train=content, x_test=to_npy(X))


BOMBS = {
    "gzip that goes on": (TRAIN_IMAGES, lambda: gzip.compress(FILES[TRAIN_IMAGES] + bytes(BOMB), 1), "goes on after"),
    "idx that declares much": (TRAIN_IMAGES, lambda: struct.pack(">4I", 0x803, 1337, 28, 28), "truncated"),
    "idx that declares too much": (TRAIN_IMAGES, lambda: struct.pack(">4I", 0x803, 1338, 28, 28), "more than"),
    "an array that goes on": ("a.npz", lambda: bomb_zip(to_npy(X) + bytes(BOMB)), "but has another size"),
    "an endless header": ("a.npz", lambda: bomb_zip(long_header()), "damaged"),
    "a large array": ("a.npz", lambda: bomb_zip(huge("u1")), "more than"),
    "truth values, floats later": ("a.npz", lambda: bomb_zip(huge("b1")), f"takes {BOMB // 784 * 784 * 4:,}"),
    "a directory that lies": ("a.npz", lying_zip, "CRC"),
    "a mapped file that is short": ("x_train.npy", lambda: huge("u1")[:-5000], "declares"),
    "a mapped file that goes on": ("x_train.npy", lambda: to_npy(X) + to_npy(X), "declares"),
    "a mapped file with an endless header": ("x_train.npy", long_header, "damaged"),
    "CSV in one line": ("a.csv", lambda: gzip.compress(b"1," * (BOMB // 2)), "columns"),
    "CSV without end": ("a.csv", lambda: gzip.compress((b"1," * 64 + b"1\n") * (BOMB // 500)), "more than"),
}  # fmt: skip


@pytest.mark.parametrize("name, make, words", BOMBS.values(), ids=BOMBS)
def test_a_hostile_file_takes_little_memory(tmp_path, monkeypatch, name, make, words):
    monkeypatch.setattr(formats, "MAX_BYTES", 2**20)
    write_folder(tmp_path, FILES | {name: make()})
    with little_memory(BOMB // 4):
        assert words in refuse(load, tmp_path / name if name != TRAIN_IMAGES else tmp_path)
