"""The map of codes: their places, and those of the names of the classes."""

import numpy as np
import pytest

from vae.latent_map import ON_MAP, choose_codes, place_codes, place_names


def test_neighbours_stay_neighbours():
    classes = np.arange(120) % 4
    codes = 20 * np.eye(4, 8)[classes] + np.random.default_rng(0).standard_normal((120, 8))  # far from each other
    places = place_codes(codes.astype(np.float32))
    lengths = np.linalg.norm(places[:, None] - places[None, :], axis=2) + 1e9 * np.eye(len(places))
    assert (classes[lengths.argmin(axis=1)] == classes).mean() > 0.98
    np.testing.assert_array_equal(place_codes(codes.astype(np.float32)), places)


def test_plane_is_its_own_map():
    codes = np.random.default_rng(0).standard_normal((30, 2), np.float32)
    np.testing.assert_array_equal(place_codes(codes), codes)
    np.testing.assert_array_equal(place_codes(codes[:, :1]), np.stack([codes[:, 0], np.zeros(30)], axis=1))


@pytest.mark.parametrize("codes", [np.ones((1, 3)), np.eye(4, 5), np.full((20, 3), 0.5), np.eye(5, 7)])
def test_few_codes_or_equal_ones_have_a_map(codes):
    places = place_codes(codes)
    assert places.shape == (len(codes), 2) and np.isfinite(places).all()


def test_the_same_codes_are_chosen():
    assert sorted(choose_codes(50)) == list(range(50))
    chosen = choose_codes(10_000)
    assert len(set(chosen)) == ON_MAP and chosen.max() < 10_000
    np.testing.assert_array_equal(choose_codes(10_000), chosen)


def test_names_are_at_their_class_and_apart():
    places = np.array([[0, 0], [0.1, 0], [0.2, 0], [9, 9], [0.15, 0], [5, 5]], float)
    names = place_names(places, np.array([0, 0, 0, 0, 1, 2]), 1.0)
    assert list(names) == [0, 1, 2]
    np.testing.assert_allclose(names[2], [5, 5])
    assert np.linalg.norm(names[0] - names[1]) > 0.95 and np.linalg.norm(names[0]) < 1
