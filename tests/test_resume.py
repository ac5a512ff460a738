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
from vae import archive, checkpoint
from vae.settings import UserError

EPOCHS = 3
ALL_IN_PLAY = (*SMALL_RUN, "--epochs", str(EPOCHS), "--binarize")  # dropout and the schedule always are


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch, plain_keras):
    monkeypatch.chdir(tmp_path)


def trained(folder) -> tuple[list[list[str]], dict[str, np.ndarray]]:
    """The history without its times, and every array of the training state: weights, and the optimizer's own."""
    rows = list(csv.reader((folder / "history.csv").read_text().splitlines()))
    state = archive.read_state(folder)
    del state["history"], state["run"]  # the one has the times, the other differs from run to run
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
    (prior, whole_prior) = (archive.read_prior(root / name) for name in ("broken", "whole"))
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
    for name in ("history.csv", "prior.npz", "loss_curves.png", "reconstructions.png"):
        assert (unfinished / name).read_bytes() == (small_run.folder / name).read_bytes()
    from vae import archive

    for half, shapes in (("encoder", ((28, 28), [(3,), (3,)])), ("decoder", ((3,), [(28, 28)]))):
        models = (archive.load_model(folder, half, *shapes) for folder in (unfinished, small_run.folder))
        for ours, theirs in zip(*(model.get_weights() for model in models), strict=True):
            np.testing.assert_array_equal(ours, theirs)
    assert checkpoint.read_config(unfinished)["finished"] and not list(unfinished.glob(".*"))


def test_the_last_batch_may_be_smaller_than_the_cores_are_many(root, tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (101, 28, 28), np.uint8)
    np.savez(tmp_path / "odd.npz", x_train=images, x_test=images[:1])
    main.main(["--data", str(tmp_path / "odd.npz"), "--epochs", "1", "--hidden-dim", "8", "--batch-size", "100"])
    assert checkpoint.read_config(root / "standard-odd-001")["finished"]


def test_a_run_is_resumed_in_as_many_shards_as_it_was_begun_in(unfinished, monkeypatch):
    config = json.loads((unfinished / "config.json").read_text())
    for count, others in ((1, 2), (2, 1)):
        checkpoint.write_config(unfinished, config | {"shards": count})
        monkeypatch.setattr("os.sched_getaffinity", lambda process, others=others: range(others), raising=False)
        main.main(["--resume", str(unfinished)])
        assert checkpoint.read_config(unfinished)["shards"] == count
    checkpoint.write_config(unfinished, config | {"shards": 10**9})
    assert "shards" in refusal("--resume", str(unfinished))


# Further


def test_a_finished_run_is_taken_further_and_else_nothing_is_left_to_do(root, run_copy, capsys):
    before = snapshot(run_copy)
    for arguments in (["--resume"], ["--resume", str(run_copy)], ["--resume", "--epochs", "2"]):
        main.main(arguments)
        assert "nothing is left to do" in capsys.readouterr().out
    assert snapshot(run_copy) == before
    first, _ = trained(run_copy)
    main.main(["--resume", "--epochs", "3", "--importance-samples", "2"])
    rows, _ = trained(run_copy)
    assert rows[:3] == first and len(rows) == 4
    config = checkpoint.read_config(run_copy)
    assert config["epochs_done"] == config["settings"]["epochs"] == 3 and config["finished"]
    assert config["settings"]["importance_samples"] == 2
    assert config["taken_further"] == [{"epochs": 2, "importance_samples": 1}]
    assert {path.name for path in run_copy.iterdir()} == set(checkpoint.FILES)


def test_importance_samples_that_do_not_fit_are_refused(root, run_copy):
    for refused in (["--importance-samples", "2"], ["--importance-samples", "2", "--epochs", "2"]):
        assert "--importance-samples 2: the run in" in refusal("--resume", *refused)
    assert "no KL term" in refusal(*SMALL_RUN, "--importance-samples", "2", "--beta", "4")


def interrupt_while_writing(number: int, monkeypatch) -> None:
    """Let whatever is written next end, as by a kill, before its `number`-th file takes its place."""
    replace, left = checkpoint.os.replace, [number]

    def count(*paths):
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        replace(*paths)

    monkeypatch.setattr(checkpoint.os, "replace", count)


@pytest.mark.parametrize("number", range(6))
def test_a_finished_run_that_is_to_become_another_is_whole_until_it_is_that_one(tmp_path, number, monkeypatch):
    """Overwritten, or taken further, and killed between two of the files of the first epoch."""

    class Model:
        def __init__(self, text):
            self.save = lambda path: path.write_text(text)

    config = {"settings": {"data": None, "binarize": False}, "dataset": {"name": "x", "sha256": "0"}, "versions": {}}
    for old_or_new, finished in (("old", "2026"), ("new", None)):
        if finished is None:
            interrupt_while_writing(number, monkeypatch)
        about = config | {"run": old_or_new, "epochs_done": 1, "finished": finished}
        arrays = {"run": np.frombuffer(old_or_new.encode(), np.uint8)}
        models = Model(old_or_new), Model(old_or_new)
        try:
            checkpoint.write_epoch(tmp_path, *models, [{"epoch": old_or_new}], about, arrays)
        except KeyboardInterrupt:
            assert number < len(checkpoint.EPOCH_FILES)
        if finished:
            checkpoint.write_prior(tmp_path, {"of": np.zeros(1)})
    names = {path.name for path in tmp_path.iterdir()}
    halves = [(tmp_path / f"{half}.keras").read_text() for half in ("encoder", "decoder")]
    if checkpoint.read_config(tmp_path)["finished"]:
        assert halves == ["old", "old"] and "prior.npz" in names
    else:
        assert archive.read_state(tmp_path)["run"].tobytes() == b"new" and "prior.npz" not in names


def test_a_state_of_another_run_is_refused(unfinished):
    config = json.loads((unfinished / "config.json").read_text())
    checkpoint.write_config(unfinished, config | {"run": "another"})
    assert "not the state of this run" in refusal("--resume", str(unfinished))


def test_a_finished_run_is_as_it_was_until_its_first_further_epoch_is_whole(run_copy, monkeypatch):
    before = snapshot(run_copy)
    monkeypatch.setattr(main, "train", lambda *arguments: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt) as caught:
        main.main(["--resume", "--epochs", "3"])
    assert snapshot(run_copy) == before
    assert caught.value.__notes__[0].endswith(f"--resume {main.shown(run_copy)} --epochs 3")


def test_whoever_interrupts_a_run_that_overwrites_another_is_not_sent_to_the_other(run_copy, monkeypatch):
    before = snapshot(run_copy)
    monkeypatch.setattr(main, "train", lambda *arguments: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt) as caught:
        main.main([*SMALL_RUN, "--name", run_copy.name, "--overwrite"])
    assert snapshot(run_copy) == before
    (note,) = caught.value.__notes__
    assert "--resume" not in note and "overwritten" in note


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
        ("hidden_dim", 10**5),  # which would take 160 GB
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
    arrays = archive.read_state(unfinished)
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
    main.main(["--resume", str(unfinished)])  # a killed process holds nothing
    assert checkpoint.read_config(unfinished)["finished"]
