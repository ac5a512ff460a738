"""What depends on the backend and the processor: two shards of a batch compute what the whole batch does."""

import math
import os
from types import SimpleNamespace

import keras
import numpy as np
import pytest
from keras import layers, ops

import main
import model
from vae import backend, parallel
from vae.networks import NETWORKS
from vae.settings import complete

SIDES = (8, 8)
IN_SHARDS = [name for name, network in NETWORKS.items() if network.in_shards]


def build(name: str, shards: int, **settings) -> model.VAE:
    """Build a VAE for small images, always with the same weights."""
    keras.utils.set_random_seed(1)
    prior = model.MixturePrior(3, 5) if name == "standard" else model.NormalPrior()
    return backend.choose_vae(shards)(NETWORKS[name].build(SIDES, 6, 5), prior, **settings)


def to_numpy(tensors) -> list[np.ndarray]:
    return [ops.convert_to_numpy(tensor) for tensor in tensors]


def train(vae: model.VAE, images: np.ndarray) -> tuple[dict[str, float], list[np.ndarray]]:
    """Return the losses of one training step and its gradients."""
    before = to_numpy(vae.trainable_variables)
    vae.compile(keras.optimizers.SGD(1.0), run_eagerly=True)
    losses = vae.train_on_batch(images, return_dict=True)
    return losses, [old - new for old, new in zip(before, to_numpy(vae.trainable_variables), strict=True)]


@pytest.mark.parametrize("name, count, samples", [*((name, 7, 1) for name in IN_SHARDS), ("dense", 2, 3)])
def test_two_shards_have_the_losses_and_gradients_of_the_whole_batch(name, count, samples, monkeypatch):
    rng, place = np.random.default_rng(4), [0]
    noise = rng.standard_normal((50, 3, 5), np.float32)

    def normal(shape, seed):  # the image at each place in a batch has the same noise, in one call or in several
        place[0] += int(shape[0])
        return ops.convert_to_tensor(noise[place[0] - int(shape[0]) : place[0], : shape[1]])

    monkeypatch.setattr(keras.random, "normal", normal)
    images, results, single = rng.random((count, *SIDES), np.float32), [], []
    for shards in (1, 2):
        vae = build(name, shards, beta=2.0 if samples == 1 else 1.0, variance=0.1, importance_samples=samples)
        for layer in vae.encoder.layers:
            if isinstance(layer, layers.Dropout):
                layer.rate = 0.0  # its noise cannot be the same
        place[0] = 0
        single.append(to_numpy(vae(images[:1])))  # one image cannot be divided, and is only measured
        place[0] = 0
        results.append(train(vae, images))
    assert results[1][0] == pytest.approx(results[0][0], rel=1e-5)
    for theirs, ours in zip(results[0][1], results[1][1], strict=True):
        assert np.abs(theirs).max() > 0
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5 * max(1e-2, np.abs(theirs).max()))
    for theirs, ours in zip(*single, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "given, machine, shards",
    [
        ({}, (2, "tensorflow", []), 2),
        ({}, (4, "tensorflow", []), 1),
        ({}, (2, "jax", []), 1),
        ({}, (2, "tensorflow", ["gpu:0"]), 1),
        ({"batch_size": 49}, (2, "tensorflow", []), 1),
        ({"network": "batchnorm"}, (2, "tensorflow", []), 1),
        ({"shards": 2}, (4, "tensorflow", []), 2),  # a resumed run keeps what it has: its noise depends on it
        ({"shards": 1}, (2, "tensorflow", []), 1),
    ],
)
def test_shards_and_one_thread_an_operation_on_two_cores_alone(given, machine, shards, monkeypatch, plain_keras):
    cores, own, devices = machine
    monkeypatch.setattr(parallel, "count_cores", lambda: cores)
    monkeypatch.setattr(backend.terminal, "find_backend", lambda: own)
    monkeypatch.setattr(keras.distribution, "list_devices", lambda kind=None: devices if kind == "gpu" else ["cpu:0"])
    monkeypatch.setenv("KERAS_BACKEND", "tensorflow")
    monkeypatch.delenv("TF_NUM_INTRAOP_THREADS")
    options = complete({"components": 3} | given)
    backend.prepare(options)
    one_thread = cores == 2 and (shards == 2 or devices)
    assert (options.shards, os.environ.get("TF_NUM_INTRAOP_THREADS")) == (shards, "1" if one_thread else None)


def test_the_cores_that_the_process_may_use_are_counted(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 5, 7}, raising=False)
    assert parallel.count_cores() == 3


def test_the_model_is_prepared_and_compiled_as_the_settings_say(monkeypatch, plain_keras):
    tensorflow = pytest.importorskip("tensorflow")
    asked, compiled = [], []
    monkeypatch.setattr(tensorflow.config.experimental, "enable_op_determinism", lambda: asked.append(True))
    backend.prepare(complete({}))
    assert asked == []
    backend.prepare(complete({"deterministic": True, "precision": "mixed_float16"}))
    assert asked == [True] and keras.config.dtype_policy().name == "mixed_float16"
    for given in ({}, {"precision": "mixed_float16", "batch_size": 300}, {"importance_samples": 9}):
        vae = build("dense", 1)
        backend.compile_vae(vae, keras.optimizers.Adam(0.1), complete(given))
        assert vae.optimizer.built and vae.jit_compile == (keras.backend.backend() == "jax")
        compiled.append((type(vae.optimizer).__name__, vae.steps_per_execution))
    assert compiled == [("Adam", 5), ("LossScaleOptimizer", 3), ("Adam", 1)]  # or small gradients would be zero


@pytest.mark.parametrize("images, epochs, warmup", [(5, 1, 1), (199, 1, 25), (1999, 1, 100), (1999, 40, 400)])
def test_the_learning_rate_rises_for_a_hundred_steps_or_a_quarter_of_a_short_run_and_falls(images, epochs, warmup):
    options = complete({"network": "dense", "batch_size": 2, "epochs": epochs, "hidden_dim": 1, "latent_dim": 1})
    dataset = SimpleNamespace(train_images=np.zeros((images, 8, 8)), image_shape=SIDES)
    rate, steps = main.build_vae(options, dataset).optimizer._learning_rate, math.ceil(images / 2) * epochs
    found = [float(rate(step)) for step in (0, warmup / 2, warmup, (warmup + steps) / 2, steps)]
    np.testing.assert_allclose(found, [0, 0.003, 0.006, 0.003, 0], atol=1e-8)
