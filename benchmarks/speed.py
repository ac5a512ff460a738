"""Time training and decoding on the CPU, against plain Keras and PyTorch: python benchmarks/speed.py (see its --help).

All train the same network on the same images with Adam, with the prior N(0, I), the same batch size and on the same
cores. Each has a process of its own. It compiles and warms up first. Then they take turns: round 1 of each, round 2 of
each, and so on; while one runs, the others sleep. "Times faster" is the median of the ratios within each round.

The peak is the highest rate of a float32 matrix product on these cores, in TensorFlow or in PyTorch. The share of the
peak is the multiply-adds a second that the network needs, divided by the peak.

PyTorch runs with what its tuning guide advises for a CPU: fused Adam, channels_last, torch.compile, and OpenMP threads
bound to cores. To use fewer cores, start the script with `taskset`; to use another memory allocator, with LD_PRELOAD.
"""

import importlib.util
import math
import multiprocessing
import os
import platform
import re
import shlex
import signal
import statistics
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import generator
import main as project
from vae import settings, terminal
from vae.data.dataset import Dataset, to_pixels
from vae.terminal import UserError

IMAGES_A_ROUND = 24_000
DECODED = 20_000  # images in a round of decoding
PEAK_SIZES = (1024, 1536, 2048, 3072)  # rows and columns of square matrices
PEAK_REPEATS = 5
PAUSE = 0.5  # seconds before a round; the threads of the process before it fall asleep
TOLERANCE = 1e-3  # of each logit, and of the loss in nats per image, between PyTorch and Keras
PROCESSES = multiprocessing.get_context("spawn")

OURS, PLAIN, DECODING = "this project", "plain Keras `fit`, its defaults", "decoding"
PEAKS = ("matrix products in TensorFlow", "matrix products in PyTorch")


@dataclass(frozen=True)
class Job:
    """What each contestant is given."""

    options: Namespace  # every setting of the run, as vae.settings has them
    images: int  # in a round
    reference: Path  # an .npz with the weights of the Keras layers and what they compute

    def make_images(self) -> np.ndarray:
        """Return random images (n, 28, 28), bytes. What the pixels show does not change the speed."""
        return np.random.default_rng(0).integers(0, 256, (self.images, 28, 28), np.uint8)


def main() -> None:
    """Command line -> contestants -> rounds in turn -> table."""
    options = parse()
    compares_torch = options.network == "standard"
    if compares_torch and importlib.util.find_spec("torch") is None:
        raise UserError("PyTorch is not installed; pip install -r benchmarks/requirements.txt")
    os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
    own = settings.complete({"network": options.network, "prior": "normal"})
    images = (options.steps or max(1, IMAGES_A_ROUND // own.batch_size)) * own.batch_size
    versions = [f"{name} {version(name)}" for name in ("tensorflow", "keras", *(["torch"] if compares_torch else []))]
    print("; ".join([describe_machine(), *versions, f"{options.rounds} rounds of {images:,} images each"]), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        job = Job(own, images, Path(folder, "reference.npz"))
        with ProcessPoolExecutor(1, PROCESSES) as pool:
            products = pool.submit(write_reference, job).result()
        rates = take_turns(choose_contestants(compares_torch), job, options.rounds)
    print_results(rates, own, products)


def parse() -> Namespace:
    """Read the command line."""
    parser = terminal.Parser("benchmarks/speed.py", description="Time training and decoding, against others in turn.")
    add, whole = parser.add_argument, terminal.positive_integer
    add("--network", choices=settings.NETWORKS, default="standard", help="(default: standard; PyTorch has no other)")
    add("--rounds", type=whole, default=5, metavar="N", help="rounds of each (default: 5)")
    steps = f"training steps in a round (default: as many as {IMAGES_A_ROUND:,} images make)"
    add("--steps", type=whole, metavar="N", help=steps)
    return parser.parse_args()


def describe_machine() -> str:
    """Return the cores that are used and, where the system tells, how busy they were."""
    cpuinfo = Path("/proc/cpuinfo")
    found = re.search(r"^model name\s*: (.*)$", cpuinfo.read_text(), re.MULTILINE) if cpuinfo.exists() else None
    load = f", load {os.getloadavg()[0]:.1f} at the start" if hasattr(os, "getloadavg") else ""
    return f"cores: {count_cores()} ({found[1] if found else platform.machine()}){load}"


def count_cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


# The processes: a contestant is a pool of one, which sleeps between its rounds


def silence() -> None:
    """In a contestant's process: ignore Ctrl-C, and let libraries print to standard error."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.dup2(2, 1)


def keep_round(prepare: Callable, job: Job) -> None:
    """In the contestant's process: prepare it, and run a round to compile and to warm up."""
    global run_prepared
    run_prepared = prepare(job)
    run_prepared()


def run_round() -> float:
    """In the contestant's process: run a round, and return its rate."""
    return run_prepared()


def choose_contestants(compares_torch: bool) -> dict[str, Callable]:
    """Return the function that prepares each contestant, by its name."""
    contestants = {OURS: prepare_project, PLAIN: prepare_plain_keras, DECODING: prepare_decoding}
    contestants[PEAKS[0]] = partial(prepare_products, framework="tensorflow")
    if compares_torch:
        contestants[PEAKS[1]] = partial(prepare_products, framework="torch")
        for name, compiles in (("PyTorch, eager", False), ("PyTorch, compiled", True)):
            contestants[name] = partial(prepare_torch, compiles=compiles, channels_last=False)
            contestants[f"{name}, channels_last"] = partial(prepare_torch, compiles=compiles, channels_last=True)
    return contestants


def take_turns(contestants: dict[str, Callable], job: Job, rounds: int) -> dict[str, list[float]]:
    """Start all contestants, and let each run a round in turn. Return the rates of each.

    A compiled PyTorch that does not start is left out, as it needs a C++ compiler. Other errors are raised.
    """
    with ExitStack() as stack:
        pools = {}
        for name, prepare in contestants.items():
            say(f"{name}: starting")
            pool = stack.enter_context(ProcessPoolExecutor(1, PROCESSES, silence))
            try:
                pool.submit(keep_round, prepare, job).result()
                pools[name] = pool
            except Exception as error:
                if "compiled" not in name:
                    raise
                say(f"{name}: left out ({error})")
        rates = {name: [] for name in pools}
        for number in range(1, rounds + 1):
            for name, pool in pools.items():
                time.sleep(PAUSE)
                rates[name].append(pool.submit(run_round).result())
                say(f"{name}: round {number} of {rounds}: {rates[name][-1]:,.0f} a second")
    return rates


def say(line: str) -> None:
    """Print the progress on standard error; standard output is for the table."""
    print(f"-> {line}", file=sys.stderr, flush=True)


# The contestants. Each function prepares one, and returns a function that runs a round and returns its rate.


def prepare_project(job: Job) -> Callable[[], float]:
    """Train as main.py does: images a second."""
    vae = build_vae(job)
    from vae.callbacks import Reseed
    from vae.data.batches import Batches

    batches = Batches(job.make_images(), job.options.batch_size, seed=0, shuffle=True)
    return partial(time_fit, vae, job.images, x=batches, shuffle=False, callbacks=[Reseed(batches, seed=0)])


def build_vae(job: Job):
    """Build the VAE of main.py, compiled."""
    images = job.make_images()
    return project.build_vae(job.options, Dataset("random", images, None, None, images, None, "", "random"))


def prepare_plain_keras(job: Job) -> Callable[[], float]:
    """Train the VAE of model.py by Keras's `fit` and Adam, with their defaults: images a second."""
    import keras

    from model import VAE, NormalPrior

    keras.utils.set_random_seed(0)
    options = job.options
    halves = settings.NETWORKS[options.network].build((28, 28), options.hidden_dim, options.latent_dim)
    vae = VAE(halves, NormalPrior())
    vae.compile(keras.optimizers.Adam(options.learning_rate))
    images = to_pixels(job.make_images())
    return partial(time_fit, vae, job.images, x=images, batch_size=options.batch_size)


def time_fit(vae, count: int, callbacks: list | tuple = (), **arguments) -> float:
    """Train one epoch of `count` images by `fit`, and return images a second up to the end of the last step."""
    import keras

    times = []
    watch = keras.callbacks.LambdaCallback(
        on_train_begin=lambda logs: times.append(time.perf_counter()),
        on_train_batch_end=lambda batch, logs: times.append(time.perf_counter()),
    )
    vae.fit(callbacks=[*callbacks, watch], verbose=0, **arguments)
    return count / (times[-1] - times[0])


def prepare_torch(job: Job, compiles: bool, channels_last: bool) -> Callable[[], float]:
    """Train the same network in PyTorch: images a second."""
    os.environ |= {"OMP_NUM_THREADS": str(count_cores()), "OMP_PROC_BIND": "CLOSE", "OMP_SCHEDULE": "STATIC"}
    import torch

    torch.manual_seed(0)
    vae = build_torch_vae(job, channels_last)
    optimizer = torch.optim.Adam(vae.parameters(), job.options.learning_rate, eps=1e-7, fused=True)
    step = torch.compile(vae) if compiles else vae
    images = torch.from_numpy(to_pixels(job.make_images()))

    def train() -> float:
        began = time.perf_counter()
        for chosen in torch.randperm(job.images).split(job.options.batch_size):
            _, loss = step(images[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return job.images / (time.perf_counter() - began)

    return train


def build_torch_vae(job: Job, channels_last: bool):
    """Build `standard` in PyTorch with the weights of the Keras layers; ValueError where it computes something else."""
    import torch
    from torch import nn
    from torch.nn import functional

    class TorchVAE(nn.Module):
        def __init__(self, hidden_dim: int, latent_dim: int):
            super().__init__()
            self.lstm_rows = nn.LSTM(28, hidden_dim, batch_first=True)
            self.lstm_columns = nn.LSTM(28, hidden_dim, batch_first=True)
            self.dropout = nn.Dropout(0.1)
            self.mean = nn.Linear(2 * 28 * hidden_dim, latent_dim)
            self.log_var = nn.Linear(2 * 28 * hidden_dim, latent_dim)
            self.dense1 = nn.Linear(latent_dim, 256)
            self.dense2 = nn.Linear(256, 7 * 7 * 64)
            self.tconv1 = nn.ConvTranspose2d(64, 64, 3, padding=1)
            self.tconv2 = nn.ConvTranspose2d(64, 32, 4, stride=2, padding=1)
            self.tconv3 = nn.ConvTranspose2d(32, 4, 3, padding=1)

        def forward(self, images, epsilon=None):
            """Return the logits (n, 28, 28), and the loss in nats per image."""
            rows, columns = self.lstm_rows(images)[0], self.lstm_columns(images.transpose(1, 2))[0]
            h = self.dropout(torch.cat([rows.flatten(1), columns.flatten(1)], dim=1))
            mean, log_var = self.mean(h), self.log_var(h)
            epsilon = torch.randn_like(mean) if epsilon is None else epsilon
            z = mean + torch.exp(0.5 * log_var) * epsilon
            h = functional.silu(self.dense2(functional.silu(self.dense1(z))))
            # A view in the memory format that the convolutions work in: nothing is copied.
            h = h.view(-1, 7, 7, 64).permute(0, 3, 1, 2) if channels_last else h.view(-1, 64, 7, 7)
            h = functional.silu(self.tconv1(h))
            h = functional.silu(self.tconv2(h))  # (batch, 32, 14, 14)
            logits = functional.pixel_shuffle(self.tconv3(h), 2)[:, 0]  # (batch, 28, 28)
            reconstruction = functional.binary_cross_entropy_with_logits(logits, images, reduction="sum")
            kl = 0.5 * (mean.square() + log_var.exp() - log_var - 1).sum()
            return logits, (reconstruction + kl) / len(images)

    vae = TorchVAE(job.options.hidden_dim, job.options.latent_dim)
    with np.load(job.reference) as reference:
        arrays = {name: torch.from_numpy(reference[name]) for name in reference.files}
    vae.load_state_dict(convert_weights(arrays, channels_last))
    if channels_last:
        vae = vae.to(memory_format=torch.channels_last)
    vae.eval()
    with torch.inference_mode():
        logits, loss = vae(arrays["images"], arrays["epsilon"])
    vae.train()
    differences = (logits - arrays["logits"]).abs().max(), (loss - arrays["loss"]).abs()
    if not max(differences) <= TOLERANCE:
        raise ValueError("PyTorch computes other logits, or another loss, than Keras")
    return vae


def convert_weights(arrays: dict, channels_last: bool) -> dict:
    """Return the weights of the Keras layers in PyTorch's order, under PyTorch's names."""
    weights = {}
    for lstm in ("lstm_rows", "lstm_columns"):
        kernel, recurrent, bias = (arrays[f"{lstm}_{index}"] for index in range(3))
        own = {"weight_ih_l0": kernel.T, "weight_hh_l0": recurrent.T, "bias_ih_l0": bias, "bias_hh_l0": 0 * bias}
        weights |= {f"{lstm}.{name}": array for name, array in own.items()}
    for name in ("mean", "log_var", "dense1", "dense2", "tconv1", "tconv2", "tconv3"):
        kernel = arrays[f"{name}_0"]  # of a convolution: (height, width, out, in)
        weights[f"{name}.weight"] = kernel.T if kernel.ndim == 2 else kernel.permute(3, 2, 0, 1)
        weights[f"{name}.bias"] = arrays[f"{name}_1"]
    if not channels_last:  # then the outputs of dense2 are ordered (64, 7, 7)
        for name in ("dense2.weight", "dense2.bias"):
            weights[name] = weights[name].unflatten(0, (49, 64)).transpose(0, 1).flatten(0, 1)
    return weights


def write_reference(job: Job) -> tuple[int, int]:
    """Write the weights of the Keras layers and what they compute. Return the multiply-adds to train and to decode."""
    vae = build_vae(job)
    import keras

    from model import logits_of, reconstruction_loss

    images = to_pixels(job.make_images()[: job.options.batch_size])
    mean, log_var = vae.encoder(images)
    epsilon = np.random.default_rng(0).standard_normal(mean.shape, np.float32)
    logits = logits_of(vae.decoder)(mean + keras.ops.exp(0.5 * log_var) * epsilon)
    loss = keras.ops.mean(reconstruction_loss(images, logits) + vae.prior.kl_loss(mean, log_var, None))
    layers = [*vae.encoder.layers, *vae.decoder.layers]
    weights = {f"{layer.name}_{i}": array for layer in layers for i, array in enumerate(layer.get_weights())}
    np.savez(job.reference, images=images, epsilon=epsilon, logits=logits, loss=loss, **weights)

    # Backward, the gradients of a layer's weights and of its input cost a forward pass each. Nobody needs the gradient
    # of the image.
    lstms = [layer for layer in vae.encoder.layers if isinstance(layer, keras.layers.LSTM)]
    unneeded = sum(28 * math.prod(layer.weights[0].shape) for layer in lstms)
    return 3 * sum(map(count_products, layers)) - unneeded, sum(map(count_products, vae.decoder.layers))


def count_products(layer) -> int:
    """Return the multiply-adds of a layer's forward pass, for one image: those of weights with its inputs.

    Each weight of a matrix or of a kernel is used once at each position: a row that an LSTM reads, or a pixel that a
    transposed convolution reads. (Products with the border are counted in full.)
    """
    if not layer.weights:
        return 0
    positions = math.prod(layer.input.shape[1:-1])
    return positions * sum(math.prod(weight.shape) for weight in layer.weights if len(weight.shape) > 1)


def prepare_decoding(job: Job) -> Callable[[], float]:
    """Decode latent vectors as generator.py does: images a second."""
    terminal.import_keras()  # as generator.py does
    decoder = build_vae(job).decoder
    z = np.random.default_rng(0).standard_normal((DECODED, decoder.input_shape[1]), np.float32)

    def decode() -> float:
        batches = iter(np.split(z, range(generator.BATCH, DECODED, generator.BATCH)))
        began = time.perf_counter()
        for _ in generator.decode("digits", decoder, batches, (DECODED, 1)).batches:
            pass
        return DECODED / (time.perf_counter() - began)

    return decode


def prepare_products(job: Job, framework: str) -> Callable[[], float]:
    """Multiply square matrices: multiply-adds a second, for the best size."""
    if framework == "torch":
        from torch import mm, randn
    else:
        terminal.import_keras()
        from tensorflow.linalg import matmul as mm
        from tensorflow.random import normal as randn
    pairs = {size: randn((2, size, size)) for size in PEAK_SIZES}

    def multiply() -> float:
        best = 0.0
        for size, (a, b) in pairs.items():
            for _ in range(PEAK_REPEATS):
                began = time.perf_counter()
                mm(a, b)
                best = max(best, size**3 / (time.perf_counter() - began))
        return best

    return multiply


# The results


def print_results(rates: dict[str, list[float]], options: Namespace, products: tuple[int, int]) -> None:
    """Print the peak, the decoding speed and the table of training. `products` has multiply-adds an image."""
    peaks = {name: max(rates.pop(name)) for name in PEAKS if name in rates}
    peak = max(peaks.values())
    listed = ", ".join(f"{2 * rate / 1e9:,.0f} GFLOP/s by {name}" for name, rate in peaks.items())
    print(f"\nThe peak (float32; a multiply-add is 2 FLOP): {listed}.")
    decoding = rates.pop(DECODING)
    print(f"generator.py decodes {summarise(decoding)} images a second ({products[1]:,} multiply-adds an image).")
    print(f"This is {share_of(peak, decoding, products[1])} of the peak.")
    command = shlex.join(["python", "benchmarks/speed.py", *sys.argv[1:]])
    print(f"\n**Training `{options.network}`, batches of {options.batch_size}** (`{command}`)\n")
    print(f"| trained by | images a second | {OURS} is faster, times | share of the peak |\n|---|---|---|---|")
    for name, own in rates.items():
        faster = "" if name == OURS else summarise([a / b for a, b in zip(rates[OURS], own, strict=True)], ".2f")
        print(f"| {name} | {summarise(own)} | {faster} | {share_of(peak, own, products[0])} |")
    print(f"\nMedians over the rounds (lowest–highest). {products[0]:,} multiply-adds an image, forward and backward.")
    torch = {name: statistics.median(own) for name, own in rates.items() if name.startswith("PyTorch")}
    if torch:
        print(f"The fastest of PyTorch's variants: {max(torch, key=torch.get)}.")


def summarise(values: list[float], form: str = ",.0f") -> str:
    """Return the median of the rounds, with the lowest and the highest."""
    return f"{statistics.median(values):{form}} ({min(values):{form}}–{max(values):{form}})"


def share_of(peak: float, rates: list[float], products: int) -> str:
    """Return the median rate as a share of the peak, for images that need so many multiply-adds."""
    return f"{statistics.median(rates) * products / peak:.0%}"


if __name__ == "__main__":
    terminal.run(main)
