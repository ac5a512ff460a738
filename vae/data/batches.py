"""The batches of an epoch, as `fit` takes them."""

import math

import keras
import numpy as np

from vae.data.dataset import Images, to_pixels
from vae.terminal import UserError


class Batches(keras.utils.PyDataset):
    """Images (n, H, W), bytes or floats in [0, 1], as float32 batches (batch, H, W) in [0, 1].

    A batch is a function of (seed, epoch, its number) alone: so are the order of the images (with `shuffle`) and the
    binary pixels (with `binarize`). A pixel is 1 with the probability of its grey value (Salakhutdinov & Murray, 2008).
    """

    def __init__(self, images: Images, batch_size: int, seed: int, *, shuffle: bool = False, binarize: bool = False):
        # One worker: tf.data queues the batches, and its tuning thread (TensorFlow 2.21) may sleep through an epoch's
        # end. Two workers: Keras (3.15) queues them; on other backends it would begin before `start` is called.
        super().__init__(workers=2 if keras.backend.backend() == "tensorflow" else 1)
        self._images = images
        self._batch_size = batch_size
        self._seed = seed
        self._shuffle = shuffle
        self._binarize = binarize
        self._devices, self._process, self._processes = 1, 0, 1
        self.start(epoch=0)

    def deal(self, devices: int, process: int, processes: int) -> None:
        """Make each item this process's share. The few images that cannot be dealt out evenly are left out."""
        if (least := min(map(len, self._parts))) < devices:
            raise UserError(f"--devices: a batch of {least} images cannot be dealt out to {devices}; use fewer devices")
        self._devices, self._process, self._processes = devices, process, processes

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

    def __getitem__(self, index: int) -> tuple[np.ndarray]:
        rows = self._parts[index]
        share = len(rows) // self._devices * self._devices // self._processes  # of this process; it reads no others
        mine = slice(self._process * share, (self._process + 1) * share)
        images = to_pixels(self._images[rows[mine]])
        if self._binarize:
            rng = np.random.default_rng([self._seed, self._epoch, 1 + index])
            uniform = rng.random((len(rows), *images.shape[1:]), np.float32)[mine]
            images = (uniform < images).astype(np.float32)
        return (images,)
