"""The map of codes: their places, those of the names, and colours that the colour-blind tell apart."""

import numpy as np
import pytest

from vae.latent_map import COLOURS, ON_MAP, choose_codes, place_codes, place_names


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


# What three kinds of colour-blindness see of linear red, green and blue (Machado et al., 2009, severity 1).
SIGHTS = {
    "normal": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.3039]],
}


@pytest.mark.parametrize("background", [0, 1])
@pytest.mark.parametrize("sight", SIGHTS)
def test_colours_differ_for_every_sight(sight, background):
    """By at least 0.05 in OKLab; about 0.02 can just be seen."""
    texts = [pair[background] for pair in COLOURS]
    rgb = np.array([[int(text[at : at + 2], 16) / 255 for at in (1, 3, 5)] for text in texts])
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4) @ np.transpose(SIGHTS[sight])
    to_cones = [[0.4122215, 0.5363325, 0.0514460], [0.2119035, 0.6806995, 0.1073970], [0.0883025, 0.2817188, 0.6299787]]
    to_lab = [
        [0.2104543, 0.7936178, -0.0040720],
        [1.9779985, -2.4285922, 0.4505937],
        [0.0259040, 0.7827718, -0.8086758],
    ]
    lab = np.cbrt(np.clip(linear, 0, 1) @ np.transpose(to_cones)) @ np.transpose(to_lab)
    lengths = np.linalg.norm(lab[:, None] - lab[None, :], axis=2)
    assert lengths[np.triu_indices(len(lab), 1)].min() > 0.05
