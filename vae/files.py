"""Files that cannot be torn when they are written, and cannot do harm when they are read.

Every file is written beside its place, under a name that begins with a dot, and renamed into it. Nothing in a file that
is read is executed: pickle is never read, and Keras restores models in its safe mode.
"""

import errno
import json
import os
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from vae.terminal import UserError, as_path

# Keys that Keras wrote first after 3.8, and that older versions refuse. All have their defaults in these networks.
NEWER_KEYS = ("quantization_config", "input_axes", "output_axes", "renorm", "renorm_clipping", "renorm_momentum")
LARGEST = 4 * 2**30  # bytes in an archive, unpacked; a training state has all weights three times


def check_place(flag: str, text: str) -> Path:
    """Return the path of a file to write; UserError where none can be written."""
    path = as_path(text)
    if not path.resolve().parent.is_dir():
        raise UserError(f"{flag} {path}: no such folder; make it first")
    if path.is_dir():
        raise UserError(f"{flag} {path} cannot be written (it is a folder); name a file in it")
    return path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary path to write to. Once it is written without an error, rename it to `path` in one step.

    Raises UserError where the folder is missing, read-only or full; what was at `path` before is then still there.
    """
    if path.exists() and not path.is_file():  # renaming would replace a device, too
        raise UserError(f"{path} cannot be written (it is no plain file); choose another place")
    temporary = path.parent / f".{os.getpid()}-{path.name}"
    try:
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        remedy = "free space" if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) else "check the folder"
        reason = error.strerror or error
        raise UserError(f"{path} cannot be written ({reason}); {remedy}, or choose another place") from error
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, content: dict) -> None:
    """Write a JSON object as text."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def write_arrays(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Write an .npz of plain arrays, by name."""
    with replacing(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, allow_pickle=False, **arrays)
        file.flush()
        os.fsync(file.fileno())  # or a power cut could leave the new name on an empty file


@contextmanager
def _reading(path: Path, remedy: str) -> Iterator[None]:
    """Raise UserError, with the remedy, where an archive is missing, damaged, or declares more than LARGEST bytes."""
    try:
        with zipfile.ZipFile(path) as archive:
            if sum(member.file_size for member in archive.infolist()) > LARGEST:
                raise ValueError("it is too large")
        yield
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing; {remedy}") from error
    except Exception as error:  # a damaged archive makes zipfile, NumPy and Keras raise nearly every exception
        reason = (next(iter(str(error).splitlines()), "") or type(error).__name__)[:200]
        raise UserError(f"{path} cannot be read ({reason}); {remedy}") from error


def read_arrays(path: Path, remedy: str) -> dict[str, np.ndarray]:
    """Read the arrays of an .npz; UserError, with the remedy, where that is not possible."""
    with _reading(path, remedy), np.load(path, allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files}


def load_model(path: Path):
    """Restore a Keras model in safe mode; UserError where that is not possible."""
    import keras

    with _reading(path, "complete an epoch of the run first, or choose another run with --checkpoint"):
        return keras.saving.load_model(path, compile=False, safe_mode=True)


def save_model(model, path: Path) -> None:
    """Save a Keras model so that every Keras from 3.8 on can load it: without `NEWER_KEYS`."""
    with replacing(path) as temporary:
        model.save(temporary)
        with zipfile.ZipFile(temporary) as archive:
            members = {name: archive.read(name) for name in archive.namelist()}
        config = json.loads(members["config.json"], object_hook=_drop_newer_keys)
        with zipfile.ZipFile(temporary, "w") as archive:
            for name, content in (members | {"config.json": json.dumps(config)}).items():
                archive.writestr(name, content)


def _drop_newer_keys(node: dict) -> dict:
    return {key: value for key, value in node.items() if key not in NEWER_KEYS}
