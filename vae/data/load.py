"""Images to train and to test on: a public data set, the user's own files, or the digits embedded in scikit-learn."""

import hashlib
import re
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from vae.data import convert, layouts, public
from vae.data.convert import Remarks
from vae.data.dataset import EMBEDDED, Dataset, Images, split, take
from vae.data.layouts import Contents
from vae.settings import DATASETS
from vae.terminal import UserError, as_path

TEST_SHARE = 0.1  # of the images, where there are no test images
PARTS = ("train", "validation", "test")
# The file names of EMNIST, whose authors saved every image transposed.
EMNIST = re.compile(r"(^|[/\\])emnist-(balanced|byclass|bymerge|digits|letters|mnist)-[^/\\]*$")


@dataclass(frozen=True)
class Options:
    """Which images are wanted: the flags of that name, and the seed of the run."""

    dataset: str | None = None  # --dataset: the name of a data set
    data: str | None = None  # --data: a path
    transpose: bool = False
    image_size: int | tuple[int, int] | None = None  # a side of squares, or height and width
    seed: int = 0  # it chooses a test set where there is none


def load(options: Options) -> Dataset:
    """Load the user's own images (--data), or else the data set of a name (--dataset).

    With neither: MNIST, or the digits with a warning where MNIST is in no cache and cannot be downloaded. Raises
    UserError for a data set that is unknown or unavailable, and for files that are missing, damaged or hostile.
    """
    dataset = _load(options)
    if not len(dataset.train_images):
        raise UserError(f"{dataset.source}: holds test images only; add images to train on, such as x_train")
    return dataset


def load_for_run(options: Options, config: dict) -> Dataset:
    """As `load`, but without --dataset and --data load what the run with this config.json was trained on.

    The size is that of the options, else `image_size` in the config's "dataset" (height and width), else the setting.
    There may be no images to train on.
    """
    settings = config["settings"]
    size = options.image_size or config["dataset"].get("image_size") or settings.get("image_size")
    if options.dataset is not None or options.data is not None:
        return _load(replace(options, image_size=size))
    data = settings["data"]
    if data and not _exists(data):
        raise UserError(
            f"{_show(data)}: the images that the run was trained on are gone; say with --data where they are"
        )
    dataset = None if data else config["dataset"]["name"]
    return _load(Options(dataset, data or None, bool(settings.get("transpose")), size, settings.get("seed", 0)))


def _load(options: Options) -> Dataset:
    name = options.dataset or "mnist"
    _wanted_size(options)  # a wrong one is refused before anything is downloaded
    if options.data is not None:
        path, name = _find_own(options.data)
        return _read(name, path, str(path), options)
    if options.dataset not in (None, *DATASETS):
        raise UserError(f"--dataset {_show(name)}: there is no such data set; choose from {', '.join(DATASETS)}")
    if name == "digits":
        return load_digits(options)
    try:
        path, source = public.find(name)
        return _read(name, path, source, options)
    except UserError as error:
        if options.dataset is not None:
            raise UserError(f"--dataset {name}: {error}") from error
        warning = f"{error}. The 1,797 small digits of scikit-learn replace it: its losses do not compare with MNIST's"
        return replace(load_digits(options), warning=warning)


def load_digits(options: Options) -> Dataset:
    """The 1,797 real digits in scikit-learn, 1,500 of them to train on, scaled smoothly to the look of MNIST."""
    from sklearn import datasets

    small, labels = datasets.load_digits(return_X_y=True)
    # Bilinear interpolation as a matrix. The 8 pixels fill the middle 20 of 28, where MNIST has its digits, and fade
    # into black around them. Row i of the large image has its centre at position[i] of the small one.
    position = (np.arange(28) - 13.5) * 8 / 20 + 3.5
    weights = np.maximum(0, 1 - np.abs(position[:, None] - np.arange(8)))  # (28, 8)
    large = weights @ small.reshape(-1, 8, 8) @ weights.T  # (1797, 28, 28)
    images, labels = np.rint(large * (255 / 16)).astype(np.uint8), labels.astype(np.uint8)
    halves = {"train_images": images[:1500], "train_labels": labels[:1500]}
    halves |= {"test_images": images[1500:], "test_labels": labels[1500:]}
    return _make("digits", EMBEDDED, Contents(halves, dict.fromkeys(halves, EMBEDDED)), options, Remarks())


# The user's own images


def _find_own(data: str) -> tuple[Path, str]:
    """The path that --data names, and a name for the data set: letters, digits, `.`, `_` and `-`."""
    if not _exists(data):
        raise UserError(f"--data {_show(data)}: there is no such file or folder; check the path")
    path = as_path(data)
    name = path.stem if path.is_file() else path.resolve().name
    return path, re.sub(r"[^A-Za-z0-9._-]+", "-", name).lstrip(".-")[:64] or "data"


def _exists(data: str) -> bool:
    """Whether there is something at a path; UserError where that cannot be said."""
    try:
        return layouts.holds_something(as_path(data))
    except OSError as error:
        raise UserError(f"--data {_show(data)}: cannot be opened ({error.strerror}); check its permissions") from error
    except ValueError as error:  # characters that no path has; a config.json may hold anything
        raise UserError(f"--data {_show(data)}: is no path ({error!s:.80}); correct it") from error


def _show(text: str) -> str:
    """A text for a message: as it is, or, where it is very long or has line breaks, a part of it in quotes."""
    return text if text.isprintable() and len(text) <= 300 else repr(text[:300])


def _read(name: str, path: Path, source: str, options: Options) -> Dataset:
    remarks = Remarks()
    try:
        contents = layouts.read(path, _wanted_size(options), remarks)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error}); check its permissions") from error
    return _make(name, source, contents, options, remarks)


def _wanted_size(options: Options) -> tuple[int, int] | None:
    """Height and width that images are to be scaled to."""
    size = options.image_size
    if size is None:
        return None
    height, width = size if isinstance(size, (tuple, list)) and len(size) == 2 else (size, size)
    if height not in convert.SIZES or width not in convert.SIZES:
        raise UserError(f"--image-size {str(size)[:50]}: choose a multiple of 4 from 8 to 128")
    return int(height), int(width)


def _make(name: str, source: str, contents: Contents, options: Options, remarks: Remarks) -> Dataset:
    """Convert arrays of all kinds to a data set."""
    images = _convert_images(contents, options, remarks)
    labels, label_names = _convert_labels(contents, images, remarks)
    if "test" not in images:
        if "train" not in images:
            raise UserError(f"{source}: holds validation images only; add images to train on, such as x_train")
        count = len(images["train"])
        held = max(1, round(TEST_SHARE * count))
        if held == count:
            raise UserError(f"{source}: holds one image; a data set needs more")
        rest, out = split(count, held, options.seed)
        images |= {"train": take(images["train"], rest), "test": take(images["train"], out)}
        if labels["train"] is not None:
            labels |= {"train": labels["train"][rest], "test": labels["train"][out]}
        remarks.notes.append(
            f"{source}: holds no test images; {held:,} of {count:,} images are held out as the test set"
        )
    images.setdefault("train", images["test"][:0])
    validation = images.get("validation")
    parts = [images["train"], images["test"]] + ([] if validation is None else [validation])
    return Dataset(
        name=name,
        train_images=images["train"],
        train_labels=labels["train"],
        validation_images=validation,
        test_images=images["test"],
        test_labels=labels["test"],
        sha256=_fingerprint(*parts),
        source=source,
        warning="\n".join(dict.fromkeys(remarks.warnings)) or None,
        notes=tuple(dict.fromkeys(remarks.notes)),
        label_names=label_names,
    )


def _convert_images(contents: Contents, options: Options, remarks: Remarks) -> dict[str, Images]:
    """The images of each part, upright and of one size."""
    images, levels = {}, []
    for part in PARTS:
        role = f"{part}_images"
        if role in contents.arrays:
            where = contents.places[role]
            images[part], level = convert.to_images(where, contents.arrays[role], remarks)
            levels.append(level)
            if EMNIST.search(where) and not options.transpose:
                remarks.warnings.append(f"{where}: in EMNIST's own files every image is transposed; add --transpose")
    for level in levels[1:]:
        convert.check_same_scale(levels[0], level)
    if options.transpose:
        remarks.notes.append("rows and columns of every image are swapped (--transpose)")
        images = {part: convert.transpose(array) for part, array in images.items()}
    return _scale_images(contents, images, _wanted_size(options), remarks)


def _scale_images(
    contents: Contents, images: dict, wanted: tuple[int, int] | None, remarks: Remarks
) -> dict[str, Images]:
    sizes = {part: array.shape[1:] for part, array in images.items()}
    if wanted is None and len(set(sizes.values())) > 1:
        found = " and ".join(f"{part} images of {height} x {width}" for part, (height, width) in sizes.items())
        raise UserError(f"{next(iter(contents.places.values()))}: there are {found}; --image-size N brings them to one")
    for part, (height, width) in sizes.items():
        size = wanted or convert.nearest_size(height, width)
        if size != (height, width):
            what = f"images of {height} x {width} pixels are scaled to {size[0]} x {size[1]}"
            remarks.notes.append(f"{contents.places[f'{part}_images']}: {what}")
            images[part] = convert.scale(contents.places[f"{part}_images"], images[part], size)
    return images


def _convert_labels(
    contents: Contents, images: dict, remarks: Remarks
) -> tuple[convert.Labels, tuple[str, ...] | None]:
    labels: convert.Labels = {}
    for part in ("train", "test"):
        role = f"{part}_labels"
        array = contents.arrays.get(role)
        if array is not None:
            array = convert.to_labels(contents.places[role], array, len(images[part]), remarks)
        labels[part] = array
    return convert.number_classes(labels)


def _fingerprint(*parts: Images) -> str:
    digest = hashlib.sha256()
    for images in parts:
        digest.update(f"{images.shape} {images.dtype}".encode())
        for piece in convert.cut(images):
            digest.update(np.ascontiguousarray(images[piece]))
    return digest.hexdigest()
