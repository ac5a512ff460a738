"""Runs of a VAE as small as can be. Nothing is trained: an epoch adds 1 to every variable."""

import json
from pathlib import Path

import numpy as np

from vae import files
from vae.data.dataset import Dataset
from vae.run import Run, list_variables

IMAGES = np.random.default_rng(0).integers(0, 256, (30, 8, 8), np.uint8)
DATASET = Dataset("tiny", IMAGES, None, None, IMAGES[:5], None, sha256="0" * 64, source="memory")
LOSSES = [3.0, 2.0, 1.0, 3.5, 2.25, 1.25]
FRAME = np.arange(12, dtype=np.uint8).reshape(3, 4)


def build_vae(components: int | None = 2):
    """Build a VAE of images of 8 x 8 with two latent dimensions, whose variables are all 0."""
    import keras
    from keras import layers

    import model

    image, z = keras.Input((8, 8)), keras.Input((2,))
    encoder = model.end_encoder(image, layers.Flatten()(image), 2)
    decoder = model.end_decoder(z, layers.Dense(64, name="dense")(z), (8, 8))
    vae = model.VAE((encoder, decoder), model.MixturePrior(components, 2) if components else model.NormalPrior())
    vae.compile(keras.optimizers.Adam(0.0))
    vae.optimizer.build(vae.trainable_variables)
    for variable in list_variables(vae):
        variable.assign(0 * variable)
    return vae


def train_epoch(run: Run, vae) -> None:
    for variable in list_variables(vae):
        variable.assign(variable + 1)
    run.save_epoch(vae, [*LOSSES, 0.5, len(run.rows) + 1.0], FRAME + len(run.rows))


def train(run: Run) -> Path:
    """Train a run to its end, and return its folder."""
    vae = build_vae()
    with run.begin(vae, DATASET):
        while len(run.rows) < run.settings.epochs:
            train_epoch(run, vae)
        run.save_prior(run.load_prior())
        run.record_end({"general_loss": 3.5, "reconstruction_loss": 2.25, "kl_loss": 1.25}, np.array([0.5, 0.25]))
    return run.folder


def new(**settings) -> Run:
    return Run.new({"epochs": 2, "seed": 3, "latent_dim": 2} | settings)


def epochs_in(folder: Path) -> list[float]:
    """Return how many epochs the state, the decoder, the encoder, the prior, the history and the config have seen."""
    state = files.read_arrays(folder / "training_state.npz", "")
    halves = [Run.find(str(folder)).load_decoder(), Run.find(str(folder)).load_encoder()]
    return [
        *(float(state[name].max()) for name in state if name.startswith("variable")),
        len(state["frames"]),
        *(float(half.get_weights()[0].max()) for half in halves),
        float(files.read_arrays(folder / "prior.npz", "")["means"][0, 0]),
        len((folder / "history.csv").read_text().splitlines()) - 1,
        json.loads((folder / "config.json").read_text())["epochs_done"],
    ]


def write_config(folder: Path, **changes) -> Path:
    """Change config.json by hand. Where there is none, it is that of a run that has just begun."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "config.json"
    begun = {"settings": {}, "dataset": {"sha256": "0"}, "epochs_done": 0, "finished": None}
    config = json.loads(path.read_text()) if path.exists() else begun
    path.write_text(json.dumps(config | changes))
    return folder
