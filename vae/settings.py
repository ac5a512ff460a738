"""Every setting of a run: its default, its unit and its help, and the networks' own defaults, a row each.

This module imports nothing heavy and nothing of the project, so that a command line answers at once and every other
module may use it.
"""

from collections.abc import Collection
from typing import NamedTuple


class UserError(Exception):
    """What the user can mend: one line that names the file or flag, what is wrong and what to do."""


class Network(NamedTuple):
    """A network that `--network` trains: a line about it and its own defaults."""

    summary: str
    epochs: int
    batch_size: int
    learning_rate: float
    hidden_dim: int
    latent_dim: int
    validation_split: float = 0.0
    # Batches are cut into shards, one a core; but for networks whose weights outweigh the images, where all cores share
    # an operation, and for those that look at a batch as a whole.
    sharded: bool = True
    images_per_execution: int = 1000  # between two looks at the keyboard: under a second on a laptop


NETWORKS = {
    "standard": Network(
        summary="an LSTM over the rows, transposed convolutions up from 7 x 7",
        epochs=50,
        batch_size=200,
        learning_rate=8e-3,
        hidden_dim=64,
        latent_dim=32,
    ),
    "readout": Network(
        summary="all outputs of the LSTM are encoded; a dense layer reads the image out of feature maps",
        epochs=50,
        batch_size=100,
        learning_rate=1e-3,
        hidden_dim=64,
        latent_dim=64,
        sharded=False,
        images_per_execution=500,
    ),
    "posterior": Network(
        summary="a plane of two latents, its standard deviation by softplus",
        epochs=50,
        batch_size=100,
        learning_rate=4e-3,
        hidden_dim=28,
        latent_dim=2,
    ),
    "dense": Network(
        summary="a wide LSTM's last output is encoded; two dense layers decode",
        epochs=30,
        batch_size=256,
        learning_rate=6e-3,
        hidden_dim=256,
        latent_dim=16,
        validation_split=0.3,
    ),
    "batchnorm": Network(
        summary="normalised images; the decoder has batch normalisation, pooling and dropout",
        epochs=50,
        batch_size=100,
        learning_rate=1e-3,
        hidden_dim=32,
        latent_dim=32,
        sharded=False,  # normalisation is over the batch
    ),
    "plane": Network(
        summary="a plane of two latents, from the LSTM's last output and a dense layer",
        epochs=170,
        batch_size=250,
        learning_rate=8e-3,
        hidden_dim=64,
        latent_dim=2,
    ),
}

DATASETS = ("mnist", "fashion-mnist", "digits")
LIKELIHOODS = ("bernoulli", "gaussian")
PRECISIONS = ("float32", "mixed_bfloat16", "mixed_float16")


class Setting(NamedTuple):
    """One setting of a training run: `main.py` has it as a flag, `config.json` keeps it."""

    name: str
    default: object  # None where the network's row, or nothing, stands in for it
    help: str
    kind: type | str = str  # how the text is read: str, bool (a switch), or a range that vae/console.py knows by name
    choices: Collection[str] | None = None

    def fits(self, value: object, kinds: dict) -> bool:
        """Whether a run can have this value: one that the command line could have given, read by `kinds`, or none.

        None, where that is the default, lets the network's row stand in for it, or is the value itself.
        """
        if self.kind is bool:
            return isinstance(value, bool)
        if value is None:
            return self.default is None
        try:
            return kinds[self.kind](str(value)) == value and (self.choices is None or value in self.choices)
        except Exception:  # whatever the reader of that kind raises
            return False


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
        "your own images instead: a folder with four IDX files named as MNIST's, or an .npz with x_train and x_test "
        "(default: none)",
    ),
    Setting(
        "validation_split",
        None,
        "share of the training images held out, to be looked at after each epoch in place of the test images",
        "share",
    ),
    Setting("epochs", None, "passes over the training images", "positive integer"),
    Setting("batch_size", None, "images in a training step", "positive integer"),
    Setting(
        "learning_rate", None, "Adam's peak step size, reached in a short warm-up, then cosine decay", "positive number"
    ),
    Setting("latent_dim", None, "latent dimensions, up to 1024", "layer size"),
    Setting("hidden_dim", None, "units of the LSTM, up to 1024", "layer size"),
    Setting("beta", 1.0, "weight of the KL term while training; the losses shown are always unweighted", "number"),
    Setting(
        "importance_samples",
        1,
        "latent vectors drawn for an image in training, up to 100: 1 trains by the ELBO, more by the tighter "
        "importance-weighted bound, at that many times the decoder's work; the losses shown are the ELBO's always",
        "sample count",
    ),
    Setting("likelihood", "bernoulli", "what a pixel is, given the latent vector", choices=LIKELIHOODS),
    Setting("variance", 0.01, "of a pixel, where pixels are Gaussian", "variance"),
    Setting("binarize", False, "draw fresh binary pixels in each epoch (grey pixels otherwise)", bool),
    Setting("seed", 0, "seed of weights, order and noise, a whole number", "seed"),
    Setting("name", None, "the run's folder under checkpoints/ (default: NETWORK-DATASET-NNN, the next free number)"),
    Setting("overwrite", False, "replace the run that --name names", bool),
    Setting("save_reconstructions", False, "keep the reconstructions of all training images, as bytes", bool),
    Setting("precision", "float32", "what the layers compute in; losses are float32 always", choices=PRECISIONS),
    Setting("tensorboard", False, "write TensorBoard logs into the run's folder as well", bool),
    Setting("deterministic", False, "use only deterministic operations (for a GPU; slower)", bool),
)


def complete(given: dict) -> dict:
    """Every setting of a run: what was given, and for the rest the defaults, the network's own among them."""
    own = NETWORKS[given.get("network", "standard")]._asdict()
    defaults = {setting.name: own.get(setting.name, setting.default) for setting in SETTINGS}
    return defaults | {name: given[name] for name in defaults if given.get(name) is not None}


def pixel_variance(settings: dict) -> float | None:
    """The variance of a Gaussian pixel; None where a pixel is Bernoulli."""
    return settings["variance"] if settings["likelihood"] == "gaussian" else None
