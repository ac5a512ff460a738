"""A sitting: contestants, in processes of their own, that run their rounds in turns on the same cores."""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from ctypes.util import find_library
from pathlib import Path

PAUSE = 0.5  # seconds before a round, in which the thread pools of the one before stop spinning


class Failed(Exception):
    """A contestant ended early; the message is the last error that it named."""


class Worker:
    """A contestant (see contestants.py) in its own process: ready and warm when made, idle between its rounds."""

    def __init__(self, kind: str, job: dict, environment: dict | None = None, **arguments):
        self._log = Path(job["folder"], f"{id(self)}.log")
        with open(self._log, "w") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-P", Path(__file__).with_name("contestants.py"), kind],
                env=os.environ | {"CUDA_VISIBLE_DEVICES": "-1"} | (environment or {}),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        try:
            self.facts = self._ask(json.dumps([job, arguments]))
        except BaseException:
            self.close()
            raise

    def round(self) -> dict:
        """One round's figures."""
        time.sleep(PAUSE)
        return self._ask("round")

    def close(self) -> None:
        """End the process, whatever it is at."""
        self._process.kill()
        self._process.communicate()

    def _ask(self, line: str) -> dict:
        with suppress(BrokenPipeError):  # then it has ended, and no answer comes either
            print(line, file=self._process.stdin, flush=True)
        answer = self._process.stdout.readline()
        if not answer:
            self._process.wait()
            lines = [f"exit status {self._process.returncode}", *self._log.read_text().strip().splitlines()]
            errors = [line for line in lines if re.match(r"[\w.]+(Error|Exception|Failed)\b", line)]
            raise Failed((errors or lines)[-1])
        return json.loads(answer)


def run(contestants: dict[str, Callable[[], Worker]], rounds: int, optional: tuple[str, ...] = ()) -> tuple[dict, dict]:
    """Start all, then let each run a round in turn; return every name's facts, and the answers of its rounds.

    Those named in `optional` are left out where they fail to start; any other failure raises Failed.
    """
    with ExitStack() as stack:
        workers = {}
        for name, start in contestants.items():
            say(f"starting: {name}")
            try:
                workers[name] = start()
            except Failed as error:
                if name not in optional:
                    raise Failed(f"{name}: {error}") from None
                say(f"left out: {name} ({error})")
                continue
            stack.callback(workers[name].close)
        answers = {name: [] for name in workers}
        for number in range(rounds):
            for name, worker in workers.items():
                answers[name].append(worker.round())
                say(f"round {number + 1} of {rounds}: {name}: {answers[name][-1]['rate']:,.0f} a second")
    return {name: worker.facts for name, worker in workers.items()}, answers


def say(line: str) -> None:
    """Tell on standard error how far it is; standard output is for the tables."""
    print(f"-> {line}", file=sys.stderr, flush=True)


def cores() -> list[int]:
    """The cores that this process may use."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count()))


@contextmanager
def on_cores(count: int) -> Iterator[None]:
    """Hold this process, and those that it starts, to so many of its cores."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores()[:count])
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def allocator() -> str | None:
    """The memory allocator that PyTorch's tuning guide advises for a CPU, where the system has it."""
    found = (find_library(name) for name in ("tcmalloc", "tcmalloc_minimal", "jemalloc"))
    return next(filter(None, found), None) if sys.platform == "linux" else None


def torch_environment() -> dict[str, str]:
    """What PyTorch's tuning guide sets for a CPU, and no TensorFlow beside it."""
    openmp = {"OMP_NUM_THREADS": str(len(cores())), "OMP_PROC_BIND": "CLOSE", "OMP_SCHEDULE": "STATIC"}
    preload = {"LD_PRELOAD": allocator()} if allocator() else {}
    return {"KERAS_BACKEND": "torch"} | openmp | preload
