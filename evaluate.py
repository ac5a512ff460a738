"""Say how good a trained model is on the test set: python evaluate.py (see python evaluate.py --help)."""

import json
import math
import sys
from pathlib import Path

import numpy as np

from vae import archive, checkpoint, console, data, download, likelihood
from vae.settings import DATASETS, UserError, pixel_variance

BATCH = 500  # images at once


def parse(arguments: list[str] | None = None):
    """Read the command line."""
    parser = console.Parser("Measure a trained model on the test set, in nats per image.")
    add = parser.add_argument
    add(
        "--checkpoint", metavar="DIR", help="the run to measure (default: the one that finished last, else the shipped)"
    )
    add("--dataset", choices=DATASETS, help="the images to measure on (default: those that the run was trained on)")
    add("--data", metavar="PATH", help="your own images: a folder of IDX files or an .npz (default: as --dataset)")
    add("--binarize", action="store_true", help="measure on binary pixels (default: as the run was trained)")
    add(
        "--importance-samples",
        type=console.positive_integer,
        default=500,
        metavar="K",
        help="posterior samples per image for the negative log-likelihood (default: 500, about a minute with --images)",
    )
    add(
        "--images",
        type=console.positive_integer,
        default=1000,
        metavar="N",
        help="how many test images, drawn at random by --seed, that likelihood is estimated on (default: 1000)",
    )
    add("--figures", metavar="DIR", help="draw the latent space into this folder as well (default: none)")
    add("--seed", type=console.seed, default=0, help="seed of the posterior samples, a whole number (default: 0)")
    add("--json", action="store_true", help="print one JSON object, all else on standard error (default: a report)")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    """Command line -> model -> data -> losses -> likelihood -> figures."""
    options = parse(arguments)
    if options.figures and not Path(options.figures).is_dir():
        raise UserError(f"--figures {options.figures}: no such folder; make it first")
    folder = checkpoint.choose(options.checkpoint)
    config = checkpoint.read_config(folder)
    settings = console.settings_of(config, folder)
    binarize = options.binarize or settings["binarize"]
    variance = pixel_variance(settings)
    if binarize and variance is not None:
        raise UserError(f"{folder}: its pixels are Gaussian, which binary ones are not; measure it without --binarize")
    dataset = load_data(options, config)
    console.import_keras()
    encoder = archive.load_model(folder, "encoder", (28, 28), [(None,), (None,)])
    decoder = archive.load_model(folder, "decoder", (None,), [(28, 28)])
    if encoder.output_shape[0][1] != decoder.input_shape[1]:
        latents = f"{encoder.output_shape[0][1]} and {decoder.input_shape[1]} latent dimensions"
        raise UserError(f"{folder}: its encoder and decoder have {latents}; choose another run with --checkpoint")
    say = sys.stderr if options.json else sys.stdout
    print(f"-> Checkpoints are restored from {folder}", file=say)
    pixels = "binary" if binarize else "grey" if variance is None else f"Gaussian (variance {variance:g})"
    count = len(dataset.test_images)
    print(f"-> {count:,} test images of {dataset.name} ({dataset.source}), {pixels} pixels", file=say, flush=True)

    figures, mean, kl = measure(encoder, decoder, dataset.test_images, options, binarize, variance)
    if options.figures:
        draw(Path(options.figures), mean, kl, dataset.test_labels, config["settings"]["network"], dataset.name)
    if options.json:
        print(json.dumps(figures | {"images": count, "checkpoint": str(folder)}))
    else:
        print(report(figures))


def load_data(options, config: dict) -> data.Dataset:
    """Load what the command line names, else what the run was trained on; say so where the two differ."""
    dataset = data.load(*download.find_for_run(options.dataset, options.data, config))
    if dataset.sha256 != config["dataset"]["sha256"]:
        print("-> These are not the images that the model was trained on: its config.json has others.", file=sys.stderr)
    return dataset


def measure(
    encoder, decoder, images: np.ndarray, options, binarize: bool, variance: float | None
) -> tuple[dict, np.ndarray, np.ndarray]:
    """Return every figure by name, the posterior means (n, D), and the KL of each image and dimension (n, D).

    The three losses are over all images, with one posterior sample each; each image is encoded once.
    """
    from tqdm import tqdm

    import model
    from vae.training import Batches

    batches = Batches(images, BATCH, options.seed, binarize=binarize)
    mean, log_var = encoder.predict(batches, verbose=0)
    scorer = model.log_likelihood_of(decoder, variance)
    pixels = np.concatenate([batch for (batch,) in map(batches.__getitem__, range(len(batches)))])
    epsilon = np.random.default_rng(options.seed).standard_normal(mean.shape, np.float32)
    z = mean + np.exp(0.5 * log_var) * epsilon
    reconstruction = -scorer.predict([pixels, z], batch_size=BATCH, verbose=0)
    kl = 0.5 * (mean**2 + np.exp(log_var) - log_var - 1)  # (n, D)
    general = reconstruction + kl.sum(axis=1)

    # The first images of MNIST's test set are easier than the rest: 1.2 nats at 1,000 of them.
    chosen = np.random.default_rng(options.seed).permutation(len(images))[: options.images]
    with tqdm(total=len(chosen) * options.importance_samples, unit=" z", leave=False, disable=None) as bar:
        nll = likelihood.negative_log_likelihood(
            pixels[chosen],
            mean[chosen],
            log_var[chosen],
            lambda x, z: scorer.predict_on_batch([x, z]),
            options.importance_samples,
            options.seed,
            bar.update,
        )
    return (
        {
            "general_loss": float(np.mean(general, dtype=np.float64)),
            "reconstruction_loss": float(np.mean(reconstruction, dtype=np.float64)),
            "kl_loss": float(np.mean(kl.sum(axis=1), dtype=np.float64)),
            "standard_error": standard_error(general),
            "nll": float(np.mean(nll)),
            "nll_standard_error": standard_error(nll),
            "nll_images": len(nll),
            "importance_samples": options.importance_samples,
            "active_units": likelihood.active_units(mean),
            "latent_dim": mean.shape[1],
            "parameters": encoder.count_params() + decoder.count_params(),
            "irreducible_loss": likelihood.irreducible_loss(pixels, variance),
        },
        mean,
        kl,
    )


def standard_error(values: np.ndarray) -> float | None:
    """Standard error of the mean of independent values (n,); None where there is only one."""
    return float(np.std(values, ddof=1, dtype=np.float64) / math.sqrt(len(values))) if len(values) > 1 else None


def report(figures: dict) -> str:
    """The figures as a person reads them."""
    unit = "nats per image"

    def with_error(name: str, error: str) -> str:
        return f"{figures[name]:.2f}" + (f" ± {figures[error]:.2f}" if figures[error] is not None else "")

    lines = {
        "General loss (negative ELBO)": f"{with_error('general_loss', 'standard_error')} {unit}",
        "Reconstruction loss": f"{figures['reconstruction_loss']:.2f} {unit}",
        "KL-divergence loss": f"{figures['kl_loss']:.2f} {unit}",
        "Negative log-likelihood": f"{with_error('nll', 'nll_standard_error')} {unit} "
        f"({figures['importance_samples']} importance samples, {figures['nll_images']:,} images)",
        "Irreducible part": f"{figures['irreducible_loss']:.2f} {unit} (what an image costs that is drawn as it is)",
        "Active units": f"{figures['active_units']} of {figures['latent_dim']} latent dimensions",
        "Parameters": f"{figures['parameters']:,}",
    }
    width = max(map(len, lines)) + 1
    return "\n".join(f"{label + ':':{width}} {text}" for label, text in lines.items())


def draw(folder: Path, mean: np.ndarray, kl: np.ndarray, labels, network: str, dataset: str) -> None:
    """Write the figures of the latent space."""
    from vae import plots

    for name, figure in (
        ("latent_means.png", plots.latent_means(mean, labels, f"{network} on {dataset}: latent means of test images")),
        ("kl_per_dimension.png", plots.kl_per_dimension(kl.mean(axis=0), f"{network} on {dataset}: KL per dimension")),
    ):
        with checkpoint.replacing(folder / name) as path:
            figure.savefig(path, dpi=120, bbox_inches="tight")
        print(f"-> Figure is saved in {folder / name}", file=sys.stderr)


if __name__ == "__main__":
    console.run(main)
