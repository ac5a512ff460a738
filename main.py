"""Train a variational autoencoder on MNIST: python main.py (see python main.py --help)."""

import importlib
import math
from argparse import Namespace
from contextlib import closing

import numpy as np

from vae import parallel, report, settings, terminal
from vae.data.dataset import Dataset
from vae.networks import SMALLEST_BATCH
from vae.run import LOSSES, Run

WARMUP = 0.01  # share of the training steps in which the learning rate rises
BATCH = 1000  # images in a batch that is only measured, encoded or reconstructed
CODES = 200_000  # training images, at most, that are encoded at the end: more would not improve the statistics


def main(arguments: list[str] | None = None) -> None:
    """Settings -> data -> model -> training -> files -> figures."""
    given = parse(arguments)
    if given.get("network") == "help":
        terminal.import_keras()
        return report.list_networks()
    with parallel.Devices(given) as team:  # one device, as a rule
        run = Run.resume(given.pop("resume"), given) if "resume" in given else Run.new(given)
        if run.is_complete:
            return report.print_complete(run)
        dataset = run.load_data()  # images to train on, to validate on and to test on
        report.print_remarks(dataset)
        team.share()
        vae = build_vae(run.settings, dataset)
        report.print_banner(run.settings, dataset, vae)
        with run.begin(vae, dataset, team.is_first):  # a new run starts at epoch 0; a resumed one restores all
            train(vae, dataset, run)
            if team.is_first:
                vae = parallel.gather(vae, lambda: build_vae(run.settings, dataset))
                report.print_end(run, dataset, finish(vae, dataset, run))


def parse(arguments: list[str] | None = None) -> dict:
    """Read the command line: the values that were given, by the names of their flags."""
    parser = terminal.Parser(description="Train a variational autoencoder on MNIST; the run is saved in checkpoints/.")
    settings.add_flags(parser)
    settings.add_resume_flag(parser)
    parallel.add_flags(parser)
    return vars(parser.parse_args(arguments))


def build_vae(options: Namespace, dataset: Dataset):
    """Build and compile the VAE that the settings describe."""
    network = settings.NETWORKS[options.network]
    in_shards = network.in_shards and options.batch_size >= SMALLEST_BATCH
    keras = terminal.import_keras(in_shards)
    from model import VAE, MixturePrior, NormalPrior
    from vae import fast

    backend = keras.backend.backend()
    keras.utils.set_random_seed(options.seed)  # the weights at the start
    keras.config.set_dtype_policy(options.precision)
    if options.deterministic and backend == "tensorflow":
        importlib.import_module("tensorflow").config.experimental.enable_op_determinism()
    halves = network.build(dataset.image_shape, options.hidden_dim, options.latent_dim)  # encoder and decoder
    mixture = options.prior == "mixture"
    prior = MixturePrior(options.components, options.latent_dim) if mixture else NormalPrior()
    vae = VAE(halves, prior, options.beta, settings.variance_of(options), options.importance_samples)
    vae = fast.speed_up(vae, in_shards)

    # The learning rate rises to its peak in a short warm-up and falls back to 0 along a cosine.
    steps = math.ceil(len(dataset.train_images) / options.batch_size) * options.epochs
    warmup = max(1, round(WARMUP * steps))
    rate = keras.optimizers.schedules.CosineDecay(
        0.0, max(1, steps - warmup), warmup_target=options.learning_rate, warmup_steps=warmup
    )
    optimizer = fast.Adam(rate)
    if options.precision == "mixed_float16":  # or small gradients would be zero
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
    steps_per_call = network.images_per_call // (options.batch_size * options.importance_samples)
    vae.compile(
        optimizer,
        jit_compile=backend == "jax",  # XLA slows these networks down on TensorFlow; JAX needs it
        steps_per_execution=1 if backend == "torch" else max(1, steps_per_call),  # PyTorch knows no other number
    )
    vae.optimizer.build(vae.trainable_variables)  # or `fit` would trace the training step twice
    return vae


def make_batches(images, options: Namespace):
    """Return images (n, H, W) in their own order, grey or binary as the network sees them."""
    from vae.data.batches import Batches

    return Batches(images, BATCH, options.seed, binarize=options.binarize)


def train(vae, dataset: Dataset, run: Run) -> None:
    """Train for the epochs that the run still lacks. The run is saved after every epoch."""
    import keras

    from vae.callbacks import LogAndSave, Reseed, StopAtNonFinite
    from vae.data.batches import Batches, share

    options = run.settings
    batches = Batches(dataset.train_images, options.batch_size, options.seed, shuffle=True, binarize=options.binarize)
    held_out = dataset.test_images if dataset.validation_images is None else dataset.validation_images
    with closing(LogAndSave(run)) as log:  # a line an epoch; saves models, prior, history, config and state
        callbacks = [Reseed(batches, options.seed), StopAtNonFinite(run), log]
        if options.tensorboard:
            callbacks.append(keras.callbacks.TensorBoard(str(run.folder / "tensorboard")))
        if len(run.rows) < options.epochs:
            print("-> Training is started.", flush=True)
            vae.fit(
                share(batches),
                epochs=options.epochs,
                initial_epoch=len(run.rows),
                validation_data=share(make_batches(held_out, options)),
                callbacks=callbacks,
                shuffle=False,  # `Batches` shuffles, and draws binary pixels, by (seed, epoch)
                verbose=0,
            )


def finish(vae, dataset: Dataset, run: Run) -> dict[str, float]:
    """Save what a finished run has, and return its three losses on the test images."""
    from vae import plots, sampling

    options = run.settings
    images, labels = dataset.sample_training(CODES, options.seed)
    mean, log_var = vae.encoder.predict(make_batches(images, options), verbose=0)
    if options.prior == "mixture" and labels is not None:
        mixture = sampling.read_mixture(vae.prior.to_arrays(), options.latent_dim)
        codes = sampling.draw_codes(mean, log_var, np.random.default_rng(options.seed))
        run.save_prior(vars(sampling.learn_labels(mixture, codes, labels)))
    if options.save_reconstructions:
        run.save_reconstructions(vae, make_batches(dataset.train_images, options), dataset.train_images.shape)
    vae.reseed(options.seed, options.epochs)
    (images,) = make_batches(dataset.test_images[:40], options)[0]
    title = f"{options.network} on {dataset.name}" + (", as MNIST is unavailable" if dataset.replaces_mnist else "")
    run.save_figure("loss_curves.png", plots.loss_curves(run.rows, title))
    run.save_figure(
        "reconstructions.png", plots.reconstructions(images, vae.reconstruct(images), f"{title}: test images")
    )
    losses = run.test_losses or vae.evaluate(make_batches(dataset.test_images, options), verbose=0, return_dict=True)
    activity = [round(float(variance), 6) for variance in mean.var(axis=0)]  # of each latent dimension
    return run.finish({name: round(float(losses[name]), 4) for name in LOSSES}, activity)


if __name__ == "__main__":
    terminal.run(main)
