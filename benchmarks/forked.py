"""The scripts, run in processes of their own that need not import everything first.

This process imports the heavy libraries once, and forks for every run: a child begins where the imports end, and can
be killed, starved and interrupted like any other process. Nothing of TensorFlow is started before the fork.
"""

import contextlib
import importlib
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")  # as the scripts have it
for library in ("keras", "tensorflow", "matplotlib.figure", "sklearn.mixture", "sklearn.datasets"):
    importlib.import_module(library)

from vae import console  # noqa: E402

TIMEOUT = 300  # seconds that any child may take


class Child:
    """A script with its arguments, running; `prepare` is called in it first."""

    def __init__(self, script: str, *arguments, log: Path, prepare: Callable[[], None] = lambda: None):
        log.unlink(missing_ok=True)
        self.log, self.status, self.began = log, None, time.monotonic()
        sys.stdout.flush()
        self.process = os.fork()
        if self.process == 0:
            _become(script, list(map(str, arguments)), log, prepare)

    def text(self) -> str:
        """All that it has printed so far."""
        return self.log.read_text() if self.log.exists() else ""

    def ended(self) -> bool:
        """Whether it has ended; `status` is then its exit status, or minus the number of the signal."""
        if self.status is None:
            process, status = os.waitpid(self.process, os.WNOHANG)
            self.status = os.waitstatus_to_exitcode(status) if process else None
        return self.status is not None

    def wait(self) -> int:
        """Its exit status, once it has ended."""
        self.until(lambda: False)
        return self.status

    def until(self, reached: Callable[[], bool]) -> bool:
        """Wait until something is reached; False where it ended before."""
        while not reached():
            if self.ended():
                return False
            if time.monotonic() > self.began + TIMEOUT:
                self.send(signal.SIGKILL)
                raise TimeoutError(self.text())
            time.sleep(0.002)
        return True

    def send(self, number: int) -> None:
        """Send it a signal, unless it has ended."""
        if not self.ended():
            os.kill(self.process, number)


def _become(script: str, arguments: list[str], log: Path, prepare: Callable[[], None]) -> None:
    """Be the script, in the child; never return."""
    try:
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        sys.argv = [f"{script}.py", *arguments]
        signal.signal(signal.SIGINT, signal.default_int_handler)  # what runs in the background of a shell ignores it
        prepare()
        console.run(importlib.import_module(script).main)
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr, flush=True)
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        status = 70
    finally:
        with contextlib.suppress(OSError):
            sys.stdout.flush()
        os._exit(status)


def run(script: str, *arguments, log: Path, prepare: Callable[[], None] = lambda: None) -> tuple[int, str]:
    """Run a script to its end: exit status, and all that it printed."""
    child = Child(script, *arguments, log=log, prepare=prepare)
    return child.wait(), child.text()
