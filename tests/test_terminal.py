"""The command line and the terminal: flags, errors in one line, signals, a quiet import of Keras."""

import contextlib
import importlib.util
import io
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, refuse

from vae import terminal


def run(code: str, **options) -> subprocess.Popen:
    """Start a script of that code, which is run as the project's own are, in a process of its own."""
    script = f"import os, signal, sys, time\nfrom vae import terminal\nsys.argv = ['main.py']\n{code}"
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options
    return subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, text=True, **options)


def end(process: subprocess.Popen) -> tuple[int, str, str]:
    out, error = process.communicate(timeout=60)
    return process.returncode, out, error


def test_paths_are_read_and_shown_as_one_would_type_them(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert terminal.shown(tmp_path / "runs" / "a") == os.path.join("runs", "a")
    assert terminal.shown(tmp_path.parent / "a") == str(tmp_path.parent / "a")
    assert terminal.as_path("~/a") == Path.home() / "a"


def test_what_the_user_can_mend_is_one_line_and_a_defect_shows_its_traceback():
    assert end(run("terminal.run(lambda: print('done'))")) == (0, "done\n", "")
    code = "def main(): raise terminal.UserError('a\\nfile: no\\r\\nsuch file')\nterminal.run(main)"
    assert end(run(code)) == (1, "", "main.py: a file: no such file\n")
    status, _, error = end(run("def fail(): raise ValueError('a bad thing')\nterminal.run(fail)"))
    assert status == 1 and error.startswith("Traceback") and error.endswith("in fail\nValueError: a bad thing\n")


def test_output_that_nobody_takes():
    for size in (10, 100_000):  # what waits in Python's buffer until the end, and what does not
        reader, writer = os.pipe()
        os.close(reader)
        process = run(f"terminal.run(lambda: print('x' * {size}))", stdout=writer)
        os.close(writer)
        assert end(process)[::2] == (141, "")


@pytest.mark.parametrize("stop", [None, terminal.UserError("no"), KeyboardInterrupt(), ValueError()])
def test_a_script_inside_another_program_leaves_all_as_it_was(stop, monkeypatch):
    """As in Jupyter and IDLE: its streams cannot be reconfigured, and the handlers of signals are its own."""
    inline = "module://matplotlib_inline.backend_inline"
    monkeypatch.setenv("MPLBACKEND", inline)
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]

    def main():
        assert os.environ["MPLBACKEND"] == "agg" and signal.getsignal(signal.SIGINT) not in handlers
        if stop is not None:
            raise stop

    with contextlib.nullcontext() if stop is None else pytest.raises((SystemExit, ValueError)):
        terminal.run(main)
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert os.environ["MPLBACKEND"] == inline


WAIT = """
def main():
    try:
        print("begun", flush=True)
        time.sleep(60)
    except BaseException as stop:
        stop.add_note("go on")
        raise
terminal.run(main)"""


@pytest.mark.skipif(os.name != "posix", reason="Windows ends a process at once")
@pytest.mark.parametrize(
    "number, status, word", [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")]
)
def test_a_signal_ends_a_script_with_its_own_status_and_the_notes(number, status, word):
    other = signal.SIGTERM if number == signal.SIGINT else signal.SIGINT
    process = run(f"signal.signal({other}, signal.SIG_IGN)\n{WAIT}")  # a shell's background job ignores Ctrl-C
    assert process.stdout.readline() == "begun\n"
    process.send_signal(other)
    process.send_signal(number)
    assert end(process) == (status, "", f"\nmain.py: {word}; go on\n")


@pytest.mark.skipif(os.name != "posix", reason="os.kill ends a process there")
def test_a_signal_that_compiled_code_loses_is_raised_again():
    code = """
def main():
    terminal.raise_lost_signal()
    try:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)
    except KeyboardInterrupt:
        pass
    terminal.raise_lost_signal()
terminal.run(main)"""
    assert end(run(code)) == (143, "", "\nmain.py: terminated\n")


def test_keras_is_imported_without_keras_json_and_what_it_does_not_need(monkeypatch, plain_keras):
    """The log of a run in test_main.py shows that the import is silent."""
    seen = []
    monkeypatch.setattr(terminal, "find_devices", lambda: seen.extend([os.environ["KERAS_HOME"], {**sys.modules}]))
    monkeypatch.setenv("TF_ENABLE_ONEDNN_OPTS", "0")
    monkeypatch.delitem(sys.modules, "sklearn", raising=False)
    own = os.environ["KERAS_HOME"]
    assert terminal.import_keras() is plain_keras
    home, modules = seen
    assert not Path(home).parent.is_dir()
    assert modules["sklearn"] is None and "sklearn" not in sys.modules
    assert (os.environ["KERAS_HOME"], os.environ["TF_ENABLE_ONEDNN_OPTS"]) == (own, "0")  # the user's own stays
    for name in ("KERAS_HOME", "TF_ENABLE_ONEDNN_OPTS"):
        monkeypatch.delenv(name)
    terminal.import_keras()
    assert "KERAS_HOME" not in os.environ and os.environ["TF_ENABLE_ONEDNN_OPTS"] == "1"


def test_a_backend_that_is_not_there_is_refused(monkeypatch):
    for given in ("", "TensorFlow"):
        monkeypatch.setenv("KERAS_BACKEND", given)
        assert terminal.find_backend() == "tensorflow"
    monkeypatch.setenv("KERAS_BACKEND", "theano")
    assert "KERAS_BACKEND=theano: set it to tensorflow, jax or torch" in refuse(terminal.import_keras)
    monkeypatch.setenv("KERAS_BACKEND", "JAX")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "KERAS_BACKEND=jax: it is not installed; pip install jax" in refuse(terminal.import_keras)
