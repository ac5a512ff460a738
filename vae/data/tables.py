"""Read a CSV file as arrays: a row an image, as Kaggle has MNIST: label, pixel0, pixel1, ..."""

import csv
import io
import itertools
import math
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

from vae.data.formats import check_size, in_one_line, open_unzipped
from vae.terminal import UserError

LINE = 2**20  # characters of a line of CSV, at most
COLUMNS = 2**16
LABEL_COLUMNS = ("label", "labels", "class", "target", "y", "digit", "character", "letter")
OTHER_COLUMNS = ("", "id", "index", "imageid", "unnamed: 0")  # numbers of images
LABEL = 100  # characters of a label, at most
REMEDY = "write a row for each image: label, then all pixels, row by row"
PIECE = 2**20  # characters that are parsed together


def is_csv_of_images(path: Path) -> bool:
    """Whether a file is a CSV file whose rows are long enough for images: a list of labels has few columns."""
    try:
        with in_one_line(path), open(path, "rb") as raw, _open_text(raw) as file:
            row, _ = _read_row(file.readline(LINE))
    except UserError:
        return False
    return len(row) > 60


def read_csv(path: Path) -> tuple[np.ndarray, np.ndarray | None]:
    """Read pixels (n, H * W) and labels (n,), or None where there is no such column, from a CSV file, gzipped or not.

    A column of labels is known by its name, or, without names, is the first or the last beside a square number of
    pixels: the last where the first is 0 throughout. Pixels are uint8 where all are whole numbers in 0..255, and
    otherwise float32. Labels are texts.
    """
    pixels, labels, size = [], [], 0
    with in_one_line(path), open(path, "rb") as raw, _open_text(raw) as file:
        first = file.readline(LINE)
        row, delimiter = _read_row(first)
        if not 16 <= len(row) <= COLUMNS:
            what = f"has {len(row):,} columns, which are no pixels"
            raise UserError(f"{path}: {what}; {REMEDY}")
        columns, label = _find_columns(path, row)
        lines = (line for line in iter(lambda: file.readline(LINE), "") if line.strip())
        if not _is_header(row):
            lines = itertools.chain([first], lines)
        for piece in _cut(lines):
            pixels.append(_parse_pixels(piece, delimiter, columns))
            size += pixels[-1].nbytes
            if label is not None:
                texts = np.loadtxt(piece, f"U{LABEL}", delimiter=delimiter, quotechar='"', usecols=[label], ndmin=1)
                labels.append(np.array([text.strip() for text in texts.tolist()]))
                size += labels[-1].nbytes
            check_size(str(path), (size,), 1)
        if not pixels:
            raise UserError(f"{path}: holds no images; write a row for each")
        check_size(str(path), (sum(map(len, pixels)), len(columns)), np.result_type(*pixels).itemsize)
    images = np.concatenate(pixels)
    if not labels:
        return images, None
    classes = np.concatenate(labels)
    is_corner = not _is_header(row) and bool(np.isin(classes, ("0", "0.0")).all())
    if is_corner and 0 < np.ptp(images[:, -1]) < 100:  # the "labels" are black pixels; the last column has labels
        classes = images[:, -1].astype(str)
        images = np.roll(images, 1, axis=1)
        images[:, 0] = 0
    return images, classes


def _parse_pixels(lines: list[str], delimiter: str, columns: list[int]) -> np.ndarray:
    """Pixels (n, H * W), uint8 where they are whole numbers in 0..255, otherwise float32."""
    how = {"delimiter": delimiter, "quotechar": '"', "usecols": columns, "ndmin": 2}
    try:
        return np.loadtxt(lines, np.uint8, **how)  # six times as fast
    except ValueError:
        values = np.loadtxt(lines, np.float32, **how)
    is_whole = values.min() >= 0 and values.max() <= 255 and (values == np.rint(values)).all()  # NaN is not
    return values.astype(np.uint8) if is_whole else values


def _cut(lines: Iterable[str]) -> Iterator[list[str]]:
    piece, size = [], 0
    for line in lines:
        piece.append(line)
        size += len(line)
        if size > PIECE:
            yield piece
            piece, size = [], 0
    if piece:
        yield piece


def _open_text(raw: BinaryIO) -> io.TextIOWrapper:
    return io.TextIOWrapper(open_unzipped(raw), encoding="utf-8-sig", errors="replace", newline="")


def _read_row(line: str) -> tuple[list[str], str]:
    """The cells of a line, and what separates them."""
    delimiter = max(",;\t", key=line.count)
    return next(csv.reader([line], delimiter=delimiter), []), delimiter


def _is_number(cell: str) -> bool:
    try:
        return math.isfinite(float(cell))
    except ValueError:
        return False


def _is_header(row: list[str]) -> bool:
    """Whether a row holds the names of the columns, which may be 0, 1, 2 and so on.

    Where a file had no names, pandas takes the first image for them, and writes equal ones as 0, 0.1, ..., 0.10.
    """
    numbers = np.array([float(cell) for cell in row if _is_number(cell)])
    renamed = len(set(row)) == len(row) > len(set(numbers))
    return len(numbers) < len(row) / 2 or bool((np.diff(numbers) == 1).all()) or renamed


def _find_columns(path: Path, row: list[str]) -> tuple[list[int], int | None]:
    """The columns of the pixels and that of the labels."""
    names = [cell.strip().lower() for cell in row] if _is_header(row) else ["pixel"] * len(row)
    label = next((column for column, name in enumerate(names) if name in LABEL_COLUMNS), None)
    pixels = [column for column, name in enumerate(names) if column != label and name not in OTHER_COLUMNS]
    if label is None and math.isqrt(len(pixels) - 1) ** 2 == len(pixels) - 1 > 0:
        is_last = re.search(r"\d", names[pixels[0]]) and not re.search(r"\d", names[pixels[-1]])  # pixel0 ... name
        label = pixels.pop() if is_last else pixels.pop(0)
    if math.isqrt(len(pixels)) ** 2 != len(pixels):
        what = f"has {len(pixels):,} columns of pixels, which is no square"
        raise UserError(f"{path}: {what}; {REMEDY}")
    return pixels, label
