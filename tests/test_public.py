"""Public data sets: caches, and mirrors on this machine that fail in every way."""

import gzip
import hashlib
import http.server
import os
import socket
import threading
import time

import numpy as np
import pytest
from conftest import refuse
from helpers import assert_same, make_arrays, make_idx_files, to_idx, write, write_npz

from vae.data import load, public
from vae.data.load import Source

MNIST = Source("mnist")
RELEASE = threading.Event()  # what hangs, hangs until this is set


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        file, answer = self.path.rpartition("/")[2], self.server.answer
        self.server.asked.append((file, self.headers["Accept-Encoding"]))
        content = bytes(9) if answer == "another file" else self.server.files[file]
        if answer == "hangs":
            RELEASE.wait(10)
        if answer == "404":
            return self.send_error(404)
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[:20] if "half" in answer else content)
        if answer == "half, and hangs":
            self.wfile.flush()
            RELEASE.wait(10)

    def log_message(self, *arguments):
        pass


@pytest.fixture
def network(tmp_path, monkeypatch):
    """MNIST as six and three made images. `network(answer, ...)` starts a mirror for each answer, and returns them."""
    RELEASE.clear()
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    monkeypatch.setattr(public, "PATIENCE", 0.5)
    files = {f"{name}.gz": gzip.compress(content, mtime=0) for name, content in make_idx_files().items()}
    checksums = [f"sha256:{hashlib.sha256(content).hexdigest()}" for content in files.values()]
    monkeypatch.setitem(public.CHECKSUMS, "mnist", checksums)
    servers = []

    def start(*answers: str) -> list:
        mirrors = [http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) for _ in answers]
        for mirror, answer in zip(mirrors, answers, strict=True):
            mirror.answer, mirror.asked, mirror.files, mirror.daemon_threads = answer, [], files, True
            mirror.handle_error = lambda *arguments: None  # clients that leave are part of these tests
            mirror.host = f"127.0.0.1:{mirror.server_port}"
            threading.Thread(target=mirror.serve_forever, args=(0.01,), daemon=True).start()
        monkeypatch.setitem(public.MIRRORS, "mnist", [f"http://{mirror.host}/some/where/" for mirror in mirrors])
        servers.extend(mirrors)
        return mirrors

    start.files = files
    start()
    yield start
    RELEASE.set()
    for server in servers:
        server.shutdown()
        server.server_close()


def test_download(network, tmp_path, capsys):
    (mirror,) = network("serves")
    dataset = load.load(MNIST)
    assert_same(dataset, make_arrays())
    assert (dataset.name, dataset.source, dataset.warning) == ("mnist", f"downloaded from {mirror.host}", None)
    assert sorted(os.listdir(tmp_path / "cache" / "mnist")) == sorted(public.FILES)
    assert mirror.asked == [(file, "identity") for file in public.FILES]  # otherwise they could arrive unpacked
    assert capsys.readouterr().err == f"-> Downloading mnist from {mirror.host}\n"
    assert load.load(Source()).source == f"cache {tmp_path / 'cache' / 'mnist'}"  # MNIST is the default
    assert len(mirror.asked) == 4 and capsys.readouterr().err == ""


@pytest.mark.parametrize(
    "answer, reason",
    [
        ("another file", "another file"),
        ("404", "HTTPError"),
        ("half", "ChunkedEncodingError"),
        ("hangs", "ReadTimeout"),
        ("half, and hangs", "ConnectionError"),
    ],
)
def test_a_mirror_that_fails_is_passed_over_soon(network, answer, reason):
    (bad,) = network(answer)
    start = time.monotonic()
    line = refuse(load.load, MNIST)
    assert time.monotonic() - start < 5 and f"{bad.host}: {reason}" in line
    assert "--dataset mnist: MNIST is unavailable: " in line and "--data FOLDER" in line
    good = network(answer, "serves")[1]
    dataset = load.load(MNIST)
    assert_same(dataset, make_arrays())
    assert dataset.source == f"downloaded from {good.host}"


def test_without_network_the_digits_replace_mnist_unless_it_was_asked_for(network, monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        hosts = [f"127.0.0.1:{free.getsockname()[1]}", "mnist.invalid"]
    monkeypatch.setitem(public.MIRRORS, "mnist", [f"http://{host}/" for host in hosts])
    line = refuse(load.load, MNIST)
    assert all(f"{host}: ConnectionError" in line for host in hosts)
    dataset = load.load(Source(image_size=16))
    assert (dataset.name, dataset.source, dataset.image_shape) == ("digits", "embedded in scikit-learn", (16, 16))
    assert dataset.warning.startswith("MNIST is unavailable: ") and "digits" in dataset.warning
    assert "\n" not in dataset.warning and dataset.replaces_mnist


def test_a_damaged_file_in_the_cache_is_downloaded_again(network, tmp_path):
    write(
        tmp_path / "cache" / "mnist",
        **network.files | {public.FILES[2]: gzip.compress(to_idx(np.zeros((3, 28, 28), np.uint8)))},
    )
    assert "MNIST is unavailable" in refuse(load.load, MNIST)
    (mirror,) = network("serves")
    assert_same(load.load(MNIST), make_arrays())
    assert [file for file, _ in mirror.asked] == [public.FILES[2]]


def test_the_copies_of_keras_are_used_if_they_are_intact(network, tmp_path, monkeypatch):
    folder = write(tmp_path / "keras" / "datasets" / "mnist", **network.files)
    assert load.load(MNIST).source == f"cache {folder}"
    (folder / public.FILES[3]).unlink()
    assert "MNIST is unavailable" in refuse(load.load, MNIST)
    npz = write_npz(tmp_path / "keras" / "datasets" / "mnist.npz", **make_arrays())
    monkeypatch.setitem(public.KERAS_NPZ, "mnist", f"sha256:{hashlib.sha256(npz.read_bytes()).hexdigest()}")
    dataset = load.load(MNIST)
    assert_same(dataset, make_arrays())
    assert (dataset.name, dataset.source) == ("mnist", f"cache {npz}")
    npz.write_bytes(npz.read_bytes()[:-1])  # as after a download that Keras did not finish
    assert "MNIST is unavailable" in refuse(load.load, MNIST)


def test_fashion_mnist_in_the_user_s_own_cache(network, tmp_path, monkeypatch):
    checksums = [f"md5:{hashlib.md5(content).hexdigest()}" for content in network.files.values()]
    monkeypatch.setitem(public.CHECKSUMS, "fashion-mnist", checksums)
    network("serves")
    monkeypatch.setitem(public.MIRRORS, "fashion-mnist", public.MIRRORS["mnist"])
    monkeypatch.delenv("VAE_CACHE")
    monkeypatch.setattr(public.pooch, "os_cache", lambda project: tmp_path / "user" / project)
    assert_same(load.load(Source("fashion-mnist")), make_arrays())
    assert sorted(os.listdir(tmp_path / "user" / "lstm-vae" / "fashion-mnist")) == sorted(public.FILES)


def test_a_cache_that_cannot_be_written(network, tmp_path, monkeypatch):
    network("serves")
    monkeypatch.setenv("VAE_CACHE", str(write(tmp_path, file=b"") / "file"))
    line = refuse(load.load, MNIST)
    assert str(tmp_path / "file") in line and "VAE_CACHE" in line
