"""Kill training, interrupt it, resume it, and see what is lost: python benchmarks/reliability.py (see its --help).

It prints a report in Markdown, and ends with status 1 where anything was lost. It needs Linux: one process imports
the heavy libraries once, and each script runs in a fork of it, so that hundreds of starts take little time.
"""

import csv
import importlib
import inspect
import itertools
import json
import multiprocessing
import os
import re
import shlex
import signal
import sys
import tempfile
import time
import zipfile
from argparse import Namespace
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from vae import terminal
from vae.runs import read_config
from vae.terminal import UserError

FULL = ("--binarize", "--epochs", "3", "--seed", "1")  # the whole network, on all of MNIST
SMALL = ("--dataset", "digits", "--hidden-dim", "8", "--latent-dim", "3", "--batch-size", "64", "--binarize")
SHORT = (*SMALL, "--epochs", "4")
KINDS = ("new", "overwriting a finished one", "trained further")  # what a run that is killed does
SLOWDOWN = 0.15  # seconds by which a step of a write is slowed down at most, so that many kills hit a write
INTERRUPTIONS = 10  # of each signal
PROMPT = 2  # seconds in which a signal must end training
TIMEOUT = 1800  # seconds that a script may take
HEAVY = ["keras", "tensorflow", "matplotlib.figure", "sklearn.datasets"]
PROCESSES = multiprocessing.get_context("forkserver")

lost: list[str] = []  # what should not have happened, in words


def main() -> None:
    """Command line -> parts of the report."""
    parts = {"resume": report_resume, "kills": report_kills, "signals": report_signals}
    parser = terminal.Parser("benchmarks/reliability.py", description="Kill and interrupt training, and resume it.")
    parser.add_argument("--data", metavar="PATH", help="MNIST, for the resumed run at full size (default: found)")
    parser.add_argument("--kills", type=terminal.positive_integer, default=200, help="how many (default: 200)")
    parser.add_argument("--seed", type=terminal.seed, default=0, help="seed of the moments (default: 0)")
    parser.add_argument("--only", choices=tuple(parts), help="a single part (default: all)")
    options = parser.parse_args()
    os.environ |= {"TF_CPP_MIN_LOG_LEVEL": "2", "TF_ENABLE_ONEDNN_OPTS": "1"}  # as the scripts have them
    os.environ["PYTHONWARNINGS"] = "ignore:resource_tracker"  # it would tell of what killed processes left
    PROCESSES.set_forkserver_preload(HEAVY)
    print(f"`{shlex.join(['python', 'benchmarks/reliability.py', *sys.argv[1:]])}`, seed {options.seed}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for name, report in parts.items():
            if options.only in (None, name):
                runs = Path(folder, name, "runs")
                runs.mkdir(parents=True)
                report(options, runs, np.random.default_rng([options.seed, *name.encode()]))
    print("\n## What was lost\n\n" + ("\n".join(f"- {line}" for line in lost) or "Nothing."))
    sys.exit(1 if lost else 0)


# Processes


class Script:
    """A script of this project, which runs with these arguments in a process of its own.

    It trains in `runs`, and prints into a file beside that folder. With a seed for `slow`, its writes are slowed down.
    """

    _numbers = itertools.count()

    def __init__(self, runs: Path, name: str, *arguments: str | Path, slow: int | None = None):
        self._log = runs.parent / f"log-{next(self._numbers)}.txt"
        self._log.touch()
        command = [name, *map(str, arguments)]
        self._process = PROCESSES.Process(target=run_script, args=(command, runs, self._log, slow), daemon=True)
        self._process.start()
        self._latest = time.monotonic() + TIMEOUT

    @property
    def text(self) -> str:
        """All that it has printed so far."""
        return self._log.read_text()

    @property
    def last_line(self) -> str:
        """The last line that it has printed."""
        return (self.text.strip().splitlines() or ["nothing was printed"])[-1]

    def wait_for(self, is_reached: Callable[[], bool]) -> None:
        """Wait until something is reached, or the script has ended."""
        while self._process.is_alive() and not is_reached():
            if time.monotonic() > self._latest:
                raise UserError(f"a script did not end within {TIMEOUT} s; its last line: {self.last_line}")
            time.sleep(0.01)

    def wait_for_training(self) -> None:
        """Wait until training has started or is resumed."""
        self.wait_for(lambda: "-> Training is " in self.text)

    def wait(self) -> int:
        """Wait until it has ended. Return its exit status, or minus the number of the signal that ended it."""
        self.wait_for(lambda: False)
        return self._process.exitcode

    def send(self, signal_number: int) -> None:
        """Send it a signal, unless it has ended."""
        if self._process.is_alive():
            os.kill(self._process.pid, signal_number)


def run_script(command: list[str], runs: Path, log: Path, slow: int | None) -> None:
    """Run a script in this process, as `python NAME.py ARGUMENTS` would."""
    output = os.open(log, os.O_WRONLY)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.environ["VAE_CHECKPOINTS"] = str(runs)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores Ctrl-C
    if slow is not None:
        slow_writes(slow)
    sys.argv = [f"{command[0]}.py", *command[1:]]
    terminal.run(importlib.import_module(command[0]).main)


def slow_writes(seed: int) -> None:
    """Slow down each step of a write in this process by a random time."""
    rng = np.random.default_rng(seed)
    replace, fsync = os.replace, os.fsync
    os.replace = lambda *paths: (time.sleep(rng.uniform(0, SLOWDOWN)), replace(*paths))
    os.fsync = lambda file: (time.sleep(rng.uniform(0, SLOWDOWN)), fsync(file))


def train(runs: Path, *arguments: str | Path) -> None:
    """Train without a break; UserError where that fails."""
    script = Script(runs, "main", *arguments)
    if script.wait() != 0:
        raise UserError(f"main.py {shlex.join(map(str, arguments))}: {script.last_line}")


# What a run has saved


def read_result(folder: Path) -> dict[str, np.ndarray]:
    """Return the history without its times, all weights, the optimizer's arrays and those of the prior, by name."""
    with open(folder / "history.csv", newline="") as file:
        arrays = {"history": np.array([row[:-2] for row in csv.reader(file)])}
    for name in ("training_state.npz", "prior.npz"):
        with np.load(folder / name) as archive:
            arrays |= {array: archive[array] for array in archive.files if array not in ("run", "history")}
    return arrays


def find_differences(first: Path, second: Path) -> list[str]:
    """Return the names of the results that differ between two runs, in any bit."""
    results = read_result(first), read_result(second)
    contents = [{name: array.tobytes() for name, array in result.items()} for result in results]
    return sorted(name for name in {**results[0], **results[1]} if contents[0].get(name) != contents[1].get(name))


def find_damaged(folder: Path) -> list[str]:
    """Return the names of a run's files that are damaged."""
    return [path.name for path in sorted(folder.iterdir()) if path.name[0] != "." and not is_whole(path)]


def is_whole(path: Path) -> bool:
    """Say whether a file of a run can be read to its end."""
    try:
        if path.suffix in (".keras", ".npz"):
            with zipfile.ZipFile(path) as archive:
                return archive.testzip() is None
        if path.suffix == ".png":
            return Image.open(path).verify() is None
        if path.suffix == ".csv":
            with open(path, newline="") as file:
                epochs = [int(row["epoch"]) for row in csv.DictReader(file, strict=True) if None not in row.values()]
            return bool(epochs) and epochs == list(range(1, len(epochs) + 1))
        return bool(json.loads(path.read_text()))
    except Exception:  # whatever a reader says about a damaged file
        return False


# The report


def print_section(title: str, text: str, header: list[str], rows: Iterable[Iterable]) -> None:
    """Print a section of the report: a text and a table."""
    print(f"\n## {title}\n\n{inspect.cleandoc(text)}\n")
    for cells in (header, ["---"] * len(header), *rows):
        print(f"| {' | '.join(map(str, cells))} |", flush=True)


def report_resume(options: Namespace, runs: Path, rng: np.random.Generator) -> None:
    """Train the whole network on MNIST, kill it twice and resume it, and compare it with a run without a break."""
    arguments = [*FULL, *(["--data", options.data] if options.data else [])]
    train(runs, *arguments, "--name", "whole")
    with open(runs / "whole" / "history.csv", newline="") as file:
        seconds = min(float(row["seconds"]) for row in csv.DictReader(file))  # of an epoch without tracing
    script = Script(runs, "main", *arguments, "--name", "broken")
    killed_in = []
    for epoch in (1, 2):
        script.wait_for(lambda script=script, epoch=epoch: f"|--- Epoch: {epoch}/" in script.text)
        time.sleep(rng.uniform(0, seconds))
        script.send(signal.SIGKILL)
        if script.wait() != -signal.SIGKILL:
            raise UserError(f"the run ended before it was killed; its last line: {script.last_line}")
        killed_in.append(1 + read_config(runs / "broken")["epochs_done"])
        script = Script(runs, "main", "--resume", runs / "broken")
    if script.wait() != 0:
        raise UserError(f"the resumed run failed: {script.last_line}")
    differences = find_differences(runs / "broken", runs / "whole")
    lost.extend(f"resumed at full size: {name} differs" for name in differences)
    sizes = [array.size for name, array in read_result(runs / "whole").items() if name != "history"]
    text = f"""
        `python main.py {shlex.join(FULL)}` on MNIST was killed (SIGKILL) at random moments and resumed each time. The
        result is compared, bit for bit, with a run without a break: the history, and {len(sizes)} arrays
        ({sum(sizes):,} numbers: all weights, the optimizer's own, and the prior)."""
    row = [" and ".join(map(str, killed_in)), ", ".join(differences) or "nothing"]
    print_section("Killed and resumed at full size", text, ["killed in epochs", "what differs"], [row])


def report_kills(options: Namespace, runs: Path, rng: np.random.Generator) -> None:
    """Kill short runs at random moments, and resume them until they end. The first loss ends it."""
    train(runs, *SHORT, "--name", "reference")
    train(runs, *SHORT, "--name", "longer")
    train(runs, "--resume", runs / "longer", "--epochs", "5")
    slow = Script(runs, "main", *SHORT, "--name", "slow", slow=0)
    slow.wait_for_training()
    began = time.monotonic()
    slow.wait()
    span = time.monotonic() - began  # seconds of training in which the kills come

    counts = dict.fromkeys(("kills", "while a file was half written", "before the first epoch was complete"), 0)
    ended = dict.fromkeys(KINDS, 0)

    def draw_moments() -> Iterator[float]:
        while counts["kills"] < options.kills and not lost:
            yield rng.uniform(0, span)

    for number in itertools.count():
        kind = KINDS[number % len(KINDS)]
        folder = runs / f"run-{number // len(KINDS)}"
        first = ["--resume", folder, "--epochs", "5"] if kind == KINDS[2] else [*SHORT, "--name", folder.name]
        first += ["--overwrite"] if kind == KINDS[1] else []
        if not kill_until_it_ends(folder, first, draw_moments(), counts):
            break
        ended[kind] += 1
    text = f"""
        `python main.py {shlex.join(SHORT)}` was killed (SIGKILL) at random moments and resumed until it ended: a new
        run, one that overwrites it, then that one trained for one more epoch, and so on. Each step of a write was
        slowed down by up to {SLOWDOWN} s. After each kill every file was checked, and a run was drawn from and
        measured. Each run that ended is compared, bit for bit, with one that was never killed."""
    rows = [*counts.items(), *((f"runs finished: {kind}", count) for kind, count in ended.items())]
    print_section("Killed at random moments", text, ["what", "how many"], rows)


def kill_until_it_ends(folder: Path, first: list[str | Path], moments: Iterator[float], counts: dict) -> bool:
    """Start a run by the arguments `first`, kill and resume it. Say whether it ended, or `moments` did first."""
    path = folder / "config.json"
    before = path.read_text() if path.exists() else None
    arguments = first
    for seconds in moments:
        script = Script(folder.parent, "main", *arguments, slow=counts["kills"])
        script.wait_for_training()
        moment = time.monotonic() + seconds
        script.wait_for(lambda moment=moment: time.monotonic() > moment)
        script.send(signal.SIGKILL)
        status, config = script.wait(), read_config(folder)
        has_ended = config["finished"] is not None and path.read_text() != before
        if status == -signal.SIGKILL:
            counts["kills"] += 1
            counts["while a file was half written"] += any(re.match(r"\.\d+-", name) for name in os.listdir(folder))
            counts["before the first epoch was complete"] += config["epochs_done"] == 0
        elif status != 0 or not has_ended:
            lost.append(f"{folder.name}: status {status}: {script.last_line}")
        check_all(folder.parent, f"after kill {counts['kills']}")
        if has_ended:
            reference = "reference" if config["settings"]["epochs"] == 4 else "longer"
            differences = find_differences(folder, folder.parent / reference)
            lost.extend(f"{folder.name}: {name} differs from {reference}" for name in differences)
            return True
        # While the config is that of the finished run that was there before, the new one has nothing to resume.
        arguments = first if config["finished"] else ["--resume", folder]
    return False


def check_all(runs: Path, when: str) -> None:
    """Check each file of each run, draw from the run that finished last, and measure it."""
    for folder in runs.iterdir():
        lost.extend(f"{when}: {name} of {folder.name} is damaged" for name in find_damaged(folder))
    picture = ["--output", runs.parent / "digits.png"]
    few = ["--images", "5", "--importance-samples", "2", "--json"]
    for script in (Script(runs, "generator", *picture), Script(runs, "evaluate", *few)):
        if script.wait() != 0:
            lost.append(f"{when}: {script.last_line}")


def report_signals(options: Namespace, runs: Path, rng: np.random.Generator) -> None:
    """Interrupt runs at random moments: how long it takes until they end, and what they say."""
    rows = []
    for number, name, status in ((signal.SIGINT, "Ctrl-C (SIGINT)", 130), (signal.SIGTERM, "SIGTERM", 143)):
        seconds, lines = [], set()
        for attempt in range(INTERRUPTIONS):
            folder = runs / f"{number.name}-{attempt}"
            script = Script(runs, "main", *SMALL, "--epochs", "200", "--name", folder.name)
            script.wait_for_training()
            time.sleep(rng.uniform(0, 8))
            began = time.monotonic()
            script.send(number)
            ended = script.wait()
            seconds.append(time.monotonic() - began)
            lines.add(script.last_line.replace(str(folder), "RUNS/N"))
            damaged = find_damaged(folder)
            if ended != status or damaged:
                lost.append(f"{name}: status {ended}; damaged: {damaged}")
        if len(lines) > 1 or max(seconds) > PROMPT:
            lost.append(f"{name}: after {max(seconds):.1f} s: {'; '.join(lines)}")
        rows.append([name, INTERRUPTIONS, f"{max(seconds):.2f}", status, f"`{'; '.join(lines)}`"])
    header = ["signal", "times", "seconds until it ended, at most", "exit status", "last line"]
    print_section("Interrupted", "Signals came at random moments of the first eight seconds of training.", header, rows)


if __name__ == "__main__":
    terminal.run(main)
