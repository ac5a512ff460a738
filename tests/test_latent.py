"""Where latent vectors come from."""

import numpy as np
import pytest

from vae import latent
from vae.settings import UserError


@pytest.fixture(scope="module")
def blobs():
    """Codes of two classes in two dimensions: class 3, three quarters of all, in two places, class 7 in one."""
    rng = np.random.default_rng(0)
    three = np.concatenate([rng.normal((-6, 0), 0.3, (750, 2)), rng.normal((6, 0), 0.3, (750, 2))])
    seven = rng.normal((0, 8), (0.2, 1.5), (500, 2))
    return np.concatenate([three, seven]), np.repeat([3, 7], [1500, 500])


@pytest.fixture(scope="module")
def mixture(blobs):
    return latent.fit(*blobs, seed=0)


def test_the_number_of_components_is_found_from_held_out_codes(mixture):
    assert np.sum(mixture.classes == 3) >= 2
    assert mixture.weights[mixture.classes == 3].sum() == pytest.approx(0.75)
    assert mixture.weights.sum() == pytest.approx(1)


def test_draws_have_the_moments_of_the_codes(blobs, mixture):
    codes, labels = blobs
    drawn = latent.draw_mixture(np.random.default_rng(1), 20_000, mixture, 1.0, digit=None)
    assert drawn.dtype == np.float32
    np.testing.assert_allclose(drawn.mean(axis=0), codes.mean(axis=0), atol=0.15)
    np.testing.assert_allclose(np.cov(drawn.T), np.cov(codes.T), rtol=0.05, atol=0.4)
    sevens = latent.draw_mixture(np.random.default_rng(1), 5000, mixture, 1.0, digit=7)
    np.testing.assert_allclose(sevens.std(axis=0), codes[labels == 7].std(axis=0), rtol=0.15)


def test_scale_multiplies_the_deviation(mixture):
    plain = latent.draw_mixture(np.random.default_rng(2), 100, mixture, 0.0, digit=7)
    assert all(any(np.allclose(row, mean) for mean in mixture.means[mixture.classes == 7]) for row in plain)
    one, two = (latent.draw_mixture(np.random.default_rng(2), 100, mixture, scale, digit=7) for scale in (1.0, 2.0))
    np.testing.assert_allclose(two - plain, 2 * (one - plain), atol=1e-4)


def by_hand(mixture: latent.Mixture, z: np.ndarray) -> np.ndarray:
    """Each component's share of the density at one latent vector, from the covariances."""
    densities = []
    for weight, mean, factor in zip(mixture.weights, mixture.means, mixture.factors, strict=True):
        covariance, off = factor @ factor.T, z - mean
        volume = np.sqrt(np.linalg.det(2 * np.pi * covariance))
        densities.append(weight * np.exp(-0.5 * off @ np.linalg.inv(covariance) @ off) / volume)
    return np.array(densities) / np.sum(densities)


@pytest.fixture
def overlapping():
    """Class 0 around the origin and class 1 beside it, its two components of unlike shapes."""
    factors = np.array([[[1, 0], [0, 1]], [[1.5, 0], [0.5, 0.7]], [[0.6, 0], [-0.2, 2]]], np.float32)
    means = np.array([[0, 0], [3, 1.5], [1, -4]], np.float32)
    return latent.Mixture(np.array([0.5, 0.3, 0.2], np.float32), means, factors, np.array([0, 1, 1]))


def test_responsibilities_are_bayes_rule(overlapping):
    z = np.random.default_rng(3).normal(size=(20, 2)).astype(np.float32) * 2
    expected = [by_hand(overlapping, row.astype(np.float64)) for row in z]
    np.testing.assert_allclose(latent.responsibilities(overlapping, z), expected, rtol=1e-4, atol=1e-7)
    half = overlapping._replace(weights=np.array([1, 1, 0], np.float32), means=np.zeros((3, 2), np.float32))
    half = half._replace(factors=np.stack([np.eye(2, dtype=np.float32)] * 3))
    np.testing.assert_allclose(latent.responsibilities(half, z[:1]), [[0.5, 0.5, 0]])


def test_a_vector_drawn_for_a_digit_is_not_among_other_digits(overlapping):
    rng = np.random.default_rng(4)
    for digit, of_digit in ((0, [0]), (1, [1, 2])):
        z = latent.draw_mixture(rng, 2000, overlapping, 1.0, digit)
        sure = latent.responsibilities(overlapping, z)[:, of_digit].sum(axis=1) >= latent.SURE
        plain = latent._draw(rng, 2000, overlapping, 1.0, overlapping.weights * (overlapping.classes == digit))
        by_chance = latent.responsibilities(overlapping, plain)[:, of_digit].sum(axis=1) >= latent.SURE
        assert sure.mean() > 0.99 and by_chance.mean() < 0.8


def test_where_classes_lie_on_each_other_digits_are_drawn_all_the_same(overlapping):
    same = overlapping._replace(means=np.zeros((3, 2)), factors=np.stack([np.eye(2)] * 3))
    assert latent.draw_mixture(np.random.default_rng(0), 50, same, 1.0, digit=0).shape == (50, 2)


def test_a_digit_that_is_no_class_is_refused(mixture):
    with pytest.raises(UserError, match="knows only 3, 7"):
        latent.draw_mixture(np.random.default_rng(0), 5, mixture, 1.0, digit=4)


def test_without_labels_there_are_no_classes(blobs):
    unlabelled = latent.fit(blobs[0], None, seed=0)
    assert set(unlabelled.classes) == {-1}
    assert latent.draw_mixture(np.random.default_rng(0), 5, unlabelled, 1.0, digit=None).shape == (5, 2)
    with pytest.raises(UserError, match="trained without labels"):
        latent.draw_mixture(np.random.default_rng(0), 5, unlabelled, 1.0, digit=1)


@pytest.mark.parametrize("count", [1, 2, 5, 40])
def test_a_small_class_gets_a_component_too(count):
    codes = np.random.default_rng(0).normal(size=(200 + count, 4))
    found = latent.fit(codes, np.repeat([0, 1], [200, count]), seed=0)
    assert set(found.classes) == {0, 1}
    assert np.isfinite(found.factors).all()


def test_arrays_that_do_not_fit_are_refused(mixture):
    arrays = mixture._asdict()
    assert latent.mixture(arrays, 2).weights is mixture.weights
    for broken in (
        {},
        arrays | {"means": mixture.means[:, :1]},
        arrays | {"weights": -mixture.weights},
        arrays | {"factors": np.full_like(mixture.factors, np.nan)},
        arrays | {"factors": np.zeros_like(mixture.factors)},
        arrays | {"weights": np.zeros_like(mixture.weights)},
    ):
        with pytest.raises(UserError, match=r"prior\.npz"):
            latent.mixture(broken, 2)
    with pytest.raises(UserError, match="for this decoder"):
        latent.mixture(arrays, 3)


def test_a_walk_stays_on_the_sphere_between_its_ends():
    starts, ends = np.eye(3)[[0, 1]] * 2, np.eye(3)[[1, 2]] * 2
    walk = latent.walk(starts, ends, 5)
    np.testing.assert_allclose(walk[:, 0], starts, atol=1e-6)
    np.testing.assert_allclose(walk[:, -1], ends, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(walk, axis=2), 2, atol=1e-6)
    np.testing.assert_allclose(walk[0, 2], np.array([1, 1, 0]) * np.sqrt(2), atol=1e-6)


def test_a_walk_to_the_same_place_stays_there():
    place = np.array([[0.3, -0.4]])
    np.testing.assert_allclose(latent.walk(place, place, 4), np.tile(place, (1, 4, 1)), atol=1e-6)


def test_a_walk_to_the_opposite_side_goes_straight_through_the_middle():
    ends = np.array([[0.6], [-0.2]])  # of one latent dimension
    np.testing.assert_allclose(latent.walk(ends, -ends, 3), np.stack([ends, 0 * ends, -ends], axis=1), atol=1e-6)


def test_the_plane_has_the_quantiles_of_the_prior():
    z = latent.plane(5, 4, axes=(2, 0)).reshape(5, 5, 4)
    np.testing.assert_allclose(z[2, :, 2], [-1.2816, -0.5244, 0, 0.5244, 1.2816], atol=1e-4)  # 10% to 90%
    np.testing.assert_allclose(z[:, 2, 0], [1.2816, 0.5244, 0, -0.5244, -1.2816], atol=1e-4)
    assert not z[:, :, [1, 3]].any()


def test_the_most_active_dimensions():
    assert latent.most_active({"activity": np.array([0.1, 0.9, 0.0, 0.5])}, 4) == (1, 3)
    with pytest.raises(UserError, match="--manifold"):
        latent.most_active(None, 4)
