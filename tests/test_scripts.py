"""The three command lines: what they print, what they leave behind, and that it can be had again."""

import csv
import fcntl
import importlib.util
import json
import os
import platform
import pty
import re
import shlex
import shutil
import signal
import socket
import struct
import subprocess
import sys
import termios
import time
import zipfile
from datetime import datetime
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, SMALL, SMALL_RUN, finish, snapshot, start
from PIL import Image

import evaluate
import generator
import main
from vae import archive, checkpoint, console, data, download, plots, training
from vae.settings import NETWORKS, SETTINGS, UserError

LOSSES = ("general_loss", "reconstruction_loss", "kl_loss")
NUMBER = r"\d+\.\d\d"


def history_of(folder: Path) -> list[dict]:
    with open(folder / "history.csv", newline="") as file:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]


def losses_of(folder: Path) -> list[list[float]]:
    return [[row[prefix + name] for prefix in ("", "test_") for name in LOSSES] for row in history_of(folder)]


def config_of(folder: Path) -> dict:
    return json.loads((folder / "config.json").read_text())


@pytest.fixture
def here(tmp_path, monkeypatch, plain_keras) -> Path:
    """An empty folder to run scripts in, within this process."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


@pytest.fixture
def own_data(tmp_path) -> Path:
    """Some images of one's own: a dozen to train on, of which most labels come once, and three to test on."""
    rng = np.random.default_rng(0)
    x_train, x_test = (rng.integers(0, 256, (count, 28, 28), dtype=np.uint8) for count in (12, 3))
    labels = {"y_train": np.array([*range(10), 9, 9]), "y_test": np.arange(3)}
    np.savez(tmp_path / "My own.npz", x_train=x_train, x_test=x_test, **labels)
    return tmp_path / "My own.npz"


# Command lines


def quick(script: str, *arguments: str) -> tuple[int, str, list[str], set[str]]:
    """Run a script; return its status, standard output, lines of standard error, and the packages that it imported."""
    command = [sys.executable, "-X", "importtime", ROOT / script, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    lines = done.stderr.splitlines()
    imported = {line.split("|")[-1].strip().split(".")[0] for line in lines if line.startswith("import time:")}
    return done.returncode, done.stdout, [line for line in lines if not line.startswith("import time:")], imported


HEAVY = {"keras", "tensorflow", "torch", "jax", "sklearn", "scipy", "matplotlib", "pooch", "requests"}

FLAGS = {
    "main.py": "network dataset data epochs batch-size learning-rate latent-dim hidden-dim beta "
    "importance-samples binarize seed name overwrite precision tensorboard deterministic",
    "generator.py": "checkpoint count columns scale seed output arrays",
    "evaluate.py": "checkpoint dataset data json",
}


@pytest.mark.parametrize("script", FLAGS)
def test_help_tells_every_flag_with_its_default_at_once(script):
    status, text, errors, imported = quick(script, "--help")
    assert (status, errors) == (0, [])
    options = {part.split()[0]: part for part in re.split(r"\n  (?=-)", text.partition("options:")[2])[1:]}
    assert {f"--{flag}" for flag in FLAGS[script].split()} <= set(options)
    assert [flag for flag, part in options.items() if flag != "-h," and "default" not in part] == []
    assert imported & HEAVY == set() and "numpy" in imported


def test_help_of_training_tells_the_defaults_that_training_takes():
    text = " ".join(quick("main.py", "--help")[1].split())
    settings = main.complete(main.parse([]))
    assert settings.keys() == {setting.name for setting in SETTINGS}
    for name in ("epochs", "batch_size", "learning_rate", "latent_dim", "hidden_dim"):
        assert settings[name] == getattr(NETWORKS["standard"], name)
        assert f"{settings[name]} for standard" in text


WRONG = [
    "main.py --epochs 0",
    "main.py --epochs 1e3",
    f"main.py --epochs {'9' * 400}",
    "main.py --epochs ''",
    "main.py --epochs",
    "main.py --batch-size -5",
    "main.py --learning-rate 0",
    "main.py --learning-rate nan",
    "main.py --learning-rate inf",
    "main.py --latent-dim 2.5",
    "main.py --hidden-dim two",
    "main.py --beta -1",
    "main.py --importance-samples 101",
    "main.py --seed -1",
    "main.py --seed 4294967296",
    "main.py --network nonsense",
    "main.py --dataset nonsense",
    "main.py --precision nonsense",
    "main.py --nonsense",
    "main.py nonsense",
    "generator.py --count 0",
    "generator.py --count 1000001",
    "generator.py --columns -1",
    "generator.py --scale -1",
    "generator.py --scale nan",
    "generator.py --seed nonsense",
    "evaluate.py --seed 1.5",
    "evaluate.py --dataset nonsense",
    "evaluate.py --jsonl",
]


@pytest.mark.parametrize("command", WRONG, ids=lambda command: command[:40])
def test_a_wrong_flag_is_answered_with_one_line_at_once(command, root):
    script, *arguments = shlex.split(command)
    status, text, errors, imported = quick(script, *arguments)
    assert (status, text) == (2, "")
    (line,) = errors
    assert line.startswith(f"{script}: ") and arguments[0] in line and line.endswith(f"(see python {script} --help)")
    assert imported & HEAVY == set()
    assert not root.exists()


# Training


def test_the_log_file_of_a_run_from_banner_to_end(small_run):
    log = small_run.log
    assert "\r" not in log and "\x1b" not in log and log.isascii()
    lines = log.splitlines()
    rule, *banner = lines[: lines.index("----- Encoder -----")]
    assert banner.pop() == rule == "=" * len(rule)
    values = dict(line.split(" =  ", 1) for line in banner)
    config = config_of(small_run.folder)
    expected = {
        "network": "standard",
        "dataset": "digits (embedded in scikit-learn)",
        "train_images": "1500",
        "test_images": "297",
        "batch_size": "64",
        "hidden_dim": "8",
        "latent_dim": "3",
        "epoch_number": "2",
        "learning_rate": "0.01",
        "seed": "3",
        "device": values["device"],
        "parameters": str(config["parameters"]),
    }
    assert [(name, value) for name, value in values.items() if name in expected] == list(expected.items())
    assert values["device"]

    marks = [
        "----- Encoder -----",
        "----- Decoder -----",
        "-> Training is started.",
        "|--- Epoch: 1/2 ",
        "|--- Epoch: 2/2 ",
        f"-> Plot of loss curves is saved in {small_run.folder / 'loss_curves.png'}",
        f"-> Model is saved in {small_run.folder}",
        "-> Test: general loss ",
        f"-> Draw digits from it: python generator.py --checkpoint {small_run.folder}",
    ]
    places = [[number for number, line in enumerate(lines) if line.startswith(mark)] for mark in marks]
    assert [len(place) for place in places] == [1] * len(marks) and places == sorted(places)
    # Nothing else but the stages: no notice of TensorFlow's, no progress bar.
    rest = [line for line in lines[len(banner) + 2 :] if not line.startswith(("----- ", "-> ", "|--- "))]
    assert [line for line in rest if not re.fullmatch(r"\w+: +\(None(, \d+)+\)", line)] == []


def test_the_log_tells_the_stages_and_the_number_of_parameters(small_run, plain_keras):

    encoder, decoder = (
        plain_keras.saving.load_model(small_run.folder / f"{half}.keras") for half in ("encoder", "decoder")
    )
    stages = ["----- Encoder -----", *console.encoder_stages(encoder), "----- Decoder -----"]
    stages += [*console.decoder_stages(decoder), "-> Training is started."]
    assert "\n".join(stages) in small_run.log
    assert f"parameters =  {encoder.count_params() + decoder.count_params()}\n" in small_run.log


def test_the_lines_of_the_epochs_are_the_rows_of_the_history(small_run):
    found = re.findall(
        rf"^\|--- Epoch: (\d)/2 \t---> General loss: ({NUMBER}) \| Reconstruction loss: ({NUMBER}) \| "
        rf"KL-divergence loss: ({NUMBER}) \| Test: ({NUMBER}) \| (\d+\.\d) s$",
        small_run.log,
        re.MULTILINE,
    )
    rows = history_of(small_run.folder)
    names, forms = ("epoch", *LOSSES, "test_general_loss", "seconds"), ("g", *[".2f"] * 4, ".1f")
    expected = [tuple(format(row[name], form) for name, form in zip(names, forms, strict=True)) for row in rows]
    assert found == expected and len(rows) == 2
    last = rows[-1]
    assert (
        f"-> Test: general loss {last['test_general_loss']:.2f} = reconstruction "
        f"{last['test_reconstruction_loss']:.2f} + KL {last['test_kl_loss']:.2f} nats per image (297 images of digits"
    ) in small_run.log


def test_a_run_leaves_just_what_is_promised(small_run):
    assert sorted(os.listdir(small_run.folder)) == sorted(checkpoint.FILES)
    assert list(history_of(small_run.folder)[0]) == [
        *("epoch", *LOSSES),
        *(f"test_{name}" for name in LOSSES),
        *("seconds", "elapsed"),
    ]
    for name in ("loss_curves.png", "reconstructions.png"):
        with Image.open(small_run.folder / name) as picture:
            assert picture.format == "PNG" and min(picture.size) > 300
            assert np.ptp(np.asarray(picture.convert("L"))) == 255


def test_the_history_adds_up(small_run):
    first, last = history_of(small_run.folder)
    for row in (first, last):
        for prefix in ("", "test_"):
            general, reconstruction, kl = (row[prefix + name] for name in LOSSES)
            assert general == pytest.approx(reconstruction + kl, abs=0.01)
            assert 0 < kl < general < 784
        assert 0 < row["seconds"] < row["elapsed"]
    assert last["general_loss"] < first["general_loss"] and last["elapsed"] > first["elapsed"]


def test_the_config_of_a_run_tells_all_about_it(small_run):
    config = config_of(small_run.folder)
    assert config["settings"] == main.complete(main.parse(SMALL_RUN))
    dataset = data.load(*download.find("digits", None))
    assert config["dataset"] == {
        "name": "digits",
        "sha256": dataset.sha256,
        "train_images": 1500,
        "validation_images": 0,
        "test_images": 297,
        "warning": None,
    }
    assert {"python", "keras", "numpy"} < set(config["versions"])
    assert config["epochs_done"] == 2
    assert datetime.fromisoformat(config["finished"]).utcoffset().total_seconds() == 0
    assert checkpoint.read_config(small_run.folder) == config


def test_the_same_seed_gives_the_same_run_and_another_folder(small_run, run_copy, root, here, capsys):
    main.main(SMALL_RUN)
    again = root / "standard-digits-002"
    assert sorted(os.listdir(root)) == [run_copy.name, again.name]
    assert losses_of(again) == losses_of(small_run.folder)
    for half in ("encoder", "decoder"):
        first, second = (checkpoint_weights(folder / f"{half}.keras") for folder in (small_run.folder, again))
        assert len(first) == len(second) > 0
        for one, other in zip(first, second, strict=True):
            np.testing.assert_array_equal(one, other)
    assert checkpoint.choose(None) == again


def checkpoint_weights(path: Path) -> list[np.ndarray]:
    import keras

    return keras.saving.load_model(path).get_weights()


def test_another_seed_gives_another_run_and_a_name_is_given_once(small_run, root, here, capsys):
    other = [*SMALL, "--learning-rate", "0.01", "--seed", "4", "--name", "mine"]
    main.main(other)
    for one, another in zip(losses_of(root / "mine"), losses_of(small_run.folder), strict=True):
        assert not set(one) & set(another)
    before = snapshot(root)
    with pytest.raises(UserError, match=r"--name mine: .*--overwrite"):
        main.main(other)
    assert snapshot(root) == before


def test_fit_goes_through_the_batches_of_each_epoch_in_turn(root, here, monkeypatch, capsys):
    class Batches(training.Batches):
        def __getitem__(self, index):
            if self._shuffle:
                visits.append((self._epoch, index))
                pixels.update(np.unique(super().__getitem__(index)[0]))
            return super().__getitem__(index)

    visits, pixels = [], set()
    monkeypatch.setattr(training, "Batches", Batches)
    main.main([*SMALL, "--binarize", "--beta", "4", "--batch-size", "400", "--name", "mine"])
    assert visits[-8:] == [(epoch, index) for epoch in (0, 1) for index in range(4)]
    assert {epoch for epoch, _ in visits[:-8]} <= {0}  # Keras looks at the first batches to learn their type
    assert pixels == {0, 1}
    config = config_of(root / "mine")
    assert (config["settings"]["binarize"], config["settings"]["beta"]) == (True, 4)
    for row in history_of(root / "mine"):
        assert row["general_loss"] == pytest.approx(row["reconstruction_loss"] + row["kl_loss"], abs=0.01)


def test_without_network_training_goes_on_with_the_digits_and_nobody_can_miss_it(
    root, here, tmp_path, monkeypatch, capsys
):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        nowhere = f"http://127.0.0.1:{free.getsockname()[1]}/"
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    monkeypatch.setitem(download.PUBLIC, "mnist", download.PUBLIC["mnist"]._replace(mirrors=(nowhere,)))
    titles = []
    for name in ("loss_curves", "reconstructions"):
        draw = getattr(plots, name)
        monkeypatch.setattr(plots, name, lambda *given, draw=draw: titles.append(given[-1]) or draw(*given))
    main.main([*SMALL[2:], "--epochs", "1"])
    printed = capsys.readouterr()
    assert "!" * 40 in printed.err and "mnist" in printed.err and "digits" in printed.err
    (banner,) = re.findall(r"^dataset =  .*$", printed.out, re.MULTILINE)
    assert "digits" in banner and "mnist" in banner.lower()
    config = config_of(root / "standard-digits-001")
    assert "mnist" in config["dataset"]["warning"] and config["settings"]["dataset"] is None
    assert len(titles) == 2 and all("MNIST" in title for title in titles)

    with pytest.raises(UserError, match="--dataset mnist"):
        main.main([*SMALL[2:], "--dataset", "mnist"])
    assert os.listdir(root) == ["standard-digits-001"]


def test_own_images_few_as_they_are_go_all_the_way(root, here, own_data, monkeypatch, capsys):
    monkeypatch.chdir(own_data.parent)
    main.main([*SMALL[2:], "--batch-size", "5", "--data", own_data.name, "--precision", "mixed_bfloat16"])
    (folder,) = root.iterdir()
    assert folder.name == "standard-My-own-001"
    assert sorted(os.listdir(folder)) == sorted(checkpoint.FILES)
    assert config_of(folder)["dataset"]["train_images"] == 12
    monkeypatch.chdir(here)  # from where the images' path was typed or from elsewhere, the run knows its images
    capsys.readouterr()
    evaluate.main(["--json", "--importance-samples", "2"])
    figures = json.loads(capsys.readouterr().out)
    assert figures["images"] == 3 and figures["checkpoint"] == str(folder)
    generator.main(["--arrays", "a.npz"])
    assert np.load("a.npz")["images"].dtype == np.float32


def test_a_test_set_of_one_image_has_figures_that_are_json(root, here, run_copy, own_data, capsys):
    images = np.load(own_data)["x_train"]
    np.savez("one.npz", x_train=images, x_test=images[:1])
    evaluate.main(["--data", "one.npz", "--json", "--importance-samples", "2"])

    def refuse(constant):
        raise ValueError(f"{constant} is not JSON")

    assert json.loads(capsys.readouterr().out, parse_constant=refuse)["images"] == 1


def test_deterministic_operations_are_asked_for(monkeypatch, plain_keras):
    if plain_keras.backend.backend() != "tensorflow":
        pytest.skip("other backends have no such switch")
    import tensorflow

    asked = []
    monkeypatch.setattr(tensorflow.config.experimental, "enable_op_determinism", lambda: asked.append(True))
    for flags in ([], ["--deterministic"]):
        main.make_model(main.complete(main.parse([*SMALL, *flags])), steps=10, shards=1)
    assert asked == [True]


def test_the_loss_of_float16_is_scaled_and_what_its_optimizer_knows_is_kept(plain_keras):
    vae = main.make_model(main.complete(main.parse([*SMALL, "--precision", "mixed_float16"])), steps=10, shards=1)
    images = np.random.default_rng(0).integers(0, 256, (128, 28, 28), np.uint8)
    vae.fit(training.Batches(images, 64, seed=0), verbose=0)
    arrays = training.state(vae, [], "run").values()
    assert any(array.shape == () and array == 2**15 for array in arrays)  # what Keras begins to scale by
    weights = [array for array in arrays if array.shape == (28, 32)]  # of the LSTM, and their two moments
    assert len(weights) == 3 and all(np.isfinite(array).all() and array.any() for array in weights)


def test_the_training_step_is_traced_only_once(monkeypatch, plain_keras):
    vae = main.make_model(main.complete(main.parse([*SMALL, "--network", "dense"])), steps=10, shards=1)
    traced, train_step = [], vae.train_step
    monkeypatch.setattr(vae, "train_step", lambda data: traced.append(data) or train_step(data))
    vae.fit(training.Batches(np.zeros((128, 28, 28), np.uint8), 64, seed=0), verbose=0)
    assert len(traced) == 1


def test_where_tensorboard_is_missing_it_is_said_what_to_install(monkeypatch, root):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"--tensorboard: .*pip install tensorboard"):
        main.main([*SMALL, "--tensorboard"])
    assert not root.exists()


# On a terminal


def test_on_a_terminal_a_bar_stands_below_the_epochs_and_ctrl_c_ends_well(root):
    terminal, end = pty.openpty()
    fcntl.ioctl(end, termios.TIOCSWINSZ, struct.pack("4H", 40, 150, 0, 0))
    arguments = [*SMALL_RUN, "--epochs", "999", "--name", "mine"]
    process = start("main.py", *arguments, stdin=end, stdout=end, stderr=end, start_new_session=True)
    os.close(end)
    seen = b""
    try:
        deadline = time.monotonic() + 240  # on a machine that does much else, too
        while b"Epoch 3/999" not in seen:
            assert time.monotonic() < deadline and process.poll() is None, seen.decode()
            seen += os.read(terminal, 10_000)
        process.send_signal(signal.SIGINT)
        while process.poll() is None:
            assert time.monotonic() < deadline, seen.decode()
            try:
                seen += os.read(terminal, 10_000)
            except OSError:  # all that held the terminal's other end are gone
                process.wait(60)
    finally:
        process.kill()
        process.wait()
        os.close(terminal)
    text = seen.decode()
    assert process.returncode == 130
    assert text.rstrip().endswith(
        f"main.py: interrupted; go on with: python main.py --resume {main.shown(root / 'mine')}"
    )
    assert "Traceback" not in text
    bars = re.findall(r"Epoch \d+/999: [^\r\n]*", text)
    assert any(
        re.search(r"\d+/23976 \[\d\d:\d\d<[\d:]+, .*general=[\d.]+, reconstruction=[\d.]+, kl=[\d.]+", b) for b in bars
    )
    assert re.search(r"\|--- Epoch:   2/999 \t---> General loss: [^\r\n]* s\r\n", text)
    assert config_of(root / "mine")["finished"] is None and len(history_of(root / "mine")) >= 2


# Kills


def moment_of_the_start(folder: Path, log: Path) -> bool:
    return "-> Training is started.\n" in log.read_text()


def moment_of_a_write(folder: Path, log: Path) -> bool:
    return folder.is_dir() and any(name.startswith(".") and ".keras" in name for name in os.listdir(folder))


def moment_of_the_third_epoch(folder: Path, log: Path) -> bool:
    return "\n|--- Epoch:   3/999 " in log.read_text()


@pytest.mark.parametrize("moment", [moment_of_the_start, moment_of_a_write, moment_of_the_third_epoch])
def test_a_kill_leaves_no_broken_file_and_the_last_finished_run_is_still_found(moment, run_copy, root, tmp_path, here):
    log, folder = tmp_path / "log.txt", root / "killed"
    with open(log, "w") as file:
        process = start("main.py", *SMALL_RUN, "--epochs", "999", "--name", "killed", stdout=file, stderr=file)
    try:
        deadline = time.monotonic() + 240  # on a machine that does much else, too
        while not moment(folder, log):
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.0005)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert not [line for line in log.read_text().splitlines() if "Traceback" in line or "%|" in line]
    names = [name for name in os.listdir(folder) if not name.startswith(".")]
    assert set(names) <= set(checkpoint.FILES)
    for name in names:
        if name.endswith(".keras"):
            with zipfile.ZipFile(folder / name) as kept:
                assert kept.testzip() is None
            assert checkpoint_weights(folder / name)
    epochs = len(history_of(folder)) if "history.csv" in names else 0
    assert log.read_text().count("|--- Epoch: ") in (epochs, epochs - 1)
    if "config.json" in names:
        config = checkpoint.read_config(folder)
        assert config["finished"] is None and config["epochs_done"] in (epochs, epochs - 1)
    archive.read_state(folder)
    if moment is moment_of_the_third_epoch:
        assert 3 <= epochs < 10  # the line of the third did not wait for a buffer to be full

    generator.main(["--seed", "1", "--count", "4"])
    assert checkpoint.choose(None) == run_copy
    assert Path("generated_images.png").exists()
    main.check(main.complete(main.parse([*SMALL, "--name", "killed", "--overwrite"])))  # its place is not lost


# Generating


def test_generator_draws_a_hundred_digits(run_copy, tmp_path):
    done = finish("generator.py", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[0] == "----- Decoder -----" and lines[1].startswith("z: ")
    assert lines[-3] == f"-> Checkpoints are restored from {run_copy}"
    assert lines[-2].startswith("-> Generation is started.") and re.search(r"seed \d+\)", lines[-2])
    assert lines[-1] == "-> Generated images are saved in generated_images.png"
    with Image.open(tmp_path / "generated_images.png") as picture:
        assert (picture.mode, picture.size) == ("L", (862, 862))
        grid = np.asarray(picture)
    digits = [
        grid[2 + 86 * row : 86 * (row + 1), 2 + 86 * column : 86 * (column + 1)]
        for row in range(10)
        for column in range(10)
    ]
    assert min(np.ptp(digit) for digit in digits) > 50
    assert not grid[::86].any() and not grid[:, ::86].any()


class Spy:
    """A decoder that notes which latent vectors it is given."""

    def __init__(self, decoder):
        self.decoder, self.given = decoder, []

    def __getattr__(self, name):
        return getattr(self.decoder, name)

    def predict_on_batch(self, z):
        self.given.append(np.array(z))
        return self.decoder.predict_on_batch(z)


@pytest.fixture
def spies(monkeypatch) -> list[Spy]:
    """The decoders that the generator restores from here on."""
    spies, load_model = [], archive.load_model

    def load(*arguments):
        spies.append(Spy(load_model(*arguments)))
        return spies[-1]

    monkeypatch.setattr(archive, "load_model", load)
    return spies


def test_latent_vectors_come_from_the_prior_in_batches(run_copy, here, spies, capsys):
    generator.main(["--sampler", "prior", "--count", "3000", "--scale", "0.7", "--seed", "2", "--arrays", "a.npz"])
    (spy,) = spies
    assert max(map(len, spy.given)) <= 500
    z = np.concatenate(spy.given)
    assert z.shape == (3000, 3) and z.dtype == np.float32
    np.testing.assert_allclose(z.mean(axis=0), 0, atol=0.06)
    np.testing.assert_allclose(np.cov(z.T), 0.49 * np.eye(3), atol=0.06)
    images = np.load("a.npz")["images"]
    assert (images.shape, images.dtype) == ((3000, 28, 28), np.float32)
    assert 0 <= images.min() < 0.1 and 0.3 < images.max() <= 1
    np.testing.assert_allclose(images[:500], spy.decoder.predict_on_batch(z[:500]), atol=1e-6)
    np.testing.assert_array_equal(np.asarray(Image.open("generated_images.png")), plots.tile([images], 3000, 55))


@pytest.mark.parametrize("flags", [["--sampler", "prior"], []])
def test_the_printed_seed_gives_the_same_digits_and_no_seed_gives_others(run_copy, here, capsys, flags):
    def draw(*arguments) -> tuple[np.ndarray, str]:
        generator.main([*flags, "--count", "9", "--arrays", "a.npz", "--output", "g.png", *arguments])
        (seed,) = re.findall(r"seed (\d+)\)", capsys.readouterr().out)
        return np.load("a.npz")["images"], seed

    (first, seed), (second, other) = draw(), draw()
    assert seed != other and not np.array_equal(first, second)
    again, _ = draw("--seed", seed)
    np.testing.assert_array_equal(first, again)


@pytest.mark.parametrize(
    "arguments, rows, columns",
    [
        (["--count", "1"], 1, 1),
        (["--count", "400"], 20, 20),
        (["--count", "7"], 3, 3),
        (["--count", "7", "--columns", "5"], 2, 5),
        (["--count", "2", "--columns", "50"], 1, 2),
    ],
)
def test_the_grid_is_as_large_as_asked_for(run_copy, here, capsys, arguments, rows, columns):
    generator.main([*arguments, "--output", "g.png"])
    assert Image.open("g.png").size == (2 + 86 * columns, 2 + 86 * rows)
    assert os.listdir() == ["g.png"]


@pytest.mark.parametrize(
    "arguments, rows, columns",
    [
        (["--digit", "7"], 10, 10),
        (["--digit", "0123456789"], 10, 10),
        (["--digit", "31", "--columns", "4"], 2, 4),
        (["--interpolate", "--count", "20", "--columns", "5"], 4, 5),
        (["--manifold", "--count", "9"], 3, 3),
        (["--reconstruct", "--count", "6", "--columns", "2"], 3, 4),
    ],
)
def test_the_other_pictures(run_copy, here, capsys, arguments, rows, columns):
    generator.main([*arguments, "--seed", "1", "--arrays", "a.npz"])
    images = np.load("a.npz")["images"]
    assert images.shape == (rows * columns, 28, 28)
    np.testing.assert_array_equal(
        np.asarray(Image.open("generated_images.png")), plots.tile([images], rows * columns, columns)
    )


def test_a_digit_is_drawn_from_its_own_components(run_copy, here, spies, capsys):
    generator.main(["--digit", "31", "--columns", "3", "--scale", "0"])
    prior = archive.read_prior(run_copy)
    for z, digit in zip(spies[0].given, (3, 1), strict=True):
        own = prior["means"][prior["classes"] == digit]
        assert all(any(np.allclose(row, mean) for mean in own) for row in z)


def test_reconstructions_stand_beside_originals(run_copy, here, capsys):
    generator.main(["--reconstruct", "--count", "4", "--seed", "1", "--arrays", "a.npz"])
    originals = np.load("a.npz")["images"][::2]
    test_images = data.pixels(data.load(*download.find("digits", None)).test_images)
    assert all(any(np.array_equal(image, other) for other in test_images) for image in originals)


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--sampler", "prior", "--digit", "3"], "--digit: the prior knows no digits"),
        (["--interpolate", "--digit", "3"], "--digit: it goes with plain drawing only"),
        (["--digit", "31", "--count", "8", "--columns", "3"], "--columns: each of several digits has a row"),
        (["--dataset", "digits"], "only --reconstruct reads images"),
    ],
)
def test_flags_that_contradict_each_other(run_copy, here, arguments, words):
    with pytest.raises(UserError, match=words):
        generator.main(arguments)
    assert os.listdir() == []


def test_a_run_without_a_mixture_is_drawn_from_the_prior_and_says_why_it_has_no_digits(run_copy, here, capsys):
    (run_copy / "prior.npz").unlink()
    generator.main(["--count", "1"])
    assert "from the prior N(0, I)" in capsys.readouterr().out
    for arguments, words in ((["--sampler", "mixture"], r"has no prior\.npz"), (["--digit", "3"], "--digit")):
        with pytest.raises(UserError, match=words):
            generator.main(arguments)


def test_scale_zero_is_the_centre_of_the_prior(run_copy, here, spies, capsys):
    generator.main(["--sampler", "prior", "--scale", "0", "--count", "5"])
    assert not np.concatenate(spies[0].given).any()


def test_generator_needs_neither_the_encoder_nor_images(run_copy, here, monkeypatch, capsys):
    def fail(*arguments):
        raise AssertionError("images were asked for")

    for module, name in ((data, "load"), (download, "find")):
        monkeypatch.setattr(module, name, fail)
    for name in checkpoint.FILES:
        if name not in ("config.json", "decoder.keras"):
            (run_copy / name).unlink()
    generator.main(["--count", "4"])
    assert os.listdir() == ["generated_images.png"]


def test_the_command_that_training_ends_with_draws_from_that_run(small_run, here, capsys):
    (command,) = re.findall(r"^-> Draw digits from it: python generator.py (.*)$", small_run.log, re.MULTILINE)
    generator.main([*shlex.split(command), "--count", "1"])
    assert f"-> Checkpoints are restored from {small_run.folder}\n" in capsys.readouterr().out


# Measuring

FEW = ("--importance-samples", "2", "--images", "20")


@pytest.fixture(scope="module")
def measured(small_run) -> dict:
    """What `evaluate.py --json` says of the small run, from a process of its own."""
    done = finish("evaluate.py", "--checkpoint", small_run.folder, "--json", *FEW)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 1
    assert "-> Checkpoints are restored from" in done.stderr and len(done.stderr.splitlines()) == 2
    return json.loads(done.stdout)


def test_evaluate_prints_one_json_object(measured, small_run):
    assert {*LOSSES, "images", "checkpoint"} <= measured.keys()
    assert (measured["images"], measured["checkpoint"]) == (297, str(small_run.folder))
    assert measured["general_loss"] == pytest.approx(measured["reconstruction_loss"] + measured["kl_loss"], rel=1e-6)
    last = history_of(small_run.folder)[-1]
    assert measured["kl_loss"] == pytest.approx(last["test_kl_loss"], rel=1e-4)  # which has no noise
    assert measured["general_loss"] == pytest.approx(last["test_general_loss"], rel=0.01)


def test_evaluate_prints_the_same_figures_for_people(measured, small_run, here, capsys):
    evaluate.main(["--checkpoint", str(small_run.folder), *FEW])
    printed = capsys.readouterr()
    assert printed.err == ""
    for name, label in zip(LOSSES, ("General loss", "Reconstruction loss", "KL-divergence loss"), strict=True):
        (line,) = (line for line in printed.out.splitlines() if line.startswith(label))
        assert f" {measured[name]:.2f} " in line and "nats per image" in line


def test_evaluate_measures_other_images_and_binary_pixels_and_says_so(measured, small_run, here, own_data, capsys):
    checkpoint_flags = ["--checkpoint", str(small_run.folder), "--json", *FEW]
    evaluate.main([*checkpoint_flags, "--data", str(own_data)])
    printed = capsys.readouterr()
    assert "not the images" in printed.err and json.loads(printed.out)["images"] == 3
    evaluate.main([*checkpoint_flags, "--binarize", "--seed", "1"])
    printed = capsys.readouterr()
    assert "binary" in printed.err and "not the images" not in printed.err
    assert json.loads(printed.out)["reconstruction_loss"] != measured["reconstruction_loss"]


# Keras's other backends


@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_the_scripts_run_on_another_backend(backend, tmp_path):
    if importlib.util.find_spec(backend) is None:
        pytest.skip(f"{backend} is not installed")
    environment = os.environ | {"KERAS_BACKEND": backend, "VAE_CHECKPOINTS": str(tmp_path)}
    for script, *arguments in (
        ("main.py", *SMALL_RUN, "--name", "run", "--network", "readout"),
        ("generator.py", "--checkpoint", "run", "--output", "digits.png"),
        ("evaluate.py", "--checkpoint", "run", "--images", "9", "--importance-samples", "2"),
    ):
        done = finish(script, *arguments, cwd=tmp_path, env=environment)
        assert done.returncode == 0, done.stderr
    assert config_of(tmp_path / "run")["backend"] == backend
    first, last = history_of(tmp_path / "run")
    assert last["general_loss"] < first["general_loss"]


# The operations that TensorFlow runs

OPERATIONS = """
import os
from vae import console
console.import_keras()
from tensorflow.python.framework import test_util
print(os.environ["TF_ENABLE_ONEDNN_OPTS"], test_util.IsMklEnabled())
"""


@pytest.mark.skipif(
    (sys.platform, platform.machine()) != ("linux", "x86_64"), reason="TensorFlow has oneDNN built in elsewhere, or not"
)
@pytest.mark.parametrize(("said", "used"), [(None, "1 True"), ("0", "0 False")])
def test_one_dnn_is_used_on_any_processor_unless_the_user_says_otherwise(said, used):
    environment = {name: value for name, value in os.environ.items() if name != "TF_ENABLE_ONEDNN_OPTS"}
    environment |= {"TF_ENABLE_ONEDNN_OPTS": said} if said else {}
    done = subprocess.run(
        [sys.executable, "-c", OPERATIONS], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.stdout.strip() == used, done.stderr


# What other programs make of a saved model

ELSEWHERE = """
import importlib.util, json, os, sys
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "2"
import keras, numpy as np

assert not any(map(importlib.util.find_spec, ("model", "vae", "main")))
encoder, decoder = (keras.saving.load_model(f"{sys.argv[1]}/{half}.keras") for half in ("encoder", "decoder"))
x = np.load(sys.argv[2])
mean, log_var = (part.astype(np.float64) for part in encoder.predict(x, verbose=0))
z = mean + np.exp(log_var / 2) * np.random.default_rng(1).standard_normal(mean.shape)
p = np.clip(decoder.predict(z.astype(np.float32), verbose=0).astype(np.float64), 1e-9, 1 - 1e-7)
reconstruction = -(x * np.log(p) + (1 - x) * np.log(1 - p)).sum(axis=(1, 2)).mean()
kl = (mean ** 2 + np.exp(log_var) - log_var - 1).sum(axis=1).mean() / 2
found = {"general_loss": reconstruction + kl, "reconstruction_loss": reconstruction, "kl_loss": kl}
if len(sys.argv) > 3:  # log p(x) ~ log mean p(x|z) p(z) / q(z|x), each density with its constants
    images, samples = map(int, sys.argv[3:])
    chosen = np.random.default_rng(0).permutation(len(x))[:images]  # evaluate.py's choice
    normal = lambda z, mu, log_s2: -0.5 * ((z - mu) ** 2 / np.exp(log_s2) + log_s2 + np.log(2 * np.pi)).sum(axis=1)
    weights = []
    for k in range(samples):
        m, v, t = mean[chosen], log_var[chosen], x[chosen]
        z = m + np.exp(v / 2) * np.random.default_rng([2, k]).standard_normal(m.shape)
        p = np.clip(decoder.predict_on_batch(z.astype(np.float32)).astype(np.float64), 1e-9, 1 - 1e-7)
        log_likelihood = (t * np.log(p) + (1 - t) * np.log(1 - p)).sum(axis=(1, 2))
        weights.append(log_likelihood + normal(z, 0, np.zeros_like(z)) - normal(z, m, v))
    found["nll"] = -np.mean(np.logaddexp.reduce(weights, axis=0) - np.log(samples))
print(json.dumps(found))
"""


def measured_elsewhere(folder: Path, images: np.ndarray, tmp_path: Path, *likelihood: int) -> dict:
    """The losses of a run, from its two `.keras` files and NumPy, in a process that cannot import this project.

    Where `likelihood` says of how many images and by how many samples, the negative log-likelihood, too.
    """
    np.save(tmp_path / "x.npy", images)
    command = [sys.executable, "-I", "-c", ELSEWHERE, folder, tmp_path / "x.npy", *map(str, likelihood)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_saved_models_give_the_same_figures_without_this_project(measured, small_run, tmp_path):
    images = data.pixels(data.load(*download.find("digits", None)).test_images)
    found = measured_elsewhere(small_run.folder, images, tmp_path)
    assert found["kl_loss"] == pytest.approx(measured["kl_loss"], rel=1e-4)
    assert found["general_loss"] == pytest.approx(measured["general_loss"], rel=0.003)


SHIPPED = ROOT / "checkpoints" / "pretrained"


@pytest.mark.skipif("MNIST_DIR" not in os.environ, reason="MNIST_DIR does not name a folder with the files of MNIST")
@pytest.mark.skipif(not SHIPPED.is_dir(), reason="checkpoints/pretrained is not there")
def test_the_shipped_model_is_as_good_as_it_says(tmp_path, here, capsys):
    dataset = data.load(*download.find(None, os.environ["MNIST_DIR"]))
    assert config_of(SHIPPED)["dataset"]["sha256"] == dataset.sha256
    last = history_of(SHIPPED)[-1]
    found = measured_elsewhere(SHIPPED, data.pixels(dataset.test_images), tmp_path, 200, 50)
    assert found["general_loss"] == pytest.approx(last["test_general_loss"], abs=0.3)
    flags = ["--checkpoint", str(SHIPPED), "--data", os.environ["MNIST_DIR"], "--json"]
    evaluate.main([*flags, "--images", "200", "--importance-samples", "50"])
    figures = json.loads(capsys.readouterr().out)
    for name in LOSSES:
        assert found[name] == pytest.approx(figures[name], abs=0.3)
    assert found["nll"] == pytest.approx(figures["nll"], abs=0.5)
    assert found["general_loss"] <= 97.0


def test_the_shipped_model_is_restored_from_any_path_and_folder_and_is_not_written_to(tmp_path, here, capsys):
    folder = shutil.copytree(SHIPPED, tmp_path / "a place with ä, 数 and 'quotes'" / "run 1")
    for path in (*folder.iterdir(), folder):
        path.chmod(0o444 if path.is_file() else 0o555)
    before = snapshot(folder)
    try:
        generator.main(["--checkpoint", str(folder), "--count", "2"])
        evaluate.main(["--checkpoint", str(folder), "--dataset", "digits", "--json", *FEW])
    finally:
        folder.chmod(0o755)
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["checkpoint"] == str(folder)
    assert snapshot(folder) == before and Path("generated_images.png").exists()


@pytest.mark.skipif("MNIST_DIR" not in os.environ, reason="MNIST_DIR does not name a folder with the files of MNIST")
def test_more_importance_samples_bring_the_likelihood_of_the_shipped_model_down_from_its_elbo(tmp_path, here, capsys):
    images = data.load(*download.find(None, os.environ["MNIST_DIR"])).test_images[:400]
    np.savez(tmp_path / "few.npz", x_train=images, x_test=images)
    figures = []
    for samples, count in ((1, 400), (1, 50), (7, 50), (50, 50), (350, 50)):
        few = ["--importance-samples", str(samples), "--images", str(count)]
        evaluate.main(["--checkpoint", str(SHIPPED), "--data", str(tmp_path / "few.npz"), "--json", *few])
        figures.append(json.loads(capsys.readouterr().out))
    assert figures[0]["nll"] == pytest.approx(figures[0]["general_loss"], abs=1)  # one sample of each is the ELBO's
    falling = [each["nll"] for each in figures[1:]]
    assert all(more < fewer - 0.2 for fewer, more in pairwise(falling))
