"""Say how good a trained model is on the test set: python evaluate.py (see python evaluate.py --help)."""

import argparse
import json
import sys
from pathlib import Path

import numpy as np

from vae import files, metrics, report, sampling, terminal
from vae.data.dataset import Dataset, to_pixels
from vae.metrics import Posterior
from vae.run import LOSSES, Run
from vae.sampling import AT_ONCE
from vae.settings import add_checkpoint_flag, add_data_flags, variance_of
from vae.terminal import UserError, positive_integer

STRANGEST = 100  # images in the figure of the strangest


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = terminal.Parser(description="Measure a trained model on the test set, in nats per image.")
    add = parser.add_argument
    add_checkpoint_flag(parser, "measure")
    add_data_flags(parser, "the images to measure on")
    add("--binarize", action="store_true", help="measure on binary pixels (default: as the run was trained)")
    samples = "posterior samples per image for the negative log-likelihood (default: 500; a minute for 1000 images)"
    add("--importance-samples", type=positive_integer, default=500, metavar="K", help=samples)
    images = "test images, drawn at random by --seed, to estimate the likelihood on (default: 1000)"
    add("--images", type=positive_integer, default=1000, metavar="N", help=images)
    arrays = "also save, for each test image: mean and log_var (n, D) of q(z|x), general_loss, reconstruction_loss and "
    add("--arrays", metavar="NPZ", help=f"{arrays}kl_loss (n,) in nats, and labels (n,) where known (default: none)")
    figures = "also draw the latent space and the hundred strangest images into this folder (default: none)"
    add("--figures", metavar="DIR", help=figures)
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
    models = run.load_encoder(), build_log_likelihood(run.load_decoder(), options.variance), run.load_prior()
    say = sys.stderr if options.json else sys.stdout
    print(f"-> Checkpoints are restored from {terminal.shown(run.folder)}", file=say)
    grey = "grey" if options.variance is None else f"Gaussian (variance {options.variance:g})"
    count = f"{len(dataset.test_images):,} test images of {dataset.name} ({dataset.source})"
    print(f"-> {count}, {'binary' if options.binarize else grey} pixels", file=say, flush=True)

    measured, arrays = measure(models, dataset, options)
    measured |= {
        "parameters": run.config["parameters"],
        "images": len(dataset.test_images),
        "checkpoint": str(run.folder),
    }
    if options.arrays is not None:
        files.write_arrays(options.arrays, arrays)
        print(f"-> q(z|x) and losses of {len(dataset.test_images):,} test images are in {options.arrays}", file=say)
    if options.figures:
        draw(arrays, dataset, f"{run.settings.network} on {dataset.name}", options.figures)
    if options.json:
        print(json.dumps(measured))
    else:
        print(report.format_metrics(measured))


def build_log_likelihood(decoder, variance: float | None):
    """Return a function from images (n, H, W) and latent vectors (n, D) to log p(x|z), (n,), in nats per image."""
    import keras

    from model import logits_of, reconstruction_loss

    image = keras.Input(decoder.output_shape[1:], name="image")
    z = keras.Input(decoder.input_shape[1:], name="z")
    model = keras.Model([image, z], -reconstruction_loss(image, logits_of(decoder)(z), variance))
    return lambda images, z: model.predict_on_batch([images, z])


def measure(models: tuple, dataset: Dataset, options: argparse.Namespace) -> tuple[dict, dict[str, np.ndarray]]:
    """Return all metrics by name, and the arrays that --arrays saves: an entry for each test image.

    `models` are the encoder, log p(x|z) and the prior. The three losses are means over all test images.
    """
    _, log_likelihood, prior = models
    arrays, posterior = measure_images(models, dataset, options)
    nlls = metrics.estimate_nll(posterior, log_likelihood, prior, options.importance_samples, options.seed)
    nll, nll_error = metrics.average(nlls)
    averages = {name: metrics.average(arrays[name]) for name in (*LOSSES, "irreducible_loss")}
    measured = {name: averages[name][0] for name in averages} | {
        "standard_error": averages["general_loss"][1],
        "nll": nll,
        "nll_standard_error": nll_error,
        "nll_images": len(nlls),
        "importance_samples": options.importance_samples,
        "active_units": metrics.count_active_units(arrays["mean"]),
        "latent_dim": arrays["mean"].shape[1],
        "label_accuracy": metrics.measure_label_accuracy(prior, arrays["mean"], dataset.test_labels),
    }
    del arrays["irreducible_loss"]
    return measured, arrays | ({} if dataset.test_labels is None else {"labels": dataset.test_labels})


def measure_images(models: tuple, dataset: Dataset, options: argparse.Namespace) -> tuple[dict, Posterior]:
    """Measure each of n test images, by one posterior sample: mean and log_var (n, D) of q(z|x), and losses (n,), nats.

    Also return the posterior of some images, chosen at random: the first test images of MNIST are easier than the rest,
    by 1.2 nats for the first 1,000. One batch of images is in memory at a time.
    """
    from vae.data.batches import Batches

    encoder, log_likelihood, prior = models
    batches = Batches(dataset.test_images, AT_ONCE, options.seed, binarize=options.binarize)
    chosen = np.random.default_rng(options.seed).permutation(len(dataset.test_images))[: options.images]
    pixels = np.empty((len(chosen), *dataset.test_images.shape[1:]), np.float32)
    rng, rows, done = np.random.default_rng(options.seed), [], 0
    for index in range(len(batches)):
        (images,) = batches[index]
        posterior = Posterior(images, *encoder.predict_on_batch(images))
        z = sampling.draw_codes(posterior.mean, posterior.log_var, rng)
        reconstruction = -log_likelihood(images, z)
        kl = metrics.kl_loss(posterior, z, prior)
        irreducible = metrics.irreducible_loss(images, options.variance)
        rows.append((posterior.mean, posterior.log_var, reconstruction + kl, reconstruction, kl, irreducible))
        inside = (done <= chosen) & (chosen < done + len(images))
        pixels[inside] = images[chosen[inside] - done]
        done += len(images)
    columns = (np.concatenate(column).astype(np.float32) for column in zip(*rows, strict=True))
    arrays = dict(zip(("mean", "log_var", *LOSSES, "irreducible_loss"), columns, strict=True))
    return arrays, Posterior(pixels, arrays["mean"][chosen], arrays["log_var"][chosen])


def draw(arrays: dict[str, np.ndarray], dataset: Dataset, title: str, folder: Path) -> None:
    """Write the figures of the latent space, and of the strangest images."""
    from vae import plots

    losses, means = arrays["general_loss"], arrays["mean"]
    information = metrics.measure_information(means, arrays["log_var"])
    strangest = np.argsort(-losses)[:STRANGEST]
    images = to_pixels(dataset.test_images[strangest])
    strange = f"{title}: the {len(images)} strangest test images, row by row"
    map_title = f"{title}: latent means of test images"
    figures = {
        "latent_map.png": plots.latent_map(means, dataset.test_labels, map_title, dataset.label_names),
        "latent_dimensions.png": plots.latent_dimensions(information, f"{title}: what each latent dimension tells"),
        "strangest_images.png": plots.strangest_images(images, losses[strangest], strange),
    }
    for name, figure in figures.items():
        plots.write_figure(figure, folder / name)
        print(f"-> Figure is saved in {terminal.shown(folder / name)}", file=sys.stderr)


if __name__ == "__main__":
    terminal.run(main)
