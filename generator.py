"""Draw new digits from a trained decoder: python generator.py (see python generator.py --help)."""

import math
import os
import secrets
from argparse import Namespace

import numpy as np

from vae import files, report, sampling, terminal
from vae.data.dataset import Dataset, name_label, to_pixels
from vae.run import Run
from vae.sampling import AT_ONCE, Mixture
from vae.settings import add_checkpoint_flag, add_data_flags
from vae.terminal import UserError, positive_integer

COUNT = 100  # images, by default
WALKS = 12  # in an animation, by default
FRAMES = 20  # of an animation, from one stop of a walk to the next
KINDS = (".png", ".jpg", ".jpeg", ".pdf", ".gif", ".webp")
MOVING = (".gif", ".webp")
SHOWN = 400  # images in the picture where --arrays has them all; viewers refuse a picture of 100,000


def parse(arguments: list[str] | None = None) -> Namespace:
    """Read the command line."""
    parser = terminal.Parser(description="Draw new digits from a trained decoder, on one grid.")
    add = parser.add_argument
    add_checkpoint_flag(parser, "draw from")
    add("--count", type=positive_integer, metavar="N", help="digits, pairs or moving walks (default: 100; walks: 12)")
    add("--columns", type=positive_integer, metavar="N", help="digits in a row (default: as many as rows)")
    several = "several, such as cat,dog or 0123456789, have a row each; it may be given again"
    label = f"only this label; {several}; a name that begins with a dash needs a sign: --label=-1 (default: any)"
    add("--label", "--digit", action="append", metavar="NAMES", help=label)
    scale = "multiplies the distance to the mean of a Gaussian of the prior: below 1 plainer, above 1 stranger digits"
    add("--scale", type=terminal.non_negative_number, default=1.0, help=f"{scale} (default: 1)")
    seed = "a whole number that fixes the draw; a larger --count begins with the same digits (default: a fresh one,"
    add("--seed", type=terminal.seed, help=f"{seed} which is printed)")
    output = "the picture, .png, .jpg, .pdf, .gif or .webp (these two move with --interpolate), or FOLDER/ for a file"
    add("--output", default="generated_images.png", help=f"{output} for each image (default: generated_images.png)")
    arrays = "save the images as well: key 'images', (n, H, W), float32 in [0, 1] (default: none)"
    add("--arrays", metavar="NPZ", help=arrays)
    instead = parser.add_mutually_exclusive_group()
    walks = "from one digit to another, through all of several --label, or from each image of --data to the next"
    instead.add_argument("--interpolate", action="store_true", help=f"instead: walks {walks} (default: off)")
    plane = "a plane of the latent space, along its two most active dimensions"
    instead.add_argument("--manifold", action="store_true", help=f"instead: {plane} (default: off)")
    pairs = "test images, chosen at random, each with its reconstruction to its right"
    instead.add_argument("--reconstruct", action="store_true", help=f"instead: {pairs} (default: off)")
    saved = "training images that main.py --save-reconstructions saved, chosen at random (default: off)"
    reconstructions = {"choices": ("reconstructions",), "help": f"instead: reconstructions of {saved}"}
    instead.add_argument("--from", dest="source", **reconstructions)
    add_data_flags(parser, "where --reconstruct and --interpolate take images")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    """Command line -> latent vectors -> decoder -> images -> picture."""
    options = parse(arguments)
    check(options)
    run = Run.find(options.checkpoint)
    options.seed = secrets.randbelow(2**32) if options.seed is None else options.seed
    images, columns = pick(run, options) if options.source else draw(run, options)
    write(images, columns, options)


def check(options: Namespace) -> None:
    """Find out what is to be written; refuse flags that contradict each other."""
    place = terminal.as_path(options.output)
    options.in_folder = options.output.endswith(("/", os.sep)) or place.is_dir()
    options.moves = options.interpolate and place.suffix.lower() in MOVING and not options.in_folder
    if not options.in_folder and place.suffix.lower() not in KINDS:
        raise UserError(f"--output {place}: pictures of this kind cannot be written; choose {', '.join(KINDS)}")
    options.output = place if place.is_dir() else files.check_place("--output", options.output)
    if options.arrays is not None:
        options.arrays = files.check_place("--arrays", options.arrays)
    options.has_images = options.data or options.dataset or options.transpose
    if options.has_images and not options.reconstruct and not options.interpolate:
        raise UserError("--data, --dataset, --transpose: only --reconstruct and --interpolate read images; add one")
    flag = "--label" if options.label else "--scale" if options.scale != 1 else None  # only draws have these
    if flag and (options.manifold or options.reconstruct or options.source or options.has_images):
        raise UserError(f"{flag}: it contradicts --manifold, --reconstruct, --from and --data; leave one of them out")


def pick(run: Run, options: Namespace) -> tuple[np.ndarray, int]:
    """Choose saved reconstructions at random: images (n, H, W), and the columns of their grid."""
    images = run.load_reconstructions()
    chosen = choose(len(images), options.count or COUNT, options.seed)
    announce(run, "reconstructions of training images", options)
    return to_pixels(images[chosen]), options.columns or math.ceil(len(chosen) ** 0.5)


def choose(available: int, count: int, seed: int) -> np.ndarray:
    """Choose images at random: their numbers. Where all are wanted, they stay in their order."""
    return np.arange(available) if count >= available else np.random.default_rng(seed).permutation(available)[:count]


def announce(run: Run, what: str, options: Namespace) -> None:
    """Print what is drawn, and from which run."""
    print(f"-> {'Reconstructions' if options.source else 'Checkpoints'} are restored from {terminal.shown(run.folder)}")
    print(f"-> Generation is started. ({what}, seed {options.seed})", flush=True)


def draw(run: Run, options: Namespace) -> tuple[np.ndarray, int]:
    """Choose latent vectors (n, D) as the flags say, and decode them: images (n, H, W), and the columns of a grid."""
    prior = run.load_prior()
    labels = read_labels(options.label or [], run, prior)
    dataset = report.load_shown_images(run, options) if options.reconstruct or options.has_images else None
    terminal.import_keras()
    decoder = run.load_decoder()
    report.print_decoder(decoder)
    pixels, mean, log_var = encode(run, dataset, options) if dataset else (None, None, None)
    digits = f"digits from {'N(0, I)' if prior.is_normal else 'the learned prior'}, scale {options.scale:g}"
    if options.reconstruct:
        what = "reconstructions of test images"
        z = sampling.draw_codes(mean, log_var, np.random.default_rng(options.seed))
        columns = options.columns or math.ceil(len(z) ** 0.5)
    elif options.interpolate:
        what = f"walks between {'images' if dataset else digits}"
        z, columns = plan_walks(prior, labels, mean, options)
    elif options.manifold:
        what = "the latent plane"
        z, columns = plan_plane(run, prior, options)
    else:
        what = digits
        z, columns = plan_digits(prior, labels, options)
    announce(run, what, options)
    images = decode(decoder, z)
    if options.reconstruct:
        return np.stack([pixels, images], axis=1).reshape(-1, *images.shape[1:]), 2 * columns
    return images, columns


def read_labels(texts: list[str], run: Run, prior: Mixture) -> list[int]:
    """Return the labels that --label names: a text is one label, or several between commas, or one in each letter."""
    known = {name_label(label, run.label_names): label for label in prior.labels.tolist()}
    if texts and not known:
        raise UserError("--label: the prior of this run has no labels; leave it out")
    labels = []
    for text in texts:
        readings = [names for names in ([text], text.split(","), list(text)) if names and set(names) <= set(known)]
        if not readings:
            raise UserError(f"--label {text}: this run has the labels {', '.join(known)[:200]}; choose from these")
        labels += [known[name] for name in readings[0]]
    return labels


def encode(run: Run, dataset: Dataset, options: Namespace) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Choose test images at random. Return them as the encoder sees them, and mean and log_var (n, D) of q(z|x)."""
    from vae.data.batches import Batches

    count = (options.count or COUNT) + options.interpolate  # a walk has two ends
    images = dataset.test_images[choose(len(dataset.test_images), count, options.seed)]
    batches = Batches(images, AT_ONCE, options.seed, binarize=run.settings.binarize)
    pixels = np.concatenate([batches[index][0] for index in range(len(batches))])
    return pixels, *run.load_encoder().predict(pixels, batch_size=AT_ONCE, verbose=0)


def plan_digits(prior: Mixture, labels: list[int], options: Namespace) -> tuple[np.ndarray, int]:
    """Return latent vectors (n, D) drawn at random, a row for each of several labels, and the columns of their grid."""
    labels = list(dict.fromkeys(labels)) or [None]
    count = options.count or COUNT
    in_picture = count if options.arrays is None else min(count, SHOWN)
    columns = options.columns or math.ceil(in_picture**0.5)
    if len(labels) > 1:
        if options.count and options.columns:
            raise UserError("--columns: each of several labels has a row; give --columns or --count, not both")
        count = columns = options.columns or math.ceil(count / len(labels))
    rows = [draw_vectors(prior, count, label, options) for label in labels]
    return np.concatenate(rows), columns


def draw_vectors(prior: Mixture, count: int, label: int | None, options: Namespace, stop: int = 0) -> np.ndarray:
    """Draw latent vectors (count, D). Each depends on the seed, its label, its number, and the stop of a walk."""
    if label is None:
        return prior.draw(np.random.default_rng([options.seed, stop]), count, options.scale)
    keys = [options.seed, stop, 1 + np.flatnonzero(prior.labels == label)[0]]
    return prior.draw_label(np.random.default_rng(keys), count, options.scale, label)


def plan_walks(prior: Mixture, labels: list, codes: np.ndarray | None, options: Namespace) -> tuple[np.ndarray, int]:
    """Return latent vectors (rows * columns, D) of a walk in each row, and the columns.

    A walk goes from one of the codes (n, D) to the next, or through vectors of these labels. In an animation it ends
    where it began.
    """
    if codes is not None and len(codes) < 2:
        raise UserError("--interpolate: a walk needs two images; add one to --data")
    if len(labels) == 1:
        labels = labels * 2
    labels = labels or [None] * (3 if options.moves else 2)
    legs = len(labels) - 1
    count = options.count or (WALKS if options.moves else COUNT)
    columns = options.columns or max(math.ceil(count**0.5), 3 * legs + 1)
    rows = count if options.moves else math.ceil(count / columns)
    if codes is None:
        stops = np.stack([draw_vectors(prior, rows, label, options, stop) for stop, label in enumerate(labels)], axis=1)
    else:
        stops = np.stack([codes[:-1], codes[1:]], axis=1)[:rows]  # (rows, legs + 1, D)
    if options.moves:
        walks = sampling.walk(prior, np.concatenate([stops, stops[:, :1]], axis=1), FRAMES)[:, :-1]
    else:
        walks = sampling.walk(prior, stops, math.ceil((columns - 1) / legs))
    return walks.reshape(-1, walks.shape[2]), walks.shape[1]


def plan_plane(run: Run, prior: Mixture, options: Namespace) -> tuple[np.ndarray, int]:
    """Return latent vectors (n, D) of a plane along the two most active dimensions, and the columns."""
    size = prior.means.shape[1]
    if size < 2:
        raise UserError(f"--manifold: {run.folder} has one latent dimension, and a plane needs two")
    activity = run.config.get("activity", [1.0] * size)  # before the end of training there is none
    axes = np.argsort(-np.array(activity), kind="stable")[:2]
    side = options.columns or math.ceil((options.count or COUNT) ** 0.5)
    return sampling.lay_plane(prior, side, axes, np.random.default_rng(options.seed)), side


def decode(decoder, z: np.ndarray) -> np.ndarray:
    """Decode latent vectors (n, D): images (n, H, W). A bar on a terminal shows how far it is.

    All batches have one size, so the pixels of an image do not depend on how many there are.
    """
    from tqdm import tqdm

    images = np.empty((len(z), *decoder.output_shape[1:]), np.float32)
    z = np.concatenate([z, np.zeros((-len(z) % AT_ONCE, z.shape[1]), np.float32)])
    for part in tqdm(sampling.split(len(z)), total=len(z) // AT_ONCE, unit=" batches", leave=False, disable=None):
        images[part] = decoder.predict_on_batch(z[part])[: len(images[part])]
    return images


def write(images: np.ndarray, columns: int, options: Namespace) -> None:
    """Write images (n, H, W) as a grid, as an animation or each as a file, and with --arrays as they are."""
    from vae import plots

    place = options.output
    if options.arrays is not None:
        files.write_arrays(options.arrays, {"images": images})
        print(f"-> Images are saved as arrays in {options.arrays}")
    if options.in_folder:
        try:
            place.mkdir(exist_ok=True)
        except OSError as error:
            raise UserError(f"--output {place} cannot be made ({error.strerror}); choose another place") from error
        for number, image in enumerate(images):
            plots.write_picture(np.rint(image * 255).astype(np.uint8), place / f"{number:04}.png")
    elif options.moves:
        walks = images.reshape(-1, columns, *images.shape[1:])
        side = options.columns or math.ceil(len(walks) ** 0.5)
        frames = [plots.tile(walks[:, time], side, plots.SMALL) for time in range(columns)]
        plots.write_animation(frames, place, [60 if time % FRAMES else 900 for time in range(columns)])
    else:
        if options.arrays is not None and len(images) > SHOWN:
            shown = columns if options.columns else min(columns, math.isqrt(SHOWN))  # of the columns
            in_columns = np.arange(len(images)) % columns < shown
            images, columns = images[in_columns][: max(1, SHOWN // shown) * shown], shown
        plots.write_picture(plots.tile(images, columns), place)
    print(f"-> Generated images are saved in {place}")


if __name__ == "__main__":
    terminal.run(main)
