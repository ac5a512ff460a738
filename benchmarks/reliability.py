"""Kill training and resume it; train on several devices and on many images: python benchmarks/reliability.py.

It prints a report in Markdown. A loss ends it in one line, with status 1. It needs Linux, and JAX for the devices.
"""

import contextlib
import csv
import hashlib
import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from argparse import Namespace
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import generator
import main as training
from vae import terminal
from vae.data import load
from vae.run import Run
from vae.terminal import UserError

KILLED = ("--dataset", "digits", "--binarize", "--batch-size", "50")  # and these epochs:
EPOCHS = (10, 15)  # of a new run, and of one that is trained further
SPAN = 3  # seconds after a write of the state in which a kill comes, most often soon
FEW = 6000  # images of MNIST that several devices train on


def main() -> None:
    """Command line -> parts of the report."""
    parts = {"kills": report_kills, "devices": report_devices, "images": report_images}
    parser = terminal.Parser("benchmarks/reliability.py", description="Kill training and resume it; let it grow.")
    add, count = parser.add_argument, terminal.positive_integer
    add("--data", metavar="PATH", help="MNIST (default: found or downloaded)")
    add("--only", choices=tuple(parts), help="a single part (default: all)")
    add("--kills", type=count, default=100, metavar="N", help="(default: 100)")
    add("--images", type=count, default=10**6, metavar="N", help="images of the largest set (default: 1000000)")
    options = parser.parse_args()
    print(f"`{shlex.join(['python', 'benchmarks/reliability.py', *sys.argv[1:]])}`", flush=True)
    for name, report in parts.items():
        if options.only in (None, name):
            with tempfile.TemporaryDirectory() as folder:
                os.environ["VAE_CHECKPOINTS"] = f"{folder}/runs"
                report(options, Path(folder, "runs"))


def print_table(*rows: list) -> None:
    """Print a table; the first row is its header."""
    print()
    for cells in (rows[0], ["---"] * len(rows[0]), *rows[1:]):
        print(f"| {' | '.join(map(str, cells))} |", flush=True)


def start(*flags: object, **variables: str) -> subprocess.Popen:
    """Start main.py with these flags."""
    command = [sys.executable, training.__file__, *map(str, flags)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, env=os.environ | variables)


def check_end(process: subprocess.Popen) -> None:
    """Wait until a process has ended; UserError where it failed."""
    if process.wait():
        raise UserError(f"status {process.returncode}: {shlex.join(process.args)}")


def read_history(folder: Path) -> list[dict[str, str]]:
    """Return the rows of a run's history."""
    with open(folder / "history.csv", newline="") as file:
        return list(csv.DictReader(file))


# Kills


def report_kills(options: Namespace, runs: Path) -> None:
    """Kill runs at random moments, and resume them until they end: a new run, the same trained further, and so on.

    Each run that ended is compared with one that was never killed.
    """
    reference, longer = runs / "reference", runs / "longer"
    check_end(start(*KILLED, "--epochs", EPOCHS[0], "--name", "reference"))
    shutil.copytree(reference, longer)
    check_end(start("--resume", longer, "--epochs", EPOCHS[1]))
    counts = dict.fromkeys(("kills", "a file was half written", "files one epoch apart"), 0)
    ended = [0, 0]  # new runs, and runs that were trained further
    untouched, rng = read_bytes(reference), np.random.default_rng(0)
    while counts["kills"] < options.kills:
        further = sum(ended) % 2
        folder = runs / f"run-{ended[1]}"
        while kill(folder, EPOCHS[further], rng.integers(1, 6), SPAN * rng.random() ** 3):
            counts["kills"] += 1
            check(folder, reference, counts)
        ended[further] += 1
        wanted, result = read_result(longer if further else reference), read_result(folder)
        different = [name for name in wanted | result if wanted.get(name) != result.get(name)]
        if different or read_bytes(reference) != untouched:
            raise UserError(f"{folder.name} differs from a run without a break ({different}), or {reference} changed")
    print(f"\n`main.py {shlex.join(KILLED)}`: nothing was lost; {len(wanted)} arrays are the same, bit for bit.")
    print_table(["what", "how many"], *counts.items(), ["new runs", ended[0]], ["trained further", ended[1]])


def kill(folder: Path, epochs: int, writes: int, seconds: float) -> bool:
    """Start or resume a run, and kill it a time after so many writes of its state. Say whether it still ran then."""
    which = ["--resume", folder] if folder.exists() else ["--name", folder.name]
    process = start(*KILLED, *which, "--epochs", epochs)
    for _ in range(writes):
        wait_for_write(process, folder / "training_state.npz")
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(seconds)
        check_end(process)
        return False
    process.kill()
    process.wait()
    return True


def wait_for_write(process: subprocess.Popen, path: Path) -> None:
    """Wait until a process has written a file, or has ended."""
    before = path.exists() and path.stat().st_mtime_ns
    while process.poll() is None and before == (path.exists() and path.stat().st_mtime_ns):
        time.sleep(0.001)


def check(folder: Path, finished: Path, counts: dict[str, int]) -> None:
    """After a kill, read all that the run has saved, and draw from it and from one that is finished."""
    counts["a file was half written"] += any(folder.glob(".[0-9]*-*"))
    whole = [finished]
    if (folder / "history.csv").exists():  # the last file of an epoch
        history = json.loads(read_arrays(folder / "training_state.npz")["history"])
        counts["files one epoch apart"] += len(history) != len(read_history(folder))
        whole.append(folder)
    for run in whole:
        with contextlib.redirect_stdout(None):
            generator.main(["--checkpoint", str(run), "--count", "4", "--output", f"{folder.parent}.png"])
        Run.find(str(run)).load_encoder()


def read_arrays(path: Path) -> dict[str, bytes]:
    """Return the arrays of an .npz, by name."""
    with np.load(path) as archive:
        return {name: archive[name].tobytes() for name in archive.files}


def read_bytes(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of each of a run's files."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.glob("[!.]*.*")}


def read_result(folder: Path) -> dict[str, bytes]:
    """Return all that a run has learnt, by name: weights, optimizer, frames, prior, losses; no times."""
    config, arrays = Run.find(str(folder)).config, read_arrays(folder / "training_state.npz")
    losses = [[value for name, value in row.items() if "loss" in name] for row in read_history(folder)]
    losses = json.dumps([losses, config["test"], config["activity"]]).encode()
    return arrays | read_arrays(folder / "prior.npz") | {"config": b"", "history": losses}


# Growth


def report_devices(options: Namespace, runs: Path) -> None:
    """Train for two epochs on 1, 2 and 4 virtual devices of JAX; compare losses and speed."""
    mnist = load.load(load.Source(None if options.data else "mnist", options.data))
    few = runs.parent / "few.npz"
    np.savez(few, x_train=mnist.train_images[:FEW], x_test=mnist.test_images[:1000])
    rows, wanted = [["devices", "training loss", "losses differ by at most", "images a second"]], None
    for count in (1, 2, 4):
        jax = {"KERAS_BACKEND": "jax", "XLA_FLAGS": f"--xla_force_host_platform_device_count={count}"}
        check_end(start("--data", few, "--batch-size", 100, "--epochs", 2, "--name", count, **jax))
        history = read_history(runs / str(count))
        losses = np.array([[float(value) for name, value in row.items() if "loss" in name] for row in history])
        wanted = losses if wanted is None else wanted
        rate = FEW / min(float(row["seconds"]) for row in history)
        rows.append([count, f"{losses[-1][0]:.3f}", f"{np.abs(losses / wanted - 1).max():.1e}", f"{rate:,.0f}"])
    print_table(*rows)


def report_images(options: Namespace, runs: Path) -> None:
    """Train for an epoch on MNIST, and on many images in a mapped file; compare speed and memory."""
    mnist = load.load(load.Source(None if options.data else "mnist", options.data))
    rows = [["images", "their size, MiB", "images a second", "most memory, MiB"]]
    for count in (len(mnist.train_images), options.images):
        folder = runs.parent / str(count)
        folder.mkdir()
        many = np.lib.format.open_memmap(folder / "x_train.npy", "w+", np.uint8, (count, 28, 28))
        for begin in range(0, count, len(mnist.train_images)):
            many[begin : begin + len(mnist.train_images)] = mnist.train_images[: count - begin]
        np.save(folder / "x_test.npy", mnist.test_images)
        process = start("--data", folder, "--batch-size", 100, "--epochs", 1, "--name", count)
        memory = find_most_memory(process)
        check_end(process)
        rate = count / float(read_history(runs / str(count))[0]["seconds"])
        rows.append([f"{count:,}", f"{many.nbytes / 2**20:,.0f}", f"{rate:,.0f}", f"{memory:,.0f}"])
    print_table(*rows)


def find_most_memory(process: subprocess.Popen) -> float:
    """Return the most memory that a process has until it ends, in MiB: what the system calls RssAnon.

    These are all pages but those of files, which the system takes back when it needs them.
    """
    most = 0
    while process.poll() is None:
        status = Path(f"/proc/{process.pid}/status").read_text()
        most = max([most, *(int(line.split()[1]) for line in status.splitlines() if line.startswith("RssAnon"))])
        time.sleep(0.1)
    return most / 1024


if __name__ == "__main__":
    terminal.run(main)
