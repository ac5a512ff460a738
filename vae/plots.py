"""Every picture and figure. Functions draw and return; the script decides where the result is written."""

import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from vae import files
from vae.data.dataset import name_label
from vae.latent_map import COLOURS, MOST_NAMES, choose_codes, is_plane, place_codes, place_names

if TYPE_CHECKING:  # Matplotlib takes long to import, and grids do not need it
    from matplotlib.figure import Figure

GAP = 2  # pixels of black between images
GREYS = 8  # in an animation, or its file would be large
SMALL = 600  # pixels in the longer side of an animation, likewise


def tile(images: np.ndarray, columns: int, size: int = 4000) -> np.ndarray:
    """Lay images (n, H, W) in [0, 1] row by row on a grid (height, width) of bytes.

    Each pixel is drawn as a square of up to 3 x 3, so that a digit is clear, while the grid fits into size x size.
    """
    count, height, width = images.shape
    columns = min(columns, count)
    rows = -(-count // columns)
    zoom = max(1, min(3, size // max(rows * (height + GAP), columns * (width + GAP))))
    cells = np.zeros((rows * columns, height * zoom + GAP, width * zoom + GAP), np.uint8)
    cells[:count, GAP:, GAP:] = np.rint(images * 255).astype(np.uint8).repeat(zoom, axis=1).repeat(zoom, axis=2)
    grid = cells.reshape(rows, columns, *cells.shape[1:]).swapaxes(1, 2).reshape(rows * cells.shape[1], -1)
    return np.pad(grid, ((0, GAP), (0, GAP)))


def training_frame(draws: np.ndarray, originals: np.ndarray, reconstructions: np.ndarray) -> np.ndarray:
    """Lay 25 draws, and to their right up to 10 originals, each beside its reconstruction, on a grid as `tile` does.

    All are images (n, H, W) in [0, 1].
    """
    cells, place = np.zeros((50, *draws.shape[1:])), np.arange(50).reshape(5, 10)
    cells[place[:, :5].ravel()] = draws
    cells[place[:, 6::2].ravel()[: len(originals)]] = originals
    cells[place[:, 7::2].ravel()[: len(originals)]] = reconstructions
    return tile(cells, 10, SMALL)


def write_picture(grid: np.ndarray, path: Path) -> None:
    """Write a grid (height, width) of bytes as a grey picture, of the kind that the name says."""
    with files.replacing(path) as temporary:
        Image.fromarray(grid).save(temporary, optimize=grid.size < 10**7)


def write_animation(frames: list[np.ndarray], path: Path, milliseconds: list[int] | None = None) -> None:
    """Write frames (height, width) of bytes as an animation that loops, .gif or .webp, with the time of each frame.

    Without times the frames are quick, and the last one stays.
    """
    step = 255 / (GREYS - 1)
    pictures = [Image.fromarray(np.rint(frame / step).astype(np.uint8)) for frame in frames]
    for picture in pictures:
        picture.putpalette(np.rint(np.arange(GREYS) * step).astype(int).repeat(3).tolist())
    times = milliseconds or [200] * (len(frames) - 1) + [2000]
    with files.replacing(path) as temporary:
        pictures[0].save(temporary, save_all=True, append_images=pictures[1:], duration=times, loop=0, lossless=True)


def write_figure(figure: "Figure", path: Path) -> None:
    """Write a figure of Matplotlib; the ending of the path says as what."""
    with files.replacing(path) as temporary:
        figure.savefig(temporary, dpi=120, bbox_inches="tight")


def loss_curves(rows: list[dict], title: str) -> "Figure":
    """Draw the three losses of a run's history against the epoch, in nats per image.

    Beside those on the training images stand those on the test or the validation images, whichever the rows have.
    """
    figure, panels = _make_figure(title, 12, 4, columns=3)
    held_out, name_of_it = ("val_", "validation") if "val_general_loss" in rows[0] else ("test_", "test")
    rows = rows[1:] if len(rows) > 5 else rows  # the first epoch would press all that follows into a line
    titles = {
        "General loss": "general_loss",
        "Reconstruction loss": "reconstruction_loss",
        "KL-divergence loss": "kl_loss",
    }
    for axes, (label, name) in zip(panels, titles.items(), strict=True):
        for prefix, style, who in (("", "-", "train"), (held_out, "--", name_of_it)):
            curve = [row[prefix + name] for row in rows]
            marker = "o" if len(rows) == 1 else None
            axes.plot([row["epoch"] for row in rows], curve, style, marker=marker, label=f"{who} ({curve[-1]:.2f})")
        axes.set(title=label, xlabel="epoch", ylabel="nats per image")
        axes.locator_params("x", integer=True, min_n_ticks=1)
        axes.grid(alpha=0.3)
        axes.legend()
    return figure


def reconstructions(originals: np.ndarray, decoded: np.ndarray, title: str, columns: int = 10) -> "Figure":
    """Draw originals (n, H, W), a row of them above the row of their reconstructions (n, H, W); full rows only."""
    columns = min(columns, len(originals))
    rows, shape = len(originals) // columns, originals.shape[1:]
    parts = [part[: rows * columns].reshape(rows, columns, *shape) for part in (originals, decoded)]
    grid = tile(np.stack(parts, axis=1).reshape(-1, *shape), columns)
    return _draw_rows(grid, title, ["original", "reconstruction"] * rows)


def strangest_images(images: np.ndarray, losses: np.ndarray, title: str, columns: int = 10) -> "Figure":
    """Draw images (n, H, W) that are sorted by their negative ELBO (n,), in nats, the highest first.

    Beside each row is the loss of its first image.
    """
    title = f"{title}\nleft: the negative ELBO of each row's first image, in nats"
    return _draw_rows(tile(images, columns), title, [f"{loss:.0f}" for loss in losses[::columns]])


def _draw_rows(grid: np.ndarray, title: str, names: list[str]) -> "Figure":
    """Draw a grid (height, width) of images with a name to the left of each row."""
    height, width = grid.shape
    figure, axes = _make_figure(title, 8, 8 * height / width + 0.6)
    axes.imshow(grid, cmap="gray", vmin=0, vmax=255)
    axes.set_yticks((np.arange(len(names)) + 0.5) * height / len(names), names)
    axes.set_xticks([])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return figure


def latent_map(codes: np.ndarray, labels: np.ndarray | None, title: str, names: list[str] | None = None) -> "Figure":
    """Draw codes (n, D) as a map, as explore.py does, coloured by their labels (n,); 2,000 of them.

    `names` has the names of the labels 0, 1, ...; without them, numbers are their names.
    """
    from matplotlib import patheffects

    chosen = choose_codes(len(codes))
    places = place_codes(codes[chosen])
    known, classes = np.unique(np.zeros(len(codes), int) if labels is None else labels, return_inverse=True)
    figure, axes = _make_figure(title, 8, 8)
    colours = [COLOURS[number % len(COLOURS)][0] for number in classes[chosen]]
    axes.scatter(*places.T, s=10, c=colours, alpha=0.8, linewidths=0)
    if 1 < len(known) <= MOST_NAMES:
        halo = [patheffects.withStroke(linewidth=4, foreground="white")]
        style = {"size": 16, "weight": "bold", "ha": "center", "va": "center", "path_effects": halo}
        texts = _find_texts(known, names)
        for number, place in place_names(places, classes[chosen], 0.05 * np.ptp(places)).items():
            axes.text(*place, texts[number], **style)
    axes.set_aspect("equal", adjustable="datalim")
    if is_plane(codes.shape[1]):
        axes.set(xlabel="latent dimension 1", ylabel="latent dimension 2")
    else:  # the axes of t-SNE have no meaning
        axes.set(xticks=[], yticks=[])
    return figure


def _find_texts(labels: np.ndarray, names: list[str] | None) -> list[str]:
    """Return the names of labels (C,), and the numbers of those whose names the font cannot draw."""
    from matplotlib.font_manager import findfont, get_font

    glyphs = get_font(findfont("DejaVu Sans")).get_charmap()
    wanted = {label: name_label(label, names) for label in labels.tolist()}
    texts = [name if set(map(ord, name)) <= set(glyphs) else str(label) for label, name in wanted.items()]
    if texts != list(wanted.values()):
        print("-> The font lacks letters of some names: the figure has the numbers of these labels", file=sys.stderr)
    return texts


def latent_dimensions(information: np.ndarray, title: str) -> "Figure":
    """Draw how many nats each latent dimension (D,) tells of an image, largest first."""
    figure, axes = _make_figure(title, 8, 4)
    order = np.argsort(-information)
    axes.bar(range(len(order)), information[order], color="0.35")
    axes.set_xticks(range(len(order)), order, size=8 if len(order) <= 40 else 5)
    axes.set(xlabel="latent dimension", ylabel="nats per image")
    axes.grid(alpha=0.3, axis="y")
    return figure


def _make_figure(title: str, width: float, height: float, columns: int = 1) -> tuple["Figure", object]:
    """Return a figure of so many inches and its axes, one for each column, whatever the user's matplotlibrc says."""
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # or its import would say what that file has wrong
    import matplotlib
    from matplotlib.figure import Figure

    matplotlib.rcdefaults()
    matplotlib.rcParams["text.parse_math"] = False  # a $ in a name is a dollar
    figure = Figure(figsize=(width, height), layout="constrained")
    figure.suptitle(title)
    return figure, figure.subplots(1, columns)
