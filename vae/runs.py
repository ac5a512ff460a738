"""The folder of all runs: where a new run begins, and where an earlier one is found."""

import os
import re
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from functools import reduce
from operator import getitem
from pathlib import Path

from filelock import FileLock, Timeout

from vae import files
from vae.terminal import UserError, as_path

FORMAT = 1  # of the folder; raised when an older program can no longer read a newer folder
PROJECT = Path(__file__).resolve().parent.parent
CONFIG_TYPES = {  # what is read of config.json, and its type
    ("epochs_done",): int,
    ("finished",): str | None,
    ("settings",): dict,
    ("versions",): dict,
    ("settings", "data"): str | None,
    ("settings", "binarize"): bool,
    ("dataset", "name"): str,
    ("dataset", "sha256"): str,
}


def runs_folder() -> Path:
    """Return the folder of all runs: checkpoints/ in the project, or what the variable VAE_CHECKPOINTS says."""
    return as_path(os.environ.get("VAE_CHECKPOINTS") or PROJECT / "checkpoints")


def read_config(folder: Path) -> dict:
    """Read config.json; UserError where it is missing, not JSON, or of another version of this program."""
    path = folder / "config.json"
    if not path.exists():
        raise UserError(f"{folder}: no config.json there, so no run of this program; the runs are in {runs_folder()}")
    config = files.read_json(path)
    found = config.get("format") if isinstance(config, dict) else None
    if found != FORMAT:
        raise UserError(
            f"{path} has format {found!r:.50}, and this program reads {FORMAT}; use the version that wrote it"
        )
    for keys, kind in CONFIG_TYPES.items():
        try:
            fits = isinstance(reduce(getitem, keys, config), kind)
        except (KeyError, TypeError, IndexError):
            fits = False
        if not fits:
            raise UserError(f"{path}: {'.'.join(keys)} is missing or wrong; choose another run")
    return config


def check_name(name: str, overwrite: bool) -> None:
    """Refuse a name that is no plain folder name, or that an existing run has."""
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]{,99}", name) or name == "pretrained":
        raise UserError(f"--name {name!r}: take up to 100 letters, digits, '.', '_' and '-' (and not 'pretrained')")
    folder = runs_folder() / name
    if folder.exists() and not overwrite:
        raise UserError(f"--name {name}: {folder} exists; take another name, or --overwrite to replace that run")


def create_folder(settings: Namespace, dataset_name: str) -> Path:
    """Create the folder of a new run: its --name, or NETWORK-DATASET-NNN with the next free number."""
    root = runs_folder()
    try:
        root.mkdir(parents=True, exist_ok=True)
        if settings.name is None:
            return _create_numbered(root, f"{settings.network}-{dataset_name}")
        folder = root / settings.name
        folder.mkdir(exist_ok=settings.overwrite)
        return folder
    except OSError as error:
        if isinstance(error, FileExistsError) and root.is_dir():  # another run took the name since it was checked
            raise UserError(
                f"--name {settings.name}: {folder} exists by now; take another name, or --overwrite it"
            ) from None
        reason = error.strerror or error
        raise UserError(f"{root} cannot be written ({reason}); name another folder in VAE_CHECKPOINTS") from error


def _create_numbered(root: Path, stem: str) -> Path:
    taken = [re.fullmatch(re.escape(stem) + r"-(\d+)", folder.name) for folder in root.iterdir()]
    number = max((int(match[1]) for match in taken if match), default=0) + 1
    while True:
        folder = root / f"{stem}-{number:03d}"
        with suppress(FileExistsError):  # another run takes this number at the same moment
            folder.mkdir()
            return folder
        number += 1


@contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Stop other processes from training in this folder; UserError where one does already."""
    try:
        held = FileLock(folder / ".lock", timeout=0).acquire()
    except Timeout:
        raise UserError(f"{folder}: another process trains there; wait for it, or stop it first") from None
    except OSError as error:
        raise UserError(f"{folder} cannot be written ({error.strerror or error}); choose another run") from error
    with held:
        yield


def _is_locked(folder: Path) -> bool:
    try:
        with lock(folder):
            return False
    except UserError:
        return True


def next_end() -> str:
    """Return the time of a run's end, ISO 8601 in UTC, later than all ends on record even if the clock went back."""
    now = datetime.now(UTC)
    for end in _find_finished():
        with suppress(ValueError, TypeError, OverflowError):  # somebody edited it
            now = max(now, datetime.fromisoformat(end) + timedelta(microseconds=1))
    return now.isoformat(timespec="microseconds")


def _read_configs() -> Iterator[tuple[Path, dict]]:
    for path in sorted(runs_folder().glob("*/config.json")):
        with suppress(UserError):  # other people's folders do not matter
            if path.parent.name != "pretrained":
                yield path.parent, read_config(path.parent)


def _find_finished() -> dict[str, Path]:
    return {config["finished"]: folder for folder, config in _read_configs() if config["finished"]}


def find_finished_last() -> Path | None:
    """Return the folder of the run that finished last by its own record; None without any."""
    return max(_find_finished().items(), default=(None, None))[1]


def find_resumable() -> Path:
    """Return the newest unfinished run that nobody trains, else the one that finished last; UserError without any."""
    unfinished = [folder for folder, config in _read_configs() if not config["finished"] and not _is_locked(folder)]
    if unfinished:
        return max(unfinished, key=lambda folder: (folder / "config.json").stat().st_mtime_ns)
    last = find_finished_last()
    if last is None:
        raise UserError(
            f"--resume: there is no run in {runs_folder()}; name its folder with --resume DIR, or start a new one"
        )
    return last
