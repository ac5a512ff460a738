"""How good a model is beyond its loss: the importance-weighted likelihood and the active units.

Burda, Grosse & Salakhutdinov, Importance Weighted Autoencoders, 2016. Nothing here knows a network: a model comes as
the posterior's mean and log_var, and as a function that gives log p(x|z).
"""

from collections.abc import Callable

import numpy as np

DECODED_AT_ONCE = 500  # latent vectors in one call of log p(x|z)
ACTIVE = 0.01  # variance of the posterior mean over the data above which a latent dimension counts as active


def negative_log_likelihood(
    images: np.ndarray,
    mean: np.ndarray,
    log_var: np.ndarray,
    log_likelihood: Callable[[np.ndarray, np.ndarray], np.ndarray],
    samples: int,
    seed: int,
    progress: Callable[[int], object] = lambda decoded: None,
) -> np.ndarray:
    """Estimate -log p(x) of each image by importance sampling from q(z|x): (n,) float64, in nats per image.

    -log 1/K sum_k p(x|z_k) p(z_k) / q(z_k|x) with K = `samples` (Burda et al., equation 8): an upper bound on average,
    the negative ELBO at K = 1, that falls to -log p(x) as K grows. `images` are (n, 28, 28), `mean` and `log_var`
    (n, D); `log_likelihood` maps images (m, 28, 28) and latent vectors (m, D) to log p(x|z), (m,). The samples stream
    through memory, whatever their number. `progress` is told how many have been decoded since it was told last.
    """
    rng = np.random.default_rng(seed)
    group = max(1, DECODED_AT_ONCE // samples)  # images that share a call where samples are few
    log_sums = np.full(len(images), -np.inf)
    for start in range(0, len(images), group):
        chosen = slice(start, min(start + group, len(images)))
        for first in range(0, samples, DECODED_AT_ONCE):
            count = min(DECODED_AT_ONCE, samples - first)
            weights = _log_weights(images[chosen], mean[chosen], log_var[chosen], log_likelihood, count, rng)
            log_sums[chosen] = np.logaddexp(log_sums[chosen], np.logaddexp.reduce(weights, axis=1))
            progress(weights.size)
    return np.log(samples) - log_sums


def _log_weights(images, mean, log_var, log_likelihood, count: int, rng: np.random.Generator) -> np.ndarray:
    """log p(x|z) + log p(z) - log q(z|x) for `count` samples z of each image: (n, count) float64."""
    epsilon = rng.standard_normal((len(images), count, mean.shape[1]), np.float32)
    z = mean[:, None] + np.exp(0.5 * log_var[:, None]) * epsilon  # (n, count, D)
    conditional = log_likelihood(np.repeat(images, count, axis=0), z.reshape(-1, mean.shape[1]))
    # Both normal densities have the factor (2 pi)^(-D/2), which cancels in their ratio.
    ratio = 0.5 * np.sum(
        np.square(epsilon, dtype=np.float64) + log_var[:, None] - np.square(z, dtype=np.float64), axis=2
    )
    return np.asarray(conditional, np.float64).reshape(len(images), count) + ratio


def active_units(mean: np.ndarray) -> int:
    """Count the latent dimensions whose posterior mean (n, D) varies over the data by more than 0.01."""
    return int(np.sum(np.var(mean, axis=0, dtype=np.float64) > ACTIVE))


def irreducible_loss(images: np.ndarray, variance: float | None = None) -> float:
    """The reconstruction loss of images (n, 28, 28) that are drawn as they are, in nats per image: the least there is.

    Without a variance, the cross-entropy of the images with themselves: 0 for binary pixels; for grey ones the part of
    the loss that no model can take away. With one, the constant of the Gaussian density.
    """
    if variance is not None:
        return images[0].size / 2 * float(np.log(2 * np.pi * variance))
    total = 0.0
    for part in (images, 1 - images):
        total -= np.sum(part * np.log(np.where(part > 0, part, 1)), dtype=np.float64)
    return total / len(images)
