"""Images to train and to test on: a public data set, the user's own files, or the digits embedded in scikit-learn."""

import os
import re
from dataclasses import dataclass, field, replace

from vae.data import convert, readers
from vae.data.dataset import Dataset, Draft, hold_out
from vae.terminal import UserError, as_path

TEST_SHARE = 0.1  # of the images, where there are no test images


@dataclass(frozen=True)
class Source:
    """Which images are wanted: the flags of that name, the seed of the run, and how its images were read."""

    dataset: str | None = None  # --dataset: the name of a data set
    data: str | None = None  # --data: a path
    transpose: bool = False
    image_size: int | tuple[int, int] | None = None  # a side of squares, or height and width
    seed: int = 0  # it chooses a test set where there is none
    reading: dict = field(default_factory=dict)  # Dataset.reading of the run that the images are for


def load(source: Source) -> Dataset:
    """Load images to train on: the user's own (--data), or else the data set of a name (--dataset), or else MNIST."""
    dataset = _load(source)
    if not len(dataset.train_images):
        raise UserError(f"{dataset.source}: holds no images to train on; add some, such as x_train")
    return dataset if len(dataset.test_images) else hold_out(dataset, TEST_SHARE, source.seed, "test")


def load_shown(source: Source, config: dict) -> Dataset:
    """Load `test_images` to show to the model of a run: the given ones or its own, with its size, reading and labels.

    Of a set without test images, all images are shown; of the run's own set, only those that were held out.
    """
    own, trained = config["settings"], config["dataset"]
    if source.data is None and source.dataset is None:
        source = Source(None if own["data"] else trained["name"], own["data"], own["transpose"])
    source = replace(source, image_size=trained["image_size"], reading=trained["reading"])
    dataset = _load(source, list(trained["label_names"] or []))
    if len(dataset.test_images):
        return dataset
    if dataset.sha256 == trained["sha256"]:
        return hold_out(dataset, TEST_SHARE, own["seed"], "test")
    shown = {"test_images": dataset.train_images, "test_labels": dataset.train_labels}
    return replace(dataset, train_images=dataset.train_images[:0], train_labels=None, **shown)


def _load(source: Source, run_names: list[str] | None = None) -> Dataset:
    """Load a data set with the parts that it has: a part that it lacks has no images."""
    from vae.data import public

    draft, size = Draft(dict(source.reading), run_names), source.image_size
    size = (size, size) if isinstance(size, int) else size and tuple(size)
    try:
        if source.data is None:
            name, place = public.read(draft, source.dataset)
        else:
            name, place = _read_own(draft, source.data)
        convert.convert(draft, size, source.transpose)
    except UserError as error:
        if source.data is None:
            raise UserError(f"--dataset {source.dataset}: {error}") from error
        raise UserError(f"--data {source.data}: {error}; docs/data.md has rules and recipes") from error
    return draft.finish(name, place)


def _read_own(draft: Draft, data: str) -> tuple[str, str]:
    """Read the user's own images; return a name for them that is fit for a folder, and their source in words."""
    from vae.data import pictures

    path = as_path(data)
    if not os.path.exists(path):
        remedy = "download it first" if re.search(r"\w\w:/", data) else "say with --data where it is"
        raise UserError(f"there is no such file or folder; {remedy}")
    is_picture = path.suffix.lower() in readers.PICTURES and draft.run_names is not None
    if not (path.is_dir() or is_picture or path.suffix.lower() in (".npz", ".csv")):
        remedy = "if it is one of several files or pictures, give their folder"
        raise UserError(f"it is no folder, .npz or .csv; {remedy}")
    try:
        if is_picture or (path.is_dir() and readers.IMAGE_FILES.isdisjoint(map(str.lower, os.listdir(path)))):
            pictures.read(draft, path)
        else:
            readers.read(draft, path)
    except OSError as error:
        raise UserError(f"it cannot be read ({error.strerror or error}); check its permissions") from error
    stem = path.stem if path.is_file() else path.resolve().name
    return re.sub(r"[^A-Za-z0-9._-]+", "-", stem).lstrip(".-")[:64] or "data", str(path)
