"""The losses and the VAE against numbers worked out by hand and against the textbook's formulas in NumPy."""

import math

import keras
import numpy as np
import pytest
from keras import layers, ops
from scipy.special import logsumexp, softmax
from scipy.stats import multivariate_normal, norm

import model
from vae import sampling
from vae.data.batches import Batches

SIDES = (3, 2)  # of the images here: so few pixels that a gradient can be worked out by hand
PIXELS = 6


@pytest.fixture
def rng():
    return np.random.default_rng(11)


@pytest.fixture
def images(rng):
    """25 grey images, the last 5 of them far brighter, so that a mean of batches' means would differ."""
    grey = rng.random((25, *SIDES), np.float32)
    return np.concatenate([0.2 * grey[:20], 0.8 + 0.2 * grey[20:]])


def sigmoid(logits: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-logits.astype(np.float64)))


def cross_entropy(images: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """Return the cross-entropy of each image (n,), by the textbook's formula."""
    p = probabilities.astype(np.float64)
    return -np.sum(images * np.log(p) + (1 - images) * np.log(1 - p), axis=(1, 2))


def pin(layer: layers.Dense, value: float) -> None:
    """Make a dense layer return `value`, whatever comes in."""
    kernel, bias = layer.get_weights()
    layer.set_weights([np.zeros_like(kernel), np.full_like(bias, value)])


def transparent(mean: float, deviation: float, prior=None, **settings) -> model.VAE:
    """Return a VAE that has the same posterior for every image, and whose logits are z itself; its prior is N(0, I)."""
    image, z = keras.Input(SIDES), keras.Input((PIXELS,))
    encoder = model.end_encoder(image, layers.Flatten()(image), PIXELS)
    pin(encoder.get_layer("mean"), mean)
    pin(encoder.get_layer("log_var"), 2 * math.log(deviation))
    return model.VAE((encoder, model.end_decoder(z, z, SIDES)), prior or model.NormalPrior(), **settings)


def make_mixture(components: int = 4, latent_dim: int = PIXELS) -> model.MixturePrior:
    """Return a mixture prior with random weights, means and covariances."""
    prior, rng = model.MixturePrior(components, latent_dim), np.random.default_rng(5)
    prior.set_weights([0.5 * rng.standard_normal(weight.shape, np.float32) for weight in prior.weights])
    return prior


def split_mixture(prior: model.MixturePrior) -> list[tuple]:
    """Return the weight, the mean and the covariance of each Gaussian, worked out in NumPy."""
    logits, means, triangles = (np.float64(array) for array in prior.get_weights())
    factors = np.tril(triangles, -1) + [np.diag(np.exp(np.diag(triangle))) for triangle in triangles]
    covariances = [np.linalg.inv(factor.T @ factor) for factor in factors]
    return list(zip(softmax(logits), means, covariances, strict=True))


def log_mixture(prior: model.MixturePrior, z: np.ndarray) -> np.ndarray:
    """Return log p(z) of latent vectors (n, D) by SciPy: (n,)."""
    parts = [np.log(w) + multivariate_normal.logpdf(z, m, c) for w, m, c in split_mixture(prior)]
    return logsumexp(parts, axis=0)


def slope_of_mixture(prior: model.MixturePrior, z: np.ndarray) -> np.ndarray:
    """Return the gradient of log p(z) at latent vectors (n, D): (n, D)."""
    parts = split_mixture(prior)
    shares = softmax([np.log(w) + multivariate_normal.logpdf(z, m, c) for w, m, c in parts], axis=0)
    slopes = [np.linalg.solve(c, (m - z).T).T for _, m, c in parts]
    return np.einsum("mn,mnd->nd", shares, slopes)


def draws(outputs: list, samples: int = 1) -> np.ndarray:
    """Return the latent vectors (n, K, D) that a transparent VAE has drawn."""
    return ops.convert_to_numpy(outputs[0]).reshape(-1, samples, PIXELS).astype(np.float64)


def biases_of(vae: model.VAE) -> list[np.ndarray]:
    return [vae.encoder.get_layer(name).get_weights()[1] for name in ("mean", "log_var")]


def take_step(vae: model.VAE, images: np.ndarray) -> tuple[list, list[np.ndarray], dict[str, float]]:
    """Train on a batch: what the VAE computes, the gradients of the biases of mean and log_var, the reported losses."""
    before = biases_of(vae)
    vae.reseed(3)
    outputs = vae(images, training=True)
    vae.reseed(3)  # the same z in the training step
    vae.compile(keras.optimizers.SGD(1.0), jit_compile=False)
    reported = vae.train_on_batch(images, return_dict=True)
    return outputs, [old - new for old, new in zip(before, biases_of(vae), strict=True)], reported


def to_numpy(tensors) -> list[np.ndarray]:
    return [ops.convert_to_numpy(tensor) for tensor in tensors]


# The losses


def test_reconstruction_loss_is_the_cross_entropy_summed_over_the_pixels(rng):
    images, logits = rng.random((7, 1, 5, 4), np.float32), 3 * rng.standard_normal((7, 3, 5, 4), np.float32)
    found = ops.convert_to_numpy(model.reconstruction_loss(images, logits))
    assert found.shape == (7, 3)
    for sample in range(3):
        expected = cross_entropy(images[:, 0], sigmoid(logits[:, sample]))
        np.testing.assert_allclose(found[:, sample], expected, rtol=1e-5)
    pixels, logits = np.float32([1, 0, 1, 0]), np.float32([-100, 100, 100, -100])  # a decoder that is sure
    sure = model.reconstruction_loss(*(each.reshape(4, 1, 1, 1) for each in (pixels, logits)))
    np.testing.assert_allclose(ops.convert_to_numpy(sure)[:, 0], [100, 100, 0, 0], atol=1e-6)


def test_kl_loss_of_both_priors_by_hand():
    mean = np.float32([[0, 0, 0, 0], [1, -3, 0, 0], [1, 0, 0, -3]])
    log_var = np.float32([[0, 0, 0, 0], [0, 0, math.log(4), -2], [0, math.log(4), 0, 0]])
    by_hand = [0, 0.5 + 4.5 + (3 - math.log(4)) / 2 + (1 + math.exp(-2)) / 2, 0.5 + (3 - math.log(4)) / 2 + 4.5]
    found = model.NormalPrior().kl_loss(mean, log_var, None)
    np.testing.assert_allclose(ops.convert_to_numpy(found), by_hand, rtol=1e-6, atol=1e-7)
    entropies, log_prior = norm.entropy(0, np.exp(log_var / 2)).sum(axis=1), np.float32([-5, -6, -7])
    found = make_mixture(3, 4).kl_loss(mean, log_var, log_prior)
    np.testing.assert_allclose(ops.convert_to_numpy(found), -entropies - log_prior, rtol=1e-6)


def test_importance_weighted_loss_by_hand():
    log_weights = np.array([[-100.0, -101.0, -102.0], [-1e4, -1e4, -1e4 - 90]], np.float32)
    by_hand = [100 - math.log((1 + math.exp(-1) + math.exp(-2)) / 3), 1e4 - math.log(2 / 3)]
    found = ops.convert_to_numpy(model.importance_weighted_loss(log_weights))
    np.testing.assert_allclose(found, by_hand, rtol=1e-6)


# The priors


@pytest.mark.parametrize("components, latent_dim", [(1, 1), (4, PIXELS)])
def test_the_density_of_a_mixture_is_that_of_scipy_in_the_model_and_in_its_arrays(components, latent_dim, rng):
    prior = make_mixture(components, latent_dim)
    z = 2 * rng.standard_normal((9, latent_dim), np.float32)
    expected = log_mixture(prior, np.float64(z))
    np.testing.assert_allclose(ops.convert_to_numpy(prior.log_prob(z)), expected, rtol=1e-4, atol=1e-4)
    arrays = prior.to_arrays()
    read = sampling.read_mixture(arrays)
    np.testing.assert_allclose(read.log_prob(z), expected, rtol=1e-4, atol=1e-4)
    covariances = [covariance for _, _, covariance in split_mixture(prior)]
    np.testing.assert_allclose(arrays["factors"], np.linalg.cholesky(covariances), rtol=1e-4, atol=1e-5)
    assert {array.dtype for array in arrays.values()} == {np.dtype(np.float32)}


def test_a_mixture_begins_as_unit_gaussians_of_equal_weight():
    (weights, means, covariances) = zip(*split_mixture(model.MixturePrior(50, 3)), strict=True)
    np.testing.assert_allclose(weights, 0.02)
    np.testing.assert_allclose(covariances, [np.eye(3)] * 50)
    assert 0.8 < np.std(means) < 1.2


# The VAE


def test_z_is_drawn_from_the_posterior():
    vae, images = transparent(1.5, 2), np.zeros((20_000, *SIDES), np.float32)
    z, following = (draws(vae(images)).ravel() for _ in range(2))
    assert z.mean() == pytest.approx(1.5, abs=0.03)
    assert z.std() == pytest.approx(2, abs=0.03)
    assert np.mean(np.abs(z - 1.5) < 2) == pytest.approx(0.6827, abs=0.01)  # within one standard deviation: a normal
    assert abs(np.corrcoef(z[:-1], z[1:])[0, 1]) < 0.02 and abs(np.corrcoef(z, following)[0, 1]) < 0.02


def test_the_reported_losses_are_means_over_all_images(images):
    vae = transparent(0.3, math.exp(-30))  # z is the mean, to the last digit
    vae.encoder.get_layer("mean").set_weights([np.eye(PIXELS, dtype=np.float32), np.full(PIXELS, 0.3, np.float32)])
    vae.compile(jit_compile=False)
    found = vae.evaluate(Batches(images, 10, seed=0), verbose=0, return_dict=True)
    mean = images.reshape(25, PIXELS) + 0.3
    reconstruction = cross_entropy(images, sigmoid(mean).reshape(images.shape)).mean()
    kl = np.mean(np.sum(mean**2, axis=1) + PIXELS * (math.exp(-60) + 60 - 1)) / 2
    expected = {"general_loss": reconstruction + kl, "reconstruction_loss": reconstruction, "kl_loss": kl}
    assert found == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("variance", [None, 0.5])
@pytest.mark.parametrize("beta", [0.0, 1.0, 4.0])
def test_beta_weighs_the_kl_in_the_gradient_and_not_in_the_reported_losses(images, beta, variance):
    outputs, gradients, reported = take_step(transparent(0.4, 0.7, beta=beta, variance=variance), images)
    z = draws(outputs)[:, 0]
    targets, pixels, kl = images.reshape(25, PIXELS), sigmoid(z), PIXELS * (0.4**2 + 0.49 - math.log(0.49) - 1) / 2
    if variance is None:
        reconstruction, of_z = cross_entropy(images, pixels.reshape(images.shape)), pixels - targets
    else:
        reconstruction = -norm.logpdf(targets, pixels, math.sqrt(variance)).sum(axis=1)
        of_z = (pixels - targets) / variance * pixels * (1 - pixels)
    expected = {"general_loss": reconstruction.mean() + kl, "reconstruction_loss": reconstruction.mean(), "kl_loss": kl}
    assert reported == pytest.approx(expected, rel=1e-5)
    # The chain rule through z = mean + exp(log_var / 2) * epsilon, for the biases of mean and log_var.
    by_hand = (of_z + beta * 0.4).mean(axis=0), (of_z * (z - 0.4) / 2 + beta * (0.49 - 1) / 2).mean(axis=0)
    for gradient, wanted in zip(gradients, by_hand, strict=True):
        np.testing.assert_allclose(gradient, wanted, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("beta", [1.0, 2.5])
def test_a_learned_prior_is_trained_without_the_noise_of_log_q(images, beta):
    """The gradient of "sticking the landing", by hand: the plain one and terms whose mean is 0."""
    prior, start = make_mixture(), make_mixture()  # the same numbers
    outputs, gradients, reported = take_step(transparent(0.4, 0.7, prior, beta=beta), images)
    z = draws(outputs)[:, 0]
    targets, log_prior = images.reshape(25, PIXELS), log_mixture(start, z)
    kl = np.mean(-PIXELS * norm.entropy(0, 0.7) - log_prior)
    reconstruction = cross_entropy(images, sigmoid(z).reshape(images.shape)).mean()
    expected = {"general_loss": reconstruction + kl, "reconstruction_loss": reconstruction, "kl_loss": kl}
    assert reported == pytest.approx(expected, rel=1e-4)
    of_z = sigmoid(z) - targets - beta * slope_of_mixture(start, z)
    epsilon = (z - 0.4) / 0.7
    plain = of_z, of_z * (z - 0.4) / 2 - beta / 2  # of -log p(x|z) + beta * KL
    noise = -beta * epsilon / 0.7, beta * (1 - epsilon**2) / 2  # of mean 0, as epsilon ~ N(0, I)
    for gradient, each, other in zip(gradients, plain, noise, strict=True):
        np.testing.assert_allclose(gradient, (each + other).mean(axis=0), rtol=1e-3, atol=1e-5)
    assert not any(map(np.array_equal, start.get_weights(), prior.get_weights()))


@pytest.mark.parametrize("learned", [False, True])
def test_several_samples_train_the_importance_weighted_bound_and_the_reported_losses_stay_the_elbo(images, learned):
    vae = transparent(0.1, 1.1, make_mixture() if learned else model.NormalPrior(), importance_samples=3)
    outputs, (gradient, _), reported = take_step(vae, images)
    loss = float(vae.compute_loss(x=images, y_pred=outputs, training=True))
    z, targets = draws(outputs, 3), images.reshape(25, 1, PIXELS)
    assert len(np.unique(z[0, :, 0])) == 3

    flat = z.reshape(-1, PIXELS)
    if learned:
        log_prior, slopes = log_mixture(make_mixture(), flat), slope_of_mixture(make_mixture(), flat)
        kl = -PIXELS * norm.entropy(0, 1.1) - log_prior.mean()
    else:
        log_prior, slopes = norm.logpdf(flat).sum(axis=1), -flat
        kl = PIXELS * (0.1**2 + 1.1**2 - 2 * math.log(1.1) - 1) / 2
    tolerance = 1e-4 if learned else 1e-5
    log_likelihood = (targets * z - np.logaddexp(0, z)).sum(axis=2)
    log_ratio = log_prior.reshape(25, 3) - norm.logpdf(z, 0.1, 1.1).sum(axis=2)  # log p(z) - log q(z|x)
    np.testing.assert_allclose(ops.convert_to_numpy(outputs[1]), -log_likelihood, rtol=1e-5)
    np.testing.assert_allclose(ops.convert_to_numpy(outputs[3]), log_ratio, rtol=1e-4, atol=tolerance)
    log_weights = log_likelihood + log_ratio
    assert loss == pytest.approx((np.log(3) - logsumexp(log_weights, axis=1)).mean(), rel=tolerance)
    reconstruction = -log_likelihood.mean()
    expected = {"general_loss": reconstruction + kl, "reconstruction_loss": reconstruction, "kl_loss": kl}
    assert reported == pytest.approx(expected, rel=tolerance)
    shares = softmax(log_weights, axis=1)[:, :, None]  # each sample's share in the gradient (Burda et al., equation 13)
    by_hand = (shares * (sigmoid(z) - targets - slopes.reshape(z.shape))).sum(axis=1).mean(axis=0)
    np.testing.assert_allclose(gradient, by_hand, rtol=10 * tolerance, atol=tolerance / 10)
    assert vae(images)[0].shape == (25, 1, *SIDES)  # one sample is enough to measure


# Noise and reconstructions


def test_all_noise_is_a_function_of_the_keys(images):
    image, z = keras.Input(SIDES), keras.Input((PIXELS,))
    encoder = model.end_encoder(image, layers.Dropout(0.5, name="dropout")(layers.Flatten()(image)), PIXELS)
    decoder = model.end_decoder(z, layers.Dropout(0.5, name="dropout")(z), SIDES)
    vae = model.VAE((encoder, decoder), model.NormalPrior())

    def train(*keys):
        vae.reseed(*keys)
        steps = [to_numpy(vae(images, training=True)) for _ in range(2)]
        # Noise of the decoder's dropout, of z, and of the encoder's dropout.
        return [part for logits, _, kl, log_ratio in steps for part in (logits == 0, log_ratio, kl)]

    first = train(1, 2)
    assert 0.35 < first[0].mean() < 0.65
    assert not any(map(np.array_equal, first[:3], first[3:]))  # the next step has other noise
    assert all(map(np.array_equal, first, train(1, 2)))
    for keys in ((1, 3), (2, 2), (2, 1), (1,)):
        assert not any(map(np.array_equal, first, train(*keys)))
    generators = [vae.noise, *(half.get_layer("dropout").seed_generator for half in (encoder, vae.decoder))]
    assert len({tuple(state) for state in to_numpy([generator.state for generator in generators])}) == 3


def test_reconstruct_decodes_a_posterior_sample(images):
    vae = transparent(0.5, 2)
    vae.reseed(1)
    z = draws(vae(images))
    vae.reseed(1)
    found = vae.reconstruct(images)
    assert isinstance(found, np.ndarray)
    np.testing.assert_allclose(found, sigmoid(z).reshape(images.shape), rtol=1e-5)
