"""Images to train and to test on: a public data set, the user's own files, or the digits embedded in scikit-learn."""

import hashlib
import re
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from vae import download, formats
from vae.settings import DATASETS
from vae.terminal import UserError, as_path


@dataclass(frozen=True)
class Dataset:
    """Images (n, H, W), uint8 or float32 in [0, 1], and their labels (n,), or None where there are none."""

    name: str  # fit for the name of a folder
    train_images: np.ndarray
    train_labels: np.ndarray | None
    validation_images: np.ndarray | None  # None where none are held out
    test_images: np.ndarray
    test_labels: np.ndarray | None
    sha256: str  # of the training and test images as arrays: it does not depend on the files
    source: str  # in words
    warning: str | None = None  # nobody must miss it

    @property
    def image_shape(self) -> tuple[int, int]:
        """Height and width."""
        return self.train_images.shape[1:]


def load(dataset: str | None, data: str | None) -> Dataset:
    """Load the user's own images from the path `data` (--data), or else the data set of that name (--dataset).

    With neither: MNIST, or the digits with a warning where MNIST is in no cache and cannot be downloaded. Raises
    UserError for a data set that is unknown or unavailable, and for files that are missing, damaged or hostile.
    """
    if data is not None:
        path, name = _find_own(data)
        return _read(name, path, str(path))
    if dataset not in (None, *DATASETS):
        raise UserError(f"--dataset {_show(dataset)}: there is no such data set; choose from {', '.join(DATASETS)}")
    if dataset == "digits":
        return load_digits()
    name = dataset or "mnist"
    try:
        return _read(name, *download.find(name))
    except UserError as error:
        if dataset is not None:
            raise UserError(f"--dataset {name}: {error}") from error
        warning = f"{error}. The 1,797 small digits of scikit-learn replace it: no figure compares with MNIST's"
        return replace(load_digits(), warning=warning)


def load_for_run(dataset: str | None, data: str | None, config: dict) -> Dataset:
    """As `load`, but with neither: the images that the run with this config.json was trained on."""
    if dataset is None and data is None:
        data = config["settings"]["data"]
        dataset = None if data else config["dataset"]["name"]
    return load(dataset, data)


def hold_out(dataset: Dataset, share: float, seed: int) -> Dataset:
    """Move that share of the training images, chosen by `seed`, to the validation images.

    Raises UserError where no image would be left on one side.
    """
    if share == 0:
        return dataset
    count = len(dataset.train_images)
    held = round(share * count)
    if not 0 < held < count:
        raise UserError(f"--validation-split {share:g}: it holds out {held:,} of {count:,} training images; change it")
    order = np.random.default_rng(seed).permutation(count)
    out, rest = np.sort(order[:held]), np.sort(order[held:])
    labels = None if dataset.train_labels is None else dataset.train_labels[rest]
    images = {"train_images": dataset.train_images[rest], "validation_images": dataset.train_images[out]}
    return replace(dataset, train_labels=labels, **images)


def to_pixels(images: np.ndarray) -> np.ndarray:
    """Images as float32 in [0, 1]: bytes are divided by 255, floats are returned as they are."""
    return images / np.float32(255) if images.dtype == np.uint8 else images.astype(np.float32, copy=False)


def load_digits() -> Dataset:
    """The 1,797 real digits in scikit-learn, 1,500 of them to train on, scaled smoothly to the look of MNIST."""
    from sklearn import datasets

    small, labels = datasets.load_digits(return_X_y=True)
    # Bilinear interpolation as a matrix. The 8 pixels fill the middle 20 of 28, where MNIST has its digits, and fade
    # into black around them. Row i of the large image has its centre at position[i] of the small one.
    position = (np.arange(28) - 13.5) * 8 / 20 + 3.5
    weights = np.maximum(0, 1 - np.abs(position[:, None] - np.arange(8)))  # (28, 8)
    large = weights @ small.reshape(-1, 8, 8) @ weights.T  # (1797, 28, 28)
    images, labels = np.rint(large * (255 / 16)).astype(np.uint8), labels.astype(np.uint8)
    halves = images[:1500], labels[:1500], None, images[1500:], labels[1500:]
    return Dataset("digits", *halves, _fingerprint(images[:1500], images[1500:]), "embedded in scikit-learn")


def _find_own(data: str) -> tuple[Path, str]:
    """The folder or .npz file that --data names, and a name for the data set: letters, digits, `.`, `_` and `-`."""
    shown = _show(data)
    try:
        path = as_path(data)
        if not path.exists():
            raise UserError(f"--data {shown}: there is no such file or folder; check the path")
        if not path.is_dir() and not (path.is_file() and path.suffix.lower() == ".npz"):
            raise UserError(f"--data {shown}: is neither a folder with the four IDX files nor an .npz file; give one")
        name = path.stem if path.is_file() else path.resolve().name
    except OSError as error:
        raise UserError(f"--data {shown}: cannot be opened ({error.strerror}); check its permissions") from error
    except ValueError as error:  # characters that no path has; a config.json may hold anything
        raise UserError(f"--data {shown}: is no path ({error!s:.80}); correct it") from error
    return path, re.sub(r"[^A-Za-z0-9._-]+", "-", name).lstrip(".-")[:64] or "data"


def _show(text: str) -> str:
    """A text for a message: as it is, or, where it is very long or has line breaks, a part of it in quotes."""
    return text if text.isprintable() and len(text) <= 300 else repr(text[:300])


def _read(name: str, path: Path, source: str) -> Dataset:
    arrays = formats.read(path)
    sha256 = _fingerprint(arrays["train_images"], arrays["test_images"])
    return Dataset(name=name, validation_images=None, sha256=sha256, source=source, **arrays)


def _fingerprint(*parts: np.ndarray) -> str:
    digest = hashlib.sha256()
    for images in parts:
        digest.update(f"{images.shape} {images.dtype}".encode())
        digest.update(np.ascontiguousarray(images))
    return digest.hexdigest()
