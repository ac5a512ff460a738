"""Draw new digits from a trained decoder: python generator.py (see python generator.py --help)."""

import math
import secrets
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from vae import checkpoint, console
from vae.settings import UserError

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
    add("--count", type=console.positive_integer, default=100, metavar="N", help="digits to draw (default: 100)")
    add("--columns", type=console.positive_integer, metavar="N", help="digits in a row (default: as many as rows)")
    add(
        "--scale",
        type=console.number,
        default=1.0,
        help="standard deviation of the latent vectors: below 1 plainer digits, above 1 stranger ones (default: 1)",
    )
    add("--seed", type=console.seed, help="a whole number that fixes the draw (default: a fresh one, which is printed)")
    add("--output", default="generated_images.png", metavar="PNG", help="the picture (default: generated_images.png)")
    add("--arrays", metavar="NPZ", help="the images too: key 'images', (n, 28, 28), float32 in [0, 1] (default: none)")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    """Command line -> decoder -> latent vectors -> images -> grid."""
    options = parse(arguments)
    for flag, path in (("--output", options.output), ("--arrays", options.arrays)):
        if path is not None and not Path(path).resolve().parent.is_dir():
            raise UserError(f"{flag} {path}: no such folder; make it first")
    folder = checkpoint.choose(options.checkpoint)
    checkpoint.read_config(folder)
    console.import_keras()
    decoder = checkpoint.load_model(folder, "decoder", (None,), [(28, 28)])
    import model
    from vae import plots

    print("----- Decoder -----", *model.decoder_stages(decoder), sep="\n")
    print(f"-> Checkpoints are restored from {folder}")
    seed = secrets.randbelow(2**32) if options.seed is None else options.seed
    print(f"-> Generation is started. ({options.count} digits, seed {seed})", flush=True)

    images = decoded(decoder, latent_vectors(options.count, decoder.input_shape[1], options.scale, seed), options.count)
    columns = options.columns or math.ceil(math.sqrt(options.count))
    if options.arrays is None:
        grid = plots.tile(images, options.count, columns)
    else:
        with checkpoint.replacing(options.arrays) as path:
            grid = plots.tile(written(images, options.count, path), options.count, columns)
        print(f"-> Images are saved as arrays in {options.arrays}")
    with checkpoint.replacing(options.output) as path:
        plots.write_png(grid, path)
    print(f"-> Generated images are saved in {options.output}")


def latent_vectors(count: int, latent_dim: int, scale: float, seed: int) -> Iterator[np.ndarray]:
    """Draw from the prior N(0, scale^2 I): batches (n, latent_dim), float32."""
    rng = np.random.default_rng(seed)
    for start in range(0, count, BATCH):
        yield scale * rng.standard_normal((min(BATCH, count - start), latent_dim), np.float32)


def decoded(decoder, batches: Iterator[np.ndarray], count: int) -> Iterator[np.ndarray]:
    """Decode batches (n, latent_dim) into images (n, 28, 28) in [0, 1], with a progress bar on a terminal."""
    from tqdm import tqdm

    with tqdm(total=count, unit=" digits", leave=False, disable=None) as bar:
        for z in batches:
            yield decoder.predict_on_batch(z)
            bar.update(len(z))


def written(batches: Iterator[np.ndarray], count: int, path: Path) -> Iterator[np.ndarray]:
    """Pass batches of images through, writing them to an .npz on the way, so that they never lie in memory together."""
    header = {"descr": "<f4", "fortran_order": False, "shape": (count, 28, 28)}
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
        archive.open("images.npy", "w", force_zip64=True) as file,
    ):
        np.lib.format.write_array_header_1_0(file, header)
        for batch in batches:
            file.write(batch.astype("<f4").tobytes())
            yield batch


if __name__ == "__main__":
    console.run(main)
