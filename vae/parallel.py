"""Several devices, on one machine or on several, that compute each batch together. docs/grow.md has the commands.

Keras's DataParallel on JAX does the work. Every device has all weights and computes its part of a batch; then the
gradients are added up. A process computes on all devices of its machine, and the first process writes the files.
"""

import argparse
import atexit
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

from vae import terminal
from vae.terminal import UserError, number, positive_integer


def count_cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Give the parser the flags that say who takes part."""
    add = partial(parser.add_argument, default=argparse.SUPPRESS)
    add("--devices", type=positive_integer, help="GPUs of this machine, with KERAS_BACKEND=jax (default: all)")
    add("--processes", type=positive_integer, help="processes that train one model; docs/grow.md (default: 1)")
    text = "which of them this is, from 0; the first writes the files (default: the cluster says)"
    add("--process", type=number(int, "a whole number from 0", 0), help=text)
    add("--coordinator", metavar="HOST:PORT", help="the address of the first process (default: the cluster says)")


@contextmanager
def joined(given: dict) -> Iterator[None]:
    """Let all devices and processes compute each batch together. Takes the flags of `add_flags` out of `given`."""
    devices, processes = given.pop("devices", None), given.pop("processes", 1)
    address, process = given.pop("coordinator", None), given.pop("process", None)
    for flag, value in (("devices", devices), ("processes", processes)):
        if (value or 1) > 1 and terminal.find_backend() != "jax":
            raise UserError(f"--{flag} {value}: only JAX trains on several; pip install jax, set KERAS_BACKEND=jax")
    if processes == 1 and (address or process is not None):
        raise UserError("--process, --coordinator: of how many processes? Say so with --processes")
    if terminal.find_backend() == "jax":
        if processes > 1:
            _connect(address, processes, process)
        _distribute(devices)
    try:
        yield
    except (Exception, KeyboardInterrupt):
        if processes > 1:  # JAX would wait for the others before this process ends, and they for it
            atexit.register(lambda: (sys.stdout.flush(), os._exit(1)))
        raise


def _connect(address: str | None, processes: int, process: int | None) -> None:
    import jax

    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    # The first process ends the run alone; so long the others may wait for it (seconds).
    jax.distributed.initialize(address, processes, process, shutdown_timeout_seconds=24 * 3600)
    if jax.process_index() > 0:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115, for the life of the process


def _distribute(devices: int | None) -> None:
    keras = terminal.import_keras()
    import jax

    here = jax.local_device_count()
    if (devices or 1) > here:
        raise UserError(f"--devices {devices}: there are only {here} here; leave it out to use all")
    parts = [jax.local_devices(process)[:devices] for process in range(jax.process_count())]
    names = [f"{device.platform}:{device.id}" for part in parts for device in part]
    if len(names) > 1:
        together = keras.distribution.DataParallel(devices=names, auto_shard_dataset=False)
        keras.distribution.set_distribution(together)


def find_distribution():
    """Return Keras's distribution over several devices; None where there is one device, or another backend."""
    import keras

    return keras.distribution.distribution() if keras.backend.backend() == "jax" else None


def is_first() -> bool:
    """Whether this process writes the files: the only one, as a rule."""
    together = find_distribution()
    return together is None or together.data_shard_id == 0


def meet() -> None:
    """Wait until all processes have come here."""
    if find_distribution():
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices("all processes are here")


def deal(*parts) -> None:
    """Deal the batches of these `Batches` out to all devices: from then on an item is what this process computes."""
    together = find_distribution()
    for batches in parts if together else ():
        batches.deal(together.num_model_replicas, together.data_shard_id, together.num_processes)


def leave(vae, build: Callable, run):
    """Return the trained model for one device: `vae` itself, or `build()` with the weights that the run has saved.

    Of several processes only the first goes on: the others end here.
    """
    if not find_distribution():
        return vae
    if not is_first():
        sys.exit()
    import keras

    keras.distribution.set_distribution(None)
    alone = build()
    run.restore(alone)
    return alone
