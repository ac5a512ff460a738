"""Kill it, starve it, interrupt it, and see what is lost: python benchmarks/reliability.py (see its --help).

Prints the report that is kept in benchmarks/RELIABILITY.md; exits with status 1 where anything was lost.
"""

import csv
import inspect
import json
import os
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import forked
from forked import Child
from PIL import Image

from vae import archive, checkpoint, console

SMALL = ("--dataset", "digits", "--hidden-dim", "8", "--latent-dim", "3", "--batch-size", "64", "--binarize")
SHORT = (*SMALL, "--epochs", "4")
PAUSE = 0.15  # seconds by which a write is slowed down at most, so that many kills fall into one
FULL = ("--binarize", "--epochs", "3", "--seed", "1")  # the whole network, on all of MNIST

lost = []  # what should not have happened, in words


def main() -> None:
    """Parts, each of which prints its section."""
    parser = console.Parser("Kill, starve and interrupt training, and report what is lost.")
    parts = {"resume": resumed, "kills": kills, "signals": signals, "faults": faults, "flat": flat}
    parser.add_argument("--data", metavar="PATH", help="MNIST, for the resumed run at full size (default: found)")
    parser.add_argument("--kills", type=console.positive_integer, default=200, help="how many (default: 200)")
    parser.add_argument("--seed", type=console.seed, default=0, help="seed of the moments (default: 0)")
    parser.add_argument("--only", choices=tuple(parts), help="a single part (default: all)")
    options = parser.parse_args()
    print(f"`{shlex.join(['python', 'benchmarks/reliability.py', *sys.argv[1:]])}`, seed {options.seed}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for name, part in parts.items():
            if options.only in (None, name):
                runs = Path(folder, name, "runs")
                runs.mkdir(parents=True)
                os.environ["VAE_CHECKPOINTS"] = str(runs)
                part(options, runs, np.random.default_rng([options.seed, *name.encode()]))
    print("\n## What was lost\n\n" + ("\n".join(f"- {line}" for line in lost) or "Nothing."), flush=True)
    sys.exit(1 if lost else 0)


def section(title: str, text: str, header: Sequence = (), rows: Iterable[Sequence] = ()) -> None:
    """Print a section of the report: a text, and a table where there is one."""
    print(f"\n## {title}\n\n{inspect.cleandoc(text)}")
    if header:
        lines = [header, ["---"] * len(header), *rows]
        print("", *(f"| {' | '.join(map(str, line))} |" for line in lines), sep="\n")
    sys.stdout.flush()


def log(runs: Path, name: str) -> Path:
    """Where a child of this part prints to."""
    return runs.parent / f"{name}.txt"


def trained(folder: Path) -> tuple[list[list[str]], dict[str, np.ndarray]]:
    """The history without its times, and every array of the training state: weights and the optimizer's own."""
    rows = list(csv.reader((folder / "history.csv").read_text().splitlines()))
    state = archive.read_state(folder)
    return [row[:-2] for row in rows], {name: array for name, array in state.items() if name.startswith("variable")}


def difference(first: Path, second: Path) -> str | None:
    """In what two runs differ, if in anything."""
    (rows, arrays), (other_rows, other_arrays) = trained(first), trained(second)
    if rows != other_rows:
        return f"the history of {first.name}"
    if arrays.keys() != other_arrays.keys():
        return f"the number of arrays of {first.name}"
    differing = [name for name, array in arrays.items() if not np.array_equal(array, other_arrays[name])]
    return f"{', '.join(differing)} of {first.name}" if differing else None


def harmed(folder: Path) -> list[str]:
    """The files of a run that are not whole."""
    bad = []
    for path in sorted(folder.iterdir()):
        try:
            if path.name.startswith("."):
                continue  # half written, and known by its name
            if path.suffix in (".keras", ".npz"):
                with zipfile.ZipFile(path) as archive:
                    whole = archive.testzip() is None
            elif path.suffix == ".png":
                Image.open(path).verify()
                whole = True
            elif path.suffix == ".csv":
                rows = list(csv.DictReader(path.open()))
                whole = [int(row["epoch"]) for row in rows] == list(range(1, len(rows) + 1)) and None not in rows[
                    -1
                ].values()
            else:
                whole = bool(json.loads(path.read_text()))
        except Exception:  # whatever its reader says of it
            whole = False
        if not whole:
            bad.append(path.name)
    return bad


def slow_writes(seed: int) -> None:
    """Slow down every step of a write in this process by a random time."""
    rng = np.random.default_rng(seed)
    replace, fsync = os.replace, os.fsync
    os.replace = lambda *paths: (time.sleep(rng.uniform(0, PAUSE)), replace(*paths))
    os.fsync = lambda file: (time.sleep(rng.uniform(0, PAUSE)), fsync(file))


def resumed(options, runs: Path, rng: np.random.Generator) -> None:
    """The whole network on MNIST, killed twice and resumed, against the same without a break."""
    arguments = (*FULL, *(["--data", options.data] if options.data else []))
    status, text = forked.run("main", *arguments, "--name", "whole", log=log(runs, "whole"))
    if status != 0:
        sys.exit(text)
    killed_in = []
    child = Child("main", *arguments, "--name", "broken", log=log(runs, "broken"))
    for epoch in (1, 2):
        child.until(lambda child=child, epoch=epoch: f"|--- Epoch: {epoch}/" in child.text())
        time.sleep(rng.uniform(1, 8))
        child.send(signal.SIGKILL)
        child.wait()
        killed_in.append(1 + checkpoint.read_config(runs / "broken")["epochs_done"])
        child = Child("main", "--resume", log=log(runs, "broken"))
    if child.wait() != 0:
        sys.exit(child.text())
    if wrong := difference(runs / "broken", runs / "whole"):
        lost.append(f"resumed at full size: {wrong}")
    count, size = len(trained(runs / "whole")[1]), sum(array.size for array in trained(runs / "whole")[1].values())
    text = f"""
        `python main.py {shlex.join(FULL)}` on MNIST, with dropout, fresh binary pixels and the learning-rate
        schedule in play, was killed (SIGKILL) in its epochs {" and ".join(map(str, killed_in))} and resumed each time.
        History and all {count} arrays ({size:,} numbers: the weights of both halves, and the optimizer's own) are, bit
        for bit, those of a run without a break: **{"no" if wrong else "yes"}**."""
    section("Resumed at full size", text)


def kills(options, runs: Path, rng: np.random.Generator) -> None:
    """Short runs, killed at random moments and resumed until they finish: new, overwriting, and taken further."""
    for arguments in ((*SHORT, "--name", "reference"), (*SHORT, "--name", "longer"), ("--resume", "--epochs", "5")):
        forked.run("main", *arguments, log=log(runs, "reference"))
    slow = Child("main", *SHORT, "--name", "slow", log=log(runs, "slow"), prepare=lambda: slow_writes(0))
    slow.until(lambda: "-> Training is " in slow.text())
    began = time.monotonic()
    slow.wait()
    span = time.monotonic() - began
    done = {"kills": 0, "while a file was half written": 0, "before the first epoch was whole": 0}
    done |= {"runs finished: new": 0, "runs finished: overwriting a finished one": 0, "runs finished: taken further": 0}
    kinds = list(done)[3:]
    name, launches = "slow", 0
    compare(runs, name)
    arguments = None
    while done["kills"] < options.kills:
        launches += 1
        if arguments is None:
            kind = kinds[sum(done[each] for each in kinds) % 3]
            name = f"run-{launches}" if kind == kinds[0] else name
            first = (*SHORT, "--name", name, *(["--overwrite"] if kind == kinds[1] else []))
            arguments = first = ("--resume", str(runs / name), "--epochs", "5") if kind == kinds[2] else first
            before = (runs / name / "config.json").read_text() if kind != kinds[0] else None
        child = Child("main", *arguments, log=log(runs, name), prepare=partial(slow_writes, launches))
        child.until(lambda child=child: "-> Training is " in child.text())
        moment = time.monotonic() + rng.uniform(0, span)
        child.until(lambda moment=moment: time.monotonic() > moment)
        child.send(signal.SIGKILL)
        status, config = child.wait(), checkpoint.read_config(runs / name)
        ended = config["finished"] and (runs / name / "config.json").read_text() != before
        if status == -signal.SIGKILL:
            done["kills"] += 1
            done["while a file was half written"] += any(path.name.startswith(".") for path in (runs / name).iterdir())
            done["before the first epoch was whole"] += config["epochs_done"] == 0
            arguments = first if config["finished"] else ("--resume", str(runs / name))  # it is still the old run
        elif status != 0 or not ended:
            lost.append(f"{name}: {child.text()[-300:]}")
        if ended:
            done[kind] += 1
            arguments = None
            compare(runs, name)
        look(runs, f"after kill {done['kills']}")
    text = f"""
        `python main.py {shlex.join(SHORT)}`, every step of a write slowed down by up to {PAUSE} s, was killed (SIGKILL)
        at a random moment of its training, resumed, killed again, until it ended: a new run, then one that overwrites
        it, then that one taken further by an epoch, and so on. After each kill every file was looked at, and
        `generator.py` and `evaluate.py` run on what finished last; each run that ended was compared, bit for bit,
        history, weights and optimizer, with one that was never killed."""
    section("Killed at random moments", text, ["what", "how many"], done.items())


def compare(runs: Path, name: str) -> None:
    """A run that has finished is the one that was never killed."""
    epochs = checkpoint.read_config(runs / name)["settings"]["epochs"]
    if wrong := difference(runs / name, runs / ("reference" if epochs == 4 else "longer")):
        lost.append(wrong)


def look(runs: Path, when: str) -> None:
    """Every file in place is whole, and the run that finished last can be drawn from and measured."""
    for folder in runs.iterdir():
        lost.extend(f"{when}: {name} in {folder.name}" for name in harmed(folder))
    few = ("--images", "5", "--importance-samples", "2", "--json")
    children = [
        Child("generator", "--output", runs.parent / "digits.png", log=log(runs, "generator")),
        Child("evaluate", *few, log=log(runs, "evaluate")),
    ]
    lost.extend(f"{when}: {child.text().strip().splitlines()[-1]}" for child in children if child.wait() != 0)


def signals(options, runs: Path, rng: np.random.Generator) -> None:
    """Ctrl-C and SIGTERM at random moments: how long it takes, and what is said."""
    rows = []
    for number, name, wanted in ((signal.SIGINT, "Ctrl-C (SIGINT)", 130), (signal.SIGTERM, "SIGTERM", 143)):
        seconds, lines = [], set()
        for attempt in range(10):
            child = Child("main", *SMALL, "--epochs", "200", "--name", f"{name[0]}{attempt}", log=log(runs, name))
            child.until(lambda child=child: "-> Training is started" in child.text())
            time.sleep(rng.uniform(0, 8))
            began = time.monotonic()
            child.send(number)
            status = child.wait()
            seconds.append(time.monotonic() - began)
            lines.add(
                child.text().strip().splitlines()[-1].replace(str(runs), "RUNS").replace(f"{name[0]}{attempt}", "N")
            )
            if status != wanted or harmed(runs / f"{name[0]}{attempt}"):
                lost.append(f"{name}: status {status}, {harmed(runs / f'{name[0]}{attempt}')}")
        if len(lines) != 1 or max(seconds) > 2:
            lost.append(f"{name}: {max(seconds):.1f} s, {lines}")
        rows.append([name, 10, f"{max(seconds):.2f}", wanted, f"`{lines.pop()}`"])
    header = ["signal", "times", "seconds to the end, at most", "exit status", "last line"]
    text = "At random moments of the first eight seconds of training, tracing included."
    section("Interrupted", text, header, rows)


def content(folder: Path) -> dict[str, bytes]:
    """All that lies in a folder."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def faults(options, runs: Path, rng: np.random.Generator) -> None:
    """What else can go wrong around a run: what it says, and what is left."""
    rows = []

    def tried(what: str, status: int, text: str, wanted: int, whole: bool = True) -> None:
        line = text.strip().splitlines()[-1].replace(str(runs.parent), "FOLDER")
        rows.append([what, status, f"`{line}`"])
        bad = [f"{name} in {folder.name}" for folder in runs.iterdir() for name in harmed(folder)]
        if status != wanted or "Traceback" in text or bad or not whole:
            lost.append(f"{what}: status {status}, {bad}: {line}")

    forked.run("main", *SHORT, "--name", "reference", log=log(runs, "reference"))
    before = content(runs / "reference")

    def full_disk() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))

    text = forked.run("main", *SHORT, "--name", "full", log=log(runs, "a"), prepare=full_disk)
    tried("a full disk (no file may grow beyond 100 kB)", *text, wanted=1)
    again = ("main", "--resume", runs / "reference", "--epochs", "6")
    text = forked.run(*again, log=log(runs, "b"), prepare=full_disk)
    tried("the same, while a finished run is taken further", *text, wanted=1)

    def read_only() -> None:
        runs.chmod(0o555)
        if os.getuid() == 0:  # who may write anywhere
            for folder in (runs.parent, runs.parent.parent):
                folder.chmod(0o755)
            os.setuid(65534)

    text = forked.run("main", *SHORT, log=log(runs, "c"), prepare=read_only)
    runs.chmod(0o755)
    tried("a read-only folder of runs", *text, wanted=1)

    child = Child("main", *SMALL, "--epochs", "50", "--name", "vanishing", log=log(runs, "d"))
    child.until(lambda: "|--- Epoch:  2/" in child.text())
    shutil.rmtree(runs / "vanishing", ignore_errors=True)
    tried("the run's folder vanishes while it trains", child.wait(), child.text(), wanted=1)

    pair = [Child("main", *SHORT, log=log(runs, f"e{number}")) for number in range(2)]
    statuses = [child.wait() for child in pair]
    folders = [runs / f"standard-digits-00{number}" for number in (1, 2)]
    same = all(folder.is_dir() and difference(folder, runs / "reference") is None for folder in folders)
    tried("two runs started at the same moment", max(statuses), pair[0].text(), wanted=0, whole=same)

    child = Child("main", *SMALL, "--epochs", "200", "--name", "busy", log=log(runs, "f"))
    child.until(lambda: "-> Training is " in child.text())
    text = forked.run("main", "--resume", runs / "busy", log=log(runs, "g"))
    tried("a run is resumed while it still trains", *text, wanted=1)
    child.send(signal.SIGTERM)
    child.wait()

    future = (datetime.now(UTC) + timedelta(days=400)).isoformat(timespec="microseconds")
    config = json.loads((runs / "reference" / "config.json").read_text())
    checkpoint.write_config(runs / "reference", config | {"finished": future})
    status, text = forked.run("main", *SHORT, "--name", "after", log=log(runs, "h"))
    tried("the clock was set back by 400 days", status, text, wanted=0, whole=checkpoint.choose(None) == runs / "after")

    home = {"HOME": "/nonexistent/home", "VAE_CHECKPOINTS": str(runs)}
    kept = {
        name: value for name, value in os.environ.items() if name not in ("KERAS_HOME", "MPLCONFIGDIR", "VAE_CACHE")
    }
    command = [sys.executable, Path(forked.__file__).parent.parent / "main.py", *SHORT, "--name", "homeless"]
    ended = subprocess.run(command, env=kept | home, capture_output=True, text=True)
    tried("a home folder that does not exist", ended.returncode, ended.stdout, wanted=0)
    text = forked.run("main", *SMALL, "--learning-rate", "1e6", "--name", "diverging", log=log(runs, "j"))
    tried("`--learning-rate 1e6`", *text, wanted=1)
    checkpoint.write_config(runs / "reference", config)
    if content(runs / "reference") != before:
        lost.append("the finished run beside all this has changed")
    text = "After each, every file in place was whole, and the finished run beside it as before."
    section("What else can go wrong", text, ["fault", "exit status", "last line"], rows)


def flat(options, runs: Path, rng: np.random.Generator) -> None:
    """Memory, files and figures after 3 and after 30 epochs."""
    seen = {}
    child = Child("main", *SMALL, "--epochs", "31", log=log(runs, "long"))
    for epoch in (3, 30):
        child.until(lambda epoch=epoch: f"|--- Epoch: {epoch:>2}/" in child.text())
        status = Path(f"/proc/{child.process}/status").read_text()
        resident = int(status.split("VmRSS:")[1].split()[0]) / 1024  # MiB
        seen[epoch] = resident, len(os.listdir(f"/proc/{child.process}/fd"))
    child.wait()
    growth = seen[30][0] / seen[3][0] - 1
    if growth > 0.05 or seen[30][1] > seen[3][1]:
        lost.append(f"memory grew by {growth:.1%}, open files from {seen[3][1]} to {seen[30][1]}")
    header = ["after epoch", "memory", "open files"]
    table = [[epoch, f"{memory:.0f} MiB", files] for epoch, (memory, files) in seen.items()]
    section("A long run", f"`python main.py {shlex.join((*SMALL, '--epochs', '31'))}`", header, table)


if __name__ == "__main__":
    main()
