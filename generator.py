"""Draw new digits from a trained decoder: python generator.py (see python generator.py --help)."""

import argparse
import math
import secrets
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from vae import archive, checkpoint, console, latent
from vae.settings import DATASETS, UserError

BATCH = 500  # latent vectors decoded at once: fills the cores, and its activations fit in their caches


def parse(arguments: list[str] | None = None):
    """Read the command line."""
    parser = console.Parser("Draw new digits from a trained decoder, on one grid.")
    add = parser.add_argument
    add(
        "--checkpoint",
        metavar="DIR",
        help="the run to draw from (default: the one that finished last, else the shipped)",
    )
    add("--count", type=console.positive_integer, metavar="N", help="digits to draw (default: 100)")
    add("--columns", type=console.positive_integer, metavar="N", help="digits in a row (default: as many as rows)")
    add(
        "--sampler",
        choices=("prior", "mixture"),
        help="where latent vectors come from: N(0, I), or the mixture fitted to the training images "
        "(default: mixture, where the run has one)",
    )
    add(
        "--digit",
        type=digits,
        metavar="D",
        help="only this digit, or, of several such as 0123456789, a row of each (default: any)",
    )
    add(
        "--scale",
        type=console.number,
        default=1.0,
        help="multiplies the deviation from the sampler's mean: below 1 plainer digits, above 1 stranger (default: 1)",
    )
    add("--seed", type=console.seed, help="a whole number that fixes the draw (default: a fresh one, which is printed)")
    add("--output", default="generated_images.png", metavar="PNG", help="the picture (default: generated_images.png)")
    add("--arrays", metavar="NPZ", help="the images too: key 'images', (n, 28, 28), float32 in [0, 1] (default: none)")
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument(
        "--interpolate", action="store_true", help="rows that walk from one digit to another instead (default: off)"
    )
    instead.add_argument(
        "--manifold",
        action="store_true",
        help="the latent plane instead, decoded over the prior's quantiles: of a 2-D latent, or of the two most active "
        "dimensions (default: off)",
    )
    instead.add_argument(
        "--reconstruct",
        action="store_true",
        help="test images drawn at random instead, each with its reconstruction to its right (default: off)",
    )
    instead.add_argument(
        "--from",
        dest="source",
        choices=("reconstructions",),
        help="images drawn at random from those that a run with --save-reconstructions keeps instead "
        "(default: the decoder)",
    )
    add(
        "--dataset",
        choices=DATASETS,
        help="where --reconstruct takes its images (default: what the run was trained on)",
    )
    add("--data", metavar="PATH", help="or your own: a folder of IDX files or an .npz (default: as --dataset)")
    return parser.parse_args(arguments)


def digits(text: str) -> tuple[int, ...]:
    """One digit or several, for argparse."""
    if not (text.isascii() and text.isdigit()):
        raise argparse.ArgumentTypeError(f"{text!r} is no digit, nor several such as 0123456789")
    return tuple(map(int, text))


def main(arguments: list[str] | None = None) -> None:
    """Command line -> decoder -> latent vectors -> images -> grid."""
    options = parse(arguments)
    for flag, path in (("--output", options.output), ("--arrays", options.arrays)):
        if path is not None and not Path(path).resolve().parent.is_dir():
            raise UserError(f"{flag} {path}: no such folder; make it first")
        if path is not None and Path(path).is_dir():
            raise UserError(f"{flag} {path} cannot be written (it is a folder); name a file in it")
    folder = checkpoint.choose(options.checkpoint)
    config = checkpoint.read_config(folder)
    prior = None if options.source else archive.read_prior(folder)
    check(options, prior)
    if options.source:
        reconstructions = archive.read_reconstructions(folder)
    else:
        decoder = restored(folder)
    from vae import plots

    print(f"-> {'Reconstructions' if options.source else 'Checkpoints'} are restored from {folder}")
    seed = secrets.randbelow(2**32) if options.seed is None else options.seed
    print(f"-> Generation is started. ({described(options, prior)}, seed {seed})", flush=True)

    rng = np.random.default_rng(seed)
    if options.source:
        count, columns, images = kept(options, reconstructions, rng)
    elif options.reconstruct:
        count, columns, images = reconstructed(options, folder, config, decoder, rng)
    else:
        count, columns, vectors = planned(options, prior, decoder.input_shape[1], rng)
        images = decoded(decoder, vectors, count)
    if options.arrays is None:
        grid = plots.tile(images, count, columns)
    else:
        with checkpoint.replacing(options.arrays) as path:
            grid = plots.tile(written(images, count, path), count, columns)
        print(f"-> Images are saved as arrays in {options.arrays}")
    with checkpoint.replacing(options.output) as path:
        plots.write_png(grid, path)
    print(f"-> Generated images are saved in {options.output}")


def restored(folder: Path):
    """Restore the decoder of the run in `folder`, and print its stages."""
    console.import_keras()
    decoder = archive.load_model(folder, "decoder", (None,), [(28, 28)])

    print("----- Decoder -----", *console.decoder_stages(decoder), sep="\n")
    return decoder


def sampler(options, prior: dict | None) -> str:
    """The sampler that was asked for, else the better one of those that the run has."""
    return options.sampler or ("prior" if prior is None else "mixture")


def check(options, prior: dict | None) -> None:
    """Turn away flags that contradict each other or the run."""
    if options.source and (options.sampler or options.digit):
        raise UserError("--from: reconstructions are drawn as they are; leave --sampler and --digit out")
    if prior is None and options.sampler == "mixture":
        raise UserError("--sampler mixture: this run has no prior.npz with a mixture; draw from the prior")
    if options.digit is not None and sampler(options, prior) == "prior":
        raise UserError("--digit: the prior knows no digits, only a run's mixture does; draw without --digit")
    if options.digit is not None and (options.interpolate or options.manifold or options.reconstruct):
        raise UserError("--digit: it goes with plain drawing only; leave it, or the other picture, out")
    if options.digit is not None and len(options.digit) > 1 and options.count and options.columns:
        raise UserError("--columns: each of several digits has a row of --columns; leave it, or --count, out")
    if (options.data or options.dataset) and not options.reconstruct:
        raise UserError("--data and --dataset: only --reconstruct reads images; leave them out")


def described(options, prior: dict | None) -> str:
    """What is drawn, in words."""
    if options.reconstruct:
        return "reconstructions of test images"
    if options.source:
        return "reconstructions of training images"
    if options.manifold:
        return "the latent plane"
    source = {"prior": "the prior N(0, I)", "mixture": "the mixture fitted to the training images"}[
        sampler(options, prior)
    ]
    return f"{'walks between digits' if options.interpolate else 'digits'} from {source}, scale {options.scale:g}"


def planned(
    options, prior: dict | None, latent_dim: int, rng: np.random.Generator
) -> tuple[int, int, Iterator[np.ndarray]]:
    """Return how many images there will be, in how many columns, and their latent vectors in batches (n, D)."""
    mixture = latent.mixture(prior, latent_dim) if sampler(options, prior) == "mixture" else None

    def draw(count: int, digit: int | None = None) -> np.ndarray:
        if mixture is None:
            return latent.draw_prior(rng, count, latent_dim, options.scale)
        return latent.draw_mixture(rng, count, mixture, options.scale, digit)

    count = options.count or 100
    columns = options.columns or math.ceil(math.sqrt(count))
    if options.manifold:
        side = math.ceil(math.sqrt(count))
        axes = (0, 1) if latent_dim == 2 else latent.most_active(prior, latent_dim)
        return side * side, side, iter([latent.plane(side, latent_dim, axes)])
    if options.interpolate:
        rows = math.ceil(count / columns)
        walks = latent.walk(draw(rows), draw(rows), columns)  # (rows, columns, D)
        return rows * columns, columns, iter(walks)
    wanted = options.digit or (None,)
    if len(wanted) > 1:
        columns = options.columns or math.ceil(count / len(wanted))
    each = columns if len(wanted) > 1 else count
    batches = (draw(min(BATCH, each - start), digit) for digit in wanted for start in range(0, each, BATCH))
    return each * len(wanted), columns, batches


def decoded(decoder, batches: Iterator[np.ndarray], count: int) -> Iterator[np.ndarray]:
    """Decode batches (n, D) into images (n, 28, 28) in [0, 1], with a progress bar on a terminal."""
    from tqdm import tqdm

    with tqdm(total=count, unit=" digits", leave=False, disable=None) as bar:
        for z in batches:
            yield decoder.predict_on_batch(z)
            bar.update(len(z))


def reconstructed(
    options, folder: Path, config: dict, decoder, rng: np.random.Generator
) -> tuple[int, int, Iterator[np.ndarray]]:
    """Return count, columns and batches of test images, each followed by its reconstruction from a posterior sample."""
    from vae import data, download

    dataset = data.load(*download.find_for_run(options.dataset, options.data, config))
    encoder = archive.load_model(folder, "encoder", (28, 28), [decoder.input_shape[1:]] * 2)
    wanted = min(options.count or 100, len(dataset.test_images))
    chosen = np.sort(rng.choice(len(dataset.test_images), wanted, replace=False))
    columns = 2 * (options.columns or math.ceil(math.sqrt(wanted)))

    def pairs() -> Iterator[np.ndarray]:
        for start in range(0, wanted, BATCH):
            originals = data.pixels(dataset.test_images[chosen[start : start + BATCH]])
            mean, log_var = encoder.predict_on_batch(originals)
            z = mean + np.exp(log_var / 2) * rng.standard_normal(mean.shape, np.float32)
            yield np.stack([originals, decoder.predict_on_batch(z)], axis=1).reshape(-1, 28, 28)

    return 2 * wanted, columns, pairs()


def kept(options, images: np.ndarray, rng: np.random.Generator) -> tuple[int, int, Iterator[np.ndarray]]:
    """Return count, columns and batches of the training images' reconstructions (n, 28, 28), drawn at random."""
    wanted = min(options.count or 100, len(images))
    chosen = rng.choice(len(images), wanted, replace=False)
    batches = (images[chosen[start : start + BATCH]] / np.float32(255) for start in range(0, wanted, BATCH))
    return wanted, options.columns or math.ceil(math.sqrt(wanted)), batches


def written(batches: Iterator[np.ndarray], count: int, path: Path) -> Iterator[np.ndarray]:
    """Pass batches of images through, writing them to an .npz on the way, so that they never lie in memory together."""
    with checkpoint.images_file(path, count, "<f4", zipfile.ZIP_STORED) as add:
        for batch in batches:
            add(batch)
            yield batch


if __name__ == "__main__":
    console.run(main)
