"""main.py: what it prints, what it saves, what it refuses, and that a run which is killed loses nothing."""

import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import ROOT, SMALL, SMALL_RUN, finish, names_in, snapshot, start
from helpers import make_arrays
from PIL import Image

import main
from vae import files, plots, report, settings
from vae.data import load, public
from vae.run import LOSSES, Run
from vae.runs import read_config

FIGURES = ("loss_curves.png", "reconstructions.png", "training_images.png", "training.gif")
PROMISED = {*FIGURES, "training_state.npz", "config.json", "encoder.keras", "decoder.keras", "history.csv", "prior.npz"}
HAS_TENSORBOARD = importlib.util.find_spec("tensorboard") is not None


def history_of(folder: Path) -> np.ndarray:
    """Return the rows of a history; each has its values by their names."""
    return np.genfromtxt(folder / "history.csv", delimiter=",", names=True, ndmin=1)


HEAVY = {"keras", "tensorflow", "torch", "jax", "sklearn", "scipy", "matplotlib", "requests"}


def answer(script: str, *arguments: str) -> tuple[int, str, list[str]]:
    """Return a script's status, output and lines of error, once it is sure that it imported nothing heavy."""
    command = [sys.executable, "-X", "importtime", ROOT / script, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    lines = done.stderr.splitlines()
    imported = {line.split("|")[-1].strip().split(".")[0] for line in lines if line.startswith("import time:")}
    assert imported & HEAVY == set() and "numpy" in imported
    return done.returncode, done.stdout, [line for line in lines if not line.startswith("import time:")]


@pytest.mark.parametrize("script", ["main.py", "generator.py", "evaluate.py", "explore.py"])
def test_help_says_every_default_at_once(script):
    status, text, errors = answer(script, "--help")
    flags = re.split(r"\n  (?=-)", text.partition("options:")[2])[2:]  # after --help
    assert (status, errors) == (0, []) and len(flags) > 5
    assert [flag for flag in flags if "default" not in flag] == []


@pytest.mark.parametrize(
    "command, status, words",
    [
        ("main.py --beta 1e39", 2, "argument --beta: '1e39' is not a number from 0 to 1000000 (see python main.py"),
        ("main.py --data a.npz --dataset digits", 2, "argument --dataset: not allowed with argument --data"),
        ("main.py --data nowhere", 1, "--data nowhere: there is no such file or folder"),
        ("generator.py --checkpoint nowhere", 1, "--checkpoint nowhere: no such folder"),
        ("evaluate.py --transpose", 1, "--transpose: which images?"),
    ],
)
def test_what_cannot_be_done_is_said_at_once_in_one_line(command, status, words, root):
    script, *arguments = command.split()
    found, text, (line,) = answer(script, *arguments)
    assert (found, text) == (status, "") and line.startswith(f"{script}: {words}") and not root.exists()


def test_the_networks_are_listed_with_their_sizes_and_settings(capsys, plain_keras):
    assert main.main(["--network", "help"]) is None
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[::2]] == list(settings.NETWORKS)
    assert re.match(r"standard +[\d,]+ parameters  Two LSTMs read rows and columns", lines[0])
    pace = "--epochs 30 --batch-size 256 --learning-rate 0.006 --hidden-dim 256 --latent-dim 16 --validation-split 0.3"
    assert lines[7].strip() == pace


def test_the_log_of_a_run(small_run):
    """In a file there is nothing else: no notice of TensorFlow's, no progress bar."""
    folder, config = small_run.folder, read_config(small_run.folder)
    banner, (first, last, *end) = (part.splitlines() for part in small_run.log.split("-> Training is started.\n"))
    said = dict(line.split(" =  ") for line in banner if " =  " in line)
    assert "cores" in said.pop("device")
    facts = config["settings"] | {"dataset": "digits (embedded in scikit-learn)", "image_size": "28 x 28"}
    facts |= {name: config["dataset"][name] for name in ("train_images", "validation_images", "test_images")}
    facts |= {"prior": "mixture of 30 Gaussians, learned", "parameters": "288,128 (training state: 3 MB)"}
    assert said == {name: str(value) for name, value in facts.items() if name != "data"}
    rule, same, *stages = [line for line in banner if " =  " not in line]
    assert rule == same == "=" * 60
    for stage in ("image:         (None, 28, 28)", "epsilon:       (None, 3)", "pixels:      (None, 28, 28)"):
        assert stage in stages
    assert all(re.match(r"-----|[a-z_0-9]+: +\(None, [\d, ]+\)$", line) for line in stages)
    assert (first[:15], last[:15]) == ("|--- Epoch: 1/2", "|--- Epoch: 2/2")  # more in test_callbacks.py
    general, reconstruction, kl = (config["test"][name] for name in LOSSES)
    assert end == [
        f"-> Plot of loss curves is saved in {folder}{os.sep}loss_curves.png",
        f"-> Model is saved in {folder}",
        f"-> Test: general loss {general:.2f} = reconstruction {reconstruction:.2f} + KL {kl:.2f} nats per image "
        "(297 images of digits, one posterior sample each)",
        f"-> Draw digits from it: python generator.py --checkpoint {folder}",
    ]


def test_a_run_learns_and_has_the_promised_files(small_run):
    folder, config = small_run.folder, read_config(small_run.folder)
    assert names_in(folder) == PROMISED
    first, last = history_of(folder)
    assert last["general_loss"] < first["general_loss"] < 784
    assert config["test"] == {name: last[f"test_{name}"] for name in LOSSES}
    assert len(config["activity"]) == 3 and min(config["activity"]) > 0
    for name in ("loss_curves.png", "reconstructions.png"):
        assert np.ptp(np.asarray(Image.open(folder / name).convert("L"))) == 255
    assert set(np.unique(Image.open(folder / "training_images.png"))) == {0, 255}  # binary, as the network sees them
    assert Image.open(folder / "training.gif").n_frames == 2
    assert Run.find(str(folder)).load_prior().labels.tolist() == list(range(10))


def test_the_flags_give_the_model_and_the_seed_its_weights(plain_keras):
    def build(*flags):
        given = settings.complete(main.parse([*SMALL_RUN, "--components", "4", *flags]))
        return main.build_vae(given, load.load(load.Source("digits")))

    plain, same, other = build(), build(), build("--seed", "4", "--beta", "4", "--prior", "normal")
    bound = build("--importance-samples", "5", "--likelihood", "gaussian", "--variance", "0.5")
    assert (plain.prior.means.shape, type(other.prior).__name__) == ((4, 3), "NormalPrior")
    kernels = [vae.encoder.get_layer("lstm_rows").get_weights()[0] for vae in (plain, same, other)]
    assert np.array_equal(kernels[0], kernels[1]) and not np.isclose(kernels[0], kernels[2]).all()
    found = [(vae.beta, vae.variance, vae.importance_samples) for vae in (plain, other, bound)]
    assert found == [(1, None, 1), (4, None, 1), (1, 0.5, 5)]


def assert_same(folder: Path, other: Path) -> None:
    """Both runs have the same state, prior, figures and history, to the last bit; the times differ."""
    assert names_in(folder) == PROMISED
    ours, theirs = (files.read_arrays(each / "training_state.npz", "") for each in (folder, other))
    assert ours.keys() == theirs.keys()
    assert [key for key in ours.keys() - {"config", "history"} if not np.array_equal(ours[key], theirs[key])] == []
    for name in (*FIGURES, "prior.npz"):
        assert (folder / name).read_bytes() == (other / name).read_bytes()
    ours, theirs = ([list(row)[:-2] for row in history_of(each)] for each in (folder, other))
    assert ours == theirs
    assert read_config(folder)["test"] == read_config(other)["test"]


def stop(number: signal.Signals, line: str, *arguments: str) -> tuple[int, str]:
    """Stop main.py once it has printed that line, which waits in no buffer; return its status and its last line."""
    with start("main.py", *arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        try:
            assert any(text.startswith(line) for text in process.stdout)
            process.send_signal(number)
            return process.wait(60), process.stderr.read()
        finally:
            process.kill()


@pytest.mark.skipif(os.name != "posix", reason="Windows has no such signals")
def test_a_run_that_is_interrupted_killed_and_resumed_is_the_run_without_a_break(small_run, run_copy, root, here):
    """First in its second epoch, then after it. With dropout, binary pixels, frames, and a schedule of the rate."""
    folder = root / "mine"
    status, error = stop(signal.SIGINT, "|--- Epoch: 1/2 ", *SMALL_RUN, "--name", "mine")
    assert (status, error) == (130, f"\nmain.py: interrupted; go on with: python main.py --resume '{folder}'\n")
    stop(signal.SIGKILL, "|--- Epoch: 2/2 ", "--resume", "--seed", "3")  # the flag says what the run says
    assert (read_config(folder)["finished"], len(history_of(folder))) == (None, 2)
    assert Run.find(None).folder == run_copy
    assert main.main(["--resume", "--dataset", "digits"]) == folder
    assert_same(folder, small_run.folder)
    assert history_of(folder)[0]["elapsed"] < history_of(folder)[1]["elapsed"] and Run.find(None).folder == folder


def test_nothing_is_left_to_do_for_a_finished_run(run_copy, here, capsys):
    before = snapshot(run_copy)
    main.main(["--resume", str(run_copy), "--epochs", "2"])
    text = capsys.readouterr().out
    assert "is finished (2 epochs): nothing is left to do" in text and "larger --epochs" in text
    assert snapshot(run_copy) == before


def test_own_images_and_half_precision_in_a_hostile_environment(root, tmp_path):
    """Each file or variable has stopped a program of this kind. The terminal takes ASCII only."""
    keras_json = {"image_data_format": "channels_first", "floatx": "float16", "epsilon": 0.1, "backend": "theano"}
    (tmp_path / "keras.json").write_text(json.dumps(keras_json))
    (tmp_path / "matplotlibrc").write_text("text.usetex: True\nbackend: Qt5Agg\n")
    environment = os.environ | {name: str(tmp_path) for name in ("KERAS_HOME", "MPLCONFIGDIR")}
    environment |= {"MPLBACKEND": "module://matplotlib_inline.backend_inline", "PYTHONIOENCODING": "ascii"}
    environment["KERAS_BACKEND"] = environment.get("KERAS_BACKEND", "TensorFlow")
    np.savez(tmp_path / "数 own.npz", **make_arrays(12))
    flags = [*SMALL[2:], "--epochs", "1", "--batch-size", "5", "--precision", "mixed_float16"]
    done = finish("main.py", *flags, "--data", "数 own.npz", cwd=tmp_path, env=environment)
    assert done.returncode == 0 and "\\u6570 own.npz" in done.stdout, done.stderr
    assert done.stdout.endswith("generator.py --checkpoint 'my runs/standard-own-001'\n")  # as a shell needs it
    (row,) = history_of(root / "standard-own-001")
    assert np.isfinite(list(row)).all() and 100 < row["general_loss"] < 2000
    assert names_in(root / "standard-own-001") == PROMISED


def test_what_needs_more_than_half_of_the_memory_is_named(capsys):
    half = SimpleNamespace(count_params=lambda: 10_000_000, output_shape=(None, 28, 28))
    vae = SimpleNamespace(encoder=half, decoder=half, prior=SimpleNamespace(count_params=lambda: 30_000_000))
    line = "-> Training will need about 8.3 GB of memory, and this machine has 16.0 GB: a smaller "
    line += "--batch-size or --importance-samples needs less\n"
    for memory, said in ((16, line), (17, "")):
        report.warn_of_memory(settings.complete({"batch_size": 20_000}), vae, memory * 10**9)
        assert capsys.readouterr().err == said


def test_all_at_once_without_network(root, here, monkeypatch, capsys):
    """Held-out images, Gaussian pixels, saved reconstructions, TensorBoard, on the digits, as MNIST is unavailable."""
    monkeypatch.setitem(public.MIRRORS, "mnist", ("http://127.0.0.1:9/",))  # nobody answers there
    titles, write = [], plots.write_figure
    monkeypatch.setattr(plots, "write_figure", lambda *given: titles.append(given[0].get_suptitle()) or write(*given))
    flags = ["--validation-split", "0.2", "--likelihood", "gaussian", "--variance", "0.05", "--save-reconstructions"]
    flags += ["--tensorboard"] * HAS_TENSORBOARD
    folder = main.main([*SMALL[2:], "--epochs", "1", *flags])
    log, config = capsys.readouterr(), read_config(folder)
    assert names_in(root / "standard-digits-001") - {"tensorboard"} == PROMISED | {"reconstructions.npz"}
    logs = {path.parent.name for path in folder.glob("tensorboard/*/*tfevents*")}
    assert logs == ({"train", "validation"} if HAS_TENSORBOARD else set())
    assert Run.find(None).load_reconstructions().shape == (1200, 28, 28)
    # Nobody can miss that these are not MNIST's digits.
    assert "!" * 80 in log.err and "MNIST" in log.err and "MNIST" in config["dataset"]["warning"]
    assert re.search(r"^dataset =  digits \(.*; MNIST is unavailable\)$", log.out, re.MULTILINE)
    assert [title.startswith("standard on digits, as MNIST is unavailable") for title in titles] == [True, True]
    (row,) = history_of(folder)  # held-out images are measured after each epoch, the test images at the end
    assert row["val_general_loss"] != pytest.approx(config["test"]["general_loss"], abs=0.01)
    picture = np.asarray(Image.open(folder / "training_images.png"))
    first = picture[2:86:3, 2:86:3]  # of the first batch, thrice as large
    places = [np.array_equal(first, image) for image in load.load(load.Source("digits")).train_images]
    assert places.index(True) > 0  # they are shuffled


@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_the_scripts_run_on_another_backend(backend, tmp_path):
    if importlib.util.find_spec(backend) is None:
        pytest.skip(f"{backend} is not installed")
    environment = os.environ | {"KERAS_BACKEND": backend, "VAE_CHECKPOINTS": str(tmp_path)}
    for script, *arguments in (
        ("main.py", *SMALL_RUN, "--name", "run", "--network", "readout", "--prior", "mixture"),
        ("generator.py", "--checkpoint", "run", "--output", "digits.png"),
        ("evaluate.py", "--checkpoint", "run", "--images", "9", "--importance-samples", "2"),
    ):
        done = finish(script, *arguments, cwd=tmp_path, env=environment)
        assert done.returncode == 0, done.stderr
    assert read_config(tmp_path / "run")["backend"] == backend
    first, last = history_of(tmp_path / "run")
    assert last["general_loss"] < first["general_loss"]
