"""Small images, and the files that people save them in."""

import contextlib
import gzip
import hashlib
import io
import struct
import tracemalloc
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from vae.data import load as loading
from vae.data.dataset import Dataset

STEMS = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
NAMES = ("x_train", "y_train", "x_test", "y_test")
FIELDS = ("train_images", "train_labels", "test_images", "test_labels")  # of a Dataset, in the order of NAMES


def make_arrays(train: int = 6, test: int = 3) -> dict[str, np.ndarray]:
    """Random images of 28 x 28 bytes, and labels from 0, by their names in an .npz."""
    rng = np.random.default_rng(7)
    return {
        "x_train": rng.integers(0, 256, (train, 28, 28), dtype=np.uint8),
        "y_train": np.arange(train, dtype=np.uint8),
        "x_test": rng.integers(0, 256, (test, 28, 28), dtype=np.uint8),
        "y_test": np.arange(test, dtype=np.uint8),
    }


def to_idx(array: np.ndarray) -> bytes:
    """An IDX file of bytes or of int32."""
    kind = {np.dtype(np.uint8): 8, np.dtype(">i4"): 12}[array.dtype]
    return struct.pack(f">HBB{array.ndim}I", 0, kind, array.ndim, *array.shape) + array.tobytes()


def make_idx_files(train: int = 6, test: int = 3) -> dict[str, bytes]:
    """The four IDX files of `make_arrays`, by stem."""
    return dict(zip(STEMS, map(to_idx, make_arrays(train, test).values()), strict=True))


def write_folder(folder: Path, files: dict[str, bytes], zipped: bool = False) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        path = folder / (f"{name}.gz" if zipped else name)
        path.write_bytes(gzip.compress(content, mtime=0) if zipped else content)
    return folder


def write_npz(path: Path, **arrays) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, **arrays)
    return path


def to_npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def to_zip(compression: int = zipfile.ZIP_STORED, **members: bytes) -> bytes:
    """A zip archive of .npy files with this content."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)
    return file.getvalue()


def to_csv(rows: Iterable, separator: str = ",") -> bytes:
    return "\n".join(separator.join(map(str, row)) for row in rows).encode()


def save_picture(path: Path, image: np.ndarray, mode: str = "L", **options) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).convert(mode).save(path, **options)


def load(path: Path, **options) -> Dataset:
    """Load the images at a path, as --data does."""
    return loading.load(loading.Source(data=str(path), **options))


def assert_is_made(dataset: Dataset) -> None:
    """The data set is that of `make_arrays`, as bytes, and its fingerprint that of the images alone."""
    for field, wanted in zip(FIELDS, make_arrays().values(), strict=True):
        np.testing.assert_array_equal(getattr(dataset, field), wanted)
    digest = hashlib.sha256()
    for images in (dataset.train_images, dataset.test_images):
        assert images.dtype == np.uint8
        digest.update(f"{images.shape} uint8".encode() + images.tobytes())
    assert dataset.sha256 == digest.hexdigest()


@contextlib.contextmanager
def little_memory(most: int) -> Iterator[None]:
    """Fail where Python and NumPy take more than so many bytes at a time."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < most
    finally:
        tracemalloc.stop()
