"""What a data set is: images to train on, to validate on and to test on, in memory or in a mapped file."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from vae.terminal import UserError

EMBEDDED = "embedded in scikit-learn"


class Subset:
    """Some images (n, H, W) of an array that may be larger than memory."""

    def __init__(self, images: "Images", rows: np.ndarray):
        self._images, self._rows = images, rows
        self.shape, self.dtype = (len(rows), *images.shape[1:]), images.dtype

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
    sha256: str  # of all images as arrays, before any were held out: it does not depend on the files
    source: str  # in words
    warning: str | None = None  # nobody must miss it
    notes: tuple[str, ...] = ()  # how the input was converted, a line each
    label_names: tuple[str, ...] | None = None  # of the labels 0, 1, ...; None where numbers are their names
    reading: dict = field(default_factory=dict)  # "white" of numbers above 255, "ground" of transparent pictures

    @property
    def image_shape(self) -> tuple[int, int]:
        """Height and width."""
        return self.train_images.shape[1:]

    @property
    def replaces_mnist(self) -> bool:
        """Whether these are the digits because MNIST is unavailable."""
        return self.source == EMBEDDED and self.warning is not None

    def sample_training(self, most: int, seed: int) -> tuple[Images, np.ndarray | None]:
        """At most so many training images, chosen at random by `seed`, and their labels (or None)."""
        count = len(self.train_images)
        rows = np.sort(np.random.default_rng(seed).choice(count, min(most, count), replace=False, shuffle=False))
        return Subset(self.train_images, rows), _take(self.train_labels, rows)


@dataclass
class Draft:
    """A data set in the making: arrays by role ("train images", "test labels" ...), and what the user must be told."""

    reading: dict  # that of the run whose model is shown the images; {} where they are to train on
    run_names: list[str] | None = None  # of that run's labels: [] where they are numbers, None where there is no run
    label_names: tuple[str, ...] | None = None
    sha256: str = ""  # of all images
    arrays: dict[str, np.ndarray] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)  # how input was converted
    warnings: list[str] = field(default_factory=list)  # what looks wrong

    def finish(self, name: str, source: str) -> Dataset:
        """Return the data set. A part that was not found has no images."""
        none = next(array for role, array in self.arrays.items() if role.endswith("images"))[:0]
        arrays = dict.fromkeys(("train_labels", "validation_images", "test_labels"))
        arrays |= {"train_images": none, "test_images": none}
        arrays |= {role.replace(" ", "_"): array for role, array in self.arrays.items()}
        told = {"warning": "\n".join(self.warnings) or None, "notes": tuple(f"{source}: {note}" for note in self.notes)}
        stored = {"sha256": self.sha256, "label_names": self.label_names, "reading": self.reading}
        return Dataset(name=name, source=source, **arrays, **told, **stored)


def name_label(label: int, names: Sequence[str] | None) -> str:
    """The name of a label, or its number where it has no name."""
    return names[label] if names and 0 <= label < len(names) else str(label)


def to_pixels(images: np.ndarray) -> np.ndarray:
    """Images as float32 in [0, 1]: bytes are divided by 255, floats are returned as they are."""
    return images / np.float32(255) if images.dtype == np.uint8 else images.astype(np.float32, copy=False)


def hold_out(dataset: Dataset, share: float, seed: int, part: str = "validation") -> Dataset:
    """Move that share of the training images, chosen by `seed`, to the images of a part that has none."""
    if share == 0:
        return dataset
    if part == "validation" and dataset.validation_images is not None:
        note = f"{dataset.source}: its own {len(dataset.validation_images):,} validation images are used"
        return replace(dataset, notes=(*dataset.notes, f"{note} and no --validation-split"))
    images, labels = dataset.train_images, dataset.train_labels
    held = max(1, round(share * len(images)))
    what = f"{held:,} of {len(images):,} training images are held out as {part} images"
    if held == len(images):
        remedy = "lower --validation-split" if part == "validation" else "a data set needs two"
        raise UserError(f"{dataset.source}: {what}, and none is left to train on; {remedy}")
    order = np.random.default_rng(seed).permutation(len(images))
    rest, out = np.sort(order[held:]), np.sort(order[:held])
    moved = {f"{part}_images": _take(images, out)} | ({"test_labels": _take(labels, out)} if part == "test" else {})
    moved |= {"train_images": _take(images, rest), "train_labels": _take(labels, rest)}
    return replace(dataset, **moved, notes=(*dataset.notes, f"{dataset.source}: {what}"))


def _take(array: Images | None, rows: np.ndarray) -> Images | None:
    """These rows of an array: a copy, or a Subset where the array is in a mapped file."""
    if isinstance(array, (np.memmap, Subset)) and len(array.shape) == 3:
        return Subset(array, rows)
    return None if array is None else array[rows]
