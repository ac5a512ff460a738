"""The importance-weighted likelihood and the active units, against closed forms."""

import numpy as np
import pytest

from vae import likelihood

DIMENSIONS = 3
NOISE = 0.5  # standard deviation of x given z in the toy model


@pytest.fixture
def toy():
    """A linear-Gaussian model: z ~ N(0, I), x = W z + NOISE * e, so that p(x) = N(0, W W^T + NOISE^2 I)."""
    rng = np.random.default_rng(0)
    weights = rng.normal(size=(784, DIMENSIONS)) / 10
    x = rng.normal(size=(6, DIMENSIONS)) @ weights.T + NOISE * rng.normal(size=(6, 784))
    precision = np.eye(DIMENSIONS) + weights.T @ weights / NOISE**2
    mean = np.linalg.solve(precision, weights.T @ x.T / NOISE**2).T  # of the true posterior
    # A diagonal posterior, and a little off: importance weights must make up for both.
    log_var = np.tile(np.log(1 / np.diag(precision)) + 0.2, (6, 1))

    def log_likelihood(images, z):
        deviation = images.reshape(-1, 784) - z @ weights.T
        return -0.5 * np.sum(deviation**2, axis=1) / NOISE**2 - 392 * np.log(2 * np.pi * NOISE**2)

    covariance = weights @ weights.T + NOISE**2 * np.eye(784)
    _, log_determinant = np.linalg.slogdet(covariance)
    solved = np.linalg.solve(covariance, x.T).T
    exact = 0.5 * np.sum(x * solved, axis=1) + 0.5 * log_determinant + 392 * np.log(2 * np.pi)
    return x.reshape(-1, 28, 28), mean + 0.2, log_var, log_likelihood, exact


def estimate(toy, samples: int, seed: int = 0) -> np.ndarray:
    images, mean, log_var, log_likelihood, _ = toy
    return likelihood.negative_log_likelihood(images, mean, log_var, log_likelihood, samples, seed)


def test_it_converges_to_the_closed_form(toy):
    errors = [np.mean(estimate(toy, samples) - toy[-1]) for samples in (1, 10, 100, 1000, 5000)]
    assert errors[0] > 0.3
    assert abs(errors[-1]) < 0.02
    assert errors == sorted(errors, reverse=True)


def test_one_sample_is_the_elbo(toy):
    images, mean, log_var, log_likelihood, _ = toy
    draws = np.mean([estimate(toy, 1, seed) for seed in range(400)], axis=0)
    rng = np.random.default_rng(1)
    z = mean + np.exp(log_var / 2) * rng.normal(size=(4000, *mean.shape))
    reconstruction = -np.mean([log_likelihood(images, each) for each in z], axis=0)
    kl = 0.5 * np.sum(mean**2 + np.exp(log_var) - log_var - 1, axis=1)
    np.testing.assert_allclose(draws, reconstruction + kl, atol=0.35)


def test_an_exact_posterior_needs_one_sample():
    """With a scalar latent the true posterior is a Gaussian, and every weight is p(x) itself."""
    x = np.zeros((1, 28, 28))
    x[0, 0, 0] = 1.3

    def log_likelihood(images, z):
        return -0.5 * (images[:, 0, 0] - z[:, 0]) ** 2 - 0.5 * np.log(2 * np.pi)

    mean, log_var = np.array([[0.65]]), np.array([[np.log(0.5)]])
    exact = 0.5 * 1.3**2 / 2 + 0.5 * np.log(2 * np.pi * 2)
    for samples in (1, 7):
        found = likelihood.negative_log_likelihood(x, mean, log_var, log_likelihood, samples, seed=3)
        np.testing.assert_allclose(found, exact, atol=1e-5)


@pytest.mark.parametrize("samples", [1, 3, 500, 501, 1203])
def test_every_sample_is_decoded_and_reported_once(samples):
    images, mean, log_var = np.zeros((5, 28, 28)), np.zeros((5, 2)), np.zeros((5, 2))
    decoded, reported = [], []

    def log_likelihood(x, z):
        assert len(x) == len(z) <= likelihood.DECODED_AT_ONCE
        decoded.append(len(z))
        return np.zeros(len(z))

    found = likelihood.negative_log_likelihood(images, mean, log_var, log_likelihood, samples, 0, reported.append)
    assert sum(decoded) == sum(reported) == 5 * samples
    np.testing.assert_allclose(found, 0, atol=1e-5)  # q is the prior and p(x|z) is 1, so each weight is 1


def test_far_images_do_not_overflow():
    images, mean, log_var = np.zeros((1, 28, 28)), np.zeros((1, 2)), np.zeros((1, 2))
    found = likelihood.negative_log_likelihood(images, mean, log_var, lambda x, z: np.full(len(z), -5000.0), 10, 0)
    np.testing.assert_allclose(found, 5000, atol=1e-3)


def test_active_units_are_those_whose_mean_varies():
    mean = np.zeros((1000, 4))
    mean[:, 1] = 5.0  # constant: not active, however large
    mean[:, 2] = np.tile([-0.09, 0.09], 500)  # variance 0.0081
    mean[:, 3] = np.tile([-0.11, 0.11], 500)  # variance 0.0121
    assert likelihood.active_units(mean) == 1


def test_irreducible_loss_by_hand():
    images = np.zeros((2, 28, 28))
    assert likelihood.irreducible_loss(images) == 0
    images[0, 0, 0] = 0.5
    images[1, 0, :2] = 1, 0.25
    by_hand = (np.log(2) - 0.25 * np.log(0.25) - 0.75 * np.log(0.75)) / 2
    assert likelihood.irreducible_loss(images) == pytest.approx(by_hand)
