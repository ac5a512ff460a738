"""Going on with a run: exactly as if nothing had happened, with its own settings only, and never two at once."""

import csv
import json
import shutil
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from conftest import SMALL_RUN, finish, snapshot, start

import main
from vae import checkpoint
from vae.settings import UserError

EPOCHS = 3
ALL_IN_PLAY = (*SMALL_RUN, "--epochs", str(EPOCHS), "--binarize")  # dropout and the schedule always are


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch, plain_keras):
    monkeypatch.chdir(tmp_path)


def trained(folder) -> tuple[list[list[str]], dict[str, np.ndarray]]:
    """The history without its times, and every array of the training state: weights, and the optimizer's own."""
    rows = list(csv.reader((folder / "history.csv").read_text().splitlines()))
    state = checkpoint.read_state(folder)
    del state["history"]  # which has the times
    return [row[:-2] for row in rows], state


def interrupt_after(epochs: int, monkeypatch) -> None:
    """Let whatever trains next be interrupted once it has kept so many epochs."""
    write_epoch = checkpoint.write_epoch

    def write(folder, encoder, decoder, rows, *others):
        write_epoch(folder, encoder, decoder, rows, *others)
        if len(rows) == epochs:
            monkeypatch.setattr(checkpoint, "write_epoch", write_epoch)
            raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint, "write_epoch", write)


@pytest.fixture
def unfinished(small_run, root):
    """A copy of the small run as it was when its last epoch was whole, but the run not finished."""
    folder = shutil.copytree(small_run.folder, root / "unfinished")
    config = json.loads((folder / "config.json").read_text())
    checkpoint.write_config(folder, config | {"finished": None})
    return folder


def refusal(*arguments: str) -> str:
    with pytest.raises(UserError) as caught:
        main.main(list(arguments))
    assert "\n" not in str(caught.value)
    return str(caught.value)


# Exactly


def test_a_run_that_is_interrupted_and_resumed_is_the_run_without_a_break(root, monkeypatch, capsys):
    main.main([*ALL_IN_PLAY, "--name", "whole"])
    interrupt_after(1, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        main.main([*ALL_IN_PLAY, "--name", "broken"])
    assert checkpoint.read_config(root / "broken")["epochs_done"] == 1
    capsys.readouterr()
    main.main(["--resume"])
    log = capsys.readouterr().out
    assert "-> Training is resumed after epoch 1 of 3 in " in log
    assert [line[:16] for line in log.splitlines() if line.startswith("|--- ")] == [
        "|--- Epoch: 2/3 ",
        "|--- Epoch: 3/3 ",
    ]

    (rows, arrays), (whole_rows, whole_arrays) = trained(root / "broken"), trained(root / "whole")
    assert rows == whole_rows and len(rows) == 1 + EPOCHS
    assert arrays.keys() == whole_arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(array, whole_arrays[name])
    assert len({row[1] for row in rows}) == 1 + EPOCHS  # and the epochs differ
    moments = [array for array in arrays.values() if array.ndim and np.abs(array).max() > 0]
    assert len(moments) > 2 * len(arrays) / 3 - 2  # the optimizer's own are among them
    (prior, whole_prior) = (checkpoint.read_prior(root / name) for name in ("broken", "whole"))
    np.testing.assert_array_equal(prior["means"], whole_prior["means"])
    elapsed = [float(row["elapsed"]) for row in csv.DictReader((root / "broken" / "history.csv").open())]
    assert elapsed == sorted(elapsed)


def test_a_run_that_is_killed_in_its_first_epoch_begins_again(root, small_run, tmp_path):
    log = tmp_path / "log.txt"
    with open(log, "w") as file:
        process = start("main.py", *SMALL_RUN, "--name", "killed", stdout=file, stderr=file)
    try:
        while "-> Training is started." not in log.read_text():
            assert process.poll() is None, log.read_text()
            time.sleep(0.01)
    finally:
        process.kill()
        process.wait()
    assert checkpoint.read_config(root / "killed")["epochs_done"] == 0
    main.main(["--resume", str(root / "killed")])
    assert trained(root / "killed")[0] == trained(small_run.folder)[0]


def test_a_kill_between_two_files_of_an_epoch_does_no_harm(root, small_run, unfinished):
    for name in ("encoder.keras", "decoder.keras", "history.csv"):
        (unfinished / name).write_bytes(b"of another epoch")
    (unfinished / ".999999-decoder.keras").write_bytes(b"half written")
    main.main(["--resume"])
    for name in ("history.csv", "prior.npz"):
        assert (unfinished / name).read_bytes() == (small_run.folder / name).read_bytes()
    from vae import archive

    for half, shapes in (("encoder", ((28, 28), [(3,), (3,)])), ("decoder", ((3,), [(28, 28)]))):
        models = (archive.load_model(folder, half, *shapes) for folder in (unfinished, small_run.folder))
        for ours, theirs in zip(*(model.get_weights() for model in models), strict=True):
            np.testing.assert_array_equal(ours, theirs)
    assert checkpoint.read_config(unfinished)["finished"] and not list(unfinished.glob(".*"))


# Further


def test_a_finished_run_is_taken_further_and_else_nothing_is_left_to_do(root, run_copy, capsys):
    before = snapshot(run_copy)
    for arguments in (["--resume"], ["--resume", str(run_copy)], ["--resume", "--epochs", "2"]):
        main.main(arguments)
        assert "nothing is left to do" in capsys.readouterr().out
    assert snapshot(run_copy) == before
    first, _ = trained(run_copy)
    main.main(["--resume", "--epochs", "3"])
    rows, _ = trained(run_copy)
    assert rows[:3] == first and len(rows) == 4
    config = checkpoint.read_config(run_copy)
    assert config["epochs_done"] == config["settings"]["epochs"] == 3 and config["finished"]
    assert {path.name for path in run_copy.iterdir()} == set(checkpoint.FILES)


# With its own settings


@pytest.mark.parametrize(
    "arguments",
    ["--batch-size 200", "--learning-rate 0.008", "--epochs 3", "--epochs 1", "--binarize", "--seed 0", "--name mine"],
)
def test_a_flag_that_contradicts_the_run_is_refused(unfinished, arguments):
    before = snapshot(unfinished)
    message = refusal("--resume", str(unfinished), *arguments.split())
    assert arguments.split()[0] in message and "has " in message and "start a new run" in message
    assert snapshot(unfinished) == before


def test_a_flag_that_says_what_the_run_says_is_fine(unfinished):
    main.main(["--resume", "--seed", "3", "--epochs", "2", "--dataset", "digits"])
    assert checkpoint.read_config(unfinished)["finished"]


def test_fewer_epochs_than_a_finished_run_has_are_refused(run_copy):
    assert "--epochs 1" in refusal("--resume", "--epochs", "1")


def test_other_images_are_refused(unfinished, tmp_path):
    images = np.zeros((100, 28, 28), np.uint8)
    np.savez(tmp_path / "other.npz", x_train=images, x_test=images)
    assert "other images" in refusal("--resume", "--data", str(tmp_path / "other.npz"))


@pytest.mark.parametrize(
    "name, value",
    [
        ("network", "none"),
        ("network", []),
        ("epochs", -1),
        ("epochs", True),
        ("batch_size", "64"),
        ("seed", 1.5),
        ("beta", float("nan")),
        ("binarize", 1),
        ("precision", {}),
        ("learning_rate", 10**400),
        ("data", 7),
    ],
)
def test_settings_that_no_run_can_have_are_refused(unfinished, name, value):
    config = json.loads((unfinished / "config.json").read_text())
    config["settings"][name] = value
    (unfinished / "config.json").write_text(json.dumps(config))
    assert name in refusal("--resume", str(unfinished))


@pytest.mark.parametrize("change", ["missing", "torn", "shape", "history", "more", "nan"])
def test_a_state_that_is_not_of_this_run_is_refused(unfinished, change):
    path = unfinished / "training_state.npz"
    arrays = checkpoint.read_state(unfinished)
    if change == "missing":
        path.unlink()
    elif change == "torn":
        path.write_bytes(path.read_bytes()[:-100])
    else:
        arrays |= {
            "shape": {"variable_000": np.zeros((3, 3))},
            "history": {"history": np.frombuffer(b'[{"epoch": 2}]', np.uint8)},
            "more": {"variable_999": np.zeros(1)},
            "nan": {"variable_000": np.full_like(arrays["variable_000"], np.nan)},
        }[change]
        np.savez(path, **arrays)
    before = snapshot(unfinished)
    message = refusal("--resume")
    assert "training_state.npz" in message and "start a new" in message
    assert snapshot(unfinished) == before


# Which run


def test_the_newest_unfinished_run_is_resumed(root, run_copy, unfinished, monkeypatch):
    older = shutil.copytree(unfinished, root / "older")
    checkpoint.write_config(unfinished, json.loads((unfinished / "config.json").read_text()))
    assert checkpoint.to_resume("") == unfinished
    with checkpoint.held(unfinished):  # it is in training at this moment
        assert checkpoint.to_resume("") == older
        assert "another process" in refusal("--resume", str(unfinished))
    assert checkpoint.to_resume(str(run_copy)) == run_copy
    for folder in (older, unfinished):
        shutil.rmtree(folder)
    assert checkpoint.to_resume("") == run_copy


def test_where_there_is_no_run_it_is_said(root, tmp_path):
    assert "no run" in refusal("--resume")
    assert "no such folder" in refusal("--resume", "missing")
    assert "config.json" in refusal("--resume", str(tmp_path))


def test_a_run_that_ends_after_the_clock_was_set_back_is_still_the_last(root, run_copy):
    future = (datetime.now(UTC) + timedelta(days=400)).isoformat(timespec="microseconds")
    config = json.loads((run_copy / "config.json").read_text())
    checkpoint.write_config(run_copy, config | {"finished": future})
    for name in ("second", "third"):
        shutil.copytree(run_copy, root / name)
        checkpoint.write_config(root / name, config | {"finished": checkpoint.finished_now()})
        assert checkpoint.choose(None) == root / name


# Signals


@pytest.mark.parametrize(
    "number, status, word", [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")]
)
def test_a_signal_ends_a_run_with_the_command_that_resumes_it(root, number, status, word):
    process = start("main.py", *SMALL_RUN, "--epochs", "999", stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        while "Epoch:   1/999" not in (line := process.stdout.readline()):
            assert line, process.stderr.read()
        process.send_signal(number)
        _, error = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == status
    folder = root / "standard-digits-001"
    assert error.strip() == f"main.py: {word}; go on with: python main.py --resume {main.shown(folder)}"
    assert checkpoint.read_config(folder)["epochs_done"] >= 1


def test_two_processes_do_not_train_in_one_folder(root, unfinished):
    code = "import sys; from pathlib import Path; from vae import checkpoint\n"
    code += "with checkpoint.held(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", code, unfinished]
    holder = subprocess.Popen(command, cwd=main.checkpoint.PROJECT, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert holder.stdout.readline() == b"held\n"
        done = finish("main.py", "--resume", unfinished)
        assert done.returncode == 1 and "another process" in done.stderr and len(done.stderr.splitlines()) == 1
    finally:
        holder.kill()
        holder.communicate()
    assert finish("main.py", "--resume", unfinished).returncode == 0  # a killed process holds nothing
