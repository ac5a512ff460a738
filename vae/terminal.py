"""The command line and the terminal: flags, errors in one line, signals, a quiet import of Keras."""

import argparse
import importlib.util
import logging
import math
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn


class UserError(Exception):
    """What the user can mend: one line that names the file or flag, what is wrong and what to do."""


class Parser(argparse.ArgumentParser):
    """argparse with errors of one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message} (see python {self.prog} --help)\n")


def number(
    kind: type, wanted: str, least: float, most: float = math.inf, step: int | None = None
) -> Callable[[str], int | float]:
    """Return a reader of finite numbers for argparse, multiples of `step`. Its errors say what is `wanted`."""

    def read(text: str) -> int | float:
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        fits = least <= value <= most and math.isfinite(value)  # NaN does not
        if not fits or (step is not None and value % step):
            raise argparse.ArgumentTypeError(f"{text!r} is not {wanted}")
        return value

    return read


positive_integer = number(int, "a whole number from 1 to 1000000", 1, 10**6)
positive_number = number(float, "a number above 0", math.ulp(0.0))
non_negative_number = number(float, "a number from 0", 0)
seed = number(int, "a whole number from 0 to 4294967295", 0, 2**32 - 1)  # what NumPy and Keras both take


def as_path(text: str | os.PathLike) -> Path:
    """Return the path that a user typed, with `~` as the home folder."""
    return Path(os.path.expanduser(text))


def shown(path: Path) -> str:
    """Return a path as one would type it from here."""
    path = path.absolute()
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


# Keras


def import_keras():
    """Import Keras without the start-up notices of TensorFlow, and return it.

    Compiled code writes the notices to the file descriptor of standard error, so that is silenced. The user's
    keras.json is not read: what it can say would break a run.
    """
    os.environ["KERAS_BACKEND"] = find_backend()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    # TensorFlow uses oneDNN by default only on processors with AVX512_VNNI or the like. On others, as in many laptops,
    # training without it takes 1.5 times as long.
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
    nowhere = os.path.join(os.devnull, "keras")  # a place that cannot exist
    with _silence_stderr(), _set_variable("KERAS_HOME", nowhere), _hide_modules("sklearn", "matplotlib.pyplot"):
        import keras

        find_devices()  # the search for a GPU writes notices, too
    logging.getLogger("tensorflow").setLevel(logging.ERROR)  # in a notebook it would warn of each model's own trace
    return keras


@contextmanager
def _hide_modules(*names: str) -> Iterator[None]:
    """Hide modules for a while, as if they were not installed. Those that are imported already stay.

    Keras imports scikit-learn and pyplot, where they are installed, for parts that this project does not use. That
    takes about a third of its import.
    """
    hidden = [name for name in names if name not in sys.modules]
    sys.modules.update(dict.fromkeys(hidden))
    try:
        yield
    finally:
        for name in hidden:
            del sys.modules[name]


def find_backend() -> str:
    """Return what Keras is to compute with, by KERAS_BACKEND; UserError where it is not installed."""
    backend = (os.environ.get("KERAS_BACKEND") or "tensorflow").lower()
    if backend not in ("tensorflow", "jax", "torch"):
        raise UserError(f"KERAS_BACKEND={backend}: set it to tensorflow, jax or torch, or unset it")
    if importlib.util.find_spec(backend) is None:
        raise UserError(f"KERAS_BACKEND={backend}: it is not installed; pip install {backend}, or unset KERAS_BACKEND")
    return backend


def find_devices() -> list[str]:
    """Return the names of the devices that Keras computes on."""
    import keras

    if keras.backend.backend() == "torch":  # Keras 3.15 cannot list the devices of PyTorch
        import torch

        return ["cuda" if torch.cuda.is_available() else "cpu"]
    if keras.backend.backend() == "jax" and (together := keras.distribution.distribution()) is not None:
        return together.device_mesh.devices.tolist()
    return keras.distribution.list_devices()[:1]


@contextmanager
def _silence_stderr() -> Iterator[None]:
    sys.stderr.flush()
    saved = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(nowhere)


@contextmanager
def _set_variable(name: str, value: str) -> Iterator[None]:
    """Set an environment variable for a while."""
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        del os.environ[name]
        if before is not None:
            os.environ[name] = before


# Signals and errors


class Terminated(KeyboardInterrupt):
    """SIGTERM came: the same as Ctrl-C, but with another exit status."""


_signal_seen: type[KeyboardInterrupt] | None = None


def _note_signal(signal_number: int, frame) -> NoReturn:
    global _signal_seen
    _signal_seen = Terminated if signal_number == signal.SIGTERM else KeyboardInterrupt
    raise _signal_seen


def raise_lost_signal() -> None:
    """Raise the exception of a signal again, if compiled code has lost it (TensorFlow 2.21 sometimes does)."""
    if _signal_seen is not None:
        raise _signal_seen


def run(main: Callable[[], object]) -> None:
    """Run the `main` of a script. A UserError ends it with one line and status 1, Ctrl-C with 130, SIGTERM with 143.

    Notes of a KeyboardInterrupt (`add_note`) end its line. A defect of the program shows its traceback. The script may
    run inside another program, such as Jupyter: its signal handlers and its Matplotlib backend are restored.
    """
    global _signal_seen
    script = os.path.basename(sys.argv[0])
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # print any text in any encoding
            stream.reconfigure(errors="backslashreplace")
    in_main_thread = threading.current_thread() is threading.main_thread()  # others cannot handle signals
    handlers = {number_: signal.getsignal(number_) for number_ in (signal.SIGINT, signal.SIGTERM) if in_main_thread}
    for number_, handler in handlers.items():
        if handler != signal.SIG_IGN:  # a shell's background job ignores Ctrl-C
            signal.signal(number_, _note_signal)
    try:
        with _set_variable("MPLBACKEND", "agg"):  # figures are files; other backends may be missing
            main()
        print(end="", flush=True)
    except UserError as error:
        sys.exit(f"{script}: {' '.join(str(error).splitlines())}")  # file names may contain line breaks
    except KeyboardInterrupt as stop:
        for number_ in handlers:  # a second signal must not interrupt the ending
            signal.signal(number_, signal.SIG_IGN)
        word, status = ("terminated", 143) if isinstance(stop, Terminated) else ("interrupted", 130)
        print("\n" + "; ".join([f"{script}: {word}", *getattr(stop, "__notes__", [])]), file=sys.stderr)
        sys.exit(status)
    except BrokenPipeError:  # the reader of our output has gone (`| head`); Python's flush at exit would fail again
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    finally:
        _signal_seen = None
        for number_, handler in handlers.items():
            signal.signal(number_, handler)
