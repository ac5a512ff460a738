"""Train a variational autoencoder on MNIST: python main.py (see python main.py --help)."""

import argparse
import importlib.util
import math
import os
import platform
import secrets
import sys
from pathlib import Path

import numpy as np

import results
import resume
from vae import checkpoint, console, data, download
from vae.console import shown
from vae.settings import NETWORKS, UserError, complete, pixel_variance

WARMUP = 0.01  # part of the training steps in which the learning rate rises
SHARD = 25  # images of a batch that are worth a core of their own


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
        "goes on with a larger --epochs, and may have other --importance-samples then (default: a new run)",
    )
    return vars(parser.parse_args(arguments))


def check(settings: dict, new: bool = True) -> None:
    """Turn away, before anything heavy is imported, what could not end well."""
    if new and settings["name"] is not None:
        checkpoint.check_name(settings["name"], settings["overwrite"])
    elif new and settings["overwrite"]:
        raise UserError("--overwrite: which run? Say so with --name")
    if settings["data"] and settings["dataset"]:
        raise UserError("--dataset: it contradicts --data; give one of the two")
    if settings["binarize"] and settings["likelihood"] == "gaussian":
        raise UserError("--binarize: binary pixels are not Gaussian; leave it, or --likelihood gaussian, out")
    if settings["importance_samples"] > 1 and settings["beta"] != 1:
        raise UserError("--beta: the bound of several --importance-samples has no KL term; leave one of the two out")
    if settings["tensorboard"] and importlib.util.find_spec("tensorboard") is None:
        raise UserError("--tensorboard: TensorBoard is not installed; pip install tensorboard")


def list_networks() -> None:
    """Print every network's name, number of parameters and line."""
    console.import_keras()
    import model

    for name, own in NETWORKS.items():
        parameters = sum(half.count_params() for half in model.build(name, own.hidden_dim, own.latent_dim))
        print(f"{name:{max(map(len, NETWORKS))}}  {parameters:>10,} parameters  {own.summary}")
        sizes = f"--hidden-dim {own.hidden_dim} --latent-dim {own.latent_dim}"
        pace = f"--epochs {own.epochs} --batch-size {own.batch_size} --learning-rate {own.learning_rate:g}"
        print(f"{'':{max(map(len, NETWORKS))}}  {pace} {sizes} --validation-split {own.validation_split:g}")


def main(arguments: list[str] | None = None) -> None:
    """Command line -> data -> model -> training -> files -> figures."""
    given = parse(arguments)
    if given.get("network") == "help":
        return list_networks()
    folder = checkpoint.to_resume(given["resume"]) if "resume" in given else None
    earlier = checkpoint.read_config(folder) if folder else None  # what the run that is resumed says of itself
    settings = resume.settings(given, earlier, folder) if earlier else complete(given)
    if earlier and earlier["finished"] and settings["epochs"] <= earlier["epochs_done"]:
        print(f"-> The run in {shown(folder)} is finished ({settings['epochs']} epochs): nothing is left to do.")
        print("-> A larger --epochs takes it further.")
        return
    check(settings, new=earlier is None)
    dataset, held_out = load(settings, earlier)
    steps = math.ceil(len(dataset.train_images) / settings["batch_size"]) * settings["epochs"]
    vae = make_model(settings, steps, shards(settings, smallest_batch(settings, dataset, held_out), earlier))
    config = record(settings, dataset, held_out, vae, earlier)
    if folder is None:
        stem = f"{settings['network']}-{dataset.name}"
        folder = checkpoint.create(settings["name"], stem, settings["overwrite"])
    with checkpoint.held(folder), resume.told(folder, config):
        show(settings, dataset, held_out, vae)
        rows = [] if earlier is None else resume.stand(vae, folder, earlier, config)
        if rows and not earlier["finished"]:  # of its last epoch, a kill may have left some files only
            keep(vae, folder, config, rows)
        elif not (folder / "config.json").exists():  # or it is that of a run to be overwritten, once an epoch is whole
            checkpoint.write_config(folder, config)
            results.draw_training_images(settings, dataset, folder)
        rows = train(vae, settings, dataset, held_out, config, folder, rows)
        results.keep_prior(vae, settings, dataset, folder)
        if settings["save_reconstructions"]:
            results.keep_reconstructions(vae, settings, dataset, folder)
        results.draw(vae, settings, dataset, rows, folder)
        losses = results.test(vae, settings, dataset, rows)
        ending = {"epochs_done": len(rows), "test": losses, "finished": checkpoint.finished_now()}
        checkpoint.write_config(folder, config | ending)

    print(f"-> Plot of loss curves is saved in {shown(folder / 'loss_curves.png')}")
    print(f"-> Model is saved in {shown(folder)}")
    print(
        f"-> Test: general loss {losses['general_loss']:.2f} = reconstruction {losses['reconstruction_loss']:.2f} + "
        f"KL {losses['kl_loss']:.2f} nats per image "
        f"({len(dataset.test_images):,} images of {dataset.name}, one posterior sample each)"
    )
    print(f"-> Draw digits from it: python generator.py --checkpoint {shown(folder)}")


def load(settings: dict, earlier: dict | None) -> tuple[data.Dataset, np.ndarray | None]:
    """Load the images: the data set, and those of its training images (n, 28, 28) that are held out, if any are."""
    if settings["data"]:
        settings["data"] = os.path.abspath(settings["data"])  # the run is restored from other folders, too
    if earlier is None:
        dataset = data.load(*download.find(settings["dataset"], settings["data"]))
    else:
        dataset = resume.dataset(settings, earlier)
    dataset, held_out = data.split(dataset, settings["validation_split"], settings["seed"])
    count = len(dataset.train_images)
    if settings["batch_size"] > count:
        rest = "" if held_out is None else f", as {len(held_out)} are held out"
        raise UserError(f"--batch-size {settings['batch_size']}: there are only {count} training images{rest}")
    if dataset.warning:
        print(f"\n{'!' * 80}\n{dataset.warning}\n{'!' * 80}\n", file=sys.stderr)
    return dataset, held_out


def smallest_batch(settings: dict, dataset: data.Dataset, held_out: np.ndarray | None) -> int:
    """The number of images in the smallest batch that the network will see, in training or afterwards."""
    test_images = dataset.test_images
    seen = [(dataset.train_images, settings["batch_size"]), (test_images, results.BATCH)]
    seen.append((test_images[: results.SAMPLE], results.SAMPLE))
    if settings["save_reconstructions"]:
        seen.append((dataset.train_images, results.BATCH))
    if held_out is not None:
        seen.append((held_out, results.BATCH))
    return min(len(images) % size or size for images, size in seen)


def shards(settings: dict, smallest: int, earlier: dict | None = None) -> int:
    """How many parts of a batch are computed side by side, one a core; in a run that is resumed, as many as before.

    Never more than the images in the smallest batch, as no part may be empty; and a GPU has all at once.
    """
    most = max(1, min(smallest, settings["batch_size"] // SHARD))
    if earlier is not None:
        return resume.shards(earlier, most)
    sharded = NETWORKS[settings["network"]].sharded and most > 1
    keras = import_keras(sharded)
    if not sharded or keras.backend.backend() != "tensorflow" or keras.distribution.list_devices("gpu"):
        return 1
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, most)


def import_keras(sharded: bool):
    """Import Keras, and return it; where each core has a shard to itself, an operation need not span two."""
    if sharded:
        os.environ.setdefault("TF_NUM_INTRAOP_THREADS", "1")
    return console.import_keras()


def make_model(settings: dict, steps: int, shards: int):
    """Import Keras, seed it, and return the compiled VAE that `settings` describe, to be trained for so many steps."""
    keras = import_keras(shards > 1)
    keras.utils.set_random_seed(settings["seed"])
    keras.config.set_dtype_policy(settings["precision"])
    if settings["deterministic"] and keras.backend.backend() == "tensorflow":
        import tensorflow

        tensorflow.config.experimental.enable_op_determinism()
    import model
    from vae import training

    encoder, decoder = model.build(settings["network"], settings["hidden_dim"], settings["latent_dim"])
    vae = model.VAE(
        encoder, decoder, settings["beta"], shards, pixel_variance(settings), settings["importance_samples"]
    )
    network = NETWORKS[settings["network"]]
    warmup = max(1, round(WARMUP * steps))
    rate = keras.optimizers.schedules.CosineDecay(
        0.0, max(1, steps - warmup), warmup_target=settings["learning_rate"], warmup_steps=warmup
    )
    optimizer = training.Adam(rate)
    if settings["precision"] == "mixed_float16":  # or small gradients would be zero
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
    steps_per_execution = network.images_per_execution // (settings["batch_size"] * vae.importance_samples)
    vae.compile(
        optimizer=optimizer,
        # XLA makes this network slower on a CPU, and keeps the LSTM from cuDNN on a GPU; JAX knows no other way.
        jit_compile=keras.backend.backend() == "jax",
        # PyTorch runs step by step, whatever is asked for, and Keras refuses to ask for more.
        steps_per_execution=1 if keras.backend.backend() == "torch" else max(1, steps_per_execution),
    )
    # The optimizer's variables are here before `fit` asks for them, or it would trace the training step twice.
    vae.optimizer.build(vae.trainable_variables)
    return vae


def show(settings: dict, dataset: data.Dataset, held_out, vae) -> None:
    """Print the banner with every setting, and the shape of every stage."""
    import keras

    lines = {
        "network": settings["network"],
        "dataset": f"{dataset.name} ({dataset.source}{'; mnist was not to be had' if dataset.warning else ''})",
        "train_images": len(dataset.train_images),
        "validation_images": 0 if held_out is None else len(held_out),
        "test_images": len(dataset.test_images),
        "batch_size": settings["batch_size"],
        "hidden_dim": settings["hidden_dim"],
        "latent_dim": settings["latent_dim"],
        "epoch_number": settings["epochs"],
        "learning_rate": settings["learning_rate"],
        "beta": settings["beta"],
        "importance_samples": settings["importance_samples"],
        "likelihood": settings["likelihood"] + ("" if vae.variance is None else f" (variance {vae.variance:g})"),
        "binarize": settings["binarize"],
        "precision": settings["precision"],
        "deterministic": settings["deterministic"],
        "seed": settings["seed"],
        "device": f"{', '.join(console.devices())} ({os.cpu_count()} cores, {keras.backend.backend()})",
        "parameters": vae.encoder.count_params() + vae.decoder.count_params(),
    }
    rule = "=" * 60
    print(rule)
    for name, value in lines.items():
        print(f"{name} =  {value}")
    print(rule)
    print("----- Encoder -----", *console.encoder_stages(vae.encoder), sep="\n")
    print("----- Decoder -----", *console.decoder_stages(vae.decoder), sep="\n")


def record(settings: dict, dataset: data.Dataset, held_out, vae, earlier: dict | None) -> dict:
    """Return what `config.json` says of a run that has just begun, or is resumed."""
    import keras

    backend = keras.backend.backend()
    versions = {"python": platform.python_version(), "keras": keras.__version__, "numpy": np.__version__}
    return {
        "settings": settings,
        "dataset": {
            "name": dataset.name,
            "sha256": dataset.sha256,
            "train_images": len(dataset.train_images),
            "validation_images": 0 if held_out is None else len(held_out),
            "test_images": len(dataset.test_images),
            "warning": dataset.warning,
        },
        "taken_further": resume.taken_further(earlier),
        "run": (earlier or {}).get("run") or secrets.token_hex(8),  # which run the training state is of
        "shards": vae.shards,
        "backend": backend,
        "versions": versions | {backend: importlib.import_module(backend).__version__},
        "parameters": vae.encoder.count_params() + vae.decoder.count_params(),
        "epochs_done": 0,
        "finished": None,
    }


def train(
    vae, settings: dict, dataset: data.Dataset, held_out, config: dict, folder: Path, rows: list[dict]
) -> list[dict]:
    """Fit the model from the epoch after `rows` on, keeping it in `folder` after every epoch; return all the rows.

    After each epoch it is judged on the images (n, 28, 28) that were held out, or on the test images if none were.
    """
    import keras

    from vae.training import Batches, EpochLog, judged_on

    if len(rows) >= settings["epochs"]:
        return rows

    seed, binarize = settings["seed"], settings["binarize"]
    batches = Batches(dataset.train_images, settings["batch_size"], seed, shuffle=True, binarize=binarize)

    def keep_epoch(rows: list[dict]) -> None:
        keep(vae, folder, config, rows)
        if len(rows) == 1:  # until now, those of a run that is overwritten may have stood there
            results.draw_training_images(settings, dataset, folder)

    heed = keras.callbacks.LambdaCallback(on_train_batch_end=lambda batch, logs: console.heed_signals())
    log = EpochLog(batches, seed, keep_epoch, rows, judged_on(settings))
    boards = [keras.callbacks.TensorBoard(str(folder / "tensorboard"))] if settings["tensorboard"] else []
    print("-> Training is started.", flush=True)
    vae.fit(
        batches,
        epochs=settings["epochs"],
        initial_epoch=len(rows),
        validation_data=results.batches(dataset.test_images if held_out is None else held_out, settings),
        callbacks=[heed, log, *boards],
        shuffle=False,  # Keras would shuffle the batches, by Python's own generator
        verbose=0,
    )
    return log.rows


def keep(vae, folder: Path, config: dict, rows: list[dict]) -> None:
    """Keep the run as it stands after the epochs of these rows."""
    from vae import training

    state = training.state(vae, rows, config["run"])
    checkpoint.write_epoch(folder, vae.encoder, vae.decoder, rows, config | {"epochs_done": len(rows)}, state)


if __name__ == "__main__":
    console.run(main)
