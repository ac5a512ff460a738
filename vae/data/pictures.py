"""Read a folder of pictures, each a file, or one picture, as arrays of one size, with their classes."""

import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps
from tqdm import tqdm

from vae.data.convert import nearest_size
from vae.data.dataset import Draft
from vae.data.readers import explain
from vae.terminal import UserError

FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "WEBP", "GIF", "PPM")  # readers of others may start programs
PARTS = {"train": "train", "test": "test", "val": "validation", "valid": "validation", "validation": "validation"}
NO_CLASSES = ("training", "testing", "val", "valid", "validation", "dev")


def read(draft: Draft, path: Path) -> None:
    """Read all pictures of a folder, or one picture, in one size. Files that Pillow cannot open are skipped."""
    files = _find_files(draft, path) if path.is_dir() else [("train", None, path)]
    found, sizes, skipped = {}, [], []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, of damaged and of large pictures
        for part, label, file in tqdm(files, "pictures", leave=False, disable=None):
            if part is None or (picture := _open(file)) is None:
                skipped.append(file.name)
            else:
                sizes.append((picture.height, picture.width))
                found.setdefault(part, []).append((_scale(picture, nearest_size(*sizes[-1])), label))  # saves memory
    what = "files that are no pictures, are damaged, or lie beside the classes' folders"
    if not found:
        seen = explain(path) if path.is_dir() else "get a sound copy of it"
        raise UserError(f"there are no pictures, nor arrays under known names, but {len(skipped):,} {what}; {seen}")
    size = nearest_size(*np.median(sizes, axis=0))
    modes = {picture.mode for pairs in found.values() for picture, _ in pairs}
    if "I" in modes and len(modes) > 1:
        raise UserError("some pictures have 8 bits for a pixel, some more; save them alike")
    for part, pairs in found.items():
        mode = "RGBA" if "RGBA" in modes else None
        draft.arrays[f"{part} images"] = np.stack([_scale(picture, size).convert(mode) for picture, _ in pairs])
        if pairs[0][1] is not None and part != "validation":
            draft.arrays[f"{part} labels"] = np.array([label for _, label in pairs])
    if set(sizes) != {size}:
        draft.notes.append("pictures are scaled to {} x {} pixels".format(*size))
    if skipped:
        draft.notes.append(f"skipped: {len(skipped):,} {what} (the first: {skipped[0]!r})")


def _find_files(draft: Draft, folder: Path) -> list[tuple[str | None, str | None, Path]]:
    """All files, each after its part (None where it is in none) and its class."""
    folders, files = _list(folder)
    parts = {PARTS[place.name.lower()]: place for place in folders if place.name.lower() in PARTS}
    if parts.keys() & {"train", "test"}:
        if rest := [place.name for place in (*folders, *files) if place not in parts.values()]:
            draft.notes.append(f"not read: {', '.join(rest)[:200]}")
    else:
        parts = {"train": folder}
    found = []
    for part, place in parts.items():
        folders, loose = _list(place)
        folders = [inner for inner in folders if any(_list(inner))]  # an empty one is no class
        for inner in folders:
            if inner.name.lower() in NO_CLASSES:
                raise UserError(f"{inner.name} is no name of a class; call the parts train, test and val")
            if deeper := _list(inner)[0]:
                raise UserError(f"{inner.name} holds a folder ({deeper[0].name}), as no class does; {explain(folder)}")
            found += [(part, inner.name, file) for file in _list(inner)[1]]
        found += [(None if folders else part, None, file) for file in loose]
    return sorted(found, key=lambda file: (file[2].name, file[2]))


def _list(folder: Path) -> tuple[list[Path], list[Path]]:
    """The folders and the files in a folder, without hidden ones."""
    paths = sorted(path for path in folder.iterdir() if not path.name.startswith((".", "__MACOSX")))
    return [path for path in paths if path.is_dir()], [path for path in paths if not path.is_dir()]


def _open(path: Path) -> Image.Image | None:
    """Decode a picture: upright, in grey (L), with more than 8 bits (I), or transparent (RGBA). None if it is none."""
    try:
        with Image.open(path, formats=FORMATS) as file:
            picture = ImageOps.exif_transpose(file)
            is_transparent = picture.has_transparency_data and picture.convert("RGBA").getextrema()[3][0] < 255
            mode = "I" if picture.mode.startswith("I") else "RGBA" if is_transparent else "L"
            return None if picture.mode == "F" else picture.convert(mode)  # F: floats, whose range is unknown
    except Exception:  # Pillow's readers have many kinds of errors
        return None


def _scale(picture: Image.Image, size: tuple[int, int]) -> Image.Image:
    return picture.resize(size[::-1], Image.Resampling.BILINEAR)
