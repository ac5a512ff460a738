"""Several devices, on one machine or on several, that compute each batch together: who takes part, and how it ends.

Keras's distribution API on JAX does the work. Every device has all weights and computes its part of a batch; then the
gradients are added up. A process computes on all devices of its machine, and the first process writes the files.
"""

import argparse
import atexit
import os
import re
import subprocess
import sys
from collections.abc import Callable
from typing import NoReturn

from vae import terminal
from vae.terminal import UserError, number, positive_integer

HEARTBEAT = 30  # seconds without a sign of life after which a process counts as dead
CONNECTING = 120  # seconds for all processes to start
FINISHING = 24 * 3600  # seconds that the others wait for the first process, which ends the run alone
LOST = re.compile("gloo|nccl|remote|coordination|unavailable", re.IGNORECASE)  # in errors of JAX
LOST_LINE = "a process of this run is lost, so all end; the last whole epoch is saved: start them again with --resume"
WATCH = "import sys; sys.stdin.read() or print(sys.argv[1], file=sys.stderr)"


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Give the parser the flags that say who takes part."""

    def add(flag: str, read: Callable, metavar: str, text: str) -> None:
        parser.add_argument(flag, type=read, default=argparse.SUPPRESS, metavar=metavar, help=text)

    add("--devices", positive_integer, "N", "GPUs of this machine to train on, with KERAS_BACKEND=jax (default: all)")
    add(
        "--processes",
        positive_integer,
        "N",
        "processes, on one machine or on several, that train one model together; docs/grow.md (default: 1)",
    )
    index = number(int, "a whole number from 0", 0)
    add(
        "--process", index, "I", "which of them this is, from 0; the first writes the files (default: the cluster says)"
    )
    add("--coordinator", str, "HOST:PORT", "where the others reach the first process (default: the cluster says)")


class Devices:
    """The devices that train together. It is a context: all processes enter it, and leave it together."""

    def __init__(self, given: dict):
        """Take the flags of `add_flags` out of those that were given."""
        self._devices = given.pop("devices", None)
        self._processes = given.pop("processes", 1)
        self._cluster = given.pop("coordinator", None), self._processes, given.pop("process", None)
        self.is_first = True

    def __enter__(self) -> "Devices":
        for flag, value in (("devices", self._devices), ("processes", self._processes)):
            if (value or 1) > 1 and terminal.find_backend() != "jax":
                raise UserError(f"--{flag} {value}: only JAX trains on several; pip install jax, set KERAS_BACKEND=jax")
        if self._processes > 1:
            self._join()
        elif self._cluster != (None, 1, None):
            raise UserError("--process, --coordinator: of how many processes? Say so with --processes")
        return self

    def _join(self) -> None:
        self._watcher = _watch()
        _silence_libraries()
        import jax

        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        try:
            jax.distributed.initialize(
                *self._cluster,
                initialization_timeout=CONNECTING,
                heartbeat_timeout_seconds=HEARTBEAT,
                shutdown_timeout_seconds=FINISHING,
            )
        except (RuntimeError, ValueError) as error:
            self.__exit__(UserError, None, None)
            reason = next(iter(str(error).splitlines()), "")[:200]
            raise UserError(f"--processes {self._processes}: they did not find each other ({reason})") from error
        self.is_first = jax.process_index() == 0
        if not self.is_first:
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115, for the life of the process

    def __exit__(self, kind: type | None, error: BaseException | None, trace) -> None:
        if self._processes == 1:
            return
        import jax

        if kind is None:
            try:
                jax.distributed.shutdown()  # waits until all have come here
            except RuntimeError:
                self._end()
        elif issubclass(kind, (RuntimeError, ValueError)) and LOST.search(str(error)):
            self._end()
        else:  # JAX would wait for the others before this process ends, and they for it
            status = {KeyboardInterrupt: 130, terminal.Terminated: 143}.get(kind, 1)
            atexit.register(os._exit, status)
            sys.stdout.flush()
        self._watcher.communicate(b"all is said")

    def _end(self) -> NoReturn:
        """End as JAX ends a process when it notices first that another one is lost: the watcher says the line."""
        self._watcher.communicate()
        os._exit(1)

    def share(self) -> None:
        """Let all devices compute each batch of the models that are built from here on."""
        if terminal.find_backend() != "jax":
            return
        keras = terminal.import_keras()
        import jax
        from jax.experimental import multihost_utils

        here = jax.local_device_count()
        if (self._devices or 1) > here:
            raise UserError(f"--devices {self._devices}: there are only {here} here; leave it out to use all")
        multihost_utils.sync_global_devices("the run is found")  # or the first process might create or lock it too soon
        parts = [jax.local_devices(process)[: self._devices] for process in range(jax.process_count())]
        names = [f"{device.platform}:{device.id}" for part in parts for device in part]
        if len(names) > 1:
            together = keras.distribution.DataParallel(devices=names, auto_shard_dataset=False)
            keras.distribution.set_distribution(together)


def _watch() -> subprocess.Popen:
    """Start a process that prints a line when this one ends without a word: it was killed, or JAX has ended it."""
    command = [sys.executable, "-IS", "-c", WATCH, f"{os.path.basename(sys.argv[0])}: {LOST_LINE}"]
    return subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)  # Ctrl-C does not reach it


def _silence_libraries() -> None:
    """Leave standard output and error to Python alone: JAX's own libraries write pages when a process is lost."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for number_, name in ((1, "stdout"), (2, "stderr")):
        setattr(sys, name, open(os.dup(number_), "w", buffering=1, errors="backslashreplace"))  # noqa: SIM115
        os.dup2(nowhere, number_)


def gather(vae, build: Callable):
    """Return the model on one device: `vae` itself, or `build()` with its weights."""
    import keras

    if keras.distribution.distribution() is None:
        return vae
    keras.distribution.set_distribution(None)
    alone = build()
    for variable, value in zip(alone.weights, vae.weights, strict=True):
        variable.assign(keras.ops.convert_to_numpy(value))
    return alone
