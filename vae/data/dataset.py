"""What a data set is: images to train on, to validate on and to test on, in memory or in a mapped file."""

import re
from dataclasses import dataclass, replace

import numpy as np

from vae.data import formats
from vae.terminal import UserError

EMBEDDED = "embedded in scikit-learn"


class Subset:
    """Some images of an array that is too large to be copied: (n, H, W) as the array has them."""

    def __init__(self, images: "Images", rows: np.ndarray):
        self._images, self._rows = images, rows
        self.shape, self.dtype = (len(rows), *images.shape[1:]), images.dtype
        self.nbytes = images.nbytes // len(images) * len(rows)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: slice | np.ndarray) -> np.ndarray:
        return self._images[self._rows[index]]


Images = np.ndarray | Subset


@dataclass(frozen=True)
class Dataset:
    """Images (n, H, W), uint8 or float32 in [0, 1], and their labels (n,), or None where there are none."""

    name: str  # fit for the name of a folder
    train_images: Images
    train_labels: np.ndarray | None
    validation_images: Images | None  # None where there are none
    test_images: Images
    test_labels: np.ndarray | None
    sha256: str  # of all images as arrays: it does not depend on the files
    source: str  # in words
    warning: str | None = None  # nobody must miss it
    notes: tuple[str, ...] = ()  # how the input was converted, a line each
    label_names: tuple[str, ...] | None = None  # of the labels 0, 1, ...; None where numbers are their names

    @property
    def image_shape(self) -> tuple[int, int]:
        """Height and width."""
        return self.train_images.shape[1:]

    def sample_training(self, most: int, seed: int) -> tuple[Images, np.ndarray | None]:
        """At most so many training images, chosen at random by `seed`, and their labels (or None)."""
        count = len(self.train_images)
        if count <= most:
            return self.train_images, self.train_labels
        rows = np.sort(np.random.default_rng(seed).choice(count, most, replace=False, shuffle=False))
        return Subset(self.train_images, rows), None if self.train_labels is None else self.train_labels[rows]

    @property
    def named_test_labels(self) -> np.ndarray | None:
        """The test labels (n,): names where they have names, otherwise numbers."""
        if self.test_labels is None or self.label_names is None:
            return self.test_labels
        return np.array(self.label_names)[self.test_labels]

    @property
    def replaces_mnist(self) -> bool:
        """Whether these are the digits because MNIST is unavailable."""
        return self.source == EMBEDDED and self.warning is not None


def number_as_in_run(dataset: Dataset, names: list[str]) -> Dataset:
    """Give the test labels the numbers that their names have in a run whose labels have these `names`.

    Names that the run does not have get the next numbers. Where it has none of them, the labels are left out. A run
    without names has numbers for its labels.
    """
    if dataset.test_labels is None or names == list(dataset.label_names or []):
        return dataset
    labels, rows = np.unique(dataset.test_labels, return_inverse=True)
    texts = [str(label) if dataset.label_names is None else dataset.label_names[label] for label in labels]
    numbers = {name: number for number, name in enumerate(names)} or {
        text: int(text) for text in texts if re.fullmatch("-?[0-9]{1,15}", text)
    }
    if not set(texts) & set(numbers) or (not names and len(numbers) < len(texts)):
        note = f"{dataset.source}: its classes have other names than those of the run: labels are left out"
        return replace(dataset, test_labels=None, label_names=None, notes=(*dataset.notes, note))
    for text in texts:
        numbers.setdefault(text, len(numbers))
    renumbered = np.array([numbers[text] for text in texts])[rows]
    return replace(dataset, test_labels=renumbered, label_names=tuple(numbers) if names else None)


def hold_out(dataset: Dataset, share: float, seed: int) -> Dataset:
    """Move that share of the training images, chosen by `seed`, to the validation images, unless there are some.

    Raises UserError where no image would be left on one side.
    """
    if share == 0:
        return dataset
    if dataset.validation_images is not None:
        note = f"{dataset.source}: its own {len(dataset.validation_images):,} validation images are used"
        return replace(dataset, notes=(*dataset.notes, f"{note} and no --validation-split"))
    count = len(dataset.train_images)
    held = round(share * count)
    if not 0 < held < count:
        raise UserError(f"--validation-split {share:g}: it holds out {held:,} of {count:,} training images; change it")
    rest, out = split(count, held, seed)
    return replace(
        dataset,
        train_images=take(dataset.train_images, rest),
        train_labels=None if dataset.train_labels is None else dataset.train_labels[rest],
        validation_images=take(dataset.train_images, out),
    )


def split(count: int, held: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows that stay, and `held` others that are held out at random."""
    order = np.random.default_rng(seed).permutation(count)
    return np.sort(order[held:]), np.sort(order[:held])


def take(images: Images, rows: np.ndarray) -> Images:
    """Return these images: a copy, or a Subset where they are too large for memory."""
    return images[rows] if images.nbytes <= formats.MAX_BYTES else Subset(images, rows)


def to_pixels(images: np.ndarray) -> np.ndarray:
    """Images as float32 in [0, 1]: bytes are divided by 255, floats are returned as they are."""
    return images / np.float32(255) if images.dtype == np.uint8 else images.astype(np.float32, copy=False)
