"""Small images, and the files that people save them in."""

import io
import struct
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

from vae.data import load as loading
from vae.data.dataset import Dataset

STEMS = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")


def make_arrays(train: int = 6, test: int = 3) -> dict[str, np.ndarray]:
    """Random images of 28 x 28 bytes, and labels from 0, by their names in an .npz."""
    images = np.random.default_rng(7).integers(0, 256, (train + test, 28, 28), dtype=np.uint8)
    arrays = {"x_train": images[:train], "y_train": np.arange(train, dtype=np.uint8)}
    return arrays | {"x_test": images[train:], "y_test": np.arange(test, dtype=np.uint8)}


def to_idx(array: np.ndarray) -> bytes:
    """An IDX file of bytes, int16, int32 or float32 (big-endian)."""
    kind = {"|u1": 8, ">i2": 11, ">i4": 12, ">f4": 13}[array.dtype.str]
    return struct.pack(f">HBB{array.ndim}I", 0, kind, array.ndim, *array.shape) + array.tobytes()


def make_idx_files(train: int = 6, test: int = 3) -> dict[str, bytes]:
    """The four IDX files of `make_arrays`, by name."""
    return dict(zip(STEMS, map(to_idx, make_arrays(train, test).values()), strict=True))


def to_npy(array: np.ndarray) -> bytes:
    np.save(file := io.BytesIO(), array)
    return file.getvalue()


def to_zip(compression: int = zipfile.ZIP_STORED, **members: bytes) -> bytes:
    """A zip archive of .npy files with this content."""
    with zipfile.ZipFile(file := io.BytesIO(), "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)
    return file.getvalue()


def to_csv(*rows: list) -> bytes:
    return "\n".join(",".join(map(str, row)) for row in rows).encode()


def write(folder: Path, **files: bytes | np.ndarray) -> Path:
    """Write files, and pictures of arrays, whose names may have `/`; return the folder."""
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, np.ndarray):
            Image.fromarray(content).save(folder / name)
        else:
            (folder / name).write_bytes(content)
    return folder


def write_npz(path: Path, **arrays: np.ndarray) -> Path:
    np.savez(path, **arrays)
    return path


def load(path: Path, **options) -> Dataset:
    """Load the images at a path to train on, as main.py --data does."""
    return loading.load(loading.Source(data=str(path), **options))


def show(path: Path, names: list[str] | None = None, **trained) -> Dataset:
    """Load the images at a path to show them to a model of 28 x 28 pixels, whose labels have these names."""
    trained = {"name": "digits", "sha256": "", "image_size": [28, 28], "label_names": names, "reading": {}} | trained
    config = {"settings": {"data": None, "transpose": False, "seed": 0}, "dataset": trained}
    return loading.load_shown(loading.Source(data=str(path)), config)


def pixels_of(dataset: Dataset) -> set[bytes]:
    """All images of a data set, in any order: without test images, some are held out."""
    return {image.tobytes() for image in [*dataset.train_images, *dataset.test_images]}


def assert_same(dataset: Dataset, arrays: dict[str, np.ndarray]) -> None:
    """The data set has these arrays, as `make_arrays` names them, its images as bytes."""
    found = (dataset.train_images, dataset.train_labels, dataset.test_images, dataset.test_labels)
    for array, wanted in zip(found, arrays.values(), strict=True):
        np.testing.assert_array_equal(array, wanted)
    assert (dataset.train_images.dtype, dataset.test_images.dtype) == (np.uint8, np.uint8)


def read_frames(path: Path) -> tuple[list[np.ndarray], list[int]]:
    """Return the frames of an animation, (height, width) of grey values, and their times."""
    frames, times = [], []
    with Image.open(path) as picture:
        assert picture.info["loop"] == 0  # for ever
        for number in range(picture.n_frames):
            picture.seek(number)
            frames.append(np.asarray(picture.convert("L")).astype(int))
            times.append(picture.info["duration"])
    return frames, times
