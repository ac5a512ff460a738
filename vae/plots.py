"""Every figure. Functions draw and return; the script decides where the result is written."""

from collections.abc import Iterable
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image

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
    height, width = grid.shape
    figure = Figure(figsize=(8, 8 * height / width + 0.6), layout="constrained")
    axes = figure.subplots()
    axes.set_title(title)
    axes.imshow(grid, cmap="gray", vmin=0, vmax=255)
    centres = (np.arange(2 * len(pairs)) + 0.5) * height / (2 * len(pairs))
    axes.set_yticks(centres, ["original", "reconstruction"] * len(pairs))
    axes.set_xticks([])
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    return figure


def latent_means(mean: np.ndarray, labels: np.ndarray | None, title: str) -> Figure:
    """Draw posterior means (n, D) in two dimensions, each as its digit: the plane itself for D = 2, else their PCA."""
    plane, axis_labels = _plane(mean)
    figure = Figure(figsize=(8, 8), layout="constrained")
    axes = figure.subplots()
    labels = np.zeros(len(plane), int) if labels is None else labels
    classes = np.unique(labels)
    colours = colormaps["viridis"](np.linspace(0, 0.9, len(classes)))
    for label, colour in zip(classes, colours, strict=True):
        own = plane[labels == label]
        marker = f"${label}$" if len(classes) > 1 else "."
        axes.scatter(*own.T, s=18, marker=marker, color=colour, linewidths=0.2, alpha=0.7)
    if len(classes) > 1:
        middles = np.stack([np.median(plane[labels == label], axis=0) for label in classes])
        for place, label, colour in zip(_apart(middles, 0.06 * np.ptp(plane)), classes, colours, strict=True):
            box = {"boxstyle": "circle", "facecolor": "white", "edgecolor": colour, "linewidth": 2}
            axes.text(*place, str(label), size=14, weight="bold", ha="center", va="center", bbox=box)
    axes.set(title=title, xlabel=axis_labels[0], ylabel=axis_labels[1])
    axes.set_aspect("equal")
    return figure


def _apart(places: np.ndarray, distance: float) -> np.ndarray:
    """Push places (n, 2) apart, little by little, until none hides another."""
    for _ in range(100):
        gaps = places[:, None] - places[None, :]  # (n, n, 2)
        lengths = np.linalg.norm(gaps, axis=2, keepdims=True)
        push = np.clip(distance - lengths, 0, None) / np.maximum(lengths, 1e-9)
        places = places + np.sum(push * gaps, axis=1) / 4
    return places


def _plane(mean: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """Bring vectors (n, D) into a plane, (n, 2), and name its axes; where there is no second axis, it is 0."""
    if mean.shape[1] == 2:
        return mean, ["latent dimension 1", "latent dimension 2"]
    centred = mean - mean.mean(axis=0)
    _, spread, components = np.linalg.svd(centred, full_matrices=False)
    plane = centred @ components[:2].T
    share = np.append(spread**2 / max(np.sum(spread**2), 1e-30), 0)
    names = [f"component {number + 1} ({share[number]:.0%} of the variance)" for number in range(2)]
    return np.pad(plane, ((0, 0), (0, 2 - plane.shape[1]))), names


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
