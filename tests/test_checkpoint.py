"""A run's folder: written so that nothing can tear it, chosen by its own record, and restored from hostile files."""

import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, full_disk, snapshot

from vae import archive, checkpoint
from vae.settings import UserError

PLAIN = {
    "settings": {"data": None, "binarize": False},
    "dataset": {"name": "digits", "sha256": "0"},
    "versions": {},
    "epochs_done": 2,
    "finished": None,
}


def refusal(function, *arguments) -> str:
    """The one line with which a call is refused."""
    with pytest.raises(UserError) as caught:
        function(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def make_run(root: Path, name: str, **changes) -> Path:
    (root / name).mkdir(parents=True)
    checkpoint.write_config(root / name, PLAIN | changes)
    return root / name


# Writing


def test_replacing_gives_a_hidden_place_and_then_the_content_its_own(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with checkpoint.replacing(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
        assert temporary.parent == tmp_path and temporary.name.startswith(".") and temporary.suffix == ".txt"
        written = temporary.stat().st_ino
    assert path.read_text() == "new" and path.stat().st_ino == written  # renamed, not copied
    assert os.listdir(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("error", [RuntimeError("a defect"), KeyboardInterrupt()])
def test_what_stood_there_stays_after_an_exception(tmp_path, error):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(type(error)), checkpoint.replacing(path) as temporary:
        temporary.write_text("half")
        raise error
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


def write(path, content="new"):
    with checkpoint.replacing(path) as temporary:
        temporary.write_text(content)


def test_what_stood_there_stays_where_the_disk_is_full(tmp_path):
    write(tmp_path / "a.txt", "old")
    with full_disk(1000):
        message = refusal(write, tmp_path / "a.txt", "x" * 2000)
    assert str(tmp_path / "a.txt") in message and "cannot be written" in message
    assert (tmp_path / "a.txt").read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("place", ["missing/a.txt", "file/a.txt", "/proc/a.txt", "a folder", ".", "x" * 300])
def test_a_place_that_cannot_be_written_is_refused(tmp_path, place):
    (tmp_path / "file").write_text("old")
    (tmp_path / "a folder").mkdir()
    assert "cannot be written" in refusal(write, tmp_path / place)
    assert sorted(os.listdir(tmp_path)) == ["a folder", "file"]


def test_a_folder_that_may_not_be_written_is_refused(tmp_path):
    if os.geteuid() == 0:
        pytest.skip("root may write everywhere")
    tmp_path.chmod(0o500)
    assert "Permission denied" in refusal(write, tmp_path / "a.txt")
    tmp_path.chmod(0o700)
    assert os.listdir(tmp_path) == []


def test_a_pipe_or_a_device_is_not_replaced_by_a_file(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    assert "no plain file" in refusal(write, tmp_path / "pipe")
    assert (tmp_path / "pipe").is_fifo()


WRITER = """
import sys
from pathlib import Path
import numpy as np
from vae import checkpoint

class Model:
    def save(self, path):
        with open(path, "wb") as file:
            for _ in range(50):
                file.write(bytes([number % 256]) * 1000)

folder, number = Path(sys.argv[1]), 0
print("begun", flush=True)
while True:
    number += 1
    rows = [{"epoch": n} for n in range(100 + number)]
    state = {"a": np.full(50_000, number), "b": np.full(1, number)}
    checkpoint.write_epoch(folder, Model(), Model(), rows, {"settings": "x" * 10_000}, state)
"""


def test_a_kill_at_any_moment_leaves_whole_files(tmp_path):
    delays = np.random.default_rng(8).uniform(0, 0.1, 6)
    for delay in delays:
        command = [sys.executable, "-c", WRITER, tmp_path]
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE)
        try:
            assert process.stdout.readline() == b"begun\n"
            while not (tmp_path / "config.json").exists():
                assert process.poll() is None
            time.sleep(delay)
        finally:
            process.send_signal(signal.SIGKILL)
            process.communicate()
        for name in ("encoder.keras", "decoder.keras"):
            content = (tmp_path / name).read_bytes()
            assert len(content) == 50_000 and len(set(content)) == 1
        state = archive.read_state(tmp_path)
        assert set(state["a"]) == set(state["b"])
        assert len((tmp_path / "history.csv").read_text().splitlines()) > 100
        assert len(json.loads((tmp_path / "config.json").read_text())["settings"]) == 10_000
        assert all(name in checkpoint.FILES or name.startswith(".") for name in os.listdir(tmp_path))


class Saved:
    """What stands for a model here: its `save` writes some text, or fails as on a full disk."""

    def __init__(self, text: str | None):
        self.text = text

    def save(self, path):
        if self.text is None:
            path.write_text("half")
            raise OSError(28, "No space left on device")
        path.write_text(self.text)


ROWS = [{"epoch": 1, "general_loss": 1.25, "seconds": 0.1}, {"epoch": 2, "general_loss": 1.0, "seconds": 0.2}]


STATE = {"a": np.arange(5.0)}


def test_an_epoch_leaves_both_models_a_row_an_epoch_and_the_config(tmp_path):
    checkpoint.write_epoch(tmp_path, Saved("encoder"), Saved("decoder"), ROWS, PLAIN, STATE)
    names = ["config.json", "decoder.keras", "encoder.keras", "history.csv", "training_state.npz"]
    assert sorted(os.listdir(tmp_path)) == names
    assert checkpoint.read_config(tmp_path) == {"format": checkpoint.FORMAT, **PLAIN}
    np.testing.assert_array_equal(archive.read_state(tmp_path)["a"], STATE["a"])
    assert [(tmp_path / f"{half}.keras").read_text() for half in ("encoder", "decoder")] == ["encoder", "decoder"]
    assert (tmp_path / "history.csv").read_bytes() == b"epoch,general_loss,seconds\r\n1,1.25,0.1\r\n2,1.0,0.2\r\n"


@pytest.mark.parametrize("models", [(None, "new"), ("new", None)])
@pytest.mark.parametrize("epochs", [1, 2])
def test_an_epoch_is_written_whole_or_not_at_all(tmp_path, models, epochs):
    for name in (*checkpoint.FILES, "notes.txt"):
        (tmp_path / name).write_text("old")
    before = snapshot(tmp_path)
    message = refusal(checkpoint.write_epoch, tmp_path, *map(Saved, models), ROWS[:epochs], PLAIN, STATE)
    assert str(tmp_path) in message and "No space left" in message
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("epochs", [1, 2])
def test_with_an_epoch_goes_what_is_not_of_this_model_any_more_and_nothing_else(tmp_path, epochs):
    for name in (*checkpoint.FILES, "notes.txt"):
        (tmp_path / name).write_text("old")
    checkpoint.write_epoch(tmp_path, Saved("new"), Saved("new"), ROWS[:epochs], PLAIN, STATE)
    assert sorted(os.listdir(tmp_path)) == sorted([*checkpoint.EPOCH_FILES, "training_images.png", "notes.txt"])
    assert (tmp_path / "notes.txt").read_text() == "old"


# Names and folders


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", ".hidden", "-x", "a/b", "../a", "/a", "a\\b", "a b", "a\n", "é", "pretrained", "a" * 101, "a\0"],
)
@pytest.mark.parametrize("overwrite", [False, True])
def test_a_name_that_is_no_plain_folder_name_is_refused(name, overwrite):
    assert "--name" in refusal(checkpoint.check_name, name, overwrite)


def test_a_name_that_exists_is_refused_unless_it_may_be_overwritten(root):
    checkpoint.check_name("My_run-2.1", overwrite=False)
    make_run(root, "My_run-2.1")
    message = refusal(checkpoint.check_name, "My_run-2.1", False)
    assert str(root / "My_run-2.1") in message and "--overwrite" in message
    checkpoint.check_name("My_run-2.1", overwrite=True)


def test_numbers_go_on_from_the_highest(root):
    assert [checkpoint.create(None, "a-b").name for _ in range(2)] == ["a-b-001", "a-b-002"]
    for name in ("a-b-041", "a-b-x99", "a-bc-077", "xa-b-088", "a-b-099-old"):
        (root / name).mkdir()
    assert checkpoint.create(None, "a-b").name == "a-b-042"
    (root / "a-b-999").mkdir()
    assert checkpoint.create(None, "a-b").name == "a-b-1000"
    assert checkpoint.create(None, "a.b").name == "a.b-001"


def test_runs_that_begin_together_get_folders_of_their_own(root):
    barrier, folders = threading.Barrier(8), []

    def begin():
        barrier.wait()
        for _ in range(10):
            folders.append(checkpoint.create(None, "run"))

    threads = [threading.Thread(target=begin) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(folder.name for folder in folders) == [f"run-{number:03d}" for number in range(1, 81)]
    assert all(folder.is_dir() for folder in folders)


def test_overwriting_takes_the_same_folder_and_leaves_the_old_run_until_there_is_a_new_one(root):
    folder = make_run(root, "mine", finished="2020")
    before = snapshot(root)
    assert checkpoint.create("mine", "stem", overwrite=True) == folder
    assert "exists by now" in refusal(checkpoint.create, "mine", "stem")
    assert snapshot(root) == before


@pytest.mark.parametrize("name", [None, "mine"])
def test_a_folder_of_runs_that_cannot_be_made(tmp_path, monkeypatch, name):
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file", tmp_path / "file" / "runs", "/proc/runs"):
        monkeypatch.setenv("VAE_CHECKPOINTS", str(place))
        message = refusal(checkpoint.create, name, "stem")
        assert str(place) in message and "VAE_CHECKPOINTS" in message


def test_runs_are_kept_in_the_project_unless_moved(monkeypatch, tmp_path):
    monkeypatch.delenv("VAE_CHECKPOINTS")
    monkeypatch.chdir(tmp_path)
    assert checkpoint.root() == ROOT / "checkpoints"


# Choosing


def test_the_run_that_finished_last_by_its_own_record_is_chosen(root):
    times = {"c": "2024-05-06T10:00:00.000000+00:00", "a": "2025-01-02T09:00:00.000001+00:00"}
    for name, finished in times.items() | {("b", "2025-01-02T09:00:00.000000+00:00")}:
        make_run(root, name, finished=finished)
    make_run(root, "z")  # not finished
    os.utime(root / "c" / "config.json")
    assert checkpoint.choose(None) == root / "a"


def test_the_time_of_the_record_sorts_as_text():
    first, second = checkpoint.finished_now(), checkpoint.finished_now()
    assert first < second
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}\+00:00", first)


FOREIGN = [b"", b"{", b"[]", b"null", b"5", b"\xff\xfe", b"[" * 100_000, b'{"format": 1}', b'{"format": 2}'] + [
    json.dumps({"format": 1, **PLAIN, **changes}).encode()
    for changes in ({"finished": 5}, {"finished": ["3000"]}, {"settings": []}, {"dataset": {"name": 3}})
]


@pytest.mark.parametrize("content", FOREIGN, ids=range(len(FOREIGN)))
def test_other_peoples_folders_do_not_stand_in_the_way(root, content):
    good = make_run(root, "good", finished="2020")
    (root / "bad").mkdir()
    (root / "bad" / "config.json").write_bytes(content)
    (root / "worse" / "config.json").mkdir(parents=True)
    (root / "file").write_text("")
    assert checkpoint.choose(None) == good
    message = refusal(checkpoint.read_config, root / "bad")
    assert str(root / "bad" / "config.json") in message


def test_the_shipped_model_is_chosen_where_no_run_has_finished(root):
    shipped = ROOT / "checkpoints" / "pretrained"
    assert checkpoint.choose(None) == shipped  # not even the folder of runs is there
    make_run(root, "a")
    make_run(root, "pretrained", finished="3000")
    assert checkpoint.choose(None) == shipped


def test_a_folder_that_was_named_is_chosen_or_refused(root, tmp_path):
    run = make_run(root, "a")
    make_run(root, "b", finished="3000")
    assert checkpoint.choose(str(run)) == run
    (tmp_path / "file").write_text("")
    for name in ("nowhere", "file"):
        message = refusal(checkpoint.choose, str(tmp_path / name))
        assert f"--checkpoint {tmp_path / name}" in message and str(root) in message


# Restoring


def test_config_is_read_as_it_was_written(root):
    own = PLAIN | {"finished": "2020", "more": [1, "ä"]}
    assert checkpoint.read_config(make_run(root, "a", **own)) == {"format": checkpoint.FORMAT, **own}


def test_a_config_is_refused_with_the_reason(root):
    folder = make_run(root, "a")
    path = folder / "config.json"
    for content, words in (
        ('{"format": 99}', ["format 99", f"reads {checkpoint.FORMAT}"]),
        ("{}", ["format None"]),
        ("{", ["not JSON", "choose another run"]),
        (json.dumps({"format": 1, **PLAIN, "settings": {"data": None}}), ["settings binarize", "choose another run"]),
    ):
        path.write_text(content)
        message = refusal(checkpoint.read_config, folder)
        assert [word for word in [str(path), *words] if word not in message] == []
    path.unlink()
    assert "no config.json" in refusal(checkpoint.read_config, folder)


def restore(folder: Path, name: str = "decoder"):
    if name == "decoder":
        return archive.load_model(folder, "decoder", (None,), [(28, 28)])
    return archive.load_model(folder, "encoder", (28, 28), [(None,), (None,)])


def edited(archive: Path, change, saved_by: str | None = None) -> None:
    """Rewrite a `.keras` archive, with its config changed, and the version of Keras that it says it was saved by."""
    with zipfile.ZipFile(archive) as source:
        members = {name: source.read(name) for name in source.namelist()}
    config = json.loads(members["config.json"])
    change(config)
    members["config.json"] = json.dumps(config).encode()
    if saved_by:
        members["metadata.json"] = json.dumps({"keras_version": saved_by}).encode()
    with zipfile.ZipFile(archive, "w") as target:
        for name, content in members.items():
            target.writestr(name, content)


def layer_of(config: dict, class_name: str) -> dict:
    """The first layer of that class in the config of a model."""
    return next(layer for layer in config["config"]["layers"] if layer["class_name"] == class_name)


def test_a_model_of_another_keras_is_restored_or_it_is_said_what_to_install(run_copy):
    edited(run_copy / "decoder.keras", lambda config: None, saved_by="3.0.0")
    restore(run_copy)
    edited(run_copy / "decoder.keras", lambda config: layer_of(config, "Dense").update(class_name="Denser"), "9.8.7")
    message = refusal(restore, run_copy)
    assert "it was saved by Keras 9.8.7" in message and message.endswith("pip install keras==9.8.7")
    edited(run_copy / "decoder.keras", lambda config: None, saved_by="9; rm -rf ~")
    assert "pip" not in refusal(restore, run_copy)


def test_both_halves_of_a_run_are_restored(run_copy):
    encoder, decoder = restore(run_copy, "encoder"), restore(run_copy)
    mean, log_var = encoder.predict_on_batch(np.zeros((2, 28, 28), np.float32))
    assert mean.shape == log_var.shape == (2, 3)
    assert decoder.predict_on_batch(mean).shape == (2, 28, 28)


BAD_CONTENTS = {
    "empty": lambda content: b"",
    "truncated": lambda content: content[: len(content) // 2],
    "its end cut": lambda content: content[:-1],
    "random": lambda content: np.random.default_rng(0).bytes(len(content)),
    "harmed in the middle": lambda content: content[:9000] + bytes(9000) + content[18000:],
}


@pytest.mark.parametrize("change", BAD_CONTENTS.values(), ids=BAD_CONTENTS)
@pytest.mark.parametrize("name", ["encoder", "decoder"])
def test_a_harmed_model_is_refused(run_copy, change, name):
    path = run_copy / f"{name}.keras"
    path.write_bytes(change(path.read_bytes()))
    message = refusal(restore, run_copy, name)
    assert str(path) in message and "cannot be restored" in message and "--checkpoint" in message


def test_a_missing_model_is_refused(run_copy):
    path = run_copy / "decoder.keras"
    path.unlink()
    assert f"{path} is missing" in refusal(restore, run_copy)
    path.mkdir()
    assert f"{path} is missing" in refusal(restore, run_copy)


def test_a_zip_that_is_no_model_is_refused(run_copy):
    with zipfile.ZipFile(run_copy / "decoder.keras", "w") as archive:
        archive.writestr("readme.txt", "hello")
    assert "not a Keras archive" in refusal(restore, run_copy)
    with zipfile.ZipFile(run_copy / "decoder.keras", "w") as archive:
        archive.writestr("config.json", "5")
        archive.writestr("model.weights.h5", "5")
    assert "cannot be restored" in refusal(restore, run_copy)


def test_a_zip_bomb_is_refused(run_copy):
    with zipfile.ZipFile(run_copy / "decoder.keras", "a", zipfile.ZIP_DEFLATED, compresslevel=1) as file:
        file.writestr("assets/bomb", bytes(archive.LARGEST_MODEL))
    assert "not a Keras archive of a network of this size" in refusal(restore, run_copy)


def test_one_half_in_the_place_of_the_other_is_refused(run_copy):
    shutil.copy(run_copy / "encoder.keras", run_copy / "decoder.keras")
    message = refusal(restore, run_copy)
    assert str(run_copy / "decoder.keras") in message and "not the decoder" in message


def test_a_model_of_other_shapes_is_refused(run_copy, plain_keras):
    z = plain_keras.Input((3,))
    pixels = plain_keras.layers.Reshape((14, 14))(plain_keras.layers.Dense(196)(z))
    plain_keras.Model(z, pixels).save(run_copy / "decoder.keras")
    assert "not the decoder" in refusal(restore, run_copy)
    unknown = plain_keras.Input((None,))
    plain_keras.Model(unknown, plain_keras.layers.Identity()(unknown)).save(run_copy / "decoder.keras")
    assert "not the decoder" in refusal(restore, run_copy)


def test_a_model_that_declares_more_than_it_holds_costs_no_memory(run_copy, plain_keras):
    """400 million weights, 1.6 GB, in the dense layer that begins the decoder."""

    def enlarge(config):
        layer = layer_of(config, "Dense")
        layer["config"]["units"] = 10**8
        config["config"]["layers"] = config["config"]["layers"][: config["config"]["layers"].index(layer) + 1]
        config["config"]["output_layers"] = [layer["name"], 0, 0]

    edited(run_copy / "decoder.keras", enlarge)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    message = refusal(restore, run_copy)
    assert "declares more weights than it holds" in message
    with plain_keras.StatelessScope():  # which, when it ends, gives memory to all variables that still wait for it
        pass
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**16  # KiB


def test_a_lambda_layer_is_not_run(run_copy, plain_keras, tmp_path):
    z = plain_keras.Input((3,))
    pixels = plain_keras.layers.Reshape((28, 28))(plain_keras.layers.Dense(784)(z))
    path = str(tmp_path / "sprung")
    trap = plain_keras.layers.Lambda(lambda x: [x, __import__("pathlib").Path(path).touch()][0])
    plain_keras.Model(z, trap(pixels)).save(run_copy / "decoder.keras")
    Path(path).unlink()  # the trap does work
    assert "cannot be restored" in refusal(restore, run_copy)
    assert not Path(path).exists()


@pytest.mark.parametrize("module", ["os", "subprocess", "kerasx.layers", "keras_hub.layers", "model"])
def test_a_model_that_names_code_outside_keras_is_refused(run_copy, module):
    edited(run_copy / "decoder.keras", lambda config: layer_of(config, "Dense").update(module=module))
    message = refusal(restore, run_copy)
    assert "outside Keras" in message and module in message


def test_foreign_code_is_found_however_deep(run_copy, tmp_path):
    trap = {"module": "pathlib", "class_name": "Path", "config": {"arg": 1}, "registered_name": None}
    edited(
        run_copy / "decoder.keras", lambda config: layer_of(config, "Dense")["config"].update(kernel_initializer=[trap])
    )
    assert "pathlib" in refusal(restore, run_copy)


@pytest.mark.parametrize("content", [b"", b"PK\3\4", b"\x93NUMPY", b"prior"])
def test_a_harmed_mixture_is_refused(run_copy, content):
    (run_copy / "prior.npz").write_bytes(content)
    assert str(run_copy / "prior.npz") in refusal(archive.read_prior, run_copy)


def test_pickle_in_a_mixture_is_never_read(run_copy, tmp_path):
    class Trap:
        def __reduce__(self):
            return Path.touch, (tmp_path / "sprung",)

    np.savez(run_copy / "prior.npz", weights=np.array([Trap()], object))
    assert str(run_copy / "prior.npz") in refusal(archive.read_prior, run_copy)
    assert not (tmp_path / "sprung").exists()


def test_nothing_on_disk_changes_when_a_run_is_refused(run_copy):
    (run_copy / "decoder.keras").write_bytes(b"harmed")
    before = snapshot(run_copy)
    refusal(restore, run_copy)
    assert snapshot(run_copy) == before
