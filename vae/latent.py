"""Where latent vectors come from: the prior, a mixture fitted to the codes of the training images, walks and planes.

Digits drawn from the prior N(0, I) include many that are none, because the codes of real digits, the aggregate
posterior, fill only part of it (Hoffman & Johnson, ELBO surgery, 2016). A mixture of Gaussians fitted to those codes
stands closer to them.
"""

from typing import NamedTuple

import numpy as np

from vae.settings import UserError

HELD_OUT = 0.1  # part of the codes that the number of components is chosen by
COMPONENTS = (1, 2, 4, 8, 16)  # numbers of components tried, for each class
MAX_COMPONENTS = 10**3  # of a mixture that is read, for each takes memory with each vector that is drawn
SURE = 0.9  # the least probability of a digit, under the mixture, of a vector that is drawn for it
ROUNDS = 10  # of drawing again what is not sure; where classes lie on each other, none ever would be


class Mixture(NamedTuple):
    """A mixture of M Gaussians over D latent dimensions, as plain arrays."""

    weights: np.ndarray  # (M,), sums to 1
    means: np.ndarray  # (M, D)
    factors: np.ndarray  # (M, D, D), Cholesky factors of the covariances
    classes: np.ndarray  # (M,) the label that each component was fitted to; -1 where there were no labels


def fit(codes: np.ndarray, labels: np.ndarray | None, seed: int) -> Mixture:
    """Fit a mixture to latent codes (n, D): one for each label (n,), weighted by its share, or one for all.

    The number of components of each is the one that gives held-out codes the highest likelihood.
    """
    labels = np.full(len(codes), -1) if labels is None else labels.astype(int)
    parts = []
    for label in np.unique(labels):
        own = codes[labels == label]
        weights, means, factors = _fit_class(own, seed)
        parts.append((weights * len(own) / len(codes), means, factors, np.full(len(weights), label)))
    weights, means, factors, classes = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    return Mixture(weights.astype(np.float32), means.astype(np.float32), factors.astype(np.float32), classes)


def _fit_class(codes: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    from sklearn.mixture import GaussianMixture

    if len(codes) == 1:  # nothing can be fitted to a single code; the prior's spread stands in
        return np.ones(1), codes, np.eye(codes.shape[1])[None]
    order = np.random.default_rng(seed).permutation(len(codes))
    held_out, kept = np.split(codes[order], [round(HELD_OUT * len(codes))])
    best, best_score = None, -np.inf
    for components in COMPONENTS:
        # A full covariance needs more codes than dimensions to stand on; small classes get a single broad component.
        if components > 1 and len(kept) < 4 * components * codes.shape[1]:
            break
        mixture = GaussianMixture(components, reg_covar=1e-4, random_state=seed).fit(kept if len(held_out) else codes)
        score = mixture.score(held_out) if len(held_out) else 0.0
        if score <= best_score:
            break  # more components only fit the kept codes closer from here on
        best, best_score = mixture, score
    return best.weights_, best.means_, np.linalg.cholesky(best.covariances_)


def mixture(arrays: dict[str, np.ndarray], latent_dim: int) -> Mixture:
    """The mixture in a run's `prior.npz`; raises UserError where its arrays do not fit the decoder."""
    try:
        *numbers, classes = (arrays[name] for name in Mixture._fields)
    except KeyError as error:
        raise UserError(f"prior.npz lacks the array {error}; draw with --sampler prior") from None
    count = classes.size
    if count > MAX_COMPONENTS:
        raise UserError(f"prior.npz holds {count:,} components, more than any run's; draw with --sampler prior")
    with np.errstate(over="ignore"):  # what becomes infinite is found below
        found = Mixture(*(array.astype(np.float32, copy=False) for array in numbers), classes)
    shapes = ((count,), (count, latent_dim), (count, latent_dim, latent_dim), (count,))
    fits = count and all(array.shape == shape for array, shape in zip(found, shapes, strict=True))
    if not fits or not all(np.isfinite(array).all() for array in found) or not _is_mixture(found):
        raise UserError("prior.npz does not hold a mixture for this decoder; draw with --sampler prior")
    return found


def _is_mixture(found: Mixture) -> bool:
    """Whether finite arrays of the right shapes are one: weights that can be shares, factors that can be Cholesky's."""
    diagonals = np.diagonal(found.factors, axis1=1, axis2=2)
    shares = found.weights.min() >= 0 and abs(found.weights.sum(dtype=np.float64) - 1) < 1e-3
    return bool(shares and diagonals.min() > 1e-6 and not np.triu(found.factors, 1).any())


def most_active(arrays: dict[str, np.ndarray] | None, latent_dim: int) -> tuple[int, int]:
    """The two dimensions whose posterior means vary most, from a run's `prior.npz`; UserError where that is missing."""
    if arrays is None or "activity" not in arrays or arrays["activity"].shape != (latent_dim,) or latent_dim < 2:
        raise UserError("--manifold: this run has no prior.npz that says which dimensions are active; train it again")
    first, second = np.argsort(-arrays["activity"])[:2]
    return int(first), int(second)


def draw_prior(rng: np.random.Generator, count: int, latent_dim: int, scale: float) -> np.ndarray:
    """Draw from N(0, scale^2 I): (count, D) float32."""
    return np.float32(scale) * rng.standard_normal((count, latent_dim), np.float32)


def draw_mixture(rng: np.random.Generator, count: int, mixture: Mixture, scale: float, digit: int | None) -> np.ndarray:
    """Draw from the mixture, or from its components of one class, deviations multiplied by scale: (count, D) float32.

    The outskirts of one digit's Gaussians lie among other digits, so a vector that was drawn for a digit is drawn
    again where the mixture itself is not SURE of the digit. Raises UserError where `digit` is none of the classes.
    """
    if digit is None:
        return _draw(rng, count, mixture, scale, mixture.weights)
    of_digit = (mixture.classes == digit) & (mixture.weights > 0)
    if not of_digit.any():
        known = np.unique(mixture.classes)[:20]  # as many as a line holds
        why = "was trained without labels" if known.tolist() == [-1] else f"knows only {', '.join(map(str, known))}"
        raise UserError(f"--digit {digit}: this run {why}; draw without --digit")
    z = _draw(rng, count, mixture, scale, of_digit * mixture.weights)
    unsure = np.arange(count)
    for _ in range(ROUNDS):
        unsure = unsure[responsibilities(mixture, z[unsure])[:, of_digit].sum(axis=1) < SURE]
        if not len(unsure):
            break
        z[unsure] = _draw(rng, len(unsure), mixture, scale, of_digit * mixture.weights)
    return z


def _draw(rng: np.random.Generator, count: int, mixture: Mixture, scale: float, weights: np.ndarray) -> np.ndarray:
    weights = weights.astype(np.float64)
    component = rng.choice(len(weights), size=count, p=weights / weights.sum())
    epsilon = np.float32(scale) * rng.standard_normal((count, mixture.means.shape[1]), np.float32)
    return mixture.means[component] + np.einsum("nij,nj->ni", mixture.factors[component], epsilon)


def responsibilities(mixture: Mixture, z: np.ndarray) -> np.ndarray:
    """The probability that each latent vector (n, D) comes from each component: (n, M), rows sum to 1 (Bayes' rule)."""
    inverses = np.linalg.inv(mixture.factors.astype(np.float64))
    whitened = np.einsum("mij,nmj->nmi", inverses, z[:, None] - mixture.means, optimize=True)
    log_volumes = np.log(np.diagonal(mixture.factors, axis1=1, axis2=2)).sum(axis=1)  # (M,)
    with np.errstate(divide="ignore"):  # a component of weight 0 has the logarithm -inf, and so no share
        logs = np.log(mixture.weights) - log_volumes - 0.5 * np.sum(whitened**2, axis=2)  # (n, M)
    shares = np.exp(logs - logs.max(axis=1, keepdims=True))
    return shares / shares.sum(axis=1, keepdims=True)


def walk(starts: np.ndarray, ends: np.ndarray, steps: int) -> np.ndarray:
    """Walk from each start (n, D) to its end (n, D) along the sphere: (n, steps, D) float32.

    Spherical interpolation (Shoemake, 1985; for latent spaces White, 2016): the way stays as far from the origin as its
    ends, where a straight line would pass through a middle in which a Gaussian of many dimensions has no mass.
    """
    lengths = np.linalg.norm(starts, axis=1), np.linalg.norm(ends, axis=1)
    cosine = np.sum(starts * ends, axis=1) / np.maximum(lengths[0] * lengths[1], 1e-12)
    angle = np.arccos(np.clip(cosine, -1, 1))[:, None]  # (n, 1)
    t = np.linspace(0, 1, steps)[None, :]  # (1, steps)
    straight = np.sin(angle) < 1e-3  # nearly the same direction, or the opposite: the formula would divide by zero
    sine = np.where(straight, 1, np.sin(angle))
    of_start = np.where(straight, 1 - t, np.sin((1 - t) * angle) / sine)[:, :, None]
    of_end = np.where(straight, t, np.sin(t * angle) / sine)[:, :, None]
    return (of_start * starts[:, None] + of_end * ends[:, None]).astype(np.float32)


def plane(side: int, latent_dim: int, axes: tuple[int, int]) -> np.ndarray:
    """Latent vectors of a square of side x side over two axes, at the prior's quantiles: (side * side, D) float32.

    Rows run down the second axis, columns along the first; the other dimensions are 0 (Kingma & Welling, figure 4).
    """
    from statistics import NormalDist

    quantiles = [NormalDist().inv_cdf((index + 0.5) / side) for index in range(side)]
    z = np.zeros((side, side, latent_dim), np.float32)
    z[:, :, axes[0]] = np.asarray(quantiles)[None, :]
    z[:, :, axes[1]] = -np.asarray(quantiles)[:, None]
    return z.reshape(-1, latent_dim)
