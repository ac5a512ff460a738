"""Where a run that `main.py --resume` goes on with stands: its settings, its images, its weights."""

import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vae import archive, checkpoint, console, data, download
from vae.settings import UserError, complete

FURTHER = ("epochs", "importance_samples")  # settings that a finished run may be taken further with


def settings(given: dict, config: dict, folder: Path) -> dict:
    """The settings of the run in `folder`; UserError where the command line, or its own config, contradicts them.

    Two things may be said anew: where its images are now, and once it is finished a larger number of epochs, which may
    have other importance samples.
    """
    own = console.settings_of(config, folder)
    further = FURTHER if config["finished"] and given.get("epochs", 0) > own["epochs"] else ()
    for name, value in given.items():
        if name in own and value != own[name] and name not in ("data", "dataset", *further):
            run = f"the run in {console.shown(folder)} has {own[name]}"
            raise UserError(f"{console.flag(name)} {value}: {run}; leave it out, or start a new run")
    if "data" in given or "dataset" in given:
        own |= {"data": given.get("data"), "dataset": given.get("dataset")}
    return own | {name: given.get(name, own[name]) for name in FURTHER}


def taken_further(earlier: dict | None) -> list[dict]:
    """With what a run was trained each time before it was taken further, for its config."""
    before = (earlier or {}).get("taken_further")
    before = before if isinstance(before, list) else []
    if earlier is None or not earlier["finished"]:
        return before
    settings = complete(earlier["settings"])  # an older run has no importance samples
    return [*before, {name: settings[name] for name in FURTHER}]


def dataset(settings: dict, config: dict) -> data.Dataset:
    """Load the images that the run was begun with, and no others."""
    found = data.load(*download.find_for_run(settings["dataset"], settings["data"], config))
    if found.sha256 != config["dataset"]["sha256"]:
        raise UserError(
            f"--resume: {found.source} holds other images than the run was begun with; say with --data where they are"
        )
    warning = config["dataset"].get("warning")  # that digits stood in for MNIST stays true
    return found._replace(warning=warning if isinstance(warning, str) else None)


def shards(config: dict, most: int) -> int:
    """As many shards as the run has had so far, on which the noise of its batches hangs."""
    count = config.get("shards")
    if not isinstance(count, int) or not 1 <= count <= most:
        raise UserError(f"config.json: shards cannot be {count!r:.50}; choose another run to resume")
    return count


def stand(vae, folder: Path, earlier: dict, config: dict) -> list[dict]:
    """Bring the model to where the run stands, and return the rows of its epochs."""
    from vae import training

    if earlier.get("backend") != config["backend"]:
        raise UserError(f"{folder} was begun with KERAS_BACKEND={earlier.get('backend')!r:.50}; set it to go on")
    for name, version in config["versions"].items():
        if (before := earlier["versions"].get(name)) != version:
            print(f"-> Begun with {name} {before}, now {version}: the last digits may differ.", file=sys.stderr)
    arrays = archive.read_state(folder)
    if arrays is None and earlier["epochs_done"]:
        raise UserError(f"{folder} has no training_state.npz, so it cannot be taken further; start a new run")
    judged_on = training.judged_on(config["settings"])
    rows = training.restore(vae, arrays, config["run"], judged_on) if arrays else []
    print(
        f"-> Training is resumed after epoch {len(rows)} of {config['settings']['epochs']} in {console.shown(folder)}."
    )
    return rows


@contextmanager
def told(folder: Path, config: dict) -> Iterator[None]:
    """Let whoever interrupts the run know how to go on with it."""
    try:
        yield
    except KeyboardInterrupt as stop:
        kept = checkpoint.read_config(folder)
        if kept.get("run") == config["run"]:
            was, wanted = complete(kept["settings"]), config["settings"]
            changed = [name for name in FURTHER if wanted[name] != was[name]]
            further = "".join(f" {console.flag(name)} {wanted[name]}" for name in changed)
            stop.add_note(f"go on with: python main.py --resume {shlex.quote(console.shown(folder))}{further}")
        else:
            stop.add_note(
                f"nothing of it is kept yet, and {console.shown(folder)} still has the run that was to be overwritten"
            )
        raise
