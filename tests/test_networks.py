"""Every network: its layers and sizes as published, for images of any size, and what training and saving ask of it."""

import re
import zipfile

import keras
import numpy as np
import pytest
from keras import layers, ops

import model
from vae import files
from vae.networks import NETWORKS

PUBLISHED = {  # epochs, batch size, learning rate, hidden and latent dimensions, validation split; parameters
    "standard": (34, 200, 8e-3, 64, 24, 0, 507_748),
    "readout": (50, 100, 1e-3, 64, 64, 0, 19_977_214),
    "softplus": (50, 100, 4e-3, 28, 2, 0, 187_341),
    "dense": (30, 256, 6e-3, 256, 16, 0.3, 505_904),
    "batchnorm": (50, 100, 1e-3, 32, 32, 0, 431_697),
    "plane": (170, 250, 8e-3, 64, 2, 0, 56_133),
}
# The layers of the encoder and of the decoder: shape of the output, activation, side of the kernel, rate of dropout.
LAYERS = {
    "standard": """
        image 28x28, columns 28x28, lstm_rows 28x64 tanh, lstm_columns 28x64 tanh, flatten1 1792, flatten2 1792,
        concatenate 3584, dropout 3584 0.1, mean 24 linear, log_var 24 linear;
        z 24, dense1 256 silu, dense2 784 silu, reshape 7x7x16, tconv1 7x7x64 silu 3, tconv2 7x7x64 silu 3,
        residual 7x7x64, tconv3 14x14x32 silu 4, tconv4 14x14x4 linear 3, pixels_2x2 14x14x2x2,
        interleave 14x2x14x2, logits 28x28, pixels 28x28 sigmoid""",
    "readout": """
        image 28x28, lstm 28x64 tanh, flatten 1792, mean 64 linear, log_var 64 linear;
        z 64, dense1 98 relu, dense2 196 relu, reshape 14x14x1, tconv1 14x14x64 relu 3, dropout1 14x14x64 0.25,
        tconv2 14x14x32 relu 3, dropout2 14x14x32 0.25, tconv3 28x28x32 relu 3, dropout3 28x28x32 0.25, flatten 25088,
        dense3 784 linear, logits 28x28, pixels 28x28 sigmoid""",
    "softplus": """
        image 28x28, lstm 28 tanh, dense1 200 relu, dense2 200 relu, scale 2 softplus, mean 2 linear;
        z 2, dense1 24 relu, dense2 3136 relu, reshape 7x7x64, tconv1 14x14x64 relu 3, tconv2 28x28x32 relu 3,
        tconv3 28x28x1 linear 3, logits 28x28, pixels 28x28 sigmoid""",
    "dense": """
        image 28x28, lstm 256 tanh, mean 16 linear, log_var 16 linear;
        z 16, dense1 256 relu, dense2 784 linear, logits 28x28, pixels 28x28 sigmoid""",
    "batchnorm": """
        image 28x28, normalization 28x28, lstm 28x32 tanh, flatten 896, relu 896, dense 256 relu, mean 32 linear,
        log_var 32 linear;
        z 32, dense 3136 relu, reshape 7x7x64,
        tconv1 7x7x64 relu 3, batchnorm1 7x7x64, pooling1 7x7x64, dropout1 7x7x64 0.1,
        tconv2 14x14x32 relu 4, batchnorm2 14x14x32, pooling2 14x14x32, dropout2 14x14x32 0.1,
        tconv3 28x28x8 relu 4, batchnorm3 28x28x8, pooling3 28x28x8, dropout3 28x28x8 0.1,
        tconv4 28x28x1 linear 3, logits 28x28, pixels 28x28 sigmoid""",
    "plane": """
        image 28x28, lstm 64 tanh, dense 128 relu, mean 2 linear, log_var 2 linear;
        z 2, dense 1568 relu, reshape 7x7x32, tconv1 14x14x32 relu 3, tconv2 28x28x32 relu 3, tconv3 28x28x1 linear 3,
        logits 28x28, pixels 28x28 sigmoid""",
}
SMALL = (12, 8)  # the smallest image of unequal sides that every network can draw
IMAGES = np.random.default_rng(11).random((9, *SMALL), np.float32)
LATENT = 5


def outline(name: str, image_shape: tuple[int, int] = (28, 28)) -> tuple[keras.Model, keras.Model]:
    """Build a network with its default sizes, but draw no weights: readout would have 300 million for 64 x 48."""
    with keras.StatelessScope(initialize_variables=False):
        return NETWORKS[name].build(image_shape, NETWORKS[name].hidden_dim, NETWORKS[name].latent_dim)


def describe(layer: layers.Layer) -> str:
    shape = "x".join(map(str, layer.output.shape[1:]))
    activation = getattr(getattr(layer, "activation", None), "__name__", "")
    kernel = layer.kernel_size[0] if isinstance(layer, layers.Conv2DTranspose) else ""
    return " ".join(f"{layer.name} {shape} {activation} {kernel} {getattr(layer, 'rate', '')}".split())


@pytest.mark.parametrize("name", NETWORKS)
def test_layers_parameters_and_defaults(name):
    *defaults, parameters = PUBLISHED[name]
    fields = ("epochs", "batch_size", "learning_rate", "hidden_dim", "latent_dim", "validation_split")
    assert [getattr(NETWORKS[name], field) for field in fields] == defaults
    assert NETWORKS[name].prior == ("mixture" if name == "standard" else "normal")  # the published ones as published
    halves = outline(name)
    assert sum(half.count_params() for half in halves) == parameters
    assert "; ".join(", ".join(map(describe, half.layers)) for half in halves) == " ".join(LAYERS[name].split())


def test_batchnorm_normalises_by_the_mean_and_deviation_of_mnist():
    normalization = outline("batchnorm")[0].get_layer("normalization")
    pixels = np.array([[[0.1307], [0.1307 + 0.3081]]], np.float32)
    np.testing.assert_allclose(np.ravel(ops.convert_to_numpy(normalization(pixels))), [0, 1], atol=1e-4)


@pytest.mark.parametrize("name", NETWORKS)
def test_images_of_other_sizes(name):
    encoder, decoder = outline(name, (64, 48))
    latent = (None, NETWORKS[name].latent_dim)
    assert encoder.input_shape == decoder.output_shape == (None, 64, 48)
    assert encoder.output_shape == [latent, latent] and decoder.input_shape == latent


@pytest.mark.parametrize("name", NETWORKS)
def test_a_saved_network_loads_in_safe_mode_and_gives_the_same_to_the_last_bit(name, tmp_path):
    """Older versions of Keras load it, too: it has none of the keys that they refuse."""
    z = np.random.default_rng(3).standard_normal((9, LATENT), np.float32)
    for half, probe in zip(NETWORKS[name].build(SMALL, 6, LATENT), (IMAGES, z), strict=True):
        assert all(type(layer).__module__.startswith("keras.") for layer in half.layers)
        files.save_model(half, tmp_path / "half.keras")
        with zipfile.ZipFile(tmp_path / "half.keras") as archive:
            config = archive.read("config.json").decode()
        assert not re.search('"(quantization_config|input_axes|output_axes|renorm[a-z_]*)"', config)
        loaded = keras.saving.load_model(tmp_path / "half.keras")  # in its safe mode
        for one, two in zip(*(keras.tree.flatten(each(probe)) for each in (half, loaded)), strict=True):
            np.testing.assert_array_equal(ops.convert_to_numpy(one), ops.convert_to_numpy(two))
    logits = ops.convert_to_numpy(model.logits_of(half)(z)).astype(np.float64)
    np.testing.assert_allclose(ops.convert_to_numpy(one), 1 / (1 + np.exp(-logits)), rtol=1e-5)


@pytest.mark.parametrize("name", NETWORKS)
def test_results_are_float32_under_mixed_precision(name, plain_keras):
    plain_keras.config.set_dtype_policy("mixed_bfloat16")
    encoder, decoder = NETWORKS[name].build(SMALL, 6, LATENT)
    mean, log_var = encoder(IMAGES)
    prior = model.MixturePrior(3, LATENT)
    for tensor in (mean, log_var, decoder(mean), *model.VAE((encoder, decoder), prior)(IMAGES, training=True)):
        assert keras.backend.standardize_dtype(tensor.dtype) == "float32"
    assert all(variable.dtype == "float32" for variable in prior.weights)
    for half in (encoder, decoder):
        assert any(layer.compute_dtype == "bfloat16" for layer in half.layers if layer.weights)
        assert all(variable.dtype == "float32" for variable in half.trainable_variables)
