"""Latent vectors from a run's prior: at random, of one label, along walks, on a plane; and what it knows of labels."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise

import numpy as np
from numpy.random import Generator

AT_ONCE = 500  # latent vectors or images computed together: enough for all cores, few enough for their caches
SURE = 0.9  # the least p(label | z) of a vector that is drawn for a label
TRIES = 11  # draws of a vector for a label, at most; where classes overlap, none would ever be sure
REACHED = 20  # Gaussians that a walk may go to from one


def split(count: int) -> Iterator[slice]:
    """Split so many latent vectors or images into parts of AT_ONCE."""
    return (slice(start, start + AT_ONCE) for start in range(0, count, AT_ONCE))


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
        identity = np.eye(self.means.shape[1])
        return len(self.weights) == 1 and not self.means.any() and np.array_equal(self.factors[0], identity)

    def draw(self, rng: Generator, count: int, scale: float = 1.0, weights: np.ndarray | None = None) -> np.ndarray:
        """Draw latent vectors (count, D), float32. `scale` multiplies their distance to the component's mean.

        The choice of components and the noise are two streams of random numbers. So the first vectors are the same for
        every count.
        """
        choice, noise = rng.spawn(2)
        weights = (self.weights if weights is None else weights).astype(np.float64)
        component = choice.choice(len(weights), size=count, p=weights / weights.sum())
        z = self.means[component]
        epsilon = np.float32(scale) * noise.standard_normal(z.shape, np.float32)
        for part in split(count):
            z[part] += np.matvec(self.factors[component[part]], epsilon[part])
        return z

    def draw_label(self, rng: Generator, count: int, scale: float, label: int) -> np.ndarray:
        """Draw latent vectors (count, D) from p(z | label). Where p(label | z) < 0.9, draw again; the surest stays."""
        column = np.flatnonzero(self.labels == label)[0]
        z = np.empty((count, self.means.shape[1]), np.float32)
        sure = np.full(count, -1.0)  # p(label | z)
        for _ in range(TRIES):
            unsure = np.flatnonzero(sure < SURE)
            drawn = self.draw(rng, count, scale, self.weights * self.class_shares[:, column])[unsure]
            sure_now = self.label_probabilities(drawn)[:, column]
            better = sure_now > sure[unsure]
            z[unsure[better]], sure[unsure[better]] = drawn[better], sure_now[better]
        return z

    def label_probabilities(self, z: np.ndarray) -> np.ndarray:
        """Return p(label | z) for latent vectors (n, D): (n, C)."""
        shares = np.empty((len(z), len(self.labels)))
        for part in split(len(z)):  # of the components, (n, M), only a part is in memory
            shares[part] = self.responsibilities(z[part]) @ self.class_shares
        return shares

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
        inverses, offsets, constants = self._densities
        whitened = (z.astype(np.float32) @ inverses).reshape(len(z), *offsets.shape) - offsets  # (n, M, D)
        return constants - 0.5 * np.einsum("nmi,nmi->nm", whitened, whitened)

    @cached_property
    def _densities(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return what each density needs: the inverse factors (D, M D), each times its mean (M, D), constants (M,)."""
        inverses = np.linalg.inv(self.factors.astype(np.float64))
        flat = np.moveaxis(inverses, 2, 0).reshape(self.means.shape[1], -1)
        offsets = np.einsum("mij,mj->mi", inverses, self.means)
        log_volumes = np.log(np.diagonal(self.factors, axis1=1, axis2=2)).sum(axis=1)
        with np.errstate(divide="ignore"):  # a weight of 0 has the logarithm -inf, and so no share
            constants = np.log(self.weights) - log_volumes - 0.5 * len(flat) * np.log(2 * np.pi)
        return flat.astype(np.float32), offsets.astype(np.float32), constants


def make_normal(latent_dim: int) -> Mixture:
    """Return N(0, I) as a mixture of one Gaussian, without labels."""
    arrays = {"weights": np.ones(1), "means": np.zeros((1, latent_dim)), "factors": np.eye(latent_dim)[None]}
    return read_mixture(arrays)


def read_mixture(arrays: dict[str, np.ndarray]) -> Mixture:
    """Return the prior in the arrays of a prior.npz, which has no labels before the end of training."""
    arrays = {"labels": np.empty(0, int), "class_shares": np.empty((len(arrays["weights"]), 0))} | arrays
    floats = {name: arrays[name].astype(np.float32) for name in ("weights", "means", "factors", "class_shares")}
    return Mixture(labels=arrays["labels"], **floats)


def draw_codes(mean: np.ndarray, log_var: np.ndarray, rng: Generator) -> np.ndarray:
    """Draw one posterior sample z = mean + exp(log_var / 2) * epsilon for each image: (n, D)."""
    return mean + np.exp(0.5 * log_var) * rng.standard_normal(mean.shape, np.float32)


def learn_labels(prior: Mixture, codes: np.ndarray, labels: np.ndarray) -> Mixture:
    """Return the prior with p(label | component), read off the codes (n, D) of images with these labels (n,).

    Each code counts for each Gaussian as much as p(component | code) says. A Gaussian without codes has the shares of
    the whole set.
    """
    known, column = np.unique(labels, return_inverse=True)
    counts = np.zeros((len(prior.weights), len(known)))
    for part in split(len(codes)):
        np.add.at(counts.T, column[part], prior.responsibilities(codes[part]))
    counts += 1e-6 * np.bincount(column) / len(codes)
    return replace(prior, labels=known, class_shares=(counts / counts.sum(axis=1, keepdims=True)).astype(np.float32))


def walk(prior: Mixture, stops: np.ndarray, steps: int) -> np.ndarray:
    """Walk through the stops (n, K, D) of each row, with so many steps from one to the next: (n, (K - 1) steps + 1, D).

    In N(0, I) the way is an arc around the origin. In a mixture it goes from Gaussian to Gaussian, so that it crosses
    no region without mass: it is the shortest path, where a step costs more the lower the density.
    """
    find_way = _find_arc if prior.is_normal else _prepare_ways(prior)
    walks = []
    for row in stops:
        legs = [find_way(start, end, steps + 1)[:-1] for start, end in pairwise(row)]
        walks.append(np.concatenate([*legs, row[-1:]]))
    return np.stack(walks).astype(np.float32)


def _prepare_ways(prior: Mixture) -> Callable[[np.ndarray, np.ndarray, int], np.ndarray]:
    """Return a function that finds a way from Gaussian to Gaussian, from a start (D,) to an end (D,): (steps, D)."""
    from scipy.sparse.csgraph import dijkstra

    means = prior.means[prior.weights > 0.1 / len(prior.weights)]
    between = np.zeros((len(means), len(means)))
    for place in range(len(means)):
        _add_steps(between, prior, means, place)

    def find_way(start: np.ndarray, end: np.ndarray, steps: int) -> np.ndarray:
        nodes, costs = np.concatenate([[start, end], means]), np.pad(between, (2, 0))
        _add_steps(costs, prior, nodes, 0)
        _add_steps(costs, prior, nodes, 1)
        _, before = dijkstra(costs, indices=0, return_predecessors=True)
        before[before < 0] = 0  # a straight step across a gap that no other step crosses
        way = [1]
        while way[-1] != 0:
            way.append(before[way[-1]])
        return _space_evenly(nodes[way[::-1]], steps)

    return find_way


def _add_steps(costs: np.ndarray, prior: Mixture, nodes: np.ndarray, place: int) -> None:
    """Write the costs of steps between the node at this place and those near it into the matrix (n, n); 0 is no step.

    A step between nodes (n, D) costs its length over the density along it, per dimension.
    """
    lengths = np.maximum(np.linalg.norm(nodes - nodes[place], axis=1), 1e-6)  # two nodes may be at one place
    near = np.argsort(lengths)[: REACHED + 1]
    log_densities = [prior.log_prob((1 - t) * nodes[place] + t * nodes[near]) for t in (0.25, 0.5, 0.75)]
    factors = np.exp(np.minimum(-np.mean(log_densities, axis=0) / nodes.shape[1], 500))
    costs[place, near] = costs[near, place] = lengths[near] * factors


def _space_evenly(corners: np.ndarray, steps: int) -> np.ndarray:
    """Return points at equal distances along the line through the corners (n, D): (steps, D)."""
    lengths = np.linalg.norm(np.diff(corners, axis=0), axis=1)
    along = np.concatenate([[0], np.cumsum(lengths)])
    wanted = np.linspace(0, along[-1], steps)
    return np.stack([np.interp(wanted, along, values) for values in corners.T], axis=1)


def _find_arc(start: np.ndarray, end: np.ndarray, steps: int) -> np.ndarray:
    """Return a way along the sphere (Shoemake, 1985; for latent spaces White, 2016): (steps, D)."""
    cosine = start @ end / max(np.linalg.norm(start) * np.linalg.norm(end), 1e-12)
    angle = math.acos(np.clip(cosine, -1, 1))
    t = np.linspace(0, 1, steps, dtype=np.float32)[:, None]
    if math.sin(angle) < 1e-3:  # nearly the same or the opposite direction: the formula would divide by zero
        return (1 - t) * start + t * end
    return (np.sin((1 - t) * angle) * start + np.sin(t * angle) * end) / math.sin(angle)


def lay_plane(prior: Mixture, side: int, axes: tuple[int, int], rng: Generator) -> np.ndarray:
    """Return a square of side x side latent vectors over two axes, at the prior's own quantiles: (side * side, D).

    Rows run down the second axis, columns along the first (Kingma & Welling, figure 4). The other dimensions have their
    mean given the two, in the Gaussian that most likely has this place; in N(0, I) that is 0.
    """
    draws = prior.draw(rng, 10_000)[:, axes]
    across, down = np.quantile(draws, (np.arange(side) + 0.5) / side, axis=0).T
    places = np.stack([np.tile(across, side), np.repeat(down[::-1], side)], axis=1)  # (side * side, 2)
    covariances = prior.factors @ np.swapaxes(prior.factors, 1, 2)
    ix = np.ix_(range(len(prior.weights)), axes, axes)
    part = replace(prior, means=prior.means[:, axes], factors=np.linalg.cholesky(covariances[ix]))
    best = part.responsibilities(places).argmax(axis=1)
    gains = covariances[:, :, axes] @ np.linalg.inv(covariances[ix])  # (M, D, 2)
    offsets = places - part.means[best]
    return (prior.means[best] + np.einsum("nij,nj->ni", gains[best], offsets)).astype(np.float32)
