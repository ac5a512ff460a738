"""A run's folder: where it is, how it is written so that no kill can tear it, and how it is restored.

Every file is written beside its place, under a name that begins with a dot, and renamed into it.
"""

import csv
import json
import os
import re
import zipfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime
from functools import reduce
from operator import getitem
from pathlib import Path

import numpy as np

from vae.settings import UserError

FORMAT = 1  # of the folder; to be raised when an older program could no longer read a newer folder
LARGEST_MODEL = 256 * 2**20  # bytes in a .keras archive, unpacked
PROJECT = Path(__file__).resolve().parent.parent
CONFIG = {  # what is read of config.json, and its type
    ("finished",): str | None,
    ("settings", "data"): str | None,
    ("settings", "binarize"): bool,
    ("dataset", "name"): str,
    ("dataset", "sha256"): str,
}
EPOCH_FILES = ("config.json", "history.csv", "decoder.keras", "encoder.keras")
FILES = (*EPOCH_FILES, "loss_curves.png", "prior.npz", "reconstructions.png")


def root() -> Path:
    """The folder of all runs: `checkpoints/` in the project, or where the environment variable VAE_CHECKPOINTS says."""
    return Path(os.environ.get("VAE_CHECKPOINTS") or PROJECT / "checkpoints")


@contextmanager
def replacing(path: str | os.PathLike) -> Iterator[Path]:
    """Give a path to write to; once it is written without an error, it takes the place of `path` in one step.

    Raises UserError where the folder is missing, read-only or full; whatever stood at `path` then still stands there.
    """
    path = Path(path)
    if os.path.exists(path) and not os.path.isfile(path):  # renaming would take the place of a device, too
        raise UserError(f"{path} cannot be written (it is no plain file); choose another place")
    temporary = path.parent / f".{os.getpid()}-{path.name}"
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())  # or a power cut could leave the new name on an empty file
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(
            f"{path} cannot be written ({error.strerror or error}); free space or choose another place"
        ) from error
    finally:
        with suppress(OSError):
            temporary.unlink()


def check_name(name: str, overwrite: bool) -> None:
    """Refuse a name that is no plain folder name, or that a run has already and `overwrite` does not release."""
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]{,99}", name) or name == "pretrained":
        raise UserError(f"--name {name!r}: take up to 100 letters, digits, '.', '_' and '-' (and not 'pretrained')")
    if (root() / name).exists() and not overwrite:
        raise UserError(f"--name {name}: {root() / name} exists; take another name, or --overwrite to replace that run")


def create(name: str | None, stem: str) -> Path:
    """Make a run's folder and return it: `name`, or `stem`-NNN with the next number that nobody has.

    In a folder of that name that `--overwrite` released, the old run stays until `write_epoch` replaces it.
    """
    try:
        root().mkdir(parents=True, exist_ok=True)
        if name is None:
            return _next_free(stem)
        folder = root() / name
        folder.mkdir(exist_ok=True)
        return folder
    except OSError as error:
        raise UserError(
            f"{root()} cannot be written ({error.strerror or error}); VAE_CHECKPOINTS names another folder"
        ) from error


def _next_free(stem: str) -> Path:
    taken = [re.fullmatch(re.escape(stem) + r"-(\d+)", folder.name) for folder in root().iterdir()]
    number = max((int(match[1]) for match in taken if match), default=0) + 1
    while True:
        folder = root() / f"{stem}-{number:03d}"
        try:
            folder.mkdir()
            return folder
        except FileExistsError:  # another run took it just now
            number += 1


def write_config(folder: Path, config: dict) -> None:
    """Write `config.json`: every setting, the data set, the library versions, how far the run has come."""
    with replacing(folder / "config.json") as path:
        path.write_text(json.dumps({"format": FORMAT, **config}, indent=2) + "\n")


def write_epoch(folder: Path, encoder, decoder, rows: list[dict], config: dict) -> None:
    """Write what an epoch leaves: both models, `history.csv`, a row an epoch, and `config.json`.

    All of it is written before any of it takes its place, so that after an error, say on a full disk, the folder is as
    it was. With the first epoch goes what an earlier run of that name left.
    """
    with ExitStack() as stack:  # which leaves in the opposite order: the config is the last to change
        places = [stack.enter_context(replacing(folder / name)) for name in EPOCH_FILES]
        config_path, history, decoder_path, encoder_path = places
        encoder.save(encoder_path)
        decoder.save(decoder_path)
        with open(history, "w", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
        config_path.write_text(json.dumps({"format": FORMAT, **config}, indent=2) + "\n")
        if len(rows) == 1:
            for name in set(FILES) - set(EPOCH_FILES):
                (folder / name).unlink(missing_ok=True)


def write_prior(folder: Path, arrays: dict[str, np.ndarray]) -> None:
    """Write `prior.npz`: plain arrays, what is known of where the codes of the training images lie."""
    with replacing(folder / "prior.npz") as path, open(path, "wb") as file:
        np.savez_compressed(file, **arrays)


def read_prior(folder: Path) -> dict[str, np.ndarray] | None:
    """Read `prior.npz`, or return None where the run has none; raises UserError where it is not plain numbers."""
    path = folder / "prior.npz"
    if not path.exists():
        return None
    try:
        with zipfile.ZipFile(path) as archive:
            if sum(member.file_size for member in archive.infolist()) > LARGEST_MODEL:
                raise ValueError("it is too large")
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
        if not all(isinstance(array, np.ndarray) and array.dtype.kind in "iuf" for array in arrays.values()):
            raise ValueError("it holds other things than numbers")
    except Exception as error:  # a damaged archive makes zipfile, zlib and NumPy raise nearly every exception there is
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise UserError(f"{path} cannot be read: {reason[:200]}; remove it to draw from the prior") from error
    return arrays


def finished_now() -> str:
    """The time that a run records as its end: UTC, so that text order is time order."""
    return datetime.now(UTC).isoformat(timespec="microseconds")


def choose(path: str | None) -> Path:
    """The folder to restore from: `path`, else the run that finished last by its own record, else the shipped model."""
    if path is not None:
        if not Path(path).is_dir():
            raise UserError(f"--checkpoint {path}: no such folder; the runs are in {root()}")
        return Path(path)
    finished = {config["finished"]: folder for folder, config in _readable(root()) if config["finished"]}
    return finished[max(finished)] if finished else PROJECT / "checkpoints" / "pretrained"


def _readable(folder: Path) -> Iterable[tuple[Path, dict]]:
    for path in sorted(folder.glob("*/config.json")):
        if path.parent.name == "pretrained":
            continue
        try:
            yield path.parent, read_config(path.parent)
        except UserError:  # somebody else's folder, or a half-made one, must not stand in the way of the others
            continue


def read_config(folder: Path) -> dict:
    """Read `config.json`; raises UserError where it is missing, not JSON, or of another version of this program."""
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text())
    except FileNotFoundError:
        raise UserError(
            f"{folder}: no config.json there, so no run of this program; the runs are in {root()}"
        ) from None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError):
        raise UserError(
            f"{path} is not JSON, so the run cannot be restored; choose another with --checkpoint"
        ) from None
    if not isinstance(config, dict) or config.get("format") != FORMAT:
        found = config.get("format") if isinstance(config, dict) else None
        raise UserError(
            f"{path} is of format {found!r}, and this program reads {FORMAT}; restore it with its own version"
        )
    for keys, kind in CONFIG.items():
        try:
            fits = isinstance(reduce(getitem, keys, config), kind)
        except (KeyError, TypeError, IndexError):
            fits = False
        if not fits:
            raise UserError(f"{path} does not say a run's {' '.join(keys)}; choose another run with --checkpoint")
    return config


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
        raise UserError(f"{path} cannot be restored: {reason[:200]}; choose another run with --checkpoint") from error
    if not fits:
        raise UserError(f"{path} is not the {name} of a run (its shapes differ); choose another run with --checkpoint")
    return model


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
        sizes = {member.filename: member.file_size for member in archive.infolist()}
        if sum(sizes.values()) > LARGEST_MODEL or not {"config.json", "model.weights.h5"} <= set(sizes):
            raise ValueError("it is not a Keras archive of a network of this size")
        declared = json.loads(archive.read("config.json"))
    foreign = {module for module in _modules(declared) if not re.fullmatch(r"keras(\.\w+)*", module)}
    if foreign:
        raise ValueError(f"it names code outside Keras ({', '.join(sorted(foreign))})")
    with ThreadPoolExecutor(1) as thread:  # Keras notes which variables wait for memory: the note goes with its thread
        count = thread.submit(_count_weights, declared).result()
    if 4 * count > sizes["model.weights.h5"]:
        raise ValueError("it declares more weights than it holds")


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
