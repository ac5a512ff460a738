"""Say how good a trained model is on the test set: python evaluate.py (see python evaluate.py --help)."""

import json
import sys

from vae import checkpoint, console, data, download
from vae.settings import DATASETS


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
    add("--seed", type=console.seed, default=0, help="seed of the posterior samples, a whole number (default: 0)")
    add("--json", action="store_true", help="print one JSON object on standard output, all else on standard error")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    """Command line -> model -> data -> losses."""
    options = parse(arguments)
    folder = checkpoint.choose(options.checkpoint)
    config = checkpoint.read_config(folder)
    dataset = load_data(options, config)
    binarize = options.binarize or config["settings"]["binarize"]
    console.import_keras()
    encoder = checkpoint.load_model(folder, "encoder", (28, 28), [(None,), (None,)])
    decoder = checkpoint.load_model(folder, "decoder", (None,), [(28, 28)])
    say = sys.stderr if options.json else sys.stdout
    pixels = "binary" if binarize else "grey"
    print(f"-> Checkpoints are restored from {folder}", file=say)
    print(
        f"-> {len(dataset.test_images):,} test images of {dataset.name} ({dataset.source}), {pixels} pixels", file=say
    )

    losses = measure(encoder, decoder, dataset.test_images, options.seed, binarize)
    if options.json:
        print(json.dumps(losses | {"images": len(dataset.test_images), "checkpoint": str(folder)}))
        return
    for name, label in (
        ("general_loss", "General loss (negative ELBO)"),
        ("reconstruction_loss", "Reconstruction loss"),
        ("kl_loss", "KL-divergence loss"),
    ):
        print(f"{label + ':':30}{losses[name]:8.2f} nats per image")


def load_data(options, config: dict) -> data.Dataset:
    """Load what the command line names, else what the run was trained on; say so where the two differ."""
    if options.dataset or options.data:
        found = download.find(options.dataset, options.data)
    elif config["settings"]["data"]:
        found = download.find(None, config["settings"]["data"])
    else:
        found = download.find(config["dataset"]["name"], None)
    dataset = data.load(*found)
    if dataset.sha256 != config["dataset"]["sha256"]:
        print("-> These are not the images that the model was trained on: its config.json has others.", file=sys.stderr)
    return dataset


def measure(encoder, decoder, images, seed: int, binarize: bool) -> dict[str, float]:
    """Return the three losses over all images (n, 28, 28), one posterior sample each, in nats per image."""
    import model
    from vae.training import Batches

    vae = model.VAE(encoder, decoder)
    vae.compile(jit_compile=False)
    vae.reseed(seed)
    return vae.evaluate(Batches(images, 500, seed, binarize=binarize), verbose=0, return_dict=True)


if __name__ == "__main__":
    console.run(main)
