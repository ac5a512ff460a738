"""A variational autoencoder (VAE) for images: its encoder, its decoder, its losses and how they are trained.

Kingma & Welling, Auto-Encoding Variational Bayes, 2014; Rezende, Mohamed & Wierstra, Stochastic Backpropagation and
Approximate Inference in Deep Generative Models, 2014. Shapes in comments are those of MNIST.
"""

import math

import keras
import numpy as np
from keras import layers, ops

LOG_2PI = math.log(2 * math.pi)


def build_encoder(image_shape: tuple[int, int], hidden_dim: int, latent_dim: int) -> keras.Model:
    """Build q(z|x): images (n, 28, 28) in [0, 1] -> [mean, log_var], each (n, latent_dim)."""
    image = keras.Input(image_shape, name="image")
    columns = layers.Permute((2, 1), name="columns")(image)
    h1 = layers.LSTM(hidden_dim, return_sequences=True, name="lstm_rows")(image)  # (batch, 28, hidden_dim), row by row
    h2 = layers.LSTM(hidden_dim, return_sequences=True, name="lstm_columns")(columns)  # (batch, 28, hidden_dim)
    h = layers.Concatenate(name="concatenate")(
        [layers.Flatten(name="flatten1")(h1), layers.Flatten(name="flatten2")(h2)]
    )
    h = layers.Dropout(0.1, name="dropout")(h)  # or the encoder memorises the training images
    return end_encoder(image, h, latent_dim)


def build_decoder(image_shape: tuple[int, int], latent_dim: int) -> keras.Model:
    """Build p(x|z): latent vectors (n, latent_dim) -> pixel probabilities (n, 28, 28)."""
    height, width = image_shape
    z = keras.Input((latent_dim,), name="z")
    h = layers.Dense(256, activation="silu", name="dense1")(z)
    h = layers.Dense(height // 4 * (width // 4) * 16, activation="silu", name="dense2")(h)  # more would memorise
    h = layers.Reshape((height // 4, width // 4, 16), name="reshape")(h)  # (batch, 7, 7, 16)
    h = transposed_conv(64, 3, 1, "tconv1", "silu")(h)  # (batch, 7, 7, 64)
    h = layers.Add(name="residual")([h, transposed_conv(64, 3, 1, "tconv2", "silu")(h)])  # (batch, 7, 7, 64)
    h = transposed_conv(32, 4, 2, "tconv3", "silu")(h)  # (batch, 14, 14, 32)
    # The 4 channels of a place become its 2 x 2 pixels (Shi et al., 2016): faster than a last stride of 2.
    h = transposed_conv(4, 3, 1, "tconv4")(h)  # (batch, 14, 14, 4)
    h = layers.Reshape((height // 2, width // 2, 2, 2), name="pixels_2x2")(h)
    h = layers.Permute((1, 3, 2, 4), name="interleave")(h)  # (batch, 14, 2, 14, 2)
    return end_decoder(z, h, image_shape)


def transposed_conv(filters: int, size: int, strides: int, name: str, activation: str | None = None) -> layers.Layer:
    """Return a transposed convolution that multiplies height and width by `strides`."""
    return layers.Conv2DTranspose(filters, size, strides, padding="same", activation=activation, name=name)


def end_encoder(image, features, latent_dim: int) -> keras.Model:
    """End an encoder in q(z|x) = N(mean, diag(exp(log_var))). Both are linear in the features, and float32."""
    mean = layers.Dense(latent_dim, dtype="float32", name="mean")(features)
    log_var = layers.Dense(latent_dim, dtype="float32", name="log_var")(features)
    return keras.Model(image, [mean, log_var], name="encoder")


def end_decoder(z, h, image_shape: tuple[int, int]) -> keras.Model:
    """End a decoder in one logit per pixel, which training reads, and its sigmoid, which everybody else reads."""
    logits = layers.Reshape(image_shape, dtype="float32", name="logits")(h)  # (batch, 28, 28)
    pixels = layers.Activation("sigmoid", dtype="float32", name="pixels")(logits)
    return keras.Model(z, pixels, name="decoder")


def logits_of(decoder: keras.Model) -> keras.Model:
    """Return the decoder without its sigmoid: latent vectors (n, D) -> logits (n, 28, 28)."""
    return keras.Model(decoder.input, decoder.get_layer("logits").output)


def reconstruction_loss(images, logits, variance: float | None = None):
    """Return -log p(x|z) for images and logits (..., 28, 28) that broadcast: (...), in nats per image.

    Without a variance the pixels are Bernoulli, and this is the binary cross-entropy: softplus(l) - x * l is
    -x * log(sigmoid(l)) - (1 - x) * log(1 - sigmoid(l)), but never takes log(0). With a variance the pixels are
    Gaussian around sigmoid(l). Their density may be above 1, so this loss may be negative.
    """
    if variance is None:
        nats = ops.softplus(logits) - images * logits
    else:
        nats = 0.5 * (ops.square(images - ops.sigmoid(logits)) / variance + math.log(2 * math.pi * variance))
    return ops.sum(nats, axis=(-2, -1))


class NormalPrior(layers.Layer):
    """p(z) = N(0, I), with nothing to learn."""

    def __init__(self):
        super().__init__(name="prior", dtype="float32")
        self.built = True

    def log_prob(self, z):
        """Return log p(z) for latent vectors (n, D): (n,)."""
        return -0.5 * ops.sum(ops.square(z) + LOG_2PI, axis=1)

    def kl_loss(self, mean, log_var, log_prior):
        """Return KL(q(z|x) || p(z)) for mean and log_var (n, D): (n,), in nats per image (Kingma & Welling, app. B).

        It has a closed form, which does not need `log_prior`.
        """
        return 0.5 * ops.sum(ops.square(mean) + ops.exp(log_var) - log_var - 1.0, axis=1)


class MixturePrior(layers.Layer):
    """p(z) = sum_m w_m N(z; mean_m, covariance_m): M Gaussians, learned together with the network.

    N(0, I) has room for images that are no digits; this prior learns where the codes of digits are. A Gaussian is
    stored as its mean and a lower-triangular matrix F, the diagonal of F as its log: inverse(covariance) = F^T F.
    """

    def __init__(self, components: int, latent_dim: int):
        super().__init__(name="prior", dtype="float32")
        self.logits = self.add_weight((components,), "zeros", name="logits")
        self.means = self.add_weight(
            (components, latent_dim), keras.initializers.RandomNormal(stddev=1.0), name="means"
        )
        self.triangles = self.add_weight((components, latent_dim, latent_dim), "zeros", name="triangles")
        self.built = True

    def log_prob(self, z):
        """Return log p(z) for latent vectors (n, D): (n,)."""
        factors = self._factors()
        whitened = ops.matmul(
            z[None] - self.means[:, None], ops.transpose(factors, (0, 2, 1))
        )  # F (z - mean), (M, n, D)
        log_diagonals = ops.diagonal(self.triangles, axis1=1, axis2=2)  # (M, D)
        log_normals = ops.sum(log_diagonals[:, None] - 0.5 * (ops.square(whitened) + LOG_2PI), axis=2)  # (M, n)
        return ops.logsumexp(ops.log_softmax(self.logits)[:, None] + log_normals, axis=0)

    def kl_loss(self, mean, log_var, log_prior):
        """Estimate KL(q(z|x) || p(z)) from log p(z) at samples z of q, (n,): (n,), in nats per image.

        The other part, E[log q(z|x)], has a closed form.
        """
        return -0.5 * ops.sum(log_var + 1.0 + LOG_2PI, axis=1) - log_prior

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Return the weights (M,), the means (M, D) and the Cholesky factors of the covariances (M, D, D)."""
        factors = np.linalg.inv(ops.convert_to_numpy(self._factors()).astype(np.float64))
        weights, means = (ops.convert_to_numpy(x) for x in (ops.exp(ops.log_softmax(self.logits)), self.means))
        return {"weights": weights, "means": means, "factors": np.tril(factors).astype(np.float32)}

    def _factors(self):
        """Return the matrices F (M, D, D)."""
        identity = ops.eye(self.means.shape[1])
        return ops.tril(self.triangles, -1) + identity * ops.exp(self.triangles * identity)


def importance_weighted_loss(log_weights):
    """Return -log 1/K sum_k w_k for log w_k = log p(x|z_k) + log p(z_k) - log q(z_k|x), (n, K): (n,), nats per image.

    It is an upper bound on -log p(x), tighter with more samples (Burda et al., 2016, equation 8).
    """
    return math.log(log_weights.shape[1]) - ops.logsumexp(log_weights, axis=1)


class VAE(keras.Model):
    """An encoder and a decoder (`halves`) and a prior, trained together by the negative ELBO.

    `fit` and `evaluate` report three losses: general (the negative ELBO), reconstruction and KL. Each is a mean over
    all images seen, in nats per image. `beta` multiplies the KL in the gradient only (Higgins et al., beta-VAE, 2017):
    the reported losses are comparable for every beta. With several `importance_samples` the gradient is that of the
    tighter importance-weighted bound (Burda et al., Importance Weighted Autoencoders, 2016).
    """

    def __init__(self, halves, prior, beta: float = 1.0, variance: float | None = None, importance_samples: int = 1):
        super().__init__(name="vae", dtype="float32")
        self.encoder, self.decoder = halves
        self.prior = prior
        self.beta = beta
        self.variance = variance
        self.importance_samples = importance_samples
        self.noise = keras.random.SeedGenerator(0)
        self.decode_logits = logits_of(self.decoder)
        self._means = [keras.metrics.Mean(name) for name in ("general_loss", "reconstruction_loss", "kl_loss")]

    @property
    def metrics(self):
        return self._means

    def call(self, images, training=False):
        """Draw K latent vectors z from q(z|x) for each image (n, 28, 28), and compute its losses, in nats.

        K is importance_samples in training, and otherwise 1. Returns the logits (n, K, 28, 28); reconstruction,
        -log p(x|z), (n, K); the KL, (n,); and log_ratio, log p(z) - log q(z|x), (n, K).
        """
        samples = self.importance_samples if training else 1
        mean, log_var = self.encoder(images, training=training)  # (n, D)
        epsilon = keras.random.normal((ops.shape(images)[0], samples, mean.shape[1]), seed=self.noise)
        z = mean[:, None] + ops.exp(0.5 * log_var)[:, None] * epsilon  # (n, K, D), Kingma & Welling, equation 4
        vectors = ops.reshape(z, (-1, mean.shape[1]))  # (n * K, D)
        logits = ops.reshape(self.decode_logits(vectors, training=training), (-1, samples, *images.shape[1:]))
        reconstruction = reconstruction_loss(images[:, None], logits, self.variance)
        log_prior = ops.reshape(self.prior.log_prob(vectors), (-1, samples))
        kl = self.prior.kl_loss(mean, log_var, ops.mean(log_prior, axis=1))
        if samples == 1:  # "sticking the landing" (Roeder, 2017): the gradient through q's density is 0 on average
            mean, log_var = ops.stop_gradient(mean), ops.stop_gradient(log_var)
        squares = ops.square(z - mean[:, None]) * ops.exp(-log_var)[:, None]
        log_posterior = -0.5 * ops.sum(squares + log_var[:, None] + LOG_2PI, axis=2)
        return logits, reconstruction, kl, log_prior - log_posterior

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        """Return the loss that is minimised, from what `call` returned: a mean over the batch, in nats per image."""
        _, reconstruction, kl, log_ratio = y_pred
        mean_reconstruction = ops.mean(reconstruction, axis=1)
        for metric, value in zip(self._means, (mean_reconstruction + kl, mean_reconstruction, kl), strict=True):
            metric.update_state(value)
        if self.importance_samples > 1:
            return ops.mean(importance_weighted_loss(log_ratio - reconstruction))
        if isinstance(self.prior, NormalPrior):  # its KL has a closed form
            return ops.mean(mean_reconstruction + self.beta * kl)
        return ops.mean(reconstruction - self.beta * log_ratio)

    def reconstruct(self, images):
        """Decode one posterior sample of each image (n, 28, 28): pixel probabilities (n, 28, 28), a NumPy array."""
        return ops.convert_to_numpy(ops.sigmoid(self.predict_on_batch(images)[0][:, 0]))

    def reseed(self, *keys: int) -> None:
        """Make all noise from here on (z and dropout) a function of these numbers: (seed, epoch) in training."""
        noisy_layers = [layer for half in (self.encoder, self.decoder) for layer in half.layers]
        generators = [self.noise, *(layer.seed_generator for layer in noisy_layers if hasattr(layer, "seed_generator"))]
        states = np.random.SeedSequence(keys).generate_state(2 * len(generators)) >> 1  # 31 bits fit every backend
        for generator, state in zip(generators, states.reshape(-1, 2), strict=True):
            generator.state.assign(state)
