"""Several devices, on one machine or on several, that compute each batch together: who takes part, and how it ends.

Keras's distribution API on JAX does the work. Every device has all weights and computes its part of a batch; then the
gradients are added up. A process computes on all devices of its machine, and the first process writes the files.
"""

import argparse
import os
import sys
from collections.abc import Callable

from vae import terminal
from vae.terminal import UserError, number, positive_integer

HEARTBEAT = 30  # seconds without a sign of life after which a process counts as dead
CONNECTING = 120  # seconds for all processes to start
FINISHING = 24 * 3600  # seconds that the others wait for the first process, which ends the run alone


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
            reason = next(iter(str(error).splitlines()), "")[:200]
            raise UserError(f"--processes {self._processes}: they did not find each other ({reason})") from error
        self.is_first = jax.process_index() == 0
        if not self.is_first:
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115, for the life of the process

    def __exit__(self, kind: type | None, error: Exception | None, trace) -> None:
        if self._processes == 1:
            return
        import jax

        if error is None:
            jax.distributed.shutdown()  # waits until all have come here
        elif isinstance(error, jax.errors.JaxRuntimeError):
            raise UserError(f"another process of this run has ended ({error!s:.100})") from error

    def share(self) -> None:
        """Let all devices compute each batch of the models that are built from here on."""
        keras = terminal.import_keras()
        if keras.backend.backend() != "jax":
            return
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


def gather(vae, build: Callable):
    """Return the model for this process alone: the same weights in what `build` returns, on one device."""
    import keras

    if keras.distribution.distribution() is None:
        return vae
    keras.distribution.set_distribution(None)
    alone = build()
    for variable, value in zip(alone.weights, vae.weights, strict=True):
        variable.assign(keras.ops.convert_to_numpy(value))
    return alone
