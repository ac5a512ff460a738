"""Where latent vectors come from."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import multivariate_normal

from vae import sampling
from vae.sampling import Mixture


@pytest.fixture
def overlapping():
    """Label 0 around the origin; label 1 beside it, of two components of unlike shapes. The last is shared."""
    factors = np.array([[[1, 0], [0, 1]], [[1.5, 0], [0.5, 0.7]], [[0.6, 0], [-0.2, 2]]], np.float32)
    means = np.array([[0, 0], [3, 1.5], [1, -4]], np.float32)
    shares = np.array([[1, 0], [0, 1], [0.1, 0.9]], np.float32)
    return Mixture(np.array([0.5, 0.3, 0.2], np.float32), means, factors, np.array([0, 1]), shares)


def draw(mixture: Mixture, count: int, scale: float = 1.0, label: int | None = None, seed: int = 1) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return mixture.draw(rng, count, scale) if label is None else mixture.draw_label(rng, count, scale, label)


# Codes and fitting


def test_codes_are_drawn_from_the_posterior():
    mean, variance = (np.tile(np.float32(row), (20_000, 1)) for row in ([1, -2], [4, 0.25]))
    codes = sampling.draw_codes(mean, np.log(variance), np.random.default_rng(0))
    assert codes.shape == (20_000, 2) and codes.dtype == np.float32
    np.testing.assert_allclose(codes.mean(axis=0), [1, -2], atol=0.06)
    np.testing.assert_allclose(np.cov(codes.T), [[4, 0], [0, 0.25]], rtol=0.05, atol=0.03)


def test_labels_are_learned_from_the_codes(overlapping, monkeypatch):
    """By hand: codes at the means belong to their Gaussians, and one between two belongs to both."""
    monkeypatch.setattr(sampling, "AT_ONCE", 2)  # the last part is smaller
    means, factors = np.array([[0, 0], [100, 0], [900, 0]], np.float32), np.stack([np.eye(2)] * 3)
    apart = replace(overlapping, weights=np.array([0.4, 0.4, 0.2], np.float32), means=means, factors=factors)
    codes = np.array([[0, 0], [1, 0], [50, 0], [100, 1], [101, 0]], np.float32)
    known = sampling.learn_labels(apart, codes, np.array([7, 7, 3, 3, 3], np.uint8))
    assert known.labels.tolist() == [3, 7] and known.class_shares.dtype == np.float32
    by_hand = [[0.5 / 2.5, 2 / 2.5], [1, 0], [0.6, 0.4]]  # the last Gaussian has no codes: shares of the whole set
    np.testing.assert_allclose(known.class_shares, by_hand, atol=1e-5)


# Drawing


def test_scale_multiplies_the_deviation(overlapping):
    plain, one, two = (draw(overlapping, 100, scale) for scale in (0.0, 1.0, 2.0))
    assert {tuple(row) for row in plain} == {tuple(row) for row in overlapping.means}
    np.testing.assert_allclose(two - plain, 2 * (one - plain), atol=1e-4)


def test_draws_have_the_moments_of_the_mixture(overlapping):
    z = draw(overlapping, 50_000)
    assert z.dtype == np.float32
    weights, means, factors = overlapping.weights, overlapping.means, overlapping.factors
    mean = weights @ means
    second = factors @ factors.transpose(0, 2, 1) + means[:, :, None] * means[:, None]
    covariance = np.einsum("m,mij->ij", weights, second) - np.outer(mean, mean)
    np.testing.assert_allclose(z.mean(axis=0), mean, atol=0.05)
    np.testing.assert_allclose(np.cov(z.T), covariance, rtol=0.03, atol=0.1)


def test_the_normal_prior_is_a_mixture_of_one(overlapping):
    normal = sampling.make_normal(3)
    moved, stretched = replace(normal, means=normal.means + 1), replace(normal, factors=2 * normal.factors)
    assert [prior.is_normal for prior in (normal, overlapping, moved, stretched)] == [True, False, False, False]
    noise = np.random.default_rng(1).spawn(2)[1].standard_normal((9, 3), np.float32)
    np.testing.assert_array_equal(draw(normal, 9), noise)


def shares_by_hand(mixture: Mixture, z: np.ndarray) -> np.ndarray:
    """Return each component's share of the density at latent vectors (n, D), from SciPy's densities: (n, M)."""
    components = zip(mixture.weights, mixture.means, np.float64(mixture.factors), strict=True)
    densities = [weight * multivariate_normal.pdf(z, mean, factor @ factor.T) for weight, mean, factor in components]
    return np.transpose(densities / np.sum(densities, axis=0))


def test_probabilities_of_components_and_labels_are_by_bayes_rule(overlapping, monkeypatch):
    z = np.random.default_rng(3).normal(size=(20, 2)).astype(np.float32) * 2
    expected = shares_by_hand(overlapping, z)
    np.testing.assert_allclose(overlapping.responsibilities(z), expected, rtol=1e-4, atol=1e-7)
    of_label = np.stack([expected[:, 0] + 0.1 * expected[:, 2], expected[:, 1] + 0.9 * expected[:, 2]], axis=1)
    np.testing.assert_allclose(overlapping.label_probabilities(z), of_label, rtol=1e-4, atol=1e-7)
    monkeypatch.setattr(sampling, "AT_ONCE", 7)  # the last part is smaller
    np.testing.assert_allclose(overlapping.label_probabilities(z), of_label, rtol=1e-4, atol=1e-7)
    same = replace(overlapping, means=0 * overlapping.means, factors=np.stack([np.eye(2)] * 3))
    same = replace(same, weights=np.array([1, 1, 0], np.float32))
    np.testing.assert_allclose(same.responsibilities(z[:1]), [[0.5, 0.5, 0]])
    far = np.full((1, 2), 1e4, np.float32)
    assert np.isfinite(overlapping.responsibilities(far)).all()


def test_a_vector_drawn_for_a_label_is_not_among_other_labels(overlapping):
    for column, label in enumerate(overlapping.labels):
        sure = overlapping.label_probabilities(draw(overlapping, 2000, label=label))[:, column]
        weights = overlapping.weights * overlapping.class_shares[:, column]
        by_chance = overlapping.label_probabilities(overlapping.draw(np.random.default_rng(1), 2000, 1.0, weights))
        assert np.mean(sure >= 0.9) > 0.99 and np.mean(by_chance[:, column] >= 0.9) < 0.8


@pytest.mark.parametrize(
    "shares, label, wanted",
    [
        ([1, 0, 0.08], 1, [0, 0.3, 0.92 * 0.2]),  # as often as their weights and shares say
        ([0.8, 0.3, 0.3], 0, [1, 0, 0]),  # where no draw is sure of the label, the surest stays
    ],
)
def test_a_label_is_drawn_from_its_gaussians(overlapping, shares, label, wanted):
    means = np.array([[-90, 0], [0, 0], [90, 0]], np.float32)
    shares = np.stack([shares, 1 - np.array(shares)], axis=1).astype(np.float32)
    z = draw(replace(overlapping, means=means, class_shares=shares), 20_000, label=label)  # weights 0.5, 0.3, 0.2
    counts, _ = np.histogram(z[:, 0], [-999, -45, 45, 999])
    np.testing.assert_allclose(counts / 20_000, wanted / np.sum(wanted), atol=0.01)
    assert z.shape == (20_000, 2) and z.dtype == np.float32


@pytest.mark.parametrize("label", [None, 1])
def test_the_first_vectors_are_the_same_for_every_count(overlapping, label, monkeypatch):
    """To the last bit; they are computed in parts, of which the last is smaller."""
    monkeypatch.setattr(sampling, "AT_ONCE", 7)
    many = draw(overlapping, 50, label=label)
    for count in (1, 2, 7, 9, 49):
        np.testing.assert_array_equal(draw(overlapping, count, label=label), many[:count])
    assert len(np.unique(many, axis=0)) == 50 and not np.isin(many, draw(overlapping, 50, label=label, seed=2)).any()


def test_a_prior_without_labels_is_read(overlapping):
    arrays = {name: getattr(overlapping, name).astype(np.float64) for name in ("weights", "means", "factors")}
    prior = sampling.read_mixture(arrays)
    assert {array.dtype for name, array in vars(prior).items() if name != "labels"} == {np.dtype(np.float32)}
    assert (prior.labels.shape, prior.class_shares.shape) == ((0,), (3, 0))
    np.testing.assert_array_equal(draw(prior, 9), draw(overlapping, 9))
    np.testing.assert_array_equal(sampling.read_mixture(vars(overlapping)).class_shares, overlapping.class_shares)


# Walks and planes


def test_a_walk_in_the_normal_prior_stays_on_the_sphere_between_its_ends():
    stops = 2 * np.array([[[1, 0, 0], [np.cos(2), np.sin(2), 0], [np.cos(2), np.sin(2), 0]]])
    (walk,) = sampling.walk(sampling.make_normal(3), stops, 4)
    angles = np.array([0, 0.5, 1, 1.5, 2, 2, 2, 2, 2])  # at the end it stays at one place
    on_sphere = 2 * np.stack([np.cos(angles), np.sin(angles), 0 * angles], axis=1)
    np.testing.assert_allclose(walk, on_sphere, atol=1e-6)
    stops = np.array([[[0.6], [-0.6]], [[-0.2], [0.2]]])  # to the opposite place it goes through the middle
    walk = sampling.walk(sampling.make_normal(1), stops, 2)
    np.testing.assert_allclose(walk[:, :, 0], [[0.6, 0, -0.6], [-0.2, 0, 0.2]], atol=1e-6)


def make_clusters(*means: tuple, deviation: float = 0.5) -> Mixture:
    """Return a mixture of round Gaussians of equal weight at these places in the plane."""
    count = len(means)
    factors = np.stack([deviation * np.eye(2)] * count)
    return sampling.read_mixture({"weights": np.full(count, 1 / count), "means": np.array(means), "factors": factors})


def test_a_walk_in_a_mixture_takes_the_bridge_between_two_clusters():
    bridge = [(6 * np.cos(angle), 6 * np.sin(angle)) for angle in np.linspace(0, np.pi, 16)]  # a half circle
    prior = make_clusters(*bridge)
    starts, ends = np.array([[6.2, 0.1], [-6, 0.3]], np.float32), np.array([[-6.1, -0.2], [0.2, 6]], np.float32)
    walks = sampling.walk(prior, np.stack([starts, ends], axis=1), 39)
    assert walks.shape == (2, 40, 2) and walks.dtype == np.float32
    least = np.quantile(prior.log_prob(draw(prior, 2000)), 0.05)
    straight = starts[0] + np.linspace(0, 1, 40)[:, None] * (ends[0] - starts[0])
    assert prior.log_prob(walks.reshape(-1, 2)).min() > least > prior.log_prob(straight).min()
    for walk in walks:  # of equal length, but for the few that cut a corner
        steps = np.linalg.norm(np.diff(walk, axis=0), axis=1)
        assert steps.max() < 1.02 * np.median(steps) and steps.min() > 0.8 * np.median(steps)


def test_a_walk_crosses_a_desert_where_it_must():
    """Each cluster has more Gaussians than a walk may go to from one, and so no step to the other cluster."""
    rng = np.random.default_rng(0)
    left, right = rng.normal((-50, 0), 0.2, (30, 2)), rng.normal((50, 0), 0.2, (30, 2))
    prior = make_clusters(*left, *right, deviation=0.01)
    start, end = prior.means[[7, -1]]
    (walk,) = sampling.walk(prior, np.array([[start, end]]), 4)
    np.testing.assert_allclose(walk, start + np.linspace(0, 1, 5)[:, None] * (end - start), atol=1e-4)
    (still,) = sampling.walk(prior, np.array([[start, start]]), 3)
    np.testing.assert_allclose(still, np.tile(start, (4, 1)), atol=1e-4)


def test_a_step_costs_its_length_over_the_density_of_a_dimension():
    prior, nodes, costs = make_clusters((0, 0), deviation=2), np.array([[0, 0], [3, 0], [0, -1]]), np.zeros((3, 3))
    sampling._add_steps(costs, prior, nodes, 0)
    for place, length in ((1, 3), (2, 1)):
        squares = np.array([0.25, 0.5, 0.75]) ** 2 * length**2
        mean_log_density = np.mean(-squares / 8 - np.log(2 * np.pi * 4))
        assert costs[0, place] == costs[place, 0] == pytest.approx(length * np.exp(-mean_log_density / 2), rel=1e-5)
    assert costs[1, 2] == 0  # not asked for


def test_a_walk_among_few_gaussians_passes_through_all_stops():
    """With a single Gaussian it is straight from one to the next; and how others walk makes no difference."""
    stops = np.array([[[1, 0], [0, 3], [-2, 1]], [[0, 3], [0, 0], [1, 0]]], np.float32)
    one = make_clusters((0, 1), deviation=3)
    (walk,) = sampling.walk(one, stops[:1], 2)
    np.testing.assert_allclose(walk, [[1, 0], [0.5, 1.5], [0, 3], [-1, 2], [-2, 1]], atol=1e-6)
    three = make_clusters((0, 0), (1, 2), (-1, 2))
    together = sampling.walk(three, stops, 7)
    np.testing.assert_array_equal(sampling.walk(three, stops[1:], 7)[0], together[1])
    np.testing.assert_allclose(together[:, ::7], stops, atol=1e-6)


def make_pair() -> Mixture:
    """Return a mixture of two Gaussians in four dimensions, far apart in the first."""
    factors = np.tril(np.random.default_rng(1).normal(size=(2, 4, 4)) / 4) + np.eye(4)
    means = np.array([[-9, 0, 1, 2], [9, 0, -3, 5]])
    return sampling.read_mixture({"weights": np.array([0.5, 0.5]), "means": means, "factors": factors})


@pytest.mark.parametrize("prior, axes", [(sampling.make_normal(4), [2, 0]), (make_pair(), [0, 1])])
def test_a_plane_has_the_quantiles_of_two_axes_and_the_conditional_means_of_the_nearest_gaussian(prior, axes):
    z = sampling.lay_plane(prior, 6, axes, np.random.default_rng(0))
    assert z.dtype == np.float32
    draws = prior.draw(np.random.default_rng(2), 50_000)
    across, down = np.quantile(draws[:, axes], (np.arange(6) + 0.5) / 6, axis=0).T
    wanted = np.stack([np.tile(across, 6), np.repeat(down[::-1], 6)], axis=1)
    np.testing.assert_allclose(z[:, axes], wanted, atol=0.15)
    for row in z:
        nearest = np.linalg.norm(prior.means - row, axis=1).argmin()
        mean, covariance = prior.means[nearest], prior.factors[nearest] @ prior.factors[nearest].T
        given = mean + covariance[:, axes] @ np.linalg.solve(covariance[np.ix_(axes, axes)], (row - mean)[axes])
        np.testing.assert_allclose(row, given, atol=1e-3)
