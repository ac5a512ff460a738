"""How good a model is: its KL, likelihood and active units, and how well it knows the labels.

Burda, Grosse & Salakhutdinov, Importance Weighted Autoencoders, 2016.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from tqdm import tqdm

from vae.sampling import AT_ONCE, Mixture

ACTIVE = 0.01  # a latent dimension is active where its posterior mean has a larger variance over the data


@dataclass(frozen=True)
class Posterior:
    """Images (n, H, W) in [0, 1], and the mean and log_var of q(z|x), each (n, D)."""

    images: np.ndarray
    mean: np.ndarray
    log_var: np.ndarray


def estimate_nll(
    posterior: Posterior,
    log_likelihood: Callable[[np.ndarray, np.ndarray], np.ndarray],
    prior: Mixture,
    samples: int,
    seed: int,
) -> np.ndarray:
    """Estimate -log p(x) of each image by importance sampling from q(z|x): (n,) float64, in nats per image.

    -log 1/K sum_k p(x|z_k) p(z_k) / q(z_k|x) with K = `samples` (equation 8): on average an upper bound, which is the
    negative ELBO at K = 1 and falls to -log p(x) as K grows. `log_likelihood` maps images (m, H, W) and latent vectors
    (m, D) to log p(x|z), (m,). The samples are decoded 500 at a time, so memory does not grow with their number.
    """
    rng = np.random.default_rng(seed)
    images_at_once = max(1, AT_ONCE // samples)
    log_sums = np.full(len(posterior.mean), -np.inf)
    for start in tqdm(range(0, len(log_sums), images_at_once), leave=False, disable=None):  # a bar on a terminal
        part = slice(start, start + images_at_once)
        few = Posterior(posterior.images[part], posterior.mean[part], posterior.log_var[part])
        for first in range(0, samples, AT_ONCE):
            count = min(AT_ONCE, samples - first)
            epsilon = rng.standard_normal((len(few.mean), count, few.mean.shape[1]), np.float32)
            weights = _log_weights(few, log_likelihood, prior, epsilon)
            log_sums[part] = np.logaddexp(log_sums[part], np.logaddexp.reduce(weights, axis=1))
    return np.log(samples) - log_sums


def _log_weights(posterior: Posterior, log_likelihood: Callable, prior: Mixture, epsilon: np.ndarray) -> np.ndarray:
    """Return log p(x|z) + log p(z) - log q(z|x) for z = mean + exp(log_var / 2) * epsilon (n, K, D): (n, K) float64."""
    log_var = posterior.log_var[:, None]  # (n, 1, D)
    z = (posterior.mean[:, None] + np.exp(0.5 * log_var) * epsilon).reshape(-1, epsilon.shape[2])  # (n * K, D)
    conditional = log_likelihood(np.repeat(posterior.images, epsilon.shape[1], axis=0), z)
    log_posterior = -0.5 * np.sum(np.square(epsilon, dtype=np.float64) + log_var + np.log(2 * np.pi), axis=2)  # (n, K)
    return (np.asarray(conditional, np.float64) + prior.log_prob(z)).reshape(log_posterior.shape) - log_posterior


def kl_loss(posterior: Posterior, z: np.ndarray, prior: Mixture) -> np.ndarray:
    """Return the KL(q(z|x) || p(z)) of each image: (n,), in nats.

    For N(0, I) it has a closed form. For a mixture E[log p(z)] is estimated from one sample z (n, D) of q.
    """
    mean, log_var = posterior.mean, posterior.log_var
    if prior.is_normal:
        return 0.5 * np.sum(mean**2 + np.exp(log_var) - log_var - 1, axis=1)
    return -0.5 * np.sum(log_var + 1 + np.log(2 * np.pi), axis=1) - prior.log_prob(z)


def measure_information(mean: np.ndarray, log_var: np.ndarray) -> np.ndarray:
    """Return how many nats each latent dimension tells of an image, for the q(z|x) of n images, (n, D): (D,).

    It is the mean KL from q(z_d|x) to a Gaussian with the mean and the variance of all codes in that dimension: an
    upper bound on the mutual information (Hoffman & Johnson, ELBO surgery, 2016), whatever the prior.
    """
    variance = mean.var(axis=0) + np.exp(log_var).mean(axis=0)  # of all codes
    return 0.5 * (np.log(variance) - log_var.mean(axis=0))


def measure_label_accuracy(prior: Mixture, z: np.ndarray, labels: np.ndarray | None) -> float | None:
    """Return how often argmax p(label | z) is the label (n,) at latent vectors z (n, D); None without labels."""
    if labels is None or not len(prior.labels):
        return None
    return float(np.mean(prior.labels[prior.label_probabilities(z).argmax(axis=1)] == labels))


def count_active_units(mean: np.ndarray) -> int:
    """Count the latent dimensions whose posterior mean (n, D) has a variance over the data above 0.01."""
    return int(np.sum(np.var(mean, axis=0, dtype=np.float64) > ACTIVE))


def irreducible_loss(images: np.ndarray, variance: float | None = None) -> np.ndarray:
    """Return the reconstruction loss of images (n, H, W) that are decoded exactly: (n,), in nats, the least there is.

    Without a variance it is the entropy of the grey pixels, 0 for binary ones. With a variance it is the constant of
    the Gaussian density.
    """
    if variance is not None:
        return np.full(len(images), images[0].size / 2 * np.log(2 * np.pi * variance))
    parts = (part * np.log(np.where(part > 0, part, 1)) for part in (images, 1 - images))
    return -sum(np.sum(part, axis=(1, 2), dtype=np.float64) for part in parts)


def average(values: np.ndarray) -> tuple[float, float | None]:
    """Return the mean of independent values (n,) and its standard error, None for a single value, in float64."""
    error = np.std(values, ddof=1, dtype=np.float64) / np.sqrt(len(values)) if len(values) > 1 else None
    return float(np.mean(values, dtype=np.float64)), None if error is None else float(error)
