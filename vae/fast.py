"""`model.VAE` faster on a CPU (`FastVAE`) or on several devices (`ParallelVAE`). Files that a run saves are the same.

docs/speed.md has the gain of each part. What gave less is not here.
"""

import keras
from keras import ops

from model import VAE


def speed_up(vae: VAE, in_shards: bool) -> VAE:
    """Return the VAE as ParallelVAE on several devices, as FastVAE on a CPU with TensorFlow, else as it is.

    `in_shards` says whether batches may be computed in parts.
    """
    if keras.distribution.distribution() is not None:
        return ParallelVAE(*_take_apart(vae))
    if not in_shards or keras.backend.backend() != "tensorflow" or keras.distribution.list_devices("gpu"):
        return vae
    return FastVAE(*_take_apart(vae))


class FastVAE(VAE):
    """A VAE that encodes and decodes each training batch in two shards in parallel.

    An operation that runs on one core at its own images wastes less time than one that two cores share. The prior is
    computed for the whole batch: its matrices are the same for all images.
    """

    def encode_and_decode(self, images, training=False):
        if not training:
            return super().encode_and_decode(images, training)
        half = ops.shape(images)[0] // 2
        shards = [super(FastVAE, self).encode_and_decode(part, training) for part in (images[:half], images[half:])]
        return [ops.concatenate(parts) for parts in zip(*shards, strict=True)]


class ParallelVAE(VAE):
    """A VAE for the batches of `batches.Share`, which several devices compute together."""

    def call(self, inputs, training=False):
        images, places = inputs
        count = places.shape[1]  # the images after these are there twice
        return [part[:count] for part in super().call(images, training)]


def _take_apart(vae: VAE) -> tuple:
    return (vae.encoder, vae.decoder), vae.prior, vae.beta, vae.variance, vae.importance_samples


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
