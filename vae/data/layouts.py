"""Find out what is at a path, whatever layout people use, and read it as arrays by role."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from vae.data import formats, pictures, tables
from vae.data.convert import Remarks
from vae.terminal import UserError

PART_OF = pictures.PART_OF | {"t10k": "test"}
KINDS = {
    **dict.fromkeys(("images", "image", "imgs", "img", "x", "data"), "images"),
    **dict.fromkeys(("labels", "label", "lab", "lbl", "y", "targets", "target"), "labels"),
}
HINTS = {  # for what people may give, and is not read
    **dict.fromkeys((".zip", ".tar", ".tgz", ".7z", ".rar"), "unpack it first, and name the folder"),
    **dict.fromkeys((".pkl", ".pickle", ".pt", ".pth"), "it may hold pickled objects, which are never read"),
    **dict.fromkeys((".mat", ".parquet", ".h5", ".hdf5", ".tfrecord"), "save its arrays with numpy.savez"),
    **dict.fromkeys((".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp"), "name the folder of the pictures"),
}


class Name(NamedTuple):
    """What the name of a file or of an array says: the data set, the part of it, and images or labels."""

    dataset: str
    part: str | None
    kind: str | None

    @property
    def role(self) -> str:
        """Such as test_labels; without any word, train_images."""
        return f"{self.part or 'train'}_{self.kind or 'images'}"


class Contents(NamedTuple):
    """Arrays as they were found, by role, and where each was found."""

    arrays: dict[str, np.ndarray]
    places: dict[str, str]


def parse_name(name: str) -> Name:
    """Take a name apart: emnist-letters-train-images-idx3-ubyte.gz, X_train, val_images, k49-test-imgs.npz ..."""
    name = re.sub(r"[-.]idx\d-(ubyte|int)|(\.(gz|npz|npy|csv))+$", "", name.lower())
    name = re.sub(r"^([xy])(train|test|val)|(train|test|val)([xy])$", r"\1\3-\2\4", name)
    words = [word for word in re.split(r"[-_. ]+", name) if word]
    part = next((PART_OF[word] for word in words if word in PART_OF), None)
    kind = next((KINDS[word] for word in words if word in KINDS), None)
    rest = [word for word in words if word not in PART_OF and word not in KINDS]
    return Name("-".join(rest), part, kind)


def read(path: Path, size: tuple[int, int] | None, remarks: Remarks) -> Contents:
    """Read the arrays of whatever is at a path; pictures are scaled to `size` if it is given.

    `path` may also be FOLDER/NAME: of several data sets in a folder, the one whose name parse_name calls NAME.
    """
    if path.is_file():
        contents = _read_file(path, remarks)
    elif files := find_files(path, remarks):
        contents = _read_files(files)
    else:
        contents = _read_folder(path, size, remarks)
    for role in contents.arrays:
        images = role.replace("labels", "images")
        if images not in contents.arrays:
            raise UserError(
                f"{contents.places[role]}: holds labels, but {path} has no {images.replace('_', ' ')}; add them"
            )
    return contents


def holds_something(path: Path) -> bool:
    """Whether there is a file or folder at a path, or a data set of that name (FOLDER/NAME)."""
    return path.exists() or (path.parent.is_dir() and bool(find_files(path, Remarks())))


def _read_folder(path: Path, size: tuple[int, int] | None, remarks: Remarks) -> Contents:
    """Read what is no set of files with known names: one .npz, an .npy file for each class, or pictures."""
    files = _list_files(path)
    archives = [file for file in files if file.suffix.lower() == ".npz"]
    if len(archives) > 1:
        raise UserError(f"{path}: holds several data sets; name one of {_list(map(str, archives))}")
    if archives:
        return _read_file(archives[0], remarks)
    if classes := [file for file in files if file.suffix.lower() == ".npy"]:
        remarks.notes.append(f"{path}: each of {len(classes)} .npy files is read as a class")
        return _read_classes(path, classes)
    if pictures.holds_pictures(path):
        arrays = pictures.read_pictures(path, size, remarks)
        return Contents(arrays, dict.fromkeys(arrays, str(path)))
    known = "IDX files as MNIST has them, x_train.npy, train.csv, an .npz, pictures"
    hints = [f"{file.name}: {HINTS[file.suffix.lower()]}" for file in files if file.suffix.lower() in HINTS]
    raise UserError(f"{path}: holds no images of a known kind ({known}); {(hints or ['check the folder'])[0]}")


def _list_files(folder: Path) -> list[Path]:
    """The files of a folder by name, without hidden ones, such as macOS puts beside others."""
    return sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))


# Files with known names


def find_files(path: Path, remarks: Remarks) -> dict[str, Path]:
    """The files of a data set by role, in a folder or, as torchvision has them, in NAME/raw inside; {} without any."""
    folder, wanted = (path, None) if path.is_dir() else (path.parent, path.name.lower())
    for places in ([folder], [folder / "raw", folder / "gzip"], [*folder.glob("*/raw"), *folder.glob("*/gzip")]):
        found = {}
        for place in sorted(place for place in places if place.is_dir()):
            sets = _find_sets(place)
            owner = place.relative_to(folder).parts[:-1]  # () or (NAME,)
            for name, files in sets.items():
                found["/".join(owner if owner and len(sets) == 1 else (*owner, name))] = files
        if wanted is not None:
            found = {name: files for name, files in found.items() if name == wanted}
        if found:
            return _choose(folder, found, remarks)
    return {}


def _choose(folder: Path, found: dict[str, dict[str, Path]], remarks: Remarks) -> dict[str, Path]:
    """The only data set in a folder, or the one whose files have no name before train and test."""
    others = [str(folder / name) for name in found if name]
    if "" in found and others:
        remarks.notes.append(f"{folder}: other data sets are there, too; choose one of them by {_list(others)}")
    if len(found) > 1 and "" not in found:
        raise UserError(f"{folder}: holds several data sets; choose one by --data {_list(others)}")
    return found.get("") or next(iter(found.values()))


def _list(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:12]) + (f" and {len(names) - 12} more" if len(names) > 12 else "")


IDX_NAME = re.compile(r"[-.]idx\d-(ubyte|int)(\.gz)?$")


def has_idx_name(path: Path) -> bool:
    """Whether a file is called as IDX files are."""
    return bool(IDX_NAME.search(path.name.lower()))


def _is_idx(path: Path, name: Name) -> bool:
    return has_idx_name(path) and name.kind is not None


def _is_npy(path: Path, name: Name) -> bool:
    return path.suffix == ".npy" and name.kind is not None


def _is_half_npz(path: Path, name: Name) -> bool:
    return path.suffix == ".npz" and None not in (name.part, name.kind)


def _is_csv(path: Path, name: Name) -> bool:
    return path.name.lower().endswith((".csv", ".csv.gz")) and tables.is_csv_of_images(path)


def _find_sets(folder: Path) -> dict[str, dict[str, Path]]:
    """The data sets in a folder: their files by role, by what their names begin with. All are in one format."""
    files = [(path, parse_name(path.name)) for path in _list_files(folder)]
    for is_of_format in (_is_idx, _is_npy, _is_half_npz, _is_csv):
        sets: dict[str, dict[str, Path]] = {}
        for path, name in files:
            if is_of_format(path, name):
                sets.setdefault(name.dataset, {}).setdefault(name.role, path)
        sets = {name: roles for name, roles in sets.items() if any("images" in role for role in roles)}
        if sets:
            return sets
    return {}


def _read_files(files: dict[str, Path]) -> Contents:
    arrays, places = {}, {}
    for role, path in files.items():
        if role == "validation_labels":
            continue
        places[role] = str(path)
        if path.suffix == ".npy":
            arrays[role] = formats.map_npy(path)
        elif path.suffix == ".npz":
            arrays[role] = formats.read_npz(path, formats.list_npz(path)[:1])[0]
        elif has_idx_name(path):
            array = formats.read_idx(path, (3,) if "images" in role else (1, 2))
            is_qmnist = array.ndim == 2 and array.shape[1] == 8 and array.itemsize == 4
            array = array[:, 0] if is_qmnist else array  # QMNIST's labels begin with the class
            arrays[role] = array if "images" in role else _name_by_mapping(path, array)
        else:
            arrays[role], labels = tables.read_csv(path)
            if labels is not None and role != "validation_images":
                role = role.replace("images", "labels")
                arrays[role], places[role] = labels, str(path)
    return Contents(arrays, places)


def _name_by_mapping(path: Path, labels: np.ndarray) -> np.ndarray:
    """The characters that labels (n,) stand for, by EMNIST's mapping file beside theirs; without it, the labels.

    A line is a class and the codes of its characters, such as `1 65 97`, of which the first is taken.
    """
    place = path.with_name(f"{parse_name(path.name).dataset}-mapping.txt")
    if not place.is_file():
        return labels
    with formats.in_one_line(place), open(place, "rb") as file:
        rows = [line.split() for line in file.read(2**16).splitlines() if line.strip()]
        characters = {int(row[0]): chr(int(row[1])) for row in rows}
        known, rows_of = np.unique(labels, return_inverse=True)
        return np.array([characters.get(int(label), str(label)) for label in known])[rows_of]


def _read_classes(path: Path, files: list[Path]) -> Contents:
    """Read a file for each class, as Quick, Draw! has them: (n, 784) bytes."""
    mapped = [formats.map_npy(file) for file in files]
    if len({array.shape[1:] for array in mapped}) > 1 or mapped[0].ndim < 2:
        raise UserError(f"{path}: its .npy files do not hold images of one shape; bring them to (n, H, W)")
    formats.check_size(
        str(path), (sum(map(len, mapped)), *mapped[0].shape[1:]), max(array.itemsize for array in mapped)
    )
    names = [file.stem.removeprefix("full_numpy_bitmap_") for file in files]
    arrays = {
        "train_images": np.concatenate(mapped),
        "train_labels": np.repeat(names, [len(array) for array in mapped]),
    }
    return Contents(arrays, dict.fromkeys(arrays, str(path)))


# One file


def _read_file(path: Path, remarks: Remarks) -> Contents:
    name = path.name.lower()
    if name.endswith(".npz"):
        return _read_archive(path, remarks)
    if name.endswith(".npy"):
        return _read_files({"train_images": path})
    if name.endswith((".csv", ".csv.gz")):
        return _read_files({f"{parse_name(name).part or 'train'}_images": path})
    if has_idx_name(path):
        raise UserError(f"{path}: is one of several files; name the folder that holds them")
    hint = HINTS.get(path.suffix.lower(), "give a folder of IDX files or pictures, or an .npz, .npy or .csv file")
    raise UserError(f"{path}: cannot be read; {hint}")


def _read_archive(path: Path, remarks: Remarks) -> Contents:
    """Read the arrays of an .npz file whose names say their roles."""
    roles = find_arrays(path, remarks)
    arrays = dict(zip(roles, formats.read_npz(path, list(roles.values())), strict=True))
    return Contents(arrays, {role: f"{path}: {name}" for role, name in roles.items()})


def find_arrays(path: Path, remarks: Remarks) -> dict[str, str]:
    """Return the names of the arrays in an .npz file by role."""
    present = formats.list_npz(path)
    names = {name: parse_name(name) for name in present}
    if any(name.part and name.kind for name in names.values()):  # then others, such as a list of names, do not count
        names = {text: name for text, name in names.items() if name.part}
    roles: dict[str, str] = {}
    for text, name in names.items():
        if name.part or name.kind:
            roles.setdefault(name.role, text)
    if present in (["arr_0"], ["arr_0", "arr_1"]):  # as savez calls arrays without names
        roles = dict(zip(("train_images", "train_labels"), present, strict=False))
    if unread := [text for text in present if text not in roles.values()]:
        remarks.notes.append(f"{path}: these arrays are not read: {_list(unread)[:200]}")
    roles.pop("validation_labels", None)
    if not any("images" in role for role in roles):
        what = f"holds no images by a known name (it holds {str(present)[:200]})"
        raise UserError(f"{path}: {what}; save it with x_train, x_test and, if any, labels y_train and y_test")
    return roles
