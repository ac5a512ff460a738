"""MNIST and Fashion-MNIST: found in a cache, or downloaded from a mirror with `pooch` and checked."""

import hashlib
import os
import sys
import threading
import time
from pathlib import Path
from urllib.parse import urlsplit

from vae.terminal import UserError, as_path

PATIENCE = 6.0  # seconds in which a mirror must answer: two that do not are given up within 15
LEAST_SPEED = 1000  # bytes a second
MAX_DOWNLOAD = 2**26  # bytes of one file; the largest has 26 million

FILES = (
    "train-images-idx3-ubyte.gz",
    "train-labels-idx1-ubyte.gz",
    "t10k-images-idx3-ubyte.gz",
    "t10k-labels-idx1-ubyte.gz",
)
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

    try:
        cache = as_path(os.environ.get("VAE_CACHE") or pooch.os_cache("lstm-vae")) / name
        keras_cache = as_path(os.environ.get("KERAS_HOME") or "~/.keras") / "datasets"
    except (UserError, RuntimeError) as error:  # a user without a home folder
        what = "there is no home folder that could hold the cache"
        raise UserError(f"{name.upper()} is unavailable: {what}; set HOME, and VAE_CACHE or KERAS_HOME") from error
    for folder in (cache, keras_cache / name):
        if not _missing(name, folder):
            return folder, f"cache {folder}"
    npz = keras_cache / f"{name}.npz"  # Keras writes in place: this file may be incomplete
    if name in KERAS_NPZ and _is_intact(npz, KERAS_NPZ[name]):
        return npz, f"cache {npz}"
    return cache, f"downloaded from {' and '.join(_download(name, cache))}"


def _missing(name: str, folder: Path) -> dict[str, str]:
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


def _download(name: str, folder: Path) -> dict[str, None]:
    """Download the missing files, each from the first mirror that has it; return the hosts that served them."""
    import pooch

    pooch.get_logger().setLevel("ERROR")
    mirrors, reached, served, failures = list(MIRRORS[name]), set(), {}, {}
    for file, checksum in _missing(name, folder).items():
        for mirror in list(mirrors):
            host = urlsplit(mirror).netloc
            try:
                if host not in reached:
                    print(f"-> Downloading {name} from {host}", file=sys.stderr)
                    _ask(mirror + file)
                    reached.add(host)
                pooch.retrieve(mirror + file, checksum, file, folder, downloader=_stream)
            except (OSError, ValueError) as error:
                failures[f"{host}: {_reason(error, folder)}"] = None
                mirrors.remove(mirror)
                if host in reached:  # for the other files it is asked last
                    mirrors.append(mirror)
            else:
                served[host] = None
                break
        else:
            what = f"it is neither in the cache {folder} nor on a mirror ({'; '.join(failures)})"
            raise UserError(f"{name.upper()} is unavailable: {what}; check the network, or use --data FOLDER")
    return served


def _ask(url: str) -> None:
    """Return when a mirror answers, whatever it says; raise an OSError when it does not."""
    import requests

    errors: list[Exception] = [TimeoutError()]

    def ask() -> None:
        try:
            requests.head(url, timeout=PATIENCE)
            errors.clear()
        except Exception as error:
            errors[:] = [error]

    # Nothing can stop waiting for a name server, but a daemon thread can be left behind.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(PATIENCE)
    for error in list(errors):
        # requests raises a plain OSError for a file of certificates that is missing
        raise error if isinstance(error, (requests.RequestException, TimeoutError)) else ConnectionError(error)


def _stream(url: str, output_file: str, _pooch: object) -> None:
    """Write what a mirror sends, with a bar on a terminal; stop where it sends next to nothing, or does not end."""
    import requests
    from tqdm import tqdm

    start = time.monotonic()
    headers = {"Accept-Encoding": "identity"}  # otherwise a server may send the file unpacked
    with requests.get(url, stream=True, timeout=PATIENCE, headers=headers) as response, open(output_file, "wb") as file:
        response.raise_for_status()
        total = int(response.headers.get("Content-Length", 0)) or None
        with tqdm(total=total, desc=Path(url).name, unit="B", unit_scale=True, leave=False, disable=None) as bar:
            for chunk in response.iter_content(1024):
                bar.update(file.write(chunk))
                if file.tell() < LEAST_SPEED * (time.monotonic() - start - PATIENCE):
                    raise TimeoutError
                if file.tell() > MAX_DOWNLOAD:
                    raise ValueError(f"{url} is too large")


def _reason(error: OSError | ValueError, folder: Path) -> str:
    """Why a download failed; UserError where the cache was the cause."""
    import requests

    if isinstance(error, requests.HTTPError):
        return f"HTTP status {error.response.status_code}"
    if isinstance(error, (TimeoutError, requests.Timeout)) or "timed out" in str(error):
        return "no answer in time"
    if isinstance(error, requests.exceptions.SSLError):
        return "its certificate is not trusted"
    if isinstance(error, requests.RequestException):
        return "no connection, or one that broke"
    if isinstance(error, ConnectionError):
        return str(error)[:200]
    if isinstance(error, ValueError):  # from pooch
        return "not the known file"
    what = f"cannot write to the cache {folder} ({error.strerror or error})"
    raise UserError(f"{what}; let the environment variable VAE_CACHE name a folder that can be written") from error
