"""Train a variational autoencoder on MNIST: python main.py (see python main.py --help)."""

import math
from argparse import Namespace
from pathlib import Path

import numpy as np

from vae import backend, parallel, report, sampling, settings, terminal
from vae.data.dataset import Dataset
from vae.run import Run

WARMUP = 0.01  # share of the training steps in which the learning rate rises
WARMUP_STEPS = 100  # at least these, or a quarter of a shorter run; else it can fail to learn
MEASURED_AT_ONCE = 1000  # images in a batch that is only measured, encoded or reconstructed
MOST_CODES = 200_000  # training images, at most, that are encoded at the end: more would not improve the statistics


def main(arguments: list[str] | None = None) -> Path | None:
    """Settings -> data -> model -> training -> files -> figures. Returns the run's folder."""
    given = parse(arguments)
    if given.get("network") == "help":
        return report.list_networks()
    with parallel.joined(given):  # one process on one device, as a rule
        run = Run.resume(given.pop("resume"), given) if "resume" in given else Run.new(given)
        if run.is_complete:
            return report.print_complete(run)
        dataset = run.load_data()  # images to train on, to validate on and to test on
        report.print_remarks(dataset)
        vae = build_vae(run.settings, dataset)
        with run.begin(vae, dataset):  # a new run starts at epoch 0; a resumed one restores all
            report.print_banner(run, dataset, vae)
            train(vae, dataset, run)
            vae = parallel.leave(vae, lambda: build_vae(run.settings, dataset), run)
            finish(vae, dataset, run)
            report.print_end(run, dataset)
    return run.folder


def parse(arguments: list[str] | None = None) -> dict:
    """Read the command line: the values that were given, by the names of their flags."""
    parser = terminal.Parser(description="Train a variational autoencoder on MNIST; the run is saved in checkpoints/.")
    settings.add_flags(parser)
    parallel.add_flags(parser)
    return vars(parser.parse_args(arguments))


def build_vae(options: Namespace, dataset: Dataset):
    """Build and compile the VAE that the settings describe."""
    keras = backend.prepare(options)  # imported only now, as it takes seconds: flags and images are checked
    from model import VAE, MixturePrior, NormalPrior

    network = settings.NETWORKS[options.network]
    halves = network.build(dataset.image_shape, options.hidden_dim, options.latent_dim)  # encoder and decoder
    mixture = options.prior == "mixture"
    prior = MixturePrior(options.components, options.latent_dim) if mixture else NormalPrior()
    vae = VAE(halves, prior, options.beta, settings.variance_of(options), options.importance_samples)

    # The learning rate rises to its peak in a short warm-up and falls back to 0 along a cosine.
    steps = math.ceil(len(dataset.train_images) / options.batch_size) * options.epochs
    warmup = max(round(WARMUP * steps), min(WARMUP_STEPS, steps // 4), 1)
    rate = keras.optimizers.schedules.CosineDecay(
        0.0, max(1, steps - warmup), warmup_target=options.learning_rate, warmup_steps=warmup
    )
    backend.compile_vae(vae, keras.optimizers.Adam(rate), options)
    return vae


def make_batches(images, options: Namespace, size: int = MEASURED_AT_ONCE, shuffle: bool = False):
    """Return batches of images (n, H, W), grey or binary as the network sees them, in their own order or shuffled."""
    from vae.data.batches import Batches

    return Batches(images, size, options.seed, shuffle=shuffle, binarize=options.binarize)


def train(vae, dataset: Dataset, run: Run) -> None:
    """Train for the epochs that the run still lacks. The run is saved after every epoch."""
    from vae import callbacks

    options = run.settings
    batches = make_batches(dataset.train_images, options, options.batch_size, shuffle=True)
    images = dataset.test_images if dataset.validation_images is None else dataset.validation_images
    held_out = make_batches(images, options)
    parallel.deal(batches, held_out)  # to several devices, where there are some
    (shown,) = make_batches(dataset.test_images[:10], options)[0]
    print("-> Training is started.", flush=True)
    vae.fit(
        batches,
        epochs=options.epochs,
        initial_epoch=len(run.rows),
        validation_data=held_out,
        callbacks=callbacks.make(run, batches, shown),  # noise, log, saving, a stop at a loss that is not finite
        shuffle=False,  # `Batches` shuffles, and draws binary pixels, by (seed, epoch)
        verbose=0,
    )


def finish(vae, dataset: Dataset, run: Run) -> None:
    """Write what a finished run has: figures, the labels of its prior, its losses on the test images."""
    from vae import plots

    options = run.settings
    images, labels = dataset.sample_training(MOST_CODES, options.seed)
    mean, log_var = vae.encoder.predict(make_batches(images, options), verbose=0)
    if options.prior == "mixture" and labels is not None:
        codes = sampling.draw_codes(mean, log_var, np.random.default_rng(options.seed))
        run.save_prior(sampling.learn_labels(run.load_prior(), codes, labels))
    vae.reseed(options.seed, options.epochs, 1)  # as in the test pass of the last epoch
    losses = vae.evaluate(make_batches(dataset.test_images, options), verbose=0, return_dict=True)
    if options.save_reconstructions:
        run.save_reconstructions(vae, make_batches(dataset.train_images, options))
    (images,) = make_batches(dataset.test_images[:40], options)[0]
    title = f"{options.network} on {dataset.name}" + (", as MNIST is unavailable" if dataset.replaces_mnist else "")
    pairs = plots.reconstructions(images, vae.reconstruct(images), f"{title}: test images")
    plots.write_figure(pairs, run.folder / "reconstructions.png")
    plots.write_figure(plots.loss_curves(run.rows, title), run.folder / "loss_curves.png")
    if run.frames:
        plots.write_animation(run.frames, run.folder / "training.gif")
    run.record_end(losses, activity=mean.var(axis=0))


if __name__ == "__main__":
    terminal.run(main)
