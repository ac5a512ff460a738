"""What is made of a trained network: its mixture, the images it reconstructs, its test losses, its figures."""

import zipfile
from pathlib import Path

import numpy as np

from vae import checkpoint, data
from vae.console import shown

BATCH = 1000  # images that are judged, encoded or reconstructed at once
SAMPLE = 40  # test images in reconstructions.png


def batches(images: np.ndarray, settings: dict):
    """The images (n, 28, 28) in their own order, in batches as the network sees them: grey or binary."""
    from vae.training import Batches

    return Batches(images, BATCH, settings["seed"], binarize=settings["binarize"])


def keep_prior(vae, settings: dict, dataset: data.Dataset, folder: Path) -> None:
    """Fit a mixture to posterior samples of the training images, for generator.py to draw from, and keep it."""
    from vae import latent

    print("-> A mixture is fitted to the latent codes.", flush=True)
    mean, log_var = vae.encoder.predict(batches(dataset.train_images, settings), verbose=0)
    noise = np.random.default_rng(settings["seed"]).standard_normal(mean.shape, np.float32)
    mixture = latent.fit(mean + np.exp(log_var / 2) * noise, dataset.train_labels, settings["seed"])
    checkpoint.write_prior(folder, mixture._asdict() | {"activity": mean.var(axis=0)})


def keep_reconstructions(vae, settings: dict, dataset: data.Dataset, folder: Path) -> None:
    """Keep the reconstruction of every training image, from one posterior sample, in the images' own order."""
    vae.reseed(settings["seed"], settings["epochs"])
    seen = batches(dataset.train_images, settings)
    count = len(dataset.train_images)
    with (
        checkpoint.replacing(folder / checkpoint.RECONSTRUCTIONS) as path,
        checkpoint.images_file(path, count, "|u1", zipfile.ZIP_DEFLATED) as add,
    ):
        for (images,) in map(seen.__getitem__, range(len(seen))):
            add((255 * reconstructed(vae, images)).round())
    print(f"-> {count:,} reconstructions are saved in {shown(folder / checkpoint.RECONSTRUCTIONS)}")


def reconstructed(vae, images):
    """Images (n, 28, 28) as the decoder draws them from one posterior sample each."""
    import keras

    logits, *_ = vae.predict_on_batch(images)
    return keras.ops.convert_to_numpy(keras.ops.sigmoid(logits))


def test(vae, settings: dict, dataset: data.Dataset, rows: list[dict]) -> dict:
    """The three losses on the test images: the last epoch's, or measured now where that looked at others."""
    from vae.training import LOSSES

    if "test_general_loss" in rows[-1]:
        return {name: rows[-1]["test_" + name] for name in LOSSES}
    vae.reseed(settings["seed"], settings["epochs"])
    losses = vae.evaluate(batches(dataset.test_images, settings), verbose=0, return_dict=True)
    return {name: round(float(losses[name]), 4) for name in LOSSES}


def draw_training_images(settings: dict, dataset: data.Dataset, folder: Path) -> None:
    """Draw a hundred of the images that the network learns from."""
    from vae import plots

    images = dataset.train_images
    chosen = np.random.default_rng(settings["seed"]).permutation(len(images))[:100]
    batch = batches(images[chosen], settings)[0]
    with checkpoint.replacing(folder / "training_images.png") as path:
        plots.write_png(plots.tile(batch, len(chosen), 10), path)


def draw(vae, settings: dict, dataset: data.Dataset, rows: list[dict], folder: Path) -> None:
    """Write the run's figures."""
    from vae import plots

    vae.reseed(settings["seed"], settings["epochs"])
    title = f"{settings['network']} on {dataset.name}" + (
        ", because MNIST was not to be had" if dataset.warning else ""
    )
    with checkpoint.replacing(folder / "loss_curves.png") as path:
        plots.loss_curves(rows, title).savefig(path, dpi=120, bbox_inches="tight")
    (images,) = batches(dataset.test_images[:SAMPLE], settings)[0]
    figure = plots.reconstructions(images, reconstructed(vae, images), f"{title}: test images")
    with checkpoint.replacing(folder / "reconstructions.png") as path:
        figure.savefig(path, dpi=120, bbox_inches="tight")
