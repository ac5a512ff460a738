"""`FastVAE` and the fast Adam compute the same as model.VAE and the Adam of Keras."""

import keras
import numpy as np
import pytest
from keras import layers, ops

import model
from vae import fast
from vae.networks import NETWORKS

SIDES = (8, 8)
IN_SHARDS = [name for name, network in NETWORKS.items() if network.in_shards]


@pytest.fixture
def rng():
    return np.random.default_rng(4)


def build(name: str, **settings) -> model.VAE:
    """Build the plain VAE of a network, for small images."""
    keras.utils.set_random_seed(1)
    prior = model.MixturePrior(3, 5) if name == "standard" else model.NormalPrior()
    return model.VAE(NETWORKS[name].build(SIDES, 6, 5), prior, **settings)


def to_numpy(tensors) -> list[np.ndarray]:
    return [ops.convert_to_numpy(tensor) for tensor in tensors]


def train(vae: model.VAE, images: np.ndarray) -> tuple[dict[str, float], list[np.ndarray]]:
    """Return the losses of one training step and its gradients; the weights are put back."""
    before = to_numpy(vae.trainable_variables)
    vae.compile(keras.optimizers.SGD(1.0), run_eagerly=True)
    losses = vae.train_on_batch(images, return_dict=True)
    gradients = [old - new for old, new in zip(before, to_numpy(vae.trainable_variables), strict=True)]
    for variable, value in zip(vae.trainable_variables, before, strict=True):
        variable.assign(value)
    return losses, gradients


@pytest.fixture
def shared_noise(monkeypatch, rng) -> None:
    """Give the image at each place in a batch the same noise, in one call or in several; `reseed` starts again."""
    noise, place = rng.standard_normal((50, 3, 5), np.float32), [0]

    def normal(shape, seed):
        place[0] += int(shape[0])
        return ops.convert_to_tensor(noise[place[0] - int(shape[0]) : place[0], : shape[1]])

    monkeypatch.setattr(keras.random, "normal", normal)
    monkeypatch.setattr(model.VAE, "reseed", lambda vae: place.__setitem__(0, 0))


@pytest.mark.parametrize("samples, beta", [(1, 2.0), (3, 1.0)])
def test_images_that_are_there_twice_do_not_count(samples, beta, shared_noise, rng):
    images = rng.random((7, *SIDES), np.float32)
    vae = build("standard", beta=beta, variance=0.1, importance_samples=samples)
    vae.encoder.get_layer("dropout").rate = 0.0  # its noise cannot be the same
    vae.reseed()
    losses, gradients = train(vae, images)
    vae.reseed()
    found = train(fast.ParallelVAE(*fast._take_apart(vae)), (np.resize(images, (9, *SIDES)), np.empty((0, 7))))
    assert found[0] == pytest.approx(losses, rel=1e-5)
    for one, other in zip(gradients, found[1], strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4 * np.abs(one).max())


@pytest.mark.parametrize("name, count, samples", [*((name, 7, 1) for name in IN_SHARDS), ("dense", 2, 3)])
def test_two_shards_have_the_losses_and_gradients_of_the_whole_batch(name, count, samples, shared_noise, rng):
    images = rng.random((count, *SIDES), np.float32)
    vae = build(name, beta=2.0 if samples == 1 else 1.0, variance=0.1, importance_samples=samples)
    for layer in vae.encoder.layers:
        if isinstance(layer, layers.Dropout):
            layer.rate = 0.0  # its noise cannot be the same
    quick = fast.FastVAE(*fast._take_apart(vae))
    results, single = [], []
    for each in (vae, quick):
        each.reseed()
        results.append(train(each, images))
        each.reseed()
        single.append(to_numpy(each(images[:1])))  # one image cannot be divided, and is only measured
    assert results[1][0] == pytest.approx(results[0][0], rel=1e-5)
    for theirs, ours in zip(results[0][1], results[1][1], strict=True):
        assert np.abs(theirs).max() > 0
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5 * max(1e-2, np.abs(theirs).max()))
    for theirs, ours in zip(*single, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)
    assert (quick.encoder, quick.decoder, quick.prior) == (vae.encoder, vae.decoder, vae.prior)
    assert {id(weight) for weight in quick.weights} == {id(weight) for weight in vae.weights}


def test_shards_have_noise_of_their_own_and_all_of_it_is_a_function_of_the_keys(rng):
    vae = fast.FastVAE(*fast._take_apart(build("readout")))
    images = np.tile(rng.random((1, *SIDES), np.float32), (50, 1, 1))

    def step(*keys):
        vae.reseed(*keys)
        return to_numpy(vae(images, training=True))

    first = step(1, 2)
    assert len(np.unique(first[3])) > 45  # log_ratio
    assert all(map(np.array_equal, first, step(1, 2)))
    other = step(1, 3)
    assert not any(np.array_equal(first[index], other[index]) for index in (0, 1, 3))  # the KL has no noise


def test_it_is_used_on_tensorflow_without_a_gpu(monkeypatch):
    vae, devices = build("dense", beta=2.0, variance=0.1, importance_samples=3), []
    monkeypatch.setattr(keras.distribution, "list_devices", lambda kind: devices)
    monkeypatch.setattr(keras.backend, "backend", lambda: "tensorflow")
    assert fast.speed_up(vae, in_shards=False) is vae
    quick = fast.speed_up(vae, in_shards=True)
    assert isinstance(quick, fast.FastVAE)
    assert (quick.beta, quick.variance, quick.importance_samples) == (2.0, 0.1, 3)
    devices.append("gpu:0")
    assert fast.speed_up(vae, in_shards=True) is vae
    devices.clear()
    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    assert fast.speed_up(vae, in_shards=True) is vae


def test_adam_is_that_of_keras(rng):
    start, gradients = rng.standard_normal((7, 3), np.float32), rng.standard_normal((5, 7, 3), np.float32)
    gradients[0] *= 1e-6  # so small that epsilon matters
    ended = []
    for kind in (fast.Adam, keras.optimizers.Adam):
        weights = keras.Variable(start)
        optimizer = kind(keras.optimizers.schedules.CosineDecay(0.0, 4, warmup_target=0.01, warmup_steps=2))
        for gradient in gradients:
            optimizer.apply([ops.convert_to_tensor(gradient)], [weights])
        ended.append(to_numpy([weights, *optimizer.variables]))
    assert not np.allclose(ended[0][0], start)
    for ours, theirs in zip(*ended, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-7)
