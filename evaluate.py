"""Say how good a trained model is on the test set: python evaluate.py (see python evaluate.py --help)."""

import argparse
import json
import sys
from pathlib import Path

import numpy as np

from vae import data, files, metrics, report, sampling, terminal
from vae.run import Run
from vae.settings import add_checkpoint_flag, add_data_flags, variance_of
from vae.terminal import UserError, positive_integer

BATCH = 500  # images at once


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = terminal.Parser(description="Measure a trained model on the test set, in nats per image.")
    add = parser.add_argument
    add_checkpoint_flag(parser, "measure")
    add_data_flags(parser, "the images to measure on")
    add("--binarize", action="store_true", help="measure on binary pixels (default: as the run was trained)")
    add(
        "--importance-samples",
        type=positive_integer,
        default=500,
        metavar="K",
        help="posterior samples per image for the negative log-likelihood (default: 500, about a minute with --images)",
    )
    add(
        "--images",
        type=positive_integer,
        default=1000,
        metavar="N",
        help="test images, drawn at random by --seed, to estimate the likelihood on (default: 1000)",
    )
    add("--figures", metavar="DIR", help="draw the latent space into this folder as well (default: none)")
    add("--seed", type=terminal.seed, default=0, help="seed of the posterior samples, a whole number (default: 0)")
    add("--json", action="store_true", help="print one JSON object, all else on standard error (default: a report)")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    """Command line -> model -> data -> losses -> likelihood -> figures."""
    options = parse(arguments)
    if options.figures:
        options.figures = terminal.as_path(options.figures)
        if not options.figures.is_dir():
            raise UserError(f"--figures {options.figures}: no such folder; make it first")
    run = Run.find(options.checkpoint)
    options.variance = variance_of(run.settings)
    options.binarize = options.binarize or run.settings.binarize
    if options.binarize and options.variance is not None:
        raise UserError(f"{run.folder}: its pixels are Gaussian, so not binary; measure it without --binarize")
    dataset = report.load_shown_images(run, options)
    if dataset.sha256 != run.config["dataset"]["sha256"]:
        print("-> These are not the images that the model was trained on (their SHA-256 differs).", file=sys.stderr)
    terminal.import_keras()
    decoder = run.load_decoder(dataset.image_shape)
    encoder = run.load_encoder(decoder)
    say = sys.stderr if options.json else sys.stdout
    print(f"-> Checkpoints are restored from {run.folder}", file=say)
    variance = options.variance
    pixels = "binary" if options.binarize else "grey" if variance is None else f"Gaussian (variance {variance:g})"
    count = f"{len(dataset.test_images):,} test images of {dataset.name} ({dataset.source})"
    print(f"-> {count}, {pixels} pixels", file=say, flush=True)

    measured, posterior = measure(run, (encoder, decoder), dataset, options)
    if options.figures:
        title = f"{run.settings.network} on {dataset.name}"
        draw(options.figures, posterior, dataset.named_test_labels, title)
    if options.json:
        print(json.dumps(measured | {"images": len(posterior.mean), "checkpoint": str(run.folder)}))
    else:
        print(report.format_metrics(measured))


def measure(
    run: Run, halves: tuple, dataset: data.Dataset, options: argparse.Namespace
) -> tuple[dict[str, float], metrics.Posterior]:
    """Return every metric by name, and the images with their posteriors.

    The three losses are means over all test images, with one posterior sample each.
    """
    from vae.batches import Batches

    encoder, decoder = halves
    latent_dim = decoder.input_shape[1]  # an older run has a mixture to draw from, but was trained with N(0, I)
    prior = run.load_prior(latent_dim) if run.settings.prior == "mixture" else sampling.make_normal(latent_dim)
    batches = Batches(dataset.test_images, BATCH, options.seed, binarize=options.binarize)
    pixels = np.concatenate([batches[index][0] for index in range(len(batches))])
    posterior = metrics.Posterior(pixels, *encoder.predict(pixels, batch_size=BATCH, verbose=0))
    log_likelihood = build_log_likelihood(decoder, options.variance)
    z = sampling.draw_codes(posterior.mean, posterior.log_var, np.random.default_rng(options.seed))
    reconstruction = -log_likelihood.predict([pixels, z], batch_size=BATCH, verbose=0)
    kl = metrics.kl_loss(posterior, z, prior)
    nll = estimate_likelihood(posterior, log_likelihood, prior, options)
    measured = {
        "general_loss": metrics.mean(reconstruction + kl),
        "reconstruction_loss": metrics.mean(reconstruction),
        "kl_loss": metrics.mean(kl),
        "standard_error": metrics.standard_error(reconstruction + kl),
        "nll": metrics.mean(nll),
        "nll_standard_error": metrics.standard_error(nll),
        "nll_images": len(nll),
        "importance_samples": options.importance_samples,
        "active_units": metrics.active_units(posterior.mean),
        "latent_dim": posterior.mean.shape[1],
        "label_accuracy": metrics.label_accuracy(prior, posterior.mean, dataset.test_labels),
        "parameters": encoder.count_params() + decoder.count_params() + prior.count_params(),
        "irreducible_loss": metrics.irreducible_loss(pixels, options.variance),
    }
    return measured, posterior


def estimate_likelihood(posterior: metrics.Posterior, log_likelihood, prior, options: argparse.Namespace) -> np.ndarray:
    """Estimate -log p(x) of some images, drawn at random: (n,), in nats. A progress bar is shown on a terminal."""
    from tqdm import tqdm

    # The first test images of MNIST are easier than the rest, by 1.2 nats for the first 1,000.
    chosen = np.random.default_rng(options.seed).permutation(len(posterior.mean))[: options.images]
    samples = options.importance_samples
    with tqdm(total=len(chosen) * samples, unit=" z", leave=False, disable=None) as bar:

        def decode(x: np.ndarray, z: np.ndarray) -> np.ndarray:
            bar.update(len(z))
            return log_likelihood.predict_on_batch([x, z])

        return metrics.negative_log_likelihood(posterior.part(chosen), decode, prior, samples, options.seed)


def build_log_likelihood(decoder, variance: float | None):
    """Return the model images (n, H, W), latent vectors (n, D) -> log p(x|z), (n,), in nats per image."""
    import keras

    from model import logits_of, reconstruction_loss

    image = keras.Input(decoder.output_shape[1:], name="image")
    z = keras.Input(decoder.input_shape[1:], name="z")
    return keras.Model([image, z], -reconstruction_loss(image, logits_of(decoder)(z), variance))


def draw(folder: Path, posterior: metrics.Posterior, labels: np.ndarray | None, title: str) -> None:
    """Write the figures of the latent space."""
    from vae import plots

    information = metrics.information_per_dimension(posterior)
    figures = {
        "latent_map.png": plots.latent_map(posterior.mean, labels, f"{title}: latent means of test images"),
        "latent_dimensions.png": plots.latent_dimensions(information, f"{title}: what each latent dimension tells"),
    }
    for name, figure in figures.items():
        with files.replacing(folder / name) as path:
            figure.savefig(path, dpi=120, bbox_inches="tight")
        print(f"-> Figure is saved in {folder / name}", file=sys.stderr)


if __name__ == "__main__":
    terminal.run(main)
