"""Train on several devices and on more images than memory holds: python benchmarks/grow.py (see its --help).

Devices are virtual: JAX divides the processor. Memory is what the system calls RssAnon: all that a process has beyond
the pages of files, which the system takes back when it needs them. It needs Linux.
"""

import csv
import importlib
import multiprocessing
import os
import socket
import sys
import tempfile
import threading
import time
from argparse import Namespace
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from vae import terminal
from vae.data import load
from vae.data.dataset import Dataset
from vae.run import LOSSES

PROCESSES = multiprocessing.get_context("spawn")
FEW = 6000  # images of MNIST that several devices train on
WARM_UP = 100  # steps that are not timed
SHORT = 300  # steps on MNIST: an epoch
TEST_IMAGES = 1_000_000
NOISE = 8  # grey levels, at most


def main() -> None:
    """Command line -> parts of the report."""
    parts = {"devices": report_devices, "images": report_images}
    parser = terminal.Parser("benchmarks/grow.py", description="Train on several devices, and on many images.")
    add, whole = parser.add_argument, terminal.positive_integer
    add("--data", metavar="PATH", help="MNIST (default: found)")
    add("--only", choices=tuple(parts), help="a single part (default: all)")
    many = terminal.number(int, "a whole number from 1 to 1000000000", 1, 10**9)
    add("--images", type=many, default=10_000_000, metavar="N", help="how many to make (default: 10000000, 7.8 GB)")
    add("--steps", type=whole, default=2000, metavar="N", help="to train on them (default: 2000)")
    options = parser.parse_args()
    mnist = load.load(load.Options("mnist" if options.data is None else None, options.data))
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR")) as folder:
        os.environ["VAE_CHECKPOINTS"] = f"{folder}/runs"
        for name, report in parts.items():
            if options.only in (None, name):
                report(options, mnist, Path(folder))


def run_script(name: str, arguments: list[str], variables: dict[str, str], steps: int | None, times: Path) -> None:
    """In a process of its own: run a script. With `steps`, stop training after so many, and write down their rate."""
    os.environ |= variables
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # of what it prints, errors are enough
    sys.argv = [f"{name}.py", *arguments]
    script = importlib.import_module(name)
    if name == "evaluate":
        measure = script.measure_images

        def timed(*given) -> dict[str, np.ndarray]:
            began = time.perf_counter()
            arrays = measure(*given)
            times.write_text(str(len(arrays["mean"]) / (time.perf_counter() - began)))
            return arrays

        script.measure_images = timed
    if steps is not None:
        stop_after(steps, times)
    terminal.run(script.main)


def stop_after(steps: int, times: Path) -> None:
    """Interrupt training after so many steps, and write down how many steps a second there were."""
    from vae import callbacks

    class Timed(callbacks.LogAndSave):
        started: tuple[int, float] | None = None

        def on_train_batch_end(self, batch, logs=None):
            super().on_train_batch_end(batch, logs)
            now = batch + 1, time.perf_counter()
            if self.started is None and now[0] >= WARM_UP:
                self.started = now
            if now[0] >= min(steps, self.params["steps"]):
                times.write_text(str((now[0] - self.started[0]) / (now[1] - self.started[1])))
                raise KeyboardInterrupt

    callbacks.LogAndSave = Timed


class Script:
    """A script of this project in a process of its own, and the most memory that it had (MiB)."""

    def __init__(self, name: str, *arguments, variables: dict[str, str] | None = None, steps: int | None = None):
        self._times = Path(tempfile.mkstemp()[1])
        command = name, [str(argument) for argument in arguments], variables or {}, steps, self._times
        self._process = PROCESSES.Process(target=run_script, args=command)
        self._process.start()
        self.memory = 0.0
        self._watch = threading.Thread(target=self._measure)
        self._watch.start()

    def _measure(self) -> None:
        while self._process.is_alive():
            status = Path(f"/proc/{self._process.pid}/status").read_text()
            sizes = [int(line.split()[1]) for line in status.splitlines() if line.startswith("RssAnon")]
            self.memory = max(self.memory, *(size / 1024 for size in sizes), 0.0)
            time.sleep(0.1)

    def wait(self, status: int = 0) -> float:
        """Wait for its end, and return the rate that it wrote down, if any."""
        self._process.join()
        self._watch.join()
        if self._process.exitcode != status:
            raise terminal.UserError(f"a script ended with {self._process.exitcode} instead of {status}")
        text = self._times.read_text()
        self._times.unlink()
        return float(text or 0)


def report_devices(options: Namespace, mnist: Dataset, folder: Path) -> None:
    """Train for two epochs on 1, 2 and 4 virtual devices and in 2 processes; compare losses and speed."""
    few = folder / "few"
    few.mkdir()
    np.save(few / "x_train.npy", mnist.train_images[:FEW])
    np.save(few / "x_test.npy", mnist.test_images[:1000])
    flags = ("--data", few, "--epochs", 2)
    wanted = None
    print(f"| {FEW:,} images, 2 epochs | losses of the last epoch | largest difference | images a second |")
    print("|---|---|---|---|")
    for devices, processes in ((1, 1), (2, 1), (4, 1), (1, 2)):
        name = f"{devices}-{processes}"
        train_together(devices, processes, *flags, "--name", name)
        with open(folder / "runs" / name / "history.csv", newline="") as file:
            rows = list(csv.DictReader(file))
        losses = np.array([[float(row[kind + loss]) for kind in ("", "test_") for loss in LOSSES] for row in rows])
        wanted = losses if wanted is None else wanted
        difference = np.abs(losses / wanted - 1).max()
        rate = FEW / min(float(row["seconds"]) for row in rows)
        what = f"{devices} device{'s' * (devices > 1)}" if processes == 1 else f"{processes} processes"
        print(f"| {what} | {', '.join(f'{x:.3f}' for x in losses[-1])} | {difference:.1e} | {rate:,.0f} |", flush=True)


def train_together(devices: int, processes: int, *flags) -> None:
    """Train in so many processes, of so many devices each."""
    variables = {"KERAS_BACKEND": "jax", "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    together = ("--processes", processes, "--coordinator", address)
    own = [(*together, "--process", number) if processes > 1 else () for number in range(processes)]
    for script in [Script("main", *flags, *each, variables=variables) for each in own]:
        script.wait()


def report_images(options: Namespace, mnist: Dataset, folder: Path) -> None:
    """Train on many images, and measure a million; compare speed and memory with those of MNIST."""
    many, small = folder / "many", folder / "mnist"
    began = time.perf_counter()
    write_images(many / "x_train.npy", mnist.train_images, options.images)
    write_images(many / "x_test.npy", mnist.test_images, min(TEST_IMAGES, options.images))
    for part in ("train", "test"):
        write_images(small / f"x_{part}.npy", getattr(mnist, f"{part}_images"), len(getattr(mnist, f"{part}_images")))
    print(f"{options.images:,} images were made in {time.perf_counter() - began:.0f} s\n", flush=True)
    print("| what | images a second | most memory, MiB |\n|---|---|---|")
    batch = 200
    for where, steps in ((small, SHORT), (many, options.steps), (small, SHORT)):
        script = Script("main", "--data", where, "--batch-size", batch, steps=steps)
        rate = script.wait(130) * batch
        print(f"| training, {steps:,} steps on {where.name} | {rate:,.0f} | {script.memory:,.0f} |", flush=True)
    shipped = Path(__file__).resolve().parent.parent / "checkpoints" / "pretrained"
    for where in (small, many, small):
        script = Script("evaluate", "--checkpoint", shipped, "--data", where, "--images", 1000, "--json")
        print(f"| evaluate.py on {where.name} | {script.wait():,.0f} | {script.memory:,.0f} |", flush=True)


def write_images(place: Path, images: np.ndarray, count: int) -> None:
    """Write so many images: these again and again, each time with other noise."""
    place.parent.mkdir(exist_ok=True)
    shape = (count, *images.shape[1:])
    target = np.lib.format.open_memmap(place, "w+", np.uint8, shape)
    rng = np.random.default_rng(0)
    for start in range(0, count, len(images)):
        part = images[: count - start]
        noise = rng.integers(0, NOISE, part.shape, np.uint8) if count > len(images) else 0
        target[start : start + len(part)] = np.minimum(part, 255 - NOISE) + noise if count > len(images) else part
    target.flush()


if __name__ == "__main__":
    terminal.run(main)
