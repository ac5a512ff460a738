"""Let a classifier judge drawn digits: python benchmarks/samples.py --data FOLDER (MNIST's four files).

A small convolutional classifier is trained on the training images. It must recognise over 99% of the test images. Then
it judges sets of images:

- Fréchet distance: between the classifier's features (the layer before its output) of the set and of the test images
  (Heusel et al., 2017, with this classifier in place of Inception). It compares within this project only;
- sure: the share of the set for which the classifier gives one digit a probability above 90%;
- agrees: of the images that were drawn with --label, the share that it recognises as this digit.

Reconstructions of test images, from one posterior sample each, show how good this decoder can be.
"""

import contextlib
import math
import sys
import tempfile
from argparse import Namespace
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import generator
from vae import terminal
from vae.data import load
from vae.data.dataset import Dataset, to_pixels
from vae.terminal import UserError

SURE = 0.9  # the probability of a digit that the classifier is sure of


def main() -> None:
    """Data -> classifier -> sets of images -> tables."""
    options = parse()
    dataset = load.load(load.Source(None if options.data else "mnist", options.data))
    if dataset.train_labels is None or dataset.test_labels is None:
        raise UserError(f"--data {options.data}: without labels no classifier can be trained; name MNIST's files")
    classify = train_classifier(dataset, options.seed)
    reference, _ = classify(to_pixels(dataset.test_images))

    chosen = np.random.default_rng(options.seed).permutation(len(dataset.train_images))[: options.count]
    source = ["--data", options.data] if options.data else ["--dataset", "mnist"]
    pairs = draw(options, options.count, "--reconstruct", *source)  # each original, and its reconstruction
    sets = {
        "training images": to_pixels(dataset.train_images[chosen]),
        "reconstructions of test images": pairs[1::2],
        "drawn from the run's prior": draw(options, options.count),
    }
    print("\n| images | how many | Fréchet distance to the test images | sure |\n|---|---|---|---|")
    for name, images in sets.items():
        features, seen = classify(images)
        distance, sure = measure_frechet_distance(features, reference), np.mean(seen.max(axis=1) > SURE)
        print(f"| {name} | {len(images):,} | {distance:.2f} | {sure:.1%} |")

    count = math.ceil(options.count / 10)
    print(f"\n| {count:,} images of | classifier agrees |\n|---|---|")
    agreement = []
    for digit in range(10):
        _, seen = classify(draw(options, count, "--label", str(digit)))
        agreement.append(np.mean(seen.argmax(axis=1) == digit))
        print(f"| `--label {digit}` | {agreement[-1]:.1%} |", flush=True)
    print(f"| mean | {np.mean(agreement):.1%} |")


def parse() -> Namespace:
    """Read the command line."""
    parser = terminal.Parser("benchmarks/samples.py", description="Let a classifier judge drawn digits.")
    add, whole = parser.add_argument, terminal.positive_integer
    add("--data", metavar="PATH", help="MNIST: a folder of IDX files or an .npz (default: found or downloaded)")
    add("--checkpoint", metavar="DIR", help="the run to draw from (default: as generator.py)")
    add("--count", type=whole, default=10_000, metavar="N", help="images in a set (default: 10000)")
    add("--seed", type=terminal.seed, default=0, help="seed of the classifier and of the draws (default: 0)")
    return parser.parse_args()


def draw(options: Namespace, count: int, *flags: str) -> np.ndarray:
    """Return the images (n, 28, 28) that generator.py draws with these flags."""
    checkpoint = ["--checkpoint", options.checkpoint] if options.checkpoint else []
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(None):
        to = ["--arrays", f"{folder}/images.npz", "--output", f"{folder}/grid.png"]
        generator.main(["--count", str(count), "--seed", str(options.seed), *flags, *checkpoint, *to])
        with np.load(to[1]) as archive:
            return archive["images"]


def train_classifier(dataset: Dataset, seed: int) -> Callable:
    """Train a classifier. Return a function from images (n, 28, 28) to features (n, 128) and p(digit), (n, 10).

    Raises UserError where its accuracy on the test images is too low.
    """
    keras = terminal.import_keras()
    from keras import layers

    keras.utils.set_random_seed(seed)
    image = keras.Input((28, 28))
    h = layers.Reshape((28, 28, 1))(image)
    for filters in (32, 64):
        h = layers.Conv2D(filters, 3, activation="relu")(h)
        h = layers.MaxPooling2D()(h)  # (batch, 13, 13, 32), then (batch, 5, 5, 64)
    h = layers.Dropout(0.3)(layers.Flatten()(h))
    features = layers.Dense(128, activation="relu")(h)
    output = layers.Dense(10, activation="softmax")(layers.Dropout(0.3)(features))
    model = keras.Model(image, output)
    epochs, batch_size = 6, 128
    rate = keras.optimizers.schedules.CosineDecay(2e-3, epochs * len(dataset.train_images) // batch_size)
    model.compile(
        keras.optimizers.Adam(rate), "sparse_categorical_crossentropy", metrics=["accuracy"], jit_compile=False
    )
    model.fit(to_pixels(dataset.train_images), dataset.train_labels, batch_size=batch_size, epochs=epochs, verbose=0)
    accuracy = model.evaluate(to_pixels(dataset.test_images), dataset.test_labels, verbose=0)[1]
    print(f"The classifier recognises {accuracy:.2%} of the {len(dataset.test_images):,} test images.", flush=True)
    if accuracy < 0.99:
        raise UserError(f"{dataset.source}: the classifier is too bad to judge; name MNIST's files with --data")
    return partial(keras.Model(image, [features, output]).predict, batch_size=500, verbose=0)


def measure_frechet_distance(first: np.ndarray, second: np.ndarray) -> float:
    """Return the Fréchet distance between the Gaussians fitted to two sets of features (n, F) and (m, F).

    It is |mean1 - mean2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)). But for rounding, no eigenvalue of C1 C2 is negative.
    """
    means = np.sum((first.mean(axis=0) - second.mean(axis=0)) ** 2)
    covariances = np.cov(first.T.astype(np.float64)), np.cov(second.T.astype(np.float64))
    roots = np.sqrt(np.clip(np.linalg.eigvals(covariances[0] @ covariances[1]).real, 0, None))
    return float(means + np.trace(covariances[0]) + np.trace(covariances[1]) - 2 * roots.sum())


if __name__ == "__main__":
    terminal.run(main)
