"""A run's folder: saved, restored and resumed; whole after a kill at any moment; never two at once.

Nothing is trained here. tests/test_scripts.py has the same with true networks.
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
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import ROOT, refuse, snapshot
from PIL import Image
from tiny_runs import DATASET, IMAGES, Model, epochs_in, new, train, train_epoch, write_config

from vae import files, run, sampling
from vae.data import load
from vae.run import Run
from vae.runs import read_config


@pytest.fixture
def finished(root) -> Path:
    """A finished run of two epochs."""
    return train(new(name="mine"))


@pytest.fixture
def unfinished(root) -> Path:
    """A run of two epochs that was stopped after the second, before its end."""
    one, model = new(name="mine"), Model()
    with pytest.raises(KeyboardInterrupt), one.begin(model, DATASET):
        train_epoch(one, model)
        train_epoch(one, model)
        raise KeyboardInterrupt
    return one.folder


# Save


def test_an_epoch_is_saved_in_all_its_files(unfinished):
    names = {path.name for path in unfinished.iterdir()} - {".lock"}
    assert names == {*run.EPOCH_FILES, "prior.npz", "training_images.png"}
    assert epochs_in(unfinished) == [2] * 6
    assert (unfinished / "history.csv").read_bytes() == (
        b"epoch,general_loss,reconstruction_loss,kl_loss,test_general_loss,test_reconstruction_loss,test_kl_loss,"
        b"seconds,elapsed\r\n1,3.0,2.0,1.0,3.5,2.25,1.25,0.5,1.0\r\n2,3.0,2.0,1.0,3.5,2.25,1.25,0.5,2.0\r\n"
    )
    config = read_config(unfinished)
    assert (config["epochs_done"], config["finished"], config["parameters"]) == (2, None, 9)
    assert json.loads((unfinished / "config.json").read_text()) == config


def test_a_finished_run_says_when_and_how_good_it_is(finished):
    assert epochs_in(finished) == [2] * 6
    config = read_config(finished)
    assert config["test"] == {"general_loss": 3.5, "reconstruction_loss": 2.25, "kl_loss": 1.25}
    assert config["activity"] == [0.5, 0.25]
    assert re.fullmatch(
        r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}\+00:00", config["finished"]
    )  # its order is that of text
    assert abs(datetime.fromisoformat(config["finished"]) - datetime.now(UTC)) < timedelta(minutes=5)
    assert Run.find(str(finished)).is_complete and Run.find(str(finished)).is_finished


def test_losses_on_a_validation_split_are_not_test_losses(root):
    one = new(validation_split=0.2)
    with one.begin(Model(), replace(DATASET, validation_images=DATASET.test_images)):
        train_epoch(one, Model())
        assert list(one.rows[0])[4:7] == ["val_general_loss", "val_reconstruction_loss", "val_kl_loss"]
        assert one.test_losses is None


@pytest.mark.parametrize("half", ["encoder", "decoder"])
@pytest.mark.parametrize("mode", ["overwrite", "further"])
def test_an_epoch_is_saved_whole_or_not_at_all(finished, mode, half, monkeypatch):
    """Here the disk is full when one of the models is written."""
    (finished / "notes.txt").write_text("mine")
    one, model = again(mode, finished), Model()
    before = snapshot(finished)

    def fail(path):
        path.write_text("half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(getattr(model, half), "save", fail)
    with one.begin(model, DATASET):
        message = refuse(train_epoch, one, model)
    assert str(finished) in message and "No space left" in message and "free space" in message
    assert snapshot(finished) == before


@pytest.mark.parametrize("mode", ["overwrite", "further"])
def test_files_of_the_earlier_model_go_with_the_first_epoch_and_nothing_else_does(finished, mode):
    for name in (*run.FINAL_FILES, "notes.txt", ".hidden"):
        (finished / name).write_text("old")
    one, model = again(mode, finished), Model()
    with one.begin(model, DATASET):
        assert (finished / "prior.npz").read_text() == "old"
        train_epoch(one, model)
        names = {path.name for path in finished.iterdir()} - {".lock"}
    assert names == {*run.EPOCH_FILES, "prior.npz", "training_images.png", "notes.txt", ".hidden"}
    assert epochs_in(finished) == [1 if mode == "overwrite" else 3] * 6


def test_a_run_without_a_learned_prior_removes_the_prior_of_the_run_that_it_replaces(finished):
    one, model = new(name="mine", overwrite=True, prior="normal"), Model()
    with one.begin(model, DATASET):
        assert (finished / "prior.npz").exists()
        train_epoch(one, model)
    assert not (finished / "prior.npz").exists() and Run.find(str(finished)).load_prior(3).is_normal


def test_a_folder_that_disappears_during_training_is_named(root):
    one, model = new(name="mine"), Model()
    with one.begin(model, DATASET):
        train_epoch(one, model)
        shutil.rmtree(one.folder)
        message = refuse(train_epoch, one, model)
    assert str(one.folder) in message and "No such file or directory" in message and not one.folder.exists()


def test_a_run_goes_on_without_a_figure_that_cannot_be_drawn(finished, capsys):
    def fail(*given, **options):
        raise RuntimeError("no font")

    before = snapshot(finished)
    Run.find(None).save_figure("loss_curves.png", SimpleNamespace(savefig=fail))
    assert capsys.readouterr().err == "-> loss_curves.png could not be drawn: no font\n"
    assert snapshot(finished) == before


def test_half_written_files_of_a_killed_process_are_removed(unfinished):
    for name in (".999999-decoder.keras", ".hidden", ".1", "1-x"):
        (unfinished / name).write_bytes(b"half written")
    train(Run.resume(str(unfinished), {}))
    assert {path.name for path in unfinished.iterdir()} >= {".hidden", ".1", "1-x"}
    assert not list(unfinished.glob(".9*"))


def test_a_hundred_training_images_are_drawn_before_training_and_not_over_a_whole_run(root, finished):
    one = new()
    with one.begin(Model(), DATASET):
        picture = np.asarray(Image.open(one.folder / "training_images.png"))
        assert picture.shape == (3 * 26 + 2, 10 * 26 + 2)  # 30 images of 8 x 8, each pixel thrice, gaps of 2
        assert picture[2:26:3, 2:26:3].tobytes() in {image.tobytes() for image in IMAGES}
    (finished / "training_images.png").write_bytes(b"of the run before")
    one, model = again("overwrite", finished), Model()
    with one.begin(model, DATASET):
        assert (finished / "training_images.png").read_bytes() == b"of the run before"
        train_epoch(one, model)
        np.testing.assert_array_equal(np.asarray(Image.open(finished / "training_images.png")), picture)


# Kills


def again(mode: str, folder: Path) -> Run:
    """Return a run that goes on in a folder: one that replaces the run there, or that run for a third epoch."""
    if mode == "overwrite":
        return new(name=folder.name, overwrite=True, epochs=1)
    return Run.resume(str(folder), {"epochs": 3})


@pytest.mark.parametrize("number", range(8))
@pytest.mark.parametrize("mode", ["new", "overwrite", "further"])
def test_a_kill_between_two_files_leaves_the_old_run_or_one_that_can_be_resumed(root, mode, number, monkeypatch):
    folder = root / "mine"
    if mode == "new":
        one, epochs = new(name="mine", epochs=1), 1
    else:
        train(new(name="mine"))
        one, epochs = again(mode, folder), {"overwrite": 1, "further": 3}[mode]
    old = read_config(folder)["run"] if mode != "new" else None
    left, replace = [number], os.replace

    def count(*paths):
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        replace(*paths)

    monkeypatch.setattr(os, "replace", count)
    with pytest.raises(KeyboardInterrupt):
        train(one)
        raise KeyboardInterrupt  # all files were in place before
    monkeypatch.setattr(os, "replace", replace)

    if mode == "new" and number == 0:
        assert os.listdir(folder) == [".lock"] and "no run" in refuse(Run.resume, "", {})
        return
    config = read_config(folder)
    if config["finished"] and config["epochs_done"] == 2:  # still the old run
        found = epochs_in(folder)
        assert [*found[:3], found[-1]] == [2] * 4 and config["run"] == old
        if mode == "overwrite":
            return
    train(Run.resume(str(folder), {"epochs": 3} if mode == "further" else {}))
    assert epochs_in(folder) == [epochs] * 6
    config = read_config(folder)
    assert (config["epochs_done"], bool(config["finished"])) == (epochs, True)
    assert (config["run"] == old) == (mode == "further")


# Restore


def make_prior(**changes) -> dict[str, np.ndarray]:
    arrays = {"weights": np.ones(3) / 3, "means": np.arange(6.0).reshape(3, 2), "factors": np.stack([np.eye(2)] * 3)}
    return {name: array.astype(np.float32) for name, array in arrays.items()} | changes


def test_the_prior_of_a_run(finished):
    one = Run.find(str(finished))
    np.savez(finished / "prior.npz", **make_prior())  # as after an epoch: without labels
    prior = one.load_prior(2)
    assert prior.labels.size == 0 and prior.means.tolist() == [[0, 1], [2, 3], [4, 5]]
    shares = np.array([[0.5, 0.5], [1, 0], [0, 1]], np.float32)
    np.savez(finished / "prior.npz", **make_prior(labels=np.array([3, 7]), class_shares=shares))
    np.testing.assert_array_equal(one.load_prior(2).class_shares, shares)
    assert "holds no prior for this decoder" in refuse(one.load_prior, 3)
    (finished / "prior.npz").unlink()  # it is a part of the model
    assert f"{finished / 'prior.npz'} is missing" in refuse(one.load_prior, 2)


def test_a_prior_of_many_labels_is_read_again(finished):
    labels = np.arange(1623)
    codes = np.random.default_rng(0).standard_normal((1623, 2), np.float32)
    one = Run.find(None)
    one.save_prior(vars(sampling.learn_labels(sampling.make_normal(2), codes, labels)))
    assert one.load_prior(2).drawable_labels.tolist() == labels.tolist()


def test_the_prior_of_an_older_run_has_one_class_for_each_gaussian(finished):
    config = read_config(finished)
    write_config(finished, settings={name: value for name, value in config["settings"].items() if name != "prior"})
    np.savez(finished / "prior.npz", **make_prior(classes=np.array([7, 3, 7]), activity=np.ones(2)))
    prior = Run.find(str(finished)).load_prior(2)
    np.testing.assert_array_equal(prior.labels, [3, 7])
    np.testing.assert_array_equal(prior.class_shares, [[0, 1], [1, 0], [0, 1]])
    (finished / "prior.npz").unlink()
    assert Run.find(str(finished)).load_prior(2).is_normal


def test_the_most_active_dimensions(finished):
    def find(latent_dim: int, **changes) -> tuple[int, int]:
        return Run.find(str(write_config(finished, **changes))).find_most_active(latent_dim)

    assert find(4, activity=[0.1, 0.9, 0.0, 0.5]) == (1, 3)
    assert "--manifold" in refuse(find, 1)
    for activity in ([1.0, 2.0], 5, [[1.0]] * 3, ["a", "b", "c"], [None] * 3):
        write_config(finished, activity=activity)
        assert str(finished / "config.json") in refuse(find, 3)
    config = read_config(finished)
    del config["activity"]  # as in an older run
    (finished / "config.json").write_text(json.dumps(config))
    assert find(4) == (0, 1)


@pytest.mark.parametrize(
    "names, wanted", [(["a", 5], ["a", "5", "2", "-1"]), (None, ["0", "1", "2", "-1"]), ("xyz", ["0", "1", "2", "-1"])]
)
def test_labels_have_the_names_that_the_config_has_for_them(finished, names, wanted):
    run = Run.find(str(write_config(finished, dataset={"name": "a", "sha256": "0", "label_names": names})))
    assert [run.name_label(label) for label in (0, 1, 2, -1)] == wanted


def test_reconstructions_are_saved_in_the_order_of_the_images_and_nothing_else_is_loaded(finished, capsys):
    one, seeds = Run.find(str(finished)), []
    assert "only a run with --save-reconstructions has it" in refuse(one.load_reconstructions)
    mirror = SimpleNamespace(reseed=lambda *keys: seeds.append(keys), reconstruct=lambda images: images)
    pixels = IMAGES / 255 - 0.001  # bytes are rounded, not cut off
    one.save_reconstructions(mirror, [(pixels[:20],), (pixels[20:],)], IMAGES.shape)
    np.testing.assert_array_equal(one.load_reconstructions(), IMAGES)
    assert one.load_reconstructions().dtype == np.uint8 and seeds == [(3, 2)]
    assert capsys.readouterr().out == f"-> 30 reconstructions are saved in {finished / 'reconstructions.npz'}\n"
    for name, images in (("images", IMAGES / 2), ("images", IMAGES[:0]), ("images", IMAGES[0]), ("other", IMAGES)):
        np.savez(finished / "reconstructions.npz", **{name: images})
        assert "reconstructions.npz holds no images" in refuse(one.load_reconstructions)


# Images


def test_the_defaults_follow_the_images_of_a_new_run_only(root):
    one = Run.new({"dataset": "digits", "validation_split": 0.2})
    with one.begin(Model(), one.load_data()):
        pass
    wanted = (40, 50, 24)  # for 1,200 images
    assert (one.settings.batch_size, one.settings.epochs, one.settings.components) == wanted
    settings = read_config(one.folder)["settings"] | {"batch_size": 7, "components": 3}
    write_config(one.folder, settings=settings)
    one = Run.resume("", {})
    one.load_data()
    assert (one.settings.batch_size, one.settings.epochs, one.settings.components) == (7, 50, 3)


def test_images_are_loaded_and_held_out_by_the_settings(root):
    dataset = Run.new({"dataset": "digits", "validation_split": 0.2, "batch_size": 1200}).load_data()
    assert (len(dataset.train_images), len(dataset.validation_images)) == (1200, 300)
    message = refuse(Run.new({"dataset": "digits", "validation_split": 0.2, "batch_size": 1201}).load_data)
    assert "--batch-size 1201" in message and "1200" in message and "300 to validate on" in message
    assert "held out" not in refuse(Run.new({"dataset": "digits", "batch_size": 1501}).load_data)


def test_a_run_knows_where_its_own_images_are(root, tmp_path, monkeypatch):
    (tmp_path / "there").mkdir()
    monkeypatch.chdir(tmp_path / "there")
    images = np.random.default_rng(0).integers(0, 256, (10, 28, 28), np.uint8)
    np.savez("own.npz", x_train=images, x_test=images[:2])
    np.savez("other.npz", x_train=images ^ 1, x_test=images)
    one = new(data="own.npz", batch_size=5)
    with one.begin(Model(), one.load_data()):
        folder = str(one.folder)
    monkeypatch.chdir(tmp_path)
    assert one.folder.name == "standard-own-001" and len(Run.resume(folder, {}).load_data().train_images) == 10
    for given in ({"data": "there/other.npz"}, {"dataset": "digits"}):
        assert "other images" in refuse(Run.resume(folder, given).load_data)
    shutil.move("there/own.npz", "moved.npz")
    message = refuse(Run.resume(folder, {}).load_data)
    assert message.startswith(f"{tmp_path / 'there/own.npz'}: the images that the run was trained on are gone")
    moved = Run.resume(folder, {"data": "moved.npz"})
    assert len(moved.load_data().train_images) == 10 and moved.settings.data == str(tmp_path / "moved.npz")


@pytest.mark.parametrize("warning", ["MNIST is unavailable", None, 5])
def test_a_run_on_digits_instead_of_mnist_says_so_when_it_is_resumed_as_well(root, warning):
    one = new()
    with one.begin(Model(), replace(load.load(load.Options("digits")), warning="MNIST is unavailable")):
        assert read_config(one.folder)["dataset"]["warning"] == "MNIST is unavailable"
    write_config(one.folder, dataset=read_config(one.folder)["dataset"] | {"warning": warning})
    assert Run.resume("", {}).load_data().warning == (warning if isinstance(warning, str) else None)


# Resume


def test_a_resumed_run_has_the_weights_the_optimizer_and_the_history(unfinished, capsys):
    one, model = Run.resume("", {}), Model()
    with one.begin(model, DATASET):
        assert [float(variable[0]) for variable in run._variables(model)] == [2] * 4
        assert [row["epoch"] for row in one.rows] == [1, 2]
    assert capsys.readouterr() == (f"-> Training is resumed after epoch 2 of 2 in {unfinished}.\n", "")


def test_a_finished_run_is_trained_further_and_says_so(finished, capsys):
    first = read_config(finished)
    assert Run.resume("", {}).is_complete and Run.resume(str(finished), {"epochs": 2}).is_complete
    one = Run.resume("", {"epochs": 3, "importance_samples": 5})
    assert one.is_finished and not one.is_complete
    train(one)
    config = read_config(finished)
    assert (config["epochs_done"], config["settings"]["epochs"], config["settings"]["importance_samples"]) == (3, 3, 5)
    assert config["taken_further"] == [{"epochs": 2, "importance_samples": 1}]
    assert config["finished"] > first["finished"] and config["run"] == first["run"]
    train(Run.resume("", {"epochs": 4}))
    assert len(read_config(finished)["taken_further"]) == 2 and epochs_in(finished) == [4] * 6


REFUSED = [
    {"epochs": 1, "importance_samples": 2},
    {"epochs": 2, "importance_samples": 2},
    {"epochs": 3, "beta": 2.0},
    {"binarize": True},
    {"seed": 0},
    {"name": "other"},
    {"overwrite": True},
]


@pytest.mark.parametrize("given", REFUSED, ids=map(str, REFUSED))
def test_a_flag_that_contradicts_the_run_is_refused(finished, given):
    before = snapshot(finished)
    message = refuse(Run.resume, str(finished), dict(given))
    assert any(f"{run.flag(name)} {value}: " in message for name, value in given.items())
    assert "has " in message and "start a new run" in message
    assert snapshot(finished) == before


def test_an_unfinished_run_has_its_own_number_of_epochs(unfinished):
    for given in ({"epochs": 3}, {"epochs": 3, "importance_samples": 2}):
        assert "the run in" in refuse(Run.resume, str(unfinished), dict(given))
    Run.resume(str(unfinished), {"epochs": 2, "seed": 3, "name": "mine"})  # says what the run says


STATES = {  # TensorFlow said that it knows no long doubles when half of the variables had been assigned
    "torn": ("", None),
    "shape": ("variable_000", np.zeros((3, 3), np.float32)),
    **{kind: ("variable_001", np.zeros(3, kind)) for kind in ("f2", "f8", "g", "i8")},
    "not finite": ("variable_002", np.array([0, np.nan, 0], np.float32)),
    "more": ("variable_004", np.zeros(1)),
    "no rows": ("history", 5),
    "a text": ("history", "x"),
    "empty rows": ("history", [[], []]),
    "too few values": ("history", [{"epoch": 1}]),
    "an epoch that is missing": ("history", {"epoch": 2}),
    "infinite": ("history", {"kl_loss": float("inf")}),
    "a number that no float can hold": ("history", {"kl_loss": 10**400}),  # it is no ValueError
}


@pytest.mark.parametrize("name, value", STATES.values(), ids=STATES)
def test_a_state_that_is_not_of_this_run_is_refused(unfinished, name, value):
    path = unfinished / "training_state.npz"
    arrays = files.read_arrays(path, "")
    if isinstance(value, dict):  # a change to every row
        value = [row | value for row in json.loads(arrays["history"].tobytes())]
    if name == "history":
        value = np.frombuffer(json.dumps(value).encode(), np.uint8)
    if name:
        np.savez(path, **arrays | {name: value})
    else:
        path.write_bytes(path.read_bytes()[:-100])
    before, model = snapshot(unfinished), Model()
    message = refuse(Run.resume("", {}).begin(model, DATASET).__enter__)
    assert "training_state.npz" in message and "start a new" in message
    assert snapshot(unfinished) == before
    assert not any(np.asarray(half.weights[0]).any() for half in (model.encoder, model.decoder))


def test_a_state_of_another_run_or_backend_is_refused_and_other_versions_are_named(unfinished, capsys):
    config = read_config(unfinished)
    state = (unfinished / "training_state.npz").rename(unfinished / "elsewhere.npz")
    assert "training_state.npz is missing" in refuse(Run.resume("", {}).begin(Model(), DATASET).__enter__)
    state.rename(unfinished / "training_state.npz")
    write_config(unfinished, run="another")
    assert "not the state of this run" in refuse(Run.resume("", {}).begin(Model(), DATASET).__enter__)
    write_config(unfinished, run=config["run"], backend="other")
    assert "KERAS_BACKEND='other'" in refuse(Run.resume("", {}).begin(Model(), DATASET).__enter__)
    write_config(unfinished, backend=config["backend"], versions=config["versions"] | {"numpy": "0.1"})
    train(Run.resume("", {}))
    said = capsys.readouterr().err
    assert said == f"-> The run began with numpy 0.1, now {np.__version__}: last digits may differ.\n"


# Ctrl-C


def interrupt(one: Run, epochs: int) -> list[str]:
    """Interrupt a run after so many epochs, and return the notes on the exception."""
    model = Model()
    with pytest.raises(KeyboardInterrupt) as caught, one.begin(model, DATASET):
        for _ in range(epochs):
            train_epoch(one, model)
        raise KeyboardInterrupt
    return caught.value.__notes__


def test_ctrl_c_names_the_command_that_resumes(root, monkeypatch):
    monkeypatch.setenv("VAE_CHECKPOINTS", str(root / "it's here"))
    monkeypatch.chdir(root.parent)
    command = "go on with: python main.py --resume '" + os.path.join("runs", """it'"'"'s here""", "mine'")
    assert interrupt(new(name="mine"), 0) == [command]
    assert interrupt(Run.resume("", {}), 1) == [command]
    train(Run.resume("", {}))
    further = {"epochs": 4, "importance_samples": 2}
    assert interrupt(Run.resume("", dict(further)), 0) == [f"{command} --epochs 4 --importance-samples 2"]
    assert interrupt(Run.resume("", dict(further)), 1) == [command]  # now they are the run's own


@pytest.mark.parametrize("damaged", [False, True])
def test_ctrl_c_before_an_old_run_is_replaced_does_not_name_the_old_one(finished, damaged):
    if damaged:
        (finished / "config.json").write_text("{")
    before = snapshot(finished)
    (note,) = interrupt(again("overwrite", finished), 0)
    assert "--resume" not in note and "overwritten" in note and "mine" in note
    assert snapshot(finished) == before
    (note,) = interrupt(again("overwrite", finished), 1)
    assert "--resume" in note


# Two processes


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
            for one in (Run.resume(str(unfinished), {}), again("overwrite", unfinished)):
                message = refuse(one.begin(Model(), DATASET).__enter__)
                assert str(unfinished) in message and "another process trains there" in message
        finally:
            other.kill()
    assert snapshot(unfinished) == before
    train(Run.resume(str(unfinished), {}))
    (unfinished / ".lock").unlink()
    (unfinished / ".lock").mkdir()
    assert "cannot be written" in refuse(again("further", unfinished).begin(Model(), DATASET).__enter__)
