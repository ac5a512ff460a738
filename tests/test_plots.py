"""The figures: each image in its place on a grid, and curves that show the numbers that they were given."""

import io
import os
import subprocess
import sys
import warnings

import numpy as np
import pytest
from conftest import ROOT
from helpers import read_frames
from matplotlib.figure import Figure
from PIL import Image

from vae import plots

SIDES = (12, 8)  # height and width
IMAGES = np.random.default_rng(3).random((7, *SIDES), np.float32)


def lay_out(images: np.ndarray, columns: int) -> np.ndarray:
    """The grid of images (n, H, W), row by row: a pixel is a square of 3 x 3, and 2 pixels of black are around each."""
    cells = [np.pad(image.repeat(3, 0).repeat(3, 1), ((2, 0), (2, 0))) for image in np.rint(255 * images)]
    cells += [np.zeros_like(cells[0])] * (-len(cells) % columns)
    rows = [np.hstack(cells[start : start + columns]) for start in range(0, len(cells), columns)]
    return np.pad(np.vstack(rows), ((0, 2), (0, 2)))


def render(figure: Figure) -> np.ndarray:
    """Return the picture that a figure becomes."""
    file = io.BytesIO()
    figure.savefig(file)
    return np.asarray(Image.open(file))


# Grids


def test_images_lie_row_by_row_and_the_rest_is_black():
    grid = plots.tile(IMAGES, columns=3)
    assert grid.dtype == np.uint8
    np.testing.assert_array_equal(grid, lay_out(IMAGES, 3))


@pytest.mark.parametrize("count, columns, zoom", [(1, 10, 3), (100, 10, 3), (10_000, 100, 1), (400, 1, 1), (180, 1, 1)])
def test_images_are_large_on_small_grids_and_never_smaller_than_they_are(count, columns, zoom):
    grid = plots.tile(np.zeros((count, 28, 20), np.float32), columns)
    columns = min(columns, count)
    assert grid.shape == (2 + (28 * zoom + 2) * (count // columns), 2 + (20 * zoom + 2) * columns)


def test_a_picture_is_of_the_kind_that_its_name_says_and_png_holds_the_grid_pixel_for_pixel(tmp_path):
    grid = plots.tile(IMAGES, columns=4)
    for suffix, start in ((".png", b"\x89PNG"), (".jpg", b"\xff\xd8\xff"), (".pdf", b"%PDF")):
        plots.write_picture(grid, tmp_path / f"grid{suffix}")
        assert (tmp_path / f"grid{suffix}").read_bytes().startswith(start)
    with Image.open(tmp_path / "grid.png") as picture:
        assert (picture.format, picture.mode) == ("PNG", "L")
        np.testing.assert_array_equal(np.asarray(picture), grid)


# Animations


@pytest.mark.parametrize("kind", ["gif", "webp"])
def test_an_animation_has_its_frames_in_their_order_with_their_times(kind, tmp_path):
    path = tmp_path / f"walk.{kind}"
    frames = [np.random.default_rng(number).integers(0, 256, (40, 50), np.uint8) for number in range(4)]
    plots.write_animation(frames, path, [50, 900, 50, 70])
    found, times = read_frames(path)
    assert times == [50, 900, 50, 70]
    for frame, wanted in zip(found, frames, strict=True):
        assert np.abs(frame - wanted).max() <= 255 / 7 / 2 + 1  # of 8 greys
        assert {0, 255} <= set(np.unique(frame).tolist())
    plots.write_animation(frames, path)
    times = read_frames(path)[1]
    assert len(set(times[:-1])) == 1 and times[-1] >= 5 * times[0]  # the last stays


def test_a_frame_of_training_has_the_draws_beside_the_pairs():
    draws, originals, decoded = np.split(np.random.default_rng(0).random((45, *SIDES)), [25, 35])
    grid = plots.training_frame(draws, originals, decoded)
    blank = np.zeros(SIDES)
    cells = []
    for row in range(5):
        cells += [*draws[5 * row : 5 * row + 5], blank]
        cells += [originals[2 * row], decoded[2 * row], originals[2 * row + 1], decoded[2 * row + 1]]
    np.testing.assert_array_equal(grid, lay_out(np.stack(cells), 10))
    few = plots.training_frame(draws, originals[:3], decoded[:3])  # of a test set of three
    np.testing.assert_array_equal(few[:38], grid[:38])
    assert few.shape == grid.shape and not few[80:, 160:].any()


def test_grids_do_not_import_matplotlib():
    code = "import sys; from vae import plots; print('matplotlib' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


# Curves


def make_rows(epochs: int, held_out: str = "test_") -> list[dict]:
    names = [prefix + name for prefix in ("", held_out) for name in ("general_loss", "reconstruction_loss", "kl_loss")]
    return [
        {"epoch": epoch, "seconds": 1.5} | {name: 100 * place + 1 / epoch for place, name in enumerate(names)}
        for epoch in range(1, epochs + 1)
    ]


@pytest.mark.parametrize("epochs, held_out, who", [(1, "test_", "test"), (5, "val_", "validation")])
def test_loss_curves_show_the_three_losses_of_training_and_held_out_images(epochs, held_out, who):
    rows = make_rows(epochs, held_out)
    figure = plots.loss_curves(rows, "standard on digits")
    assert figure.get_suptitle() == "standard on digits"
    assert [axes.get_title() for axes in figure.axes] == ["General loss", "Reconstruction loss", "KL-divergence loss"]
    for axes, name in zip(figure.axes, ("general_loss", "reconstruction_loss", "kl_loss"), strict=True):
        assert (axes.get_xlabel(), axes.get_ylabel()) == ("epoch", "nats per image")
        lines = axes.get_lines()
        for line, prefix, label in zip(lines, ("", held_out), ("train", who), strict=True):
            assert list(line.get_xdata()) == [row["epoch"] for row in rows]
            assert list(line.get_ydata()) == [row[prefix + name] for row in rows]
            assert line.get_label() == f"{label} ({rows[-1][prefix + name]:.2f})"
            assert line.get_marker() == ("o" if epochs == 1 else "None")  # a single epoch is seen as a point
        assert lines[0].get_linestyle() != lines[1].get_linestyle()
        assert axes.get_legend() is not None
        ticks = [tick for tick in axes.get_xticks() if 1 <= tick <= epochs]
        assert ticks and all(tick == round(tick) for tick in ticks)
    assert np.ptp(render(figure)) == 255


def test_the_first_epoch_does_not_press_the_others_together():
    rows = make_rows(10)
    rows[0] |= {name: 9999.0 for name in rows[0] if name.endswith("loss")}
    for axes in plots.loss_curves(rows, "").axes:
        bottom, top = axes.get_ylim()
        curves = np.concatenate([line.get_ydata() for line in axes.get_lines()])
        assert bottom < curves.min() < curves.max() < top < 1000
        assert [list(line.get_xdata()) for line in axes.get_lines()] == [list(range(2, 11))] * 2


def assert_shows(figure: Figure, images: np.ndarray, columns: int, names: list[str], title: str) -> None:
    """The figure has the images on a grid, and a name beside the middle of each row."""
    (axes,) = figure.axes
    grid = lay_out(images, columns)
    np.testing.assert_array_equal(axes.images[0].get_array(), grid)
    assert [label.get_text() for label in axes.get_yticklabels()] == names
    np.testing.assert_allclose(axes.get_yticks() / len(grid), (np.arange(len(names)) + 0.5) / len(names))
    assert figure.get_suptitle() == title and render(figure).shape[1] > 400


@pytest.mark.parametrize("count, columns, rows", [(6, 3, 2), (7, 3, 2), (2, 10, 1), (1, 10, 1)])
def test_originals_are_above_their_reconstructions(count, columns, rows):
    originals = IMAGES[:count]
    figure = plots.reconstructions(originals, 1 - originals, "test images", columns)
    columns = min(columns, count)
    shown = originals[: rows * columns].reshape(rows, 1, columns, *SIDES)
    pairs = np.concatenate([shown, 1 - shown], axis=1).reshape(-1, *SIDES)
    assert_shows(figure, pairs, columns, ["original", "reconstruction"] * rows, "test images")


def test_strangest_images_are_shown_in_their_order_beside_their_losses():
    figure = plots.strangest_images(IMAGES, np.array([99.6, 80, 70, 60.2, 50, 40, 3.14]), "strange", columns=3)
    title = "strange\nleft: the negative ELBO of each row's first image, in nats"
    assert_shows(figure, IMAGES, 3, ["100", "60", "3"], title)


# The latent space


@pytest.mark.parametrize("latents", [1, 2, 6])
def test_a_map_has_the_names_of_its_labels_and_axes_where_they_mean_something(latents):
    labels = np.repeat([3, 4, 7], 20)
    codes = labels[:, None] + np.random.default_rng(0).normal(size=(60, latents)) / 9
    figure = plots.latent_map(codes, labels, "three classes")
    (axes,) = figure.axes
    assert sorted(text.get_text() for text in axes.texts) == ["3", "4", "7"]
    assert bool(axes.get_xlabel()) == (latents <= 2) and figure.get_suptitle() == "three classes"
    (axes,) = plots.latent_map(codes, None, "").axes
    assert not axes.texts and len(axes.collections[0].get_offsets()) == 60


def test_information_is_shown_by_dimension_from_the_largest():
    figure = plots.latent_dimensions(np.array([0.5, 2.0, 0.25]), "what each tells")
    (axes,) = figure.axes
    assert [bar.get_height() for bar in axes.patches] == [2.0, 0.5, 0.25]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["1", "0", "2"]
    assert axes.get_ylabel() == "nats per image" and figure.get_suptitle() == "what each tells"


NAMES = ["$$", "$5-$10", "C#", "é", "猫", "cat 猫"]


@pytest.mark.parametrize("names, texts", [(NAMES[:4], NAMES[:4]), (NAMES, [*NAMES[:4], "4", "5"])])
def test_names_are_drawn_as_they_are_and_a_number_where_the_font_has_no_letters(names, texts, capsys):
    labels = np.arange(60) % len(names)
    figure = plots.latent_map(np.random.default_rng(0).normal(size=(60, 2)), labels, "$names$", names)
    with warnings.catch_warnings(action="error"):
        render(figure)
    (axes,) = figure.axes
    assert [text.get_text() for text in axes.texts] == texts
    assert not any(text.get_parse_math() for text in axes.texts)
    said = capsys.readouterr().err.splitlines()
    assert ["the numbers of these labels" in line for line in said] == [True] * (texts != names)


def test_the_settings_of_the_user_change_nothing_and_no_line_of_matplotlib_reaches_the_screen(tmp_path):
    (tmp_path / "matplotlibrc").write_text("text.usetex: True\nlines.linewidth: 30\nnonsense: 1\n")
    code = "import pathlib, numpy as np; from vae import plots; figure = plots.latent_dimensions(np.ones(3), '$')"
    code += "; plots.write_figure(figure, pathlib.Path('a.png'))"
    environment = os.environ | {"PYTHONPATH": str(ROOT), "MATPLOTLIBRC": str(tmp_path)}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    plots.write_figure(plots.latent_dimensions(np.ones(3), "$"), tmp_path / "b.png")
    np.testing.assert_array_equal(*(np.asarray(Image.open(tmp_path / name)) for name in ("a.png", "b.png")))
