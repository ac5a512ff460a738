"""Every setting of a run: its default, unit and help. The flags of main.py and config.json come from this table.

It imports nothing heavy, so that a command line answers at once.
"""

import argparse
import importlib.util
import math
import sys
from argparse import Namespace
from collections.abc import Callable, Collection
from dataclasses import dataclass, fields
from pathlib import Path

from vae.networks import FORMER_NAMES, NETWORKS, Network
from vae.terminal import UserError, non_negative_number, number, positive_integer, positive_number, seed

DATASETS = ("mnist", "fashion-mnist", "digits")
PRIORS = ("mixture", "normal")
LIKELIHOODS = ("bernoulli", "gaussian")
PRECISIONS = ("float32", "mixed_bfloat16", "mixed_float16")
LEAST_BATCHES = 30  # in an epoch, by default
LEAST_STEPS = 1500  # in a run, by default
MOST_COMPONENTS, IMAGES_PER_COMPONENT = 300, 50  # by default
FURTHER = ("epochs", "importance_samples")  # what may change when a finished run is trained further


@dataclass(frozen=True)
class Setting:
    """One setting of a run. A default of None stands for the network's own default, or for nothing."""

    name: str
    default: object
    help: str
    read: Callable = str  # from the text of a flag; bool is a switch
    choices: Collection[str] | None = None

    @property
    def flag(self) -> str:
        return flag(self.name)

    def allows(self, value: object) -> bool:
        """Say whether the command line could have given this value."""
        if self.read is bool:
            return isinstance(value, bool)
        if value is None:
            return self.default is None
        try:
            return self.read(str(value)) == value and (self.choices is None or value in self.choices)
        except (argparse.ArgumentTypeError, ValueError, TypeError):
            return False


image_size = number(int, "a multiple of 4 from 8 to 128", 8, 128, step=4)
layer_size = number(int, "a whole number from 1 to 1024", 1, 1024)  # fits any memory, whoever wrote the config.json
component_count = number(int, "a whole number from 1 to 1000", 1, 1000)
sample_count = number(int, "a whole number from 1 to 100", 1, 100)  # each takes the memory of a batch
share = number(float, "a number from 0 to below 1", 0, 1 - 2**-53)
pixel_variance = number(float, "a number from 0.000001 to 1000", 1e-6, 1e3)  # float32 can hold the densities

SETTINGS = (
    Setting("network", "standard", "which network to train; help lists them", choices=NETWORKS),
    Setting(
        "dataset",
        None,
        "which images to train on (default: mnist; where it can be neither found nor downloaded, digits)",
        choices=DATASETS,
    ),
    Setting(
        "data",
        None,
        "your own images instead: a folder of pictures, IDX or .npy files, an .npz or a .csv; docs/data.md has all "
        "(default: none)",
    ),
    Setting("transpose", False, "swap rows and columns of every image, as EMNIST's own files need", bool),
    Setting(
        "image_size",
        None,
        "scale the images to N x N pixels, a multiple of 4 from 8 to 128 (default: the nearest allowed size)",
        image_size,
    ),
    Setting(
        "validation_split",
        None,
        "share of the training images to hold out; each epoch is measured on them instead of the test images",
        share,
    ),
    Setting("epochs", None, "passes over the training images", positive_integer),
    Setting("batch_size", None, "images in a training step", positive_integer),
    Setting(
        "learning_rate", None, "Adam's peak step size: a short warm-up leads to it, a cosine back to 0", positive_number
    ),
    Setting("latent_dim", None, "latent dimensions, up to 1024", layer_size),
    Setting("hidden_dim", None, "units of the LSTM, up to 1024", layer_size),
    Setting(
        "prior",
        None,
        "p(z): a mixture of Gaussians that is learned together with the network, or N(0, I)",
        choices=PRIORS,
    ),
    Setting(
        "components",
        None,
        "Gaussians in a learned prior, up to 1000 (default: 300, but at most one per 50 training images)",
        component_count,
    ),
    Setting("beta", 1.0, "weight of the KL in training; the losses shown are unweighted", non_negative_number),
    Setting(
        "importance_samples",
        1,
        "latent vectors for an image in training, up to 100: 1 trains by the ELBO, more by the tighter "
        "importance-weighted bound; the decoder's work grows as much; the losses shown are the ELBO's",
        sample_count,
    ),
    Setting("likelihood", "bernoulli", "the distribution of a pixel, given z", choices=LIKELIHOODS),
    Setting("variance", 0.01, "variance of a Gaussian pixel", pixel_variance),
    Setting("binarize", False, "draw fresh binary pixels in each epoch (grey pixels otherwise)", bool),
    Setting("seed", 0, "seed of weights, order and noise, a whole number", seed),
    Setting("name", None, "the run's folder under checkpoints/ (default: NETWORK-DATASET-NNN, the next free number)"),
    Setting("overwrite", False, "replace the run that --name names", bool),
    Setting("save_reconstructions", False, "save the reconstructions of all training images, as bytes", bool),
    Setting("precision", "float32", "number format of the layers; losses are always float32", choices=PRECISIONS),
    Setting("tensorboard", False, "write TensorBoard logs into the run's folder as well", bool),
    Setting("deterministic", False, "use deterministic operations only (for a GPU; slower)", bool),
)


def flag(name: str) -> str:
    """Return a setting's name as it is typed."""
    return "--" + name.replace("_", "-")


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Give the parser a flag for every setting. A flag that is not given does not appear in what it returns."""
    for setting in SETTINGS:
        if setting.read is bool:
            options = {"action": "store_true", "help": f"{setting.help} (default: off)"}
        else:
            options = {"type": setting.read, "help": setting.help + _describe_default(setting)}
            options["choices"] = (*setting.choices, "help") if setting.name == "network" else setting.choices
            options["metavar"] = None if setting.choices else setting.name.split("_")[-1].upper()
        parser.add_argument(setting.flag, default=argparse.SUPPRESS, **options)


def add_resume_flag(parser: argparse.ArgumentParser) -> None:
    """Give the parser the flag that goes on with a run."""
    parser.add_argument(
        "--resume",
        nargs="?",
        const="",
        default=argparse.SUPPRESS,
        metavar="DIR",
        help="go on with the run in DIR, or with the newest unfinished one, from its last whole epoch; a finished run "
        "goes on with a larger --epochs, and may then have other --importance-samples (default: a new run)",
    )


def add_checkpoint_flag(parser: argparse.ArgumentParser, use: str) -> None:
    """Give the parser the flag that names a trained run."""
    newest = "the one that finished last, else the shipped model"
    parser.add_argument("--checkpoint", metavar="DIR", help=f"the run to {use} (default: {newest})")


def add_data_flags(parser: argparse.ArgumentParser, use: str) -> None:
    """Give the parser the flags that say which images a trained model is shown."""
    parser.add_argument("--dataset", choices=DATASETS, help=f"{use} (default: what the run was trained on)")
    parser.add_argument("--data", metavar="PATH", help="or your own, as in main.py --data (default: as --dataset)")
    parser.add_argument("--transpose", action="store_true", help="swap their rows and columns (default: off)")


def _describe_default(setting: Setting) -> str:
    if "default:" in setting.help:
        return ""
    if setting.default is not None:
        return f" (default: {setting.default})"
    values = [f"{getattr(network, setting.name)} for {name}" for name, network in NETWORKS.items()]
    return f" (default: {', '.join(values)})"


def complete(given: dict) -> Namespace:
    """Return every setting of a run: those that were given, and the defaults of the network and of the table."""
    network = NETWORKS[given.get("network", "standard")]
    own = {field.name: getattr(network, field.name) for field in fields(Network)}
    defaults = {setting.name: own.get(setting.name, setting.default) for setting in SETTINGS}
    return Namespace(**defaults | {name: given[name] for name in defaults if given.get(name) is not None})


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
        print(f"-> For {count:,} training images, the defaults become {chosen}", file=sys.stderr)


def read_settings(config: dict, path: Path) -> Namespace:
    """Return the settings in a config.json; UserError where the command line could not have given one of them."""
    found = dict(config["settings"])
    if isinstance(found.get("network"), str):
        found["network"] = FORMER_NAMES.get(found["network"], found["network"])
    found.setdefault("prior", "normal")  # what older runs have
    for setting in SETTINGS:
        if not setting.allows(value := found.get(setting.name, setting.default)):
            raise UserError(f"{path}: {setting.name} cannot be {value!r:.50}; choose another run")
    return complete(found)


def check(settings: Namespace) -> None:
    """Refuse settings that contradict each other, before anything heavy is imported."""
    if settings.overwrite and settings.name is None:
        raise UserError("--overwrite: which run? Name it with --name")
    if settings.data and settings.dataset:
        raise UserError("--dataset: it contradicts --data; give one of the two")
    if settings.binarize and settings.likelihood == "gaussian":
        raise UserError("--binarize: binary pixels are not Gaussian; leave out --binarize or --likelihood gaussian")
    if settings.importance_samples > 1 and settings.beta != 1:
        raise UserError("--beta: the bound of several --importance-samples has no KL term; leave out one of the two")
    if settings.tensorboard and importlib.util.find_spec("tensorboard") is None:
        raise UserError("--tensorboard: TensorBoard is not installed; pip install tensorboard")


def variance_of(settings: Namespace) -> float | None:
    """Return the variance of a Gaussian pixel, or None where pixels are Bernoulli."""
    return settings.variance if settings.likelihood == "gaussian" else None
