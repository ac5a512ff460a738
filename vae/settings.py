"""Every setting of a run: its default, unit and help. The flags of main.py and config.json come from this table.

It imports nothing heavy, so that a command line answers at once.
"""

import argparse
import importlib.util
import math
import sys
from argparse import Namespace

from vae.networks import NETWORKS
from vae.terminal import UserError, number, positive_integer, positive_number, seed

DATASETS = ("mnist", "fashion-mnist", "digits")
LEAST_BATCHES = 30  # in an epoch, by default
LEAST_STEPS = 1500  # in a run, by default
MOST_COMPONENTS, IMAGES_PER_COMPONENT = 300, 50  # by default
COMPONENTS_TEXT = f"{MOST_COMPONENTS}, but at most one per {IMAGES_PER_COMPONENT} training images"
PRECISIONS = ("float32", "mixed_bfloat16", "mixed_float16")
FURTHER = ("epochs", "importance_samples")  # what may change when a finished run is trained further

image_size = number(int, "a multiple of 4 from 8 to 128", 8, 128, step=4)
layer_size = number(int, "a whole number from 1 to 1024", 1, 1024)
component_count = number(int, "a whole number from 1 to 1000", 1, 1000)
sample_count = number(int, "a whole number from 1 to 100", 1, 100)  # each takes the memory of a batch
kl_weight = number(float, "a number from 0 to 1000000", 0, 1e6)
held_out_share = number(float, "a number from 0 to below 1", 0, 1 - 2**-53)
pixel_variance = number(float, "a number from 0.000001 to 1000", 1e-6, 1e3)  # float32 can hold the densities

# name: (default, help, options of argparse). A default of None is the network's own default, or nothing.
SETTINGS = {
    "network": ("standard", "which network to train; help lists them", {"choices": (*NETWORKS, "help")}),
    "dataset": (None, "images to train on (default: mnist; digits where it is unavailable)", {"choices": DATASETS}),
    "data": (None, "your own images instead: a folder or a file; docs/data.md (default: none)", {"metavar": "PATH"}),
    "transpose": (False, "swap rows and columns of every image", {}),
    "image_size": (None, "scale images to N x N, 8 to 128 (default: the nearest such size)", {"type": image_size}),
    "validation_split": (None, "share of the training images that epochs are measured on", {"type": held_out_share}),
    "epochs": (None, "passes over the training images", {"type": positive_integer}),
    "batch_size": (None, "images in a training step", {"type": positive_integer}),
    "learning_rate": (None, "Adam's peak step size, after a warm-up and before a cosine", {"type": positive_number}),
    "latent_dim": (None, "latent dimensions, up to 1024", {"type": layer_size}),
    "hidden_dim": (None, "units of the LSTM, up to 1024", {"type": layer_size}),
    "prior": (None, "p(z): a learned mixture of Gaussians, or N(0, I)", {"choices": ("mixture", "normal")}),
    "components": (None, f"Gaussians in a learned prior (default: {COMPONENTS_TEXT})", {"type": component_count}),
    "beta": (1.0, "weight of the KL in training; the losses shown are unweighted", {"type": kl_weight}),
    "importance_samples": (1, "latent vectors for an image; several tighten the bound", {"type": sample_count}),
    "likelihood": ("bernoulli", "the distribution of a pixel, given z", {"choices": ("bernoulli", "gaussian")}),
    "variance": (0.01, "variance of a Gaussian pixel", {"type": pixel_variance}),
    "binarize": (False, "draw fresh binary pixels in each epoch (grey pixels otherwise)", {}),
    "seed": (0, "seed of weights, order and noise, a whole number", {"type": seed}),
    "name": (None, "the run's folder in checkpoints/ (default: NETWORK-DATASET-NNN, the next free number)", {}),
    "save_reconstructions": (False, "save the reconstructions of all training images, as bytes", {}),
    "precision": ("float32", "number format of the layers; losses are always float32", {"choices": PRECISIONS}),
    "tensorboard": (False, "write TensorBoard logs into the run's folder as well", {}),
    "deterministic": (False, "use deterministic operations only (for a GPU; slower)", {}),
}


def flag(name: str) -> str:
    """Return a setting's name as it is typed."""
    return "--" + name.replace("_", "-")


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Give the parser a flag for every setting. A flag that is not given does not appear in what it returns."""
    images = parser.add_mutually_exclusive_group()
    for name, (default, text, options) in SETTINGS.items():
        if default is False:
            options = {"action": "store_true"}
        if "default:" not in text:
            text += f" (default: {_describe_default(name, default)})"
        place = images if name in ("dataset", "data") else parser
        place.add_argument(flag(name), default=argparse.SUPPRESS, help=text, **options)
    text = "go on with the run in DIR, or the newest unfinished one; or further, with more --epochs (default: new run)"
    parser.add_argument("--resume", nargs="?", const="", default=argparse.SUPPRESS, metavar="DIR", help=text)


def _describe_default(name: str, default: object) -> str:
    if default is None:
        return ", ".join(f"{getattr(network, name)} for {key}" for key, network in NETWORKS.items())
    return "off" if default is False else str(default)


def add_checkpoint_flag(parser: argparse.ArgumentParser, use: str) -> None:
    """Give the parser the flag that names a trained run."""
    newest = "the one that finished last, else the shipped model"
    parser.add_argument("--checkpoint", metavar="DIR", help=f"the run to {use} (default: {newest})")


def add_data_flags(parser: argparse.ArgumentParser, use: str) -> argparse._MutuallyExclusiveGroup:
    """Give the parser the flags that say which images a trained model is shown.

    Returns the group of --dataset and --data: only one flag of a group can be given.
    """
    images = parser.add_mutually_exclusive_group()
    images.add_argument("--dataset", choices=DATASETS, help=f"{use} (default: what the run was trained on)")
    images.add_argument("--data", metavar="PATH", help="or your own, as in main.py --data (default: as --dataset)")
    parser.add_argument("--transpose", action="store_true", help="swap their rows and columns (default: off)")
    return images


def complete(given: dict) -> Namespace:
    """Return every setting of a run: those that were given, and the defaults of the network and of the table."""
    network = NETWORKS[given.get("network", "standard")]
    defaults = {name: getattr(network, name, default) for name, (default, _, _) in SETTINGS.items()}
    return Namespace(**defaults | given)


def fit_defaults(settings: Namespace, given: dict, count: int) -> None:
    """Adapt the defaults to a set of so many training images, and say so; what was given stays.

    A small set has smaller batches and more epochs, so that it is trained for enough steps, and fewer Gaussians, so
    that the learned prior does not memorise it.
    """
    before = settings.batch_size, settings.epochs
    if "batch_size" not in given:
        settings.batch_size = min(settings.batch_size, max(1, count // LEAST_BATCHES))
    if "epochs" not in given:
        steps = max(1, count // settings.batch_size)
        settings.epochs = max(settings.epochs, math.ceil(LEAST_STEPS / steps))
    if settings.prior == "mixture" and settings.components is None:
        settings.components = min(MOST_COMPONENTS, max(1, count // IMAGES_PER_COMPONENT))
    if before != (settings.batch_size, settings.epochs):
        chosen = f"--batch-size {settings.batch_size} --epochs {settings.epochs}"
        print(f"-> For {count:,} training images, the run has {chosen}", file=sys.stderr)


def check(settings: Namespace, given: dict) -> None:
    """Refuse settings that contradict each other, or have no effect, before anything heavy is imported."""
    if settings.binarize and settings.likelihood == "gaussian":
        raise UserError("--binarize: binary pixels are not Gaussian; leave out --binarize or --likelihood gaussian")
    if settings.importance_samples > 1 and settings.beta != 1:
        raise UserError("--beta: the bound of several --importance-samples has no KL term; leave out one of the two")
    if "variance" in given and settings.likelihood != "gaussian":
        raise UserError("--variance: only Gaussian pixels have one; add --likelihood gaussian, or leave it out")
    if "components" in given and settings.prior != "mixture":
        raise UserError("--components: N(0, I) has none; add --prior mixture, or leave it out")
    if settings.tensorboard and importlib.util.find_spec("tensorboard") is None:
        raise UserError("--tensorboard: TensorBoard is not installed; pip install tensorboard")


def variance_of(settings: Namespace) -> float | None:
    """Return the variance of a Gaussian pixel, or None where pixels are Bernoulli."""
    return settings.variance if settings.likelihood == "gaussian" else None
