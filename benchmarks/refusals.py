"""What the scripts say of bad input: python benchmarks/refusals.py prints the lines that RELIABILITY.md quotes.

Each case is a command that cannot end well. It must print one line on standard error, end with status 1 (2 for a wrong
flag), and leave every file as it was; what does not is listed, and the exit status is 1.
"""

import gzip
import hashlib
import json
import os
import resource
import shutil
import struct
import sys
import tempfile
import zipfile
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import forked

from vae.data import IDX_STEMS

RUN = ("--dataset", "digits", "--epochs", "1", "--hidden-dim", "8", "--latent-dim", "3", "--batch-size", "64")
TRAIN = ("--hidden-dim", "8", "--latent-dim", "3", "--epochs", "1")


def main() -> None:
    """Bad files -> commands -> a table of what each says."""
    wrong, rows = [], []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["VAE_CHECKPOINTS"] = str(folder / "runs")
        status, text = forked.run("main", *RUN, "--name", "good", log=folder / "log.txt")
        if status != 0:
            sys.exit(text)
        os.chdir(folder)
        bad_data(folder)
        bad_runs(folder)
        before = snapshot(folder)
        for script, what, arguments, limit in cases():
            status, text = forked.run(
                script, *arguments, log=folder / "log.txt", prepare=lambda limit=limit: full_disk(limit)
            )
            lines = [line for line in text.splitlines() if line.startswith(f"{script}.py: ")]
            line = (lines or ["nothing"])[-1].replace(str(folder), "FOLDER")
            rows.append(f"| {what} | {status} | `{line}` |")
            if status != (2 if what.startswith("wrong flag") else 1) or len(lines) != 1 or "Traceback" in text:
                wrong.append(f"{script}.py, {what}: status {status}: {text[-500:]}")
            if snapshot(folder) != before:
                wrong.append(f"{script}.py, {what}: files changed")
                before = snapshot(folder)
    print("| bad input | exit status | line |\n|---|---|---|\n" + "\n".join(rows))
    print("\n" + ("\n".join(wrong) or f"{len(rows)} cases, each answered with its one line and no file changed."))
    sys.exit(1 if wrong else 0)


def snapshot(folder: Path) -> dict[str, str]:
    """Every file that has bytes in it, but for the log and the folders that a refused run made for itself."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != "log.txt"]
    own = {path.parent for path in files if path.name == "config.json" and "new" in path.parent.name}
    return {str(p): hashlib.sha256(p.read_bytes()).hexdigest() for p in files if not own & set(p.parents)}


def full_disk(limit: int | None) -> None:
    """Let no file grow beyond so many bytes."""
    if limit:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))


def idx(array: np.ndarray, magic: int | None = None) -> bytes:
    """An array of bytes as an IDX file."""
    return struct.pack(f">{1 + array.ndim}I", magic or 0x800 + array.ndim, *array.shape) + array.tobytes()


def bad_data(folder: Path) -> None:
    """Folders of IDX files and .npz files, each with one thing wrong."""
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (70, 28, 28), np.uint8), np.zeros(70, np.uint8)
    whole = dict(zip(IDX_STEMS, map(idx, (images, labels, images, labels)), strict=True))
    packed = gzip.compress(whole[IDX_STEMS[0]])
    changes = {
        "truncated": {IDX_STEMS[0]: whole[IDX_STEMS[0]][:-1000]},
        "empty": {IDX_STEMS[0]: b""},
        "corrupt": {IDX_STEMS[0]: packed[:300] + b"\xff" * 50 + packed[350:]},
        "wrong-magic": {IDX_STEMS[0]: idx(images, magic=0x999)},
        "labels-of-others": {IDX_STEMS[1]: idx(labels[:-1])},
        "zero-images": {IDX_STEMS[0]: idx(images[:0]), IDX_STEMS[1]: idx(labels[:0])},
    }
    for name, change in changes.items():
        (folder / name).mkdir()
        for stem, content in (whole | change).items():
            (folder / name / stem).write_bytes(content)
    floats = np.linspace(0, 1, 70 * 784, dtype=np.float32).reshape(70, 28, 28)
    np.savez(folder / "other-arrays.npz", a=images, b=images)
    np.savez(folder / "pickled.npz", x_train=np.array([{}], object), x_test=images)
    np.savez(folder / "wrong-shape.npz", x_train=images[:, :14], x_test=images)
    np.savez(folder / "out-of-range.npz", x_train=2 * floats, x_test=floats)
    np.savez(folder / "few.npz", x_train=images, x_test=images)


def bad_runs(folder: Path) -> None:
    """Copies of a good run, each with one thing wrong."""
    for name in ("half-written", "other-version", "no-models", "bomb"):
        shutil.copytree(folder / "runs" / "good", folder / name)
    for half in ("encoder", "decoder"):
        (folder / "half-written" / f"{half}.keras").unlink()
        (folder / "no-models" / f"{half}.keras").write_text("not a model")
        with zipfile.ZipFile(folder / "bomb" / f"{half}.keras", "a", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("assets/zeros", bytes(300 * 2**20))
    config = folder / "other-version" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"format": 99}))


def cases() -> list[tuple[str, str, tuple, int | None]]:
    """Script, what is wrong, its arguments, and how large a file may grow."""
    data = {
        "a truncated IDX file": "truncated",
        "an empty IDX file": "empty",
        "a corrupt IDX file": "corrupt",
        "an IDX file of wrong magic": "wrong-magic",
        "labels that do not match": "labels-of-others",
        "zero images": "zero-images",
        "an .npz without the right arrays": "other-arrays.npz",
        "an .npz with pickled objects": "pickled.npz",
        "an .npz of the wrong shape": "wrong-shape.npz",
        "pixels outside the range": "out-of-range.npz",
        "images that are missing": "missing",
    }
    runs = {
        "a run that is missing": "nowhere",
        "a run that is half written": "half-written",
        "a run of another version": "other-version",
        "files that are no Keras models": "no-models",
        "a model that unpacks to 300 MiB": "bomb",
    }
    good = ("--checkpoint", "runs/good")
    return [
        *(("main", what, (*TRAIN, "--data", name), None) for what, name in data.items()),
        ("main", "a batch larger than the data", (*TRAIN, "--data", "few.npz", "--batch-size", "100"), None),
        ("main", "a name that exists", (*RUN, "--name", "good"), None),
        ("main", "a full disk", (*RUN, "--name", "new"), 20_000),
        ("main", "a loss that is not finite", (*RUN, "--name", "new-too", "--learning-rate", "1e30"), None),
        ("main", "a setting that contradicts the run", ("--resume", "runs/good", "--seed", "5"), None),
        ("main", "a run to resume that is missing", ("--resume", "nowhere"), None),
        ("main", "wrong flag: an unknown network", ("--network", "transformer"), None),
        ("main", "wrong flag: a number that is none", ("--epochs", "many"), None),
        *(("generator", what, ("--checkpoint", name), None) for what, name in runs.items()),
        ("generator", "an output folder that is missing", (*good, "--output", "nowhere/digits.png"), None),
        ("generator", "an output that is a folder", (*good, "--output", "runs"), None),
        ("generator", "a full disk", (*good, "--output", "digits.png"), 1000),
        ("generator", "wrong flag: a digit that is none", (*good, "--digit", "x"), None),
        *(("evaluate", what, ("--checkpoint", name), None) for what, name in runs.items()),
        *(("evaluate", what, (*good, "--data", name), None) for what, name in data.items()),
        ("evaluate", "a folder for figures that is missing", (*good, "--figures", "nowhere"), None),
        ("evaluate", "wrong flag: no images", (*good, "--images", "0"), None),
    ]


if __name__ == "__main__":
    main()
