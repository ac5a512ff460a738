"""Where latent vectors come from: the prior, a mixture fitted to the codes of the training images, walks and planes.

A third of the images drawn from N(0, I) are no digits, because the codes of real digits (the aggregate posterior) fill
only part of it (Hoffman & Johnson, ELBO surgery, 2016). A mixture of Gaussians fitted to the codes is closer to them.
"""

from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from vae.terminal import UserError

HELD_OUT = 0.1  # share of the codes that the number of components is chosen by
COMPONENTS = (1, 2, 4, 8, 16)  # numbers of components to try, for each class
MAX_COMPONENTS = 10**3  # of a mixture that is read: each takes memory for each vector that is drawn
SURE = 0.9  # the least p(label | z) of a vector that is drawn for a label
ROUNDS = 10  # how often unsure vectors are drawn again; where classes overlap, none would ever be sure


@dataclass(frozen=True)
class Mixture:
    """A mixture of M Gaussians over D latent dimensions, and what it knows of C labels."""

    weights: np.ndarray  # (M,), sums to 1
    means: np.ndarray  # (M, D)
    factors: np.ndarray  # (M, D, D), Cholesky factors of the covariances
    labels: np.ndarray  # (C,); empty where the images have no labels
    class_shares: np.ndarray  # (M, C), p(label | component)

    def draw(self, rng: np.random.Generator, count: int, scale: float, weights: np.ndarray | None = None) -> np.ndarray:
        """Draw latent vectors (count, D), float32. `scale` multiplies their distance to the component's mean."""
        weights = (self.weights if weights is None else weights).astype(np.float64)
        component = rng.choice(len(weights), size=count, p=weights / weights.sum())
        epsilon = np.float32(scale) * rng.standard_normal((count, self.means.shape[1]), np.float32)
        return self.means[component] + np.einsum("nij,nj->ni", self.factors[component], epsilon)

    def draw_label(self, rng: np.random.Generator, count: int, scale: float, label: int) -> np.ndarray:
        """Draw latent vectors (count, D) from p(z | label), again where p(label | z) is below 0.9.

        Raises UserError where the mixture does not know the label.
        """
        column = self.labels == label
        weights = self.weights * self.class_shares[:, column].sum(axis=1)
        if not weights.any():
            known = f"knows only {', '.join(map(str, self.labels[:20]))}" if len(self.labels) else "has no labels"
            raise UserError(f"--digit {label}: this run {known}; draw without --digit")
        z = self.draw(rng, count, scale, weights)
        unsure = np.arange(count)
        for _ in range(ROUNDS):
            unsure = unsure[self.label_probabilities(z[unsure])[:, column][:, 0] < SURE]
            if not len(unsure):
                break
            z[unsure] = self.draw(rng, len(unsure), scale, weights)
        return z

    def label_probabilities(self, z: np.ndarray) -> np.ndarray:
        """Return p(label | z) for latent vectors (n, D): (n, C)."""
        return self.responsibilities(z) @ self.class_shares

    def responsibilities(self, z: np.ndarray) -> np.ndarray:
        """Return p(component | z) for latent vectors (n, D): (n, M), by Bayes' rule."""
        inverses = np.linalg.inv(self.factors.astype(np.float64))
        whitened = np.einsum("mij,nmj->nmi", inverses, z[:, None] - self.means, optimize=True)
        log_volumes = np.log(np.diagonal(self.factors, axis1=1, axis2=2)).sum(axis=1)  # (M,)
        with np.errstate(divide="ignore"):  # a weight of 0 has the logarithm -inf, and so no share
            logs = np.log(self.weights) - log_volumes - 0.5 * np.sum(whitened**2, axis=2)  # (n, M)
        shares = np.exp(logs - logs.max(axis=1, keepdims=True))
        return shares / shares.sum(axis=1, keepdims=True)


def make_normal(latent_dim: int) -> Mixture:
    """Return N(0, I) as a mixture of one component, without labels."""
    mean, factor = np.zeros(latent_dim, np.float32), np.eye(latent_dim, dtype=np.float32)
    return Mixture(np.ones(1, np.float32), mean[None], factor[None], np.empty(0, int), np.empty((1, 0), np.float32))


def draw_codes(mean: np.ndarray, log_var: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draw one posterior sample z = mean + exp(log_var / 2) * epsilon for each image: (n, D)."""
    return mean + np.exp(0.5 * log_var) * rng.standard_normal(mean.shape, np.float32)


def fit(codes: np.ndarray, labels: np.ndarray | None, seed: int) -> Mixture:
    """Fit a mixture to codes (n, D): one for each label (n,), weighted by its share, or one for all.

    Each has the number of components that gives held-out codes the highest likelihood.
    """
    classes = np.zeros(len(codes), int) if labels is None else labels.astype(int)
    parts = []
    for label in np.unique(classes):
        own = codes[classes == label]
        weights, means, factors = _fit_class(own, seed)
        parts.append((weights * len(own) / len(codes), means, factors, np.full(len(weights), label)))
    weights, means, factors, of_class = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    known = np.unique(classes)[: None if labels is not None else 0]
    shares = (of_class[:, None] == known).astype(np.float32)
    return Mixture(weights.astype(np.float32), means.astype(np.float32), factors.astype(np.float32), known, shares)


def _fit_class(codes: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    from sklearn.mixture import GaussianMixture

    if len(codes) == 1:  # nothing can be fitted to a single code; take the spread of N(0, I)
        return np.ones(1), codes, np.eye(codes.shape[1])[None]
    order = np.random.default_rng(seed).permutation(len(codes))
    held_out, rest = np.split(codes[order], [round(HELD_OUT * len(codes))])
    best, best_score = None, -np.inf
    for components in COMPONENTS:
        if components > 1 and len(rest) < 4 * components * codes.shape[1]:
            break
        mixture = GaussianMixture(components, reg_covar=1e-4, random_state=seed).fit(rest if len(held_out) else codes)
        score = mixture.score(held_out) if len(held_out) else 0.0
        if score <= best_score:
            break  # more components only fit the other codes more closely
        best, best_score = mixture, score
    return best.weights_, best.means_, np.linalg.cholesky(best.covariances_)


def read_mixture(arrays: dict[str, np.ndarray], latent_dim: int) -> Mixture:
    """Return the mixture in the arrays of prior.npz; UserError where they are not one for this decoder."""
    if arrays.get("weights", np.empty(0)).size > MAX_COMPONENTS:
        raise UserError(f"prior.npz: it has more than {MAX_COMPONENTS:,} components; draw with --sampler prior")
    try:
        with np.errstate(over="ignore"):  # what becomes infinite is found below
            floats = [arrays[name].astype(np.float32) for name in ("weights", "means", "factors", "class_shares")]
        mixture = Mixture(*floats[:3], arrays["labels"], floats[3])
        count, classes = mixture.class_shares.shape
    except (KeyError, ValueError, AttributeError) as error:
        raise UserError(f"prior.npz: it lacks the array {error}; draw with --sampler prior") from None
    shapes = [(count,), (count, latent_dim), (count, latent_dim, latent_dim), (classes,), (count, classes)]
    fits = count and all(array.shape == shape for array, shape in zip(vars(mixture).values(), shapes, strict=True))
    if not fits or not all(np.isfinite(array).all() for array in floats) or not _is_sound(mixture):
        raise UserError("prior.npz: it holds no mixture for this decoder; draw with --sampler prior")
    return mixture


def _is_sound(mixture: Mixture) -> bool:
    """Whether weights and shares are probabilities, and the factors lower-triangular with a positive diagonal."""
    diagonals = np.diagonal(mixture.factors, axis1=1, axis2=2)
    sums = [mixture.weights.sum(dtype=np.float64), *mixture.class_shares.sum(axis=1)[: len(mixture.labels) and None]]
    positive = mixture.weights.min() >= 0 and (mixture.class_shares >= 0).all() and diagonals.min() > 1e-6
    return bool(positive and np.allclose(sums, 1, atol=1e-3) and not np.triu(mixture.factors, 1).any())


def find_most_active(arrays: dict[str, np.ndarray] | None, latent_dim: int) -> tuple[int, int]:
    """Return the two dimensions whose posterior means vary most, from the arrays of prior.npz."""
    if latent_dim == 2:
        return 0, 1
    if arrays is None or arrays.get("activity", np.empty(0)).shape != (latent_dim,) or latent_dim < 2:
        raise UserError("--manifold: this run has no prior.npz that says which dimensions are active; train it again")
    first, second = np.argsort(-arrays["activity"])[:2]
    return int(first), int(second)


def walk(starts: np.ndarray, ends: np.ndarray, steps: int) -> np.ndarray:
    """Walk from each start (n, D) to its end (n, D) along the sphere: (n, steps, D), float32.

    Spherical interpolation (Shoemake, 1985; for latent spaces White, 2016). A straight line would pass nearer to the
    origin than any draw from N(0, I) of many dimensions.
    """
    lengths = np.linalg.norm(starts, axis=1), np.linalg.norm(ends, axis=1)
    cosine = np.sum(starts * ends, axis=1) / np.maximum(lengths[0] * lengths[1], 1e-12)
    angle = np.arccos(np.clip(cosine, -1, 1))[:, None]  # (n, 1)
    t = np.linspace(0, 1, steps)[None, :]  # (1, steps)
    straight = np.sin(angle) < 1e-3  # nearly the same or the opposite direction: the formula would divide by zero
    sine = np.where(straight, 1, np.sin(angle))
    of_start = np.where(straight, 1 - t, np.sin((1 - t) * angle) / sine)[:, :, None]
    of_end = np.where(straight, t, np.sin(t * angle) / sine)[:, :, None]
    return (of_start * starts[:, None] + of_end * ends[:, None]).astype(np.float32)


def plane(side: int, latent_dim: int, axes: tuple[int, int]) -> np.ndarray:
    """Return a square of side x side latent vectors over two axes, at the quantiles of N(0, 1): (side * side, D).

    Rows run down the second axis, columns along the first; the other dimensions are 0 (Kingma & Welling, figure 4).
    """
    quantiles = np.array([NormalDist().inv_cdf((index + 0.5) / side) for index in range(side)])
    z = np.zeros((side, side, latent_dim), np.float32)
    z[:, :, axes[0]] = quantiles[None, :]
    z[:, :, axes[1]] = -quantiles[:, None]
    return z.reshape(-1, latent_dim)
