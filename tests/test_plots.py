"""The figures: each digit in its place on a grid, and curves that show the numbers that they were given."""

import io

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from vae import plots


@pytest.fixture
def images():
    return np.random.default_rng(3).random((7, 28, 28), np.float32)


def cell(grid: np.ndarray, row: int, column: int, zoom: int) -> np.ndarray:
    """The pixels (28, 28) of the digit in that place, from a grid of digits 2 pixels apart."""
    top, left = (2 + (28 * zoom + 2) * index for index in (row, column))
    return grid[top : top + 28 * zoom : zoom, left : left + 28 * zoom : zoom]


def written(figure: Figure) -> Image.Image:
    """The picture that a figure becomes."""
    file = io.BytesIO()
    figure.savefig(file)
    return Image.open(file)


# Grids


def test_digits_lie_row_by_row_and_the_rest_is_black(images):
    grid = plots.tile([images[:4], images[4:]], 7, columns=3)
    zoom = 3
    assert grid.dtype == np.uint8 and grid.shape == (2 + 3 * (28 * zoom + 2), 2 + 3 * (28 * zoom + 2))
    for place, image in enumerate(images):
        np.testing.assert_array_equal(cell(grid, *divmod(place, 3), zoom), np.rint(255 * image))
    assert not cell(grid, 2, 1, zoom).any() and not cell(grid, 2, 2, zoom).any()


def test_a_pixel_is_a_square_and_between_digits_it_is_black():
    grid = plots.tile([np.ones((4, 28, 28), np.float32)], 4, columns=2)
    white = grid == 255
    assert white.sum() == 4 * 84 * 84 and (grid[~white] == 0).all()
    gaps = [0, 1, 86, 87, 172, 173]
    assert not white[gaps].any() and not white[:, gaps].any()


def test_a_single_digit(images):
    grid = plots.tile([images[:1]], 1, columns=10)
    assert grid.shape == (88, 88)
    np.testing.assert_array_equal(cell(grid, 0, 0, 3), np.rint(255 * images[0]))


@pytest.mark.parametrize("count, columns, zoom", [(100, 10, 3), (400, 20, 3), (10_000, 100, 1), (150, 1, 1)])
def test_digits_are_large_on_small_grids_and_never_smaller_than_they_are(count, columns, zoom):
    grid = plots.tile([np.zeros((count, 28, 28), np.float32)], count, columns)
    assert grid.shape == (2 + (28 * zoom + 2) * (count // columns), 2 + (28 * zoom + 2) * columns)


def test_a_png_holds_the_grid_pixel_for_pixel(images, tmp_path):
    grid = plots.tile([images], 7, columns=4)
    plots.write_png(grid, tmp_path / "grid")  # whatever the name
    with Image.open(tmp_path / "grid") as picture:
        assert (picture.format, picture.mode) == ("PNG", "L")
        np.testing.assert_array_equal(np.asarray(picture), grid)


# Curves


def make_rows(epochs: int) -> list[dict]:
    names = [prefix + name for prefix in ("", "test_") for name in ("general_loss", "reconstruction_loss", "kl_loss")]
    return [
        {"epoch": epoch, "seconds": 1.5} | {name: 100 * place + 1 / epoch for place, name in enumerate(names)}
        for epoch in range(1, epochs + 1)
    ]


@pytest.mark.parametrize("epochs", [1, 5])
def test_loss_curves_show_the_three_losses_of_training_and_test(epochs):
    rows = make_rows(epochs)
    figure = plots.loss_curves(rows, "standard on digits")
    assert figure.get_suptitle() == "standard on digits"
    assert [axes.get_title() for axes in figure.axes] == ["General loss", "Reconstruction loss", "KL-divergence loss"]
    for axes, name in zip(figure.axes, ("general_loss", "reconstruction_loss", "kl_loss"), strict=True):
        assert (axes.get_xlabel(), axes.get_ylabel()) == ("epoch", "nats per image")
        train, test = axes.get_lines()
        for line, prefix, who in ((train, "", "train"), (test, "test_", "test")):
            assert line.get_xdata().tolist() == [row["epoch"] for row in rows]
            assert line.get_ydata().tolist() == [row[prefix + name] for row in rows]
            assert line.get_label().startswith(who) and f"{rows[-1][prefix + name]:.2f}" in line.get_label()
        assert train.get_linestyle() != test.get_linestyle()
        assert axes.get_legend() is not None
        ticks = [tick for tick in axes.get_xticks() if 1 <= tick <= epochs]
        assert ticks and all(tick == round(tick) for tick in ticks)
    assert np.ptp(np.asarray(written(figure))) == 255


def test_the_first_epoch_does_not_press_the_others_together():
    rows = make_rows(10)
    rows[0] |= {name: 9999.0 for name in rows[0] if name.endswith("loss")}
    for axes in plots.loss_curves(rows, "").axes:
        bottom, top = axes.get_ylim()
        later = np.concatenate([line.get_ydata()[1:] for line in axes.get_lines()])
        assert bottom < later.min() < later.max() < top < 1000


def test_a_single_epoch_is_seen_as_a_point():
    assert all(
        line.get_marker() == "o" for axes in plots.loss_curves(make_rows(1), "").axes for line in axes.get_lines()
    )


@pytest.mark.parametrize("count, columns, rows", [(6, 3, 2), (7, 3, 2), (2, 2, 1), (2, 10, 1), (1, 10, 1)])
def test_originals_are_above_their_reconstructions(count, columns, rows):
    originals = np.random.default_rng(1).random((count, 28, 28), np.float32)
    figure = plots.reconstructions(originals, 1 - originals, "test images", columns)
    (axes,) = figure.axes
    grid = np.asarray(axes.images[0].get_array())
    columns = min(columns, count)
    assert grid.shape == (2 + 86 * 2 * rows, 2 + 86 * columns)
    for place in range(rows * columns):
        row, column = divmod(place, columns)
        np.testing.assert_array_equal(cell(grid, 2 * row, column, 3), np.rint(255 * originals[place]))
        np.testing.assert_array_equal(cell(grid, 2 * row + 1, column, 3), np.rint(255 * (1 - originals[place])))
    assert [label.get_text() for label in axes.get_yticklabels()] == ["original", "reconstruction"] * rows
    assert figure.axes[0].get_title() == "test images"
    assert written(figure).size[0] > 400


# The latent space


def test_a_latent_plane_is_shown_as_it_is():
    mean = np.random.default_rng(1).standard_normal((30, 2))
    labels = np.arange(30) % 3
    (axes,) = plots.latent_means(mean, labels, "two dimensions").axes
    shown = [part.get_offsets() for part in axes.collections]
    assert len(shown) == 3
    for label, own in enumerate(shown):
        np.testing.assert_allclose(own, mean[labels == label])
    assert [text.get_text() for text in axes.texts] == ["0", "1", "2"]
    assert axes.get_xlabel() == "latent dimension 1" and axes.get_title() == "two dimensions"


def test_more_dimensions_are_shown_by_their_principal_components():
    rng = np.random.default_rng(1)
    axes_of_spread = np.linalg.qr(rng.standard_normal((5, 5)))[0]
    mean = rng.standard_normal((4000, 5)) * [4, 2, 0.1, 0.1, 0.1] @ axes_of_spread + 7
    (axes,) = plots.latent_means(mean, None, "").axes
    (shown,) = (np.asarray(part.get_offsets()) for part in axes.collections)
    expected = (mean - mean.mean(axis=0)) @ axes_of_spread[:2].T
    for found, wanted in zip(shown.T, expected.T, strict=True):
        assert abs(np.corrcoef(found, wanted)[0, 1]) > 0.999 and found.std() == pytest.approx(wanted.std(), rel=1e-3)
    assert axes.get_xlabel().startswith("component 1 (80%") and axes.get_ylabel().startswith("component 2 (20%")


@pytest.mark.parametrize("shape", [(5, 1), (1, 5), (1, 1), (2, 3), (1, 2)])
def test_few_images_or_dimensions_are_shown_too(shape):
    figure = plots.latent_means(np.random.default_rng(1).standard_normal(shape), np.zeros(shape[0], np.uint8), "")
    (shown,) = (part.get_offsets() for part in figure.axes[0].collections)
    assert shown.shape == (shape[0], 2) and np.isfinite(shown).all()
    assert written(figure).size[0] > 400


def test_kl_is_shown_by_dimension_from_the_largest():
    (axes,) = plots.kl_per_dimension(np.array([0.5, 2.0, 0.25]), "KL").axes
    assert [bar.get_height() for bar in axes.patches] == [2.0, 0.5, 0.25]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["1", "0", "2"]
    assert axes.get_ylabel() == "nats per image" and "2.75" in axes.get_title()


def test_what_lies_on_each_other_is_pushed_apart_and_the_rest_stays():
    places = np.array([[0, 0], [0.1, 0], [0.1, 0.1], [9, 9]])
    pushed = plots._apart(places, 1.0)
    gaps = np.linalg.norm(pushed[:, None] - pushed[None, :], axis=2)[np.triu_indices(4, 1)]
    assert gaps.min() > 0.95
    np.testing.assert_allclose(pushed[3], [9, 9])
    assert np.abs(pushed[:3] - places[:3]).max() < 1.2
