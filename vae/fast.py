"""The same arithmetic, faster on a CPU: `FastVAE` takes the place of `model.VAE`. Files that a run saves are the same.

docs/speed.md has the gain of each part.
"""

import math

import keras
from keras import layers, ops

from model import VAE

SHARDS = 2
SMALLEST_BATCH = 50  # images; half a smaller batch is not worth a core, and no shard may be empty


def speed_up(vae: VAE, in_shards: bool) -> VAE:
    """Return the fast VAE with the same parts, on TensorFlow and a CPU; elsewhere the VAE itself.

    `in_shards` says whether batches may be computed in parts.
    """
    if keras.backend.backend() != "tensorflow" or keras.distribution.list_devices("gpu"):
        return vae
    return FastVAE(vae, SHARDS if in_shards else 1)


class FastVAE(VAE):
    """A VAE with faster layers. It computes each training batch in two shards in parallel.

    An operation that runs on one core at its own images wastes less time than one that two cores share.
    """

    def __init__(self, vae: VAE, shards: int):
        super().__init__((vae.encoder, vae.decoder), vae.prior, vae.beta, vae.variance, vae.importance_samples)
        self.shards = shards
        self.decode_logits = _with_faster_layers(self.decode_logits)

    def call(self, images, training=False):
        if not training or self.shards == 1:
            return super().call(images, training)
        half = ops.shape(images)[0] // 2
        shards = [super(FastVAE, self).call(part, training) for part in (images[:half], images[half:])]
        return [ops.concatenate(parts) for parts in zip(*shards, strict=True)]


class Adam(keras.optimizers.Adam):
    """Adam (Kingma & Ba, 2015) in one pass over the weights, on TensorFlow. Keras makes several passes."""

    def update_step(self, gradient, variable, learning_rate):
        if keras.backend.backend() != "tensorflow":
            return super().update_step(gradient, variable, learning_rate)
        import tensorflow

        index = self._get_variable_index(variable)
        step = ops.cast(self.iterations + 1, "float32")
        tensorflow.raw_ops.ResourceApplyAdam(
            var=variable.handle,
            m=self._momentums[index].value.handle,
            v=self._velocities[index].value.handle,
            beta1_power=ops.power(self.beta_1, step),
            beta2_power=ops.power(self.beta_2, step),
            lr=learning_rate,
            beta1=self.beta_1,
            beta2=self.beta_2,
            epsilon=self.epsilon,
            grad=gradient,
        )


class ByteDropout(layers.Layer):
    """Dropout (Srivastava et al., 2014) that draws one random byte for each number instead of one float.

    It drops the rate as exactly as a byte can say it, else two bytes.
    """

    def __init__(self, dropout: layers.Dropout):
        super().__init__(name=dropout.name, dtype=dropout.dtype_policy)
        self._bits = 8 if (256 * dropout.rate).is_integer() else 16
        self._dropped = round(dropout.rate * 2**self._bits)  # how many of the values of so many bits
        self.seed_generator = dropout.seed_generator

    def call(self, x, training=False):
        if not training:
            return x
        *shape, features = ops.shape(x)
        words = math.ceil(features * self._bits / 32)
        noise = keras.random.randint((*shape, words), -(2**31), 2**31 - 1, seed=self.seed_generator)
        noise = ops.view(noise, f"int{self._bits}")[..., :features]
        values = 2**self._bits
        mask = ops.cast(noise >= self._dropped - values // 2, x.dtype)
        return x * (mask * (values / (values - self._dropped)))


class StackedDense(layers.Layer):
    """A dense layer with the weights of another one. Its gradients are products of stacks of matrices.

    For these TensorFlow (2.21) calls a part of oneDNN that is 15% faster than for single matrices (25088 x 784 weights,
    AVX-512).
    """

    def __init__(self, dense: layers.Dense):
        super().__init__(name=dense.name, dtype=dense.dtype_policy)
        self.dense = dense

    def call(self, x):
        h = _multiply(x, ops.expand_dims(self.dense.kernel, 0))
        return self.dense.activation(ops.add(h, self.dense.bias))


@ops.custom_gradient
def _multiply(x, kernel):
    """Return the product of x (n, a) and the only matrix of a stack (1, a, b): (n, b)."""

    def gradient(*arguments, upstream=None):  # Keras names the upstream gradient or passes it alone
        upstream = (arguments[0] if upstream is None else upstream)[None]
        of_x = ops.matmul(upstream, ops.transpose(kernel, (0, 2, 1)))[0]
        return of_x, ops.matmul(ops.transpose(x[None], (0, 2, 1)), upstream)

    return ops.matmul(x, kernel[0]), gradient


def _with_faster_layers(decoder: keras.Model) -> keras.Model:
    """Return the same network, with dropout and dense layers replaced by faster ones."""

    def replace(layer):
        if type(layer) is layers.Dropout:
            return ByteDropout(layer)
        if type(layer) is layers.Dense:
            return StackedDense(layer)
        return layer

    return keras.models.clone_model(decoder, clone_function=replace)
