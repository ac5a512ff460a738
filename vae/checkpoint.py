"""A run's folder: where it is, how it is written so that no kill can tear it, and how it is found again.

Every file is written beside its place, under a name that begins with a dot, and renamed into it.
"""

import csv
import json
import os
import re
import stat
import zipfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime, timedelta
from functools import reduce
from operator import getitem
from pathlib import Path

import numpy as np

from vae.settings import UserError

FORMAT = 1  # of the folder; to be raised when an older program could no longer read a newer folder
LARGEST_CONFIG = 2**20  # bytes of a config.json; two thousand are usual
PROJECT = Path(__file__).resolve().parent.parent
CONFIG = {  # what is read of config.json, and its type
    ("epochs_done",): int,
    ("finished",): str | None,
    ("settings",): dict,
    ("versions",): dict,
    ("settings", "data"): str | None,
    ("settings", "binarize"): bool,
    ("dataset", "name"): str,
    ("dataset", "sha256"): str,
}
EPOCH_FILES = ("encoder.keras", "decoder.keras", "history.csv", "config.json", "training_state.npz")
ENDING_FILES = ("loss_curves.png", "prior.npz", "reconstructions.png")
FILES = ("training_images.png", *EPOCH_FILES, *ENDING_FILES)  # of every finished run
RECONSTRUCTIONS = "reconstructions.npz"  # of those that were asked for them


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
        _sync_folder(path.parent)
    except OSError as error:
        raise UserError(
            f"{path} cannot be written ({error.strerror or error}); free space or choose another place"
        ) from error
    finally:
        with suppress(OSError):
            temporary.unlink()


def _sync_folder(folder: Path) -> None:
    """Let the names in a folder outlast a power cut, as `fsync` does for what is in a file."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def check_name(name: str, overwrite: bool) -> None:
    """Refuse a name that is no plain folder name, or that a run has already and `overwrite` does not release."""
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]{,99}", name) or name == "pretrained":
        raise UserError(f"--name {name!r}: take up to 100 letters, digits, '.', '_' and '-' (and not 'pretrained')")
    if (root() / name).exists() and not overwrite:
        raise UserError(f"--name {name}: {root() / name} exists; take another name, or --overwrite to replace that run")


def create(name: str | None, stem: str, overwrite: bool = False) -> Path:
    """Make a run's folder and return it: `name`, or `stem`-NNN with the next number that nobody has.

    In a folder of that name that `--overwrite` released, the old run stays until `write_epoch` replaces it.
    """
    try:
        root().mkdir(parents=True, exist_ok=True)
        if name is None:
            return _next_free(stem)
        folder = root() / name
        if folder.exists() and not overwrite:  # since `check_name` looked, another run has taken it
            raise UserError(f"--name {name}: {folder} exists by now; take another name, or --overwrite it")
        folder.mkdir(exist_ok=overwrite)
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
        _dump_config(path, config)


def _dump_config(path: Path, config: dict) -> None:
    path.write_text(json.dumps({"format": FORMAT, **config}, indent=2) + "\n")


def write_epoch(folder: Path, encoder, decoder, rows: list[dict], config: dict, state: dict[str, np.ndarray]) -> None:
    """Write what an epoch leaves: both models, `history.csv`, a row an epoch, `config.json` and the training state.

    All of it is written before any of it takes its place, so that after an error, say on a full disk, the folder is as
    it was. First in its place is the training state, which holds all that resuming needs; next the config, by which the
    folder is an unfinished run's; then goes what is not of this model any more, and the rest comes: after a kill
    between any two, the folder has either the finished run that it had, or an unfinished one that can be resumed.
    """
    with ExitStack() as stack:  # which leaves in the opposite order
        places = [stack.enter_context(replacing(folder / name)) for name in EPOCH_FILES[:3]]
        encoder_path, decoder_path, history = places
        stack.enter_context(_removed_afterwards([folder / name for name in (*ENDING_FILES, RECONSTRUCTIONS)]))
        config_path, state_path = (stack.enter_context(replacing(folder / name)) for name in EPOCH_FILES[3:])
        with open(state_path, "wb") as file:
            np.savez(file, **state)
        encoder.save(encoder_path)
        decoder.save(decoder_path)
        with open(history, "w", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
        _dump_config(config_path, config)


@contextmanager
def _removed_afterwards(paths: list[Path]) -> Iterator[None]:
    yield  # and no further after an error
    for path in paths:
        path.unlink(missing_ok=True)


def write_prior(folder: Path, arrays: dict[str, np.ndarray]) -> None:
    """Write `prior.npz`: plain arrays, what is known of where the codes of the training images lie."""
    with replacing(folder / "prior.npz") as path, open(path, "wb") as file:
        np.savez_compressed(file, **arrays)


@contextmanager
def images_file(path: Path, count: int, dtype: str, compression: int) -> Iterator[Callable[[np.ndarray], None]]:
    """Give a function that adds a batch (n, 28, 28) to an .npz of `count` images, under the key `images`.

    So they never lie in memory together. `compression` is zipfile's: floats hardly shrink, and trying takes longer than
    decoding them.
    """
    header = {"descr": dtype, "fortran_order": False, "shape": (count, 28, 28)}
    with (
        zipfile.ZipFile(path, "w", compression) as archive,
        archive.open("images.npy", "w", force_zip64=True) as file,
    ):
        np.lib.format.write_array_header_1_0(file, header)
        yield lambda batch: file.write(batch.astype(dtype).tobytes())


def _is_plain(path: Path, largest: int) -> bool:
    """Whether this is a file, up to so many bytes: pipes and devices may have no end, or keep their reader waiting."""
    status = path.stat()
    return stat.S_ISREG(status.st_mode) and status.st_size <= largest


def finished_now() -> str:
    """The time that a run records as its end: UTC, so that text order is time order.

    Where the clock was set back, it is the moment after the last end on record: what finished last is still found.
    """
    now = datetime.now(UTC)
    for end in _finished():
        with suppress(ValueError, TypeError, OverflowError):  # somebody's own idea of a time
            now = max(now, datetime.fromisoformat(end) + timedelta(microseconds=1))
    return now.isoformat(timespec="microseconds")


def _finished() -> dict[str, Path]:
    """The finished runs by the time that they record as their end."""
    return {config["finished"]: folder for folder, config in _readable(root()) if config["finished"]}


def _finished_last() -> Path | None:
    return max(_finished().items(), default=(None, None))[1]


def choose(path: str | None, flag: str = "--checkpoint") -> Path:
    """The folder to restore from: `path`, else the run that finished last by its own record, else the shipped model."""
    if path is not None:
        if not Path(path).is_dir():
            raise UserError(f"{flag} {path}: no such folder; the runs are in {root()}")
        return Path(path)
    return _finished_last() or PROJECT / "checkpoints" / "pretrained"


def to_resume(path: str) -> Path:
    """The run to go on with: `path`; where that is empty the newest unfinished one, else the one that finished last."""
    if path:
        return choose(path, "--resume")
    unfinished = [folder for folder, config in _readable(root()) if not config["finished"] and not _is_held(folder)]
    if unfinished:
        return max(unfinished, key=lambda folder: (folder / "config.json").stat().st_mtime_ns)
    last = _finished_last()
    if last is None:
        raise UserError(f"--resume: there is no run in {root()}; name its folder with --resume DIR, or start a new one")
    return last


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Keep other processes from training in this folder; what a killed one had half written there is removed.

    Raises UserError where another process holds it. A system without such locks (Windows) goes without.
    """
    descriptor = _lock(folder)
    try:
        for path in folder.glob(".*"):
            if re.match(r"\.\d+-", path.name) and path.is_file():
                path.unlink()
        yield
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _lock(folder: Path) -> int | None:
    try:
        import fcntl
    except ImportError:
        return None
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise UserError(f"{folder}: another process is training there; wait for it, or stop it first") from None
    except OSError:  # a file system without locks
        pass
    return descriptor


def _is_held(folder: Path) -> bool:
    try:
        descriptor = _lock(folder)
    except UserError:
        return True
    if descriptor is not None:
        os.close(descriptor)
    return False


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
        if not _is_plain(path, LARGEST_CONFIG):
            raise OSError(None, "it is no plain file, or too large")
        config = json.loads(path.read_text())
    except FileNotFoundError:
        raise UserError(
            f"{folder}: no config.json there, so no run of this program; the runs are in {root()}"
        ) from None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError):
        raise UserError(f"{path} is not JSON, so the run cannot be restored; choose another run") from None
    if not isinstance(config, dict) or config.get("format") != FORMAT:
        found = config.get("format") if isinstance(config, dict) else None
        raise UserError(
            f"{path} is of format {found!r:.50}, and this program reads {FORMAT}; restore it with its own version"
        )
    for keys, kind in CONFIG.items():
        try:
            fits = isinstance(reduce(getitem, keys, config), kind)
        except (KeyError, TypeError, IndexError):
            fits = False
        if not fits:
            raise UserError(f"{path} does not say a run's {' '.join(keys)}; choose another run")
    return config
