"""What depends on the backend and the number format. The losses do not."""

from argparse import Namespace

from vae import terminal

IMAGES_PER_CALL = 1000  # of Keras's training loop; small, so that Ctrl-C is quick


def prepare(options: Namespace):
    """Import Keras, set it up as the settings say, and return it."""
    keras = terminal.import_keras()
    keras.utils.set_random_seed(options.seed)  # the weights at the start
    keras.config.set_dtype_policy(options.precision)
    if options.deterministic and keras.backend.backend() == "tensorflow":
        import tensorflow

        tensorflow.config.experimental.enable_op_determinism()
    return keras


def compile_vae(vae, optimizer, options: Namespace) -> None:
    """Compile a VAE for this backend and the number format of the settings."""
    import keras

    backend = keras.backend.backend()
    if options.precision == "mixed_float16":  # or small gradients would be zero
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
    steps_per_call = IMAGES_PER_CALL // (options.batch_size * options.importance_samples)
    vae.compile(
        optimizer,
        jit_compile=backend == "jax",  # XLA slows these networks down on TensorFlow; JAX needs it
        steps_per_execution=1 if backend == "torch" else max(1, steps_per_call),  # PyTorch knows no other number
    )
    vae.optimizer.build(vae.trainable_variables)  # or `fit` would trace the training step twice
