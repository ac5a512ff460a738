"""The folder of all runs: where a new run begins, and where an earlier one is found."""

import itertools
import json
import os
import re
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from vae.settings import complete
from vae.terminal import UserError, as_path

PROJECT = Path(__file__).resolve().parent.parent
SHIPPED = PROJECT / "checkpoints" / "pretrained"


def find_root() -> Path:
    """Return the folder of all runs: checkpoints/ in the project, or what the variable VAE_CHECKPOINTS says."""
    return as_path(os.environ.get("VAE_CHECKPOINTS") or PROJECT / "checkpoints")


def read_config(folder: Path) -> dict:
    """Read config.json; UserError where it is missing or damaged."""
    path = folder / "config.json"
    if not path.is_file():
        raise UserError(f"{folder}: no config.json there, so no run of this program; the runs are in {find_root()}")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        config["settings"] = vars(complete(config["settings"]))
        config["dataset"]["sha256"], config["finished"], config["epochs_done"]  # KeyError where one is missing
    except (OSError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{path} cannot be read, or is not of a run; choose another run") from error
    return config


def read_end(folder: Path, epochs: int) -> dict | None:
    """Return config.json if it says that the run was trained to its end, for so many epochs; else None."""
    try:
        config = read_config(folder)
    except UserError:  # a kill came before it was written; the training state has what it had
        return None
    return config if config["finished"] and config["settings"]["epochs"] == config["epochs_done"] == epochs else None


def check_name(name: str) -> None:
    """Refuse a name that is no plain folder name, or that an existing run has."""
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]{,99}", name) or name == SHIPPED.name:
        raise UserError(f"--name {name!r}: take up to 100 letters, digits, '.', '_' and '-' (and not 'pretrained')")
    if (find_root() / name).exists():
        raise UserError(f"--name {name}: {find_root() / name} exists; take another name")


def create_folder(settings: Namespace, dataset_name: str) -> Path:
    """Create the folder of a new run: its --name, or NETWORK-DATASET-NNN with the next free number."""
    root, stem = find_root(), f"{settings.network}-{dataset_name}"
    names = [settings.name] if settings.name else (f"{stem}-{number:03d}" for number in itertools.count(1))
    try:
        root.mkdir(parents=True, exist_ok=True)
        for folder in (root / name for name in names):
            with suppress(FileExistsError):  # another run may take a name at the same moment
                folder.mkdir()
                return folder
    except OSError as error:
        raise UserError(f"{root} cannot be written ({error.strerror}); name another in VAE_CHECKPOINTS") from error
    raise UserError(f"{root / settings.name} exists; take another --name")


@contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Stop other processes from training in this folder; UserError where one does already."""
    try:
        held = FileLock(folder / ".lock", timeout=0).acquire()
    except Timeout:
        raise UserError(f"{folder}: another process trains there; wait for it, or name another run") from None
    except OSError as error:
        raise UserError(f"{folder} cannot be written ({error.strerror}); copy the run, and resume the copy") from error
    with held:
        yield


def _find_all() -> Iterator[tuple[Path, dict]]:
    for path in sorted(find_root().glob("*/config.json")):
        with suppress(UserError):  # a folder that holds no run is skipped
            if path.parent.name != SHIPPED.name:
                yield path.parent, read_config(path.parent)


def find_finished_last() -> Path | None:
    """Return the folder of the run that finished last by its own record; None without any."""
    ends = {config["finished"]: folder for folder, config in _find_all() if config["finished"]}
    return max(ends.items(), default=(None, None))[1]


def find_resumable() -> Path:
    """Return the newest unfinished run, else the one that finished last; UserError without any."""
    unfinished = [folder for folder, config in _find_all() if not config["finished"]]
    if unfinished:
        return max(unfinished, key=lambda folder: (folder / "config.json").stat().st_mtime_ns)
    if (last := find_finished_last()) is None:
        raise UserError(f"--resume: there is no run in {find_root()}; name its folder, or start a new one")
    return last
