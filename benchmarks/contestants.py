"""What `speed.py` times, each in a process of its own that is told over standard input when to run a round.

A contestant, named on the command line, sets itself up and warms up, says what it is, and waits; for each line that it
then reads it runs one round and answers with one line of JSON. While it waits it computes nothing.
"""

import json
import os
import resource
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

if os.environ.get("KERAS_BACKEND") == "torch":
    sys.modules["tensorflow"] = None  # or Keras would import it, if only to ask whether a value is of its making

sys.path.extend(map(str, Path(__file__).resolve().parents[:2]))  # behind the libraries, that they find their own

from vae import console

if sys.argv[1:] != ["PlainKeras"]:
    console.import_keras()  # as the scripts do, which sets more than Keras's defaults

import arithmetic
import keras
import numpy as np

import generator
import main
from vae import archive, data

WARMUP = 4000  # images that everyone trains on before the first round: twice as many as in one of our executions
DECODED = 20_000  # images in a round of decoding
PEAK_SIZES = (1024, 1536, 2048, 3072)  # rows and columns of the square matrices
PEAK_REPEATS = 5


class Job(NamedTuple):
    """What every contestant is told: where the files of the sitting are, and what to train."""

    folder: str  # holds images.npy and a trained model
    settings: dict  # as main.complete returns them
    images: int  # in an epoch, repeated where the data set has fewer
    epochs: int = 1

    def load_images(self) -> np.ndarray:
        return np.resize(np.load(Path(self.folder, "images.npy")), (self.images, 28, 28))

    def warmup(self) -> int:
        """How many images to warm up with: whole batches."""
        return min(self.images, -(-WARMUP // self.settings["batch_size"]) * self.settings["batch_size"])

    def load_models(self) -> tuple[keras.Model, keras.Model]:
        run = Path(self.folder, "benchmark")
        encoder = archive.load_model(run, "encoder", (28, 28), [(None,), (None,)])
        return encoder, archive.load_model(run, "decoder", (None,), [(28, 28)])


class Reference:
    """No contestant: counts the multiply-adds, and keeps what Keras finds for the PyTorch twin to be checked with."""

    def __init__(self, job: Job):
        import model

        encoder, decoder = job.load_models()
        images = data.pixels(job.load_images()[: job.settings["batch_size"]])
        mean, log_var = map(keras.ops.convert_to_numpy, encoder(images))
        noise = np.random.default_rng(0).standard_normal(mean.shape, np.float32)
        logits = keras.Model(decoder.input, decoder.get_layer("logits").output)(mean + np.exp(0.5 * log_var) * noise)
        loss = float(keras.ops.mean(model.reconstruction_loss(images, logits) + model.kl_loss(mean, log_var)))
        np.savez(Path(job.folder, "reference.npz"), images=images, noise=noise, logits=logits, loss=loss)
        counts = {"training": arithmetic.training(encoder, decoder), "decoding": arithmetic.forward(decoder)}
        self.facts = counts | {"versions": f"Keras {keras.__version__}, {_version(keras.backend.backend())}"}


class Stopwatch(keras.callbacks.Callback):
    """Times a `fit` from the start of its first epoch to the end of its last step."""

    def on_train_begin(self, logs=None):
        self._began = time.perf_counter()

    def on_train_batch_end(self, batch, logs=None):
        self.seconds = time.perf_counter() - self._began


class Project:
    """This project: the model that main.py makes, given the batches that main.py gives it."""

    def __init__(self, job: Job):
        from vae.training import Batches

        self.job = job
        size = job.settings["batch_size"]
        self.vae = main.make_model(job.settings, job.images // size * job.epochs, main.shards(job.settings, size))
        images = job.load_images()
        self.fit(Batches(images[: job.warmup()], size, 0, shuffle=True))
        self.batches = Batches(images, size, 0, shuffle=True)
        self.facts = {"what": _compiled(self.vae)}

    def fit(self, batches, epochs: int = 1) -> float:
        watch = Stopwatch()
        # What main.py's own callback does before an epoch is the new order.
        start = keras.callbacks.LambdaCallback(on_epoch_begin=lambda epoch, logs: batches.start(epoch))
        self.vae.fit(batches, epochs=epochs, callbacks=[watch, start], verbose=0)
        return watch.seconds

    def round(self) -> dict:
        return _trained(self.job, self.fit(self.batches, self.job.epochs))


class PlainVAE(keras.Model):
    """The same encoder and decoder, joined in the fewest lines."""

    def __init__(self, encoder: keras.Model, decoder: keras.Model):
        super().__init__()
        self.encoder = encoder
        self.decoder = keras.Model(decoder.input, decoder.get_layer("logits").output)
        self.noise = keras.random.SeedGenerator(0)

    def call(self, images):
        mean, log_var = self.encoder(images)
        epsilon = keras.random.normal(keras.ops.shape(mean), seed=self.noise)
        return self.decoder(mean + keras.ops.exp(0.5 * log_var) * epsilon), mean, log_var

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        logits, mean, log_var = y_pred
        entropy = keras.ops.binary_crossentropy(x, logits, from_logits=True)
        kl = 0.5 * (keras.ops.square(mean) + keras.ops.exp(log_var) - log_var - 1.0)
        return keras.ops.mean(keras.ops.sum(entropy, axis=(1, 2)) + keras.ops.sum(kl, axis=1))


class PlainKeras:
    """Keras's `fit` with Keras's defaults."""

    def __init__(self, job: Job):
        import model

        self.job = job
        keras.utils.set_random_seed(0)
        names = ("network", "hidden_dim", "latent_dim")
        self.vae = PlainVAE(*model.build(*(job.settings[name] for name in names)))
        self.vae.compile(optimizer=keras.optimizers.Adam(job.settings["learning_rate"]))
        self.images = data.pixels(job.load_images())
        self.fit(self.images[: job.warmup()])
        self.facts = {"what": _compiled(self.vae)}

    def fit(self, images: np.ndarray) -> float:
        watch = Stopwatch()
        self.vae.fit(images, batch_size=self.job.settings["batch_size"], callbacks=[watch], verbose=0)
        return watch.seconds

    def round(self) -> dict:
        return _trained(self.job, self.fit(self.images))


class PyTorch:
    """The same network in PyTorch, with its fused Adam."""

    def __init__(self, job: Job, channels_last: bool, compiled: bool):
        import torch
        import torch_twin

        torch.manual_seed(0)
        self.job = job
        twin = torch_twin.Twin(*job.load_models(), torch.channels_last if channels_last else torch.contiguous_format)
        with np.load(Path(job.folder, "reference.npz")) as reference:
            torch_twin.check(twin, **reference)
        self.optimizer = torch.optim.Adam(twin.parameters(), job.settings["learning_rate"], eps=1e-7, fused=True)
        self.twin = torch.compile(twin) if compiled else twin
        self.images = torch.from_numpy(data.pixels(job.load_images()))
        self.train(torch.arange(job.warmup()))
        self.facts = {"what": f"{torch.get_num_threads()} threads", "versions": _version("torch")}

    def train(self, order) -> float:
        began = time.perf_counter()
        for rows in order.split(self.job.settings["batch_size"]):
            _, loss = self.twin(self.images[rows])
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
        return time.perf_counter() - began

    def round(self) -> dict:
        import torch

        return _trained(self.job, self.train(torch.randperm(self.job.images)))


class Decoding:
    """generator.py's decoding of many latent vectors."""

    def __init__(self, job: Job):
        _, self.decoder = job.load_models()
        rng = np.random.default_rng(0)
        self.z = rng.standard_normal((DECODED, self.decoder.input_shape[1]), np.float32)
        self.facts = {"what": f"batches of {generator.BATCH}"}
        self.round()

    def round(self) -> dict:
        began = time.perf_counter()
        batches = np.split(self.z, range(generator.BATCH, DECODED, generator.BATCH))
        for _ in generator.decoded(self.decoder, iter(batches), DECODED):
            pass
        return {"rate": DECODED / (time.perf_counter() - began)}


class Peak:
    """The most multiply-adds a second, in units of 1e9, that float32 matrix products reach here."""

    def __init__(self, job: Job, framework: str):
        products = {"tensorflow": _tensorflow_products, "torch": _torch_products}
        self.products = list(products[framework]())
        self.facts = {"versions": _version(framework)}
        self.round()

    def round(self) -> dict:
        best = 0.0
        for size, product in self.products:
            for _ in range(PEAK_REPEATS):
                began = time.perf_counter()
                product()
                best = max(best, size**3 / (time.perf_counter() - began))
        return {"rate": best / 1e9}


def _tensorflow_products() -> Iterator[tuple]:
    import tensorflow

    for size in PEAK_SIZES:
        a, b = tensorflow.random.normal((2, size, size))
        yield size, lambda a=a, b=b: tensorflow.linalg.matmul(a, b).numpy().flat[0]


def _torch_products() -> Iterator[tuple]:
    import torch

    for size in PEAK_SIZES:
        a, b = torch.randn(2, size, size)
        out = torch.empty(size, size)
        yield size, lambda a=a, b=b, out=out: torch.mm(a, b, out=out)


def _trained(job: Job, seconds: float) -> dict:
    images = job.images * job.epochs
    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return {"rate": images / seconds, "seconds": seconds, "images": images, "bytes": largest}


def _compiled(vae: keras.Model) -> str:
    return f"jit_compile={vae.jit_compile}, steps_per_execution={vae.steps_per_execution}"


def _version(framework: str) -> str:
    spelling = {"tensorflow": "TensorFlow", "torch": "PyTorch", "jax": "JAX"}
    return f"{spelling[framework]} {__import__(framework).__version__}"


CONTESTANTS = {kind.__name__: kind for kind in (Reference, Project, PlainKeras, PyTorch, Decoding, Peak)}


def serve() -> None:
    """Read what to be, say that it is ready, and run a round for every line that comes."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print must not get between the answers
    job, arguments = json.loads(sys.stdin.readline())
    contestant = CONTESTANTS[sys.argv[1]](Job(**job), **arguments)
    print(json.dumps(contestant.facts), file=answers, flush=True)
    for _ in sys.stdin:
        print(json.dumps(contestant.round()), file=answers, flush=True)


if __name__ == "__main__":
    serve()
