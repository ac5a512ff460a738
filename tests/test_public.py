"""Public data sets: caches, and mirrors on this machine that fail in every way."""

import gzip
import hashlib
import os
import socket
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, refuse
from helpers import assert_is_made, make_arrays, make_idx_files, to_idx, write_folder, write_npz

from vae.data import load, public
from vae.data.load import Options

MNIST = Options("mnist")
HOLD = threading.Event()  # what hangs, hangs until this is set


# Answers of a mirror


def send(handler, content: bytes, length: int | None) -> None:
    handler.send_response(200)
    if length is not None:
        handler.send_header("Content-Length", str(length))
    handler.end_headers()
    handler.wfile.write(content)
    handler.wfile.flush()


def serve(handler, content):
    send(handler, content, len(content))


def serve_another_file(handler, content):
    send(handler, bytes(len(content)), len(content))


def serve_nothing(handler, content):
    handler.send_error(404)


def serve_half_and_hang(handler, content):
    send(handler, content[: len(content) // 2], len(content))
    HOLD.wait(10)


def hang(handler, content):
    HOLD.wait(10)


def drip(handler, content):
    send(handler, b"", None)
    for _ in range(500):
        handler.wfile.write(bytes(100))
        HOLD.wait(0.02)


def pour(handler, content):
    send(handler, b"", None)
    for _ in range(2**9):  # 32 MiB
        handler.wfile.write(bytes(2**16))
        handler.server.poured += 2**16


class Mirror(ThreadingHTTPServer):
    """A server on this machine that answers with `answer`, or for some files with another way of `answers`."""

    daemon_threads = True

    def __init__(self, files: dict[str, bytes], answer=serve, **answers):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files, self.answer, self.answers = files, answer, answers
        self.asked, self.encodings, self.poured = [], set(), 0
        self.host = f"127.0.0.1:{self.server_port}"
        self.url = f"http://{self.host}/some/where/"
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    def handle_error(self, request, client_address):  # clients that leave are part of these tests
        pass


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        file = self.path.rpartition("/")[2]
        self.server.asked.append(file)
        self.server.encodings.add(self.headers["Accept-Encoding"])
        answer = self.server.answers.get(file.split("-idx")[0].replace("-", "_"), self.server.answer)
        answer(self, self.server.files[file])

    def do_HEAD(self):
        if self.server.answer is hang:
            HOLD.wait(10)
        self.send_response(405)  # any answer will do
        self.end_headers()

    def log_message(self, *arguments):
        pass


class Network:
    """The data set `mnist` as six and three made images, which mirrors on this machine have."""

    def __init__(self, tmp_path: Path, monkeypatch):
        self.monkeypatch, self.mirrors = monkeypatch, []
        self.cache, self.keras = tmp_path / "cache" / "mnist", tmp_path / "keras" / "datasets"
        packed = (gzip.compress(file, mtime=0) for file in make_idx_files().values())
        self.files = dict(zip(public.FILES, packed, strict=True))
        checksums = [f"sha256:{hashlib.sha256(file).hexdigest()}" for file in self.files.values()]
        monkeypatch.setitem(public.CHECKSUMS, "mnist", checksums)
        self.use()

    def mirror(self, answer=serve, **answers) -> Mirror:
        """Start a mirror, which is asked after those started before."""
        self.mirrors.append(Mirror(self.files, answer, **answers))
        self.use(*(mirror.url for mirror in self.mirrors))
        return self.mirrors[-1]

    def use(self, *urls: str) -> None:
        self.monkeypatch.setitem(public.MIRRORS, "mnist", urls)

    def cached(self) -> list[str]:
        return sorted(path.name for path in self.cache.glob("*"))


@pytest.fixture
def network(tmp_path, monkeypatch):
    HOLD.clear()
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    monkeypatch.setattr(public, "PATIENCE", 0.5)
    network = Network(tmp_path, monkeypatch)
    yield network
    HOLD.set()
    for mirror in network.mirrors:
        mirror.shutdown()
        mirror.server_close()


def test_download(network, capsys):
    mirror = network.mirror()
    dataset = load.load(MNIST)
    assert_is_made(dataset)
    assert (dataset.name, dataset.source, dataset.warning) == ("mnist", f"downloaded from {mirror.host}", None)
    assert network.cached() == sorted(public.FILES)
    assert mirror.encodings == {"identity"}  # otherwise the files could arrive unpacked
    assert capsys.readouterr().err == f"-> Downloading mnist from {mirror.host}\n"

    dataset = load.load(Options())  # MNIST is the default, and now in the cache
    assert (dataset.name, dataset.source) == ("mnist", f"cache {network.cache}")
    assert mirror.asked == list(public.FILES)
    assert capsys.readouterr().err == ""


FAILURES = {
    "another file": (serve_another_file, "not the known file"),
    "half": (lambda handler, content: send(handler, content[:99], len(content)), "broke"),
    "half without saying so": (lambda handler, content: send(handler, content[:99], None), "not the known file"),
    "nothing": (serve_nothing, "HTTP status 404"),
    "hanging": (hang, "no answer in time"),
    "hanging after half": (serve_half_and_hang, "no answer in time"),
    "next to nothing": (drip, "no answer in time"),
    "too much": (pour, "not the known file"),
}


@pytest.mark.parametrize("answer, reason", FAILURES.values(), ids=FAILURES)
def test_a_mirror_that_fails_is_passed_over(network, monkeypatch, answer, reason):
    monkeypatch.setattr(public, "MAX_DOWNLOAD", 2**20)
    monkeypatch.setattr(public, "LEAST_SPEED", 10**5)
    bad = network.mirror(answer)
    message = refuse(load.load, MNIST)
    assert "MNIST is unavailable" in message and bad.host in message and reason in message
    assert network.cached() == [] and bad.poured < 2**24  # some of it stays in the buffers of the system

    good = network.mirror()
    dataset = load.load(MNIST)
    assert_is_made(dataset)
    assert dataset.source == f"downloaded from {good.host}"


def test_mirrors_that_lack_different_files_make_up_for_each_other(network, capsys):
    first = network.mirror(train_labels=serve_nothing, t10k_labels=serve_another_file)
    second = network.mirror(train_images=serve_nothing, t10k_images=serve_nothing)
    dataset = load.load(MNIST)
    assert_is_made(dataset)
    assert dataset.source == f"downloaded from {first.host} and {second.host}"
    assert len(capsys.readouterr().err.splitlines()) == 2


def test_later_files_come_first_from_the_mirror_that_worked(network):
    hanging, first, second = network.mirror(hang), network.mirror(train_images=serve_nothing), network.mirror()
    assert load.load(MNIST).source == f"downloaded from {second.host}"
    assert (hanging.asked, first.asked, second.asked) == ([], [public.FILES[0]], list(public.FILES))


def test_a_name_server_that_hangs(network, monkeypatch):
    def hanging(*arguments, **options):
        HOLD.wait(10)
        raise socket.gaierror("released")

    monkeypatch.setattr(socket, "getaddrinfo", hanging)
    network.use("http://mnist.invalid/", "http://mnist2.invalid/")
    start = time.monotonic()
    message = refuse(load.load, MNIST)
    assert time.monotonic() - start < 5
    assert "mnist.invalid: no answer in time" in message and "mnist2.invalid: no answer in time" in message


def test_two_mirrors_are_given_up_within_fifteen_seconds():
    assert max(map(len, public.MIRRORS.values())) * public.PATIENCE < 14


def test_a_proxy_is_used(network, monkeypatch):
    proxy = network.mirror()
    monkeypatch.setenv("http_proxy", f"http://{proxy.host}")
    network.use("http://mnist.invalid/")
    assert load.load(MNIST).source == "downloaded from mnist.invalid"
    assert proxy.asked == list(public.FILES)


@pytest.mark.parametrize("error, reason", [("SSLError", "its certificate"), ("ConnectionError", "no connection")])
def test_the_reason_is_named(network, monkeypatch, error, reason):
    import requests

    def fail(*arguments, **options):
        raise getattr(requests.exceptions, error)("many words")

    network.use("https://mnist.invalid/")
    monkeypatch.setattr(requests, "head", fail)
    assert f"mnist.invalid: {reason}" in refuse(load.load, MNIST)


def test_certificates_that_are_missing_are_named(network, monkeypatch):
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", "/no/such/bundle")
    network.use("https://127.0.0.1:1/")
    assert "/no/such/bundle" in refuse(load.load, MNIST)


def closed_port() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{free.getsockname()[1]}"


def test_without_network_mnist_is_an_error_if_asked_for_and_otherwise_the_digits_replace_it(network):
    hosts = closed_port(), closed_port()
    network.use(*(f"http://{host}/" for host in hosts))
    message = refuse(load.load, MNIST)
    assert all(word in message for word in ("--dataset mnist", *hosts, "no connection", "--data"))
    dataset = load.load(Options())
    assert (dataset.name, dataset.source, len(dataset.train_images)) == ("digits", "embedded in scikit-learn", 1500)
    assert all(word in dataset.warning for word in ("MNIST is unavailable", "digits", hosts[0]))
    assert "\n" not in dataset.warning and dataset.replaces_mnist


def test_a_damaged_file_in_the_cache_is_downloaded_again_or_not_used(network):
    write_folder(network.cache, network.files)
    sound_in_form = gzip.compress(to_idx(np.zeros((3, 28, 28), np.uint8)))
    (network.cache / public.FILES[2]).write_bytes(sound_in_form)
    network.use(f"http://{closed_port()}/")
    assert "neither in the cache" in refuse(load.load, MNIST)
    assert load.load(Options()).name == "digits"
    assert (network.cache / public.FILES[2]).read_bytes() == sound_in_form
    mirror = network.mirror()
    assert_is_made(load.load(MNIST))
    assert mirror.asked == [public.FILES[2]]


def test_the_copies_of_keras_are_used_if_they_are_intact(network, monkeypatch):
    folder, npz = network.keras / "mnist", network.keras / "mnist.npz"
    write_folder(folder, network.files)
    assert load.load(MNIST).source == f"cache {folder}"
    (folder / public.FILES[3]).unlink()
    assert "neither in the cache" in refuse(load.load, MNIST)

    write_npz(npz, **make_arrays())
    monkeypatch.setitem(public.KERAS_NPZ, "mnist", f"sha256:{hashlib.sha256(npz.read_bytes()).hexdigest()}")
    dataset = load.load(MNIST)
    assert_is_made(dataset)
    assert (dataset.name, dataset.source) == ("mnist", f"cache {npz}")
    npz.write_bytes(npz.read_bytes()[:-1])  # as after a download that Keras did not finish
    assert "neither in the cache" in refuse(load.load, MNIST)


def test_fashion_mnist_has_a_folder_of_its_own(network, monkeypatch):
    checksums = [f"md5:{hashlib.md5(file).hexdigest()}" for file in network.files.values()]
    monkeypatch.setitem(public.CHECKSUMS, "fashion-mnist", checksums)
    monkeypatch.setitem(public.MIRRORS, "fashion-mnist", ())
    assert "--dataset fashion-mnist: FASHION-MNIST is unavailable" in refuse(load.load, Options("fashion-mnist"))
    monkeypatch.setitem(public.MIRRORS, "fashion-mnist", (network.mirror().url,))
    assert_is_made(load.load(Options("fashion-mnist")))
    assert os.listdir(network.cache.parent) == ["fashion-mnist"]


def test_the_cache_is_that_of_the_user_unless_moved(network, tmp_path, monkeypatch):
    import pooch

    monkeypatch.delenv("VAE_CACHE")
    monkeypatch.setattr(pooch, "os_cache", lambda project: tmp_path / "user" / project)
    network.mirror()
    load.load(MNIST)
    assert sorted(os.listdir(tmp_path / "user" / "lstm-vae" / "mnist")) == sorted(public.FILES)


def test_a_cache_that_cannot_be_written(network, tmp_path, monkeypatch):
    network.mirror()
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("VAE_CACHE", str(tmp_path / "file"))
    message = refuse(load.load, MNIST)
    assert str(tmp_path / "file") in message and "VAE_CACHE" in message


def test_without_a_home_folder_the_digits_replace_mnist(network, monkeypatch):
    import pooch

    monkeypatch.delenv("VAE_CACHE")
    monkeypatch.setattr(pooch, "os_cache", lambda project: Path("~/.cache") / project)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # of a user number without a name
    assert "VAE_CACHE" in refuse(load.load, MNIST)
    assert "VAE_CACHE" in load.load(Options()).warning and load.load(Options()).replaces_mnist
    assert not Path("~").exists()


KILLED = """
import sys
from vae.data import public
public.MIRRORS["mnist"] = (sys.argv[1],)
public.find("mnist")
"""


def test_a_download_that_is_killed_leaves_nothing_that_confuses(network):
    mirror = network.mirror(serve_half_and_hang)
    mirror.files = {file: os.urandom(10**5) for file in public.FILES}
    process = subprocess.Popen([sys.executable, "-c", KILLED, mirror.url], cwd=ROOT, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 20
        while not any(path.stat().st_size for path in network.cache.glob("*")):
            assert process.poll() is None and time.monotonic() < deadline, "the download did not begin"
            time.sleep(0.02)
    finally:
        process.kill()
        process.wait()
    assert not set(network.cached()) & set(public.FILES)
    mirror.files, mirror.answer = network.files, serve
    assert_is_made(load.load(MNIST))
