"""Temporary folders for all that the scripts read and write, and one small run that many tests look at."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest
from filelock import FileLock

ROOT = Path(__file__).resolve().parents[1]
SMALL = ("--dataset", "digits", "--epochs", "2", "--hidden-dim", "8", "--latent-dim", "3", "--batch-size", "64")
SMALL_RUN = (*SMALL, "--learning-rate", "0.01", "--seed", "3", "--binarize")

# Set before Keras and Matplotlib are imported: both look into the home folder then.
HOME = tempfile.mkdtemp(prefix="vae-tests-")
os.environ |= {name: HOME for name in ("HOME", "USERPROFILE", "KERAS_HOME", "MPLCONFIGDIR")}
os.environ["VAE_CHECKPOINTS"] = f"{HOME}/none"
# As in the scripts: the order of sums, and so the last digit, depends on both.
os.environ |= {"TF_NUM_INTRAOP_THREADS": "1", "TF_ENABLE_ONEDNN_OPTS": "1"}
# Two tests run at a time: with more threads than that, NumPy and scikit-learn would wait.
os.environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
os.environ.pop("PYTHONUNBUFFERED", None)  # it would hide output that waits in a buffer
# A background job of a shell ignores Ctrl-C, and so does all that it starts; the scripts here shall not.
signal.signal(signal.SIGINT, signal.default_int_handler)
if "MNIST_DIR" in os.environ:
    os.environ["MNIST_DIR"] = os.path.abspath(os.environ["MNIST_DIR"])


def pytest_unconfigure():
    shutil.rmtree(HOME, ignore_errors=True)


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch) -> Path:
    """The folder of all runs: an empty one for each test, as is the cache of data sets."""
    monkeypatch.setenv("VAE_CHECKPOINTS", str(tmp_path / "my runs"))  # a shell needs quotes around it
    monkeypatch.setenv("VAE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "my runs"


@pytest.fixture(scope="session")
def small_run(tmp_path_factory) -> SimpleNamespace:
    """A small model of the digits, trained by a process of its own: its folder and log. Do not change it."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "small"
    with FileLock(f"{folder}.lock", timeout=300):  # one worker trains it for all
        if not folder.exists():
            done = finish("main.py", *SMALL_RUN, env=os.environ | {"VAE_CHECKPOINTS": str(folder)})
            assert done.returncode == 0, done.stderr
            (folder / "log.txt").write_text(done.stderr + done.stdout)
    return SimpleNamespace(folder=folder / "standard-digits-001", log=(folder / "log.txt").read_text())


@pytest.fixture
def run_copy(small_run, root) -> Path:
    """A copy of the small run, where the scripts find it."""
    return Path(shutil.copytree(small_run.folder, root / small_run.folder.name))


@pytest.fixture
def plain_keras():
    """Keras; the settings that a script changes are reset after the test."""
    import keras

    yield keras
    keras.config.set_dtype_policy("float32")
    keras.utils.clear_session()


@pytest.fixture
def here(tmp_path, monkeypatch, plain_keras) -> Path:
    """An empty folder to run scripts in, within this process."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


def refuse(function, *arguments) -> str:
    """Return the one line with which a call is refused."""
    from vae.terminal import UserError

    with pytest.raises(UserError) as caught:
        function(*arguments)
    line = str(caught.value)
    assert line and "\n" not in line and len(line) < 700
    return line


def start(script: str, *arguments, **options) -> subprocess.Popen:
    """Start a script in a process of its own."""
    return subprocess.Popen([sys.executable, ROOT / script, *map(str, arguments)], text=True, **options)


def finish(script: str, *arguments, **options) -> subprocess.CompletedProcess:
    """Run a script in a process of its own, and return what it printed and its exit status."""
    command = [sys.executable, ROOT / script, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, **options)


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} - {".lock"}


def snapshot(folder: Path) -> dict[str, tuple]:
    """Return every file and folder in a folder, with the content of files and the time of their last change."""
    return {
        str(path.relative_to(folder)): path.is_file() and (path.stat().st_mtime_ns, hash(path.read_bytes()))
        for path in folder.rglob("*")
        if path.name != ".lock"
    }


@contextlib.contextmanager
def full_disk(size: int):
    """Let no file grow beyond so many bytes, as if the disk were full."""
    resource = pytest.importorskip("resource", reason="Windows has no such limit")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
