"""Time training on the CPU, against plain Keras and PyTorch: python benchmarks/speed.py (see its --help).

All train `standard` on the same images with Adam, with the prior N(0, I), the same batch size and on the same cores.
Each has a process of its own. It compiles and warms up first. Then they take turns: round 1 of each, round 2 of each,
and so on; while one runs, the others sleep. "Times faster" is the median of the ratios within each round.

PyTorch runs with what its tuning guide advises for a CPU: fused Adam, channels_last, torch.compile, and OpenMP threads
bound to cores. To use fewer cores, start the script with `taskset`. It needs Linux. With --peers, see peers.py.
"""

import importlib.util
import multiprocessing
import os
import platform
import re
import shlex
import statistics
import sys
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

import peers

import main as project
from vae import settings, terminal
from vae.data.dataset import Dataset, to_pixels
from vae.parallel import count_cores
from vae.terminal import UserError

IMAGES_A_ROUND = 24_000
PAUSE = 0.5  # seconds before a round; the threads of the process before it fall asleep
TOLERANCE = 1e-3  # of each logit, and of the loss in nats per image, between PyTorch and Keras
PROCESSES = multiprocessing.get_context("spawn")
OURS = "this project"


@dataclass(frozen=True)
class Job:
    """What each contestant is given."""

    options: Namespace  # every setting of the run, as vae.settings has them
    images: np.ndarray  # of a round: random bytes (n, 28, 28), as what they show does not change the speed
    reference: dict[str, np.ndarray]  # the weights of the Keras layers, and what they compute


def main() -> None:
    """Command line -> contestants -> rounds in turn -> table."""
    options = parse()
    if importlib.util.find_spec("torch") is None:
        raise UserError("PyTorch is not installed; pip install -r benchmarks/requirements.txt")
    os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
    print("; ".join([describe_machine(), *(f"{name} {version(name)}" for name in ("tensorflow", "keras", "torch"))]))
    if options.peers is not None:
        return peers.report(options.peers, options.data)
    own = settings.complete({"prior": "normal"})
    count = options.steps * own.batch_size if options.steps else IMAGES_A_ROUND
    job = Job(own, np.random.default_rng(0).integers(0, 256, (count, 28, 28), np.uint8), {})
    with ProcessPoolExecutor(1, PROCESSES) as pool:
        job.reference.update(pool.submit(compute_reference, job).result())
    return print_results(take_turns(job, options.rounds), job)


def parse() -> Namespace:
    """Read the command line."""
    parser = terminal.Parser("benchmarks/speed.py", description="Time training, against others in turn.")
    add, whole = parser.add_argument, terminal.positive_integer
    add("--rounds", type=whole, default=5, metavar="N", help="rounds of each (default: 5)")
    steps = f"training steps in a round (default: as many as {IMAGES_A_ROUND:,} images make)"
    add("--steps", type=whole, metavar="N", help=steps)
    peer = "instead: train two known VAEs and this project on MNIST; some of"
    add("--peers", nargs="*", choices=peers.NAMES, help=f"{peer} {', '.join(peers.NAMES)} (without a name: all)")
    add("--data", metavar="PATH", help="MNIST for --peers (default: found or downloaded)")
    return parser.parse_args()


def describe_machine() -> str:
    """Return the cores that are used, and how busy they were."""
    found = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return f"cores: {count_cores()} ({found[1] if found else platform.machine()}), load {os.getloadavg()[0]:.1f}"


# The processes: a contestant is a pool of one, which sleeps between its rounds


def keep_round(prepare: Callable, job: Job) -> None:
    """In the contestant's process: prepare it, and run a round to compile and to warm up."""
    global run_prepared
    run_prepared = prepare(job)
    run_prepared()


def run_round() -> float:
    """In the contestant's process: run a round, and return its rate."""
    return run_prepared()


def take_turns(job: Job, rounds: int) -> dict[str, list[float]]:
    """Start all contestants, and let each run a round in turn. Return the rates of each.

    A compiled PyTorch that does not start is left out, as it needs a C++ compiler. Other errors are raised.
    """
    with ExitStack() as stack:
        pools = {}
        for name, prepare in CONTESTANTS.items():
            print(f"-> {name}: starting", file=sys.stderr)
            pool = stack.enter_context(ProcessPoolExecutor(1, PROCESSES))
            try:
                pool.submit(keep_round, prepare, job).result()
                pools[name] = pool
            except Exception as error:
                if "compiled" not in name:
                    raise
                print(f"-> {name}: left out ({error})", file=sys.stderr)
        rates = {name: [] for name in pools}
        for number in range(1, rounds + 1):
            for name, pool in pools.items():
                time.sleep(PAUSE)
                rates[name].append(pool.submit(run_round).result())
                print(f"-> {name}: round {number}: {rates[name][-1]:,.0f} images a second", file=sys.stderr)
    return rates


# The contestants. Each function prepares one, and returns a function that runs a round and returns its rate.


def prepare_project(job: Job) -> Callable[[], float]:
    """Train as main.py does: images a second."""
    vae = build_vae(job)
    from vae.callbacks import Reseed

    batches = project.make_batches(job.images, job.options, job.options.batch_size, shuffle=True)
    return partial(time_fit, vae, len(job.images), x=batches, shuffle=False, callbacks=[Reseed(batches, seed=0)])


def build_vae(job: Job):
    """Build the VAE of main.py, compiled."""
    return project.build_vae(job.options, Dataset("random", job.images, None, None, job.images, None, "", "random"))


def prepare_plain_keras(job: Job) -> Callable[[], float]:
    """Train the VAE of model.py by Keras's `fit` and Adam, with their defaults: images a second."""
    import keras

    from model import VAE, NormalPrior

    keras.utils.set_random_seed(0)
    options = job.options
    vae = VAE(settings.NETWORKS["standard"].build((28, 28), options.hidden_dim, options.latent_dim), NormalPrior())
    vae.compile(keras.optimizers.Adam(options.learning_rate))
    return partial(time_fit, vae, len(job.images), x=to_pixels(job.images), batch_size=options.batch_size)


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


def prepare_torch(job: Job, compiles: bool = False, channels_last: bool = False) -> Callable[[], float]:
    """Train the same network in PyTorch: images a second; ValueError where it computes something else."""
    os.environ |= {"OMP_NUM_THREADS": str(count_cores()), "OMP_PROC_BIND": "CLOSE", "OMP_SCHEDULE": "STATIC"}
    import torch

    torch.manual_seed(0)
    arrays = {name: torch.as_tensor(array) for name, array in job.reference.items()}
    vae = build_torch_vae(arrays, channels_last).eval()
    with torch.inference_mode():
        logits, loss = vae(arrays["images"], arrays["epsilon"])
    if not max((logits - arrays["logits"]).abs().max(), (loss - arrays["loss"]).abs()) <= TOLERANCE:
        raise ValueError("PyTorch computes other logits, or another loss, than Keras")
    vae.train()
    optimizer = torch.optim.Adam(vae.parameters(), job.options.learning_rate, eps=1e-7, fused=True)
    step = torch.compile(vae) if compiles else vae
    images = torch.from_numpy(to_pixels(job.images))

    def train() -> float:
        began = time.perf_counter()
        for chosen in torch.randperm(len(images)).split(job.options.batch_size):
            _, loss = step(images[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return len(images) / (time.perf_counter() - began)

    return train


def build_torch_vae(arrays: dict, channels_last: bool):
    """Build `standard` in PyTorch with the weights of the Keras layers, which are called LAYER_0 and so on."""
    import torch
    from torch import nn
    from torch.nn import functional

    def load(layer, *weights):
        layer.load_state_dict(dict(zip(layer.state_dict(), weights, strict=True)))
        return layer

    def lstm(name: str):
        kernel, recurrent, bias = (arrays[f"{name}_{index}"] for index in range(3))
        layer = nn.LSTM(len(kernel), len(recurrent), batch_first=True)
        return load(layer, kernel.T, recurrent.T, bias, torch.zeros_like(bias))

    def dense(name: str):
        kernel, bias = arrays[f"{name}_0"], arrays[f"{name}_1"]
        if name == "dense2" and not channels_last:  # then its outputs are ordered (channels, 7, 7)
            kernel = kernel.unflatten(1, (49, -1)).transpose(1, 2).flatten(1)
            bias = bias.unflatten(0, (49, -1)).T.flatten()
        return load(nn.Linear(*kernel.shape), kernel.T, bias)

    def transposed_conv(name: str, strides: int):
        kernel = arrays[f"{name}_0"].permute(3, 2, 0, 1)  # (in, out, height, width)
        layer = nn.ConvTranspose2d(*kernel.shape[:3], strides, padding=1)
        return load(layer, kernel, arrays[f"{name}_1"])

    class TorchVAE(nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm_rows, self.lstm_columns = lstm("lstm_rows"), lstm("lstm_columns")
            self.dropout = nn.Dropout(0.1)
            self.mean, self.log_var = dense("mean"), dense("log_var")
            self.dense1, self.dense2 = dense("dense1"), dense("dense2")
            self.tconv1, self.tconv2 = transposed_conv("tconv1", 1), transposed_conv("tconv2", 1)
            self.tconv3, self.tconv4 = transposed_conv("tconv3", 2), transposed_conv("tconv4", 1)

        def forward(self, images, epsilon=None):
            """Return the logits (n, 28, 28), and the loss in nats per image."""
            rows, columns = self.lstm_rows(images)[0], self.lstm_columns(images.transpose(1, 2))[0]
            h = self.dropout(torch.cat([rows.flatten(1), columns.flatten(1)], dim=1))
            mean, log_var = self.mean(h), self.log_var(h)
            epsilon = torch.randn_like(mean) if epsilon is None else epsilon
            z = mean + torch.exp(0.5 * log_var) * epsilon
            h = functional.silu(self.dense2(functional.silu(self.dense1(z))))
            # A view in the memory format that the convolutions work in: nothing is copied.
            h = h.unflatten(1, (7, 7, -1)).permute(0, 3, 1, 2) if channels_last else h.unflatten(1, (-1, 7, 7))
            h = functional.silu(self.tconv1(h))  # (batch, 64, 7, 7)
            h = h + functional.silu(self.tconv2(h))
            h = functional.silu(self.tconv3(h))  # (batch, 32, 14, 14)
            logits = functional.pixel_shuffle(self.tconv4(h), 2)[:, 0]  # (batch, 28, 28)
            reconstruction = functional.binary_cross_entropy_with_logits(logits, images, reduction="sum")
            kl = 0.5 * (mean.square() + log_var.exp() - log_var - 1).sum()
            return logits, (reconstruction + kl) / len(images)

    vae = TorchVAE()
    return vae.to(memory_format=torch.channels_last) if channels_last else vae


def compute_reference(job: Job) -> dict[str, np.ndarray]:
    """Return the weights of the Keras layers, called LAYER_0 and so on, and what they compute from some images."""
    vae = build_vae(job)
    import keras

    from model import logits_of, reconstruction_loss

    images = to_pixels(job.images[: job.options.batch_size])
    mean, log_var = vae.encoder(images)
    epsilon = np.random.default_rng(0).standard_normal(mean.shape, np.float32)
    logits = logits_of(vae.decoder)(mean + keras.ops.exp(0.5 * log_var) * epsilon)
    loss = keras.ops.mean(reconstruction_loss(images, logits) + vae.prior.kl_loss(mean, log_var, None))
    layers = [*vae.encoder.layers, *vae.decoder.layers]
    weights = {f"{layer.name}_{i}": array for layer in layers for i, array in enumerate(layer.get_weights())}
    return weights | {"images": images, "epsilon": epsilon, "logits": logits.numpy(), "loss": loss.numpy()}


def print_results(rates: dict[str, list[float]], job: Job) -> None:
    """Print the table."""
    command = shlex.join(["python", "benchmarks/speed.py", *sys.argv[1:]])
    print(f"\n**Training `standard`, batches of {job.options.batch_size}** (`{command}`)\n")
    print(f"| trained by | images a second | {OURS} is faster, times |\n|---|---|---|")
    for name, own in rates.items():
        faster = "" if name == OURS else summarise([a / b for a, b in zip(rates[OURS], own, strict=True)], ".2f")
        print(f"| {name} | {summarise(own)} | {faster} |")
    print(f"\nRounds: {len(rates[OURS])}, of {len(job.images):,} images each. Medians (lowest–highest).")


def summarise(values: list[float], form: str = ",.0f") -> str:
    """Return the median of the rounds, with the lowest and the highest."""
    return f"{statistics.median(values):{form}} ({min(values):{form}}–{max(values):{form}})"


CONTESTANTS = {
    OURS: prepare_project,
    "plain Keras `fit`, its defaults": prepare_plain_keras,
    "PyTorch as it comes": prepare_torch,
    "PyTorch, channels_last": partial(prepare_torch, channels_last=True),
    "PyTorch, compiled": partial(prepare_torch, compiles=True),
    "PyTorch, compiled, channels_last": partial(prepare_torch, compiles=True, channels_last=True),
}

if __name__ == "__main__":
    terminal.run(main)
