"""A run's folder: saved, found, restored and resumed; nothing is lost by a kill at any moment; never two processes.

Nothing is trained here. tests/test_main.py has the same with true networks.
"""

import json
import os
import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import ROOT, names_in, refuse, snapshot
from tiny_runs import DATASET, IMAGES, build_vae, epochs_in, new, train, train_epoch, write_config

from vae import files, run, runs
from vae.data.dataset import name_label
from vae.run import Run
from vae.runs import read_config
from vae.settings import complete

SAVED = {"training_state.npz", "config.json", "encoder.keras", "decoder.keras", "prior.npz", "history.csv"}


@pytest.fixture
def finished(root) -> Path:
    """A finished run of two epochs."""
    return train(new(name="mine"))


@pytest.fixture
def unfinished(root) -> Path:
    """A run of three epochs that was stopped after the second."""
    one, vae = new(name="mine", epochs=3), build_vae()
    with one.begin(vae, DATASET):
        train_epoch(one, vae)
        train_epoch(one, vae)
    return one.folder


def begin(one: Run) -> None:
    with one.begin(build_vae(), DATASET):
        pass


def test_an_epoch_is_saved_in_all_its_files(unfinished):
    assert names_in(unfinished) == SAVED and set(epochs_in(unfinished)) == {2}
    assert (unfinished / "history.csv").read_bytes() == (
        b"epoch,general_loss,reconstruction_loss,kl_loss,test_general_loss,test_reconstruction_loss,test_kl_loss,"
        b"seconds,elapsed\r\n1,3.0,2.0,1.0,3.5,2.25,1.25,0.5,1.0\r\n2,3.0,2.0,1.0,3.5,2.25,1.25,0.5,2.0\r\n"
    )
    config = read_config(unfinished)
    assert (config["finished"], config["epochs_done"], config["parameters"]) == (None, 2, 466)
    assert config["settings"] == vars(complete({"name": "mine", "epochs": 3, "seed": 3, "latent_dim": 2}))
    dataset = {"name": "tiny", "sha256": "0" * 64, "reading": {}, "label_names": None, "warning": None}
    dataset |= {"image_size": [8, 8], "train_images": 30, "validation_images": 0, "test_images": 5}
    assert config["dataset"] == dataset and {"python", "keras", "numpy", config["backend"]} == set(config["versions"])
    state = files.read_arrays(unfinished / "training_state.npz", "")
    assert json.loads(state["config"].tobytes()) == config  # all that resuming needs


def test_a_run_with_validation_images_and_without_a_learned_prior(root):
    one, vae = new(prior="normal", epochs=1), build_vae(components=None)
    with one.begin(vae, replace(DATASET, validation_images=IMAGES[:7])):
        train_epoch(one, vae)
    assert list(one.rows[0])[4:7] == [f"val_{name}" for name in run.LOSSES]
    assert one.config["dataset"]["validation_images"] == 7
    assert names_in(one.folder) == SAVED - {"prior.npz"} and Run.find(str(one.folder)).load_prior().is_normal


@pytest.mark.parametrize("mode, number", [*(("new", n) for n in range(10)), *(("further", n) for n in (0, 1, 2, 9))])
def test_after_a_kill_before_any_file_the_run_can_be_resumed(root, mode, number, monkeypatch):
    """The training state is written first. All else is made again from it."""
    one = new(name="mine", epochs=1) if mode == "new" else Run.resume(str(train(new(name="mine"))), {"epochs": 3})
    folder, epochs, left, rename = root / "mine", one.settings.epochs, [number], os.replace

    def count(*paths):
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        rename(*paths)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(os, "replace", count)
        train(one)
    if number == 0 and mode == "new":
        assert "training_state.npz is missing; start a new run" in refuse(Run.resume, str(folder), {})
        return
    if number == 0:
        assert Run.resume(str(folder), {}).is_complete and set(epochs_in(folder)) == {2}
    train(Run.resume(str(folder), {"epochs": epochs}))
    assert set(epochs_in(folder)) == {epochs} and read_config(folder)["finished"]


@pytest.mark.parametrize("config", [None, "{", "{}"])
def test_what_is_missing_or_damaged_is_made_again_from_the_training_state(unfinished, config, capsys):
    for name in SAVED - {"training_state.npz"}:
        (unfinished / name).unlink()
    for name in (".999999-decoder.keras", ".hidden", "1-x"):
        (unfinished / name).write_bytes(b"half written")
    if config is not None:
        (unfinished / "config.json").write_text(config)
    begin(Run.resume(str(unfinished), {}))
    assert names_in(unfinished) == SAVED | {".hidden", "1-x"} and set(epochs_in(unfinished)) == {2}
    assert capsys.readouterr() == ("-> Training is resumed after epoch 2 of 3.\n", "")


def test_a_finished_run_says_when_and_how_good_it_is_and_is_trained_further(finished):
    for name in run.FINAL_FILES:
        (finished / name).write_text("old")
    first = read_config(finished)
    assert first["test"] == {"general_loss": 3.5, "reconstruction_loss": 2.25, "kl_loss": 1.25}
    assert first["activity"] == [0.5, 0.25]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}\+00:00", first["finished"])  # sorted as text
    assert Run.resume("", {}).is_complete and Run.resume(str(finished), {"epochs": 2}).is_complete
    one = Run.resume("", {"epochs": 3, "importance_samples": 5})
    assert not one.is_complete
    begin(one)
    assert read_config(finished)["finished"] is None and names_in(finished) == SAVED  # killed now, it goes on by itself
    train(Run.resume("", {}))
    config = read_config(finished)
    assert (config["settings"]["epochs"], config["settings"]["importance_samples"]) == (3, 5)
    assert config["finished"] > first["finished"] and set(epochs_in(finished)) == {3}


def test_a_flag_that_contradicts_the_run_is_refused(finished):
    others = {"epochs": 1}, {"epochs": 2, "importance_samples": 2}, {"epochs": 3, "beta": 2.0}, {"binarize": True}
    for given in others:
        name, value = list(given.items())[-1]
        assert refuse(Run.resume, "", given).startswith(f"{run.flag(name)} {value}: the run in ")
    write_config(finished, finished=None)  # an unfinished run has its own number of epochs
    assert "--epochs 4: the run in" in refuse(Run.resume, "", {"epochs": 4})
    Run.resume("", {"epochs": 2, "seed": 3, "name": "mine"})  # says what the run says


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


def test_the_prior_and_the_names_of_labels(finished):
    one = Run.find(str(finished))
    np.testing.assert_array_equal(one.load_prior().means, np.full((2, 2), 2))
    one.save_prior(replace(one.load_prior(), labels=np.array([3, 7]), class_shares=np.eye(2, dtype=np.float32)))
    assert one.load_prior().labels.tolist() == [3, 7]
    (finished / "prior.npz").unlink()  # it is a part of the model
    assert f"{finished / 'prior.npz'} is missing" in refuse(one.load_prior)
    for names, wanted in ((["a", "5"], ["a", "5", "2", "-1"]), (None, ["0", "1", "2", "-1"])):
        write_config(finished, dataset=read_config(finished)["dataset"] | {"label_names": names})
        assert [name_label(label, Run.find(None).label_names) for label in (0, 1, 2, -1)] == wanted


def test_reconstructions_are_saved_in_the_order_of_the_images(finished):
    mirror = SimpleNamespace(reconstruct=lambda images: images)
    one, pixels = Run.find(str(finished)), IMAGES / 255 - 0.001  # bytes are rounded, not cut off
    assert "only a run with --save-reconstructions has it" in refuse(one.load_reconstructions)
    one.save_reconstructions(mirror, [(pixels[:20],), (pixels[20:],)])
    np.testing.assert_array_equal(one.load_reconstructions(), IMAGES)
    assert one.load_reconstructions().dtype == np.uint8


def test_the_defaults_follow_the_images_of_a_new_run_only(root):
    one = Run.new({"dataset": "digits", "validation_split": 0.2, "latent_dim": 2})
    with one.begin(build_vae(), replace(one.load_data(), warning="MNIST is unavailable")):
        assert (one.settings.batch_size, one.settings.epochs, one.settings.components) == (40, 50, 24)
    again = Run.resume("", {})
    again.settings.batch_size, again.settings.dataset = 7, None  # as where no --dataset was given
    assert again.load_data().replaces_mnist  # it says so again
    assert (again.settings.batch_size, again.settings.epochs, again.settings.components) == (7, 50, 24)


def test_a_batch_larger_than_the_set_is_refused(root):
    message = refuse(Run.new({"dataset": "digits", "validation_split": 0.2, "batch_size": 1201}).load_data)
    assert message == "--batch-size 1201: there are only 1200 training images and 300 to validate on"
    Run.new({"dataset": "digits", "validation_split": 0.2, "batch_size": 1200}).load_data()


def test_a_run_knows_where_its_own_images_are(root, tmp_path, monkeypatch):
    (tmp_path / "there").mkdir()
    monkeypatch.chdir(tmp_path / "there")
    np.savez("own.npz", x_train=IMAGES[:10], x_test=IMAGES[:2])
    np.savez("other.npz", x_train=IMAGES[10:20], x_test=IMAGES[:2])
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


def create(name: str | None = None) -> str:
    return runs.create_folder(complete({"name": name}), "tiny").name


def test_names_of_runs(root):
    for name in ("", "..", ".hidden", "-x", "a/b", "a\\b", "a b", "a\n", "é", "pretrained", "a" * 101):
        assert "--name" in refuse(Run.new, {"name": name})
    assert create("My_run-2.1") == "My_run-2.1"
    assert str(root / "My_run-2.1") in refuse(Run.new, {"name": "My_run-2.1"})
    assert "exists; take another --name" in refuse(create, "My_run-2.1")  # another process took it in the meantime
    assert [create(), create()] == ["standard-tiny-001", "standard-tiny-002"]
    with ThreadPoolExecutor(4) as pool:  # runs that begin together get folders of their own
        assert len(set(pool.map(create, [None] * 50))) == 50


def test_the_run_that_finished_last_by_its_own_record_is_found_else_the_shipped_model(root, tmp_path):
    shipped = ROOT / "checkpoints" / "pretrained"
    assert "there is no run in" in refuse(Run.resume, "", {})
    write_config(root / "z")
    write_config(root / "pretrained", finished="3000")
    assert Run.find(None).folder == shipped and Run.find(None).settings.network == "standard"
    times = {"c": "2024-05-06T10:00:00.000000+00:00", "a": "2025-01-02T09:00:00.000001+00:00"}
    for name, end in (times | {"b": "2025-01-02T09:00:00.000000+00:00"}).items():
        write_config(root / name, finished=end)
    os.utime(root / "c" / "config.json")
    assert Run.find(None).folder == root / "a" and Run.find(str(root / "z")).folder == root / "z"
    assert f"--checkpoint {tmp_path / 'x'}: no such folder" in refuse(Run.find, str(tmp_path / "x"))
    assert f"--resume {tmp_path / 'x'}: no such folder" in refuse(Run.resume, str(tmp_path / "x"), {})


def test_a_bad_config_is_refused_and_does_not_matter_to_others(root):
    good = write_config(root / "good", finished="2020")
    path = write_config(root / "bad") / "config.json"
    for content in ("", "{", "[]", "{}", '{"settings": {"network": "none"}}', '{"settings": []}'):
        path.write_text(content)
        assert f"{path} cannot be read, or is not of a run" in refuse(Run.find, str(root / "bad"))
        assert Run.find(None).folder == good
    path.unlink()
    assert "no config.json" in refuse(Run.find, str(root / "bad"))


def test_the_newest_unfinished_run_is_resumed_else_the_one_that_finished_last(root):
    write_config(root / "done", finished="2020")
    assert runs.find_resumable() == root / "done"
    older, newer = (write_config(root / name) for name in ("older", "newer"))
    os.utime(older / "config.json", ns=(1, 1))
    assert runs.find_resumable() == newer
    with runs.lock(newer):  # it is in training at this moment
        assert "another process trains there" in refuse(runs.lock(newer).__enter__)
    (older / ".lock").mkdir()
    assert "cannot be written (Is a directory)" in refuse(runs.lock(older).__enter__)
    assert "no config.json" in refuse(Run.find, "")  # not another run
