"""Several devices and several processes train as one does: virtual devices of JAX, and processes on this machine."""

import csv
import importlib.util
import json
import os
import signal
import socket
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import HOME, finish, refuse, start

import main

needs_jax = pytest.mark.skipif(importlib.util.find_spec("jax") is None, reason="JAX is not installed: pip install jax")
TOLERANCE = 1e-3  # of each loss, relative
# No number of devices but 2 divides the batches of 50, and only 3 the 297 test images. A small network compiles fast.
FLAGS = ("--dataset", "digits", "--network", "dense", "--image-size", "8", "--hidden-dim", "16", "--latent-dim", "3")
FLAGS = (*FLAGS, "--prior", "mixture", "--batch-size", "50", "--learning-rate", "0.01", "--binarize", "--epochs", "4")
RUN = "dense-digits-001"


def environment(devices: int = 1) -> dict[str, str]:
    """Let JAX see so many devices, where there is one processor."""
    own = {"KERAS_BACKEND": "jax", "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}
    return os.environ | own | {"JAX_COMPILATION_CACHE_DIR": f"{HOME}/jax"}  # a step takes seconds to compile


def train(*flags: str, devices: int = 1) -> str:
    ended = finish("main.py", *flags, env=environment(devices))
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def start_processes(folder: Path, count: int, *flags: str) -> list:
    """Start the processes of one run; each writes what it prints to a file of its own."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    processes = []
    for number in range(count):
        own = ("--processes", count, "--process", number, "--coordinator", address)
        with open(folder / f"out-{number}", "w") as out, open(folder / f"error-{number}", "w") as error:
            processes.append(start("main.py", *flags, *own, env=environment(), stdout=out, stderr=error))
    return processes


def losses_of(folder: Path) -> np.ndarray:
    """All losses in a history, (epochs, losses); no epochs where there is none yet."""
    if not (folder / "history.csv").exists():
        return np.zeros((0, 6))
    with open(folder / "history.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    return np.array([[float(value) for name, value in row.items() if name.endswith("loss")] for row in rows])


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> np.ndarray:
    """The losses of one device, in four epochs."""
    if importlib.util.find_spec("jax") is None:
        pytest.skip("JAX is not installed")
    runs = tmp_path_factory.mktemp("alone")
    ended = finish("main.py", *FLAGS, env=environment() | {"VAE_CHECKPOINTS": str(runs)})
    assert ended.returncode == 0, ended.stderr
    return losses_of(runs / RUN)


@needs_jax
@pytest.mark.parametrize("devices, flags, computing", [(3, ("--devices", "2"), 2), (4, (), 4)])
def test_several_devices_train_as_one(root, alone, devices, flags, computing):
    said = train(*FLAGS, *flags, devices=devices)
    assert f"device =  {computing} devices, cpu:0 to cpu:{computing - 1} (" in said
    folder = root / RUN
    np.testing.assert_allclose(losses_of(folder), alone, rtol=TOLERANCE)
    config = json.loads((folder / "config.json").read_text())
    assert config["finished"] and not {"devices", "processes"} & set(config["settings"])


@needs_jax
@pytest.mark.parametrize("lost, processes", [(1, 2), (0, 1)])
def test_a_killed_process_ends_the_other_in_a_line_and_any_number_resumes(root, alone, tmp_path, lost, processes):
    """The resumed run ends as a run on one device without a break."""
    both = start_processes(tmp_path, 2, *FLAGS)
    folder = root / RUN
    wait_for(lambda: len(losses_of(folder)) > 0, both[0])
    both[lost].send_signal(signal.SIGKILL)
    assert both[1 - lost].wait(timeout=60) == 1
    said = [line for line in (tmp_path / f"error-{1 - lost}").read_text().splitlines() if not line.startswith("-> ")]
    assert len(said) == 1 and "a process of this run is lost" in said[0]
    assert (tmp_path / "out-1").read_text() == ""  # the first process alone prints the log
    assert [path.name for path in root.iterdir()] == [folder.name]
    assert 0 < len(losses_of(folder)) < 4
    np.testing.assert_allclose(losses_of(folder), alone[: len(losses_of(folder))], rtol=TOLERANCE)

    if processes == 1:
        train("--resume", str(folder))
    else:
        for process in start_processes(tmp_path, processes, "--resume", folder):
            assert process.wait(timeout=120) == 0
    np.testing.assert_allclose(losses_of(folder), alone, rtol=TOLERANCE)
    assert json.loads((folder / "config.json").read_text())["finished"]


def wait_for(is_reached, process) -> None:
    deadline = time.monotonic() + 250
    while not is_reached() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    assert is_reached()


@needs_jax
def test_more_devices_than_there_are_and_no_other_process(tmp_path):
    ended = finish("main.py", *FLAGS, "--devices", "3", env=environment(2))
    assert ended.returncode == 1
    assert ended.stderr.splitlines()[-1] == "main.py: --devices 3: there are only 2 here; leave it out to use all"


@pytest.mark.parametrize("flag", ["--devices", "--processes"])
@pytest.mark.parametrize("backend", ["tensorflow", None])
def test_only_jax_trains_on_several_devices(root, monkeypatch, flag, backend):
    monkeypatch.delenv("KERAS_BACKEND", raising=False)
    if backend:
        monkeypatch.setenv("KERAS_BACKEND", backend)
    assert "set KERAS_BACKEND=jax" in refuse(main.main, [*FLAGS, flag, "2"])
    assert not root.exists()


@pytest.mark.parametrize("flags", [("--process", "0"), ("--coordinator", "localhost:1")])
def test_a_process_alone_has_no_number(flags):
    assert "--processes" in refuse(main.main, [*FLAGS, *flags])
