"""Turn arrays as people save them into images (n, H, W), bytes or floats in [0, 1], and labels that are whole numbers.

What is clear is converted, and a note says how. What looks wrong gets a warning. What is neither is refused.
"""

import math
import re

import numpy as np

from vae.data.dataset import HELP, Draft, cut
from vae.terminal import UserError

SIZES = range(8, 129, 4)  # of the height and the width that the networks take
ABOVE = 1 + 2e-5  # of white: no more than a rounding error
DIM = 0.25  # of white: images that never get brighter are suspect
LUMINANCE = np.array([0.299, 0.587, 0.114])  # of red, green and blue (ITU-R 601)


def convert(draft: Draft, size: tuple[int, int] | None, transpose: bool) -> None:
    """Convert all images and labels of a draft. Images are scaled to `size`, else to the nearest that networks take."""
    for role in draft.arrays:
        if role.replace("labels", "images") not in draft.arrays:
            raise UserError(f"{draft.where(role)}: there are no images to them; {HELP}")
    images = {role: _arrange(draft, role) for role in draft.arrays if role.endswith("images")}
    ranges = {role: _find_range(array) for role, array in images.items()}
    white = _find_white(draft, images, ranges)
    ground = _choose_ground(draft, [array for array in images.values() if array.shape[3:] == (4,)], white)
    for role, array in images.items():
        low, high = ranges[role]
        grey = _to_grey(array, white, ground, is_exact=low >= 0 and high <= white)
        _warn_of_darkness(draft, role, grey)
        grey = grey.swapaxes(1, 2) if transpose else grey
        size = size or nearest_size(*grey.shape[1:])
        draft.arrays[role] = _scale(draft, role, grey, size)
    if transpose:
        draft.notes.append("rows and columns of every image are swapped (--transpose)")
    labels = {role: _to_labels(draft, role) for role in draft.arrays if role.endswith("labels")}
    draft.arrays |= number_classes(draft, labels)


def _arrange(draft: Draft, role: str) -> np.ndarray:
    """A view of an array as (n, H, W), or, in colour, as (n, H, W, 3 or 4)."""
    where, array = draft.where(role), draft.arrays[role]
    shape = array.shape
    if array.dtype.kind not in "biuf" or not array.size:
        raise UserError(f"{where}: an array {shape} of type {array.dtype.name:.50} holds no images; {HELP}")
    side = math.isqrt(shape[1]) if array.ndim == 2 else 0
    if side >= 4 and side**2 == shape[1] and (shape[0] != 784 or side == 28):  # (784, n) has an image in each column
        draft.notes.append(f"{where}: rows of {shape[1]:,} pixels are read as images of {side} x {side}")
        array = array.reshape(-1, side, side)
    elif array.ndim == 4:
        array = array if shape[3] in (1, 3, 4) else np.moveaxis(array, 1, 3)
        array = array[..., 0] if array.shape[3] == 1 else array
    is_last = len(shape) == 3 and shape[0] == shape[1] != shape[2]  # (H, H, n)
    is_long = array.ndim > 2 and max(array.shape[1:3]) > 16 * min(array.shape[1:3])  # (H, W, n), or (n, H * W, 1)
    if array.ndim < 3 or array.shape[3:] not in ((), (3,), (4,)) or is_last or is_long:
        wanted = "(n, H, W), (n, H * H), (n, H, W, channels) or (n, channels, H, W)"
        raise UserError(f"{where}: their shape is {shape}, expected {wanted}; {HELP}")
    if array.ndim == 4:
        draft.notes.append(f"{where}: colours are turned to grey")
    return array * np.uint8(255) if array.dtype == bool else array


# Pixels


def _find_range(images: np.ndarray) -> tuple[float, float]:
    ranges = np.array([(images[piece].min(), images[piece].max()) for piece in cut(images)], float)
    return float(ranges[:, 0].min()), float(ranges[:, 1].max())


def _is_whole(array: np.ndarray) -> bool:
    return array.dtype.kind in "iu" or all((array[piece] == np.rint(array[piece])).all() for piece in cut(array))


def _find_white(draft: Draft, images: dict[str, np.ndarray], ranges: dict[str, tuple[float, float]]) -> int:
    """The number that is white in all images of a set: 1, 255, or more; UserError where there is none.

    Whole numbers above 255 are divided by one factor, which is stored for all images that the run is shown: by 65,535
    where they reach its upper half, otherwise by the brightest pixel.
    """
    brightest = max(high for _, high in ranges.values())
    white = 1 if brightest <= ABOVE else 255
    is_plain = all(array.dtype.kind == "f" if white == 1 else array.dtype == np.uint8 for array in images.values())
    is_deep = brightest > 255 * ABOVE or (white == 255 and not is_plain and "white" in draft.reading)
    for role, (low, high) in ranges.items():
        found = f"{draft.where(role)}: their pixels go from {low:g} to {high:g}"
        if not (low >= white * (1 - ABOVE) and high < math.inf) or (is_deep and not _is_whole(images[role])):
            raise UserError(f"{found}, expected 0..1, 0..255 or whole numbers from 0; {HELP}")
        if 0 < high <= 1 < white:
            raise UserError(f"{found}, others to {brightest:g}: only one of them was divided; bring both to one scale")
    if is_deep:
        white = draft.reading.setdefault("white", 65535 if 2**15 <= brightest <= 65535 else int(brightest))
    if not is_plain:
        cut_off = "; what is brighter is cut off" if brightest > white else ""
        draft.notes.append(f"{draft.source}: pixels up to {brightest:,g} are read with {white:,} as white{cut_off}")
    return white


def _choose_ground(draft: Draft, transparent: list[np.ndarray], white: int) -> int:
    """What transparent images (n, H, W, 4) are laid on: 0 (black) where their ink is light, 1 where it is dark."""
    ink = opaque = 0.0
    for images in transparent:
        for piece in cut(images):
            pixels = images[piece] / white
            ink += (pixels[..., :3] @ LUMINANCE * pixels[..., 3]).sum()
            opaque += pixels[..., 3].sum()
    if transparent:
        draft.reading.setdefault("ground", "black" if ink > opaque / 2 else "white")
        draft.notes.append(f"{draft.source}: transparent images are laid on {draft.reading['ground']}")
    return int(draft.reading.get("ground") == "white")


def _to_grey(images: np.ndarray, white: int, ground: int, is_exact: bool) -> np.ndarray:
    """Grey pixels (n, H, W): uint8 where they are whole numbers, otherwise float32 in [0, 1]."""
    if is_exact and images.ndim == 3 and (images.dtype, white) in ((np.uint8, 255), (np.float32, 1)):
        return images
    is_bytes = images.dtype.kind in "iu" or (white > 1 and _is_whole(images))
    grey = np.empty(images.shape[:3], np.uint8 if is_bytes else np.float32)
    for piece in cut(images):
        pixels = np.clip(images[piece] / white, 0, 1)
        if images.ndim == 4:
            alpha = pixels[..., 3] if pixels.shape[3] == 4 else 1
            pixels = pixels[..., :3] @ LUMINANCE * alpha + ground * (1 - alpha)
        grey[piece] = np.rint(255 * pixels) if is_bytes else pixels
    return grey


def _warn_of_darkness(draft: Draft, role: str, images: np.ndarray) -> None:
    white, (low, high) = 255 if images.dtype == np.uint8 else 1, _find_range(images)
    if low == high:
        draft.warnings.append(f"{draft.where(role)}: every pixel is {high:g}: the images show nothing")
    elif high < DIM * white:
        what = f"pixels go from {low:g} to {high:g}, where {white} is white: the images are almost black"
        remedy = f"if {high:g} is meant to be white, multiply them by {white / high:g}"
        draft.warnings.append(f"{draft.where(role)}: {what}; {remedy}")


# Sizes


def nearest_size(height: float, width: float) -> tuple[int, int]:
    """The size nearest to this one that the networks take; the proportions are kept where they can be."""
    factor = min(SIZES[-1] / max(height, width), max(1, SIZES[0] / min(height, width)))
    height, width = (min(SIZES[-1], max(SIZES[0], 4 * int(side * factor / 4 + 0.5))) for side in (height, width))
    return height, width


def _scale(draft: Draft, role: str, images: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Scale images to a size, bilinearly and without aliasing."""
    from PIL import Image

    if images.shape[1:] == size:
        return images
    draft.notes.append("{}: {} x {} pixels are scaled to {} x {}".format(draft.where(role), *images.shape[1:], *size))
    scaled = np.empty((len(images), *size), images.dtype)
    for index, image in enumerate(images):
        scaled[index] = Image.fromarray(np.ascontiguousarray(image)).resize(size[::-1], Image.Resampling.BILINEAR)
    return scaled


# Labels


def _to_labels(draft: Draft, role: str) -> np.ndarray:
    """Turn an array into one label for each image: whole numbers or texts."""
    where, labels = draft.where(role), draft.arrays[role]
    count, is_number = len(draft.arrays[role.replace("labels", "images")]), labels.dtype.kind in "biuf"
    if is_number and labels.shape[1:] > (1,) and (np.sort(labels) == np.eye(labels.shape[1])[-1]).all():
        draft.notes.append(f"{where}: one-hot labels of {labels.shape[1]} classes are read")
        labels = labels.argmax(axis=1)
    if labels.shape not in ((count,), (count, 1)):
        raise UserError(f"{where}: their shape is {labels.shape}, expected one for each of {count:,} images; {HELP}")
    if labels.dtype.kind != "U" and not (is_number and _is_whole(labels)):
        raise UserError(f"{where}: {labels.dtype.name:.50} is neither whole numbers nor texts; {HELP}")
    return labels.reshape(count).astype(labels.dtype if labels.dtype.kind in "U" or labels.dtype == np.uint8 else int)


def number_classes(draft: Draft, labels: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Replace names of classes by their numbers in alphabetical order. Whole numbers stay what they are."""
    if any(array.dtype.kind == "U" for array in labels.values()):
        names = sorted(set().union(*(np.unique(array).astype(str).tolist() for array in labels.values())))
        numbers = [int(float(name)) for name in names if re.fullmatch(r"-?[0-9]{1,15}(\.0*)?", name)]
        if len(set(numbers)) < len(names):  # not all are numbers, or two are one number
            draft.label_names, numbers = tuple(names), range(len(names))
        number_of = dict(zip(names, numbers, strict=True))
        for role, array in labels.items():
            found, rows = np.unique(array, return_inverse=True)  # a text for each class, not for each image
            labels[role] = np.array([number_of[name] for name in found.astype(str).tolist()])[rows]
    if len(labels) == 2 and (strange := np.setdiff1d(labels["test_labels"], labels["train_labels"])).size:
        names = ", ".join(draft.label_names[label] if draft.label_names else str(label) for label in strange)
        draft.notes.append(f"{draft.source}: classes of test images that no training image has: {names:.200}")
    return labels
