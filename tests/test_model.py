"""The networks' shapes and types, the two losses, and the VAE that adds them up."""

import math
import re

import keras
import numpy as np
import pytest
from keras import layers, ops
from scipy.special import logsumexp
from scipy.stats import norm

import model
from vae import console
from vae.settings import NETWORKS
from vae.training import Batches

HIDDEN, LATENT = 6, 5


@pytest.fixture
def rng():
    return np.random.default_rng(11)


@pytest.fixture
def images(rng):
    """25 grey images, the last 5 of which are far brighter: a mean of batches' means would differ."""
    grey = rng.random((25, 28, 28), np.float32)
    return np.concatenate([0.2 * grey[:20], 0.8 + 0.2 * grey[20:]])


@pytest.fixture(params=NETWORKS)
def network(request) -> tuple[keras.Model, keras.Model]:
    """The encoder and the decoder of each network in turn."""
    keras.utils.set_random_seed(1)
    return model.build(request.param, HIDDEN, LATENT)


def cross_entropy(images: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """Of each image (n,), by the textbook's formula."""
    p = probabilities.astype(np.float64)
    return -np.sum(images * np.log(p) + (1 - images) * np.log(1 - p), axis=(1, 2))


def sigmoid(logits: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-logits.astype(np.float64)))


def pin(layer: layers.Dense, value: float) -> None:
    """Make a dense layer return `value`, whatever comes in."""
    kernel, bias = layer.get_weights()
    layer.set_weights([np.zeros_like(kernel), np.full_like(bias, value)])


def pin_log_var(encoder: keras.Model, value: float) -> None:
    """Make an encoder return this log_var, whatever comes in, by the layer that it has for it."""
    if "scale" in (layer.name for layer in encoder.layers):  # softplus of it is the standard deviation
        pin(encoder.get_layer("scale"), value / 2 if value < -20 else math.log(math.expm1(math.exp(value / 2))))
    else:
        pin(encoder.get_layer("log_var"), value)


# The losses


def test_reconstruction_loss_is_the_cross_entropy_of_an_image(rng):
    images = rng.random((7, 28, 28), np.float32)
    logits = 3 * rng.standard_normal((7, 28, 28), np.float32)
    found = ops.convert_to_numpy(model.reconstruction_loss(images, logits))
    assert found.shape == (7,)
    np.testing.assert_allclose(found, cross_entropy(images, sigmoid(logits)), rtol=1e-5)


def test_reconstruction_loss_where_the_decoder_knows_nothing(rng):
    found = model.reconstruction_loss(rng.random((2, 28, 28), np.float32), np.zeros((2, 28, 28), np.float32))
    np.testing.assert_allclose(found, 784 * math.log(2), rtol=1e-6)


@pytest.mark.parametrize("pixel, logit, loss", [(1, -100, 100), (0, 100, 100), (1, 100, 0), (0, -100, 0)])
def test_reconstruction_loss_of_a_decoder_that_is_sure(pixel, logit, loss):
    images = np.full((1, 28, 28), pixel, np.float32)
    found = model.reconstruction_loss(images, np.full((1, 28, 28), logit, np.float32))
    np.testing.assert_allclose(found, 784 * loss, atol=1e-6)


@pytest.mark.parametrize(
    "mean, log_var, per_dimension",
    [
        (0, 0, 0),
        (1, 0, 0.5),
        (-3, 0, 4.5),
        (0, math.log(4), (4 - math.log(4) - 1) / 2),
        (0, -2, 0.5 + math.exp(-2) / 2),
    ],
)
def test_kl_loss_by_hand(mean, log_var, per_dimension):
    found = model.kl_loss(np.full((2, 3), mean, np.float32), np.full((2, 3), log_var, np.float32))
    np.testing.assert_allclose(found, [3 * per_dimension] * 2, rtol=1e-6, atol=1e-7)


def test_kl_loss_is_the_expected_log_ratio(rng):
    mean, log_var = np.array([[0.5, -1.0, 2.0]]), np.array([[-1.0, 0.3, 0.0]])
    epsilon = rng.standard_normal((200_000, 3))
    z = mean + np.exp(log_var / 2) * epsilon
    log_ratio = np.sum((z**2 - epsilon**2 - log_var) / 2, axis=1)  # log q(z|x) - log p(z)
    error = log_ratio.std() / math.sqrt(len(log_ratio))
    assert float(model.kl_loss(mean, log_var)[0]) == pytest.approx(log_ratio.mean(), abs=5 * error)


# The networks


def test_a_network_maps_images_to_latents_to_images(network, images):
    encoder, decoder = network
    mean, log_var = encoder(images)
    assert mean.shape == log_var.shape == (25, LATENT)
    pixels = decoder(mean)
    assert pixels.shape == (25, 28, 28)
    assert 0 <= ops.min(pixels) < ops.max(pixels) <= 1


def test_pixels_are_the_sigmoid_of_the_logits(network, rng):
    _, decoder = network
    z = 3 * rng.standard_normal((9, LATENT), np.float32)
    logits = ops.convert_to_numpy(model.logits_of(decoder)(z))
    np.testing.assert_allclose(decoder(z), sigmoid(logits), rtol=1e-5)
    assert logits.min() < 0 < logits.max()


@pytest.mark.parametrize("value", [-50, 10])
def test_the_posterior_is_not_bounded(network, images, value):
    encoder, _ = network
    pin(encoder.get_layer("mean"), value)
    pin_log_var(encoder, value)
    for found in encoder(images):
        np.testing.assert_allclose(found, value, rtol=1e-3)


def test_the_mean_takes_both_signs(network, images):
    mean = ops.convert_to_numpy(network[0](images)[0])
    assert mean.min() < 0 < mean.max()


def test_hidden_and_latent_dimensions_are_the_callers():
    for name in NETWORKS:
        sizes = [[half.count_params() for half in model.build(name, *dims)] for dims in ((6, 5), (7, 5), (6, 4))]
        assert sizes[0][0] < sizes[1][0] and sizes[0][1] > sizes[2][1]


def test_a_network_has_none_but_layers_of_keras(network):
    for half in network:
        assert all(type(layer).__module__.startswith("keras.") for layer in half.layers)
        assert not any(isinstance(layer, layers.Lambda) for layer in half.layers)


@pytest.mark.parametrize("name", NETWORKS)
def test_results_are_float32_under_mixed_precision(name, images, plain_keras):
    plain_keras.config.set_dtype_policy("mixed_bfloat16")
    encoder, decoder = model.build(name, HIDDEN, LATENT)
    vae = model.VAE(encoder, decoder)
    mean, log_var = encoder(images)
    for tensor in (mean, log_var, decoder(mean), *vae(images)):
        assert keras.backend.standardize_dtype(tensor.dtype) == "float32"
    for half in (encoder, decoder):
        assert any(layer.compute_dtype == "bfloat16" for layer in half.layers if layer.weights)
        assert all(variable.dtype == "float32" for variable in half.trainable_variables)


def test_stages_are_told_from_input_to_output(network):
    encoder, decoder = network
    for lines, half in ((console.encoder_stages(encoder), encoder), (console.decoder_stages(decoder), decoder)):
        assert all(re.fullmatch(r"\w+: +\(None(, \d+)+\)", line) for line in lines)
        assert len({line.index("(") for line in lines}) == 1
        stages = dict(re.split(r": +", line) for line in lines)
        own = {layer.name: str(tuple(layer.output.shape)) for layer in half.layers}
        assert {name: shape for name, shape in own.items() if name not in console.ENDS}.items() <= stages.items()
    latent = f"(None, {LATENT})"
    first, *_, mu, sigma, epsilon, z = (re.split(r": +", line) for line in console.encoder_stages(encoder))
    assert first == ["image", "(None, 28, 28)"]
    assert [mu, sigma, epsilon, z] == [[name, latent] for name in ("mu", "sigma", "epsilon", "z")]
    z, *_, logits, pixels = (re.split(r": +", line) for line in console.decoder_stages(decoder))
    assert [z, logits, pixels] == [["z", latent], ["logits", "(None, 28, 28)"], ["pixels", "(None, 28, 28)"]]


def test_standard_reads_rows_with_an_lstm_and_draws_from_7_x_7_with_transposed_convolutions():
    encoder, decoder = model.build("standard", HIDDEN, LATENT)
    assert any(re.fullmatch(rf"lstm: +\(None, 28, {HIDDEN}\)", line) for line in console.encoder_stages(encoder))
    assert any("(None, 7, 7, " in line for line in console.decoder_stages(decoder))
    assert sum(isinstance(layer, layers.Conv2DTranspose) for layer in decoder.layers) >= 2


# The VAE


@pytest.mark.parametrize(
    "name, shards",  # 3 do not divide a batch of 10 into equal parts
    [*((name, 1) for name in NETWORKS), ("standard", 2), ("standard", 3)],
)
def test_the_figures_are_means_over_all_images(name, shards, images):
    keras.utils.set_random_seed(1)
    encoder, decoder = model.build(name, HIDDEN, LATENT)
    pin_log_var(encoder, -60)  # z is the mean then, to the last digit
    vae = model.VAE(encoder, decoder, shards=shards)
    vae.compile(jit_compile=False)
    found = vae.evaluate(Batches(images, 10, seed=0), verbose=0, return_dict=True)

    mean = ops.convert_to_numpy(encoder(images)[0])
    reconstruction = cross_entropy(images, ops.convert_to_numpy(decoder(mean))).mean()
    kl = (np.sum(mean**2 / 2, axis=1) + LATENT * (math.exp(-60) + 60 - 1) / 2).mean()
    expected = {"general_loss": reconstruction + kl, "reconstruction_loss": reconstruction, "kl_loss": kl}
    assert found == pytest.approx(expected, rel=1e-5)


def transparent(mean: float, deviation: float, **settings) -> model.VAE:
    """A VAE of 784 latents, the same posterior whatever the image, whose logits are z itself."""
    image = keras.Input((28, 28))
    heads = [layers.Dense(784, name=name)(layers.Flatten()(image)) for name in ("mean", "log_var")]
    z = keras.Input((784,))
    logits = layers.Reshape((28, 28), name="logits")(z)
    encoder, decoder = keras.Model(image, heads), keras.Model(z, layers.Activation("sigmoid")(logits))
    pin(encoder.get_layer("mean"), mean)
    pin(encoder.get_layer("log_var"), 2 * math.log(deviation))
    return model.VAE(encoder, decoder, **settings)


@pytest.mark.parametrize("shards", [1, 2])
def test_z_is_drawn_from_the_posterior(shards):
    vae = transparent(1.5, 2, shards=shards)
    z = ops.convert_to_numpy(vae(np.zeros((200, 28, 28), np.float32))[0]).ravel()
    assert z.mean() == pytest.approx(1.5, abs=0.03)
    assert z.std() == pytest.approx(2, abs=0.03)
    assert len(np.unique(z)) > 0.9 * len(z)  # the shards have noise of their own
    assert abs(np.corrcoef(z[:-1], z[1:])[0, 1]) < 0.02
    assert np.mean(np.abs(z - 1.5) < 2) == pytest.approx(0.6827, abs=0.01)  # within one standard deviation: a normal


def test_the_importance_weighted_loss_is_that_of_the_paper(rng):
    log_weights = np.array([[-100.0, -101.0, -102.0], [-1e4, -1e4, -1e4 - 90]], np.float32)
    expected = [100 - math.log((1 + math.exp(-1) + math.exp(-2)) / 3), 1e4 - math.log(2 / 3)]
    np.testing.assert_allclose(ops.convert_to_numpy(model.importance_weighted_loss(log_weights)), expected, rtol=1e-6)
    np.testing.assert_allclose(ops.convert_to_numpy(model.importance_weighted_loss(log_weights[:, :1])), [100, 1e4])


@pytest.mark.parametrize("shards", [1, 2])
def test_several_samples_train_the_importance_weighted_bound_and_the_figures_stay_the_elbo(images, shards):
    vae = transparent(0.1, 1.1, shards=shards, importance_samples=3)
    outputs = vae(images, training=True)
    loss = float(vae.compute_loss(x=images, y_pred=outputs, training=True))
    z = ops.convert_to_numpy(outputs[0]).reshape(len(images), 3, 784).astype(np.float64)
    assert len(np.unique(z[0, :, 0])) == 3

    targets = images.reshape(len(images), 1, 784)
    likelihood = (targets * z - np.logaddexp(0, z)).sum(axis=2)
    weights = likelihood + (norm.logpdf(z) - norm.logpdf(z, 0.1, 1.1)).sum(axis=2)
    assert loss == pytest.approx((np.log(3) - logsumexp(weights, axis=1)).mean(), rel=1e-5)
    kl = 784 * (0.1**2 + 1.1**2 - 2 * math.log(1.1) - 1) / 2
    figures = [float(tracker.result()) for tracker in vae.metrics]
    assert figures == pytest.approx([kl - likelihood.mean(), -likelihood.mean(), kl], rel=1e-5)
    assert vae(images)[0].shape == (len(images), 28, 28)  # to be judged, one sample is enough


def test_beta_weighs_the_kl_in_the_gradient_and_not_in_the_figures(network, images):
    outcome = {}
    pin(network[0].get_layer("mean"), 1)
    for beta in (0.0, 1.0, 4.0):
        vae = model.VAE(*network, beta=beta)
        vae.reseed(0)
        loss = vae.compute_loss(x=images, y_pred=vae(images))
        outcome[beta] = float(loss), {tracker.name: float(tracker.result()) for tracker in vae.metrics}
    figures = outcome[1.0][1]
    assert outcome[0.0][1] == outcome[4.0][1] == figures
    assert figures["kl_loss"] > 2
    for beta, (loss, _) in outcome.items():
        assert loss == pytest.approx(figures["reconstruction_loss"] + beta * figures["kl_loss"], rel=1e-5)
    assert figures["general_loss"] == pytest.approx(outcome[1.0][0], rel=1e-6)


def test_gaussian_pixels_have_the_density_of_a_normal(rng):
    images = rng.random((6, 28, 28), np.float32)
    logits = 2 * rng.standard_normal((6, 28, 28), np.float32)
    densities = np.exp(-((images - sigmoid(logits)) ** 2) / (2 * 0.04)) / (0.2 * math.sqrt(2 * math.pi))
    found = model.reconstruction_loss(images, logits, variance=0.04)
    np.testing.assert_allclose(found, -np.log(densities).sum(axis=(1, 2)), rtol=1e-5)


def test_at_a_fixed_variance_gaussian_pixels_are_the_squared_error_and_a_constant():
    images, logits = np.full((1, 28, 28), 0.5, np.float32), np.zeros((1, 28, 28), np.float32)
    constant = float(model.reconstruction_loss(images, logits, variance=0.01)[0])
    assert constant == pytest.approx(784 * 0.5 * math.log(2 * math.pi * 0.01), rel=1e-6)  # negative: it is a density
    off_by_a_tenth = float(model.reconstruction_loss(images + 0.1, logits, variance=0.01)[0])
    assert off_by_a_tenth - constant == pytest.approx(784 * 0.1**2 / (2 * 0.01), rel=1e-4)


def test_the_figures_of_gaussian_pixels_are_an_elbo(images):
    encoder, decoder = model.build("dense", HIDDEN, LATENT)
    pin_log_var(encoder, -60)  # z is the mean then, to the last digit
    vae = model.VAE(encoder, decoder, variance=0.02)
    vae.compile(jit_compile=False)
    found = vae.evaluate(Batches(images, 10, seed=0), verbose=0, return_dict=True)
    assert found["general_loss"] == pytest.approx(found["reconstruction_loss"] + found["kl_loss"], rel=1e-5)
    pixels = ops.convert_to_numpy(decoder(encoder(images)[0]))
    by_hand = 0.5 * ((images - pixels) ** 2 / 0.02 + math.log(2 * math.pi * 0.02)).sum(axis=(1, 2)).mean()
    assert found["reconstruction_loss"] == pytest.approx(by_hand, rel=1e-4)


def test_log_likelihood_is_the_negative_reconstruction_loss(network, images, rng):
    _, decoder = network
    z = rng.standard_normal((25, LATENT), np.float32)
    found = ops.convert_to_numpy(model.log_likelihood_of(decoder)([images, z]))
    np.testing.assert_allclose(found, -cross_entropy(images, ops.convert_to_numpy(decoder(z))), rtol=1e-5)


def training_pass(vae: model.VAE, images: np.ndarray) -> np.ndarray:
    return np.concatenate([np.ravel(part) for part in vae(images, training=True)])


def test_noise_is_a_function_of_the_keys(network, images):
    vae = model.VAE(*network)

    def noise(*keys):
        vae.reseed(*keys)
        return training_pass(vae, images)

    first = noise(1, 2)
    assert not np.array_equal(first, training_pass(vae, images))  # the next step has other noise
    np.testing.assert_array_equal(first, noise(1, 2))
    assert not any(np.array_equal(first, noise(*keys)) for keys in ((1, 3), (2, 2), (2, 1), (1,)))


def test_noise_of_dropout_is_a_function_of_the_keys_too(network, images):
    image, z = keras.Input((28, 28)), keras.Input((784,))
    features = layers.Dropout(0.5)(layers.Flatten()(image))
    mean, log_var = (layers.Dense(784, name=name)(features) for name in ("mean", "log_var"))
    logits = layers.Reshape((28, 28), name="logits")(layers.Dropout(0.5)(z))
    encoder, decoder = keras.Model(image, [mean, log_var]), keras.Model(z, layers.Activation("sigmoid")(logits))
    vae = model.VAE(encoder, decoder)
    passes = []
    for keys in ((5, 0), (5, 0), (5, 1)):
        vae.reseed(*keys)
        passes.append(training_pass(vae, images))
    np.testing.assert_array_equal(passes[0], passes[1])
    dropped = [values[: 25 * 784] == 0 for values in passes]
    assert 0.4 < dropped[0].mean() < 0.6 and not np.array_equal(dropped[0], dropped[2])


@pytest.mark.parametrize(
    ("rate", "features", "exact"), [(0.25, 32, True), (0.5, 7, True), (0.1, 32, False), (0.9, 1, False)]
)
def test_byte_dropout_is_dropout(rate, features, exact):
    dropout = model.ByteDropout(layers.Dropout(rate, seed=4))
    x = np.linspace(1, 2, 60_000 * features, dtype=np.float32).reshape(100, 600, features)
    y = ops.convert_to_numpy(dropout(x, training=True))
    kept = y != 0
    np.testing.assert_allclose(y[kept], x[kept] / (1 - rate), rtol=1e-6 if exact else 2e-4)
    spread = math.sqrt(rate * (1 - rate))
    assert abs(kept.mean() - (1 - rate)) < 4 * spread / math.sqrt(x.size)
    kept = kept.ravel()
    for lag in (1, 2, 3, 4, features):  # numbers that share a random word are as independent as others
        together = (kept[lag:] & kept[:-lag]).mean()
        assert abs(together - (1 - rate) ** 2) < 8 * spread / math.sqrt(x.size)
    again = ops.convert_to_numpy(dropout(x, training=True))
    assert 0 < ((again != 0).ravel() != kept).mean() < 1  # the next step drops others
    np.testing.assert_array_equal(dropout(x), x)


def test_a_stacked_dense_layer_is_the_dense_layer(rng):
    x, target = rng.standard_normal((6, 3), np.float32), rng.standard_normal((6, 5), np.float32)
    first, second = layers.Dense(4), layers.Dense(5, activation="tanh", bias_initializer="random_normal")
    network = keras.Sequential([keras.Input((3,)), first, second])
    quick = keras.Sequential([keras.Input((3,)), first, model.StackedDense(second)])
    np.testing.assert_allclose(quick(x), network(x), rtol=1e-6)
    quick.compile(keras.optimizers.SGD(1.0), loss=lambda y, y_pred: ops.sum(ops.square(y_pred - y), axis=-1))
    before = [weight.numpy() for weight in quick.trainable_weights]
    quick.train_on_batch(x, target)
    gradients = [value - weight.numpy() for value, weight in zip(before, quick.trainable_weights, strict=True)]
    # The same by the chain rule: a sum of squares, averaged over the batch, of tanh(h kernel2 + bias2).
    kernel1, bias1, kernel2, bias2 = before
    h = x @ kernel1 + bias1
    y = np.tanh(h @ kernel2 + bias2)
    of_second = 2 * (y - target) * (1 - y**2) / len(x)
    of_first = of_second @ kernel2.T
    by_hand = [x.T @ of_first, of_first.sum(0), h.T @ of_second, of_second.sum(0)]
    for gradient, expected in zip(gradients, by_hand, strict=True):
        np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-5)


def test_the_quick_layers_stand_in_training_and_in_training_alone(network):
    _, decoder = network
    vae = model.VAE(*network)
    kinds = [type(layer) for layer in model.logits_of(decoder).layers]
    stand_ins = {layers.Dropout: model.ByteDropout, layers.Dense: model.StackedDense}
    assert [type(layer) for layer in vae._logits.layers] == [stand_ins.get(kind, kind) for kind in kinds]
    assert layers.Dense in kinds
    assert len(vae.trainable_weights) == sum(len(half.trainable_weights) for half in network)
    assert {id(weight) for weight in vae.trainable_weights} == {
        id(weight) for half in network for weight in half.trainable_weights
    }


@pytest.mark.parametrize("dropout", [layers.Dropout(0), layers.Dropout(1), layers.Dropout(0.5, noise_shape=(None, 1))])
def test_dropout_of_another_kind_stays_as_it_is(dropout):
    z = keras.Input((784,))
    logits = layers.Reshape((28, 28), name="logits")(dropout(z))
    decoder = keras.Model(z, layers.Activation("sigmoid")(logits))
    assert dropout in model._for_training(decoder).layers


@pytest.mark.parametrize(
    ("dense", "shape"),
    [(layers.Dense(784, use_bias=False), (3,)), (layers.Dense(28), (28, 3))],
    ids=["biasless", "rows"],
)
def test_a_dense_layer_of_another_kind_stays_as_it_is(dense, shape):
    z = keras.Input(shape)
    logits = layers.Reshape((28, 28), name="logits")(dense(z))
    decoder = keras.Model(z, layers.Activation("sigmoid")(logits))
    assert dense in model._for_training(decoder).layers
