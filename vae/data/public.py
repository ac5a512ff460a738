"""The public sets: MNIST and Fashion-MNIST, found in a cache or downloaded, and the digits embedded in scikit-learn."""

import hashlib
import os
import sys
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np

from vae.data.readers import MNIST
from vae.terminal import UserError, as_path

PATIENCE = 6.0  # seconds in which a mirror must answer
FILES = tuple(f"{name}.gz" for name in MNIST)
CHECKSUMS = {  # in the order of FILES
    "mnist": (
        "sha256:440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
        "sha256:3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
        "sha256:8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
        "sha256:f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
    ),
    "fashion-mnist": (
        "md5:8d4fb7e6c68d591d4c3dfef9ec88bf0d",
        "md5:25c81989df183df01b3e8a0aad5dffbe",
        "md5:bef4ecab320f06d8554ea6380940ec79",
        "md5:bb300cfdad3c16e7a12a480ee83cd310",
    ),
}
KERAS_NPZ = {"mnist": "sha256:731c5ac602752760c8e48fbffcf8c3b850d9dc2a2aedcf2cc48468fc17b673d1"}  # Keras's own copy
MIRRORS = {
    "mnist": (
        "https://storage.googleapis.com/cvdf-datasets/mnist/",
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
    ),
    "fashion-mnist": (
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
        "https://storage.googleapis.com/tensorflow/tf-keras-datasets/",
    ),
}


def find(name: str) -> tuple[Path, str]:
    """Find a public data set in this project's cache or in Keras's, or download it: its path, and its source in words.

    Raises UserError where it is in neither cache and no mirror has it.
    """
    import pooch

    cache = as_path(os.environ.get("VAE_CACHE") or pooch.os_cache("lstm-vae")) / name
    keras_cache = as_path(os.environ.get("KERAS_HOME") or "~/.keras") / "datasets"
    for folder in (cache, keras_cache / name):
        if not _find_missing(name, folder):
            return folder, f"cache {folder}"
    npz = keras_cache / f"{name}.npz"  # Keras writes in place: this file may be incomplete
    if name in KERAS_NPZ and _is_intact(npz, KERAS_NPZ[name]):
        return npz, f"cache {npz}"
    return cache, f"downloaded from {_download(name, cache)}"


def _find_missing(name: str, folder: Path) -> dict[str, str]:
    """The files, each with its checksum, that the folder lacks or has with other content."""
    checksums = zip(FILES, CHECKSUMS[name], strict=True)
    return {file: checksum for file, checksum in checksums if not _is_intact(folder / file, checksum)}


def _is_intact(path: Path, checksum: str) -> bool:
    algorithm, expected = checksum.split(":")
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, algorithm).hexdigest() == expected
    except OSError:
        return False


def _download(name: str, folder: Path) -> str:
    """Download the missing files from the first mirror that has them all; return its host."""
    import pooch

    pooch.get_logger().setLevel("ERROR")
    headers = {"Accept-Encoding": "identity"}  # otherwise a server may send the file unpacked
    stream = pooch.HTTPDownloader(timeout=PATIENCE, headers=headers, progressbar=sys.stderr.isatty())
    failures = []
    for mirror in MIRRORS[name]:
        host = urlsplit(mirror).netloc
        print(f"-> Downloading {name} from {host}", file=sys.stderr)
        try:
            for file, checksum in _find_missing(name, folder).items():
                pooch.retrieve(mirror + file, checksum, file, folder, downloader=stream)
            return host
        except (OSError, ValueError) as error:  # a ValueError is a wrong checksum
            reason = "another file" if isinstance(error, ValueError) else type(error).__name__
            failures.append(f"{host}: {reason}")
    what = f"it is neither in the cache {folder} nor on a mirror ({'; '.join(failures)})"
    remedy = "check the network, use --data FOLDER, or move the cache by the environment variable VAE_CACHE"
    raise UserError(f"{name.upper()} is unavailable: {what}; {remedy}")


def load_digits() -> dict[str, np.ndarray]:
    """The 1,797 real digits in scikit-learn, 1,500 of them to train on, scaled smoothly to the look of MNIST."""
    from sklearn import datasets

    small, labels = datasets.load_digits(return_X_y=True)
    # Bilinear interpolation as a matrix. The 8 pixels fill the middle 20 of 28, where MNIST has its digits, and fade
    # into black around them. Row i of the large image has its centre at position[i] of the small one.
    position = (np.arange(28) - 13.5) * 8 / 20 + 3.5
    weights = np.maximum(0, 1 - np.abs(position[:, None] - np.arange(8)))  # (28, 8)
    large = weights @ small.reshape(-1, 8, 8) @ weights.T  # (1797, 28, 28)
    images, labels = np.rint(large * (255 / 16)).astype(np.uint8), labels.astype(np.uint8)
    arrays = {"train_images": images[:1500], "train_labels": labels[:1500]}
    return arrays | {"test_images": images[1500:], "test_labels": labels[1500:]}
