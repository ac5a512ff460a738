"""What bad input gets: one line that says what is wrong, status 1, and nothing on disk changed."""

import gzip
import json
import os
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, SMALL, SMALL_RUN, finish, full_disk, snapshot

import evaluate
import generator
import main
from vae import checkpoint, data
from vae.settings import UserError

STEMS = data.IDX_STEMS
IMAGES = np.random.default_rng(0).integers(0, 256, (6, 28, 28), dtype=np.uint8)
FEW = ["--importance-samples", "2", "--images", "20"]


@pytest.fixture
def here(tmp_path, monkeypatch, plain_keras) -> Path:
    """The folder that scripts run in here; nothing in it may change."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refusal(script, *arguments) -> str:
    """The one line with which a script is refused, once it is sure that nothing on disk has changed."""
    before = snapshot(Path.cwd()), sorted(Path.cwd().rglob("*"))
    with pytest.raises(UserError) as caught:
        script.main([str(argument) for argument in arguments])
    assert (snapshot(Path.cwd()), sorted(Path.cwd().rglob("*"))) == before
    message = str(caught.value)
    assert message and "\n" not in message
    return message


def failure(script: str, *arguments, **options) -> str:
    """The one line with which a script fails in a process of its own, once it is sure that nothing else was wrong."""
    before = snapshot(Path.cwd())
    done = finish(script, *arguments, **options)
    assert done.returncode == 1 and "Traceback" not in done.stdout
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"{script}: ")
    assert snapshot(Path.cwd()) == before
    return line


# Images


def idx(array: np.ndarray) -> bytes:
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


LABELS = idx(np.arange(6, dtype=np.uint8))
SOUND = dict(zip(STEMS, (idx(IMAGES), LABELS, idx(IMAGES), LABELS), strict=True))
TRAIN, TRAIN_LABELS, TEST, _ = STEMS

BAD_IDX = {
    "truncated": (TRAIN, SOUND[TRAIN][:-100], "truncated"),
    "truncated within gzip": (TRAIN, gzip.compress(SOUND[TRAIN])[:-100], "truncated"),
    "empty": (TEST, b"", "is empty"),
    "corrupt": (TEST, gzip.compress(SOUND[TEST])[:1000] + bytes(3000), "corrupt"),
    "another magic number": (TRAIN, LABELS, "magic number"),
    "labels that do not match": (TRAIN_LABELS, idx(np.zeros(5, np.uint8)), "5 labels"),
    "zero images": (TRAIN, idx(IMAGES[:0]), "0 images"),
    "not 28 x 28": (TRAIN, idx(IMAGES[:, :27]), "27 x 28"),
}


def write_idx(folder: Path, **changes: bytes) -> Path:
    folder.mkdir()
    for stem, content in (SOUND | changes).items():
        (folder / stem).write_bytes(content)
    return folder


@pytest.mark.parametrize("stem, content, words", BAD_IDX.values(), ids=BAD_IDX)
def test_bad_idx_files(here, root, run_copy, stem, content, words):
    folder = write_idx(here / "images", **{stem: content})
    for script, arguments in ((main, ["--name", "new"]), (evaluate, FEW)):
        message = refusal(script, "--data", folder, *arguments)
        assert str(folder / stem) in message and words in message


BAD_NPZ = {
    "no such arrays": ({"images": IMAGES}, "lacks x_train and"),
    "pickled objects": ({"x_train": IMAGES, "x_test": np.array([IMAGES, None], object)}, "pickled"),
    "another shape": ({"x_train": IMAGES.reshape(-1, 784), "x_test": IMAGES}, "(6, 784)"),
    "pixels beyond 255": ({"x_train": IMAGES + np.int32(1000), "x_test": IMAGES}, "0..255"),
    "labels that do not match": ({"x_train": IMAGES, "x_test": IMAGES, "y_train": [1], "y_test": [1]}, "a label for"),
    "zero images": ({"x_train": IMAGES, "x_test": IMAGES[:0]}, "no images"),
}  # fmt: skip


@pytest.mark.parametrize("arrays, words", BAD_NPZ.values(), ids=BAD_NPZ)
def test_bad_npz_files(here, root, run_copy, arrays, words):
    np.savez(here / "images.npz", **arrays)
    for script, arguments in ((main, ["--name", "new"]), (evaluate, FEW)):
        message = refusal(script, "--data", here / "images.npz", *arguments)
        assert str(here / "images.npz") in message and words in message


def test_images_that_are_missing(here, run_copy):
    for script in (main, evaluate):
        assert f"--data {here / 'nowhere'}" in refusal(script, "--data", here / "nowhere")


def test_a_batch_larger_than_the_data(here, root):
    message = refusal(main, *SMALL, "--batch-size", "1501")
    assert "--batch-size 1501" in message and "1500" in message


def test_images_from_two_places(here, root):
    assert "--data" in refusal(main, "--data", write_idx(here / "images"), "--dataset", "digits")
    assert "--data" in refusal(main, "--dataset", "digits", "--data", here / "nowhere")


def test_bad_images_as_a_user_sees_it(here, root):
    folder = write_idx(here / "images", **{TRAIN: SOUND[TRAIN][:-1]})
    line = failure("main.py", "--data", folder, "--name", "new")
    assert str(folder / TRAIN) in line and "truncated" in line and "fresh copy" in line


# Runs


@pytest.mark.parametrize("script", [generator, evaluate])
def test_a_run_that_is_missing(here, script):
    assert "--checkpoint nowhere" in refusal(script, "--checkpoint", "nowhere")


@pytest.mark.parametrize("script", [generator, evaluate])
def test_a_run_that_is_half_written(here, run_copy, script):
    for file in checkpoint.FILES:
        if file != "config.json":
            (run_copy / file).unlink()
    message = refusal(script, "--checkpoint", run_copy)
    assert str(run_copy) in message and "is missing" in message
    (run_copy / "config.json").write_text('{"format": 1, "settings": {"net')
    message = refusal(script, "--checkpoint", run_copy)
    assert str(run_copy / "config.json") in message and "not JSON" in message


@pytest.mark.parametrize("script", [generator, evaluate])
def test_a_run_of_another_version(here, run_copy, script):
    config = json.loads((run_copy / "config.json").read_text())
    (run_copy / "config.json").write_text(json.dumps(config | {"format": 2}))
    message = refusal(script, "--checkpoint", run_copy)
    assert str(run_copy / "config.json") in message and "format 2" in message and "reads 1" in message


@pytest.mark.parametrize("script, half", [(generator, "decoder"), (evaluate, "decoder"), (evaluate, "encoder")])
@pytest.mark.parametrize("content", [b"", b"not a model", b"PK\5\6" + bytes(18)])
def test_a_run_whose_files_are_no_models(here, run_copy, script, half, content):
    path = run_copy / f"{half}.keras"
    path.write_bytes(content)
    message = refusal(script, "--checkpoint", run_copy)
    assert str(path) in message and "--checkpoint" in message


def test_halves_that_do_not_fit_together(here, run_copy, plain_keras):
    import model

    _, decoder = model.build("standard", 8, 5)
    decoder.save(run_copy / "decoder.keras")
    message = refusal(evaluate, "--checkpoint", run_copy, *FEW)
    assert str(run_copy) in message and "3" in message and "5" in message


def test_a_harmed_model_as_a_user_sees_it(here, run_copy):
    path = run_copy / "decoder.keras"
    path.write_bytes(path.read_bytes()[:5000])
    assert str(path) in failure("generator.py", "--checkpoint", run_copy)


def test_a_missing_run_as_a_user_sees_it(here):
    for script in ("generator.py", "evaluate.py"):
        assert "nowhere" in failure(script, "--checkpoint", "nowhere")


# Places to write to


@pytest.mark.parametrize("flag", ["--output", "--arrays"])
@pytest.mark.parametrize("place", ["/proc/file", "nowhere/file", "config/file", ".", "folder"])
def test_a_place_that_the_generator_cannot_write_to(here, run_copy, flag, place):
    (here / "folder").mkdir()
    (here / "config").write_text("a file")
    message = refusal(generator, flag, place, *([] if flag == "--output" else ["--output", "g.png"]))
    assert place in message and ("cannot be written" in message or "no such folder" in message)


def test_a_device_is_not_replaced_by_a_picture(here, run_copy):
    os.mkfifo(here / "pipe")
    with pytest.raises(UserError, match="pipe"):
        generator.main(["--output", "pipe"])
    assert (here / "pipe").is_fifo()


@pytest.mark.parametrize("place", ["/proc/runs", "file/runs", "file"])
def test_a_folder_of_runs_that_cannot_be_written(here, monkeypatch, place):
    (here / "file").write_text("")
    monkeypatch.setenv("VAE_CHECKPOINTS", place)
    message = refusal(main, *SMALL)
    assert place in message and "VAE_CHECKPOINTS" in message


@pytest.mark.parametrize("arguments", [["--output", "g.png"], ["--output", "g.png", "--arrays", "a.npz"]])
def test_a_full_disk_leaves_the_old_pictures(here, run_copy, arguments):
    for name in ("g.png", "a.npz"):
        (here / name).write_text("old")
    with full_disk(6000):
        message = refusal(generator, *arguments)
    assert arguments[-1] in message and "cannot be written" in message


def test_a_full_disk_leaves_the_old_run(here, run_copy):
    with full_disk(20_000):
        message = refusal(main, *SMALL, "--name", run_copy.name, "--overwrite")
    assert run_copy.name in message and "cannot be written" in message and "free space" in message


def test_output_that_nobody_takes():
    code = "import sys; from vae import console; sys.argv = ['main.py']; console.run(lambda: print('x' * {}))"
    for size in (10, 100_000):  # that waits in Python's buffer until the end, and that does not
        command = [sys.executable, "-c", code.format(size)]
        with open("/dev/full", "w") as full:
            done = subprocess.run(command, cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True, timeout=60)
        assert done.returncode == 1
        assert done.stderr.startswith("main.py: ") and len(done.stderr.splitlines()) == 1 and "space" in done.stderr
        reader, writer = os.pipe()
        os.close(reader)
        done = subprocess.run(command, cwd=ROOT, stdout=writer, stderr=subprocess.PIPE, text=True, timeout=60)
        os.close(writer)
        assert (done.returncode, done.stderr) == (141, "")


# A loss that is not finite


def test_a_loss_that_is_not_finite_from_the_start_leaves_the_run_that_was_to_be_overwritten(here, run_copy):
    message = refusal(main, *SMALL_RUN, "--learning-rate", "1e30", "--name", run_copy.name, "--overwrite")
    assert "finite" in message and "epoch 1" in message and "--learning-rate" in message


def test_a_loss_that_is_not_finite_later_leaves_the_last_good_model(here, root, small_run, monkeypatch, capsys):
    from vae import training

    class Batches(training.Batches):
        def __getitem__(self, index):
            (batch,) = super().__getitem__(index)
            return (batch * (np.nan if self._shuffle and self._epoch == 1 else 1),)

    monkeypatch.setattr(training, "Batches", Batches)
    with pytest.raises(UserError, match="epoch 2"):
        main.main([*SMALL_RUN, "--name", "mine"])
    config = checkpoint.read_config(root / "mine")
    assert (config["epochs_done"], config["finished"]) == (1, None)
    assert (root / "mine" / "history.csv").read_text().count("\n") == 2
    # It is the model of epoch 1, and not of the steps after it.
    evaluate.main(["--checkpoint", str(root / "mine"), "--json", *FEW])
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    (row,) = (root / "mine" / "history.csv").read_text().splitlines()[1:]
    test_kl = float(row.split(",")[6])
    assert figures["kl_loss"] == pytest.approx(test_kl, rel=1e-3)
    generator.main(["--checkpoint", str(root / "mine"), "--count", "1"])
