"""The command lines: what they print, what they save, what they refuse, and that it can be repeated."""

import contextlib
import csv
import importlib.util
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, SMALL, SMALL_RUN, finish, refuse, snapshot, start
from PIL import Image

import evaluate
import generator
import main
from vae import files, plots, run, settings
from vae.data import load, public
from vae.data.dataset import to_pixels
from vae.run import LOSSES, Run
from vae.runs import read_config

SHIPPED = ROOT / "checkpoints" / "pretrained"
SHIPPED_LOSSES = (88.45, 66.80, 21.66)
SHIPPED_ACTIVE = 24
SHIPPED_LIKELIHOOD = 88.0
SHIPPED_ACCURACY = 0.9824
FEW = ("--importance-samples", "2", "--images", "20")
PROMISED = {*run.EPOCH_FILES, "training_images.png", "loss_curves.png", "reconstructions.png", "prior.npz"}


def history_of(folder: Path) -> list[dict]:
    with open(folder / "history.csv", newline="") as file:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} - {".lock"}


def measure(capsys, *arguments: str) -> tuple[dict, str]:
    """Return what `evaluate.py --json` prints, and its standard error."""
    capsys.readouterr()
    evaluate.main([*arguments, "--json"])
    printed = capsys.readouterr()
    assert printed.out.count("\n") == 1
    return json.loads(printed.out, parse_constant=lambda constant: 1 / 0), printed.err  # NaN is no JSON


# Command lines


HEAVY = {"keras", "tensorflow", "torch", "jax", "sklearn", "scipy", "matplotlib", "pooch", "requests"}


def answer_at_once(script: str, *arguments: str) -> tuple[int, str, list[str]]:
    """Return a script's status, output and lines of error, once it is sure that it imported nothing heavy."""
    command = [sys.executable, "-X", "importtime", ROOT / script, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    lines = done.stderr.splitlines()
    imported = {line.split("|")[-1].strip().split(".")[0] for line in lines if line.startswith("import time:")}
    assert imported & HEAVY == set() and "numpy" in imported
    return done.returncode, done.stdout, [line for line in lines if not line.startswith("import time:")]


FLAGS = {
    "main.py": "resume network dataset data transpose image-size validation-split epochs batch-size learning-rate "
    "latent-dim hidden-dim prior components beta importance-samples likelihood variance binarize seed name overwrite "
    "save-reconstructions precision tensorboard deterministic devices processes process coordinator",
    "generator.py": "checkpoint count columns digit label scale seed output arrays interpolate manifold reconstruct "
    "from dataset data transpose",
    "evaluate.py": "checkpoint dataset data transpose binarize importance-samples images arrays figures seed json",
    "explore.py": "checkpoint dataset data transpose output no-open",
}


@pytest.mark.parametrize("script", FLAGS)
def test_help_says_every_flag_with_its_default_at_once(script):
    status, text, errors = answer_at_once(script, "--help")
    assert (status, errors) == (0, [])
    options = {part.split()[0]: part for part in re.split(r"\n  (?=-)", text.partition("options:")[2])[1:]}
    assert {*options} - {"-h,"} == {f"--{flag}" for flag in FLAGS[script].split()}
    assert [flag for flag, part in options.items() if flag != "-h," and "default" not in part] == []


@pytest.mark.parametrize(
    "command, status, words",
    [
        ("main.py --network nonsense", 2, "argument --network: invalid choice: 'nonsense'"),
        ("main.py --data nowhere", 1, "--data .*nowhere: there is no such file or folder"),
        ("generator.py --checkpoint nowhere", 1, "--checkpoint nowhere: no such folder"),
        ("evaluate.py --checkpoint nowhere", 1, "--checkpoint nowhere: no such folder"),
    ],
)
def test_what_cannot_be_done_is_said_at_once_in_one_line(command, status, words, root):
    script, *arguments = command.split()
    found, text, (line,) = answer_at_once(script, *arguments)
    assert (found, text) == (status, "") and re.match(f"{script}: {words}", line) and not root.exists()


WRONG = [
    "main.py nonsense",
    "generator.py --count 1000001",
    "generator.py --scale nan",
    "generator.py --digit -1",
    "generator.py --digit ²",
    "generator.py --manifold --reconstruct",
    "evaluate.py --images 0",
]


@pytest.mark.parametrize("command", WRONG)
def test_a_wrong_flag_is_one_line_with_status_2(command, monkeypatch, capsys):
    script, *arguments = command.split()
    monkeypatch.setattr(sys, "argv", [str(ROOT / script)])
    with pytest.raises(SystemExit) as caught:
        {"main.py": main, "generator.py": generator, "evaluate.py": evaluate}[script].main(arguments)
    printed = capsys.readouterr()
    assert (caught.value.code, printed.out, printed.err.count("\n")) == (2, "", 1)
    assert printed.err.startswith(f"{script}: ") and arguments[0] in printed.err
    assert printed.err.endswith(f"(see python {script} --help)\n")


def test_the_networks_are_listed_with_their_sizes_and_settings(capsys, plain_keras):
    main.main(["--network", "help"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[::2]] == list(settings.NETWORKS)
    assert lines[0].startswith("standard    1,283,232 parameters  Two LSTMs read rows and columns")
    pace = "--epochs 30 --batch-size 256 --learning-rate 0.006 --hidden-dim 256 --latent-dim 16 --validation-split 0.3"
    assert lines[7].strip() == pace


# Training

LOG = """\
============================================================
network =  standard
dataset =  digits (embedded in scikit-learn)
image_size =  28 x 28
train_images =  1500
validation_images =  0
test_images =  297
batch_size =  64
hidden_dim =  8
latent_dim =  3
epoch_number =  2
learning_rate =  0.01
prior =  mixture of 30 Gaussians, learned
beta =  1.0
importance_samples =  1
likelihood =  bernoulli
binarize =  True
precision =  float32
deterministic =  False
seed =  3
device =  {device}
parameters =  883312
============================================================
----- Encoder -----
image:         (None, 28, 28)
columns:       (None, 28, 28)
lstm_rows:     (None, 28, 8)
lstm_columns:  (None, 28, 8)
flatten1:      (None, 224)
flatten2:      (None, 224)
concatenate:   (None, 448)
dropout:       (None, 448)
mu:            (None, 3)
sigma:         (None, 3)
epsilon:       (None, 3)
z:             (None, 3)
----- Decoder -----
z:           (None, 3)
dense1:      (None, 256)
dense2:      (None, 3136)
reshape:     (None, 7, 7, 64)
tconv1:      (None, 7, 7, 64)
tconv2:      (None, 14, 14, 32)
tconv3:      (None, 14, 14, 4)
pixels_2x2:  (None, 14, 14, 2, 2)
interleave:  (None, 14, 2, 14, 2)
logits:      (None, 28, 28)
pixels:      (None, 28, 28)
-> Training is started.
{epochs}
-> Plot of loss curves is saved in {folder}{sep}loss_curves.png
-> Model is saved in {folder}
-> Test: general loss {0:.2f} = reconstruction {1:.2f} + KL {2:.2f} nats per image (297 images of digits, one \
posterior sample each)
-> Draw digits from it: python generator.py --checkpoint {folder}
"""


def test_the_log_of_a_run_word_for_word(small_run):
    """In a file there is nothing else: no notice of TensorFlow's, no progress bar. test_callbacks.py has the epochs."""
    folder, log = small_run
    (device,) = re.findall(r"^device =  (\S.*)$", log, re.MULTILINE)
    epochs = "\n".join(re.findall(r"^\|--- Epoch: ./2 \t---> .*\d\.\d s$", log, re.MULTILINE))
    losses = [history_of(folder)[-1][f"test_{name}"] for name in LOSSES]
    assert log == LOG.format(*losses, device=device, epochs=epochs, folder=folder, sep=os.sep)


def test_a_run_has_the_promised_files_and_a_history_that_adds_up(small_run):
    folder, _ = small_run
    assert names_in(folder) == PROMISED
    first, last = history_of(folder)
    for row in (first, last):
        for prefix in ("", "test_"):
            general, reconstruction, kl = (row[prefix + name] for name in LOSSES)
            assert general == pytest.approx(reconstruction + kl, abs=0.01) and 0 < kl < general < 784
        assert 0 < row["seconds"] < row["elapsed"]
    assert last["general_loss"] < first["general_loss"] and last["elapsed"] > first["elapsed"]
    for name in ("loss_curves.png", "reconstructions.png"):
        with Image.open(folder / name) as picture:
            assert picture.format == "PNG" and min(picture.size) > 300
            assert np.ptp(np.asarray(picture.convert("L"))) == 255
    assert set(np.unique(Image.open(folder / "training_images.png"))) == {0, 255}  # binary, as the network sees them


def test_the_config_of_a_run_says_all_about_it(small_run):
    config, last = read_config(small_run.folder), history_of(small_run.folder)[-1]
    assert config["settings"] == vars(settings.complete(main.parse(SMALL_RUN))) | {"components": 30}
    sha256 = load.load(load.Options("digits")).sha256
    dataset = {"name": "digits", "sha256": sha256, "label_names": None, "warning": None, "image_size": [28, 28]}
    assert config["dataset"] == dataset | {"train_images": 1500, "validation_images": 0, "test_images": 297}
    assert {"python", "keras", "numpy", config["backend"]} == set(config["versions"])
    assert (config["epochs_done"], config["parameters"], config["taken_further"]) == (2, 883312, [])
    assert len(config["activity"]) == 3 and min(config["activity"]) > 0
    assert config["test"] == {name: last[f"test_{name}"] for name in LOSSES}
    assert datetime.fromisoformat(config["finished"]).utcoffset().total_seconds() == 0


def arrays_of(folder: Path) -> dict[str, np.ndarray]:
    """Return all that training gave a run: state, models, prior, figures, and the history without times."""
    one = Run.find(str(folder))
    decoder = one.load_decoder()
    prior = vars(one.load_prior(3))
    state = files.read_arrays(folder / "training_state.npz", "")
    arrays = {name: array for name, array in state.items() if name.startswith("variable")} | prior
    arrays["history"] = np.array([list(row.values())[:-2] for row in history_of(folder)])
    models = [*one.load_encoder(decoder).get_weights(), *decoder.get_weights()]
    arrays |= {f"model {number}": weights for number, weights in enumerate(models)}
    figures = ("loss_curves.png", "reconstructions.png", "training_images.png")
    return arrays | {name: np.asarray(Image.open(folder / name)) for name in figures}


def interrupt_second_epoch(*arguments: str) -> tuple[int, str]:
    """Press Ctrl-C in the second epoch of the small run; return its status, and what its terminal has shown.

    Windows has no such terminals: there the run is killed.
    """
    terminal, end = open_terminal() if os.name == "posix" else (None, subprocess.DEVNULL)
    options = {"stdout": subprocess.PIPE, "stderr": end, "start_new_session": True}
    with start("main.py", *SMALL_RUN, *arguments, **options) as process:
        try:  # the line of an epoch does not wait in a buffer
            assert any(line.startswith("|--- Epoch: 1/2 ") for line in process.stdout)
            process.send_signal(signal.SIGTERM if terminal is None else signal.SIGINT)
            process.wait(60)
        finally:
            process.kill()
    return process.returncode, "" if terminal is None else read_terminal(terminal, end)


def open_terminal() -> tuple[int, int]:
    """Open a terminal of 150 columns; its second end is for a process to write to."""
    import pty
    import termios

    terminal, end = pty.openpty()
    termios.tcsetwinsize(end, (40, 150))
    return terminal, end


def read_terminal(terminal: int, end: int) -> str:
    """Return what was written to a terminal, and close it."""
    os.set_blocking(terminal, False)
    text = b""
    with contextlib.suppress(BlockingIOError):  # there is no more
        while part := os.read(terminal, 10_000):
            text += part
    os.close(terminal)
    os.close(end)
    return text.decode(errors="replace")


def test_a_run_that_is_interrupted_and_resumed_is_the_run_without_a_break(small_run, run_copy, root, here, monkeypatch):
    """The same to the last bit: with dropout, binary pixels, and the schedule of the learning rate."""
    from vae import fast
    from vae.data import batches

    folder = root / "mine"
    status, shown = interrupt_second_epoch("--name", "mine")
    if os.name == "posix":
        assert status == 130 and "Traceback" not in shown
        assert shown.rstrip().endswith(f"main.py: interrupted; go on with: python main.py --resume {folder}")
        bar = r"Epoch 1/2: [^\r\n]*\d+/48 \[\d\d:\d\d<[\d:]+, .*general=[\d.]+, reconstruction=[\d.]+, kl=[\d.]+"
        assert re.search(bar, shown)
    assert (read_config(folder)["finished"], len(history_of(folder))) == (None, 1)
    assert Run.find(None).folder == run_copy

    class Batches(batches.Batches):
        def __getitem__(self, index):
            (batch,) = super().__getitem__(index)
            visits.update([(self._epoch, index)] if self._shuffle else [])
            return (batch,)

    def train_step(self, images):
        traced.append(images)
        return super(fast.FastVAE, self).train_step(images)

    visits, traced = set(), []
    monkeypatch.setattr(batches, "Batches", Batches)
    monkeypatch.setattr(fast.FastVAE, "train_step", train_step, raising=False)
    main.main(["--resume", "--seed", "3", "--dataset", "digits"])  # these flags say what the run says
    assert visits >= {(1, index) for index in range(24)} and {epoch for epoch, _ in visits} <= {0, 1}
    assert len(traced) <= 1
    ours, theirs = arrays_of(folder), arrays_of(small_run.folder)
    assert ours.keys() == theirs.keys()
    for name, array in ours.items():
        np.testing.assert_array_equal(array, theirs[name], err_msg=name)
    variables = [array for name, array in ours.items() if name.startswith("variable") and array.ndim]
    of_models = len([name for name in ours if name.startswith("model")])
    assert len(variables) == 3 * (of_models + 3) > 9  # with the prior's three, and both moments of all
    assert names_in(folder) == PROMISED and Run.find(None).folder == folder
    elapsed = [row["elapsed"] for row in history_of(folder)]
    assert elapsed == sorted(elapsed)


def test_a_finished_run_has_nothing_left_to_do(run_copy, here, capsys):
    before = snapshot(run_copy)
    for arguments in (["--resume"], ["--resume", str(run_copy), "--epochs", "2"]):
        main.main(arguments)
        text = capsys.readouterr().out
        assert "is finished (2 epochs): nothing is left to do" in text and "larger --epochs" in text
    assert snapshot(run_copy) == before


def test_a_loss_that_is_not_finite_leaves_the_run_that_was_to_be_overwritten(run_copy, here):
    before = snapshot(run_copy)
    flags = [*SMALL, "--network", "dense", "--learning-rate", "1e30", "--name", run_copy.name, "--overwrite"]
    message = refuse(main.main, flags)
    assert "finite in epoch 1" in message and "nothing was saved" in message and "--learning-rate" in message
    assert snapshot(run_copy) == before


def test_the_model_is_built_as_the_settings_say(here, monkeypatch):
    tensorflow = pytest.importorskip("tensorflow")
    asked = []
    monkeypatch.setattr(tensorflow.config.experimental, "enable_op_determinism", lambda: asked.append(True))

    def build(*flags):
        return main.build_vae(
            settings.complete(main.parse([*SMALL_RUN, "--components", "4", *flags])), load.load(load.Options("digits"))
        )

    plain, same = build(), build()
    other = build("--seed", "4", "--epochs", "5", "--precision", "mixed_float16", "--beta", "4")
    bound = build("--importance-samples", "5", "--likelihood", "gaussian", "--variance", "0.5", "--deterministic")
    assert (type(plain.prior).__name__, plain.prior.means.shape) == ("MixturePrior", (4, 3))
    assert type(build("--prior", "normal").prior).__name__ == "NormalPrior"
    kernels = [vae.encoder.get_layer("lstm_rows").get_weights()[0] for vae in (plain, same, other)]
    assert np.array_equal(kernels[0], kernels[1]) and not np.isclose(kernels[0], kernels[2]).all()
    assert [(vae.beta, vae.variance, vae.importance_samples) for vae in (plain, other)] == [(1, None, 1), (4, None, 1)]
    assert (bound.variance, bound.importance_samples, asked) == (0.5, 5, [True])
    scaled = other.optimizer  # it scales the loss, or small gradients would be zero
    assert type(scaled).__name__ == "LossScaleOptimizer" and type(plain.optimizer).__name__ == "Adam"
    assert len([array for array in scaled.variables if tuple(array.shape) == (28, 32)]) == 4  # of two LSTMs
    rate = scaled.inner_optimizer._learning_rate  # 24 steps an epoch, 120 in all, 1 to warm up
    np.testing.assert_allclose([float(rate(step)) for step in (0, 1, 60.5, 120)], [0, 0.01, 0.005, 0], atol=1e-6)


def test_an_operation_keeps_to_one_core_only_where_a_batch_is_in_shards(here, monkeypatch, plain_keras):
    asked = []
    monkeypatch.setattr(main.terminal, "import_keras", lambda in_shards: asked.append(in_shards) or plain_keras)
    for flags in (["--batch-size", "50"], ["--batch-size", "49"], ["--network", "batchnorm"]):
        options = settings.complete(main.parse([*SMALL, "--components", "4", *flags]))
        main.build_vae(options, load.load(load.Options("digits")))
    assert asked == [True, False, False]


@pytest.fixture
def hostile(tmp_path) -> dict[str, str]:
    """An environment in which each file or variable has stopped a program of this kind."""
    (tmp_path / "user").mkdir()
    keras_json = {"image_data_format": "channels_first", "floatx": "float16", "epsilon": 0.1, "backend": "theano"}
    (tmp_path / "user" / "keras.json").write_text(json.dumps(keras_json))
    (tmp_path / "user" / "matplotlibrc").write_text("text.usetex: True\nbackend: Qt5Agg\n")
    environment = os.environ | {name: str(tmp_path / "user") for name in ("KERAS_HOME", "MPLCONFIGDIR")}
    environment |= {"MPLBACKEND": "module://matplotlib_inline.backend_inline", "PYTHONIOENCODING": "ascii"}
    if environment.get("KERAS_BACKEND", "tensorflow") == "tensorflow":
        environment["KERAS_BACKEND"] = "TensorFlow"
    return environment


def test_own_images_few_as_they_are_go_all_the_way(here, hostile, monkeypatch, capsys):
    """In an environment that takes ASCII only. Most labels come once."""
    images = np.random.default_rng(0).integers(0, 256, (12, 28, 28), np.uint8)
    np.savez("数 own.npz", x_train=images, y_train=[*range(11), 10], x_test=images[:3], y_test=[0, 1, 2])
    flags = [*SMALL[2:], "--epochs", "1", "--batch-size", "5", "--precision", "mixed_bfloat16"]
    done = finish("main.py", *flags, "--data", "数 own.npz", env=hostile)
    assert done.returncode == 0 and "\\u6570 own.npz" in done.stdout
    assert [line for line in done.stderr.splitlines() if "BFLOAT16" not in line] == []  # oneDNN wants AVX-512 for it
    folder = Run.find(None).folder
    assert folder.name == "standard-own-001" and names_in(folder) == PROMISED

    (here / "elsewhere").mkdir()
    monkeypatch.chdir(here / "elsewhere")  # the path to the images was relative
    measured, _ = measure(capsys, "--importance-samples", "2")
    assert (measured["images"], measured["checkpoint"]) == (3, str(folder))
    np.savez("one.npz", x_train=images, x_test=images[:1])
    measured, said = measure(capsys, "--data", "one.npz", "--importance-samples", "2")
    assert measured["images"] == 1 and "not the images that the model was trained on" in said


@pytest.mark.skipif(os.name != "posix", reason="a shell of Unix closes the streams")
def test_a_script_does_not_need_streams(run_copy, tmp_path, hostile):
    """A service may have none."""
    command = shlex.join([sys.executable, str(ROOT / "generator.py")])
    done = subprocess.run(["sh", "-c", f"exec {command} <&- >&- 2>&-"], cwd=tmp_path, env=hostile, timeout=300)
    assert done.returncode == 0 and Image.open(tmp_path / "generated_images.png").size == (862, 862)


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="only Linux says it in files")
def test_open_files_and_memory_do_not_grow_with_the_epochs(root, here, monkeypatch):
    save_epoch, found = Run.save_epoch, []

    def save(self, vae, row):
        save_epoch(self, vae, row)
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        found.append((len(os.listdir("/proc/self/fd")), pages * os.sysconf("SC_PAGE_SIZE") / 2**20))

    monkeypatch.setattr(Run, "save_epoch", save)
    main.main([*SMALL, "--network", "dense", "--epochs", "9"])
    files_open, memory = zip(*found, strict=True)
    assert len(set(files_open[1:])) == 1 and memory[-1] - memory[3] < 20  # MiB; a copy of the data set is 4.5


def test_all_at_once_without_network(root, here, tmp_path, monkeypatch, capsys):
    """Held-out images, Gaussian pixels and saved reconstructions, on the digits, as MNIST is unavailable."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        monkeypatch.setitem(public.MIRRORS, "mnist", (f"http://127.0.0.1:{free.getsockname()[1]}/",))
    titles = []
    for name in ("loss_curves", "reconstructions"):
        draw = getattr(plots, name)
        monkeypatch.setattr(plots, name, lambda *given, draw=draw: titles.append(given[-1]) or draw(*given))
    flags = ["--validation-split", "0.2", "--likelihood", "gaussian", "--variance", "0.05", "--save-reconstructions"]
    main.main([*SMALL[2:], "--epochs", "1", *flags])
    folder, log = root / "standard-digits-001", capsys.readouterr()
    assert names_in(folder) == PROMISED | {"reconstructions.npz"}

    # Nobody can miss that these are not MNIST's digits.
    assert "!" * 80 in log.err and "MNIST is unavailable" in log.err and "digits of scikit-learn replace it" in log.err
    assert re.search(r"^dataset =  digits \(.*; MNIST is unavailable\)$", log.out, re.MULTILINE)
    assert [title.startswith("standard on digits, as MNIST is unavailable") for title in titles] == [True, True]
    config = read_config(folder)
    assert "MNIST" in config["dataset"]["warning"] and config["settings"]["dataset"] is None
    assert "--dataset mnist" in refuse(main.main, [*SMALL[2:], "--dataset", "mnist"])
    assert names_in(root) == {folder.name}

    # Held-out images are measured after each epoch, the test images at the end.
    assert "train_images =  1200\nvalidation_images =  300\ntest_images =  297\n" in log.out
    (row,), losses = history_of(folder), config["test"]
    assert f"| Validation: {row['val_general_loss']:.2f} |" in log.out and "test_general_loss" not in row
    assert losses["general_loss"] == pytest.approx(losses["reconstruction_loss"] + losses["kl_loss"], abs=1e-3)
    assert f"-> Test: general loss {losses['general_loss']:.2f} = " in log.out and "(297 images of digits" in log.out

    # Gaussian pixels are measured as they were trained.
    assert "likelihood =  gaussian (variance 0.05)" in log.out
    measured, said = measure(capsys, "--checkpoint", str(folder), *FEW)
    assert "Gaussian (variance 0.05) pixels" in said
    assert measured["general_loss"] == pytest.approx(losses["general_loss"], rel=0.02)  # other posterior samples
    assert measured["irreducible_loss"] == pytest.approx(392 * np.log(2 * np.pi * 0.05))
    assert "its pixels are Gaussian" in refuse(evaluate.main, ["--checkpoint", str(folder), "--binarize", *FEW])

    # The saved reconstructions are drawn.
    assert "-> 1,200 reconstructions are saved in " in log.out
    generator.main(["--from", "reconstructions", "--seed", "5", "--arrays", "a.npz"])
    assert "-> Reconstructions are restored from" in capsys.readouterr().out
    drawn = np.rint(255 * np.load("a.npz")["images"]).astype(np.uint8)
    saved = {image.tobytes() for image in Run.find(None).load_reconstructions()}
    assert len(drawn) == 100 and {image.tobytes() for image in drawn} <= saved


# Keras's other backends


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


# The shipped model, and what other programs make of it

ELSEWHERE = """
import importlib.util, json, os, sys
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "2"
import keras, numpy as np

assert not any(map(importlib.util.find_spec, ("model", "vae", "main")))
folder, x, samples = sys.argv[1], np.load(sys.argv[2]), int(sys.argv[3])
encoder, decoder = (keras.saving.load_model(f"{folder}/{half}.keras") for half in ("encoder", "decoder"))
mean, log_var = (part.astype(np.float64) for part in encoder.predict(x, verbose=0))
prior = np.load(f"{folder}/prior.npz")
rng = np.random.default_rng(1)

# log sum_m w_m N(z; mean_m, F_m F_m^T), each density with its constants
def log_prior(z):
    total = np.full(len(z), -np.inf)
    for w, m, f in zip(prior["weights"], prior["means"], prior["factors"].astype(np.float64)):
        off = np.linalg.solve(f, (z - m).T)
        total = np.logaddexp(total, np.log(w) - 0.5 * (off ** 2).sum(axis=0) - np.log(np.diag(f)).sum()
                             - 0.5 * len(m) * np.log(2 * np.pi))
    return total

log_likelihoods, log_ratios = [], []  # log p(x|z) and log p(z) / q(z|x)
for _ in range(samples):
    epsilon = rng.standard_normal(mean.shape)
    z = mean + np.exp(log_var / 2) * epsilon
    p = np.clip(decoder.predict(z.astype(np.float32), verbose=0).astype(np.float64), 1e-9, 1 - 1e-7)
    log_likelihoods.append((x * np.log(p) + (1 - x) * np.log(1 - p)).sum(axis=(1, 2)))
    log_ratios.append(log_prior(z) + 0.5 * (epsilon ** 2 + log_var + np.log(2 * np.pi)).sum(axis=1))
found = {"reconstruction_loss": -np.mean(log_likelihoods), "kl_loss": -np.mean(log_ratios)}
found["general_loss"] = found["reconstruction_loss"] + found["kl_loss"]
log_weights = np.add(log_likelihoods, log_ratios)  # log p(x) ~ log mean p(x|z) p(z) / q(z|x)
found["nll"] = -np.mean(np.logaddexp.reduce(log_weights, axis=0) - np.log(samples))
found["active_units"] = int((mean.var(axis=0) > 0.01).sum())
print(json.dumps(found))
"""


def test_the_shipped_model_is_as_good_as_it_says_also_without_this_project(here, capsys):
    """From its files, Keras and NumPy, in a process that cannot import this project. On MNIST if it is there."""
    is_mnist = "MNIST_DIR" in os.environ
    place = ["--data", os.environ["MNIST_DIR"]] if is_mnist else ["--dataset", "digits"]
    measured, said = measure(capsys, *place, "--arrays", "a.npz", "--importance-samples", "10")
    assert f"-> Checkpoints are restored from {SHIPPED}\n" in said and "grey pixels" in said
    assert ("not the images" in said) == (not is_mnist)
    if is_mnist:
        assert [measured[loss] for loss in LOSSES] == pytest.approx(SHIPPED_LOSSES, abs=0.1)
        assert history_of(SHIPPED)[-1]["test_general_loss"] == pytest.approx(SHIPPED_LOSSES[0], abs=0.15)
        assert measured["active_units"] == SHIPPED_ACTIVE and measured["nll"] < SHIPPED_LIKELIHOOD
        assert measured["label_accuracy"] == pytest.approx(SHIPPED_ACCURACY, abs=0.003)

    images = load.load(load.Options(data=place[1]) if is_mnist else load.Options("digits")).test_images
    chosen = np.random.default_rng(0).permutation(len(images))[:1000]  # the likelihood was estimated on these
    np.save("x.npy", to_pixels(images[chosen]))
    command = [sys.executable, "-I", "-c", ELSEWHERE, SHIPPED, "x.npy", "10"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    arrays = files.read_arrays(Path("a.npz"), "")
    ours = measured | {name: arrays[name][chosen].mean() for name in LOSSES}
    for metric, value in json.loads(done.stdout).items():
        assert ours[metric] == pytest.approx(value, rel=0.004), metric  # other posterior samples


def test_a_run_is_restored_from_any_path_and_is_not_written_to(tmp_path, here, capsys):
    folder = shutil.copytree(SHIPPED, tmp_path / "a place with ä, 数 and 'quotes'" / "run 1")
    for path in (*folder.iterdir(), folder):
        path.chmod(0o444 if path.is_file() else 0o555)
    before = snapshot(folder)
    try:
        generator.main(["--checkpoint", str(folder), "--digit", "0123456789", "--count", "10"])
        measured, said = measure(capsys, "--checkpoint", str(folder), "--dataset", "digits", "--binarize", *FEW)
    finally:
        folder.chmod(0o755)
    assert measured["checkpoint"] == str(folder)
    assert measured["irreducible_loss"] == 0 and "binary pixels" in said  # though it was trained on grey ones
    assert snapshot(folder) == before and Path("generated_images.png").exists()
