"""The batches of an epoch, as `fit` takes them."""

import math

import keras
import numpy as np

from vae.data import to_pixels


class Batches(keras.utils.PyDataset):
    """Images (n, H, W), bytes or floats in [0, 1], as float32 batches (batch, H, W) in [0, 1].

    A batch is a function of (seed, epoch, its number) alone: so are the order of the images (with `shuffle`) and the
    binary pixels (with `binarize`). A pixel is 1 with the probability of its grey value (Salakhutdinov & Murray, 2008).
    No batch is more than one image larger than another.
    """

    def __init__(
        self, images: np.ndarray, batch_size: int, seed: int, *, shuffle: bool = False, binarize: bool = False
    ):
        # With one worker, Keras leaves the queue to tf.data, whose tuning thread (TensorFlow 2.21) sometimes sleeps
        # through the end of an epoch; with two, Keras queues the batches itself. On other backends Keras (3.15) would
        # then queue the first batches before `start` has named the epoch.
        super().__init__(workers=2 if keras.backend.backend() == "tensorflow" else 1)
        self._images = images
        self._batch_size = batch_size
        self._seed = seed
        self._shuffle = shuffle
        self._binarize = binarize
        self.start(epoch=0)

    def start(self, epoch: int) -> None:
        """Switch to the batches of this epoch."""
        count = len(self._images)
        self._epoch = epoch
        order = np.arange(count)
        if self._shuffle:
            order = np.random.default_rng([self._seed, epoch]).permutation(count)
        self._parts = np.array_split(order, len(self))

    def __len__(self) -> int:
        return math.ceil(len(self._images) / self._batch_size)

    def take(self, chosen: np.ndarray) -> np.ndarray:
        """Return the images with these numbers in the order of the batches, each once: (n, H, W)."""
        edges = np.cumsum([0, *map(len, self._parts)])
        images = [self[index][0][np.isin(np.arange(*edges[index : index + 2]), chosen)] for index in range(len(self))]
        return np.concatenate(images)[np.argsort(np.argsort(chosen))]

    def __getitem__(self, index: int) -> tuple[np.ndarray]:
        batch = to_pixels(self._images[self._parts[index]])
        if self._binarize:
            uniform = np.random.default_rng([self._seed, self._epoch, 1 + index]).random(batch.shape, np.float32)
            batch = (uniform < batch).astype(np.float32)
        return (batch,)
