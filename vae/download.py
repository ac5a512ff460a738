"""Where image files lie: the caller's own, a cache, or, for the public data sets, a mirror that is downloaded from.

What is found is passed on as plain values; `vae/data.py` reads it. pooch and requests are imported only when needed.
"""

import contextlib
import hashlib
import os
import re
import shutil
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from vae.settings import DATASETS, UserError

FILES = (
    "train-images-idx3-ubyte.gz",
    "train-labels-idx1-ubyte.gz",
    "t10k-images-idx3-ubyte.gz",
    "t10k-labels-idx1-ubyte.gz",
)

PATIENCE = 6.0  # seconds in which a mirror has to send LEAST_BYTES or all; two that do not are given up after 12
LEAST_BYTES = 2**13
MAX_DOWNLOAD = 2**26  # bytes of one file; the largest has 26 million


class Found(NamedTuple):
    """What `vae.data.load` needs, in its order."""

    name: str  # of the data set, or of the caller's folder or file, made safe for the name of a folder
    path: Path | None  # a folder with IDX files, or an .npz file; None: the digits, which need no file
    source: str  # in words
    warning: str | None = None  # what nobody must miss


class Public(NamedTuple):
    """A public data set: who serves it, and what its files must hash to."""

    mirrors: tuple[str, ...]
    checksums: tuple[str, str, str, str]  # in the order of FILES
    keras_npz: str | None  # checksum of the copy that Keras keeps, where this is an .npz and not the four files


PUBLIC = {
    "mnist": Public(
        mirrors=(
            "https://storage.googleapis.com/cvdf-datasets/mnist/",
            "https://ossci-datasets.s3.amazonaws.com/mnist/",
        ),
        checksums=(
            "sha256:440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
            "sha256:3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
            "sha256:8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
            "sha256:f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
        ),
        keras_npz="sha256:731c5ac602752760c8e48fbffcf8c3b850d9dc2a2aedcf2cc48468fc17b673d1",
    ),
    "fashion-mnist": Public(
        mirrors=(
            "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
            "https://storage.googleapis.com/tensorflow/tf-keras-datasets/",
        ),
        checksums=(
            "md5:8d4fb7e6c68d591d4c3dfef9ec88bf0d",
            "md5:25c81989df183df01b3e8a0aad5dffbe",
            "md5:bef4ecab320f06d8554ea6380940ec79",
            "md5:bb300cfdad3c16e7a12a480ee83cd310",
        ),
        keras_npz=None,
    ),
}


def find(dataset: str | None, data: str | None) -> Found:
    """The caller's own `data` (a path) if given, else the public data set of that name, downloaded if need be.

    Where neither is given: MNIST, or, if it can be neither found nor downloaded, the digits with a warning. Raises
    UserError for a path that is missing, and for a data set that was asked for and is not to be had.
    """
    if data is not None:
        return _own(data)
    if dataset not in (None, *DATASETS):
        raise UserError(f"--dataset {_shown(dataset)}: there is no such data set; choose from {', '.join(DATASETS)}")
    digits = Found("digits", None, "embedded in scikit-learn")
    if dataset == "digits":
        return digits
    try:
        return _public(dataset or "mnist")
    except UserError as error:
        if dataset is not None:
            raise
        warning = f"{error}. The 1,797 small digits of scikit-learn stand in for it: nothing here compares with MNIST"
        return digits._replace(warning=warning)


def find_for_run(dataset: str | None, data: str | None, config: dict) -> Found:
    """As `find`, but where neither is given, the images that the run with this `config.json` was trained on."""
    if dataset or data:
        return find(dataset, data)
    path = config["settings"]["data"]
    return find(None if path else config["dataset"]["name"], path)


def _own(data: str) -> Found:
    shown = _shown(data)
    try:
        path = Path(os.path.expanduser(data))
        shown = _shown(str(path))
        if path.is_dir():
            return Found(_safe_name(path.resolve().name), path, str(path))
        if path.is_file() and path.suffix.lower() == ".npz":
            return Found(_safe_name(path.stem), path, str(path))
        if path.exists():
            raise UserError(f"--data {shown}: is neither a folder with the four IDX files nor an .npz file; give one")
        raise UserError(f"--data {shown}: there is no such file or folder; check the path")
    except OSError as error:
        raise UserError(f"--data {shown}: cannot be opened ({error.strerror}); check its permissions") from error
    except ValueError as error:  # characters that no path has; a config.json may say anything
        raise UserError(f"--data {shown}: is no path ({error!s:.80}); correct it") from error


def _shown(name: str) -> str:
    """A name for a message: as it is, unless it is very long, or has line breaks or the like."""
    return name if name.isprintable() and len(name) <= 300 else repr(name[:300])


def _safe_name(name: str) -> str:
    """The name with letters, digits, `.`, `_` and `-` alone, and not hidden."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).lstrip(".-")[:64] or "data"


def _public(name: str) -> Found:
    """The data set in the project's cache, else in that of Keras, else downloaded into the project's."""
    import pooch

    cache = Path(os.path.expanduser(os.environ.get("VAE_CACHE") or pooch.os_cache("lstm-vae"))) / name
    missing = _missing(name, cache)
    if not missing:
        return Found(name, cache, f"cache {cache}")
    if (kept := _kept_by_keras(name)) is not None:
        return Found(name, kept, f"cache {kept}")
    hosts = _download(name, missing, cache)
    return Found(name, cache, f"downloaded from {hosts}")


def _kept_by_keras(name: str) -> Path | None:
    home = os.path.expanduser(os.environ.get("KERAS_HOME") or "~/.keras")
    folder, npz = Path(home, "datasets", name), Path(home, "datasets", f"{name}.npz")
    if not _missing(name, folder):
        return folder
    checksum = PUBLIC[name].keras_npz  # Keras writes in place: what it did not finish is as good as not there
    return npz if checksum and _is_intact(npz, checksum) else None


def _missing(name: str, folder: Path) -> dict[str, str]:
    """The files, each with its checksum, that the folder does not hold unharmed."""
    checksums = zip(FILES, PUBLIC[name].checksums, strict=True)
    return {file: checksum for file, checksum in checksums if not _is_intact(folder / file, checksum)}


def _is_intact(path: Path, checksum: str) -> bool:
    algorithm, expected = checksum.split(":")
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, algorithm).hexdigest() == expected
    except OSError:
        return False


def _download(name: str, missing: dict[str, str], folder: Path) -> str:
    """Fetch the missing files into the folder, from the first mirror that has them; returns the hosts that served."""
    mirrors, asked, served, failures = list(PUBLIC[name].mirrors), set(), [], []
    for file, checksum in missing.items():
        for mirror in list(mirrors):
            host = urlsplit(mirror).netloc
            if host not in asked:
                print(f"-> {name} is being downloaded from {host}", file=sys.stderr)
                asked.add(host)
            try:
                _fetch(mirror + file, file, checksum, folder)
            except (OSError, ValueError) as error:
                reason, answered = _diagnose(error)
                failures.append(f"{host}: {reason}")
                mirrors.remove(mirror)
                if answered:  # last in the queue for the other files; one that hung is not waited for again
                    mirrors.append(mirror)
            else:
                served += [host] if host not in served else []
                break
        else:
            what = f"is neither cached in {folder} nor to be downloaded ({'; '.join(dict.fromkeys(failures))})"
            raise UserError(f"--dataset {name}: {what}; mend the network, or give the files with --data FOLDER")
    return " and ".join(served)


def _diagnose(error: OSError | ValueError) -> tuple[str, bool]:
    """Why a download failed, and whether the mirror did answer."""
    import requests

    if isinstance(error, requests.HTTPError):
        return f"HTTP status {error.response.status_code}", True
    if isinstance(error, (TimeoutError, requests.Timeout)):
        return "no answer in time", False
    if isinstance(error, requests.RequestException):
        return "no connection, or one that broke", False
    return (error.strerror, False) if isinstance(error, OSError) else ("not the known file", True)


def _fetch(url: str, file: str, checksum: str, folder: Path) -> None:
    """Download one file: after this the folder holds it whole and right, or as before. OSError or ValueError if not."""
    with _partial_folder(folder) as partial:
        download = _Download(url, file, checksum, partial)
        download.start()
        try:
            _wait_for(download)
        finally:
            download.abandoned = True
        os.replace(Path(partial) / file, folder / file)


def _wait_for(download: "_Download") -> None:
    """Return when the download succeeds; raise its error when it fails, TimeoutError when it stalls."""
    received = -LEAST_BYTES
    while download.is_alive() and download.received - received >= LEAST_BYTES:
        received = download.received
        download.join(PATIENCE)
    if download.is_alive():
        raise TimeoutError(f"{download.url} stalled")
    if download.error is not None:
        raise download.error


def _partial_folder(folder: Path) -> tempfile.TemporaryDirectory:
    """A hidden folder beside the files, so that they can be renamed into place; old ones, of killed downloads, go."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for leftover in folder.glob(".download-*"):
            with contextlib.suppress(FileNotFoundError):  # another process was faster
                if time.time() - leftover.stat().st_mtime > 24 * 3600:  # a younger one may be in use
                    shutil.rmtree(leftover, ignore_errors=True)
        return tempfile.TemporaryDirectory(prefix=".download-", dir=folder, ignore_cleanup_errors=True)
    except OSError as error:
        what = f"cannot write to the cache {folder} ({error.strerror})"
        raise UserError(f"{what}; let the environment variable VAE_CACHE name a folder that can be written") from error


class _Download(threading.Thread):
    """pooch at work on one file, in a daemon thread: waiting for a name server cannot be stopped, only left alone."""

    def __init__(self, url: str, file: str, checksum: str, folder: str):
        super().__init__(daemon=True)
        self.url, self.file, self.checksum, self.folder = url, file, checksum, folder
        self.received = 0  # bytes
        self.abandoned = False
        self.error: Exception | None = None

    def run(self) -> None:
        import pooch

        pooch.get_logger().setLevel("ERROR")
        try:
            pooch.retrieve(self.url, self.checksum, self.file, self.folder, downloader=self._stream)
        except Exception as error:
            self.error = error

    def _stream(self, url: str, output_file: str, _pooch: object) -> None:
        import requests
        from tqdm import tqdm

        headers = {"Accept-Encoding": "identity"}  # else a server may have the file unpacked on the way
        with requests.get(url, stream=True, timeout=PATIENCE, headers=headers) as response:
            response.raise_for_status()
            total = int(response.headers.get("Content-Length", 0)) or None
            bar = tqdm(total=total, desc=self.file, unit="B", unit_scale=True, leave=False, disable=None)
            with open(output_file, "wb") as output, bar:
                for chunk in response.iter_content(1024):
                    self.received += output.write(chunk)
                    bar.update(len(chunk))
                    if self.abandoned or self.received > MAX_DOWNLOAD:
                        raise ValueError(f"{url} is too large, or too late")
