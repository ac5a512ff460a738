"""What a run kept in archives, its models and its arrays, restored once each has been looked at."""

import io
import json
import re
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np

from vae.settings import UserError

LARGEST_MODEL = 256 * 2**20  # bytes in an archive, unpacked
LARGEST_ARRAYS = 1024 * 2**20  # bytes in an .npz, unpacked
LARGEST_TEXT = 2**18  # bytes of its config, and of its metadata; eight thousand are usual
MEMBERS = ["config.json", "metadata.json", "model.weights.h5"]  # and no assets, which Keras would unpack elsewhere


def load_model(folder: Path, name: str, input_shape: tuple, output_shapes: list[tuple]):
    """Restore `name`.keras (encoder or decoder) in Keras's safe mode, and check what it takes and gives.

    Shapes are those of one image or latent vector; None stands for the latent dimensions, whatever they are. Raises
    UserError where the file is missing, not such a model, or declares more than it holds.
    """
    import keras

    path = folder / f"{name}.keras"
    if not path.is_file():
        raise UserError(f"{path} is missing; the run was stopped before its first epoch ended, or its files were moved")
    try:
        _check_archive(path)
        model = keras.saving.load_model(path, compile=False, safe_mode=True)
        fits = isinstance(model, keras.Model) and _matches(model, input_shape, output_shapes)
    except Exception as error:  # Keras meets a damaged file with nearly every exception there is
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        remedy = _other_version(path) or "choose another run with --checkpoint"
        raise UserError(f"{path} cannot be restored: {reason[:200]}; {remedy}") from error
    if not fits:
        raise UserError(f"{path} is not the {name} of a run (its shapes differ); choose another run with --checkpoint")
    return model


def read_state(folder: Path) -> dict[str, np.ndarray] | None:
    """Read `training_state.npz`, or return None where the run has none; UserError where it is not plain numbers."""
    return _read_arrays(folder / "training_state.npz", "start a new run")


def read_prior(folder: Path) -> dict[str, np.ndarray] | None:
    """Read `prior.npz`, or return None where the run has none; raises UserError where it is not plain numbers."""
    return _read_arrays(folder / "prior.npz", "remove it to draw from the prior")


def read_reconstructions(folder: Path) -> np.ndarray:
    """Read the images (n, 28, 28), bytes, that `reconstructions.npz` has; UserError where the run kept none."""
    path = folder / "reconstructions.npz"
    arrays = _read_arrays(path, "draw from the decoder")
    if arrays is None:
        raise UserError(f"{path} is missing: only a run with --save-reconstructions has it; draw from the decoder")
    images = arrays.get("images")
    if images is None or images.dtype != np.uint8 or images.shape[1:] != (28, 28) or not len(images):
        raise UserError(f"{path} holds no images (n, 28, 28) of bytes; draw from the decoder")
    return images


def _other_version(path: Path) -> str | None:
    """What to install where an archive says that another version of Keras saved it; None where it does not."""
    import keras

    with suppress(Exception), zipfile.ZipFile(path) as archive, archive.open("metadata.json") as file:
        version = json.loads(file.read(LARGEST_TEXT))["keras_version"]
        if re.fullmatch(r"\d+(\.\d+){1,3}", version) and version != keras.__version__:
            return f"it was saved by Keras {version}, and this is {keras.__version__}: pip install keras=={version}"
    return None


def _matches(model, input_shape: tuple, output_shapes: list[tuple]) -> bool:
    def fits(tensor, shape: tuple) -> bool:
        found = tuple(tensor.shape)[1:]
        if None in found or len(found) != len(shape):
            return False
        return all(want in (None, has) for want, has in zip(shape, found, strict=True))

    shapes = [input_shape, *output_shapes]
    tensors = [*model.inputs, *model.outputs]
    return len(shapes) == len(tensors) and all(map(fits, tensors, shapes))


def _check_archive(path: Path) -> None:
    """Turn away an archive that would unpack, or build a network, far larger than the weights in it.

    Building a layer allocates what its configuration declares before a single weight is read, so the network is built
    first without memory for its variables, and their number compared with the size of the stored weights.
    """
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        sizes = {member.filename: member.file_size for member in members}
        plain = sorted(archive.namelist()) == MEMBERS and all(member.compress_type == 0 for member in members)
        if not plain or sum(sizes.values()) > LARGEST_MODEL or max(map(sizes.get, MEMBERS[:2])) > LARGEST_TEXT:
            raise ValueError("it is not a Keras archive of a network of this size")
        declared = json.loads(archive.read("config.json"))
        stored = _size_of_weights(archive.read("model.weights.h5"))
    foreign = {module for module in _modules(declared) if not re.fullmatch(r"keras(\.\w+)*", module)}
    if foreign:
        raise ValueError(f"it names code outside Keras ({', '.join(sorted(foreign))})")
    with ThreadPoolExecutor(1) as thread:  # Keras notes which variables wait for memory: the note goes with its thread
        count = thread.submit(_count_weights, declared).result()
    if max(4 * count, stored) > sizes["model.weights.h5"]:
        raise ValueError("it declares more weights than it holds")


def _size_of_weights(content: bytes) -> int:
    """Bytes of all arrays in an HDF5 file, as it declares them: those that it does not store take memory when read."""
    import h5py

    sizes = []
    with h5py.File(io.BytesIO(content), "r") as file:
        file.visititems(lambda name, item: sizes.append(item.nbytes) if isinstance(item, h5py.Dataset) else None)
    return sum(sizes)


def _count_weights(declared: dict) -> int:
    import keras

    with keras.StatelessScope(initialize_variables=False):
        return keras.saving.deserialize_keras_object(declared, safe_mode=True).count_params()


def _modules(declared) -> Iterator[str]:
    """Every module that a nested Keras configuration would import a class from."""
    if isinstance(declared, dict):
        if isinstance(declared.get("module"), str):
            yield declared["module"]
        for value in declared.values():
            yield from _modules(value)
    elif isinstance(declared, list):
        for value in declared:
            yield from _modules(value)


def _read_arrays(path: Path, remedy: str) -> dict[str, np.ndarray] | None:
    if not path.exists():
        return None
    try:
        if not path.is_file() or path.stat().st_size > LARGEST_ARRAYS:  # pipes and devices may have no end
            raise ValueError("it is no plain file, or too large")
        with zipfile.ZipFile(path) as archive:
            if sum(member.file_size for member in archive.infolist()) > LARGEST_ARRAYS:
                raise ValueError("it is too large")
            for member in archive.infolist():
                if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                    raise ValueError("it is compressed in an unusual way")
                with archive.open(member) as file:
                    if file.read(8) != b"\x93NUMPY\1\0":  # as NumPy writes it; in later versions headers have no end
                        raise ValueError("it holds other things than arrays")
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
        if not all(isinstance(array, np.ndarray) and array.dtype.kind in "iuf" for array in arrays.values()):
            raise ValueError("it holds other things than numbers")
    except Exception as error:  # a damaged archive makes zipfile, zlib and NumPy raise nearly every exception there is
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise UserError(f"{path} cannot be read: {reason[:200]}; {remedy}") from error
    return arrays
