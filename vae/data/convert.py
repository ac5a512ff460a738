"""Turn arrays as people save them into images (n, H, W), bytes or floats in [0, 1], and labels that are whole numbers.

What is clear is converted, and a note says how. What looks wrong gets a warning. What is neither is refused.
"""

import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np

from vae.data import formats
from vae.terminal import UserError

SIZES = range(8, 129, 4)  # of the height and the width that the networks take
TOLERANCE = 2e-5  # of rounding, beyond black or white
DIM = 0.25  # of white: images that never get brighter are suspect
PIECE = 2**20  # pixels that are converted at a time

Labels = dict[str, np.ndarray | None]  # by part of the data set


@dataclass
class Remarks:
    """What the user must be told: how input was converted, and what looks wrong."""

    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Brightness:
    """The brightest pixel of some images, and the value that was taken as white: 1 or 255."""

    where: str
    high: float
    white: int


def to_images(where: str, array: np.ndarray, remarks: Remarks) -> tuple[np.ndarray, Brightness]:
    """Turn an array of numbers into grey images (n, H, W), uint8 or float32 in [0, 1]; no copy is made without need."""
    if array.dtype.kind not in "biuf":
        raise UserError(f"{where}: is of type {array.dtype.name:.50}; save floats or bytes")
    if not array.flags.c_contiguous:
        formats.check_size(where, array.shape, array.itemsize)
        array = np.ascontiguousarray(array)
    array = _arrange(where, array, remarks)
    array, brightness = _to_bytes_or_floats(where, array, remarks)
    if array.ndim == 4:
        remarks.notes.append(f"{where}: colours are turned to grey")
        array = _map(where, array, to_luminance, array.dtype, array.shape[1:3])
    return array, brightness


def _arrange(where: str, array: np.ndarray, remarks: Remarks) -> np.ndarray:
    """A view of the array as (n, H, W), or, in colour, as (n, H, W, 3)."""
    shape = array.shape
    wanted = f"{where}: has shape {shape}, expected (n, H, W), (n, H * W), (n, H, W, 1 or 3) or (n, 1 or 3, H, W)"
    side = math.isqrt(shape[1]) if array.ndim == 2 else 0
    if side >= 4 and side**2 == shape[1] and (shape[0] != 784 or side == 28):  # (784, n) has an image in each column
        remarks.notes.append(f"{where}: rows of {shape[1]:,} pixels are read as images of {side} x {side}")
        return array.reshape(-1, side, side)
    if array.ndim == 3 and 1 in shape[1:]:  # (n, H * W, 1), for example
        return _arrange(where, array.reshape(len(array), -1), remarks)
    if array.ndim == 4 and 1 in (shape[1], shape[3]):
        array = array[..., 0] if shape[3] == 1 else array[:, 0]
    elif array.ndim == 4 and shape[3] in (3, 4):
        array = array[..., :3]  # the fourth is transparency
    elif array.ndim == 4 and shape[1] in (3, 4):
        array = np.moveaxis(array[:, :3], 1, 3)
    elif array.ndim != 3:
        raise UserError(f"{wanted}; reshape it")
    height, width = array.shape[1:3]
    if max(height, width) > 16 * min(height, width) or (shape[:2] == (28, 28) and shape[2] != 28):
        raise UserError(f"{wanted}; if the images come last, move the axis to the front")
    return array


def to_luminance(colours: np.ndarray) -> np.ndarray:
    """Grey pixels (..., H, W) from colours (..., H, W, 3), by ITU-R 601's weights; bytes are rounded as in Pillow."""
    if colours.dtype == np.uint8:
        weights = np.array([19595, 38470, 7471], np.uint32)
        return ((colours @ weights + 2**15) >> 16).astype(np.uint8)
    return np.minimum(1, colours @ np.array([0.299, 0.587, 0.114], np.float32))  # 1 may be passed by rounding


def _to_bytes_or_floats(where: str, images: np.ndarray, remarks: Remarks) -> tuple[np.ndarray, Brightness]:
    """Pixels as uint8, or as float32 in [0, 1]; UserError where they are neither 0..255 nor 0..1."""
    if images.dtype.kind == "b":
        return _map(where, images, np.asarray, np.float32), Brightness(where, 0, 1)  # they have no scale
    low, high = find_range(images)
    is_float = images.dtype.kind == "f"
    if not math.isfinite(low + high):
        raise UserError(f"{where}: has pixels that are NaN or infinite ({low} to {high}); mend them")
    white = 1 if high <= 1 + TOLERANCE * is_float else 255
    slack = TOLERANCE * white * is_float
    if low < -slack or high > 255 + slack:
        raise UserError(
            f"{where}: has pixels from {low:g} to {high:g}, expected 0..255 or floats in 0..1; {_undo(low)}"
        )
    brightness = Brightness(where, high, white)
    _warn_of_darkness(brightness, low, remarks)
    if is_float:
        return _to_floats(where, images, (low, high, white), remarks), brightness
    if high == 1:  # a division by 255 would turn them black
        remarks.notes.append(f"{where}: pixels of 0 and 1 are read as black and white")
        return _map(where, images, lambda piece: piece * 255, np.uint8), brightness
    return (images if images.dtype == np.uint8 else _map(where, images, np.asarray, np.uint8)), brightness


def _to_floats(where: str, images: np.ndarray, limits: tuple[float, float, int], remarks: Remarks) -> np.ndarray:
    low, high, white = limits
    if white == 255:
        remarks.notes.append(f"{where}: floats from {low:g} to {high:g} are divided by 255")
        if all((images[piece] == np.rint(images[piece])).all() for piece in cut(images)):
            return _map(where, images, np.asarray, np.uint8)  # the same pixels in a quarter of the memory
        return _map(where, images, lambda piece: np.clip(piece, 0, 255) / np.float32(255), np.float32)
    if low < 0 or high > 1:
        remarks.notes.append(f"{where}: floats from {low:.7g} to {high:.7g} are clipped to 0..1")
        return _map(where, images, lambda piece: np.clip(piece, 0, 1), np.float32)
    return images if images.dtype == np.float32 else _map(where, images, np.asarray, np.float32)


def _undo(low: float) -> str:
    if low == -1:
        return "undo the normalisation: (x + 1) / 2"
    if low < 0:
        return "undo the normalisation: x * std + mean, with the mean and standard deviation that it was done with"
    return "scale them: 16-bit pixels, for example, by 1 / 257"


def _warn_of_darkness(brightness: Brightness, low: float, remarks: Remarks) -> None:
    where, high, white = brightness.where, brightness.high, brightness.white
    if high == 0:
        remarks.warnings.append(f"{where}: every pixel is 0: all images are black")
    elif low == high:
        remarks.warnings.append(f"{where}: every pixel is {high:g}: the images show nothing")
    elif high < DIM * white:
        what = f"pixels go from {low:g} to {high:g}, where {white} is white: the images are almost black"
        remarks.warnings.append(f"{where}: {what}. If {high:g} is meant to be white, multiply them by {white / high:g}")


def check_same_scale(first: Brightness, second: Brightness) -> None:
    """Refuse training and test images of different scales, such as 0..255 and 0..1."""
    if first.high == 0 or second.high == 0:
        return  # black has no scale, nor have truth values
    ratio = first.high / first.white / (second.high / second.white)
    if first.white != second.white or not DIM <= ratio <= 1 / DIM:
        what = f"{first.where} has pixels up to {first.high:g}, but {second.where} up to {second.high:g}"
        raise UserError(f"{what}: only one of them was divided; bring both to one scale, 0..255 or 0..1")


# Size


def transpose(images: np.ndarray) -> np.ndarray:
    """Swap rows and columns of every image."""
    swapped = images.swapaxes(1, 2)
    return swapped if images.nbytes > formats.MAX_BYTES else np.ascontiguousarray(swapped)


def nearest_size(height: float, width: float) -> tuple[int, int]:
    """The size nearest to this one that the networks take; the proportions are kept where they can be."""
    factor = min(SIZES[-1] / max(height, width), max(1, SIZES[0] / min(height, width)))
    height, width = (min(SIZES[-1], max(SIZES[0], 4 * int(side * factor / 4 + 0.5))) for side in (height, width))
    return height, width


def scale(where: str, images: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Images (n, H, W) scaled to another height and width by Pillow, bilinearly and without aliasing."""
    from PIL import Image

    def scale_piece(piece: np.ndarray) -> np.ndarray:
        scaled = [Image.fromarray(image).resize(size[::-1], Image.Resampling.BILINEAR) for image in piece]
        return np.stack([np.asarray(image) for image in scaled])

    return _map(where, images, scale_piece, images.dtype, size)


# Labels


def to_labels(where: str, labels: np.ndarray, count: int, remarks: Remarks) -> np.ndarray | None:
    """Turn an array into `count` labels (n,): whole numbers or texts; None, and a note, where it is something else."""
    if labels.shape[:1] != (count,):
        found = f"{len(labels):,}" if labels.ndim else "no"
        raise UserError(f"{where}: holds {found} labels for {count:,} images; take both from one data set")
    labels = labels.reshape(count, -1)
    is_number = labels.dtype.kind in "biuf"
    if labels.shape[1] == 1:
        labels = labels[:, 0]
    elif is_number and ((labels == 0) | (labels == 1)).all() and (labels.sum(axis=1) == 1).all():
        remarks.notes.append(f"{where}: one-hot labels of {labels.shape[1]} classes are read")
        labels = labels.argmax(axis=1)
    else:
        remarks.notes.append(f"{where}: has shape {labels.shape}, not one label an image; labels are left out")
        return None
    if labels.dtype.kind == "f" and not (np.isfinite(labels).all() and (labels == np.rint(labels)).all()):
        remarks.notes.append(f"{where}: holds fractions, not classes; labels are left out")
        return None
    if labels.dtype.kind in "SU":
        return np.char.decode(labels, "utf-8", "replace") if labels.dtype.kind == "S" else labels
    if not is_number:
        raise UserError(f"{where}: is of type {labels.dtype.name:.50}; save whole numbers or names")
    return labels if labels.dtype == np.uint8 else labels.astype(np.int64)


def number_classes(labels: Labels) -> tuple[Labels, tuple[str, ...] | None]:
    """Replace names of classes by their numbers in alphabetical order: the labels, and the names if they are needed."""
    given = [part for part in labels.values() if part is not None]
    if all(part.dtype.kind != "U" for part in given):
        return labels, None
    names = sorted(set().union(*(np.unique(part).astype(str).tolist() for part in given)))
    numbers = [_to_whole_number(name) for name in names]
    is_named = None in numbers or len(set(numbers)) < len(names)
    codes = range(len(names)) if is_named else numbers  # digits, for example, stay what they are
    code_of = dict(zip(names, codes, strict=True))

    def to_numbers(part: np.ndarray) -> np.ndarray:
        found, inverse = np.unique(part, return_inverse=True)  # a text for each class, not for each image
        return np.array([code_of[text] for text in found.astype(str).tolist()], np.int64)[inverse]

    numbered = {name: None if part is None else to_numbers(part) for name, part in labels.items()}
    return numbered, tuple(names) if is_named else None


def _to_whole_number(text: str) -> int | None:
    return int(float(text)) if re.fullmatch(r"-?[0-9]{1,15}(\.0*)?", text) else None


# Pieces


def cut(images: np.ndarray) -> Iterator[slice]:
    """The pieces of an array of images: small, so that an array that is mapped needs no memory."""
    step = max(1, PIECE // math.prod(images.shape[1:]))
    return (slice(start, start + step) for start in range(0, len(images), step))


def find_range(images: np.ndarray) -> tuple[float, float]:
    """The least and the greatest number; NaN if there is one."""
    pieces = np.array([(images[piece].min(), images[piece].max()) for piece in cut(images)], np.float64)
    return float(pieces[:, 0].min()), float(pieces[:, 1].max())


def _map(where: str, images: np.ndarray, change: Callable, dtype: np.dtype, size: tuple[int, ...] | None = None):
    """Apply `change` to pieces of the images, and collect what it returns, (n, *size), in memory."""
    shape = (len(images), *(images.shape[1:] if size is None else size))
    formats.check_size(where, shape, np.dtype(dtype).itemsize)
    changed = np.empty(shape, dtype)
    for piece in cut(max(images, changed, key=lambda array: math.prod(array.shape[1:]))):
        changed[piece] = change(images[piece])
    return changed
