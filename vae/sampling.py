"""Latent vectors from a run's prior: at random, of one label, along walks, on a plane; and what it knows of labels."""

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from vae.terminal import UserError

MAX_COMPONENTS = 1000  # of a prior that is read: each takes memory for each latent vector
AT_ONCE = 1000  # latent vectors whose densities are computed together
SURE = 0.9  # the least p(label | z) of a vector that is drawn for a label
TRIES = 11  # draws of a vector for a label, at most; where classes overlap, none would ever be sure
NEIGHBOURS = 20  # a walk may go from each Gaussian to so many others
LOG_2PI = np.log(2 * np.pi)


@dataclass(frozen=True)
class Mixture:
    """A prior of M Gaussians over D latent dimensions, and what it knows of C labels. N(0, I) has M = 1."""

    weights: np.ndarray  # (M,), sums to 1
    means: np.ndarray  # (M, D)
    factors: np.ndarray  # (M, D, D), Cholesky factors of the covariances
    labels: np.ndarray  # (C,); empty where the images have no labels
    class_shares: np.ndarray  # (M, C), p(label | component)

    @property
    def is_normal(self) -> bool:
        """Whether this is N(0, I)."""
        return (
            len(self.weights) == 1
            and not self.means.any()
            and np.array_equal(self.factors[0], np.eye(*self.factors[0].shape))
        )

    def count_params(self) -> int:
        """Return the number of parameters that training learns: none for N(0, I)."""
        count, size = self.means.shape
        return 0 if self.is_normal else count * (1 + size + size**2)

    def draw(self, rng: np.random.Generator, count: int, scale: float, weights: np.ndarray | None = None) -> np.ndarray:
        """Draw latent vectors (count, D), float32. `scale` multiplies their distance to the component's mean."""
        weights = (self.weights if weights is None else weights).astype(np.float64)
        component = rng.choice(len(weights), size=count, p=weights / weights.sum())
        epsilon = np.float32(scale) * rng.standard_normal((count, self.means.shape[1]), np.float32)
        return self.means[component] + np.einsum("nij,nj->ni", self.factors[component], epsilon)

    def draw_label(self, rng: np.random.Generator, count: int, scale: float, label: int) -> np.ndarray:
        """Draw latent vectors (count, D) from p(z | label), again where p(label | z) < 0.9; the surest draw stays."""
        column = np.flatnonzero(self.labels == label)[0]
        weights = self.weights * self.class_shares[:, column]
        z = np.empty((count, self.means.shape[1]), np.float32)
        sure = np.full(count, -1.0)  # p(label | z)
        for _ in range(TRIES):
            unsure = np.flatnonzero(sure < SURE)
            if not len(unsure):
                break
            drawn = self.draw(rng, len(unsure), scale, weights)
            sure_now = self.label_probabilities(drawn)[:, column]
            better = sure_now > sure[unsure]
            z[unsure[better]], sure[unsure[better]] = drawn[better], sure_now[better]
        return z

    @property
    def drawable_labels(self) -> np.ndarray:
        """The labels that the prior gives any probability."""
        return self.labels[self.weights @ self.class_shares > 0]

    def label_probabilities(self, z: np.ndarray) -> np.ndarray:
        """Return p(label | z) for latent vectors (n, D): (n, C)."""
        pieces = np.split(z, range(AT_ONCE, len(z), AT_ONCE))  # of the components, (n, M), only a part is in memory
        return np.concatenate([self.responsibilities(piece) @ self.class_shares for piece in pieces])

    def responsibilities(self, z: np.ndarray) -> np.ndarray:
        """Return p(component | z) for latent vectors (n, D): (n, M), by Bayes' rule."""
        logs = self._log_joint(z)
        shares = np.exp(logs - logs.max(axis=1, keepdims=True))
        return shares / shares.sum(axis=1, keepdims=True)

    def log_prob(self, z: np.ndarray) -> np.ndarray:
        """Return log p(z) for latent vectors (n, D): (n,)."""
        return np.logaddexp.reduce(self._log_joint(z), axis=1)

    def _log_joint(self, z: np.ndarray) -> np.ndarray:
        """Return log w_m + log N(z; mean_m, covariance_m) for latent vectors (n, D): (n, M)."""
        parts = [self._log_joint_of_few(z[start : start + AT_ONCE]) for start in range(0, len(z), AT_ONCE)]
        return np.concatenate([*parts, np.empty((0, len(self.weights)))])

    def _log_joint_of_few(self, z: np.ndarray) -> np.ndarray:
        inverses, offsets, constants = self._densities
        whitened = (z.astype(np.float32) @ inverses).reshape(len(z), *offsets.shape) - offsets  # (n, M, D)
        return constants - 0.5 * np.einsum("nmi,nmi->nm", whitened, whitened)

    @cached_property
    def _densities(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return what each density needs: the inverse factors (D, M D), each times its mean (M, D), constants (M,)."""
        inverses = np.linalg.inv(self.factors.astype(np.float64))
        offsets = np.einsum("mij,mj->mi", inverses, self.means)
        log_volumes = np.log(np.diagonal(self.factors, axis1=1, axis2=2)).sum(axis=1)
        with np.errstate(divide="ignore"):  # a weight of 0 has the logarithm -inf, and so no share
            constants = np.log(self.weights) - log_volumes - 0.5 * self.means.shape[1] * LOG_2PI
        flat = np.moveaxis(inverses, 2, 0).reshape(self.means.shape[1], -1)
        return flat.astype(np.float32), offsets.astype(np.float32), constants


def make_normal(latent_dim: int) -> Mixture:
    """Return N(0, I) as a mixture of one Gaussian, without labels."""
    mean, factor = np.zeros(latent_dim, np.float32), np.eye(latent_dim, dtype=np.float32)
    return Mixture(np.ones(1, np.float32), mean[None], factor[None], np.empty(0, int), np.empty((1, 0), np.float32))


def draw_codes(mean: np.ndarray, log_var: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draw one posterior sample z = mean + exp(log_var / 2) * epsilon for each image: (n, D)."""
    return mean + np.exp(0.5 * log_var) * rng.standard_normal(mean.shape, np.float32)


def learn_labels(prior: Mixture, codes: np.ndarray, labels: np.ndarray) -> Mixture:
    """Return the prior with p(label | component), read off the codes (n, D) of images with these labels (n,).

    Each code counts for each Gaussian as much as p(component | code) says. A Gaussian without codes has the shares of
    the whole set.
    """
    known, column = np.unique(labels, return_inverse=True)
    counts = np.zeros((len(prior.weights), len(known)))
    for start in range(0, len(codes), AT_ONCE):
        part = slice(start, start + AT_ONCE)
        np.add.at(counts.T, column[part], prior.responsibilities(codes[part]))
    counts += 1e-6 * np.bincount(column) / len(codes)
    return replace(prior, labels=known, class_shares=(counts / counts.sum(axis=1, keepdims=True)).astype(np.float32))


def read_mixture(arrays: dict[str, np.ndarray], latent_dim: int) -> Mixture:
    """Return the prior in the arrays of a prior.npz; UserError where they are not one for this decoder."""
    count = arrays["weights"].size if "weights" in arrays else 0
    no_labels = {"labels": np.empty(0, int), "class_shares": np.empty((count, 0))}  # before the end of training
    try:
        with np.errstate(over="ignore"):  # what becomes infinite is found below
            prior = Mixture(**{name: (no_labels | arrays)[name] for name in Mixture.__dataclass_fields__})
            floats = {name: array.astype(np.float32) for name, array in vars(prior).items() if name != "labels"}
    except KeyError as error:
        raise UserError(f"prior.npz lacks the array {error}; choose another run") from None
    prior = replace(prior, **floats)
    classes = prior.labels.size
    shapes = [(count,), (count, latent_dim), (count, latent_dim, latent_dim), (classes,), (count, classes)]
    fits = 0 < count <= MAX_COMPONENTS and [array.shape for array in vars(prior).values()] == shapes
    if not fits or not all(np.isfinite(array).all() for array in floats.values()) or not _is_sound(prior):
        raise UserError("prior.npz holds no prior for this decoder; choose another run")
    return prior


def _is_sound(prior: Mixture) -> bool:
    """Whether weights and shares are probabilities, and the factors lower-triangular with a positive diagonal."""
    diagonals = np.diagonal(prior.factors, axis1=1, axis2=2)
    sums = [prior.weights.sum(dtype=np.float64), *prior.class_shares.sum(axis=1)[: None if prior.labels.size else 0]]
    positive = prior.weights.min() >= 0 and (prior.class_shares >= 0).all() and diagonals.min() > 1e-6
    return bool(positive and np.allclose(sums, 1, atol=1e-3) and not np.triu(prior.factors, 1).any())


def walk(prior: Mixture, starts: np.ndarray, ends: np.ndarray, steps: int) -> np.ndarray:
    """Walk from each start (n, D) to its end (n, D): (n, steps, D), float32.

    In N(0, I) the way is an arc around the origin. In a mixture it goes from Gaussian to Gaussian, so that it crosses
    no region without mass: it is the shortest path, where a step costs more the lower the density.
    """
    if prior.is_normal:
        return _walk_arc(starts, ends, steps)
    from scipy.sparse.csgraph import dijkstra

    ways = []
    for start, end in zip(starts, ends, strict=True):
        nodes = np.concatenate([[start, end], prior.means[prior.weights > 0.1 / len(prior.weights)]])
        _, before = dijkstra(_measure_steps(prior, nodes), indices=0, directed=False, return_predecessors=True)
        way = [1]
        while way[-1] != 0:
            way.append(before[way[-1]])
        ways.append(_space_evenly(nodes[way[::-1]], steps))
    return np.stack(ways)


def _measure_steps(prior: Mixture, nodes: np.ndarray) -> np.ndarray:
    """Return the costs of steps between nodes (n, D), (n, n): the length over the density along it; 0 is no step.

    There are steps to near nodes, and those of the shortest tree, so that every node can be reached.
    """
    from scipy.sparse.csgraph import minimum_spanning_tree

    lengths = np.maximum(np.linalg.norm(nodes[:, None] - nodes, axis=2), 1e-6)  # two nodes may be at one place
    near = np.argsort(lengths, axis=1)[:, 1 : NEIGHBOURS + 1]
    tree = minimum_spanning_tree(lengths).nonzero()
    begin = np.concatenate([np.repeat(np.arange(len(nodes)), near.shape[1]), tree[0]])
    end = np.concatenate([near.ravel(), tree[1]])
    densities = [prior.log_prob((1 - t) * nodes[begin] + t * nodes[end]) for t in (0.25, 0.5, 0.75)]
    costs = np.exp(np.minimum((prior.log_prob(nodes).max() - np.mean(densities, axis=0)) / nodes.shape[1], 500))
    steps = np.zeros(lengths.shape)
    steps[begin, end] = lengths[begin, end] * costs
    return np.maximum(steps, steps.T)


def _space_evenly(corners: np.ndarray, steps: int) -> np.ndarray:
    """Return points at equal distances along the line through the corners (n, D): (steps, D)."""
    lengths = np.linalg.norm(np.diff(corners, axis=0), axis=1)
    along = np.concatenate([[0], np.cumsum(lengths)])
    wanted = np.linspace(0, along[-1], steps)
    return np.stack([np.interp(wanted, along, values) for values in corners.T], axis=1).astype(np.float32)


def _walk_arc(starts: np.ndarray, ends: np.ndarray, steps: int) -> np.ndarray:
    """Walk along the sphere (Shoemake, 1985; for latent spaces White, 2016): (n, steps, D)."""
    lengths = np.linalg.norm(starts, axis=1), np.linalg.norm(ends, axis=1)
    cosine = np.sum(starts * ends, axis=1) / np.maximum(lengths[0] * lengths[1], 1e-12)
    angle = np.arccos(np.clip(cosine, -1, 1))[:, None]  # (n, 1)
    t = np.linspace(0, 1, steps)[None, :]  # (1, steps)
    straight = np.sin(angle) < 1e-3  # nearly the same or the opposite direction: the formula would divide by zero
    sine = np.where(straight, 1, np.sin(angle))
    of_start = np.where(straight, 1 - t, np.sin((1 - t) * angle) / sine)[:, :, None]
    of_end = np.where(straight, t, np.sin(t * angle) / sine)[:, :, None]
    return (of_start * starts[:, None] + of_end * ends[:, None]).astype(np.float32)


def plane(prior: Mixture, side: int, axes: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """Return a square of side x side latent vectors over two axes, at the prior's own quantiles: (side * side, D).

    Rows run down the second axis, columns along the first (Kingma & Welling, figure 4). The other dimensions have their
    mean given the two, in the Gaussian that most likely has this place; in N(0, I) that is 0.
    """
    draws = prior.draw(rng, 10_000, 1.0)[:, axes]
    across, down = np.quantile(draws, (np.arange(side) + 0.5) / side, axis=0).T
    places = np.stack([np.tile(across, side), np.repeat(down[::-1], side)], axis=1)  # (side * side, 2)
    covariances = prior.factors @ np.swapaxes(prior.factors, 1, 2)
    ix = np.ix_(range(len(prior.weights)), axes, axes)
    part = replace(prior, means=prior.means[:, axes], factors=np.linalg.cholesky(covariances[ix]))
    best = part.responsibilities(places).argmax(axis=1)
    gains = covariances[:, :, axes] @ np.linalg.inv(covariances[ix])  # (M, D, 2)
    offsets = places - part.means[best]
    return (prior.means[best] + np.einsum("nij,nj->ni", gains[best], offsets)).astype(np.float32)
