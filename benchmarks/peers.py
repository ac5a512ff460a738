"""Seconds of training until the test losses of two well-known VAEs are passed: python benchmarks/speed.py --peers.

The VAE of pytorch/examples (basic VAE) and that of keras.io (convolutional VAE) are trained with their authors'
networks, optimizers, batches and epochs, in code of our own, and beside them this project. All see the same images of
MNIST, in memory. (keras.io trains on the test images as well; here nobody does.) Each is trained in a process of its
own, one after the other. Losses are negative ELBOs of all test images with one posterior sample each, in nats per
image. Seconds are those of training, compilation included, without imports, reading and the test pass.
"""

import csv
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np

from vae import terminal
from vae.data import load
from vae.data.dataset import to_pixels

PROJECT = Path(__file__).resolve().parent.parent
BATCH = 128  # of both peers
PYTORCH_EPOCHS, KERAS_EPOCHS = 10, 30


def report(names: list[str], data: str | None) -> None:
    """Train those of `NAMES`, or all, and print a table."""
    source = ["--data", data] if data else ["--dataset", "mnist"]
    dataset = load.load(load.Source(None if data else "mnist", data))
    images = to_pixels(dataset.train_images), to_pixels(dataset.test_images)
    to_pass = []  # test losses of the peers
    print("\n| trained by | seconds of training | test loss | passes the peers after, seconds |\n|---|---|---|---|")
    for name in names or NAMES:
        if name in PEERS:
            what, train = PEERS[name]
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
                history = [pool.submit(train, *images).result()]
        else:
            history = train_project([*source, *([] if name == "default" else ["--epochs", name])])
            what = f"this project, `--epochs {len(history)}`{' (its default)' if name == 'default' else ''}"
        passes = [next((f"{end:,.1f}" for end, own in history if own < loss), "never") for loss in to_pass]
        seconds, loss = history[-1]
        print(f"| {what} | {seconds:,.1f} | {loss:.2f} | {', '.join(passes)} |", flush=True)
        to_pass += [loss] if name in PEERS else []


def train_project(flags: list[str]) -> list[tuple[float, float]]:
    """Train as `python main.py` does with these flags: seconds of training and test loss after each epoch."""
    with tempfile.TemporaryDirectory() as folder:
        variables = os.environ | {"VAE_CHECKPOINTS": folder}
        command = [sys.executable, PROJECT / "main.py", "--name", "run", *flags]
        subprocess.run(command, env=variables, stdout=subprocess.DEVNULL, check=True)
        with open(Path(folder, "run", "history.csv"), newline="") as file:
            rows = list(csv.DictReader(file))
    seconds = np.cumsum([float(row["seconds"]) for row in rows])
    return [(end, float(row["test_general_loss"])) for end, row in zip(seconds, rows, strict=True)]


def train_pytorch_example(train_images: np.ndarray, test_images: np.ndarray) -> tuple[float, float]:
    """Train the VAE of pytorch/examples on images (n, 28, 28) in [0, 1]: seconds, and the test loss."""
    import torch
    from torch import nn
    from torch.nn import functional

    class Example(nn.Module):
        def __init__(self):
            super().__init__()
            self.hidden, self.mean, self.log_var = nn.Linear(784, 400), nn.Linear(400, 20), nn.Linear(400, 20)
            self.decoder = nn.Sequential(nn.Linear(20, 400), nn.ReLU(), nn.Linear(400, 784), nn.Sigmoid())

        def forward(self, images):
            """Return the loss of images (n, 784): the sum over them, as its authors have it."""
            h = functional.relu(self.hidden(images))
            mean, log_var = self.mean(h), self.log_var(h)
            pixels = self.decoder(mean + torch.exp(0.5 * log_var) * torch.randn_like(mean))
            kl = -0.5 * torch.sum(1 + log_var - mean.square() - log_var.exp())
            return functional.binary_cross_entropy(pixels, images, reduction="sum") + kl

    torch.manual_seed(1)
    images, held_out = (torch.from_numpy(part).flatten(1) for part in (train_images, test_images))
    vae = Example()
    optimizer = torch.optim.Adam(vae.parameters(), lr=1e-3)
    began = time.perf_counter()
    for _ in range(PYTORCH_EPOCHS):
        for rows in torch.randperm(len(images)).split(BATCH):
            optimizer.zero_grad()
            vae(images[rows]).backward()
            optimizer.step()
    seconds = time.perf_counter() - began
    with torch.inference_mode():
        return seconds, vae(held_out).item() / len(held_out)


def train_keras_example(train_images: np.ndarray, test_images: np.ndarray) -> tuple[float, float]:
    """Train the convolutional VAE of keras.io on images (n, 28, 28) in [0, 1]: seconds, and the test loss.

    Its loss is that of model.VAE: sums over pixels and latents, means over images. Keras chooses how to compile it.
    """
    keras = terminal.import_keras()
    from keras import layers

    from model import VAE, NormalPrior, end_decoder, end_encoder, transposed_conv

    keras.utils.set_random_seed(0)
    image = keras.Input((28, 28))
    h = layers.Reshape((28, 28, 1))(image)
    for filters in (32, 64):
        h = layers.Conv2D(filters, 3, strides=2, padding="same", activation="relu")(h)
    h = layers.Dense(16, activation="relu")(layers.Flatten()(h))
    encoder = end_encoder(image, h, latent_dim=2)
    z = keras.Input((2,))
    h = layers.Reshape((7, 7, 64))(layers.Dense(7 * 7 * 64, activation="relu")(z))
    for filters in (64, 32):
        h = transposed_conv(filters, 3, 2, f"tconv{filters}", "relu")(h)
    decoder = end_decoder(z, transposed_conv(1, 3, 1, "tconv1")(h), (28, 28))
    vae = VAE((encoder, decoder), NormalPrior())
    vae.compile(keras.optimizers.Adam())
    began = time.perf_counter()
    vae.fit(train_images, epochs=KERAS_EPOCHS, batch_size=BATCH, verbose=0)
    seconds = time.perf_counter() - began
    return seconds, vae.evaluate(test_images, batch_size=1000, verbose=0, return_dict=True)["general_loss"]


PEERS = {
    "pytorch": (f"pytorch/examples, {PYTORCH_EPOCHS} epochs, in PyTorch", train_pytorch_example),
    "keras": (f"keras.io, {KERAS_EPOCHS} epochs, in Keras", train_keras_example),
}
NAMES = (*PEERS, "1", "5", "15", "default")  # peers, and epochs of this project
