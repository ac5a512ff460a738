"""Score drawn digits with a digit classifier: python benchmarks/samples.py --data FOLDER (MNIST; about 2 minutes).

A small convolutional classifier is trained on the training images (it must get over 99% of the test images right), and
sets of images are scored with it:

- Fréchet distance between the classifier's features (the layer before its output) of the set and of the test images
  (Heusel et al., 2017, with this classifier in the place of Inception: comparable only within this project);
- sure: the share of the set that the classifier gives one digit a probability above 90%;
- entropy of the classes that it sees in the set, in nats (ln 10 = 2.303 where all digits are drawn equally often);
- for each digit asked for, how often the classifier agrees.
"""

import argparse
import contextlib
import sys
import tempfile
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import generator
from vae import console, data, download


def main() -> None:
    """Data -> classifier -> sets of images -> a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="MNIST: a folder of IDX files or an .npz (default: found or downloaded)")
    parser.add_argument("--checkpoint", help="the run to draw from (default: as generator.py)")
    parser.add_argument("--count", type=int, default=10_000, help="images in a set (default: 10000)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the classifier and of the draws (default: 0)")
    options = parser.parse_args()
    dataset = data.load(*download.find(None if options.data else "mnist", options.data))
    features, probabilities = classifier(dataset, options.seed)
    reference = features(data.pixels(dataset.test_images))

    some = np.random.default_rng(options.seed).permutation(len(dataset.train_images))[: options.count]
    sets = {
        "training images": data.pixels(dataset.train_images[some]),
        "--sampler prior": draw(options, options.count, "--sampler", "prior"),
        "--sampler mixture": draw(options, options.count, "--sampler", "mixture"),
    }
    print(
        f"\n| {options.count:,} images of | Fréchet distance to the test images | sure | entropy |\n|---|---|---|---|"
    )
    for name, images in sets.items():
        seen = probabilities(images)
        sure = np.mean(seen.max(axis=1) > 0.9)
        print(f"| {name} | {frechet(features(images), reference):.2f} | {sure:.1%} | {entropy(seen):.3f} |")

    print("\n| 1,000 images of | classifier agrees |\n|---|---|")
    agreement = []
    for digit in range(10):
        seen = probabilities(draw(options, 1000, "--digit", str(digit)))
        agreement.append(np.mean(seen.argmax(axis=1) == digit))
        print(f"| --digit {digit} | {agreement[-1]:.1%} |")
    print(f"| mean | {np.mean(agreement):.1%} |")


def draw(options, count: int, *flags: str) -> np.ndarray:
    """Images (count, 28, 28) as `generator.py` draws them with these flags."""
    with tempfile.TemporaryDirectory() as folder:
        arrays = str(Path(folder) / "images.npz")
        where = ["--checkpoint", options.checkpoint] if options.checkpoint else []
        output = ["--arrays", arrays, "--output", str(Path(folder) / "grid.png"), "--seed", str(options.seed)]
        with contextlib.redirect_stdout(None):
            generator.main(["--count", str(count), *flags, *where, *output])
        return np.load(arrays)["images"]


def classifier(dataset: data.Dataset, seed: int):
    """Train a classifier; return functions from images (n, 28, 28) to features (n, 128) and probabilities (n, 10)."""
    keras = console.import_keras()
    from keras import layers

    keras.utils.set_random_seed(seed)
    image = keras.Input((28, 28))
    h = layers.Reshape((28, 28, 1))(image)
    for filters in (32, 64):
        h = layers.Conv2D(filters, 3, activation="relu")(h)
        h = layers.MaxPooling2D()(h)  # (batch, 13, 13, 32), then (batch, 5, 5, 64)
    h = layers.Dropout(0.3)(layers.Flatten()(h))
    feature = layers.Dense(128, activation="relu")(h)
    output = layers.Dense(10, activation="softmax")(layers.Dropout(0.3)(feature))
    model = keras.Model(image, output)
    steps = 6 * len(dataset.train_images) // 128
    rate = keras.optimizers.schedules.CosineDecay(2e-3, steps)
    loss = "sparse_categorical_crossentropy"
    model.compile(keras.optimizers.Adam(rate), loss, metrics=["accuracy"], jit_compile=False)
    model.fit(data.pixels(dataset.train_images), dataset.train_labels, batch_size=128, epochs=6, verbose=0)
    accuracy = model.evaluate(data.pixels(dataset.test_images), dataset.test_labels, verbose=0)[1]
    print(f"The classifier gets {accuracy:.2%} of the {len(dataset.test_images):,} test images right.")
    if accuracy < 0.99:
        sys.exit("That is too few to judge by; are these images MNIST's?")
    inner = keras.Model(image, feature)
    return (lambda x: inner.predict(x, 500, verbose=0)), (lambda x: model.predict(x, 500, verbose=0))


def frechet(first: np.ndarray, second: np.ndarray) -> float:
    """Fréchet distance between the Gaussians fitted to two sets of features (n, F) and (m, F).

    |mean1 - mean2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)); the eigenvalues of C1 C2 are those of a symmetric positive
    matrix and so real and not negative, but for rounding.
    """
    mean = np.sum((first.mean(axis=0) - second.mean(axis=0)) ** 2)
    covariances = np.cov(first.T.astype(np.float64)), np.cov(second.T.astype(np.float64))
    roots = np.sqrt(np.clip(np.linalg.eigvals(covariances[0] @ covariances[1]).real, 0, None))
    return float(mean + np.trace(covariances[0]) + np.trace(covariances[1]) - 2 * roots.sum())


def entropy(probabilities: np.ndarray) -> float:
    """Entropy of the mean class distribution of (n, 10), in nats."""
    shares = probabilities.mean(axis=0)
    return float(-np.sum(shares * np.log(shares)))


if __name__ == "__main__":
    main()
