"""Train a variational autoencoder on MNIST: python main.py (see python main.py --help)."""

import argparse
import importlib.util
import math
import os
import platform
import secrets
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from vae import checkpoint, console, data, download
from vae.settings import NETWORKS, SETTINGS, UserError, complete

SAMPLE = 40  # test images in reconstructions.png
TEST_BATCH = 1000  # images
WARMUP = 0.01  # part of the training steps in which the learning rate rises
SHARD = 25  # images of a batch that are worth a core of their own
IMAGES_PER_EXECUTION = 2000  # images between two looks at the keyboard: under a second on a laptop


def parse(arguments: list[str] | None = None) -> dict:
    """Read the command line: what was said of the run's settings, by name, and `resume` where that was asked for."""
    parser = console.SettingsParser("Train a variational autoencoder on MNIST; the run is kept in checkpoints/.")
    parser.add_argument(
        "--resume",
        nargs="?",
        const="",
        default=argparse.SUPPRESS,
        metavar="DIR",
        help="go on with the run in DIR, or with the newest unfinished one, from its last whole epoch; a finished run "
        "goes on with a larger --epochs (default: a new run)",
    )
    return vars(parser.parse_args(arguments))


def check(settings: dict) -> None:
    """Turn away, before anything heavy is imported, what could not end well."""
    if settings["name"] is not None:
        checkpoint.check_name(settings["name"], settings["overwrite"])
    elif settings["overwrite"]:
        raise UserError("--overwrite: which run? Say so with --name")


def agreed(given: dict, config: dict, folder: Path) -> dict:
    """The settings of the run that is resumed; UserError where the command line, or its own config, contradicts them.

    Two things may be said anew: where its images are now, and a larger number of epochs once it is finished.
    """
    for setting in SETTINGS:
        if not setting.fits(value := config["settings"].get(setting.name, setting.default), console.KINDS):
            raise UserError(
                f"{folder / 'config.json'}: {setting.name} cannot be {value!r:.50}; choose another run to resume"
            )
    own = complete(config["settings"])
    for name, value in given.items():
        longer = name == "epochs" and config["finished"] and value > own["epochs"]
        if name in own and value != own[name] and not longer and name not in ("data", "dataset"):
            run = f"the run in {shown(folder)} has {own[name]}"
            raise UserError(f"{console.flag(name)} {value}: {run}; leave it out, or start a new run")
    if "data" in given or "dataset" in given:
        own |= {"data": given.get("data"), "dataset": given.get("dataset")}
    return own | {"epochs": given.get("epochs", own["epochs"])}


def main(arguments: list[str] | None = None) -> None:
    """Command line -> data -> model -> training -> files -> figures."""
    given = parse(arguments)
    folder, earlier = None, None  # of the run that is resumed
    if "resume" in given:
        folder = checkpoint.to_resume(given["resume"])
        earlier = checkpoint.read_config(folder)
        settings = agreed(given, earlier, folder)
        if earlier["finished"] and settings["epochs"] <= earlier["epochs_done"]:
            print(f"-> The run in {shown(folder)} is finished ({settings['epochs']} epochs): nothing is left to do.")
            print("-> A larger --epochs takes it further.")
            return
    else:
        settings = complete(given)
        check(settings)
    if settings["data"] and settings["dataset"]:
        raise UserError("--dataset: it contradicts --data; give one of the two")
    if settings["tensorboard"] and importlib.util.find_spec("tensorboard") is None:
        raise UserError("--tensorboard: TensorBoard is not installed; pip install tensorboard")
    dataset = load(settings, earlier)
    if settings["batch_size"] > len(dataset.train_images):
        raise UserError(
            f"--batch-size {settings['batch_size']}: there are only {len(dataset.train_images)} training images"
        )
    if dataset.warning:
        print(f"\n{'!' * 80}\n{dataset.warning}\n{'!' * 80}\n", file=sys.stderr)

    steps = math.ceil(len(dataset.train_images) / settings["batch_size"]) * settings["epochs"]
    smallest = min(
        len(dataset.train_images) % settings["batch_size"] or settings["batch_size"],
        len(dataset.test_images) % TEST_BATCH or TEST_BATCH,
    )
    vae = make_model(settings, steps, shards(settings, smallest, earlier))
    config = record(settings, dataset, vae, earlier)
    if folder is None:
        stem = f"{settings['network']}-{dataset.name}"
        folder = checkpoint.create(settings["name"], stem, settings["overwrite"])
    with checkpoint.held(folder), resumable(folder, config):
        show(settings, dataset, vae)
        rows = stand(vae, folder, earlier, config)
        if rows and not earlier["finished"]:  # of its last epoch, a kill may have left some files only
            keep(vae, folder, config, rows)
        rows = train(vae, settings, dataset, config, folder, rows)
        keep_prior(vae, settings, dataset, folder)
        draw(vae, settings, dataset, rows, folder)
        checkpoint.write_config(folder, config | {"epochs_done": len(rows), "finished": checkpoint.finished_now()})

    print(f"-> Plot of loss curves is saved in {shown(folder / 'loss_curves.png')}")
    print(f"-> Model is saved in {shown(folder)}")
    general, reconstruction, kl = (rows[-1][f"test_{name}_loss"] for name in ("general", "reconstruction", "kl"))
    print(
        f"-> Test: general loss {general:.2f} = reconstruction {reconstruction:.2f} + KL {kl:.2f} nats per image "
        f"({len(dataset.test_images):,} images of {dataset.name}, one posterior sample each)"
    )
    print(f"-> Draw digits from it: python generator.py --checkpoint {shown(folder)}")


def load(settings: dict, earlier: dict | None) -> data.Dataset:
    """Load the images; for a run that is resumed, those that it was begun with, and no others."""
    if settings["data"]:
        settings["data"] = os.path.abspath(settings["data"])  # the run is restored from other folders, too
    if earlier is None:
        return data.load(*download.find(settings["dataset"], settings["data"]))
    dataset = data.load(*download.find_for_run(settings["dataset"], settings["data"], earlier))
    if dataset.sha256 != earlier["dataset"]["sha256"]:
        raise UserError(
            f"--resume: {dataset.source} holds other images than the run was begun with; say with --data where they are"
        )
    warning = earlier["dataset"].get("warning")  # that digits stood in for MNIST stays true
    return dataset._replace(warning=warning if isinstance(warning, str) else None)


@contextmanager
def resumable(folder: Path, config: dict) -> Iterator[None]:
    """Let whoever interrupts the run know how to go on with it."""
    try:
        yield
    except KeyboardInterrupt as stop:
        kept = checkpoint.read_config(folder)
        if kept.get("run") == config["run"]:
            further = f" --epochs {config['settings']['epochs']}" if kept["finished"] else ""
            stop.add_note(f"go on with: python main.py --resume {shlex.quote(shown(folder))}{further}")
        else:
            stop.add_note(
                f"nothing of it is kept yet, and {shown(folder)} still has the run that was to be overwritten"
            )
        raise


def stand(vae, folder: Path, earlier: dict | None, config: dict) -> list[dict]:
    """Bring the model to where the run stands, and return the rows of its epochs; a new run has none."""
    from vae import training

    if earlier is None:
        if not (folder / "config.json").exists():  # or it is that of a run to be overwritten, once an epoch is whole
            checkpoint.write_config(folder, config)
        return []
    if earlier.get("backend") != config["backend"]:
        raise UserError(f"{folder} was begun with KERAS_BACKEND={earlier.get('backend')!r:.50}; set it to go on")
    for name, version in config["versions"].items():
        if (before := earlier["versions"].get(name)) != version:
            print(f"-> Begun with {name} {before}, now {version}: the last digits may differ.", file=sys.stderr)
    arrays = checkpoint.read_state(folder)
    if arrays is None and earlier["epochs_done"]:
        raise UserError(f"{folder} has no training_state.npz, so it cannot be taken further; start a new run")
    rows = training.restore(vae, arrays, config["run"]) if arrays else []
    print(f"-> Training is resumed after epoch {len(rows)} of {config['settings']['epochs']} in {shown(folder)}.")
    return rows


def shards(settings: dict, smallest: int, earlier: dict | None = None) -> int:
    """How many parts of a batch are computed side by side, one a core; in a run that is resumed, as many as before.

    Never more than the images in the smallest batch, as no part may be empty; and a GPU has all at once.
    """
    smallest = max(1, min(smallest, settings["batch_size"] // SHARD))
    if earlier is not None:
        count = earlier.get("shards")
        if not isinstance(count, int) or not 1 <= count <= smallest:
            raise UserError(f"config.json: shards cannot be {count!r:.50}; choose another run to resume")
        return count
    keras = import_keras(settings)
    if not NETWORKS[settings["network"]].sharded or keras.backend.backend() != "tensorflow":
        return 1
    if keras.distribution.list_devices("gpu"):
        return 1
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, smallest)


def import_keras(settings: dict):
    """Import Keras for training with these settings, and return it."""
    if NETWORKS[settings["network"]].sharded and settings["batch_size"] >= 2 * SHARD:
        # Then each core has a shard to itself, and an operation need not span two.
        os.environ.setdefault("TF_NUM_INTRAOP_THREADS", "1")
    return console.import_keras()


def make_model(settings: dict, steps: int, shards: int):
    """Import Keras, seed it, and return the compiled VAE that `settings` describe, to be trained for so many steps."""
    keras = import_keras(settings)
    keras.utils.set_random_seed(settings["seed"])
    keras.config.set_dtype_policy(settings["precision"])
    if settings["deterministic"] and keras.backend.backend() == "tensorflow":
        import tensorflow

        tensorflow.config.experimental.enable_op_determinism()
    import model
    from vae import training

    encoder, decoder = model.build(settings["network"], settings["hidden_dim"], settings["latent_dim"])
    vae = model.VAE(encoder, decoder, settings["beta"], shards)
    warmup = max(1, round(WARMUP * steps))
    rate = keras.optimizers.schedules.CosineDecay(
        0.0, max(1, steps - warmup), warmup_target=settings["learning_rate"], warmup_steps=warmup
    )
    vae.compile(
        optimizer=training.Adam(rate),
        # XLA makes this network slower on a CPU, and keeps the LSTM from cuDNN on a GPU; JAX knows no other way.
        jit_compile=keras.backend.backend() == "jax",
        steps_per_execution=max(1, IMAGES_PER_EXECUTION // settings["batch_size"]),
    )
    return vae


def show(settings: dict, dataset: data.Dataset, vae) -> None:
    """Print the banner with every setting, and the shape of every stage."""
    import keras

    import model

    lines = {
        "network": settings["network"],
        "dataset": f"{dataset.name} ({dataset.source}{'; mnist was not to be had' if dataset.warning else ''})",
        "train_images": len(dataset.train_images),
        "test_images": len(dataset.test_images),
        "batch_size": settings["batch_size"],
        "hidden_dim": settings["hidden_dim"],
        "latent_dim": settings["latent_dim"],
        "epoch_number": settings["epochs"],
        "learning_rate": settings["learning_rate"],
        "beta": settings["beta"],
        "binarize": settings["binarize"],
        "precision": settings["precision"],
        "deterministic": settings["deterministic"],
        "seed": settings["seed"],
        "device": f"{', '.join(keras.distribution.list_devices())} ({os.cpu_count()} cores, {keras.backend.backend()})",
        "parameters": vae.encoder.count_params() + vae.decoder.count_params(),
    }
    rule = "=" * 60
    print(rule)
    for name, value in lines.items():
        print(f"{name} =  {value}")
    print(rule)
    print("----- Encoder -----", *model.encoder_stages(vae.encoder), sep="\n")
    print("----- Decoder -----", *model.decoder_stages(vae.decoder), sep="\n")


def record(settings: dict, dataset: data.Dataset, vae, earlier: dict | None) -> dict:
    """Return what `config.json` says of a run that has just begun, or is resumed."""
    import keras
    import numpy

    backend = keras.backend.backend()
    versions = {"python": platform.python_version(), "keras": keras.__version__, "numpy": numpy.__version__}
    return {
        "settings": settings,
        "dataset": {
            "name": dataset.name,
            "sha256": dataset.sha256,
            "train_images": len(dataset.train_images),
            "test_images": len(dataset.test_images),
            "warning": dataset.warning,
        },
        "run": (earlier or {}).get("run") or secrets.token_hex(8),  # which run the training state is of
        "shards": vae.shards,
        "backend": backend,
        "versions": versions | {backend: importlib.import_module(backend).__version__},
        "parameters": vae.encoder.count_params() + vae.decoder.count_params(),
        "epochs_done": 0,
        "finished": None,
    }


def train(vae, settings: dict, dataset: data.Dataset, config: dict, folder: Path, rows: list[dict]) -> list[dict]:
    """Fit the model from the epoch after `rows` on, keeping it in `folder` after every epoch; return all the rows."""
    import keras

    from vae.training import Batches, EpochLog

    if len(rows) >= settings["epochs"]:
        return rows

    seed, binarize = settings["seed"], settings["binarize"]
    batches = Batches(dataset.train_images, settings["batch_size"], seed, shuffle=True, binarize=binarize)
    log = EpochLog(batches, seed, partial(keep, vae, folder, config), rows)
    boards = [keras.callbacks.TensorBoard(str(folder / "tensorboard"))] if settings["tensorboard"] else []
    print("-> Training is started.", flush=True)
    vae.fit(
        batches,
        epochs=settings["epochs"],
        initial_epoch=len(rows),
        validation_data=Batches(dataset.test_images, TEST_BATCH, seed, binarize=binarize),
        callbacks=[log, *boards],
        shuffle=False,  # Keras would shuffle the batches, by Python's own generator
        verbose=0,
    )
    return log.rows


def keep(vae, folder: Path, config: dict, rows: list[dict]) -> None:
    """Keep the run as it stands after the epochs of these rows."""
    from vae import training

    state = training.state(vae, rows, config["run"])
    checkpoint.write_epoch(folder, vae.encoder, vae.decoder, rows, config | {"epochs_done": len(rows)}, state)


def keep_prior(vae, settings: dict, dataset: data.Dataset, folder: Path) -> None:
    """Fit a mixture to posterior samples of the training images, for generator.py to draw from, and keep it."""
    import numpy as np

    from vae import latent
    from vae.training import Batches

    print("-> A mixture is fitted to the latent codes.", flush=True)
    batches = Batches(dataset.train_images, 1000, settings["seed"], binarize=settings["binarize"])
    mean, log_var = vae.encoder.predict(batches, verbose=0)
    noise = np.random.default_rng(settings["seed"]).standard_normal(mean.shape, np.float32)
    mixture = latent.fit(mean + np.exp(log_var / 2) * noise, dataset.train_labels, settings["seed"])
    checkpoint.write_prior(folder, mixture._asdict() | {"activity": mean.var(axis=0)})


def draw(vae, settings: dict, dataset: data.Dataset, rows: list[dict], folder: Path) -> None:
    """Write the run's figures."""
    import keras

    from vae import plots
    from vae.training import Batches

    vae.reseed(settings["seed"], settings["epochs"])
    title = f"{settings['network']} on {dataset.name}" + (
        ", because MNIST was not to be had" if dataset.warning else ""
    )
    with checkpoint.replacing(folder / "loss_curves.png") as path:
        plots.loss_curves(rows, title).savefig(path, dpi=120, bbox_inches="tight")
    (images,) = Batches(dataset.test_images[:SAMPLE], SAMPLE, settings["seed"], binarize=settings["binarize"])[0]
    logits, _, _ = vae(images)
    pixels = keras.ops.convert_to_numpy(keras.ops.sigmoid(logits))
    with checkpoint.replacing(folder / "reconstructions.png") as path:
        plots.reconstructions(images, pixels, f"{title}: test images").savefig(path, dpi=120, bbox_inches="tight")


def shown(path: Path) -> str:
    """A path as one would type it from here."""
    try:
        relative = os.path.relpath(path)
    except ValueError:  # on Windows, from one drive to another
        return str(path)
    return str(path) if relative.startswith("..") else relative


if __name__ == "__main__":
    console.run(main)
