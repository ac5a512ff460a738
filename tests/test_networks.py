"""The published networks: their stages, and what each needs to be trained, kept and restored."""

import re

import keras
import numpy as np
import pytest
from keras import layers

import main
import model
from vae import archive, console, training
from vae.settings import NETWORKS, Network

STAGES = {  # as published; the batch comes first
    "readout": (
        [("image", 28, 28), ("lstm", 28, 64), ("flatten", 1792), ("mu", 64), ("sigma", 64), ("epsilon", 64), ("z", 64)],
        [
            ("z", 64),
            ("dense1", 98),
            ("dense2", 196),
            ("reshape", 14, 14, 1),
            ("tconv1", 14, 14, 64),
            ("dropout1", 14, 14, 64),
            ("tconv2", 14, 14, 32),
            ("dropout2", 14, 14, 32),
            ("tconv3", 28, 28, 32),
            ("dropout3", 28, 28, 32),
            ("flatten", 25088),
            ("dense3", 784),
            ("logits", 28, 28),
            ("pixels", 28, 28),
        ],
    ),
    "posterior": (
        [("lstm", 28), ("dense1", 200), ("dense2", 200), ("mu", 2), ("sigma", 2)],
        [
            ("dense1", 24),
            ("dense2", 3136),
            ("reshape", 7, 7, 64),
            ("tconv1", 14, 14, 64),
            ("tconv2", 28, 28, 32),
            ("tconv3", 28, 28, 1),
        ],
    ),
    "dense": ([("lstm", 256), ("mu", 16), ("sigma", 16)], [("dense1", 256), ("dense2", 784)]),
    "batchnorm": (
        [("normalization", 28, 28), ("lstm", 28, 32), ("dense", 256), ("mu", 32)],
        [
            *((f"{kind}1", 7, 7, 64) for kind in ("tconv", "batchnorm", "pooling", "dropout")),
            *((f"{kind}2", 14, 14, 32) for kind in ("tconv", "batchnorm", "pooling", "dropout")),
            *((f"{kind}3", 28, 28, 8) for kind in ("tconv", "batchnorm", "pooling", "dropout")),
            ("pixels", 28, 28),
        ],
    ),
    "plane": (
        [("lstm", 64), ("dense", 128), ("mu", 2), ("sigma", 2)],
        [("tconv1", 14, 14, 32), ("tconv2", 28, 28, 32), ("tconv3", 28, 28, 1)],
    ),
}


def built(name: str) -> tuple[keras.Model, keras.Model]:
    """A network with its own sizes."""
    return model.build(name, NETWORKS[name].hidden_dim, NETWORKS[name].latent_dim)


@pytest.mark.parametrize("name", STAGES)
def test_the_stages_are_the_published_ones_in_their_order(name):
    encoder, decoder = built(name)
    for lines, published in zip(
        (console.encoder_stages(encoder), console.decoder_stages(decoder)), STAGES[name], strict=True
    ):
        found = [re.sub(r": +", " ", line) for line in lines]
        wanted = [f"{stage} (None, {', '.join(map(str, shape))})" for stage, *shape in published]
        assert [line for line in found if line in wanted] == wanted
        if name == "readout":
            assert found == wanted


def test_what_the_originals_fix_inside_their_layers():
    _, decoder = built("readout")
    convolutions = [layer for layer in decoder.layers if isinstance(layer, layers.Conv2DTranspose)]
    assert {layer.kernel_size for layer in convolutions} == {(3, 3)}
    assert {layer.activation.__name__ for layer in convolutions} == {"relu"}
    lstm = built("dense")[0].get_layer("lstm")
    assert (lstm.activation.__name__, lstm.recurrent_activation.__name__) == ("tanh", "sigmoid")
    normalised = built("batchnorm")[0].get_layer("normalization")(np.array([[[0.1307]], [[0.4388]]], np.float32))
    np.testing.assert_allclose(np.ravel(normalised), [0, 1], atol=1e-4)
    kinds = [type(layer).__name__ for layer in built("batchnorm")[1].layers]
    assert kinds[3:7] == ["Conv2DTranspose", "BatchNormalization", "AveragePooling2D", "Dropout"]


@pytest.mark.parametrize("seed", [0, 1])
def test_the_softplus_scale_reaches_the_encoder_as_log_var(seed):
    keras.utils.set_random_seed(seed)
    encoder, _ = built("posterior")
    images = np.random.default_rng(seed).random((5, 28, 28), np.float32)
    scale = keras.Model(encoder.input, encoder.get_layer("scale").output)(images)
    assert np.min(scale) > 0
    np.testing.assert_allclose(np.exp(np.asarray(encoder(images)[1]) / 2), scale, rtol=1e-5)


@pytest.mark.parametrize("name", ["posterior", "batchnorm"])  # with the layers that the others lack
def test_a_step_of_training_is_kept_and_restored_to_the_last_bit(name, tmp_path, plain_keras):
    settings = main.complete({"network": name, "batch_size": 8, "hidden_dim": 6})
    images = np.random.default_rng(2).random((8, 28, 28), np.float32)
    vae = main.make_model(settings, 10, shards=2)
    before = [np.array(weight) for weight in vae.weights]
    vae.reseed(0)
    for _ in range(2):  # the first step of a warm-up is none
        vae.train_on_batch(images)
    changed = [not np.array_equal(old, new) for old, new in zip(before, vae.weights, strict=True)]
    assert all(changed)  # the averages of batch normalisation, too
    arrays = training.state(vae, [], "run")
    other = main.make_model(settings | {"seed": 1}, 10, shards=2)
    training.restore(other, arrays, "run")
    for each in (vae, other):
        each.reseed(1)
        each.train_on_batch(images)
    for one, two in zip(vae.weights, other.weights, strict=True):
        np.testing.assert_array_equal(one, two)

    latent = settings["latent_dim"]
    for half, shapes in (("encoder", [(28, 28), [(latent,)] * 2]), ("decoder", [(latent,), [(28, 28)]])):
        own = getattr(vae, half)
        own.save(tmp_path / f"{half}.keras")
        loaded = archive.load_model(tmp_path, half, *shapes)
        probe = np.random.default_rng(3).random((4, *shapes[0]), np.float32)
        for one, two in zip(*(keras.tree.flatten(each(probe)) for each in (own, loaded)), strict=True):
            np.testing.assert_array_equal(one, two)


def test_a_seventh_network_is_a_row_and_a_builder(monkeypatch, root, tmp_path, capsys):
    def linear(hidden_dim: int, latent_dim: int) -> tuple[keras.Model, keras.Model]:
        image, z = keras.Input((28, 28)), keras.Input((latent_dim,))
        h = layers.LSTM(hidden_dim)(image)
        halves = [layers.Dense(latent_dim, name=name)(h) for name in ("mean", "log_var")]
        logits = layers.Reshape((28, 28), name="logits")(layers.Dense(784)(z))
        return keras.Model(image, halves), keras.Model(z, layers.Activation("sigmoid")(logits))

    monkeypatch.setitem(NETWORKS, "linear", Network("a seventh", 1, 50, 1e-2, 4, 2))
    monkeypatch.setitem(model.BUILDERS, "linear", linear)
    digits = np.random.default_rng(0).random((50, 28, 28), np.float32)
    np.savez(tmp_path / "one_step.npz", x_train=digits, x_test=digits)
    main.main(["--network", "linear", "--data", str(tmp_path / "one_step.npz")])
    assert "network =  linear" in capsys.readouterr().out
    assert (root / "linear-one_step-001" / "decoder.keras").exists()


def test_network_help_lists_every_network_with_its_parameters(capsys):
    main.main(["--network", "help"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[::2]] == list(NETWORKS)
    for line, defaults in zip(lines[::2], lines[1::2], strict=True):
        name, count = line.split()[:2]
        assert int(count.replace(",", "")) == sum(half.count_params() for half in built(name))
        assert NETWORKS[name].summary in line
        given = main.parse(defaults.split())
        assert len(given) == 6 and main.complete({"network": name}) == main.complete({"network": name} | given)
