"""Turn arrays as people save them into images (n, H, W), bytes or floats in [0, 1], and labels that are numbers."""

import hashlib
import math
import re
from collections.abc import Iterator

import numpy as np

from vae.data.dataset import Draft
from vae.terminal import UserError

IMAGE_ROLES = ("train images", "test images", "validation images")
SIZES = range(8, 129, 4)  # of the height and the width that the networks take
ABOVE = 1 + 2e-5  # of white: no more than a rounding error
DIM = 0.25  # of white: images that never get brighter are suspect
PIECE = 2**20  # pixels that are looked at or converted at a time: a mapped array needs no memory
LUMINANCE = np.array([0.299, 0.587, 0.114])  # of red, green and blue (ITU-R 601)


def convert(draft: Draft, size: tuple[int, int] | None, transpose: bool) -> None:
    """Convert all images and labels of a draft. Images are scaled to `size`, else to the nearest that networks take."""
    if alone := [role for role in draft.arrays if role.replace("labels", "images") not in draft.arrays]:
        raise UserError(f"there are {alone[0]}, but no images to them")
    images = {role: _arrange(draft, role) for role in draft.arrays if role.endswith("images")}
    ranges = {role: _find_range(array) for role, array in images.items()}
    white = _find_white(draft, images, ranges)
    ground = _choose_ground(draft, images, white)
    for role, array in images.items():
        low, high = ranges[role]
        grey = _to_grey(array, white, ground, is_exact=low >= 0 and high <= white)
        low, high = ranges[role] if grey is array else _find_range(grey)
        brightest = 255 if grey.dtype == np.uint8 else 1
        if low == high or high < DIM * brightest:
            what = f"where {brightest} is white: the images {'show nothing' if low == high else 'are almost black'}"
            draft.warnings.append(f"{role}: pixels go from {low:g} to {high:g}, {what}")
        grey = grey.swapaxes(1, 2) if transpose else grey
        size = size or nearest_size(*grey.shape[1:])
        draft.arrays[role] = _scale(draft, role, grey, size)
    if transpose:
        draft.notes.append("rows and columns of every image are swapped (--transpose)")
    digest = hashlib.sha256()
    for array in [draft.arrays[role] for role in IMAGE_ROLES if role in draft.arrays]:
        digest.update(f"{array.shape} {array.dtype}".encode())
        for piece in _cut(array):
            digest.update(np.ascontiguousarray(array[piece]))
    draft.sha256 = digest.hexdigest()
    _number_classes(draft, {role: _to_labels(draft, role) for role in draft.arrays if role.endswith("labels")})


def _arrange(draft: Draft, role: str) -> np.ndarray:
    """A view of an array as (n, H, W), or, in colour, as (n, H, W, 3 or 4)."""
    array, shape = draft.arrays[role], draft.arrays[role].shape
    side = math.isqrt(shape[1]) if array.ndim == 2 else 0
    if side >= 4 and side**2 == shape[1] and (shape[0] != 784 or side == 28):  # (784, n) has an image in each column
        draft.notes.append(f"{role}: rows of {shape[1]:,} pixels are read as images of {side} x {side}")
        array = array.reshape(-1, side, side)
    elif array.ndim == 4:
        array = array if shape[3] in (1, 3, 4) else np.moveaxis(array, 1, 3)
        array = array[..., 0] if array.shape[3] == 1 else array
    is_image = array.ndim > 2 and array.shape[3:] in ((), (3,), (4,)) and array.size > 0 and array.dtype.kind in "biuf"
    is_last = len(shape) == 3 and shape[0] == shape[1] != shape[2]  # (H, H, n)
    if not is_image or is_last or max(array.shape[1:3]) > 16 * min(array.shape[1:3]):
        wanted = "numbers (n, H, W), (n, H * H), (n, H, W, channels) or (n, channels, H, W)"
        wanted += "; (H, H, n) has the number of images last: swap the axes first" if is_last else ""
        raise UserError(f"{role}: their shape is {shape} of {array.dtype.name:.50}, expected {wanted}")
    if array.ndim == 4:
        draft.notes.append(f"{role}: colours are turned to grey")
    return array * np.uint8(255) if array.dtype == bool else array


def _cut(images: np.ndarray) -> Iterator[slice]:
    step = max(1, PIECE // math.prod(images.shape[1:]))
    return (slice(start, start + step) for start in range(0, len(images), step))


def _find_range(images: np.ndarray) -> tuple[float, float]:
    ranges = np.array([(images[piece].min(), images[piece].max()) for piece in _cut(images)], float)
    return float(ranges[:, 0].min()), float(ranges[:, 1].max())


def _is_whole(array: np.ndarray) -> bool:
    return array.dtype.kind in "iu" or all((array[piece] == np.rint(array[piece])).all() for piece in _cut(array))


def _find_white(draft: Draft, images: dict[str, np.ndarray], ranges: dict[str, tuple[float, float]]) -> int:
    """The pixel value that is white in a set: 1, 255, or a larger one, which is stored in `reading`."""
    brightest = max(high for _, high in ranges.values())
    white = 1 if brightest <= ABOVE else 255
    is_plain = all(array.dtype.kind == "f" if white == 1 else array.dtype == np.uint8 for array in images.values())
    is_deep = brightest > 255 * ABOVE or (white == 255 and not is_plain and "white" in draft.reading)
    for role, (low, high) in ranges.items():
        is_known = low >= white * (1 - ABOVE) and high < math.inf and (not is_deep or _is_whole(images[role]))
        if not is_known or 0 < high <= 1 < white:
            wanted = f"expected 0..1, 0..255 or whole numbers from 0, in all parts of a set (to {brightest:g})"
            raise UserError(f"{role}: their pixels go from {low:g} to {high:g}, {wanted}")
    if is_deep:
        white = draft.reading.setdefault("white", 65535 if 2**15 <= brightest <= 65535 else int(brightest))
    if not is_plain:
        cut_off = "; what is brighter is cut off" if brightest > white else ""
        draft.notes.append(f"pixels up to {brightest:,g} are read with {white:,} as white{cut_off}")
    return white


def _choose_ground(draft: Draft, images: dict[str, np.ndarray], white: int) -> int:
    """What transparent images are laid on: 0 (black) where their ink is light, 1 (white) where it is dark."""
    ink = opaque = 0.0
    for array in [array for array in images.values() if array.shape[3:] == (4,)]:
        for piece in _cut(array):
            pixels = array[piece] / white
            pixels = pixels[pixels[..., 3].min(axis=(1, 2)) < 1]  # opaque images do not matter
            ink += (pixels[..., :3] @ LUMINANCE * pixels[..., 3]).sum()
            opaque += pixels[..., 3].sum()
    if opaque:
        ground = draft.reading.setdefault("ground", "black" if ink > opaque / 2 else "white")
        draft.notes.append(f"transparent images are laid on {ground}")
    return int(draft.reading.get("ground") == "white")


def _to_grey(images: np.ndarray, white: int, ground: int, is_exact: bool) -> np.ndarray:
    """Grey pixels (n, H, W): uint8 where they are whole numbers, otherwise float32 in [0, 1]."""
    if is_exact and images.ndim == 3 and (images.dtype, white) in ((np.uint8, 255), (np.float32, 1)):
        return images
    is_bytes = images.dtype.kind in "iu" or (white > 1 and _is_whole(images))
    grey = np.empty(images.shape[:3], np.uint8 if is_bytes else np.float32)
    for piece in _cut(images):
        pixels = np.clip(images[piece] / white, 0, 1)
        if images.ndim == 4:
            alpha = pixels[..., 3] if pixels.shape[3] == 4 else 1
            pixels = pixels[..., :3] @ LUMINANCE * alpha + ground * (1 - alpha)
        grey[piece] = np.rint(255 * pixels) if is_bytes else pixels
    return grey


def nearest_size(height: float, width: float) -> tuple[int, int]:
    """The size nearest to this one that the networks take; the proportions are kept where they can be."""
    factor = min(SIZES[-1] / max(height, width), max(1, SIZES[0] / min(height, width)))
    height, width = (min(SIZES[-1], max(SIZES[0], 4 * int(side * factor / 4 + 0.5))) for side in (height, width))
    return height, width


def _scale(draft: Draft, role: str, images: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    from PIL import Image

    if images.shape[1:] == size:
        return images
    draft.notes.append("{}: {} x {} pixels are scaled to {} x {}".format(role, *images.shape[1:], *size))
    pictures = (Image.fromarray(np.ascontiguousarray(image)) for image in images)
    scaled = (np.asarray(picture.resize(size[::-1], Image.Resampling.BILINEAR)) for picture in pictures)
    return np.fromiter(scaled, np.dtype((images.dtype, size)), len(images))


def _to_labels(draft: Draft, role: str) -> list[str]:
    """The label of each image as a text."""
    labels, count = draft.arrays[role], len(draft.arrays[role.replace("labels", "images")])
    is_number = labels.dtype.kind in "biuf"
    several = labels.shape[1] if labels.ndim == 2 else 1
    if is_number and several > 1 and (np.sort(labels) == np.eye(several)[-1]).all():
        draft.notes.append(f"{role}: one-hot labels of {several} classes are read")
        labels = labels.argmax(axis=1)
    is_label = labels.dtype.kind == "U" or (is_number and labels.ndim > 0 and _is_whole(labels))
    if labels.shape not in ((count,), (count, 1)) or not is_label:
        wanted = f"a whole number or a text for each of {count:,} images"
        raise UserError(f"{role}: their shape is {labels.shape} of {labels.dtype.name:.50}, expected {wanted}")
    return (labels.astype(np.int64) if is_number else labels).reshape(count).astype(str).tolist()


def _number_classes(draft: Draft, labels: dict[str, list[str]]) -> None:
    """Give every class its number: that of the run, its own where its name is one, or the next in alphabetical order.

    Where the run has none of the classes, the labels are left out.
    """
    texts = sorted(set().union(*labels.values()))
    numbers = {text: int(float(text)) for text in texts if re.fullmatch(r"-?[0-9]{1,15}(\.0*)?", text)}
    are_numbers = len(set(numbers.values())) == len(texts)  # two names may be one number
    names = draft.run_names if draft.run_names is not None else [] if are_numbers else texts
    if not texts or not (set(names) & set(texts) if names else are_numbers):
        draft.notes += ["labels are left out: their classes have other names than the run's"] if texts else []
        draft.arrays = {role: array for role, array in draft.arrays.items() if role not in labels}
        return
    if names:
        names = [*names, *(text for text in texts if text not in names)]
        draft.label_names = tuple(names)
    number_of = {name: number for number, name in enumerate(names)} or numbers
    draft.arrays |= {role: np.array([number_of[text] for text in found]) for role, found in labels.items()}
    if strange := sorted(set(labels.get("test labels", [])) - set(labels.get("train labels", texts))):
        draft.notes.append(f"classes of test images that no training image has: {', '.join(strange):.200}")
