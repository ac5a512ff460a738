"""Read what is at a path as arrays by role: .npz, .npy, MNIST's IDX files, or CSV. Nothing in a file is executed."""

import csv
import gzip
import io
import math
import re
import struct
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np

from vae.data.dataset import Draft
from vae.files import LARGEST
from vae.terminal import UserError

ROLES = ("train images", "train labels", "test images", "test labels", "validation images")
MNIST = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
KAGGLE = tuple(name.replace("-idx", ".idx") for name in MNIST)
NAMES = {  # of arrays, and their roles; of two with one role, the first is read
    **dict(zip(("x_train", "y_train", "x_test", "y_test", "x_val"), ROLES, strict=True)),
    **dict(zip(("train_images", "train_labels", "test_images", "test_labels", "val_images"), ROLES, strict=True)),
    **dict(zip(("images", "labels"), ROLES, strict=False)),
}
FORMS = (  # of a folder: the names of its files, and their roles; the first form that a folder has is read
    {name + gz: role for gz in ("", ".gz") for name, role in zip(MNIST + KAGGLE, ROLES[:4] * 2, strict=True)},
    {f"{name}.npy": role for name, role in NAMES.items()},
    {"train.csv": "train images", "test.csv": "test images"},
)
IMAGE_FILES = frozenset(name for form in FORMS for name, role in form.items() if role.endswith("images"))
PICTURES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp", ".gif", ".pgm", ".ppm")
IDX_TYPES = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}


def read(draft: Draft, path: Path) -> None:
    """Read the arrays of an .npz or .csv file, or of a folder that holds one of IMAGE_FILES."""
    files = {"train images": path}
    if path.is_dir():
        found = {file.name.lower(): file for file in sorted(path.iterdir()) if file.is_file()}
        files = _pick(draft, found, next((form for form in FORMS if IMAGE_FILES & form.keys() & found.keys()), {}))
    for role, file in files.items():
        try:
            READERS.get(file.suffix.lower(), _read_idx)(draft, file, role)
        except Exception as error:  # zipfile, zlib, NumPy and Python's parser each have errors of their own
            reason = getattr(error, "strerror", None) or str(error).partition("\n")[0][:200] or type(error).__name__
            raise UserError(f"{file.name}: cannot be read: {reason}; mend it, or get a sound copy") from error
    if not draft.arrays:
        raise UserError(f"no array has a known name, such as x_train; {draft.notes[0]}")


def _pick(draft: Draft, found: dict, roles: dict[str, str]) -> dict:
    """What was found under names that have a role, by role. A note names the rest."""
    picked = {}
    for name in [name for name in roles if name in found]:
        picked.setdefault(roles[name], found[name])
    if rest := [name for name, value in found.items() if value not in picked.values() and name[0] != "."]:
        draft.notes.append(f"not read: {', '.join(rest)[:200]}")
    return picked


def _read_idx(draft: Draft, path: Path, role: str) -> None:
    """Read an IDX file (yann.lecun.com/exdb/mnist): a type, a number of dimensions, big-endian sizes, numbers."""
    content = path.read_bytes()
    if content[:2] == b"\x1f\x8b":  # content tells: browsers unpack .gz and do not rename
        content = gzip.decompress(content)
    if content[:2] != b"\0\0" or content[2] not in IDX_TYPES:
        raise ValueError(f"it begins with 0x{content[:4].hex()}, as no IDX file does")
    shape = struct.unpack_from(f">{content[3]}I", content, 4)
    numbers = np.frombuffer(content, IDX_TYPES[content[2]], offset=4 + 4 * len(shape))
    draft.arrays[role] = numbers.reshape(shape)


def _map_npy(draft: Draft, path: Path, role: str) -> None:
    """Map an .npy file: its array is read when it is used, and may be larger than memory."""
    draft.arrays[role] = np.lib.format.open_memmap(path, mode="r")


def _read_npz(draft: Draft, path: Path, _: str) -> None:
    with zipfile.ZipFile(path) as archive:
        if sum(member.file_size for member in archive.infolist()) > LARGEST:
            raise ValueError(f"unpacked, it takes more than {LARGEST:,} bytes: save .npy files")
        names = {name.removesuffix(".npy").lower(): name for name in archive.namelist()}
        for role, name in _pick(draft, names, NAMES).items():
            with archive.open(name) as file:
                draft.arrays[role] = np.lib.format.read_array(file, allow_pickle=False)


def _read_csv(draft: Draft, path: Path, role: str) -> None:
    """Read a row for each image: its pixels and, if there are labels, its label."""
    content = path.read_bytes()
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = content.decode("cp1252")
        draft.notes.append(f"{path.name}: is no UTF-8, and is read as Windows-1252 (cp1252)")
    lines = [line for line in io.StringIO(text, newline=None) if line.strip()]
    columns = [cell.strip().lower() for cell in next(csv.reader(lines[:1]), [""])]
    has_header = "label" in columns or not re.fullmatch(r"[-+]?[\d.][\d.e+-]*", columns[-1])
    label = columns.index("label") if "label" in columns else None if has_header else 0  # None: all are pixels
    _check_columns(path, columns, has_header)
    rows, labels = lines[has_header:], []
    for number, row in enumerate(csv.reader(rows), 1):
        if len(row) != len(columns) or (label is not None and not row[label].strip()):
            raise ValueError(f"row {number:,} has {len(row):,} cells of {len(columns):,}, or no label")
        labels.append(row[label or 0].strip())
    if len(labels) != len(rows) or not rows:
        raise ValueError(f"it has {len(rows):,} lines of images, but {len(labels):,} rows")
    how = {"delimiter": ",", "quotechar": '"', "comments": None, "ndmin": 2}
    how["usecols"] = [column for column in range(len(columns)) if column != label]
    try:
        draft.arrays[role] = np.loadtxt(rows, np.uint8, **how)
    except ValueError:
        draft.arrays[role] = np.loadtxt(rows, float, **how)
    if label is not None:
        draft.arrays[role.replace("images", "labels")] = np.array(labels)


def _check_columns(path: Path, columns: list[str], has_header: bool) -> None:
    """Refuse what would be misread: names that are numbers, and pixels whose labels are in another file."""
    count = len(columns)
    if not has_header and columns[-2:] == [str(count - 2), str(count - 1)]:
        raise ValueError("its columns are called 0, 1, 2 ...: call them label, pixel0, pixel1 ...")
    if "label" not in columns and math.isqrt(count) ** 2 == count:
        for file in path.parent.glob("*.csv"):
            if file != path and re.match(r"y([-_.]|train|test)|.*label", file.name.lower()):
                raise ValueError(f"it has no column `label`, but {file.name} lies beside it: join them")


READERS = {".npz": _read_npz, ".npy": _map_npy, ".csv": _read_csv}  # others are IDX


def explain(folder: Path) -> str:
    """What was seen in a folder that no rule fits: the sets inside it, or its files."""
    inside, marks = sorted(folder.rglob("*")), IMAGE_FILES | {"train", "test"}
    sets = {file.parent for file in inside if file.name.lower() in marks}
    sets |= {file for file in inside if file.suffix.lower() in (".npz", ".csv")}
    sets |= {file.parents[1] for file in inside if file.suffix.lower() in PICTURES}
    sets = {str(place) for place in sets - {folder, folder.parent} if place.name.lower() not in ("train", "test")}
    if sets:
        return f"name a set inside, of {len(sets):,}: {', '.join(sorted(sets)[:6])}"
    seen = Counter(file.suffix or file.name for file in inside if file.is_file()).most_common(4)
    return f"seen: {', '.join(f'{count:,} {ending}' for ending, count in seen) or 'nothing'}"
