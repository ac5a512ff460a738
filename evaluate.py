"""Say how good a trained model is on the test set: python evaluate.py (see python evaluate.py --help)."""

import argparse
import json
import sys
from pathlib import Path

import numpy as np

from vae import files, metrics, report, sampling, terminal
from vae.data.dataset import Dataset, to_pixels
from vae.run import LOSSES, Run
from vae.settings import add_checkpoint_flag, add_data_flags, variance_of
from vae.terminal import UserError, positive_integer

BATCH = 500  # images in a batch
STRANGEST = 100  # images in the figure of the strangest


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
        help="posterior samples per image for the negative log-likelihood (default: 500; a minute for 1000 images)",
    )
    add(
        "--images",
        type=positive_integer,
        default=1000,
        metavar="N",
        help="test images, drawn at random by --seed, to estimate the likelihood on (default: 1000)",
    )
    add(
        "--arrays",
        metavar="NPZ",
        help="also save, for each test image: mean and log_var (n, D) of q(z|x), general_loss, "
        "reconstruction_loss and kl_loss (n,) in nats, and labels (n,) where known (default: none)",
    )
    add(
        "--figures",
        metavar="DIR",
        help="also draw the latent space and the hundred strangest images into this folder (default: none)",
    )
    add("--seed", type=terminal.seed, default=0, help="seed of all random draws, a whole number (default: 0)")
    add("--json", action="store_true", help="print one JSON object, all else on standard error (default: a report)")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    """Command line -> model -> data -> losses -> likelihood -> figures."""
    options = parse(arguments)
    if options.figures:
        options.figures = terminal.as_path(options.figures)
        if not options.figures.is_dir():
            raise UserError(f"--figures {options.figures}: no such folder; make it first")
    if options.arrays is not None:
        options.arrays = files.check_place("--arrays", options.arrays)
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

    measured, arrays = measure(run, (encoder, decoder), dataset, options)
    if options.arrays is not None:
        with files.replacing(options.arrays) as path:
            files.write_arrays(path, arrays)
        print(f"-> q(z|x) and losses of {len(arrays['mean']):,} test images are in {options.arrays}", file=say)
    if options.figures:
        draw(options.figures, arrays, dataset, f"{run.settings.network} on {dataset.name}")
    if options.json:
        print(json.dumps(measured | {"images": len(arrays["mean"]), "checkpoint": str(run.folder)}))
    else:
        print(report.format_metrics(measured))


def measure(
    run: Run, halves: tuple, dataset: Dataset, options: argparse.Namespace
) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """Return every metric by name, and what each test image has, as --arrays saves it.

    The three losses are means over all test images, with one posterior sample each.
    """
    from vae.data.batches import Batches

    encoder, decoder = halves
    latent_dim = decoder.input_shape[1]
    # Older runs draw from a mixture, but were trained with N(0, I).
    prior = run.load_prior(latent_dim) if run.settings.prior == "mixture" else sampling.make_normal(latent_dim)
    batches = Batches(dataset.test_images, BATCH, options.seed, binarize=options.binarize)
    log_likelihood = build_log_likelihood(decoder, options.variance)
    arrays = measure_images(batches, encoder, log_likelihood, prior, options)
    irreducible = arrays.pop("irreducible_loss")
    nll = estimate_likelihood(batches, arrays, log_likelihood, prior, options)
    measured = {name: metrics.mean(arrays[name]) for name in LOSSES} | {
        "standard_error": metrics.standard_error(arrays["general_loss"]),
        "nll": metrics.mean(nll),
        "nll_standard_error": metrics.standard_error(nll),
        "nll_images": len(nll),
        "importance_samples": options.importance_samples,
        "active_units": metrics.active_units(arrays["mean"]),
        "latent_dim": latent_dim,
        "label_accuracy": metrics.label_accuracy(prior, arrays["mean"], dataset.test_labels),
        "parameters": encoder.count_params() + decoder.count_params() + prior.count_params(),
        "irreducible_loss": metrics.mean(irreducible),
    }
    return measured, arrays | ({} if dataset.test_labels is None else {"labels": dataset.test_labels})


def measure_images(batches, encoder, log_likelihood, prior, options: argparse.Namespace) -> dict[str, np.ndarray]:
    """Return what each of n images has: mean and log_var of q(z|x), (n, D), and its losses in nats, (n,).

    Each has one posterior sample. One batch of images is in memory at a time.
    """
    rng = np.random.default_rng(options.seed)
    rows = []
    for index in range(len(batches)):
        (images,) = batches[index]
        posterior = metrics.Posterior(images, *encoder.predict_on_batch(images))
        z = sampling.draw_codes(posterior.mean, posterior.log_var, rng)
        reconstruction = -log_likelihood.predict_on_batch([images, z])
        kl = metrics.kl_loss(posterior, z, prior)
        irreducible = metrics.irreducible_loss(images, options.variance)
        rows.append((posterior.mean, posterior.log_var, reconstruction + kl, reconstruction, kl, irreducible))
    columns = (np.concatenate(column).astype(np.float32) for column in zip(*rows, strict=True))
    return dict(zip(("mean", "log_var", *LOSSES, "irreducible_loss"), columns, strict=True))


def estimate_likelihood(batches, arrays: dict, log_likelihood, prior, options: argparse.Namespace) -> np.ndarray:
    """Estimate -log p(x) of some images, drawn at random: (n,), in nats. A progress bar is shown on a terminal."""
    from tqdm import tqdm

    # The first test images of MNIST are easier than the rest, by 1.2 nats for the first 1,000.
    chosen = np.random.default_rng(options.seed).permutation(len(arrays["mean"]))[: options.images]
    posterior = metrics.Posterior(batches.take(chosen), arrays["mean"][chosen], arrays["log_var"][chosen])
    samples = options.importance_samples
    with tqdm(total=len(chosen) * samples, unit=" z", leave=False, disable=None) as bar:

        def decode(x: np.ndarray, z: np.ndarray) -> np.ndarray:
            bar.update(len(z))
            return log_likelihood.predict_on_batch([x, z])

        return metrics.negative_log_likelihood(posterior, decode, prior, samples, options.seed)


def build_log_likelihood(decoder, variance: float | None):
    """Return the model images (n, H, W), latent vectors (n, D) -> log p(x|z), (n,), in nats per image."""
    import keras

    from model import logits_of, reconstruction_loss

    image = keras.Input(decoder.output_shape[1:], name="image")
    z = keras.Input(decoder.input_shape[1:], name="z")
    return keras.Model([image, z], -reconstruction_loss(image, logits_of(decoder)(z), variance))


def draw(folder: Path, arrays: dict[str, np.ndarray], dataset: Dataset, title: str) -> None:
    """Write the figures of the latent space, and of the strangest images."""
    from vae import plots

    information = metrics.information_per_dimension(arrays["mean"], arrays["log_var"])
    losses = arrays["general_loss"]
    strangest = np.argsort(-losses)[:STRANGEST]
    images = to_pixels(dataset.test_images[strangest])
    means, labels = arrays["mean"], dataset.named_test_labels
    strange = f"{title}: the {len(images)} strangest test images, row by row"
    figures = {
        "latent_map.png": plots.latent_map(means, labels, f"{title}: latent means of test images"),
        "latent_dimensions.png": plots.latent_dimensions(information, f"{title}: what each latent dimension tells"),
        "strangest_images.png": plots.strangest_images(images, losses[strangest], strange),
    }
    for name, figure in figures.items():
        with files.replacing(folder / name) as path:
            plots.write_figure(figure, path)
        print(f"-> Figure is saved in {folder / name}", file=sys.stderr)


if __name__ == "__main__":
    terminal.run(main)
