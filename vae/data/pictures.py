"""Read a folder of pictures, each a file; its sub-folders may be the parts of a data set, and the classes in them."""

import itertools
import os
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vae.data import convert, formats
from vae.data.convert import Remarks
from vae.terminal import UserError

FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "WEBP", "GIF", "PPM")
MAX_FILES = 10**6
PART_OF = {"train": "train", "training": "train", "test": "test", "testing": "test"}
PART_OF |= dict.fromkeys(("val", "valid", "validation", "dev"), "validation")
GREY_MODES = ("1", "L", "LA", "La", "I", "I;16", "I;16B", "I;16L", "I;16N")
TURNED = (5, 6, 7, 8)  # the orientations of a camera that swap height and width


@dataclass(frozen=True)
class Picture:
    """What is known of a picture before it is decoded."""

    path: Path
    part: str  # train, validation or test
    label: str | None  # the name of its class
    size: tuple[int, int]  # height and width
    in_colour: bool
    is_first_of_several: bool


def read_pictures(folder: Path, size: tuple[int, int] | None, remarks: Remarks) -> dict[str, np.ndarray]:
    """Read all pictures under a folder, grey and of one size: the given one, or the nearest one to what they have.

    Returns images (n, H, W) uint8, and labels (n,), the names of their classes, where there are any, by role. A part's
    images are in the order of the numbers in their files' names, whatever their class.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, of damaged and of large pictures
        return _read_all(folder, size, remarks)


def _read_all(folder: Path, size: tuple[int, int] | None, remarks: Remarks) -> dict[str, np.ndarray]:
    from tqdm import tqdm

    skipped: list[Path] = []
    parts = _find_parts(folder, remarks)
    pictures = [picture for part, place in parts.items() for picture in _find(part, place, skipped)]
    if not pictures:
        raise UserError(f"{folder}: holds no images that can be read ({len(skipped):,} other files); check the folder")
    size = size or _choose_size(folder, pictures, remarks)
    formats.check_size(str(folder), (len(pictures), *size), 1)
    images = np.empty((len(pictures), *size), np.uint8)
    is_read = np.ones(len(pictures), bool)
    for index, picture in enumerate(tqdm(pictures, "pictures", leave=False, disable=None)):
        try:
            images[index] = _read(picture.path, size)
        except Exception:  # Pillow's readers have many kinds of errors
            is_read[index] = False
            skipped.append(picture.path)
    _remark(folder, pictures, skipped, remarks)
    return _sort_by_role(pictures, images, is_read)


def _remark(folder: Path, pictures: list[Picture], skipped: list[Path], remarks: Remarks) -> None:
    facts = {
        "pictures in colour, turned to grey": sum(picture.in_colour for picture in pictures),
        "files of several pictures, of which the first is read": sum(p.is_first_of_several for p in pictures),
    }
    remarks.notes += [f"{folder}: {fact}: {count:,}" for fact, count in facts.items() if count]
    if skipped:
        what = "files that are no pictures, are damaged, or lie outside of the classes' folders are skipped"
        remarks.notes.append(f"{folder}: {what}: {len(skipped):,} (the first: {skipped[0].name!r})")


def _sort_by_role(pictures: list[Picture], images: np.ndarray, is_read: np.ndarray) -> dict[str, np.ndarray]:
    arrays: dict[str, np.ndarray] = {}
    known = {picture.label for picture in pictures if picture.part == "train"}
    for part in ("train", "validation", "test"):
        chosen = np.array([picture.part == part for picture in pictures]) & is_read
        if not chosen.any():
            continue
        arrays[f"{part}_images"] = images if chosen.all() else images[chosen]
        labels = [picture.label for picture, is_chosen in zip(pictures, chosen, strict=True) if is_chosen]
        # Test pictures in one folder of another name than any class have no labels: Keras wants such a folder.
        is_wrapper = part == "test" and len(set(labels)) == 1 and known and labels[0] not in known
        if None not in labels and not is_wrapper:
            arrays[f"{part}_labels"] = np.array(labels)
    return arrays


# Find


def holds_pictures(folder: Path) -> bool:
    """Whether there is a picture among the first thousand files."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return any(_inspect(path, "train", None) for path in itertools.islice(_walk(folder), 1000))


def _find_parts(folder: Path, remarks: Remarks) -> dict[str, Path]:
    """The folders of the parts: sub-folders called train, test and so on; if there are none, all is to train on."""
    given, folder = folder, _unwrap(folder)
    places = _list_folders(folder)
    found: dict[str, list[Path]] = {}
    for place in places:
        if part := _part_of(place.name):
            found.setdefault(part, []).append(place)
    if len(found) < 2 and sum(map(len, found.values())) < max(1, len(places)):
        # One of many may be a class that is called train. A wrapper may be called test, and be all there is.
        return {_part_of("-".join(folder.relative_to(given).parts)) or "train": folder}
    parts = {part: max(those, key=lambda place: sum(1 for _ in _walk(place))) for part, those in found.items()}
    if others := [str(place) for place in places if place not in parts.values()]:
        remarks.notes.append(f"{folder}: these folders are not read: {', '.join(others)[:200]}")
    return {part: _unwrap(place) for part, place in parts.items()}


def _unwrap(folder: Path) -> Path:
    """The folder in which classes or parts begin: an archive often holds one folder with everything."""
    places = _list_folders(folder)
    is_wrapper = len(places) == 1 and _list_folders(places[0])
    if not is_wrapper or any(_inspect(path, "", None) for path in folder.glob("*.*")):
        return folder
    return _unwrap(*places)


def _part_of(name: str) -> str | None:
    """The part that the name of a folder says: train, mnist_test, trainingSet ..."""
    words = re.split(r"[-_. ]+", re.sub(r"(?<=[a-z])(?=[A-Z])", "-", name).lower())
    return next((PART_OF[word] for word in words if word in PART_OF), None)


def _list_folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not _is_hidden(path.name))


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name in ("__MACOSX", "Thumbs.db", "desktop.ini")


def _find(part: str, place: Path, skipped: list[Path]) -> list[Picture]:
    """The pictures of a part, in the order of the numbers in their names."""
    pictures = []
    for path in sorted(_walk(place), key=lambda path: (_natural_key(path.stem), path)):
        inner = path.relative_to(place).parts
        picture = _inspect(path, part, inner[0] if len(inner) > 1 else None)
        if picture is None:
            skipped.append(path)
        else:
            pictures.append(picture)
    if len({picture.label is None for picture in pictures}) == 2:
        skipped += [picture.path for picture in pictures if picture.label is None]
        pictures = [picture for picture in pictures if picture.label is not None]
    return pictures


def _walk(folder: Path) -> Iterator[Path]:
    count, seen = 0, set()
    for place, folders, names in os.walk(folder, followlinks=True):
        if os.path.realpath(place) in seen:  # a link to where we came from
            folders.clear()
            continue
        seen.add(os.path.realpath(place))
        folders[:] = sorted(name for name in folders if not _is_hidden(name))
        for name in sorted(name for name in names if not _is_hidden(name)):
            count += 1
            if count > MAX_FILES:
                raise UserError(f"{folder}: holds more than {MAX_FILES:,} files; save them as arrays in an .npz")
            yield Path(place, name)


def _natural_key(name: str) -> list[str | int]:
    """A key that sorts 2 before 10."""
    return [int(text) if index % 2 else text for index, text in enumerate(re.split(r"(\d+)", name))]


def _inspect(path: Path, part: str, label: str | None) -> Picture | None:
    """What the head of a file says of its picture; None where it is no picture, or takes too much memory."""
    from PIL import Image

    try:
        with Image.open(path, formats=FORMATS) as image:
            width, height = image.size
            if image.format != "PNG" and image.getexif().get(0x0112) in TURNED:  # a PNG would be decoded for that
                height, width = width, height
            formats.check_size(str(path), (height, width), 8)  # some copies, of up to four bytes a pixel
            several = getattr(image, "is_animated", False)
            return Picture(path, part, label, (height, width), image.mode not in GREY_MODES, several)
    except Exception:  # Pillow's readers have many kinds of errors
        return None


# Read


def _choose_size(folder: Path, pictures: list[Picture], remarks: Remarks) -> tuple[int, int]:
    """The size that the networks take which is nearest to the middle of the pictures' sizes."""
    sizes = {picture.size for picture in pictures}
    height, width = np.median([picture.size for picture in pictures], axis=0)
    size = convert.nearest_size(height, width)
    if sizes != {size}:
        least, most = np.min(list(sizes), axis=0), np.max(list(sizes), axis=0)
        found = "{} x {}".format(*least) if len(sizes) == 1 else "{} x {} to {} x {}".format(*least, *most)
        remarks.notes.append(f"{folder}: pictures of {found} pixels are scaled to {size[0]} x {size[1]}")
    return size


def _read(path: Path, size: tuple[int, int]) -> np.ndarray:
    """Decode a picture, upright, grey and scaled: (H, W) uint8."""
    from PIL import Image, ImageOps

    with Image.open(path, formats=FORMATS) as image:
        upright = ImageOps.exif_transpose(image)
        if upright.mode.startswith("I"):  # 16 bits, which Pillow itself would cut off at 255
            pixels = np.clip(np.asarray(upright), 0, 65535)  # some programs save 0..255 in 16 bits
            grey = Image.fromarray(np.rint(pixels / (257 if pixels.max() > 255 else 1)).astype(np.uint8))
        elif upright.mode == "F":
            raise ValueError("floats, whose range is unknown")
        elif upright.has_transparency_data:
            white = Image.new("RGBA", upright.size, "white")
            grey = Image.alpha_composite(white, upright.convert("RGBA")).convert("L")
        else:
            grey = upright.convert("L")
        return np.asarray(grey.resize(size[::-1], Image.Resampling.BILINEAR) if grey.size != size[::-1] else grey)
