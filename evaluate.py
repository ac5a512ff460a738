"""Say how good a trained model is on the test set: python evaluate.py (see python evaluate.py --help)."""

import argparse
import json
import sys
from pathlib import Path

import numpy as np

from vae import data, files, metrics, report, sampling, terminal
from vae.run import Run
from vae.settings import DATASETS, variance_of
from vae.terminal import UserError, positive_integer

BATCH = 500  # images at once


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = terminal.Parser(description="Measure a trained model on the test set, in nats per image.")
    add = parser.add_argument
    newest = "the one that finished last, else the shipped model"
    add("--checkpoint", metavar="DIR", help=f"the run to measure (default: {newest})")
    add("--dataset", choices=DATASETS, help="the images to measure on (default: those that the run was trained on)")
    add("--data", metavar="PATH", help="your own images: a folder of IDX files or an .npz (default: as --dataset)")
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
    if options.figures and not Path(options.figures).is_dir():
        raise UserError(f"--figures {options.figures}: no such folder; make it first")
    run = Run.find(options.checkpoint)
    options.variance = variance_of(run.settings)
    options.binarize = options.binarize or run.settings.binarize
    if options.binarize and options.variance is not None:
        raise UserError(f"{run.folder}: its pixels are Gaussian, so not binary; measure it without --binarize")
    dataset = data.load_for_run(options.dataset, options.data, run.config)
    if dataset.sha256 != run.config["dataset"]["sha256"]:
        print("-> These are not the images that the model was trained on: its config.json has others.", file=sys.stderr)
    terminal.import_keras()
    decoder = run.load_decoder(dataset.image_shape)
    encoder = run.load_encoder(decoder)
    say = sys.stderr if options.json else sys.stdout
    print(f"-> Checkpoints are restored from {run.folder}", file=say)
    variance = options.variance
    pixels = "binary" if options.binarize else "grey" if variance is None else f"Gaussian (variance {variance:g})"
    count = f"{len(dataset.test_images):,} test images of {dataset.name} ({dataset.source})"
    print(f"-> {count}, {pixels} pixels", file=say, flush=True)

    measured, mean, kl = measure(encoder, decoder, dataset.test_images, options)
    if options.figures:
        title = f"{run.settings.network} on {dataset.name}"
        draw(Path(options.figures), mean, kl, dataset.test_labels, title)
    if options.json:
        print(json.dumps(measured | {"images": len(mean), "checkpoint": str(run.folder)}))
    else:
        print(report.format_metrics(measured))


def measure(
    encoder, decoder, images: np.ndarray, options: argparse.Namespace
) -> tuple[dict[str, float], np.ndarray, np.ndarray]:
    """Return every metric by name, the posterior means (n, D), and the KL of each image and dimension (n, D).

    The three losses are means over all images (n, H, W), with one posterior sample each.
    """
    from tqdm import tqdm

    from vae.batches import Batches

    batches = Batches(images, BATCH, options.seed, binarize=options.binarize)
    pixels = np.concatenate([batches[index][0] for index in range(len(batches))])
    mean, log_var = encoder.predict(pixels, batch_size=BATCH, verbose=0)
    log_likelihood = build_log_likelihood(decoder, options.variance)
    z = sampling.draw_codes(mean, log_var, np.random.default_rng(options.seed))
    reconstruction = -log_likelihood.predict([pixels, z], batch_size=BATCH, verbose=0)
    kl = 0.5 * (mean**2 + np.exp(log_var) - log_var - 1)  # (n, D)
    general = reconstruction + kl.sum(axis=1)

    # The first test images of MNIST are easier than the rest, by 1.2 nats for the first 1,000.
    chosen = np.random.default_rng(options.seed).permutation(len(images))[: options.images]
    posterior = metrics.Posterior(pixels[chosen], mean[chosen], log_var[chosen])
    samples = options.importance_samples
    with tqdm(total=len(chosen) * samples, unit=" z", leave=False, disable=None) as bar:

        def decode(x: np.ndarray, z: np.ndarray) -> np.ndarray:
            bar.update(len(z))
            return log_likelihood.predict_on_batch([x, z])

        nll = metrics.negative_log_likelihood(posterior, decode, samples, options.seed)
    measured = {
        "general_loss": metrics.mean(general),
        "reconstruction_loss": metrics.mean(reconstruction),
        "kl_loss": metrics.mean(kl.sum(axis=1)),
        "standard_error": metrics.standard_error(general),
        "nll": metrics.mean(nll),
        "nll_standard_error": metrics.standard_error(nll),
        "nll_images": len(nll),
        "importance_samples": samples,
        "active_units": metrics.active_units(mean),
        "latent_dim": mean.shape[1],
        "parameters": encoder.count_params() + decoder.count_params(),
        "irreducible_loss": metrics.irreducible_loss(pixels, options.variance),
    }
    return measured, mean, kl


def build_log_likelihood(decoder, variance: float | None):
    """Return the model images (n, H, W), latent vectors (n, D) -> log p(x|z), (n,), in nats per image."""
    import keras

    from model import logits_of, reconstruction_loss

    image = keras.Input(decoder.output_shape[1:], name="image")
    z = keras.Input(decoder.input_shape[1:], name="z")
    return keras.Model([image, z], -reconstruction_loss(image, logits_of(decoder)(z), variance))


def draw(folder: Path, mean: np.ndarray, kl: np.ndarray, labels: np.ndarray | None, title: str) -> None:
    """Write the figures of the latent space."""
    from vae import plots

    figures = {
        "latent_means.png": plots.latent_means(mean, labels, f"{title}: latent means of test images"),
        "kl_per_dimension.png": plots.kl_per_dimension(kl.mean(axis=0), f"{title}: KL per dimension"),
    }
    for name, figure in figures.items():
        with files.replacing(folder / name) as path:
            figure.savefig(path, dpi=120, bbox_inches="tight")
        print(f"-> Figure is saved in {folder / name}", file=sys.stderr)


if __name__ == "__main__":
    terminal.run(main)
