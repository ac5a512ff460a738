"""Images to train and to test on: a public data set, the user's own files, or the digits embedded in scikit-learn."""

import os
import re
from dataclasses import dataclass, field, replace
from pathlib import Path

from vae.data import convert, readers
from vae.data.dataset import EMBEDDED, HELP, Dataset, Draft, hold_out, number_as_in_run
from vae.terminal import UserError

TEST_SHARE = 0.1  # of the images, where there are no test images
ENDINGS = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp", ".gif", ".pgm", ".ppm")  # of pictures


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
    """Load images to train on: the user's own (--data), or else the data set of a name (--dataset).

    With neither: MNIST, or the digits with a warning where MNIST is in no cache and cannot be downloaded. Raises
    UserError for a data set that is unavailable, and for files that are missing, damaged or hostile.
    """
    dataset = _load(source, may_be_picture=False)
    if not len(dataset.train_images):
        raise UserError(f"{dataset.source}: holds no images to train on; add some, such as x_train; {HELP}")
    return dataset if len(dataset.test_images) else _hold_out_test(dataset, source.seed)


def load_shown(source: Source, config: dict) -> Dataset:
    """Load images to show to the model of a run with this config.json: `test_images`, and their labels as in the run.

    Without a data set or a path: what the run was trained on. All images of a set without test images are shown, or,
    of the run's own set, those that were held out. Sizes and `reading` are the run's.
    """
    own, trained = config["settings"], config["dataset"]
    if source.data is None and source.dataset is None:
        if own["data"] and not os.path.exists(own["data"]):
            raise UserError(f"{own['data']}: the images of the run are gone; say with --data where they are")
        source = Source(None if own["data"] else trained["name"], own["data"], own["transpose"])
    source = replace(source, image_size=trained["image_size"], reading=trained.get("reading", {}))
    dataset = _load(source, may_be_picture=True)
    if not len(dataset.test_images) and dataset.sha256 == trained["sha256"]:
        dataset = _hold_out_test(dataset, own["seed"])
    elif not len(dataset.test_images):
        images, labels = dataset.train_images, dataset.train_labels
        shown = {"test_images": images, "test_labels": labels}
        dataset = replace(dataset, train_images=images[:0], train_labels=None, **shown)
    return number_as_in_run(dataset, list(trained["label_names"] or []))


def _hold_out_test(dataset: Dataset, seed: int) -> Dataset:
    held = hold_out(dataset, TEST_SHARE, seed, "test")
    what = f"{len(held.test_images):,} of {len(dataset.train_images):,} images are held out as the test set"
    return replace(held, notes=(*held.notes, f"{dataset.source}: holds no test images; {what}"))


def _load(source: Source, may_be_picture: bool) -> Dataset:
    """Load a data set with the parts that it has: a part that it lacks has no images."""
    draft, size = Draft("", dict(source.reading)), source.image_size
    size = (size, size) if isinstance(size, int) else size and tuple(size)
    if source.data is None:
        name = _read_public(draft, source.dataset)
    else:
        name = _read_own(draft, source.data, size, may_be_picture)
    convert.convert(draft, size, source.transpose)
    return draft.finish(re.sub(r"[^A-Za-z0-9._-]+", "-", name).lstrip(".-")[:64] or "data")


def _read_public(draft: Draft, dataset: str | None) -> str:
    """Read a public data set, or the digits where MNIST is unavailable and no data set was asked for; its name."""
    from vae.data import public

    name = dataset or "mnist"
    try:
        if name != "digits":
            path, draft.source = public.find(name)
            readers.read(draft, path)
            return name
    except UserError as error:
        if dataset is not None:
            raise UserError(f"--dataset {name}: {error}") from error
        what = "The 1,797 small digits of scikit-learn replace it: its losses do not compare with MNIST's"
        draft.warnings.append(f"{error}. {what}")
    draft.source, draft.arrays = EMBEDDED, public.load_digits()
    return "digits"


def _read_own(draft: Draft, data: str, size: tuple[int, int] | None, may_be_picture: bool) -> str:
    """Read the user's own images; return their name."""
    if "://" in data:
        raise UserError(f"--data {data}: is an address; download it, and give the path of the file or folder")
    path = Path(data).expanduser()
    if not os.path.exists(path):
        raise UserError(f"--data {data}: there is no such file or folder; check the path")
    ending, draft.source = path.suffix.lower(), str(path)
    is_picture = path.is_file() and ending in ENDINGS
    if is_picture and not may_be_picture:
        raise UserError(f"{path}: is one picture; give the folder of all pictures; {HELP}")
    if path.is_file() and ending not in (*ENDINGS, ".npz", ".csv"):
        raise UserError(f"{path}: is no .npz or .csv; if it is one of several files, give their folder; {HELP}")
    try:
        if is_picture or (path.is_dir() and readers.IMAGE_FILES.isdisjoint(map(str.lower, os.listdir(path)))):
            from vae.data import pictures

            pictures.read(draft, path, size)
        else:
            readers.read(draft, path)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error}); check its permissions") from error
    return path.stem if path.is_file() else path.resolve().name
