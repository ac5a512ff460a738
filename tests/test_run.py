"""A run's folder: saved, restored and resumed; nothing is lost by a kill at any moment; never two processes at once.

Nothing is trained here. tests/test_main.py has the same with true networks.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, full_disk, refuse, snapshot
from tiny_runs import DATASET, IMAGES, build_vae, epochs_in, new, train, train_epoch, write_config

from vae import files, run, runs
from vae.data import load
from vae.run import Run, list_variables
from vae.runs import read_config

SAVED = {"training_state.npz", "config.json", "encoder.keras", "decoder.keras", "prior.npz", "history.csv"}


@pytest.fixture
def finished(root) -> Path:
    """A finished run of two epochs."""
    return train(new(name="mine"))


@pytest.fixture
def unfinished(root) -> Path:
    """A run of three epochs that was stopped after the second."""
    one, vae = new(name="mine", epochs=3), build_vae()
    with pytest.raises(KeyboardInterrupt), one.begin(vae, DATASET):
        train_epoch(one, vae)
        train_epoch(one, vae)
        raise KeyboardInterrupt
    return one.folder


def begin(one: Run) -> None:
    with one.begin(build_vae(), DATASET):
        pass


# Save


def test_an_epoch_is_saved_in_all_its_files(unfinished):
    assert {path.name for path in unfinished.iterdir()} - {".lock"} == SAVED
    assert set(epochs_in(unfinished)) == {2}
    assert (unfinished / "history.csv").read_bytes() == (
        b"epoch,general_loss,reconstruction_loss,kl_loss,test_general_loss,test_reconstruction_loss,test_kl_loss,"
        b"seconds,elapsed\r\n1,3.0,2.0,1.0,3.5,2.25,1.25,0.5,1.0\r\n2,3.0,2.0,1.0,3.5,2.25,1.25,0.5,2.0\r\n"
    )
    config = read_config(unfinished)
    assert (config["finished"], config["parameters"], config["settings"]["seed"]) == (None, 466, 3)
    state = files.read_arrays(unfinished / "training_state.npz", "")
    assert json.loads(state["config"].tobytes()) == config  # all that resuming needs


def test_a_finished_run_says_when_and_how_good_it_is(finished):
    assert set(epochs_in(finished)) == {2}
    config = read_config(finished)
    assert config["test"] == {"general_loss": 3.5, "reconstruction_loss": 2.25, "kl_loss": 1.25}
    assert config["activity"] == [0.5, 0.25]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}\+00:00", config["finished"])  # sorted as text
    assert abs(datetime.fromisoformat(config["finished"]) - datetime.now(UTC)) < timedelta(minutes=5)
    assert Run.resume("", {}).is_complete


def test_losses_on_validation_images_are_not_test_losses(root):
    one = new(validation_split=0.2)
    with one.begin(build_vae(), replace(DATASET, validation_images=IMAGES[:7])):
        assert list(one.make_row([0.0] * 6, 0.0, 0.0))[4:7] == [f"val_{name}" for name in run.LOSSES]
        assert one.config["dataset"]["validation_images"] == 7


def test_without_a_learned_prior_there_is_no_prior_file(root):
    one, vae = new(prior="normal", epochs=1), build_vae(components=None)
    with one.begin(vae, DATASET):
        train_epoch(one, vae)
    assert {path.name for path in one.folder.iterdir()} - {".lock"} == SAVED - {"prior.npz"}
    assert Run.find(str(one.folder)).load_prior().is_normal


def test_a_full_disk_is_one_line_and_loses_nothing(unfinished):
    one, vae = Run.resume("", {}), build_vae()
    with one.begin(vae, DATASET):
        before = snapshot(unfinished)
        with full_disk(1000):
            message = refuse(train_epoch, one, vae)
    assert f"{unfinished / 'training_state.npz'} cannot be written" in message and "free space" in message
    assert snapshot(unfinished) == before
    train(Run.resume("", {}))
    assert set(epochs_in(unfinished)) == {3}


def test_half_written_files_of_a_killed_process_are_removed(unfinished):
    for name in (".999999-decoder.keras", ".hidden", "1-x"):
        (unfinished / name).write_bytes(b"half written")
    begin(Run.resume("", {}))
    assert {path.name for path in unfinished.iterdir()} - {".lock"} == SAVED | {".hidden", "1-x"}


# Kills


@pytest.mark.parametrize("number", range(10))
@pytest.mark.parametrize("mode", ["new", "further"])
def test_after_a_kill_before_any_file_the_run_can_be_resumed(root, mode, number, monkeypatch):
    """The training state is written first. All else is made again from it."""
    one = new(name="mine", epochs=1) if mode == "new" else Run.resume(str(train(new(name="mine"))), {"epochs": 3})
    folder, epochs, left, rename = root / "mine", one.settings.epochs, [number], os.replace

    def count(*paths):
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        rename(*paths)

    monkeypatch.setattr(os, "replace", count)
    with pytest.raises(KeyboardInterrupt):
        train(one)
    monkeypatch.setattr(os, "replace", rename)

    if number == 0 and mode == "new":
        assert "training_state.npz is missing; start a new run" in refuse(Run.resume, str(folder), {})
        return
    if number == 0:
        assert Run.resume(str(folder), {}).is_complete and set(epochs_in(folder)) == {2}
    train(Run.resume(str(folder), {"epochs": epochs}))
    assert set(epochs_in(folder)) == {epochs} and read_config(folder)["finished"]


@pytest.mark.parametrize("config", [None, "{", "[]", "{}"])
def test_what_is_missing_or_damaged_is_made_again_from_the_training_state(unfinished, config):
    before = snapshot(unfinished)
    for name in SAVED - {"training_state.npz", "config.json"}:
        (unfinished / name).unlink()
    (unfinished / "config.json").write_text(config) if config else (unfinished / "config.json").unlink()
    begin(Run.resume(str(unfinished), {}))
    assert snapshot(unfinished).keys() == before.keys() and set(epochs_in(unfinished)) == {2}


# Resume


def test_a_resumed_run_has_the_weights_the_optimizer_the_history_and_the_frames(unfinished, capsys):
    one, vae = Run.resume("", {}), build_vae()
    with one.begin(vae, DATASET):
        assert {float(np.ravel(variable)[-1]) for variable in list_variables(vae)} == {2}
        assert len(list_variables(vae)) == 4 + 2 + 3 + 2 + 2 * 9  # halves, prior, step and rate, both averages
        assert [row["epoch"] for row in one.rows] == [1, 2] and one.rows[0]["test_kl_loss"] == 1.25
        assert [frame[0, 1] for frame in one.frames] == [1, 2]
    assert capsys.readouterr() == ("-> Training is resumed after epoch 2 of 3.\n", "")


def test_a_finished_run_is_trained_further(finished):
    for name in run.FINAL_FILES:
        (finished / name).write_text("old")
    first = read_config(finished)
    assert Run.resume("", {}).is_complete and Run.resume(str(finished), {"epochs": 2}).is_complete
    one = Run.resume("", {"epochs": 3, "importance_samples": 5})
    assert not one.is_complete
    begin(one)
    assert read_config(finished)["finished"] is None  # killed now, it goes on by itself
    assert {path.name for path in finished.iterdir()} - {".lock"} == SAVED
    train(Run.resume("", {}))
    config = read_config(finished)
    assert (config["settings"]["epochs"], config["settings"]["importance_samples"]) == (3, 5)
    assert config["finished"] > first["finished"] and set(epochs_in(finished)) == {3}


REFUSED = [
    {"epochs": 1},
    {"epochs": 2, "importance_samples": 2},
    {"epochs": 3, "beta": 2.0},
    {"binarize": True},
    {"seed": 0},
    {"name": "other"},
]


def test_a_flag_that_contradicts_the_run_is_refused(finished):
    before = snapshot(finished)
    for given in REFUSED:
        message = refuse(Run.resume, str(finished), dict(given))
        name, value = list(given.items())[-1]
        assert message.startswith(f"{run.flag(name)} {value}: the run in ") and "start a new run" in message
    assert snapshot(finished) == before


def test_an_unfinished_run_has_its_own_number_of_epochs(unfinished):
    for given in ({"epochs": 4}, {"epochs": 4, "importance_samples": 2}):
        assert "the run in" in refuse(Run.resume, str(unfinished), given)
    Run.resume(str(unfinished), {"epochs": 3, "seed": 3, "name": "mine"})  # says what the run says


def test_a_damaged_state_or_another_backend_is_refused(unfinished):
    begin_again = Run.resume("", {})
    path = unfinished / "training_state.npz"
    state = files.read_arrays(path, "")
    config = json.loads(state["config"].tobytes()) | {"backend": "other"}
    np.savez(path, **state | {"config": np.frombuffer(json.dumps(config).encode(), np.uint8)})
    assert "began with KERAS_BACKEND=other; set it to resume" in refuse(begin, Run.resume("", {}))
    path.write_bytes(path.read_bytes()[:-100])
    before = snapshot(unfinished)
    assert f"{path} cannot be read" in refuse(Run.resume, "", {})
    assert f"{path} cannot be read" in refuse(begin, begin_again)
    assert snapshot(unfinished) == before


def test_ctrl_c_names_the_command_that_resumes(root, monkeypatch):
    monkeypatch.setenv("VAE_CHECKPOINTS", str(root / "it's here"))
    monkeypatch.chdir(root.parent)
    with pytest.raises(KeyboardInterrupt) as caught, new(name="mine").begin(build_vae(), DATASET):
        raise KeyboardInterrupt
    folder = os.path.join("runs", """it'"'"'s here""", "mine")
    assert caught.value.__notes__ == [f"go on with: python main.py --resume '{folder}'"]


HOLD = """
import sys, time
from pathlib import Path
from vae import runs

with runs.lock(Path(sys.argv[1])):
    print("locked", flush=True)
    time.sleep(60)
"""


def test_two_processes_do_not_train_in_one_folder_and_a_killed_one_frees_it(unfinished):
    before = snapshot(unfinished)
    with subprocess.Popen([sys.executable, "-c", HOLD, unfinished], cwd=ROOT, stdout=subprocess.PIPE) as other:
        try:
            assert other.stdout.readline() == b"locked\n"
            assert "another process trains there" in refuse(begin, Run.resume(str(unfinished), {}))
        finally:
            other.kill()
    assert snapshot(unfinished) == before
    begin(Run.resume("", {}))


# Restore


def test_the_prior_of_a_run(finished):
    one = Run.find(str(finished))
    np.testing.assert_array_equal(one.load_prior().means, np.full((2, 2), 2))
    one.save_prior(replace(one.load_prior(), labels=np.array([3, 7]), class_shares=np.eye(2, dtype=np.float32)))
    assert one.load_prior().labels.tolist() == [3, 7]
    (finished / "prior.npz").unlink()  # it is a part of the model
    assert f"{finished / 'prior.npz'} is missing" in refuse(one.load_prior)


@pytest.mark.parametrize("names, wanted", [(["a", "5"], ["a", "5", "2", "-1"]), (None, ["0", "1", "2", "-1"])])
def test_labels_have_the_names_that_the_config_has_for_them(finished, names, wanted):
    write_config(finished, dataset=read_config(finished)["dataset"] | {"label_names": names})
    assert [Run.find(None).name_label(label) for label in (0, 1, 2, -1)] == wanted


def test_reconstructions_are_saved_in_the_order_of_the_images(finished, capsys):
    class Mirror:
        reconstruct = staticmethod(lambda images: images)

    one, pixels = Run.find(str(finished)), IMAGES / 255 - 0.001  # bytes are rounded, not cut off
    assert "only a run with --save-reconstructions has it" in refuse(one.load_reconstructions)
    one.save_reconstructions(Mirror(), [(pixels[:20],), (pixels[20:],)])
    np.testing.assert_array_equal(one.load_reconstructions(), IMAGES)
    assert one.load_reconstructions().dtype == np.uint8
    assert f"saved in {finished / 'reconstructions.npz'}\n" in capsys.readouterr().out


# Images


def test_the_defaults_follow_the_images_of_a_new_run_only(root):
    one = Run.new({"dataset": "digits", "validation_split": 0.2, "latent_dim": 2})
    with one.begin(build_vae(), one.load_data()):
        assert (one.settings.batch_size, one.settings.epochs, one.settings.components) == (40, 50, 24)
    again = Run.resume("", {})
    again.settings.batch_size = 7
    again.load_data()
    assert (again.settings.batch_size, again.settings.epochs, again.settings.components) == (7, 50, 24)


def test_images_are_held_out_and_a_batch_is_not_larger_than_the_set(root):
    dataset = Run.new({"dataset": "digits", "validation_split": 0.2, "batch_size": 1200}).load_data()
    assert (len(dataset.train_images), len(dataset.validation_images)) == (1200, 300)
    message = refuse(Run.new({"dataset": "digits", "validation_split": 0.2, "batch_size": 1201}).load_data)
    assert "--batch-size 1201" in message and "only 1200" in message and "300 to validate on" in message


def test_a_run_knows_where_its_own_images_are(root, tmp_path, monkeypatch):
    (tmp_path / "there").mkdir()
    monkeypatch.chdir(tmp_path / "there")
    images = np.random.default_rng(0).integers(0, 256, (10, 8, 8), np.uint8)
    np.savez("own.npz", x_train=images, x_test=images[:2])
    np.savez("other.npz", x_train=images ^ 1, x_test=images)
    one = new(data="own.npz", batch_size=5)
    with one.begin(build_vae(), one.load_data()):
        folder = str(one.folder)
    monkeypatch.chdir(tmp_path)
    assert one.folder.name == "standard-own-001" and len(Run.resume(folder, {}).load_data().train_images) == 10
    for given in ({"data": "there/other.npz"}, {"dataset": "digits"}):
        assert "other images than the run began with" in refuse(Run.resume(folder, given).load_data)
    shutil.move("there/own.npz", "moved.npz")
    assert str(tmp_path / "there/own.npz") in refuse(Run.resume(folder, {}).load_data)
    moved = Run.resume(folder, {"data": "moved.npz"})
    assert len(moved.load_data().train_images) == 10 and moved.settings.data == str(tmp_path / "moved.npz")


def test_a_run_on_digits_instead_of_mnist_says_so_when_it_is_resumed_as_well(root):
    one = new()
    with one.begin(build_vae(), replace(load.load(load.Source("digits")), warning="MNIST is unavailable")):
        assert read_config(one.folder)["dataset"]["warning"] == "MNIST is unavailable"
    assert Run.resume("", {}).load_data().replaces_mnist
