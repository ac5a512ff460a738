"""What depends on the backend, the processor and the number format. The arithmetic is that of model.py."""

from argparse import Namespace

from vae import parallel, terminal
from vae.networks import NETWORKS

SMALLEST_BATCH = 50  # images to compute in shards; half a smaller batch is not worth a core


def prepare(options: Namespace):
    """Import Keras, set it up as the settings say, and return it.

    On exactly two cores a batch is computed in two shards, and then each operation of TensorFlow keeps to one core: so
    it was measured (docs/speed.md). Elsewhere TensorFlow uses all cores as it likes.
    """
    suits_shards = NETWORKS[options.network].in_shards and options.batch_size >= SMALLEST_BATCH and options.shards != 1
    in_shards = suits_shards and parallel.count_cores() == 2 and terminal.find_backend() == "tensorflow"
    keras = terminal.import_keras(threads=1 if in_shards else None)
    if options.shards is None:  # a resumed run keeps what it has, as its noise depends on it
        options.shards = 2 if in_shards and not keras.distribution.list_devices("gpu") else 1
    keras.utils.set_random_seed(options.seed)  # the weights at the start
    keras.config.set_dtype_policy(options.precision)
    if options.deterministic and keras.backend.backend() == "tensorflow":
        import tensorflow

        tensorflow.config.experimental.enable_op_determinism()
    return keras


def choose_vae(shards: int) -> type:
    """Return model.VAE, or a class that computes each training batch in two shards or on several devices."""
    from keras import ops

    from model import VAE

    class ShardedVAE(VAE):
        """A VAE that encodes and decodes each training batch in two shards in parallel.

        An operation that runs on one core at its own images wastes less time than one that two cores share. The prior
        is computed for the whole batch: its matrices are the same for all images.
        """

        def encode_and_decode(self, images, training=False):
            if not training:
                return super().encode_and_decode(images, training)
            half = ops.shape(images)[0] // 2
            encode = super().encode_and_decode
            shards = [encode(part, training) for part in (images[:half], images[half:])]
            return [ops.concatenate(parts) for parts in zip(*shards, strict=True)]

    class DealtVAE(VAE):
        """A VAE that deals the batches of `fit` out to several devices."""

        def fit(self, batches, validation_data, **options):
            return super().fit(parallel.deal(batches), validation_data=parallel.deal(validation_data), **options)

    return DealtVAE if parallel.is_together() else ShardedVAE if shards == 2 else VAE


def compile_vae(vae, optimizer, options: Namespace) -> None:
    """Compile a VAE for this backend and the number format of the settings."""
    import keras

    backend = keras.backend.backend()
    if options.precision == "mixed_float16":  # or small gradients would be zero
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
    steps_per_call = NETWORKS[options.network].images_per_call // (options.batch_size * options.importance_samples)
    vae.compile(
        optimizer,
        jit_compile=backend == "jax",  # XLA slows these networks down on TensorFlow; JAX needs it
        steps_per_execution=1 if backend == "torch" else max(1, steps_per_call),  # PyTorch knows no other number
    )
    vae.optimizer.build(vae.trainable_variables)  # or `fit` would trace the training step twice
