"""How fast is training, against PyTorch and plain Keras, and drawing? python benchmarks/speed.py (see its --help).

All train the same network on the same images at the same batch size with Adam, on the same cores, in turns in one
sitting: round 1 of each, round 2 of each, and so on. Each lives in a process of its own, which has compiled and warmed
up before round 1, and sleeps while others run. A ratio is the median, over the rounds, of the ratio within a round, so
that a machine that slows down for a while slows down both sides of it.

The share of the peak is the multiply-adds a second that the network needs (arithmetic.py says how they are counted)
over the most that a float32 matrix product reached on these cores in the same sitting, in TensorFlow or in PyTorch,
whichever was higher.

PyTorch runs as its tuning guide advises for a CPU: fused Adam, channels_last, torch.compile, OpenMP threads bound to
cores, and tcmalloc or jemalloc where the system has it (without these two, allocation is the system's for all). It
trains its twin of the Keras layers (torch_twin.py), checked to give the same logits and loss. To hold everything to
fewer cores, start it under `taskset`.
"""

import importlib.util
import os
import platform
import re
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np

sys.path.append(str(Path(__file__).resolve().parent.parent))

import sitting
from sitting import Worker

import main as project
from vae import console, data, download
from vae.settings import NETWORKS, UserError

PROJECT = Path(project.__file__).parent
RANDOM_IMAGES = 60_000  # where no others are given: MNIST's number
IMAGES_A_ROUND = 24_000
FEW = 2000  # images that the checkpoint to draw from is trained on
BATCH_SIZES = (50, 100, 200, 400, 800)
EPOCHS = (1, 2, 4)
DATA_SETS = (60_000, 600_000)  # images
CORES = (1, 2)
QUIET = 0.5  # load average above which others disturb: OpenMP's threads lose most, for they wait for one another
OURS, PLAIN = "this project", "plain Keras `fit`, its defaults"
TENSORFLOW_PEAK, TORCH_PEAK = "products in TensorFlow", "products in PyTorch"
VARIANTS = {  # of PyTorch: channels_last, compiled
    "PyTorch, eager": (False, False),
    "PyTorch, eager, channels_last": (True, False),
    "PyTorch, compiled": (False, True),
    "PyTorch, compiled, channels_last": (True, True),
}


def parse(arguments: list[str] | None = None):
    """Read the command line."""
    parser = console.Parser("Time training and drawing on the CPU, in turns with PyTorch and plain Keras.")
    parser.prog = "benchmarks/speed.py"
    add, whole = parser.add_argument, console.positive_integer
    add("--data", metavar="PATH", help="images, as main.py takes them (default: random ones; speed is the same)")
    add("--network", choices=tuple(NETWORKS), default="standard", help="which network (default: standard)")
    add("--batch-size", type=whole, metavar="N", help="images in a training step (default: the network's own)")
    add("--rounds", type=whole, default=5, metavar="N", help="rounds of each contestant (default: 5)")
    steps = f"training steps in a round (default: those that {IMAGES_A_ROUND:,} images make)"
    add("--steps", type=whole, metavar="N", help=steps)
    scale = "measure instead how this project's time grows with batch size, epochs, images and cores"
    add("--scale", action="store_true", help=scale)
    return parser.parse_args(arguments)


def main() -> None:
    """Command line -> images -> contestants -> tables."""
    options = parse()
    if not options.scale and importlib.util.find_spec("torch") is None:
        raise UserError("PyTorch is not installed; pip install -r benchmarks/requirements.txt")
    own = ["--batch-size", str(options.batch_size)] if options.batch_size else []
    settings = project.complete(project.parse(["--network", options.network, *own]))
    batch = settings["batch_size"]
    images = (options.steps or max(1, IMAGES_A_ROUND // batch)) * batch
    try:
        with tempfile.TemporaryDirectory() as folder:
            np.save(Path(folder, "images.npy"), load_images(options.data))
            job = {"folder": folder, "settings": settings, "images": images}
            print(f"{machine()}; {options.rounds} rounds of {images:,} images each.", flush=True)
            (scale if options.scale else compare)(job, options.rounds)
    except (sitting.Failed, subprocess.CalledProcessError) as error:
        raise UserError(str(error)) from error


def load_images(path: str | None) -> np.ndarray:
    """The training images at `path`, or random ones."""
    if path is None:
        return np.random.default_rng(0).integers(0, 256, (RANDOM_IMAGES, 28, 28), np.uint8)
    return data.load(*download.find(None, path)).train_images


def train_checkpoint(folder: Path, settings: dict) -> None:
    """Let main.py train a checkpoint, named benchmark, on a few of the images in the folder of the sitting."""
    few = np.resize(np.load(folder / "images.npy"), (max(FEW, settings["batch_size"]), 28, 28))
    np.savez(folder / "few.npz", x_train=few, x_test=few[:500])
    sitting.say("training a checkpoint to check PyTorch with and to draw from")
    flags = ["--network", settings["network"], "--batch-size", str(settings["batch_size"]), "--epochs", "1"]
    flags += ["--data", str(folder / "few.npz"), "--name", "benchmark"]
    environment = os.environ | {"VAE_CHECKPOINTS": str(folder)}
    command = [sys.executable, str(PROJECT / "main.py"), *flags]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode != 0:
        raise sitting.Failed(f"main.py: {(done.stderr.strip().splitlines() or ['ended early'])[-1]}")


def compare(job: dict, rounds: int) -> None:
    """Time all contestants in turns and print what they reach."""
    train_checkpoint(Path(job["folder"]), job["settings"])
    reference = Worker("Reference", job)
    reference.close()
    counts, environment = reference.facts, sitting.torch_environment()
    contestants = {
        OURS: partial(Worker, "Project", job),
        **{
            name: partial(Worker, "PyTorch", job, environment, channels_last=channels_last, compiled=compiled)
            for name, (channels_last, compiled) in VARIANTS.items()
        },
        PLAIN: partial(Worker, "PlainKeras", job),
        "decoding": partial(Worker, "Decoding", job),
        TENSORFLOW_PEAK: partial(Worker, "Peak", job, framework="tensorflow"),
        TORCH_PEAK: partial(Worker, "Peak", job, environment, framework="torch"),
    }
    optional = tuple(name for name, (_, compiled) in VARIANTS.items() if compiled)  # it needs a C++ compiler
    facts, answers = sitting.run(contestants, rounds, optional)
    rates = {name: [answer["rate"] for answer in replies] for name, replies in answers.items()}
    versions = f"{counts['versions']}, {facts[TORCH_PEAK]['versions']}"
    print(f"{versions}; PyTorch's memory by {sitting.allocator() or 'the default allocator'}.")
    peaks = {name: max(rates.pop(name)) for name in (TENSORFLOW_PEAK, TORCH_PEAK)}  # 1e9 multiply-adds a second
    listed = ", ".join(f"{2 * peak:,.0f} GFLOP/s by {name}" for name, peak in peaks.items())
    print(f"The peak (float32, 2 FLOP a multiply-add): {listed}.")
    decoding = rates.pop("decoding")
    training_table(rates, facts, job["settings"], counts["training"], max(peaks.values()))
    print(f"\nCounted from the Keras layers: {counts['training']:,} multiply-adds an image, forward and backward.")
    reached = [span(decoding), share(decoding, counts["decoding"], max(peaks.values()))]
    table("Decoding by generator.py", ["images a second", "share of the peak"], [reached])
    print(f"\nCounted from the Keras layers: {counts['decoding']:,} multiply-adds an image.")
    drawing_table(Path(job["folder"]), rounds)


def training_table(rates: dict, facts: dict, settings: dict, needed: int, peak: float) -> None:
    """Print images a second of all that train, and how much faster this project is than each."""
    rows = []
    for name, reached in rates.items():
        faster = "" if name == OURS else span([a / b for a, b in zip(rates[OURS], reached, strict=True)], ".2f")
        rows.append([f"{name} ({facts[name]['what']})", span(reached), faster, share(reached, needed, peak)])
    rows += [[name, "would not start here", "", ""] for name in VARIANTS if name not in rates]
    title = f"Training `{settings['network']}`, batch size {settings['batch_size']}"
    table(title, ["trained by", "images a second", f"{OURS} is faster, times", "share of the peak"], rows)
    fastest = max(set(rates) & set(VARIANTS), key=lambda name: statistics.median(rates[name]))
    print(f"\nThe fastest of PyTorch's, its peer: {fastest}. Medians over the rounds (least–most).")


def drawing_table(folder: Path, rounds: int) -> None:
    """Time generator.py from start to picture, in turns with Python that does no more than import Keras."""
    picture = ["--checkpoint", str(folder / "benchmark"), "--output", str(folder / "digits.png")]
    commands = {
        "`python generator.py`, 100 digits": [str(PROJECT / "generator.py"), *picture],
        '`python -c "import keras"`': ["-c", "import keras"],
    }
    seconds = {name: [] for name in commands}
    for number in range(rounds + 1):
        for name, command in commands.items():
            began = time.perf_counter()
            subprocess.run([sys.executable, *command], check=True, capture_output=True)
            if number > 0:  # the first fills the disk's cache
                seconds[name].append(time.perf_counter() - began)
    ours, floor = map(statistics.median, seconds.values())
    rows = [[name, span(taken, ".2f")] for name, taken in seconds.items()]
    table("From start to picture", ["process", "seconds"], [*rows, ["ratio of the medians", f"{ours / floor:.2f}"]])


def scale(job: dict, rounds: int) -> None:
    """Time this project alone at growing sizes, and print a table for each kind of growth."""
    images, settings = job["images"], job["settings"]
    sizes = {f"batch size {size}": {"settings": settings | {"batch_size": size}} for size in BATCH_SIZES}
    for change in sizes.values():
        size = change["settings"]["batch_size"]
        change["images"] = max(1, images // size) * size
    growth("Growing batches", job, sizes, rounds)
    growth("Growing runs", job, {f"epochs: {epochs}": {"epochs": epochs} for epochs in EPOCHS}, rounds)
    # Here a round is an epoch of the whole data set: one is enough.
    sets = {f"{count:,} images of {count * 784 / 2**20:,.0f} MiB": {"images": count} for count in DATA_SETS}
    growth("Growing data sets", job, sets, 1)
    if not hasattr(os, "sched_setaffinity"):
        print("\nThis system cannot hold a process to one core.")
        return
    starts = {f"cores: {count}": partial(on_cores, count, job) for count in CORES if count <= len(sitting.cores())}
    scale_table("Growing machines", sitting.run(starts, rounds)[1])


def growth(title: str, job: dict, changes: dict[str, dict], rounds: int) -> None:
    """Time this project with each of the changes to its job."""
    starts = {name: partial(Worker, "Project", job | change) for name, change in changes.items()}
    scale_table(title, sitting.run(starts, rounds)[1])


def on_cores(count: int, job: dict) -> Worker:
    """This project, held to so many cores."""
    with sitting.on_cores(count):
        return Worker("Project", job)


def scale_table(title: str, answers: dict[str, list[dict]]) -> None:
    """Print time, rate and memory of each, and its rate against the first's."""
    first, rows = next(iter(answers.values())), []
    for name, replies in answers.items():
        rates = [reply["rate"] for reply in replies]
        gained = span([reply["rate"] / base["rate"] for reply, base in zip(replies, first, strict=True)], ".2f")
        seconds = span([reply["seconds"] for reply in replies], ".2f")
        memory = max(reply["bytes"] for reply in replies) / 2**20
        rows.append([name, f"{replies[0]['images']:,}", seconds, span(rates), gained, f"{memory:,.0f} MiB"])
    header = ["", "images trained on", "seconds", "images a second", "times the first row's", "peak memory"]
    table(title, header, rows)


def table(title: str, header: list[str], rows: list[list[str]]) -> None:
    """Print a table in Markdown, with the command that made it."""
    command = shlex.join(["python", "benchmarks/speed.py", *sys.argv[1:]])
    print(f"\n**{title}** (`{command}`)\n")
    for cells in (header, ["---"] * len(header), *rows):
        print(f"| {' | '.join(cells)} |", flush=True)


def span(values: list[float], form: str = ",.0f") -> str:
    """The median of the rounds, with the least and the most."""
    return f"{statistics.median(values):{form}} ({min(values):{form}}–{max(values):{form}})"


def share(rates: list[float], needed: int, peak: float) -> str:
    """The part of the peak that a median rate of images, each of which needs so many multiply-adds, amounts to."""
    return f"{statistics.median(rates) * needed / (peak * 1e9):.0%}"


def machine() -> str:
    """The cores that are used and how busy they were before, as far as the system tells."""
    try:
        name = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)[1]
    except (OSError, TypeError):
        name = platform.processor() or platform.machine()
    if not hasattr(os, "getloadavg"):
        return f"{len(sitting.cores())} cores ({name})"
    load = os.getloadavg()[0]
    if load > QUIET:
        sitting.say(f"other programs keep the cores busy (load {load:.1f}): expect low figures, PyTorch's above all")
    return f"{len(sitting.cores())} cores ({name}), load {load:.1f} at the start"


if __name__ == "__main__":
    console.run(main)
