"""The public sets: MNIST and Fashion-MNIST, found in a cache or downloaded, and the digits embedded in scikit-learn."""

import importlib.util
import os
import sys
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pooch

from vae.data import readers
from vae.data.dataset import EMBEDDED, Draft
from vae.terminal import UserError, as_path

PATIENCE = 6.0  # seconds in which a mirror must answer
FILES = tuple(f"{name}.gz" for name in readers.MNIST)
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
    "mnist": ("https://storage.googleapis.com/cvdf-datasets/mnist/", "https://ossci-datasets.s3.amazonaws.com/mnist/"),
    "fashion-mnist": (
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
        "https://storage.googleapis.com/tensorflow/tf-keras-datasets/",
    ),
}


def read(draft: Draft, name: str | None) -> tuple[str, str]:
    """Read a public data set; return its name, and its source in words. Without a name: MNIST, or else the digits."""
    try:
        if name != "digits":
            path, source = find(name or "mnist")
            readers.read(draft, path)
            return name or "mnist", source
    except UserError as error:
        if name is not None:
            raise
        what = "The 1,797 small digits of scikit-learn replace it: their losses do not compare with MNIST's"
        draft.warnings.append(f"{error}. {what}")
    draft.arrays = load_digits()
    return "digits", EMBEDDED


def find(name: str) -> tuple[Path, str]:
    """Find a public data set in this project's cache or in Keras's, or download it: its path, and its source."""
    cache = as_path(os.environ.get("VAE_CACHE") or pooch.os_cache("lstm-vae")) / name
    keras_cache = as_path(os.environ.get("KERAS_HOME") or "~/.keras") / "datasets"
    checksums = dict(zip(FILES, CHECKSUMS[name], strict=True))
    for folder in (cache, keras_cache / name):
        if all(_is_intact(folder / file, checksum) for file, checksum in checksums.items()):
            return folder, f"cache {folder}"
    npz = keras_cache / f"{name}.npz"  # Keras writes in place: this file may be incomplete
    if name in KERAS_NPZ and _is_intact(npz, KERAS_NPZ[name]):
        return npz, f"cache {npz}"
    return cache, f"downloaded from {_download(name, checksums, cache)}"


def _is_intact(path: Path, checksum: str) -> bool:
    return path.is_file() and pooch.file_hash(path, checksum.partition(":")[0]) == checksum.partition(":")[2]


def _download(name: str, checksums: dict[str, str], folder: Path) -> str:
    """Download the files that the folder lacks from the first mirror that has them all; return its host."""
    pooch.get_logger().setLevel("ERROR")
    headers = {"Accept-Encoding": "identity"}  # otherwise a server may send the file unpacked
    stream = pooch.HTTPDownloader(timeout=PATIENCE, headers=headers, progressbar=sys.stderr.isatty())
    failures = []
    for mirror in MIRRORS[name]:
        host = urlsplit(mirror).netloc
        print(f"-> Downloading {name} from {host}", file=sys.stderr)
        try:
            for file, checksum in checksums.items():
                pooch.retrieve(mirror + file, checksum, file, folder, downloader=stream)
            return host
        except (OSError, ValueError) as error:  # a ValueError is a wrong checksum
            failures.append(f"{host}: {'another file' if isinstance(error, ValueError) else type(error).__name__}")
    what = f"{name.upper()} is unavailable: it is neither in the cache {folder} nor on a mirror ({'; '.join(failures)})"
    raise UserError(f"{what}; check the network, use --data FOLDER, or let VAE_CACHE (environment) name another cache")


def load_digits() -> dict[str, np.ndarray]:
    """The 1,797 real digits in scikit-learn, 1,500 of them to train on, scaled smoothly to the look of MNIST."""
    package = Path(importlib.util.find_spec("sklearn").origin).parent  # to import it would take a second
    table = np.loadtxt(package / "datasets" / "data" / "digits.csv.gz", np.uint8, delimiter=",")
    small, labels = table[:, :64].reshape(-1, 8, 8), table[:, 64]
    # Bilinear interpolation as a matrix: the 8 pixels fill the middle 20 of 28, and fade into black around them.
    # Row i of the large image has its centre at position[i] of the small one.
    position = (np.arange(28) - 13.5) * 8 / 20 + 3.5
    weights = np.maximum(0, 1 - np.abs(position[:, None] - np.arange(8)))  # (28, 8)
    images = np.rint(weights @ small @ weights.T * (255 / 16)).astype(np.uint8)  # (1797, 28, 28)
    parts = (images[:1500], labels[:1500], images[1500:], labels[1500:])
    return dict(zip(readers.ROLES, parts, strict=False))
