"""The batches of an epoch, as `fit` takes them."""

import math

import keras
import numpy as np

from vae.data.dataset import to_pixels


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
        """Return images (n, H, W) by their numbers, counted through all batches, as `chosen` orders them."""
        edges = np.cumsum([0, *map(len, self._parts)])
        batches = np.searchsorted(edges, chosen, side="right") - 1
        parts = [self.read(index, chosen[batches == index] - edges[index]) for index in np.unique(batches)]
        return np.concatenate(parts)[np.argsort(np.argsort(batches, kind="stable"))]

    def __getitem__(self, index: int) -> tuple[np.ndarray]:
        return (self.read(index, slice(None)),)

    def count(self, index: int) -> int:
        """Return the number of images in a batch."""
        return len(self._parts[index])

    def read(self, index: int, places: slice | np.ndarray) -> np.ndarray:
        """Return the images at these places of a batch; no others are read."""
        images = to_pixels(self._images[self._parts[index][places]])
        if self._binarize:
            rng = np.random.default_rng([self._seed, self._epoch, 1 + index])
            uniform = rng.random((self.count(index), *images.shape[1:]), np.float32)[places]
            images = (uniform < images).astype(np.float32)
        return images


class Share(keras.utils.PyDataset):
    """What this process gives to each batch that several devices compute together, as `fit` takes it.

    Each device gets as many images as the others. Where the number of images does not allow that, the last places are
    filled with the first images again. `fast.ParallelVAE` leaves these out, so the losses are those of one device. For
    that an item has two parts: images (share, H, W), and an empty array (0, n) for n images in the whole batch.
    """

    def __init__(self, batches: Batches):
        super().__init__()
        self._batches = batches
        distribution = keras.distribution.distribution()
        self._devices, self._processes = distribution.num_model_replicas, distribution.num_processes
        self._process = distribution.data_shard_id

    def __len__(self) -> int:
        return len(self._batches)

    def __getitem__(self, index: int) -> tuple[tuple[np.ndarray, np.ndarray]]:
        count = self._batches.count(index)
        share = math.ceil(count / self._devices) * self._devices // self._processes
        places = np.arange(self._process * share, (self._process + 1) * share) % count
        return ((self._batches.read(index, places), np.empty((0, count), np.float32)),)


def share(batches: Batches) -> Batches | Share:
    """Return what this process gives to batches: all, unless several devices compute them together."""
    return batches if keras.distribution.distribution() is None else Share(batches)
