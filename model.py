"""The networks, each a short builder, and the variational autoencoder with its loss.

A builder returns two plain functional models, an encoder and a decoder, that know nothing of each other; `VAE` joins
them, draws the latent vector between them and adds up the loss: the negative ELBO, or a tighter bound.

Kingma & Welling, Auto-Encoding Variational Bayes, 2014 (equations 3 and 10); Rezende, Mohamed & Wierstra, Stochastic
Backpropagation and Approximate Inference in Deep Generative Models, 2014.
"""

import math
from itertools import pairwise

import keras
import numpy as np
from keras import layers, ops


def standard(hidden_dim: int, latent_dim: int) -> tuple[keras.Model, keras.Model]:
    """An LSTM reads the rows; transposed convolutions draw from 7 x 7 up to 28 x 28."""
    image = keras.Input((28, 28), name="image")
    rows = layers.LSTM(hidden_dim, return_sequences=True, name="lstm")(image)  # (batch, 28, hidden_dim)
    features = layers.Flatten(name="flatten")(rows)  # (batch, 28 * hidden_dim)
    features = layers.Dropout(0.1, name="dropout")(features)  # or the encoder learns the training images by heart
    encoder = _encoder(image, features, latent_dim)

    z = keras.Input((latent_dim,), name="z")
    h = layers.Dense(256, activation="silu", name="dense1")(z)
    h = _small_image(h, 7, 64, "dense2", "silu")
    h = _tconv(64, 3, strides=1, name="tconv1", activation="silu")(h)  # (batch, 7, 7, 64)
    h = _tconv(32, 4, strides=2, name="tconv2", activation="silu")(h)  # (batch, 14, 14, 32)
    # The last stage gives the 2 x 2 pixels of each place as 4 channels and lays them out (Shi et al., 2016): what a
    # transposed convolution of stride 2 to a single channel does, in a shape that processors are quick at.
    h = _tconv(4, 3, strides=1, name="tconv3", activation=None)(h)  # (batch, 14, 14, 4)
    h = layers.Reshape((14, 14, 2, 2), name="pixels_2x2")(h)
    h = layers.Permute((1, 3, 2, 4), name="interleave")(h)  # (batch, 14, 2, 14, 2)
    return encoder, _decoder(z, h)


def readout(hidden_dim: int, latent_dim: int) -> tuple[keras.Model, keras.Model]:
    """All outputs of the LSTM are encoded; a dense layer of 784 units reads the image out of the last feature maps.

    Left open by its authors: the rate of dropout, here a quarter.
    """
    image = keras.Input((28, 28), name="image")
    rows = layers.LSTM(hidden_dim, return_sequences=True, name="lstm")(image)  # (batch, 28, hidden_dim)
    encoder = _encoder(image, layers.Flatten(name="flatten")(rows), latent_dim)

    z = keras.Input((latent_dim,), name="z")
    h = layers.Dense(98, activation="relu", name="dense1")(z)
    h = _small_image(h, 14, 1, "dense2")
    for number, (filters, strides) in enumerate([(64, 1), (32, 1), (32, 2)], start=1):
        h = _tconv(filters, 3, strides, name=f"tconv{number}")(h)  # 14 x 14, but for the last, 28 x 28
        h = layers.Dropout(0.25, name=f"dropout{number}")(h)
    h = layers.Flatten(name="flatten")(h)  # (batch, 25088)
    return encoder, _decoder(z, layers.Dense(784, name="dense3")(h))


def posterior(hidden_dim: int, latent_dim: int) -> tuple[keras.Model, keras.Model]:
    """The encoder's standard deviation is a softplus, for a latent plane that transposed convolutions draw from.

    Left open by its authors: epochs, batch size and rate of learning (vae/settings.py). Their other kind of pixels, the
    Normal, is `--likelihood gaussian`.
    """
    image = keras.Input((28, 28), name="image")
    h = layers.LSTM(hidden_dim, name="lstm")(image)  # (batch, hidden_dim), the last output
    h = layers.Dense(200, activation="relu", name="dense1")(h)
    h = layers.Dense(200, activation="relu", name="dense2")(h)
    mean = layers.Dense(latent_dim, dtype="float32", name="mean")(h)
    scale = layers.Dense(latent_dim, activation="softplus", dtype="float32", name="scale")(h)
    encoder = keras.Model(image, [mean, 2.0 * ops.log(scale)], name="encoder")

    z = keras.Input((latent_dim,), name="z")
    h = layers.Dense(24, activation="relu", name="dense1")(z)
    return encoder, _decoder(z, _quadrupled(_small_image(h, 7, 64, "dense2"), 64, 32))


def dense(hidden_dim: int, latent_dim: int) -> tuple[keras.Model, keras.Model]:
    """The last output of a wide LSTM is encoded; two dense layers decode.

    Left open by its authors: the rate of learning (vae/settings.py).
    """
    image = keras.Input((28, 28), name="image")
    encoder = _encoder(image, layers.LSTM(hidden_dim, name="lstm")(image), latent_dim)

    z = keras.Input((latent_dim,), name="z")
    h = layers.Dense(256, activation="relu", name="dense1")(z)
    return encoder, _decoder(z, layers.Dense(784, name="dense2")(h))


def batchnorm(hidden_dim: int, latent_dim: int) -> tuple[keras.Model, keras.Model]:
    """Normalised images; three blocks of transposed convolution, batch normalisation, pooling and dropout draw.

    Left open by its authors: 32 latents; the dense layer sees all rows at once; the decoder begins with 7 x 7 x 64; its
    blocks have 64, 32 and 8 filters; pooling averages 2 x 2 places with a stride of 1, which smooths what strides
    leave; dropout is 0.1; one more transposed convolution ends in the single channel.
    """
    image = keras.Input((28, 28), name="image")
    h = layers.Normalization(axis=None, mean=0.1307, variance=0.3081**2, name="normalization")(image)  # MNIST's
    h = layers.LSTM(hidden_dim, return_sequences=True, name="lstm")(h)  # (batch, 28, hidden_dim)
    h = layers.ReLU(name="relu")(layers.Flatten(name="flatten")(h))
    encoder = _encoder(image, layers.Dense(256, activation="relu", name="dense")(h), latent_dim)

    z = keras.Input((latent_dim,), name="z")
    h = _small_image(z, 7, 64, "dense")
    for number, (filters, size, strides) in enumerate([(64, 3, 1), (32, 4, 2), (8, 4, 2)], start=1):
        h = _tconv(filters, size, strides, name=f"tconv{number}")(h)  # 7 x 7, 14 x 14, 28 x 28
        h = layers.BatchNormalization(name=f"batchnorm{number}")(h)
        h = layers.AveragePooling2D(2, strides=1, padding="same", name=f"pooling{number}")(h)
        h = layers.Dropout(0.1, name=f"dropout{number}")(h)
    return encoder, _decoder(z, _tconv(1, 3, strides=1, name="tconv4", activation=None)(h))


def plane(hidden_dim: int, latent_dim: int) -> tuple[keras.Model, keras.Model]:
    """The last output of the LSTM and a dense layer give a point of a plane; transposed convolutions draw from it.

    Left open by its authors: 64 units of the LSTM, 128 of the dense layer, 7 x 7 x 32 to begin with, and batch size and
    rate of learning (vae/settings.py).
    """
    image = keras.Input((28, 28), name="image")
    h = layers.LSTM(hidden_dim, name="lstm")(image)  # (batch, hidden_dim), the last output
    encoder = _encoder(image, layers.Dense(128, activation="relu", name="dense")(h), latent_dim)

    z = keras.Input((latent_dim,), name="z")
    return encoder, _decoder(z, _quadrupled(_small_image(z, 7, 32, "dense"), 32, 32))


BUILDERS = {
    "standard": standard,
    "readout": readout,
    "posterior": posterior,
    "dense": dense,
    "batchnorm": batchnorm,
    "plane": plane,
}


def build(network: str, hidden_dim: int, latent_dim: int) -> tuple[keras.Model, keras.Model]:
    """Build the network of that name: its encoder and its decoder.

    The encoder maps images (n, 28, 28) in [0, 1] to [mean, log_var], each (n, latent_dim); the decoder maps latent
    vectors (n, latent_dim) to pixel probabilities (n, 28, 28). Everything that they return is float32.
    """
    return BUILDERS[network](hidden_dim, latent_dim)


def _small_image(h, side: int, channels: int, name: str, activation: str = "relu"):
    """Turn vectors into feature maps (batch, side, side, channels) by a dense layer."""
    h = layers.Dense(side * side * channels, activation=activation, name=name)(h)
    return layers.Reshape((side, side, channels), name="reshape")(h)


def _tconv(filters: int, size: int, strides: int, name: str, activation: str | None = "relu") -> layers.Layer:
    return layers.Conv2DTranspose(filters, size, strides, padding="same", activation=activation, name=name)


def _quadrupled(h, *filters: int):
    """Double height and width of feature maps with each of two transposed convolutions; end in a single channel."""
    for number, count in enumerate(filters, start=1):
        h = _tconv(count, 3, strides=2, name=f"tconv{number}")(h)
    return _tconv(1, 3, strides=1, name=f"tconv{len(filters) + 1}", activation=None)(h)


def _encoder(image, features, latent_dim: int) -> keras.Model:
    """End an encoder: q(z|x) = N(mean, diag(exp(log_var))), both linear in the features."""
    mean = layers.Dense(latent_dim, dtype="float32", name="mean")(features)
    log_var = layers.Dense(latent_dim, dtype="float32", name="log_var")(features)
    return keras.Model(image, [mean, log_var], name="encoder")


def _decoder(z, h) -> keras.Model:
    """End a decoder: 784 logits, which training reads, and the sigmoid of each, which everybody else does."""
    logits = layers.Reshape((28, 28), dtype="float32", name="logits")(h)
    pixels = layers.Activation("sigmoid", dtype="float32", name="pixels")(logits)
    return keras.Model(z, pixels, name="decoder")


def reconstruction_loss(images, logits, variance: float | None = None):
    """-log p(x|z) of each image (n, 28, 28), where the decoder gives logits (n, 28, 28): (n,), in nats per image.

    Without a variance, pixels are Bernoulli and this is the binary cross-entropy: softplus(l) - x * l is
    -x * log(sigmoid(l)) - (1 - x) * log(1 - sigmoid(l)), without the logarithm of zero. With one, pixels are Gaussian
    around sigmoid(l): the squared error over twice the variance, and the density's constant, which may be negative.
    """
    if variance is None:
        nats = ops.softplus(logits) - images * logits
    else:
        squared_error = ops.square(images - ops.sigmoid(logits))
        nats = 0.5 * (squared_error / variance + math.log(2 * math.pi * variance))
    return ops.sum(nats, axis=(1, 2))


def kl_loss(mean, log_var):
    """KL(q(z|x) || N(0, I)) from (n, D) and (n, D): (n,), in nats per image (Kingma & Welling, appendix B)."""
    return 0.5 * ops.sum(ops.square(mean) + ops.exp(log_var) - log_var - 1.0, axis=1)


def importance_weighted_loss(log_weights):
    """-log 1/K sum_k w_k from log w_k = log p(x|z_k) + log p(z_k) - log q(z_k|x), (n, K): (n,), in nats per image.

    On average an upper bound on -log p(x), the tighter the larger K (Burda et al., 2016, equation 8).
    """
    return math.log(log_weights.shape[1]) - ops.logsumexp(log_weights, axis=1)


def _repeated(rows, times: int):
    """Each of the rows (n, ...) so many times, next to one another: (n * times, ...)."""
    if times == 1:
        return rows
    # ops.repeat would let TensorFlow's oneDNN complain, on standard error, of an int32 that it cannot add up.
    return ops.reshape(ops.stack([rows] * times, axis=1), (-1, *rows.shape[1:]))


def logits_of(decoder: keras.Model) -> keras.Model:
    """The decoder without its sigmoid: latent vectors (n, D) to logits (n, 28, 28)."""
    return keras.Model(decoder.input, decoder.get_layer("logits").output)


def log_likelihood_of(decoder: keras.Model, variance: float | None = None) -> keras.Model:
    """The decoder as a density: images (n, 28, 28) and latent vectors (n, D) to log p(x|z), (n,), in nats per image."""
    image = keras.Input((28, 28), name="image")
    z = keras.Input(decoder.input_shape[1:], name="z")
    return keras.Model([image, z], -reconstruction_loss(image, logits_of(decoder)(z), variance))


class ByteDropout(layers.Layer):
    """What a layer of dropout does while training, its noise drawn a byte a number and not a float a number.

    A quarter of the random words and fewer passes over what may be the largest tensors of a step. Drops a share of
    rate, as exactly as a byte can say it, or else two, and divides by the share that is kept (Srivastava et al., 2014).
    """

    def __init__(self, dropout: layers.Dropout):
        super().__init__(name=dropout.name, dtype=dropout.dtype_policy)
        self._bits = 8 if (256 * dropout.rate).is_integer() else 16
        self._dropped = round(dropout.rate * 2**self._bits)  # of the values that so many bits can have
        self.seed_generator = dropout.seed_generator

    def call(self, x, training=False):
        if not training:
            return x
        *shape, features = ops.shape(x)
        words = math.ceil(features * self._bits / 32)
        noise = keras.random.randint((*shape, words), -(2**31), 2**31 - 1, seed=self.seed_generator)
        noise = ops.view(noise, f"int{self._bits}")[..., :features]
        values = 2**self._bits
        kept = ops.cast(noise >= self._dropped - values // 2, x.dtype)
        return x * (kept * (values / (values - self._dropped)))


@ops.custom_gradient
def _product(x, kernel):
    """The matrix product of (n, a) and the only one of (1, a, b): (n, b). Its gradients are products of such stacks.

    TensorFlow (2.21) calls another part of oneDNN for products of stacks than for single ones: with 25088 x 784 weights
    and AVX-512 it takes 15% less time for these two. The product itself is as quick either way.
    """

    def gradient(*arguments, upstream=None):  # as Keras asks for it: PyTorch names the upstream, others pass it alone
        upstream = (arguments[0] if upstream is None else upstream)[None]
        of_x = ops.matmul(upstream, ops.transpose(kernel, (0, 2, 1)))[0]
        return of_x, ops.matmul(ops.transpose(x[None], (0, 2, 1)), upstream)

    return ops.matmul(x, kernel[0]), gradient


class StackedDense(layers.Layer):
    """What a dense layer does, by the layer's own weights; where these are many, training is quicker (`_product`)."""

    def __init__(self, dense: layers.Dense):
        super().__init__(name=dense.name, dtype=dense.dtype_policy)
        self.dense = dense

    def call(self, x):
        h = _product(x, ops.expand_dims(self.dense.kernel, 0))
        return self.dense.activation(ops.add(h, self.dense.bias))


def _for_training(decoder: keras.Model) -> keras.Model:
    """The same layers once more, to train by; but for dropout and dense layers, in whose places quicker ones stand."""

    def layer_of(layer):
        if type(layer) is layers.Dropout and 0 < layer.rate < 1 and layer.noise_shape is None:
            return ByteDropout(layer)
        if type(layer) is layers.Dense and layer.use_bias and len(layer.input.shape) == 2:
            return StackedDense(layer)
        return layer

    return keras.models.clone_model(decoder, clone_function=layer_of)


class VAE(keras.Model):
    """An encoder and a decoder that are trained together by the negative ELBO, or by a tighter bound.

    The three figures that `fit` and `evaluate` report are means over all images seen, in nats per image: the general
    loss (reconstruction + KL, the negative ELBO), the reconstruction loss and the KL loss. `beta` weighs the KL term in
    the gradient alone (Higgins et al., beta-VAE, 2017): at any beta the figures stay an ELBO. So they do where the
    gradient is that of the tighter bound of several `importance_samples` (Burda et al., Importance Weighted
    Autoencoders, 2016), which has no KL term for beta to weigh. With a `variance`, pixels are Gaussian.

    Each batch is computed in so many `shards`, nothing of one waiting for another, so that each core can have its own:
    the same mathematics, but for layers that look at a batch as a whole, and quicker than many cores at one small
    operation after the other.
    """

    def __init__(
        self,
        encoder: keras.Model,
        decoder: keras.Model,
        beta: float = 1.0,
        shards: int = 1,
        variance: float | None = None,
        importance_samples: int = 1,
    ):
        super().__init__(name="vae", dtype="float32")
        self.encoder = encoder
        self.decoder = decoder
        self.beta = beta
        self.shards = shards
        self.variance = variance
        self.importance_samples = importance_samples
        self.noise = keras.random.SeedGenerator(0)
        self._logits = _for_training(logits_of(decoder))
        self._means = [keras.metrics.Mean(name) for name in ("general_loss", "reconstruction_loss", "kl_loss")]

    @property
    def metrics(self):
        return self._means

    def call(self, images, training=False):
        """Return (logits, reconstruction, kl, log_ratio) for images (n, 28, 28).

        For each, K latent vectors z are drawn from q(z|x): while training as many as there are importance samples, else
        one. Logits are (n K, 28, 28), an image's next to one another. What they cost, in nats per image, are
        reconstruction, -log p(x|z), (n, K), and kl, (n,); log_ratio, (n, K), is log p(z) - log q(z|x).
        """
        count = ops.shape(images)[0]
        ends = [count * shard // self.shards for shard in range(self.shards + 1)]
        shards = [self._forward(images[begin:end], training) for begin, end in pairwise(ends)]
        return [ops.concatenate(parts) for parts in zip(*shards, strict=True)]

    def _forward(self, images, training):
        mean, log_var = self.encoder(images, training=training)
        samples = self.importance_samples if training else 1
        means, log_vars = _repeated(mean, samples), _repeated(log_var, samples)
        epsilon = keras.random.normal(ops.shape(means), seed=self.noise)
        z = means + ops.exp(0.5 * log_vars) * epsilon  # (n K, D), equation 4
        logits = self._logits(z, training=training)
        reconstruction = reconstruction_loss(_repeated(images, samples), logits, self.variance)
        log_ratio = 0.5 * ops.sum(ops.square(epsilon) + log_vars - ops.square(z), axis=1)  # (2 pi)^(-D/2) cancels
        reconstruction, log_ratio = (ops.reshape(nats, (-1, samples)) for nats in (reconstruction, log_ratio))
        return logits, reconstruction, kl_loss(mean, log_var), log_ratio

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        _, by_sample, kl, log_ratio = y_pred  # of the same images x, worked out shard by shard
        reconstruction = ops.mean(by_sample, axis=1)
        for tracker, value in zip(self._means, (reconstruction + kl, reconstruction, kl), strict=True):
            tracker.update_state(value)
        if log_ratio.shape[1] == 1:  # the KL term in closed form has less noise than its sample
            return ops.mean(reconstruction + self.beta * kl)
        return ops.mean(importance_weighted_loss(log_ratio - by_sample))

    def reseed(self, *keys: int) -> None:
        """Make all noise from here on, dropout's too, a function of these keys, say of (seed, epoch)."""
        layers_with_noise = [h for h in (*self.encoder.layers, *self.decoder.layers) if hasattr(h, "seed_generator")]
        generators = [self.noise, *(layer.seed_generator for layer in layers_with_noise)]
        states = np.random.SeedSequence(keys).generate_state(2 * len(generators)) >> 1  # 31 bits fit every backend
        for generator, state in zip(generators, states.reshape(-1, 2), strict=True):
            generator.state.assign(state)
