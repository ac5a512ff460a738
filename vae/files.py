"""Files that cannot be torn when they are written, and cannot do harm when they are read.

Every file is written beside its place, under a name that begins with a dot, and renamed into it. Nothing in a file that
is read is executed, and no file takes more memory than the limits below.
"""

import errno
import io
import json
import os
import re
import stat
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np

from vae.terminal import UserError, as_path

LARGEST_MODEL = 2 * 2**30  # bytes in a .keras archive, unpacked; `readout` for images of 64 x 48 has 1.2 GB
LARGEST_ARRAYS = 4 * 2**30  # bytes in an .npz, unpacked; the training state of `readout` has three times its weights
LARGEST_TEXT = 2**20  # bytes of a config.json; two thousand are usual
MODEL_MEMBERS = ["config.json", "metadata.json", "model.weights.h5"]  # and no assets, which Keras would unpack


def check_place(flag: str, text: str) -> Path:
    """Return the path of a file to write; UserError where none can be written."""
    path = as_path(text)
    if not path.resolve().parent.is_dir():
        raise UserError(f"{flag} {path}: no such folder; make it first")
    if path.is_dir():
        raise UserError(f"{flag} {path} cannot be written (it is a folder); name a file in it")
    return path


@contextmanager
def replacing(path: str | os.PathLike) -> Iterator[Path]:
    """Give a temporary path to write to. Once it is written without an error, rename it to `path` in one step.

    Raises UserError where the folder is missing, read-only or full; what was at `path` before is then still there.
    """
    path = Path(path)
    if os.path.exists(path) and not os.path.isfile(path):  # renaming would replace a device, too
        raise UserError(f"{path} cannot be written (it is no plain file); choose another place")
    temporary = path.parent / f".{os.getpid()}-{path.name}"
    try:
        yield temporary
        with open(temporary, "rb+") as file, suppress(OSError):  # some file systems cannot
            os.fsync(file.fileno())  # or a power cut could leave the new name on an empty file
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except OSError as error:
        remedy = "free space" if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) else "check the folder"
        reason = error.strerror or error
        raise UserError(f"{path} cannot be written ({reason}); {remedy}, or choose another place") from error
    finally:
        with suppress(OSError):
            temporary.unlink()


def _sync_folder(folder: Path) -> None:
    """Make the names in a folder survive a power cut, where the file system can."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def remove_temporary_files(folder: Path) -> None:
    """Remove what a killed process had half written."""
    for path in folder.glob(".*"):
        if re.match(r"\.\d+-", path.name) and path.is_file():
            path.unlink()


def write_json(path: Path, content: dict) -> None:
    """Write a JSON object as text."""
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def read_json(path: Path) -> object:
    """Read a JSON file; UserError where it cannot be read, or is not JSON."""
    try:
        _check_plain(path, LARGEST_TEXT)
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror or error}); choose another run") from error
    except (ValueError, RecursionError):
        raise UserError(f"{path} is not JSON, so the run cannot be restored; choose another run") from None


def _check_plain(path: Path, largest: int) -> None:
    """Raise OSError for what is no plain file, or too large: pipes and devices may have no end."""
    status = path.stat()
    if not stat.S_ISREG(status.st_mode) or status.st_size > largest:
        raise OSError("it is no plain file, or too large")


@contextmanager
def write_images(path: Path, shape: tuple, dtype: str, compression: int) -> Iterator[Callable[[np.ndarray], int]]:
    """Give a function that adds a batch (n, H, W) to an .npz of images of that `shape`, under the key `images`.

    So the images are never in memory together. `compression` is zipfile's.
    """
    with (
        zipfile.ZipFile(path, "w", compression) as archive,
        archive.open("images.npy", "w", force_zip64=True) as file,
    ):
        np.lib.format.write_array_header_1_0(file, {"descr": dtype, "fortran_order": False, "shape": shape})
        yield lambda batch: file.write(batch.astype(dtype).tobytes())


def write_arrays(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Write an .npz of plain arrays, by name."""
    with open(path, "wb") as file:
        np.savez(file, allow_pickle=False, **arrays)


def read_arrays(path: Path, remedy: str) -> dict[str, np.ndarray] | None:
    """Read the arrays of an .npz, or return None where there is no such file; UserError where it is not plain numbers.

    `remedy` says what to do about a bad file.
    """
    if not path.exists():
        return None
    try:
        _check_plain(path, LARGEST_ARRAYS)
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
        if sum(member.file_size for member in members) > LARGEST_ARRAYS:
            raise ValueError("it is too large")
        if any(member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) for member in members):
            raise ValueError("it is compressed in an unusual way")
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
        if not all(isinstance(array, np.ndarray) and array.dtype.kind in "iuf" for array in arrays.values()):
            raise ValueError("it holds other things than numbers")
    except Exception as error:  # a damaged archive makes zipfile, zlib and NumPy raise nearly every exception
        raise UserError(f"{path} cannot be read: {_reason(error)}; {remedy}") from error
    return arrays


def load_model(path: Path, input_shape: tuple, output_shapes: list[tuple]):
    """Restore a Keras model in safe mode, and check the shapes of what it takes and gives.

    Shapes are those of one image or latent vector; None stands for any size. Raises UserError where the file is
    missing, is not such a model, or declares more weights than it holds.
    """
    import keras

    if not path.is_file():
        raise UserError(f"{path} is missing: no epoch of the run was completed, or its files were moved")
    try:
        _check_archive(path)
        model = keras.saving.load_model(path, compile=False, safe_mode=True)
        fits = isinstance(model, keras.Model) and _fits(model, [input_shape, *output_shapes])
    except Exception as error:  # a damaged file makes Keras raise nearly every exception
        remedy = _find_other_version(path) or "choose another run with --checkpoint"
        raise UserError(f"{path} cannot be restored: {_reason(error)}; {remedy}") from error
    if not fits:
        raise UserError(f"{path} is not the {path.stem} of a run (its shapes differ); choose another with --checkpoint")
    return model


def _reason(error: Exception) -> str:
    return (next(iter(str(error).splitlines()), "") or type(error).__name__)[:200]


def _fits(model, wanted: list[tuple]) -> bool:
    found = [tuple(tensor.shape)[1:] for tensor in (*model.inputs, *model.outputs)]
    return len(found) == len(wanted) and all(
        len(has) == len(want)
        and None not in has
        and all(size in (None, own) for size, own in zip(want, has, strict=True))
        for want, has in zip(wanted, found, strict=True)
    )


def _find_other_version(path: Path) -> str | None:
    """Return what to install where another version of Keras saved the model, else None."""
    import keras

    with suppress(Exception), zipfile.ZipFile(path) as archive, archive.open("metadata.json") as file:
        version = json.loads(file.read(LARGEST_TEXT))["keras_version"]
        if re.fullmatch(r"\d+(\.\d+){1,3}", version) and version != keras.__version__:
            return f"it was saved by Keras {version}, and this is {keras.__version__}: pip install keras=={version}"
    return None


def _check_archive(path: Path) -> None:
    """Refuse an archive that would unpack, or build a network, far larger than the weights in it.

    Keras allocates what the config declares before it reads any weight. So the network is built first without memory
    for its variables, and their number is compared with the size of the stored weights.
    """
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        sizes = {member.filename: member.file_size for member in members}
        plain = sorted(archive.namelist()) == MODEL_MEMBERS and all(member.compress_type == 0 for member in members)
        if not plain or sum(sizes.values()) > LARGEST_MODEL or max(map(sizes.get, MODEL_MEMBERS[:2])) > LARGEST_TEXT:
            raise ValueError("it is not a Keras archive of a network of this size")
        declared = json.loads(archive.read("config.json"))
        stored = _measure_weights(archive.read("model.weights.h5"))
    modules = re.findall(r'"module": "([^"]*)"', json.dumps(declared))  # which Keras would import classes from
    if foreign := {module for module in modules if not re.fullmatch(r"keras(\.\w+)*", module)}:
        raise ValueError(f"it names code outside Keras ({', '.join(sorted(foreign))})")
    with ThreadPoolExecutor(1) as thread:  # Keras's note of variables without memory is per thread
        count = thread.submit(_count_weights, declared).result()
    if max(4 * count, stored) > sizes["model.weights.h5"]:
        raise ValueError("it declares more weights than it holds")


def _measure_weights(content: bytes) -> int:
    """Return the bytes of all arrays in an HDF5 file, as it declares them."""
    import h5py

    sizes = []
    with h5py.File(io.BytesIO(content), "r") as file:
        file.visititems(lambda name, item: sizes.append(item.nbytes) if isinstance(item, h5py.Dataset) else None)
    return sum(sizes)


def _count_weights(declared: dict) -> int:
    import keras

    with keras.StatelessScope(initialize_variables=False):
        return keras.saving.deserialize_keras_object(declared, safe_mode=True).count_params()
