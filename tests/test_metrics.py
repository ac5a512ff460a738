"""The importance-weighted likelihood and the active units, against closed forms."""

import numpy as np
import pytest
from scipy.special import logsumexp
from scipy.stats import multivariate_normal, norm

from vae import metrics, sampling
from vae.metrics import Posterior
from vae.sampling import Mixture

SIDES = (10, 8)


def test_an_exact_posterior_needs_one_sample():
    """x = W z + e / 2 with e ~ N(0, I). The columns of W are at right angles, so p(z|x) is a Gaussian as q(z|x) is.

    Every weight is p(x) itself.
    """
    rng = np.random.default_rng(0)
    weights = np.linalg.qr(rng.normal(size=(80, 3)))[0] * [1, 2, 3]
    x = rng.normal(size=(6, 80))
    precision = 1 + np.array([1, 4, 9]) / 0.25
    mean, log_var = x @ weights / 0.25 / precision, np.tile(-np.log(precision), (6, 1))
    posterior = Posterior(x.reshape(6, *SIDES), mean, log_var)

    def log_likelihood(images, z):
        return norm.logpdf(images.reshape(-1, 80), z @ weights.T, 0.5).sum(axis=1)

    exact = multivariate_normal.logpdf(x, cov=weights @ weights.T + 0.25 * np.eye(80))
    for samples in (1, 7):
        found = metrics.estimate_nll(posterior, log_likelihood, sampling.make_normal(3), samples, seed=3)
        np.testing.assert_allclose(found, -exact, rtol=1e-5)


@pytest.fixture
def two() -> Mixture:
    """A prior of two Gaussians in one dimension: 0.3 N(-1, 0.5^2) + 0.7 N(2, 1). They are labelled 4 and 9."""
    weights, means = np.array([0.3, 0.7], np.float32), np.array([[-1], [2]], np.float32)
    factors = np.array([[[0.5]], [[1]]], np.float32)
    return Mixture(weights, means, factors, np.array([4, 9]), np.eye(2, dtype=np.float32))


def test_the_likelihood_with_a_mixture_converges_to_the_closed_form(two):
    """x = z + 0.8 e has the density 0.3 N(-1, 0.5^2 + 0.8^2) + 0.7 N(2, 1 + 0.8^2)."""
    x = np.array([-2.0, 0.1, 3.0])
    posterior = Posterior(x[:, None, None], x[:, None] * 0.8, np.full((3, 1), -0.8))

    def log_likelihood(images, z):
        return norm.logpdf(images[:, 0, 0], z[:, 0], 0.8)

    parts = [np.log(w) + norm.logpdf(x, m, np.hypot(s, 0.8)) for w, m, s in ((0.3, -1, 0.5), (0.7, 2, 1))]
    found = metrics.estimate_nll(posterior, log_likelihood, two, 20_000, seed=0)
    np.testing.assert_allclose(found, -logsumexp(parts, axis=0), atol=0.02)


def test_kl_loss_by_hand(two):
    mean, log_var = np.array([[0.5], [-1.0]]), np.log([[0.25], [4.0]])
    posterior, z = Posterior(np.zeros((2, 1, 1)), mean, log_var), np.array([[0.7], [1.5]])
    closed = [(0.25 + 0.25 - np.log(0.25) - 1) / 2, (1 + 4 - np.log(4) - 1) / 2]
    np.testing.assert_allclose(metrics.kl_loss(posterior, z, sampling.make_normal(1)), closed)
    density = 0.3 * norm.pdf(z, -1, 0.5) + 0.7 * norm.pdf(z, 2, 1)
    by_hand = -norm.entropy(0, [0.5, 2]) - np.log(density[:, 0])
    np.testing.assert_allclose(metrics.kl_loss(posterior, z, two), by_hand, rtol=1e-5)


def test_information_per_dimension_by_hand():
    """Two images: in the first dimension the codes are spread by 1 + 0.5, in the second they do not depend on them."""
    mean, log_var = np.array([[1.0, 3], [-1, 3]]), np.log([[0.25, 0.5], [0.75, 0.5]])
    by_hand = [(np.log(1.5) - (np.log(0.25) + np.log(0.75)) / 2) / 2, 0]
    found = metrics.measure_information(mean, log_var)
    np.testing.assert_allclose(found, by_hand, atol=1e-12)


def test_label_accuracy_by_hand(two):
    z = np.array([[-1.0], [-1.2], [2], [3]], np.float32)  # 4, 4, 9, 9 by the prior
    assert metrics.measure_label_accuracy(two, z, np.array([4, 9, 9, 9])) == 0.75
    assert metrics.measure_label_accuracy(two, z, np.array([4, 4, 0, 0], np.uint8)) == 0.5
    assert metrics.measure_label_accuracy(two, z, None) is None
    assert metrics.measure_label_accuracy(sampling.make_normal(1), z, np.array([4, 4, 9, 9])) is None


@pytest.mark.parametrize("samples", [1, 3, 500, 501, 1203])
def test_every_image_is_decoded_with_samples_of_its_own_and_never_many_at_once(samples):
    images = np.arange(7.0)[:, None, None]
    decoded = []

    def log_likelihood(x, z):
        assert len(x) == len(z) <= metrics.AT_ONCE
        decoded.append(np.concatenate([x[:, 0], z], axis=1))
        return x[:, 0, 0] * -5000.0  # far from all: the weights must not overflow

    posterior = Posterior(images, np.zeros((7, 2)), np.zeros((7, 2)))
    found = metrics.estimate_nll(posterior, log_likelihood, sampling.make_normal(2), samples, 0)
    np.testing.assert_allclose(found, 5000 * images[:, 0, 0], rtol=1e-6, atol=1e-5)  # q is the prior
    decoded = np.concatenate(decoded)
    assert np.unique(decoded[:, 0], return_counts=True)[1].tolist() == [samples] * 7
    assert len(np.unique(decoded[:, 1])) > 0.99 * 7 * samples


def test_active_units_are_those_whose_mean_varies():
    mean = np.zeros((1000, 4))
    mean[:, 1] = 5.0  # constant: not active, however large
    mean[:, 2] = np.tile([-0.09, 0.09], 500)  # variance 0.0081
    mean[:, 3] = np.tile([-0.11, 0.11], 500)  # variance 0.0121
    assert metrics.count_active_units(mean) == 1


def test_irreducible_loss_by_hand():
    images = np.zeros((2, *SIDES))
    np.testing.assert_array_equal(metrics.irreducible_loss(images), [0, 0])
    images[0, 0, 0] = 0.5
    images[1, 0, :2] = 1, 0.25
    by_hand = [np.log(2), -0.25 * np.log(0.25) - 0.75 * np.log(0.75)]
    np.testing.assert_allclose(metrics.irreducible_loss(images), by_hand)
    np.testing.assert_allclose(metrics.irreducible_loss(images, 0.01), [80 * np.log(0.1 * np.sqrt(2 * np.pi))] * 2)


def test_average_by_hand():
    values = np.array([1, 2, 3, 6], np.float32)
    assert metrics.average(values) == pytest.approx((3, np.sqrt((4 + 1 + 0 + 9) / 3 / 4)))
    assert metrics.average(values[:1]) == (1, None)
    many = np.full(3 * 10**5, 0.1, np.float32)
    assert metrics.average(many)[0] == pytest.approx(np.float32(0.1), rel=1e-12)  # float32 would lose digits
