"""Public data sets: caches, and mirrors on this machine that fail in several ways."""

import gzip
import hashlib
import os
import socket
import threading
import time
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest
from conftest import refuse
from helpers import assert_same, make_arrays, make_idx_files, write, write_npz

from vae.data import load, public
from vae.data.load import Source

MNIST = Source("mnist")
FILES = {f"{name}.gz": gzip.compress(content, mtime=0) for name, content in make_idx_files().items()}
DAMAGED = FILES | {public.FILES[2]: b"another file"}


class Handler(SimpleHTTPRequestHandler):
    def log_message(self, *arguments):
        self.server.asked.append((self.path.rpartition("/")[2], self.headers["Accept-Encoding"]))


@pytest.fixture
def start(tmp_path, monkeypatch):
    """MNIST has six and three made images, and no mirror; `start(files)` starts one, and returns its server."""
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    monkeypatch.setattr(public, "PATIENCE", 0.5)
    sums = [f"sha256:{hashlib.sha256(content).hexdigest()}" for content in FILES.values()]
    monkeypatch.setitem(public.CHECKSUMS, "mnist", sums)
    monkeypatch.setitem(public.MIRRORS, "mnist", [])

    def start(files: dict[str, bytes]) -> ThreadingHTTPServer:
        folder = write(tmp_path / f"mirror{len(public.MIRRORS['mnist'])}", **files)
        server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=folder))
        server.asked = []
        threading.Thread(target=server.serve_forever, daemon=True).start()
        public.MIRRORS["mnist"].append("http://{}:{}/".format(*server.server_address))
        return server

    return start


def test_download(start, tmp_path, capsys):
    server = start(FILES)
    dataset, host = load.load(MNIST), "{}:{}".format(*server.server_address)
    assert_same(dataset, make_arrays())
    assert (dataset.name, dataset.source, dataset.warning) == ("mnist", f"downloaded from {host}", None)
    assert server.asked == [(file, "identity") for file in public.FILES]  # otherwise they could arrive unpacked
    assert capsys.readouterr().err == f"-> Downloading mnist from {host}\n"
    assert load.load(Source()).source == f"cache {tmp_path / 'cache' / 'mnist'}"  # MNIST is the default
    assert len(server.asked) == 4 and capsys.readouterr().err == ""


@pytest.mark.parametrize("files, reason", [(DAMAGED, "another file"), ({}, "HTTPError"), (None, "ReadTimeout")])
def test_a_mirror_that_fails_is_passed_over_soon(start, files, reason):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        if files is None:
            public.MIRRORS["mnist"].append("http://{}:{}/".format(*silent.getsockname()))
        else:
            start(files)
        began = time.monotonic()
        line = refuse(load.load, MNIST)
        assert time.monotonic() - began < 5 and f": {reason})" in line
        assert line.startswith("--dataset mnist: MNIST is unavailable: ") and "--data FOLDER" in line
        start(FILES)
        assert_same(load.load(MNIST), make_arrays())


def test_without_network_the_digits_replace_mnist_unless_it_was_asked_for(start):
    public.MIRRORS["mnist"] += ["http://127.0.0.1:9/", "http://mnist.invalid/"]
    line = refuse(load.load, MNIST)
    assert "127.0.0.1:9: ConnectionError" in line and "mnist.invalid: ConnectionError" in line
    dataset = load.load(Source(image_size=16))
    assert (dataset.name, dataset.source, dataset.image_shape) == ("digits", "embedded in scikit-learn", (16, 16))
    assert dataset.warning.startswith("MNIST is unavailable: ") and "digits" in dataset.warning
    assert "\n" not in dataset.warning and dataset.replaces_mnist


def test_a_damaged_file_in_the_cache_is_downloaded_again(start, tmp_path):
    write(tmp_path / "cache" / "mnist", **DAMAGED)
    server = start(FILES)
    assert_same(load.load(MNIST), make_arrays())
    assert [file for file, _ in server.asked] == [public.FILES[2]]


def test_the_copies_of_keras_are_used_if_they_are_intact(start, tmp_path, monkeypatch):
    folder = write(tmp_path / "keras" / "datasets" / "mnist", **FILES)
    assert load.load(MNIST).source == f"cache {folder}"
    (folder / public.FILES[3]).unlink()
    npz = write_npz(tmp_path / "keras" / "datasets" / "mnist.npz", **make_arrays())
    assert "MNIST is unavailable" in refuse(load.load, MNIST)  # the .npz is not the known one
    monkeypatch.setitem(public.KERAS_NPZ, "mnist", f"sha256:{hashlib.sha256(npz.read_bytes()).hexdigest()}")
    assert_same(dataset := load.load(MNIST), make_arrays())
    assert (dataset.name, dataset.source) == ("mnist", f"cache {npz}")
