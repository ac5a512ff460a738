"""Where images come from: the caller's files in every layout and state of harm, caches, mirrors, and the digits."""

import gzip
import hashlib
import io
import json
import os
import random
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import tracemalloc
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from vae import data, download
from vae.settings import UserError

ROOT = Path(__file__).resolve().parents[1]
STEMS = data.IDX_STEMS
TRAIN_IMAGES, TRAIN_LABELS, TEST_IMAGES, TEST_LABELS = STEMS
HEAVY = ("keras", "pooch", "requests", "sklearn", "tensorflow", "tqdm")


def load(dataset=None, path=None) -> data.Dataset:
    """As the scripts do it."""
    return data.load(*download.find(dataset, None if path is None else str(path)))


def refusal(dataset=None, path=None) -> str:
    """The one line with which loading is refused."""
    with pytest.raises(UserError) as caught:
        load(dataset, path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def make_arrays(train: int = 6, test: int = 3) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(7)
    return {
        "x_train": generator.integers(0, 256, (train, 28, 28), dtype=np.uint8),
        "y_train": np.arange(train, dtype=np.uint8),
        "x_test": generator.integers(0, 256, (test, 28, 28), dtype=np.uint8),
        "y_test": np.arange(test, dtype=np.uint8),
    }


def idx(array: np.ndarray) -> bytes:
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


def make_files(train: int = 6, test: int = 3) -> dict[str, bytes]:
    """The four files, not zipped, by stem."""
    return dict(zip(STEMS, map(idx, make_arrays(train, test).values()), strict=True))


def write_folder(folder: Path, files: dict[str, bytes], name=lambda stem: stem, pack=lambda content: content) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for stem, content in files.items():
        (folder / name(stem)).write_bytes(pack(content))
    return folder


def write_npz(path: Path, **arrays) -> Path:
    np.savez(path, **arrays)
    return path


def assert_is_made(dataset: data.Dataset) -> None:
    expected = make_arrays()
    for found, wanted in zip(dataset[1:5], expected.values(), strict=True):
        assert found.dtype == np.uint8
        np.testing.assert_array_equal(found, wanted)


# The caller's own files


@pytest.mark.parametrize("inner", ["", "MNIST/raw", "FashionMNIST/raw", "raw"])
@pytest.mark.parametrize("dotted", [False, True])
@pytest.mark.parametrize("zipped", [False, True])
def test_every_layout_of_a_folder(tmp_path, inner, dotted, zipped):
    def name(stem):
        return (stem.replace("-idx", ".idx") if dotted else stem) + (".gz" if zipped else "")

    write_folder(tmp_path / "mine" / inner, make_files(), name, gzip.compress if zipped else bytes)
    dataset = load(path=tmp_path / "mine")
    assert_is_made(dataset)
    assert (dataset.name, dataset.source, dataset.warning) == ("mine", str(tmp_path / "mine"), None)


def test_idx_is_read_to_the_bit(tmp_path):
    image = bytes(range(256)) * 3 + bytes(16)  # 784 pixels, row by row
    header = bytes.fromhex("00000803 00000001 0000001c 0000001c")
    files = {TRAIN_IMAGES: header + image, TEST_IMAGES: header + image[::-1]}
    dataset = load(path=write_folder(tmp_path, files))
    assert dataset.train_images.tobytes() == image
    assert dataset.test_images.tobytes() == image[::-1]
    assert dataset.train_images[0, 1, 0] == 28  # the second row begins with the 29th pixel
    assert dataset.train_labels is None and dataset.test_labels is None


def test_gzip_is_told_by_content_not_by_name(tmp_path):
    files = make_files()
    write_folder(tmp_path, {stem: files[stem] for stem in STEMS[:2]}, lambda stem: stem + ".gz")
    write_folder(tmp_path, {stem: files[stem] for stem in STEMS[2:]}, pack=gzip.compress)
    assert_is_made(load(path=tmp_path))


def test_a_folder_of_the_same_name_does_not_hide_a_file(tmp_path):
    write_folder(tmp_path, make_files(), lambda stem: stem.replace("-idx", ".idx"))
    (tmp_path / TRAIN_IMAGES).mkdir()  # as archives of Kaggle have it
    assert_is_made(load(path=tmp_path))


def test_labels_beyond_nine_are_welcome(tmp_path):
    arrays = make_arrays() | {"y_train": np.arange(200, 206, dtype=np.uint8)}
    np.testing.assert_array_equal(load(path=write_npz(tmp_path / "a.npz", **arrays)).train_labels, range(200, 206))


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz(tmp_path, save):
    save(tmp_path / "My own (2).npz", **make_arrays())
    dataset = load(path=tmp_path / "My own (2).npz")
    assert_is_made(dataset)
    assert dataset.name == "My-own-2-"
    assert dataset.source == str(tmp_path / "My own (2).npz")


@pytest.mark.parametrize(
    "change",
    [
        lambda images: images[..., None],
        lambda images: images.astype(np.int64),
        lambda images: images.astype(">u2"),
        np.asfortranarray,
    ],
    ids=["with a channel", "int64", "big-endian", "column by column"],
)
def test_npz_in_other_forms_of_the_same_images(tmp_path, change):
    arrays = {name: change(array) if name[0] == "x" else array for name, array in make_arrays().items()}
    dataset = load(path=write_npz(tmp_path / "a.npz", **arrays))
    assert_is_made(dataset)
    assert dataset.sha256 == load(path=write_folder(tmp_path / "idx", make_files())).sha256


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", ">f8"])
def test_npz_of_floats(tmp_path, dtype):
    arrays = {name: array / 255 for name, array in make_arrays().items() if name[0] == "x"}
    path = write_npz(tmp_path / "a.npz", **{name: array.astype(dtype) for name, array in arrays.items()})
    dataset = load(path=path)
    assert dataset.train_images.dtype == np.dtype("float32")
    np.testing.assert_array_equal(dataset.train_images, arrays["x_train"].astype(dtype).astype(np.float32))
    assert dataset.train_labels is None and dataset.test_labels is None


def test_npz_of_binary_images(tmp_path):
    x = make_arrays()["x_train"] > 127
    images = load(path=write_npz(tmp_path / "a.npz", x_train=x, x_test=x)).train_images
    assert images.dtype == np.float32
    np.testing.assert_array_equal(images, x)


def test_npz_labels_of_other_integers_become_int64(tmp_path):
    arrays = make_arrays() | {"y_train": np.arange(-3, 3, dtype=">i2")}
    dataset = load(path=write_npz(tmp_path / "a.npz", **arrays))
    assert (dataset.train_labels.dtype, dataset.test_labels.dtype) == (np.int64, np.uint8)
    assert dataset.train_labels.tolist() == [-3, -2, -1, 0, 1, 2]


def test_the_hash_is_that_of_the_images_alone(tmp_path):
    arrays = make_arrays()
    digest = hashlib.sha256()
    for name in ("x_train", "x_test"):
        digest.update(f"{arrays[name].shape} uint8".encode() + arrays[name].tobytes())
    unlabelled = {name: array for name, array in arrays.items() if name[0] == "x"}
    changed = unlabelled | {"x_test": arrays["x_test"] ^ 1}
    swapped = {"x_train": arrays["x_test"], "x_test": arrays["x_train"]}

    def hash_of(name, arrays):
        return load(path=write_npz(tmp_path / name, **arrays)).sha256

    assert load(path=write_folder(tmp_path / "idx", make_files())).sha256 == digest.hexdigest()
    assert hash_of("unlabelled.npz", unlabelled) == digest.hexdigest()
    assert len({digest.hexdigest(), hash_of("changed.npz", changed), hash_of("swapped.npz", swapped)}) == 3


def test_pixels():
    images = np.arange(256, dtype=np.uint8)
    floats = np.linspace(0, 1, 5, dtype=np.float32)
    assert data.pixels(images).dtype == np.float32
    np.testing.assert_array_equal(data.pixels(images), (np.arange(256) / 255).astype(np.float32))
    assert data.pixels(floats) is floats


def test_data_wins_over_dataset(tmp_path):
    assert load("digits", write_folder(tmp_path / "mine", make_files())).name == "mine"


@pytest.mark.parametrize(
    "name, safe", [("déjà vu", "d-j-vu"), ("..hidden", "hidden"), ("é", "data"), ("a_b-c.1", "a_b-c.1")]
)
def test_the_name_is_fit_for_a_folder(tmp_path, name, safe):
    assert load(path=write_folder(tmp_path / name, make_files())).name == safe


def test_a_relative_folder_has_its_own_name(tmp_path, monkeypatch):
    monkeypatch.chdir(write_folder(tmp_path / "mine", make_files()))
    assert load(path=".").name == "mine"


# What bad input gets


def replaced(stem: str, change) -> dict[str, bytes]:
    files = make_files()
    return files | {stem: change(files[stem])}


def without(*stems: str) -> dict[str, bytes]:
    return {stem: content for stem, content in make_files().items() if stem not in stems}


ZIPPED = gzip.compress(make_files()[TRAIN_IMAGES], mtime=0)
HARMED = ZIPPED[:2000] + bytes(50) + ZIPPED[2050:]
BINARY = idx(np.eye(28, dtype=np.uint8)[None])
HUGE = struct.pack(">4I", 0x803, 2**32 - 1, 28, 28)
NOT_28 = struct.pack(">4I", 0x803, 6, 32, 32) + bytes(6 * 1024)

BAD_FOLDERS = {
    "nothing at all": ({}, "", [TRAIN_IMAGES, TEST_IMAGES, "lacks"]),
    "no test images": (without(TEST_IMAGES), "", [f"lacks {TEST_IMAGES} "]),
    "one file of labels": (without(TRAIN_LABELS), "", [f"lacks {TRAIN_LABELS} "]),
    "no labels, no test": (without(*STEMS[1:]), "", ["lacks", *STEMS[1:]]),
    "empty": (replaced(TRAIN_IMAGES, lambda _: b""), TRAIN_IMAGES, ["is empty"]),
    "empty inside gzip": (replaced(TRAIN_IMAGES, lambda _: gzip.compress(b"")), TRAIN_IMAGES, ["is empty"]),
    "header cut": (replaced(TEST_IMAGES, lambda file: file[:11]), TEST_IMAGES, ["truncated", "header"]),
    "truncated": (replaced(TRAIN_IMAGES, lambda file: file[:-1]), TRAIN_IMAGES, ["truncated", "4,703", "4,704"]),
    "labels truncated": (replaced(TEST_LABELS, lambda file: file[:-1]), TEST_LABELS, ["truncated", "2 bytes"]),
    "trailing": (replaced(TRAIN_IMAGES, lambda file: file + b"\0"), TRAIN_IMAGES, ["goes on after", "4,704"]),
    "gzip cut": (replaced(TRAIN_IMAGES, lambda _: ZIPPED[:-20]), TRAIN_IMAGES, ["truncated"]),
    "gzip cut early": (replaced(TRAIN_IMAGES, lambda _: ZIPPED[:5]), TRAIN_IMAGES, ["truncated"]),
    "gzip harmed": (replaced(TRAIN_IMAGES, lambda _: HARMED), TRAIN_IMAGES, ["corrupt"]),
    "gzip checksum": (replaced(TRAIN_IMAGES, lambda _: ZIPPED[:-8] + bytes(8)), TRAIN_IMAGES, ["corrupt", "CRC"]),
    "gzip trailing": (replaced(TRAIN_IMAGES, lambda _: ZIPPED + b"more"), TRAIN_IMAGES, ["corrupt"]),
    "not IDX": (replaced(TRAIN_IMAGES, lambda _: b"<html></html>"), TRAIN_IMAGES, ["0x3c68746d", "0x00000803"]),
    "labels as images": (replaced(TRAIN_IMAGES, lambda _: make_files()[TRAIN_LABELS]), TRAIN_IMAGES, ["0x00000801"]),
    "images as labels": (replaced(TEST_LABELS, lambda _: make_files()[TEST_IMAGES]), TEST_LABELS, ["0x00000803"]),
    "not 28 x 28": (replaced(TRAIN_IMAGES, lambda _: NOT_28), TRAIN_IMAGES, ["32 x 32", "28 x 28"]),
    "label count": (make_files() | {TRAIN_LABELS: idx(np.zeros(5, np.uint8))}, TRAIN_LABELS, ["5 labels", "6 images"]),
    "no images": (make_files(train=0), TRAIN_IMAGES, ["0 images"]),
    "binary as bytes": (replaced(TEST_IMAGES, lambda _: BINARY), TEST_IMAGES, ["0 or 1"]),
    "too large": (replaced(TRAIN_IMAGES, lambda _: HUGE), TRAIN_IMAGES, ["4,294,967,295"]),
}  # fmt: skip


@pytest.mark.parametrize("files, culprit, words", BAD_FOLDERS.values(), ids=BAD_FOLDERS)
def test_a_bad_folder_is_refused(tmp_path, files, culprit, words):
    message = refusal(path=write_folder(tmp_path, files))
    assert str(tmp_path / culprit) in message
    assert [word for word in words if word not in message] == []


def test_a_folder_with_two_data_sets_is_refused(tmp_path):
    for inner in ("MNIST", "FashionMNIST"):
        write_folder(tmp_path / inner / "raw", make_files())
    message = refusal(path=tmp_path)
    assert str(tmp_path / "MNIST/raw") in message and str(tmp_path / "FashionMNIST/raw") in message
    assert_is_made(load(path=tmp_path / "FashionMNIST"))


X, Y = make_arrays()["x_train"], make_arrays()["y_train"]
WITH_NAN = np.where(np.arange(X.size).reshape(X.shape) == 1000, np.nan, np.float32(0.5))

BAD_ARRAYS = {
    "no arrays": ({}, ["lacks x_train and y_train and x_test and y_test"]),
    "other names": ({"images": X}, ["lacks x_train", "images"]),
    "no x_test": ({"x_train": X, "y_train": Y}, ["lacks x_test"]),
    "one array of labels": ({"x_train": X, "x_test": X, "y_test": Y}, ["lacks y_train"]),
    "pickled objects": ({"x_train": X, "x_test": np.array([X, None], dtype=object)}, ["x_test", "pickled"]),
    "pickled labels": ({"x_train": X, "x_test": X, "y_train": Y, "y_test": Y.astype(object)}, ["y_test", "pickled"]),
    "text": ({"x_train": X.astype(str), "x_test": X}, ["x_train", "str96"]),
    "complex": ({"x_train": X.astype(complex), "x_test": X}, ["x_train", "complex128"]),
    "records": ({"x_train": X.view([("a", "u1")]), "x_test": X}, ["x_train", "void8"]),
    "a number": ({"x_train": np.uint8(3), "x_test": X}, ["x_train", "()", "(n, 28, 28)"]),
    "flat": ({"x_train": X, "x_test": X.reshape(-1, 784)}, ["x_test", "(6, 784)", "(n, 28, 28)"]),
    "32 x 32": ({"x_train": np.zeros((6, 32, 32)), "x_test": X}, ["x_train", "(6, 32, 32)"]),
    "in colour": ({"x_train": np.stack([X] * 3, -1), "x_test": X}, ["x_train", "(6, 28, 28, 3)"]),
    "no images": ({"x_train": X[:0], "x_test": X}, ["x_train", "no images"]),
    "NaN": ({"x_train": WITH_NAN, "x_test": X}, ["x_train", "NaN"]),
    "infinite": ({"x_train": X, "x_test": np.full_like(WITH_NAN, np.inf)}, ["x_test", "inf"]),
    "floats to 255": ({"x_train": X.astype(float), "x_test": X}, ["x_train", "to 255.0", "0..1"]),
    "floats below 0": ({"x_train": X / 255 - 0.5, "x_test": X}, ["x_train", "from -0.5", "0..1"]),
    "integers to 256": ({"x_train": X.astype(int) + 1, "x_test": X}, ["x_train", "to 256", "0..255"]),
    "integers below 0": ({"x_train": X.astype(int) - 1, "x_test": X}, ["x_train", "from -1", "0..255"]),
    "binary as bytes": ({"x_train": X > 127, "x_test": (X > 127).astype(np.uint8)}, ["x_test", "0 or 1"]),
    "label count": ({"x_train": X, "x_test": X, "y_train": Y, "y_test": Y[:5]}, ["y_test", "(5,)", "(6,)"]),
    "one-hot labels": ({"x_train": X, "x_test": X, "y_train": np.eye(6) > 0, "y_test": Y}, ["y_train", "bool"]),
    "labels in a column": ({"x_train": X, "x_test": X, "y_train": Y[:, None], "y_test": Y}, ["y_train", "(6, 1)"]),
    "labels as floats": ({"x_train": X, "x_test": X, "y_train": Y / 2, "y_test": Y}, ["y_train", "float64"]),
}  # fmt: skip


@pytest.mark.parametrize("arrays, words", BAD_ARRAYS.values(), ids=BAD_ARRAYS)
def test_a_bad_npz_is_refused(tmp_path, arrays, words):
    message = refusal(path=write_npz(tmp_path / "bad.npz", **arrays))
    assert str(tmp_path / "bad.npz") in message
    assert [word for word in words if word not in message] == []


def test_pickle_is_never_run(tmp_path):
    class Trap:
        def __reduce__(self):
            return Path.touch, (tmp_path / "sprung",)

    path = write_npz(tmp_path / "trap.npz", x_train=np.array([Trap()], dtype=object), x_test=X)
    assert "pickled" in refusal(path=path)
    assert not (tmp_path / "sprung").exists()
    np.load(path, allow_pickle=True)["x_train"]  # the trap does work
    assert (tmp_path / "sprung").exists()


def zip_of(compression=zipfile.ZIP_STORED, **members: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)
    return file.getvalue()


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def npy_with_header(header: str) -> bytes:
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode() + X.tobytes()


WHOLE = zip_of(x_train=npy(X), x_test=npy(X))
ENCRYPTED = WHOLE.replace(b"PK\1\2\x14\3\x14\0\0\0", b"PK\1\2\x14\3\x14\0\1\0")

BAD_FILES = {
    "empty": (b"", ["not a zip"]),
    "no zip": (b"x_train", ["not a zip"]),
    "cut": (WHOLE[:-200], ["not a zip"]),
    "one pixel harmed": (WHOLE[:1000] + bytes([WHOLE[1000] ^ 1]) + WHOLE[1001:], ["CRC"]),
    "encrypted": (ENCRYPTED, ["encrypted"]),
    "LZMA": (zip_of(zipfile.ZIP_LZMA, x_train=npy(X), x_test=npy(X)), ["x_train", "compressed"]),
    "no .npy inside": (zip_of(x_train=b"hello", x_test=npy(X)), ["cannot be read"]),
    "array cut": (zip_of(x_train=npy(X)[:-1], x_test=npy(X)), ["x_train", "4,704"]),
    "array too long": (zip_of(x_train=npy(X) + b"\0", x_test=npy(X)), ["x_train", "4,704"]),
    "header without sense": (zip_of(x_train=npy_with_header("import os"), x_test=npy(X)), ["cannot be read"]),
    "header too deep": (zip_of(x_train=npy_with_header("-" * 1000 + "1"), x_test=npy(X)), ["cannot be read"]),
    "header of brackets": (zip_of(x_train=npy_with_header("(" * 1000), x_test=npy(X)), ["cannot be read"]),
    "header far too deep": (zip_of(x_train=npy_with_header("-" * 9000 + "1"), x_test=npy(X)), ["cannot be read"]),
}


@pytest.mark.parametrize("content, words", BAD_FILES.values(), ids=BAD_FILES)
def test_a_file_that_is_no_sound_npz_is_refused(tmp_path, content, words):
    (tmp_path / "bad.npz").write_bytes(content)
    message = refusal(path=tmp_path / "bad.npz")
    assert str(tmp_path / "bad.npz") in message
    assert [word for word in words if word not in message] == []


def test_members_without_the_ending_of_arrays_do_not_count(tmp_path):
    (tmp_path / "bad.npz").write_bytes(WHOLE.replace(b"x_train.npy", b"x_train.txt"))
    assert "lacks x_train" in refusal(path=tmp_path / "bad.npz")


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda path: None, "no such file"),
        (lambda path: path.write_bytes(b""), "neither a folder"),
        (lambda path: path.with_suffix(".npz").mkdir(), "lacks train-images"),
        (lambda path: path.with_suffix(".npz").symlink_to("nowhere"), "no such file"),
    ],
    ids=["missing", "another kind of file", "a folder that ends in .npz", "a broken link"],
)
def test_a_path_that_is_neither_folder_nor_npz_is_refused(tmp_path, make, words):
    make(tmp_path / "mine.txt")
    path = next(tmp_path.iterdir(), tmp_path / "mine.txt")
    message = refusal(path=path)
    assert str(path) in message and words in message


def test_a_path_that_the_system_refuses(tmp_path):
    assert "--data" in refusal(path=tmp_path / ("x" * 300))


@pytest.mark.parametrize("kind", ["idx", "npz"])
def test_a_file_that_may_not_be_read(tmp_path, monkeypatch, kind):
    def forbid(*arguments):
        raise PermissionError(13, "Permission denied")

    if kind == "idx":
        path = write_folder(tmp_path / "mine", make_files())
        monkeypatch.setattr(data, "open", forbid, raising=False)
    else:
        path = write_npz(tmp_path / "a.npz", **make_arrays())
        monkeypatch.setattr(data.zipfile, "ZipFile", forbid)
    message = refusal(path=path)
    assert str(path) in message and "Permission denied" in message


def test_an_unknown_data_set_is_refused():
    assert "cifar" in refusal("cifar")


# Hostile files cost no memory


@pytest.fixture
def peak():
    """Bytes at the peak of memory since the test began."""
    tracemalloc.start()
    yield lambda: tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()


BOMB_SIZE = 2**26


def test_a_gzip_bomb_is_left_alone(tmp_path, peak):
    bomb = gzip.compress(make_files()[TRAIN_IMAGES] + bytes(BOMB_SIZE), 1)
    write_folder(tmp_path, make_files() | {TRAIN_IMAGES: bomb})
    del bomb
    tracemalloc.reset_peak()
    assert "goes on after" in refusal(path=tmp_path)
    assert peak() < BOMB_SIZE / 4


def test_an_idx_header_that_declares_much_costs_nothing(tmp_path, peak):
    header = struct.pack(">4I", 0x803, data.MAX_COUNT, 28, 28)
    write_folder(tmp_path, make_files() | {TRAIN_IMAGES: header + bytes(1000)})
    assert "truncated" in refusal(path=tmp_path)
    assert peak() < BOMB_SIZE / 4


def long_header() -> bytes:
    """Version 2.0, whose header may declare 4 GiB: all of them zeros, as deflate likes them."""
    return b"\x93NUMPY\x02\x00" + struct.pack("<I", BOMB_SIZE) + bytes(BOMB_SIZE)


def large_array() -> bytes:
    shape = (data.MAX_COUNT + 1, 28, 28)
    return npy_with_header(f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}}}\n")


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: npy(X) + bytes(BOMB_SIZE), "declares 4,704 bytes, but the archive"),
        (long_header, "cannot be read"),
        (large_array, "more than 671,088,640"),
    ],
    ids=["an array that goes on", "an endless header", "a large array"],
)
def test_a_zip_bomb_is_left_alone(tmp_path, peak, make, words):
    (tmp_path / "bomb.npz").write_bytes(zip_of(zipfile.ZIP_DEFLATED, x_train=make(), x_test=npy(X)))
    tracemalloc.reset_peak()
    assert words in refusal(path=tmp_path / "bomb.npz")
    assert peak() < BOMB_SIZE / 4


def test_a_zip_whose_directory_lies_about_sizes(tmp_path, peak):
    honest = npy(X)
    bomb = zip_of(zipfile.ZIP_DEFLATED, x_train=honest + bytes(BOMB_SIZE), x_test=honest)
    lie = bomb.replace(struct.pack("<I", len(honest) + BOMB_SIZE), struct.pack("<I", len(honest)))
    assert lie != bomb
    (tmp_path / "bomb.npz").write_bytes(lie)
    tracemalloc.reset_peak()
    assert "CRC" in refusal(path=tmp_path / "bomb.npz")
    assert peak() < BOMB_SIZE / 4


@pytest.mark.parametrize("kind", ["idx", "gzip", "npz", "compressed npz"])
def test_no_harm_to_a_file_ends_in_anything_but_a_user_error(tmp_path, kind):
    chance = random.Random(kind)
    if kind.endswith("npz"):
        path = target = tmp_path / "a.npz"
        (np.savez_compressed if kind != "npz" else np.savez)(path, **make_arrays(2, 1))
    else:
        path = write_folder(tmp_path, make_files(2, 1), pack=gzip.compress if kind == "gzip" else bytes)
        target = path / TRAIN_IMAGES
    whole, refused = target.read_bytes(), 0
    for _ in range(150):
        harmed = bytearray(whole)
        if chance.random() < 0.5:  # near one of the ends, where most of what is declared stands
            start = chance.choice([0, max(0, len(whole) - 600)])
            for place in chance.choices(range(start, min(start + 600, len(whole))), k=chance.randint(1, 5)):
                harmed[place] = chance.randrange(256)
        else:
            del harmed[chance.randrange(len(harmed)) :]
        target.write_bytes(harmed)
        try:
            load(path=path)
        except UserError as error:
            refused += 1
            assert str(target) in str(error) and "\n" not in str(error)
    assert refused > 70


# The embedded digits


def test_digits():
    from sklearn.datasets import load_digits

    small = load_digits()
    dataset = load("digits")
    assert (dataset.name, dataset.source, dataset.warning) == ("digits", "embedded in scikit-learn", None)
    assert (dataset.train_images.shape, dataset.test_images.shape) == ((1500, 28, 28), (297, 28, 28))
    assert dataset.train_images.dtype == dataset.train_labels.dtype == np.uint8
    np.testing.assert_array_equal(np.concatenate([dataset.train_labels, dataset.test_labels]), small.target)

    images = np.concatenate([dataset.train_images, dataset.test_images]).astype(int)
    assert images.max() > 230
    border = np.ones((28, 28), bool)
    border[2:-2, 2:-2] = False
    assert (images[:, border] == 0).all()
    # Smooth: a pixel is 8/20 of an original one wide, and the whole range of grey is 255.
    assert max(abs(np.diff(images, axis=axis)).max() for axis in (1, 2)) <= 255 * 8 / 20 + 1
    # Upright and in place: where an original pixel has its centre, the image looks like it.
    centres = np.rint((np.arange(8) - 3.5) * 20 / 8 + 13.5).astype(int)
    assert np.corrcoef(images[:, centres[:, None], centres].ravel(), small.images.ravel())[0, 1] > 0.95


# Public data sets: caches and mirrors

HOLD = threading.Event()  # what hangs, hangs until this is set


def serve(handler, content):
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(content)))
    handler.end_headers()
    handler.wfile.write(content)


def serve_another_file(handler, content):
    serve(handler, bytes(len(content)))


def serve_half(handler, content):
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(content)))
    handler.end_headers()
    handler.wfile.write(content[: len(content) // 2])


def serve_half_without_saying_so(handler, content):
    serve(handler, content[: len(content) // 2])


def serve_half_and_hang(handler, content):
    serve_half(handler, content)
    handler.wfile.flush()
    HOLD.wait(10)


def serve_nothing(handler, content):
    handler.send_error(404)


def hang(handler, content):
    HOLD.wait(10)


def drip(handler, content):
    handler.send_response(200)
    handler.end_headers()
    for _ in range(500):
        handler.wfile.write(b"\0")
        HOLD.wait(0.02)


def trickle(handler, content):
    handler.send_response(200)
    handler.end_headers()
    for _ in range(500):
        handler.wfile.write(bytes(1024))
        HOLD.wait(0.02)


def pour(handler, content):
    handler.send_response(200)
    handler.end_headers()
    for _ in range(2**9):  # 32 MiB
        handler.wfile.write(bytes(2**16))
        handler.server.poured += 2**16


class Mirror(ThreadingHTTPServer):
    """A server on loopback that answers with `answer`, or for some files with another way of `answers`."""

    daemon_threads = True

    def __init__(self, files: dict[str, bytes], answer=serve, **answers):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files, self.answer, self.answers = files, answer, answers
        self.asked, self.encodings, self.poured = [], set(), 0
        self.host = f"127.0.0.1:{self.server_port}"
        self.url = f"http://{self.host}/some/where/"
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    def handle_error(self, request, client_address):  # a client that left is what these tests are about
        pass


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        file = self.path.rpartition("/")[2]
        self.server.asked.append(file)
        self.server.encodings.add(self.headers["Accept-Encoding"])
        self.server.answers.get(file.split("-idx")[0].replace("-", "_"), self.server.answer)(
            self, self.server.files[file]
        )

    def log_message(self, *arguments):
        pass


class Network:
    """The public data set `mnist` as six and three made images, which mirrors on loopback have to offer."""

    def __init__(self, tmp_path: Path, monkeypatch):
        self.monkeypatch, self.mirrors = monkeypatch, []
        self.cache, self.keras = tmp_path / "cache" / "mnist", tmp_path / "keras" / "datasets"
        self.files = dict(zip(download.FILES, (gzip.compress(f, mtime=0) for f in make_files().values()), strict=True))
        self.checksums = tuple(f"sha256:{hashlib.sha256(content).hexdigest()}" for content in self.files.values())
        self.use()

    def mirror(self, answer=serve, **answers) -> Mirror:
        """Start a mirror, and have it asked after those started before."""
        self.mirrors.append(Mirror(self.files, answer, **answers))
        self.use(*(mirror.url for mirror in self.mirrors))
        return self.mirrors[-1]

    def use(self, *urls: str, keras_npz: str | None = None) -> None:
        self.monkeypatch.setitem(download.PUBLIC, "mnist", download.Public(urls, self.checksums, keras_npz))

    def fill(self, folder: Path) -> Path:
        return write_folder(folder, self.files)

    def cached(self) -> list[str]:
        return sorted(os.listdir(self.cache))

    def close(self) -> None:
        for mirror in self.mirrors:
            mirror.shutdown()
            mirror.server_close()


@pytest.fixture
def network(tmp_path, monkeypatch):
    HOLD.clear()
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("VAE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    monkeypatch.setattr(download, "PATIENCE", 0.5)
    network = Network(tmp_path, monkeypatch)
    yield network
    HOLD.set()
    network.close()


def test_download(network, capsys):
    mirror = network.mirror()
    dataset = load("mnist")
    assert_is_made(dataset)
    assert (dataset.name, dataset.source, dataset.warning) == ("mnist", f"downloaded from {mirror.host}", None)
    assert network.cached() == sorted(download.FILES)
    assert mirror.encodings == {"identity"}  # lest the files arrive unzipped
    assert capsys.readouterr().err == f"-> mnist is being downloaded from {mirror.host}\n"

    dataset = load()  # MNIST is the default, and now at hand
    assert_is_made(dataset)
    assert (dataset.name, dataset.source) == ("mnist", f"cache {network.cache}")
    assert mirror.asked == list(download.FILES)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    "answer, reason",
    [
        (serve_another_file, "not the known file"),
        (serve_half, "broke"),
        (serve_half_without_saying_so, "not the known file"),
        (serve_nothing, "HTTP status 404"),
        (hang, "no answer in time"),
        (drip, "no answer in time"),
    ],
)
def test_a_mirror_that_fails_is_passed_over(network, answer, reason):
    bad = network.mirror(answer)
    message = refusal("mnist")
    assert bad.host in message and reason in message
    assert network.cached() == []

    good = network.mirror()
    dataset = load("mnist")
    assert_is_made(dataset)
    assert dataset.source == f"downloaded from {good.host}"
    assert network.cached() == sorted(download.FILES)


def test_a_file_without_end_is_not_taken(network, monkeypatch):
    monkeypatch.setattr(download, "MAX_DOWNLOAD", 2**20)
    mirror = network.mirror(pour)
    assert mirror.host in refusal("mnist")
    assert 2**20 <= mirror.poured < 2**24  # some of it stays in the buffers of the system


@pytest.mark.parametrize("answer", [hang, trickle])
def test_a_download_that_was_given_up_ends_by_itself(network, monkeypatch, answer):
    monkeypatch.setattr(download, "LEAST_BYTES", 2**20)
    mirror = network.mirror(answer)
    refusal("mnist")
    for given_up in [thread for thread in threading.enumerate() if isinstance(thread, download._Download)]:
        if mirror.url in given_up.url:
            given_up.join(5)
            assert not given_up.is_alive()


def test_later_files_come_first_from_the_mirror_that_worked(network):
    first, second = network.mirror(train_images=serve_nothing), network.mirror()
    assert load("mnist").source == f"downloaded from {second.host}"
    assert first.asked == [download.FILES[0]]
    assert second.asked == list(download.FILES)


def test_mirrors_that_lack_different_files_make_up_for_each_other(network, capsys):
    first = network.mirror(train_labels=serve_nothing, t10k_labels=serve_another_file)
    second = network.mirror(train_images=serve_nothing, t10k_images=serve_nothing)
    dataset = load("mnist")
    assert_is_made(dataset)
    assert dataset.source == f"downloaded from {first.host} and {second.host}"
    assert len(capsys.readouterr().err.splitlines()) == 2


def test_a_mirror_that_hung_is_not_waited_for_again(network):
    hanging, poor = network.mirror(hang), network.mirror(t10k_images=serve_nothing)
    message = refusal("mnist")
    assert hanging.host in message and poor.host in message
    assert hanging.asked == [download.FILES[0]]
    assert network.cached() == sorted(download.FILES[:2])  # whole ones are kept

    poor.answers.clear()
    network.use(poor.url)
    assert_is_made(load("mnist"))
    assert sorted(poor.asked) == sorted([*download.FILES, download.FILES[2]])


def test_a_name_server_that_hangs(network, monkeypatch):
    def hanging(*arguments, **options):
        HOLD.wait(10)
        raise socket.gaierror("released")

    monkeypatch.setattr(socket, "getaddrinfo", hanging)
    network.use("http://mnist.invalid/", "http://mnist2.invalid/")
    message = refusal("mnist")
    assert "mnist.invalid: no answer in time" in message and "mnist2.invalid: no answer in time" in message


def test_a_proxy_is_honoured(network, monkeypatch):
    proxy = network.mirror()
    monkeypatch.setenv("http_proxy", f"http://{proxy.host}")
    network.use("http://mnist.invalid/")
    assert load("mnist").source == "downloaded from mnist.invalid"
    assert proxy.asked == list(download.FILES)


def test_patience_is_within_the_fifteen_seconds_that_are_promised():
    assert max(len(public.mirrors) for public in download.PUBLIC.values()) * download.PATIENCE < 14


def closed_port() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{free.getsockname()[1]}"


def test_without_network_mnist_is_an_error_if_asked_for_and_else_the_digits_with_a_warning(network):
    hosts = closed_port(), closed_port()
    network.use(*(f"http://{host}/" for host in hosts))
    message = refusal("mnist")
    assert all(word in message for word in ("--dataset mnist", *hosts, "no connection", "--data"))

    dataset = load()
    assert (dataset.name, dataset.source) == ("digits", "embedded in scikit-learn")
    assert "mnist" in dataset.warning and "digits" in dataset.warning and hosts[0] in dataset.warning
    assert "\n" not in dataset.warning
    assert len(dataset.train_images) == 1500


def test_a_harmed_file_in_the_cache_is_downloaded_again(network):
    mirror = network.mirror()
    network.fill(network.cache)
    harmed = network.cache / download.FILES[2]
    harmed.write_bytes(gzip.compress(idx(np.zeros((3, 28, 28), np.uint8))))  # sound in form, and yet not the known one
    assert_is_made(load("mnist"))
    assert mirror.asked == [download.FILES[2]]


def test_a_harmed_file_in_the_cache_is_not_used_without_network(network):
    network.fill(network.cache)
    (network.cache / download.FILES[2]).write_bytes(b"harmed")
    network.use(f"http://{closed_port()}/")
    assert "neither cached" in refusal("mnist")
    assert load().name == "digits"
    assert (network.cache / download.FILES[2]).read_bytes() == b"harmed"


def test_the_copy_of_keras_is_used(network):
    network.keras.mkdir(parents=True)
    npz = write_npz(network.keras / "mnist.npz", **make_arrays())
    checksum = f"sha256:{hashlib.sha256(npz.read_bytes()).hexdigest()}"
    network.use(keras_npz=checksum)
    dataset = load("mnist")
    assert_is_made(dataset)
    assert (dataset.name, dataset.source) == ("mnist", f"cache {npz}")

    npz.write_bytes(npz.read_bytes()[:-1])  # Keras leaves what it did not finish
    assert "neither cached" in refusal("mnist")


def test_the_folder_of_keras_is_used_if_whole(network, tmp_path, monkeypatch):
    monkeypatch.delenv("KERAS_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    checksums = tuple(f"md5:{hashlib.md5(content).hexdigest()}" for content in network.files.values())
    monkeypatch.setitem(download.PUBLIC, "fashion-mnist", download.Public((), checksums, None))
    folder = network.fill(tmp_path / ".keras" / "datasets" / "fashion-mnist")
    dataset = load("fashion-mnist")
    assert_is_made(dataset)
    assert (dataset.name, dataset.source) == ("fashion-mnist", f"cache {folder}")

    (folder / download.FILES[3]).unlink()
    assert "--dataset fashion-mnist" in refusal("fashion-mnist")


def test_fashion_mnist_has_a_cache_of_its_own(network, monkeypatch):
    mirror = network.mirror()
    checksums = tuple(f"md5:{hashlib.md5(content).hexdigest()}" for content in network.files.values())
    monkeypatch.setitem(download.PUBLIC, "fashion-mnist", download.Public((mirror.url,), checksums, None))
    assert_is_made(load("fashion-mnist"))
    assert os.listdir(network.cache.parent) == ["fashion-mnist"]


def test_the_cache_is_that_of_the_user_unless_moved(network, tmp_path, monkeypatch):
    import pooch

    monkeypatch.delenv("VAE_CACHE")
    monkeypatch.setattr(pooch, "os_cache", lambda project: tmp_path / "user" / project)
    network.mirror()
    load("mnist")
    assert sorted(os.listdir(tmp_path / "user" / "lstm-vae" / "mnist")) == sorted(download.FILES)


def test_a_cache_that_cannot_be_written(network, tmp_path, monkeypatch):
    mirror = network.mirror()
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("VAE_CACHE", str(tmp_path / "file"))
    message = refusal("mnist")
    assert str(tmp_path / "file") in message and "VAE_CACHE" in message
    assert mirror.asked == []


KILLED = """
import json, sys
from vae import download
url, checksums = json.loads(sys.argv[1])
download.PUBLIC["mnist"] = download.Public((url,), tuple(checksums), None)
download.find("mnist", None)
"""


def test_a_download_that_is_killed_leaves_nothing_that_confuses(network):
    content = os.urandom(10**5)
    mirror = network.mirror(serve_half_and_hang)
    mirror.files = network.files | {download.FILES[0]: content}
    arguments = json.dumps([mirror.url, [f"sha256:{hashlib.sha256(content).hexdigest()}", *network.checksums[1:]]])
    process = subprocess.Popen([sys.executable, "-c", KILLED, arguments], cwd=ROOT, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 20
        while not any(path.stat().st_size for path in network.cache.glob(".*/*")):
            assert process.poll() is None and time.monotonic() < deadline, "the download did not begin"
            time.sleep(0.02)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    (leftover,) = network.cache.iterdir()  # nothing but the hidden folder
    assert leftover.name.startswith(".")

    mirror.files, mirror.answer = network.files, serve
    assert_is_made(load("mnist"))
    assert network.cached() == sorted([leftover.name, *download.FILES])

    os.utime(leftover, (0, 0))  # a day later, it is surely nobody's
    (network.cache / download.FILES[1]).unlink()
    assert_is_made(load("mnist"))
    assert network.cached() == sorted(download.FILES)


def test_nothing_heavy_is_imported_before_it_is_needed():
    script = f"import sys, vae.data, vae.download; print([name for name in {HEAVY} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True).stdout == "[]\n"


@pytest.mark.skipif("MNIST_DIR" not in os.environ, reason="MNIST_DIR does not name a folder with the files of MNIST")
def test_mnist_itself(tmp_path, monkeypatch):
    folder = Path(os.environ["MNIST_DIR"])
    for file, checksum in zip(download.FILES, download.PUBLIC["mnist"].checksums, strict=True):
        assert checksum == f"sha256:{hashlib.sha256((folder / file).read_bytes()).hexdigest()}"
    dataset = load(path=folder)
    assert (dataset.train_images.shape, dataset.test_images.shape) == ((60000, 28, 28), (10000, 28, 28))
    assert np.bincount(dataset.train_labels).tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert dataset.train_images.mean() == pytest.approx(33.318, abs=0.001)
    assert dataset.sha256 == "9beded8eb003dc0fbc1e56a426b0d438375b7129b796b2fe673dddfe8d9c40e5"

    monkeypatch.setenv("VAE_CACHE", str(tmp_path))
    (tmp_path / "mnist").symlink_to(folder.resolve())
    assert load("mnist").source == f"cache {tmp_path / 'mnist'}"
