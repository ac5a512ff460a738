"""Several devices and several processes train as one does: virtual devices of JAX, and processes on this machine.

The batches here can be dealt out evenly to one, two and four devices.
"""

import importlib.util
import os
import signal
import socket
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import HOME, finish, refuse, start
from tiny_runs import write_config

import main
from vae.runs import read_config

needs_jax = pytest.mark.skipif(importlib.util.find_spec("jax") is None, reason="JAX is not installed: pip install jax")
FLAGS = ["--dataset", "digits", "--network", "dense", "--image-size", "8", "--hidden-dim", "16", "--latent-dim", "3"]
FLAGS += ["--prior", "mixture", "--binarize", "--batch-size", "60", "--validation-split", "0.2", "--epochs", "12"]
RUN = "dense-digits-001"


def environment(devices: int = 1) -> dict[str, str]:
    """Let JAX see so many devices, where there is one processor."""
    own = {"KERAS_BACKEND": "jax", "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}
    return os.environ | own | {"JAX_COMPILATION_CACHE_DIR": f"{HOME}/jax"}  # a step takes seconds to compile


def train(*flags: str, devices: int = 1, **variables: str) -> str:
    ended = finish("main.py", *flags, env=environment(devices) | variables)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def start_processes(folder: Path, *flags: str) -> list:
    """Start the two processes of one run; each writes what it prints to a file of its own."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    processes = []
    for number in (0, 1):
        own = ("--processes", "2", "--process", number, "--coordinator", address)
        with open(folder / f"out-{number}", "w") as out, open(folder / f"error-{number}", "w") as error:
            processes.append(start("main.py", *flags, *own, env=environment(), stdout=out, stderr=error))
    return processes


def losses_of(folder: Path) -> np.ndarray:
    """All losses in a history, (epochs, losses); no epochs where there is none yet."""
    if not (folder / "history.csv").exists():
        return np.zeros((0, 6))
    return np.loadtxt(folder / "history.csv", delimiter=",", skiprows=1, usecols=range(1, 7), ndmin=2)


def assert_finished_as(alone: Path, folder: Path) -> None:
    np.testing.assert_allclose(losses_of(folder), losses_of(alone), rtol=2e-3)
    ours, theirs = read_config(folder), read_config(alone)
    assert ours["finished"] and ours["settings"] == theirs["settings"]
    assert ours["test"] == pytest.approx(theirs["test"], rel=2e-3)


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> Path:
    """The run on one device."""
    runs = tmp_path_factory.mktemp("alone")
    train(*FLAGS, VAE_CHECKPOINTS=str(runs))
    return runs / RUN


@needs_jax
@pytest.mark.parametrize("devices, flags, computing", [(3, ("--devices", "2"), 2), (4, (), 4)])
def test_several_devices_train_as_one(root, alone, devices, flags, computing):
    said = train(*FLAGS, *flags, devices=devices)
    assert f"device =  cpu:0 to cpu:{computing - 1} (" in said
    assert_finished_as(alone, root / RUN)


@needs_jax
def test_two_processes_train_as_one_and_a_killed_one_ends_both_and_any_number_resumes(root, alone, tmp_path):
    both = start_processes(tmp_path, *FLAGS)
    deadline = time.monotonic() + 200
    while not len(losses_of(root / RUN)) and both[0].poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    both[1].send_signal(signal.SIGKILL)
    assert both[0].wait(timeout=100) == 1  # JAX notices that the other is lost
    done = len(losses_of(root / RUN))
    assert 0 < done < 12 and [path.name for path in root.iterdir()] == [RUN]
    np.testing.assert_allclose(losses_of(root / RUN), losses_of(alone)[:done], rtol=2e-3)

    for process in start_processes(tmp_path, "--resume", root / RUN):
        assert process.wait(timeout=200) == 0, (tmp_path / "error-0").read_text()
    assert "Epoch: 12/12" in (tmp_path / "out-0").read_text() and "Epoch" not in (tmp_path / "out-1").read_text()
    assert_finished_as(alone, root / RUN)
    train("--resume", str(write_config(root / RUN, finished=None)))
    assert_finished_as(alone, root / RUN)


@needs_jax
def test_more_devices_than_there_are_is_one_line():
    ended = finish("main.py", *FLAGS, "--devices", "3", env=environment(2))
    line = "main.py: --devices 3: there are only 2 here; leave it out to use all"
    assert (ended.returncode, ended.stderr.splitlines()[-1]) == (1, line)


@pytest.mark.parametrize("flag", ["--devices", "--processes"])
def test_only_jax_trains_on_several_devices(root, monkeypatch, flag):
    monkeypatch.delenv("KERAS_BACKEND", raising=False)
    assert "set KERAS_BACKEND=jax" in refuse(main.main, [*FLAGS, flag, "2"])
    assert not root.exists()


@pytest.mark.parametrize("flags", [("--process", "0"), ("--coordinator", "localhost:1")])
def test_a_process_alone_has_no_number(flags):
    assert "--processes" in refuse(main.main, [*FLAGS, *flags])
