"""Where latent vectors come from."""

from dataclasses import replace

import numpy as np
import pytest

from vae import sampling
from vae.sampling import Mixture
from vae.terminal import UserError


@pytest.fixture(scope="module")
def blobs():
    """Codes of two classes in two dimensions: class 3, three quarters of all, in two places, class 7 in one."""
    rng = np.random.default_rng(0)
    three = np.concatenate([rng.normal((-6, 0), 0.3, (750, 2)), rng.normal((6, 0), 0.3, (750, 2))])
    seven = rng.multivariate_normal((0, 8), [[0.3, 0.4], [0.4, 1.5]], 500)
    order = rng.permutation(2000)
    return np.concatenate([three, seven])[order], np.repeat([3, 7], [1500, 500])[order]


@pytest.fixture(scope="module")
def mixture(blobs):
    return sampling.fit(*blobs, seed=0)


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


def test_each_label_has_its_share_and_as_many_components_as_held_out_codes_ask_for(mixture):
    assert mixture.labels.tolist() == [3, 7]
    assert set(map(tuple, mixture.class_shares)) == {(1, 0), (0, 1)}
    threes, sevens = mixture.class_shares.sum(axis=0)
    assert threes >= 2 and sevens == 1
    np.testing.assert_allclose(mixture.weights @ mixture.class_shares, [0.75, 0.25], rtol=1e-6)
    assert all(array.dtype == np.float32 for array in (mixture.weights, mixture.means, mixture.factors))


def test_draws_have_the_moments_of_the_codes(blobs, mixture):
    codes, labels = blobs
    drawn = draw(mixture, 20_000)
    assert drawn.dtype == np.float32
    np.testing.assert_allclose(drawn.mean(axis=0), codes.mean(axis=0), atol=0.15)
    np.testing.assert_allclose(np.cov(drawn.T), np.cov(codes.T), rtol=0.05, atol=0.4)
    sevens = draw(mixture, 20_000, label=7)
    np.testing.assert_allclose(np.cov(sevens.T), np.cov(codes[labels == 7].T), rtol=0.1, atol=0.02)


def test_without_labels_there_is_one_mixture_for_all(blobs):
    unlabelled = sampling.fit(blobs[0], None, seed=0)
    assert unlabelled.labels.shape == (0,) and unlabelled.class_shares.shape == (len(unlabelled.weights), 0)
    np.testing.assert_allclose(draw(unlabelled, 20_000).mean(axis=0), blobs[0].mean(axis=0), atol=0.15)
    with pytest.raises(UserError, match=r"--digit 1: this run has no labels; draw without --digit"):
        draw(unlabelled, 5, label=1)
    assert sampling.read_mixture(vars(unlabelled), 2).labels is unlabelled.labels


@pytest.mark.parametrize("count", [1, 2, 5, 40])
def test_a_small_class_gets_a_component_too(count):
    codes = np.random.default_rng(0).normal(size=(200 + count, 4))
    found = sampling.fit(codes, np.repeat([0, 1], [200, count]), seed=0)
    assert found.labels.tolist() == [0, 1]
    assert found.weights @ found.class_shares[:, 1] == pytest.approx(count / (200 + count))
    assert np.isfinite(found.factors).all() and draw(found, 3, label=1).shape == (3, 4)


# Drawing


def test_scale_multiplies_the_deviation(overlapping):
    plain, one, two = (draw(overlapping, 100, scale) for scale in (0.0, 1.0, 2.0))
    assert {tuple(row) for row in plain} == {tuple(row) for row in overlapping.means}
    np.testing.assert_allclose(two - plain, 2 * (one - plain), atol=1e-4)


def test_the_normal_prior_is_a_mixture_of_one():
    z = draw(sampling.make_normal(3), 20_000)
    np.testing.assert_allclose(z.mean(axis=0), [0, 0, 0], atol=0.04)
    np.testing.assert_allclose(np.cov(z.T), np.eye(3), atol=0.05)


def by_hand(mixture: Mixture, z: np.ndarray) -> np.ndarray:
    """Return each component's share of the density at one latent vector, from the covariances."""
    densities = []
    for weight, mean, factor in zip(mixture.weights, mixture.means, mixture.factors, strict=True):
        covariance, off = factor @ factor.T, z - mean
        volume = np.sqrt(np.linalg.det(2 * np.pi * covariance))
        densities.append(weight * np.exp(-0.5 * off @ np.linalg.inv(covariance) @ off) / volume)
    return np.array(densities) / np.sum(densities)


def test_probabilities_of_components_and_labels_are_by_bayes_rule(overlapping):
    z = np.random.default_rng(3).normal(size=(20, 2)).astype(np.float32) * 2
    expected = np.array([by_hand(overlapping, row.astype(np.float64)) for row in z])
    np.testing.assert_allclose(overlapping.responsibilities(z), expected, rtol=1e-4, atol=1e-7)
    of_label = np.stack([expected[:, 0] + 0.1 * expected[:, 2], expected[:, 1] + 0.9 * expected[:, 2]], axis=1)
    np.testing.assert_allclose(overlapping.label_probabilities(z), of_label, rtol=1e-4, atol=1e-7)
    same = replace(overlapping, means=0 * overlapping.means, factors=np.stack([np.eye(2)] * 3))
    same = replace(same, weights=np.array([1, 1, 0], np.float32))
    np.testing.assert_allclose(same.responsibilities(z[:1]), [[0.5, 0.5, 0]])
    far = np.full((1, 2), 1e4, np.float32)
    assert np.isfinite(overlapping.responsibilities(far)).all()


def test_a_vector_drawn_for_a_label_is_not_among_other_labels(overlapping):
    for column, label in enumerate(overlapping.labels):
        sure = overlapping.label_probabilities(draw(overlapping, 2000, label=label))[:, column] >= sampling.SURE
        weights = overlapping.weights * overlapping.class_shares[:, column]
        plain = overlapping.draw(np.random.default_rng(1), 2000, 1.0, weights)
        by_chance = overlapping.label_probabilities(plain)[:, column] >= sampling.SURE
        assert sure.mean() > 0.99 and by_chance.mean() < 0.8


def test_a_label_that_is_never_sure_is_drawn_all_the_same_and_an_unknown_one_is_refused(overlapping):
    same = replace(overlapping, means=np.zeros((3, 2)), factors=np.stack([np.eye(2)] * 3))
    assert draw(same, 50, label=0).shape == (50, 2)
    weightless = replace(overlapping, weights=np.float32([1, 0, 0]))  # no component with a weight has label 1
    for mixture, label in ((overlapping, 4), (weightless, 1)):
        with pytest.raises(UserError, match=f"--digit {label}: this run knows only 0, 1; draw without --digit"):
            draw(mixture, 5, label=label)


# Reading


def test_arrays_that_do_not_fit_are_refused(mixture):
    arrays = vars(mixture)
    read = sampling.read_mixture(arrays | {"activity": np.ones(2)}, 2)
    np.testing.assert_array_equal(draw(read, 10, label=3), draw(mixture, 10, label=3))
    upper = mixture.factors.copy()
    upper[0, 0, 1] = 0.5
    for broken in (
        *({name: array for name, array in arrays.items() if name != missing} for missing in arrays),
        arrays | {"means": mixture.means[:, :1]},
        arrays | {"weights": -mixture.weights},
        arrays | {"weights": mixture.weights / 2},
        arrays | {"weights": np.array(["a"])},
        arrays | {"weights": np.float32(1)},
        arrays | {"weights": mixture.weights[:0], "means": mixture.means[:0], "factors": mixture.factors[:0]},
        arrays | {"means": np.full(mixture.means.shape, 1e300)},
        arrays | {"factors": np.full_like(mixture.factors, np.nan)},
        arrays | {"factors": np.zeros_like(mixture.factors)},
        arrays | {"factors": upper},
        arrays | {"class_shares": mixture.class_shares / 2},
        arrays | {"class_shares": 2 * mixture.class_shares - 0.5},
        arrays | {"class_shares": mixture.class_shares[0]},
        arrays | {"labels": mixture.labels[:1]},
    ):
        with pytest.raises(UserError, match=r"^prior\.npz: .*; draw with --sampler prior$"):
            sampling.read_mixture(broken, 2)
    with pytest.raises(UserError, match="for this decoder"):
        sampling.read_mixture(arrays, 3)
    many = np.ones(sampling.MAX_COMPONENTS + 1, np.float32)
    with pytest.raises(UserError, match="more than 1,000 components"):
        sampling.read_mixture(arrays | {"weights": many / many.sum()}, 2)


def test_the_most_active_dimensions():
    assert sampling.find_most_active({"activity": np.array([0.1, 0.9, 0.0, 0.5])}, 4) == (1, 3)
    assert sampling.find_most_active(None, 2) == (0, 1)  # the plane itself
    for arrays, latent_dim in ((None, 4), ({}, 4), ({"activity": np.ones(3)}, 4), ({"activity": np.ones(1)}, 1)):
        with pytest.raises(UserError, match="--manifold"):
            sampling.find_most_active(arrays, latent_dim)


# Walks and planes


def test_a_walk_stays_on_the_sphere_between_its_ends():
    starts, ends = np.eye(3)[[0, 1]] * 2, np.eye(3)[[1, 2]] * 2
    walk = sampling.walk(starts, ends, 5)
    np.testing.assert_allclose(walk[:, 0], starts, atol=1e-6)
    np.testing.assert_allclose(walk[:, -1], ends, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(walk, axis=2), 2, atol=1e-6)
    angles = np.arccos(walk[0] @ starts[0] / 4)
    np.testing.assert_allclose(angles, np.linspace(0, np.pi / 2, 5), atol=1e-6)


def test_a_walk_to_the_same_place_stays_and_one_to_the_opposite_goes_through_the_middle():
    place = np.array([[0.3, -0.4]])
    np.testing.assert_allclose(sampling.walk(place, place, 4), np.tile(place, (1, 4, 1)), atol=1e-6)
    ends = np.array([[0.6], [-0.2]])  # of one latent dimension
    np.testing.assert_allclose(sampling.walk(ends, -ends, 3), np.stack([ends, 0 * ends, -ends], axis=1), atol=1e-6)


def test_the_plane_has_the_quantiles_of_the_prior():
    z = sampling.plane(5, 4, axes=(2, 0)).reshape(5, 5, 4)
    quantiles = [-1.2816, -0.5244, 0, 0.5244, 1.2816]  # 10% to 90%
    np.testing.assert_allclose(z[:, :, 2], np.tile(quantiles, (5, 1)), atol=1e-4)
    np.testing.assert_allclose(z[:, :, 0], -np.tile(quantiles, (5, 1)).T, atol=1e-4)
    assert not z[:, :, [1, 3]].any()
