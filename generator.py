"""Draw new digits from a trained decoder: python generator.py (see python generator.py --help)."""

import argparse
import io
import math
import secrets
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from vae import files, report, sampling, terminal
from vae.data.dataset import to_pixels
from vae.run import Run
from vae.settings import add_checkpoint_flag, add_data_flags
from vae.terminal import UserError, positive_integer

BATCH = 500  # latent vectors in a batch: enough to use all cores, small enough for their caches
SHOWN = 400  # images in the picture where --arrays has them all; viewers refuse a picture of 100,000


@dataclass
class Picture:
    """A grid of images, `columns` in a row. They come in `batches` (n, H, W) in [0, 1]."""

    title: str  # what is drawn, in words
    shape: tuple[int, int, int]  # of all batches together
    columns: int
    batches: Iterator[np.ndarray]


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = terminal.Parser(description="Draw new digits from a trained decoder, on one grid.")
    add = parser.add_argument
    add_checkpoint_flag(parser, "draw from")
    add("--count", type=positive_integer, metavar="N", help="digits or pairs (default: 100)")
    add("--columns", type=positive_integer, metavar="N", help="digits in a row (default: as many as rows)")
    add(
        "--digit",
        type=read_digits,
        metavar="D",
        help="only this digit; several, such as 0123456789, have a row each (default: any)",
    )
    add("--label", metavar="NAMES", help="only this label; several, such as cat,dog, have a row each (default: any)")
    add(
        "--scale",
        type=terminal.non_negative_number,
        default=1.0,
        help="multiplies the distance to the mean of a Gaussian of the prior: below 1 plainer digits, above 1 stranger "
        "(default: 1)",
    )
    add(
        "--seed", type=terminal.seed, help="a whole number that fixes the draw (default: a fresh one, which is printed)"
    )
    add(
        "--output",
        default="generated_images.png",
        metavar="FILE",
        help="the picture, .png, .jpg or .pdf (default: generated_images.png)",
    )
    add(
        "--arrays",
        metavar="NPZ",
        help="save the images as well: key 'images', (n, H, W), float32 in [0, 1] (default: none)",
    )
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument(
        "--interpolate", action="store_true", help="instead: rows that walk from one digit to another (default: off)"
    )
    instead.add_argument(
        "--manifold",
        action="store_true",
        help="instead: a plane of the latent space, along its two most active dimensions (default: off)",
    )
    instead.add_argument(
        "--reconstruct",
        action="store_true",
        help="instead: test images, chosen at random, each with its reconstruction to its right (default: off)",
    )
    instead.add_argument(
        "--from",
        dest="source",
        choices=("reconstructions",),
        help="instead: reconstructions of training images, chosen at random from those that were saved by main.py "
        "--save-reconstructions (default: off)",
    )
    add_data_flags(parser, "where --reconstruct takes its images")
    return parser.parse_args(arguments)


def read_digits(text: str) -> tuple[int, ...]:
    """Read one digit or several, for argparse."""
    if not (text.isascii() and text.isdigit()):
        raise argparse.ArgumentTypeError(f"{text!r} is no digit, nor several such as 0123456789")
    return tuple(map(int, text))


def main(arguments: list[str] | None = None) -> None:
    """Command line -> decoder -> latent vectors -> images -> grid."""
    options = parse(arguments)
    options.output = files.check_place("--output", options.output)
    if not is_picture_type(options.output.suffix):
        what = f"--output {options.output}: grey pictures of this kind cannot be written"
        raise UserError(f"{what}; choose .png, .jpg or .pdf")
    if options.arrays is not None:
        options.arrays = files.check_place("--arrays", options.arrays)
    run = Run.find(options.checkpoint)
    check(options)
    options.seed = secrets.randbelow(2**32) if options.seed is None else options.seed
    if options.source:
        picture = pick(run.load_reconstructions(), options)
    else:
        terminal.import_keras()
        decoder = run.load_decoder()
        report.print_decoder(decoder)
        picture = (reconstruct if options.reconstruct else plan)(run, decoder, options)
    print(f"-> {'Reconstructions' if options.source else 'Checkpoints'} are restored from {run.folder}")
    print(f"-> Generation is started. ({picture.title}, seed {options.seed})", flush=True)
    write(picture, options)


def is_picture_type(suffix: str) -> bool:
    """Say whether Pillow can write grey pictures whose names end so: it tries."""
    from PIL import Image

    try:
        Image.new("L", (1, 1)).save(io.BytesIO(), Image.registered_extensions()[suffix.lower()])
    except (KeyError, OSError, ValueError):  # no format; or one that lacks a writer, a library or grey pixels
        return False
    return True


def check(options: argparse.Namespace) -> None:
    """Refuse flags that contradict each other."""
    labels, flag = options.digit or options.label, "--digit" if options.digit else "--label"
    if options.digit and options.label:
        raise UserError("--digit: it contradicts --label; give one of the two")
    if options.source and labels:
        raise UserError(f"--from: reconstructions are drawn as they are; leave {flag} out")
    if (options.data or options.dataset) and not options.reconstruct:
        raise UserError("--data and --dataset: only --reconstruct reads images; leave them out")
    for other in ("interpolate", "manifold", "reconstruct"):
        if labels and getattr(options, other):
            raise UserError(f"{flag}: it contradicts --{other}; give one of the two")


def plan(run: Run, decoder, options: argparse.Namespace) -> Picture:
    """Draw latent vectors (n, D) of the picture that was asked for, in batches, and decode them."""
    rng = np.random.default_rng(options.seed)
    latent_dim = decoder.input_shape[1]
    prior = run.load_prior(latent_dim)
    source = f"from {'N(0, I)' if prior.is_normal else 'the learned prior'}, scale {options.scale:g}"
    count = options.count or 100
    columns = options.columns or math.ceil(math.sqrt(count))
    if options.manifold:
        side = math.ceil(math.sqrt(count))
        vectors = iter([sampling.plane(prior, side, run.find_most_active(latent_dim), rng)])
        return decode("the latent plane", decoder, vectors, (side * side, side))
    if options.interpolate:
        rows = math.ceil(count / columns)
        ends = [prior.draw(rng, rows, options.scale) for _ in range(2)]
        walks = iter(sampling.walk(prior, *ends, columns))  # a row at a time
        return decode(f"walks between digits {source}", decoder, walks, (rows * columns, columns))
    labels = find_labels(run, prior, options)
    if len(labels) > 1:  # a row of each
        if options.count and options.columns:
            raise UserError("--columns: each of several labels has a row; give --columns or --count, not both")
        count = columns = options.columns or math.ceil(count / len(labels))
    vectors = (
        prior.draw(rng, n, options.scale) if label is None else prior.draw_label(rng, n, options.scale, label)
        for label in labels
        for n in split_count(count)
    )
    return decode(f"digits {source}", decoder, vectors, (count * len(labels), columns))


def find_labels(run: Run, prior: sampling.Mixture, options: argparse.Namespace) -> list[int | None]:
    """Return the labels to draw, [None] for any; UserError where the run does not have one of them."""
    if not options.digit and not options.label:
        return [None]
    flag = "--digit" if options.digit else "--label"
    known = {run.name_label(label): label for label in prior.drawable_labels}
    if not known:
        raise UserError(f"{flag}: the prior of this run has no labels; draw without {flag}")
    if options.digit and not set(known) <= set("0123456789"):
        raise UserError(f"--digit: this run has other labels ({', '.join(known)[:200]}); name them with --label")
    wanted = map(str, options.digit or ([options.label] if options.label in known else options.label.split(",")))
    labels = [known.get(name) for name in wanted]
    if None in labels:
        raise UserError(f"{flag}: this run has the labels {', '.join(known)[:200]}; choose from these")
    return labels


def split_count(count: int) -> Iterator[int]:
    """Split a count into batches."""
    return (min(BATCH, count - start) for start in range(0, count, BATCH))


def decode(title: str, decoder, batches: Iterator[np.ndarray], grid: tuple[int, int]) -> Picture:
    """Decode batches of latent vectors (n, D), with a progress bar on a terminal. `grid` is (count, columns)."""
    from tqdm import tqdm

    def images() -> Iterator[np.ndarray]:
        with tqdm(total=grid[0], unit=" digits", leave=False, disable=None) as bar:
            for z in batches:
                yield decoder.predict_on_batch(z)
                bar.update(len(z))

    return Picture(title, (grid[0], *decoder.output_shape[1:]), grid[1], images())


def reconstruct(run: Run, decoder, options: argparse.Namespace) -> Picture:
    """Choose test images at random; each is followed by its reconstruction from a posterior sample."""
    dataset = report.load_shown_images(run, options)
    images = dataset.test_images
    if images.shape[1:] != decoder.output_shape[1:]:
        found, wanted = ("{} x {}".format(*shape) for shape in (decoder.output_shape[1:], images.shape[1:]))
        what = f"its decoder draws images of {found} pixels, but its config.json says {wanted}"
        raise UserError(f"{run.folder}: {what}; choose another run with --checkpoint")
    encoder = run.load_encoder(decoder)
    chosen, columns, rng = choose(len(images), options)
    chosen = np.sort(chosen)

    def pairs() -> Iterator[np.ndarray]:
        for start in range(0, len(chosen), BATCH):
            originals = to_pixels(images[chosen[start : start + BATCH]])
            mean, log_var = encoder.predict_on_batch(originals)
            decoded = decoder.predict_on_batch(sampling.draw_codes(mean, log_var, rng))
            yield np.stack([originals, decoded], axis=1).reshape(-1, *originals.shape[1:])

    return Picture("reconstructions of test images", (2 * len(chosen), *images.shape[1:]), 2 * columns, pairs())


def pick(images: np.ndarray, options: argparse.Namespace) -> Picture:
    """Choose saved reconstructions (n, H, W), bytes, at random."""
    chosen, columns, _ = choose(len(images), options)
    batches = (to_pixels(images[chosen[start : start + BATCH]]) for start in range(0, len(chosen), BATCH))
    return Picture("reconstructions of training images", (len(chosen), *images.shape[1:]), columns, batches)


def choose(available: int, options: argparse.Namespace) -> tuple[np.ndarray, int, np.random.Generator]:
    """Choose images at random: their numbers, the columns of their grid, and the generator to go on with."""
    rng = np.random.default_rng(options.seed)
    count = min(options.count or 100, available)
    return rng.choice(available, count, replace=False), options.columns or math.ceil(math.sqrt(count)), rng


def write(picture: Picture, options: argparse.Namespace) -> None:
    """Write the picture and, with --arrays, the images. They are decoded on the way, and never in memory together."""
    from vae import plots

    if options.arrays is None:
        grid = plots.tile(picture.batches, picture.shape, picture.columns)
    else:
        with (
            files.replacing(options.arrays) as path,
            files.write_images(path, picture.shape, "<f4", zipfile.ZIP_STORED) as add,  # floats hardly shrink
        ):
            saved = (batch for batch in picture.batches if add(batch))  # `add` returns the bytes written, never 0
            shown = min(picture.shape[0], SHOWN)
            columns = picture.columns if shown == picture.shape[0] else options.columns or math.isqrt(SHOWN)
            grid = plots.tile(saved, (shown, *picture.shape[1:]), columns)
        print(f"-> Images are saved as arrays in {options.arrays}")
    with files.replacing(options.output) as path:
        plots.write_picture(grid, path)
    print(f"-> Generated images are saved in {options.output}")


if __name__ == "__main__":
    terminal.run(main)
