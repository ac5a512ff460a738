"""Every figure. Functions draw and return; the script decides where the result is written."""

from collections.abc import Iterable
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib import patheffects
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image

from vae.latent_map import COLOURS, MOST_NAMES, choose_codes, is_plane, place_codes, place_names

matplotlib.rcdefaults()  # whatever the user's matplotlibrc says
GAP = 2  # pixels of black between digits


def tile(batches: Iterable[np.ndarray], shape: tuple[int, int, int], columns: int) -> np.ndarray:
    """Lay images of that shape (n, H, W), which come in batches in [0, 1], on a grid (height, width) of bytes.

    There may be more images than n; the rest is not shown. Each pixel is drawn as a square of up to 3 x 3, so that a
    digit is clear; large grids are drawn smaller.
    """
    count, height, width = shape
    columns = min(columns, count)
    rows = -(-count // columns)
    zoom = max(1, min(3, 4000 // max(rows * (height + GAP), columns * (width + GAP))))
    cell = np.array([height * zoom + GAP, width * zoom + GAP])
    grid = np.zeros([rows, columns] * cell + GAP, np.uint8)
    place = 0
    for batch in batches:
        for image in np.rint(batch * 255).astype(np.uint8)[: count - place]:
            top, left = GAP + cell * divmod(place, columns)
            grid[top : top + height * zoom, left : left + width * zoom] = image.repeat(zoom, 0).repeat(zoom, 1)
            place += 1
    return grid


def write_picture(grid: np.ndarray, path: Path) -> None:
    """Write a grid (height, width) of bytes as a grey picture, of the kind that the name says."""
    Image.fromarray(grid).save(path, optimize=grid.size < 10**7)


def write_figure(figure: Figure, path: Path) -> None:
    """Write a figure of Matplotlib; the ending of the path says as what."""
    figure.savefig(path, dpi=120, bbox_inches="tight")


def loss_curves(rows: list[dict], title: str) -> Figure:
    """Draw the three losses of a run's history against the epoch, in nats per image.

    Beside those on the training images stand those on the test or the validation images, whichever the rows have.
    """
    figure = Figure(figsize=(12, 4), layout="constrained")
    figure.suptitle(title)
    epochs = [row["epoch"] for row in rows]
    held_out, name_of_it = ("val_", "validation") if "val_general_loss" in rows[0] else ("test_", "test")
    panels = {
        "general_loss": "General loss",
        "reconstruction_loss": "Reconstruction loss",
        "kl_loss": "KL-divergence loss",
    }
    for axes, (name, label) in zip(figure.subplots(1, 3), panels.items(), strict=True):
        for prefix, style, who in (("", "-", "train"), (held_out, "--", name_of_it)):
            curve = [row[prefix + name] for row in rows]
            axes.plot(epochs, curve, style, marker="o" if len(rows) == 1 else None, label=f"{who} ({curve[-1]:.2f})")
        axes.set(title=label, xlabel="epoch", ylabel="nats per image")
        if len(rows) > 5:  # the first epoch would press all that follows into a line along the bottom
            later = [row[prefix + name] for row in rows[1:] for prefix in ("", held_out)]
            margin = 0.05 * (max(later) - min(later)) or 1.0
            axes.set_ylim(min(later) - margin, max(later) + margin)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.grid(alpha=0.3)
        axes.legend()
    return figure


def reconstructions(originals: np.ndarray, decoded: np.ndarray, title: str, columns: int = 10) -> Figure:
    """Draw originals (n, 28, 28), a row of them above the row of their reconstructions (n, 28, 28); full rows only."""
    columns = min(columns, len(originals))
    pairs = [
        np.concatenate([originals[start : start + columns], decoded[start : start + columns]])
        for start in range(0, len(originals) - columns + 1, columns)
    ]
    grid = tile(pairs, (2 * columns * len(pairs), *originals.shape[1:]), columns)
    return _draw_rows(grid, title, ["original", "reconstruction"] * len(pairs))


def strangest_images(images: np.ndarray, losses: np.ndarray, title: str, columns: int = 10) -> Figure:
    """Draw images (n, H, W) that are sorted by their negative ELBO (n,), in nats, the highest first.

    Beside each row is the loss of its first image.
    """
    title = f"{title}\nleft: the negative ELBO of each row's first image, in nats"
    return _draw_rows(tile([images], images.shape, columns), title, [f"{loss:.0f}" for loss in losses[::columns]])


def _draw_rows(grid: np.ndarray, title: str, names: list[str]) -> Figure:
    """Draw a grid (height, width) of images with a name to the left of each row."""
    height, width = grid.shape
    figure = Figure(figsize=(8, 8 * height / width + 0.6), layout="constrained")
    axes = figure.subplots()
    axes.set_title(title)
    axes.imshow(grid, cmap="gray", vmin=0, vmax=255)
    axes.set_yticks((np.arange(len(names)) + 0.5) * height / len(names), names)
    axes.set_xticks([])
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    return figure


def latent_map(codes: np.ndarray, labels: np.ndarray | None, title: str) -> Figure:
    """Draw codes (n, D) as a map, as explore.py does, coloured and named by their labels (n,); 2,000 of them."""
    chosen = choose_codes(len(codes))
    places = place_codes(codes[chosen])
    known, classes = np.unique(np.zeros(len(codes)) if labels is None else labels, return_inverse=True)
    colours = [COLOURS[number % len(COLOURS)][0] for number in classes[chosen]]
    figure = Figure(figsize=(8, 8), layout="constrained")
    axes = figure.subplots()
    axes.scatter(*places.T, s=10, c=colours, alpha=0.8, linewidths=0)
    if 1 < len(known) <= MOST_NAMES:
        halo = [patheffects.withStroke(linewidth=4, foreground="white")]
        names = place_names(places, classes[chosen], 0.05 * np.ptp(places))
        for number, place in names.items():
            text = {"size": 16, "weight": "bold", "ha": "center", "va": "center", "path_effects": halo}
            axes.text(*place, str(known[number]), **text)
    axes.set_title(title)
    axes.set_aspect("equal", adjustable="datalim")
    if is_plane(codes.shape[1]):
        axes.set(xlabel="latent dimension 1", ylabel="latent dimension 2")
    else:  # the axes of t-SNE have no meaning
        axes.set(xticks=[], yticks=[])
    return figure


def latent_dimensions(information: np.ndarray, title: str) -> Figure:
    """Draw how many nats each latent dimension (D,) tells of an image, largest first."""
    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.subplots()
    order = np.argsort(-information)
    axes.bar(range(len(order)), information[order], color="0.35")
    axes.set_xticks(range(len(order)), order, size=8 if len(order) <= 40 else 5)
    axes.set(title=title, xlabel="latent dimension", ylabel="nats per image")
    axes.grid(alpha=0.3, axis="y")
    return figure
