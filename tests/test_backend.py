"""What depends on the backend and the number format, the cores that are counted, and the learning rate."""

import math
import os
from types import SimpleNamespace

import keras
import numpy as np
import pytest

import main
import model
from vae import backend, parallel
from vae.networks import NETWORKS
from vae.settings import complete

SIDES = (8, 8)


def test_the_cores_that_the_process_may_use_are_counted(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 5, 7}, raising=False)
    assert parallel.count_cores() == 3


def test_the_model_is_prepared_and_compiled_as_the_settings_say(monkeypatch, plain_keras):
    tensorflow = pytest.importorskip("tensorflow")
    asked, compiled = [], []
    monkeypatch.setattr(tensorflow.config.experimental, "enable_op_determinism", lambda: asked.append(True))
    monkeypatch.delenv("TF_NUM_INTRAOP_THREADS")
    backend.prepare(complete({}))
    assert asked == [] and "TF_NUM_INTRAOP_THREADS" not in os.environ  # TensorFlow uses all cores
    backend.prepare(complete({"deterministic": True, "precision": "mixed_float16"}))
    assert asked == [True] and keras.config.dtype_policy().name == "mixed_float16"
    for given in ({}, {"precision": "mixed_float16", "batch_size": 300}, {"importance_samples": 9}):
        vae = model.VAE(NETWORKS["dense"].build(SIDES, 6, 5), model.NormalPrior())
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
