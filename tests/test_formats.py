"""Reading IDX and .npz files: every layout and number type, what is refused and why, and hostile files."""

import gzip
import struct
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
from helpers import make_arrays, make_idx_files, to_idx, to_npy, to_zip, write_folder, write_npz

from vae import formats
from vae.terminal import UserError

STEMS = formats.IDX_STEMS
TRAIN_IMAGES, TRAIN_LABELS, TEST_IMAGES, TEST_LABELS = STEMS


def assert_is_made(arrays: formats.Arrays) -> None:
    """The arrays are those of `make_arrays`, as bytes."""
    assert tuple(arrays) == formats.ROLES
    for found, wanted in zip(arrays.values(), make_arrays().values(), strict=True):
        assert found.dtype == np.uint8
        np.testing.assert_array_equal(found, wanted)


def refuse(path: Path) -> str:
    """The one line with which a file is refused."""
    with pytest.raises(UserError) as caught:
        formats.read(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# What is read


def test_idx_is_read_to_the_bit(tmp_path):
    image = bytes(range(256)) * 3 + bytes(16)  # 784 pixels, row by row
    header = bytes.fromhex("00000803 00000001 0000001c 0000001c")
    arrays = formats.read(write_folder(tmp_path, {TRAIN_IMAGES: header + image, TEST_IMAGES: header + image[::-1]}))
    assert arrays["train_images"].tobytes() == image and arrays["test_images"].tobytes() == image[::-1]
    assert arrays["train_images"][0, 1, 0] == 28  # the second row begins with the 29th pixel
    assert arrays["train_labels"] is None and arrays["test_labels"] is None


@pytest.mark.parametrize("inner", formats.FOLDERS)
@pytest.mark.parametrize("dotted", [False, True])
@pytest.mark.parametrize("zipped", [False, True])
def test_every_layout_of_a_folder(tmp_path, inner, dotted, zipped):
    files = {stem.replace("-idx", ".idx") if dotted else stem: content for stem, content in make_idx_files().items()}
    write_folder(tmp_path / inner, files, zipped)
    if dotted and not zipped:
        (tmp_path / inner / TRAIN_IMAGES).mkdir()  # Kaggle's archives have a folder of the same name
    assert_is_made(formats.read(tmp_path))


def test_content_tells_gzip(tmp_path):
    files = {f"{stem}.gz": content for stem, content in make_idx_files().items()}  # a browser has unpacked them
    content = files[f"{TRAIN_IMAGES}.gz"]
    parts = [gzip.compress(content[start : start + 1000]) for start in range(0, len(content), 1000)]
    assert_is_made(formats.read(write_folder(tmp_path, files | {f"{TRAIN_IMAGES}.gz": b"".join(parts) + bytes(999)})))


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize(
    "change",
    [
        lambda images: images,
        lambda images: images[..., None],
        lambda images: images.astype(np.int64),
        lambda images: images.astype(">u2"),
        np.asfortranarray,
    ],
    ids=["plain", "with a channel", "int64", "big-endian", "column by column"],
)
def test_npz_of_whole_numbers(tmp_path, save, change):
    save(tmp_path / "a.npz", **{name: change(a) if name[0] == "x" else a for name, a in make_arrays().items()})
    assert_is_made(formats.read(tmp_path / "a.npz"))


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", ">f8", "bool"])
def test_npz_of_floats_and_truth_values(tmp_path, dtype):
    x = (make_arrays()["x_train"] / 255).round(0 if dtype == "bool" else 9).astype(dtype)
    arrays = formats.read(write_npz(tmp_path / "a.npz", x_train=x, x_test=x))
    assert arrays["train_images"].dtype == np.dtype("float32")  # of this machine's byte order
    np.testing.assert_array_equal(arrays["train_images"], x.astype(np.float32))
    assert arrays["train_labels"] is None


def test_labels_of_other_whole_numbers(tmp_path):
    arrays = make_arrays() | {"y_train": np.arange(-3, 3, dtype=">i2"), "y_test": np.arange(200, 203, dtype=np.uint8)}
    read = formats.read(write_npz(tmp_path / "a.npz", **arrays))
    assert (read["train_labels"].dtype, read["test_labels"].dtype) == (np.int64, np.uint8)
    assert (read["train_labels"].tolist(), read["test_labels"].tolist()) == ([-3, -2, -1, 0, 1, 2], [200, 201, 202])


# What is refused: files, the one that is named, and words of the line

FILES = make_idx_files()
ZIPPED = gzip.compress(FILES[TRAIN_IMAGES], mtime=0)
BAD_FOLDERS = {
    "nothing at all": (dict.fromkeys(STEMS), "", ["lacks", TRAIN_IMAGES, TEST_IMAGES]),
    "no test images": ({TEST_IMAGES: None}, "", [f"lacks {TEST_IMAGES} "]),
    "one file of labels": ({TRAIN_LABELS: None}, "", [f"lacks {TRAIN_LABELS} "]),
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
    "not 28 x 28": ({TRAIN_IMAGES: to_idx(np.ones((6, 32, 32), np.uint8))}, TRAIN_IMAGES, ["(6, 32, 32)", "28"]),
    "label count": ({TRAIN_LABELS: to_idx(np.zeros(5, np.uint8))}, "", ["5 train labels", "6 train images"]),
    "no images": ({TRAIN_IMAGES: to_idx(np.zeros((0, 28, 28), np.uint8))}, TRAIN_IMAGES, ["nothing"]),
    "binary as bytes": ({TEST_IMAGES: to_idx(np.eye(28, dtype=np.uint8)[None])}, TEST_IMAGES, ["0 or 1"]),
    "too large": ({TRAIN_IMAGES: struct.pack(">4I", 0x803, 2**32 - 1, 28, 28)}, TRAIN_IMAGES, ["more than"]),
}  # fmt: skip


@pytest.mark.parametrize("changes, culprit, words", BAD_FOLDERS.values(), ids=BAD_FOLDERS)
def test_a_bad_folder_is_refused(tmp_path, changes, culprit, words):
    files = {stem: content for stem, content in (FILES | changes).items() if content is not None}
    message = refuse(write_folder(tmp_path, files))
    assert [word for word in [str(tmp_path / culprit), *words] if word not in message] == []


def test_a_folder_with_two_data_sets_is_refused(tmp_path):
    for inner in ("MNIST/raw", "FashionMNIST/raw"):
        write_folder(tmp_path / inner, FILES)
    message = refuse(tmp_path)
    assert str(tmp_path / "MNIST/raw") in message and str(tmp_path / "FashionMNIST/raw") in message
    assert_is_made(formats.read(tmp_path / "FashionMNIST"))


X, Y = make_arrays()["x_train"], make_arrays()["y_train"]
HALF = np.full(X.shape, 0.5, np.float32)
BAD_ARRAYS = {
    "no arrays": ({"x_train": None, "x_test": None}, ["lacks x_train and y_train and x_test and y_test"]),
    "other names": ({"x_train": None, "images": X}, ["lacks x_train", "images"]),
    "no x_test": ({"x_test": None}, ["lacks", "x_test"]),
    "one array of labels": ({"y_test": Y}, ["lacks y_train"]),
    "pickled objects": ({"x_test": np.array([X, None], dtype=object)}, ["x_test", "pickled"]),
    "pickled labels": ({"y_train": Y, "y_test": Y.astype(object)}, ["y_test", "pickled"]),
    "text": ({"x_train": X.astype(str)}, ["x_train", "str96"]),
    "complex": ({"x_train": X.astype(complex)}, ["x_train", "complex128"]),
    "records": ({"x_train": X.view([("a", "u1")])}, ["x_train", "void8"]),
    "a number": ({"x_train": np.uint8(3)}, ["x_train", "()", "(n, 28, 28)"]),
    "32 x 32": ({"x_train": np.zeros((6, 32, 32))}, ["x_train", "(6, 32, 32)"]),
    "no images": ({"x_train": X[:0]}, ["x_train", "holds nothing"]),
    "NaN": ({"x_train": np.where(np.arange(X.size).reshape(X.shape) == 1000, np.nan, HALF)}, ["x_train", "NaN"]),
    "infinite": ({"x_test": HALF * np.inf}, ["x_test", "inf"]),
    "floats to 255": ({"x_train": X.astype(float)}, ["x_train", "to 255.0", "0..1"]),
    "floats below 0": ({"x_train": X / 255 - 0.5}, ["x_train", "from -0.5", "0..1"]),
    "integers to 256": ({"x_train": X.astype(int) + 1}, ["x_train", "to 256", "0..255"]),
    "integers below 0": ({"x_train": X.astype(int) - 1}, ["x_train", "from -1", "0..255"]),
    "binary as bytes": ({"x_test": (X > 127).astype(np.uint8)}, ["x_test", "0 or 1"]),
    "label count": ({"y_train": Y, "y_test": Y[:5]}, ["5 test labels", "6 test images"]),
    "one-hot labels": ({"y_train": np.eye(6, dtype=int), "y_test": Y}, ["y_train", "(6, 6)"]),
    "labels as floats": ({"y_train": Y / 2, "y_test": Y}, ["y_train", "float64"]),
}  # fmt: skip


@pytest.mark.parametrize("changes, words", BAD_ARRAYS.values(), ids=BAD_ARRAYS)
def test_a_bad_npz_is_refused(tmp_path, changes, words):
    arrays = {name: array for name, array in ({"x_train": X, "x_test": X} | changes).items() if array is not None}
    message = refuse(write_npz(tmp_path / "bad.npz", **arrays))
    assert [word for word in [str(tmp_path / "bad.npz"), *words] if word not in message] == []


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
    "other endings": (WHOLE.replace(b"x_train.npy", b"x_train.txt"), ["lacks x_train"]),
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
    message = refuse(tmp_path / "bad.npz")
    assert [word for word in [str(tmp_path / "bad.npz"), *words] if word not in message] == []


def test_pickle_is_never_run(tmp_path):
    class Trap:
        def __reduce__(self):
            return Path.touch, (tmp_path / "sprung",)

    path = write_npz(tmp_path / "trap.npz", x_train=np.array([Trap()], dtype=object), x_test=X)
    assert "pickled" in refuse(path)
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
    message = refuse(path)
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
    "an array that goes on": ("a.npz", lambda: bomb_zip(to_npy(X) + bytes(BOMB)), "the archive another size"),
    "an endless header": ("a.npz", lambda: bomb_zip(long_header()), "damaged"),
    "a large array": ("a.npz", lambda: bomb_zip(huge("u1")), "more than"),
    "truth values, floats later": ("a.npz", lambda: bomb_zip(huge("b1")), f"takes {BOMB // 784 * 784 * 4:,}"),
    "a directory that lies": ("a.npz", lying_zip, "CRC"),
}  # fmt: skip


@pytest.mark.parametrize("name, make, words", BOMBS.values(), ids=BOMBS)
def test_a_hostile_file_takes_little_memory(tmp_path, monkeypatch, name, make, words):
    monkeypatch.setattr(formats, "MAX_BYTES", 2**20)
    write_folder(tmp_path, FILES | {name: make()})
    tracemalloc.start()
    try:
        assert words in refuse(tmp_path if name == TRAIN_IMAGES else tmp_path / name)
        assert tracemalloc.get_traced_memory()[1] < 2**22
    finally:
        tracemalloc.stop()
