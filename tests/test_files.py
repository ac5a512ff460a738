"""Files: written whole or not at all; read without harm, whoever wrote them. Each fault is one line."""

import io
import json
import os
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
from conftest import full_disk, refuse, snapshot
from helpers import to_npy, to_zip

from vae import files

# Writing


def write(path: Path, content: str = "new") -> None:
    with files.replacing(path) as temporary:
        temporary.write_text(content)


def test_a_file_is_written_under_a_hidden_name_and_renamed(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with files.replacing(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
        assert temporary.parent == tmp_path and temporary.name.startswith(".") and temporary.suffix == ".txt"
        number = temporary.stat().st_ino
    assert path.read_text() == "new" and path.stat().st_ino == number  # renamed, not copied
    assert os.listdir(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("error", [RuntimeError("a defect"), KeyboardInterrupt()])
def test_the_old_file_is_there_after_an_exception(tmp_path, error):
    write(tmp_path / "a.txt", "old")
    with pytest.raises(type(error)), files.replacing(tmp_path / "a.txt") as temporary:
        temporary.write_text("half")
        raise error
    assert (tmp_path / "a.txt").read_text() == "old" and os.listdir(tmp_path) == ["a.txt"]


def test_the_old_file_is_there_when_the_disk_is_full(tmp_path):
    write(tmp_path / "a.txt", "old")
    with full_disk(1000):
        message = refuse(write, tmp_path / "a.txt", "x" * 2000)
    assert str(tmp_path / "a.txt") in message and "cannot be written" in message and "free space" in message
    assert (tmp_path / "a.txt").read_text() == "old" and os.listdir(tmp_path) == ["a.txt"]


def test_a_file_system_that_cannot_sync_is_written_to_all_the_same(tmp_path, monkeypatch):
    def refuse_sync(descriptor):
        raise OSError(22, "Invalid argument")

    monkeypatch.setattr(os, "fsync", refuse_sync)
    write(tmp_path / "a.txt")
    assert (tmp_path / "a.txt").read_text() == "new"


@pytest.mark.parametrize("place", ["missing/a.txt", "file/a.txt", "a folder", ".", "x" * 300])
def test_a_place_that_cannot_be_written_is_refused(tmp_path, place):
    (tmp_path / "file").write_text("old")
    (tmp_path / "a folder").mkdir()
    assert "cannot be written" in refuse(write, tmp_path / place)
    assert sorted(os.listdir(tmp_path)) == ["a folder", "file"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="Windows has no pipes in folders")
def test_a_pipe_or_a_device_is_not_replaced_by_a_file(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    assert "no plain file" in refuse(write, tmp_path / "pipe")
    assert (tmp_path / "pipe").is_fifo()


# Arrays and JSON


def read_arrays(path: Path):
    return files.read_arrays(path, "remedy")


def test_arrays_are_read_and_a_missing_file_is_none(tmp_path):
    np.savez_compressed(tmp_path / "a.npz", a=np.arange(3), b=np.eye(2, dtype=np.float32))
    arrays = read_arrays(tmp_path / "a.npz")
    assert arrays.keys() == {"a", "b"} and arrays["b"].dtype == np.float32
    assert read_arrays(tmp_path / "missing.npz") is None


NO_ARRAYS = {
    "nothing": b"",
    "half an archive": b"PK\3\4",
    "a text": to_zip(readme=b"hello"),
    "strings": to_zip(a=to_npy(np.array(["a text"]))),
    "truth values": to_zip(a=to_npy(np.array([True]))),
    "complex numbers": to_zip(a=to_npy(np.array([1j]))),
    "a header without end": to_zip(a=b"\x93NUMPY\2\0" + (2**28).to_bytes(4, "little") + b" " * 2**20),  # it took 3 GiB
}


@pytest.mark.parametrize("content", NO_ARRAYS.values(), ids=NO_ARRAYS)
def test_what_is_no_archive_of_numbers_is_refused(tmp_path, content):
    (tmp_path / "a.npz").write_bytes(content)
    message = refuse(read_arrays, tmp_path / "a.npz")
    assert str(tmp_path / "a.npz") in message and message.endswith("; remedy")


def test_pickle_is_never_read(tmp_path):
    class Trap:
        def __reduce__(self):
            return Path.touch, (tmp_path / "sprung",)

    np.savez(tmp_path / "a.npz", a=np.array([Trap()], object))
    assert str(tmp_path / "a.npz") in refuse(read_arrays, tmp_path / "a.npz")
    assert not (tmp_path / "sprung").exists()
    np.load(tmp_path / "a.npz", allow_pickle=True)["a"]
    assert (tmp_path / "sprung").exists()  # the trap does work


@pytest.mark.parametrize(
    "method, size, words",
    [
        (zipfile.ZIP_DEFLATED, 2**20 + 1, "too large"),
        *((method, 9, "unusual way") for method in (zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2)),
    ],
)
def test_an_archive_that_unpacks_to_more_than_the_limit_is_refused(tmp_path, monkeypatch, method, size, words):
    """Also one that is compressed in a way in which a limit would be hard to hold."""
    monkeypatch.setattr(files, "LARGEST_ARRAYS", 2**20)
    with zipfile.ZipFile(tmp_path / "a.npz", "w", method) as archive:
        archive.writestr("a.npy", bytes(size))
    assert words in refuse(read_arrays, tmp_path / "a.npz")


def make_sparse(path: Path) -> None:
    with open(path, "wb") as file:
        file.truncate(6 * 2**30)


PLACES = {"six GiB": make_sparse, "a folder": Path.mkdir}
if os.name == "posix":
    PLACES |= {"a pipe": os.mkfifo, "/dev/zero": lambda path: path.symlink_to("/dev/zero")}


@pytest.mark.parametrize("make", PLACES.values(), ids=PLACES)
@pytest.mark.parametrize("read", [files.read_json, read_arrays])
def test_what_has_no_end_is_not_read(tmp_path, read, make):
    """A pipe made the reader wait for ever, and a device filled the memory."""
    make(tmp_path / "a")
    assert str(tmp_path / "a") in refuse(read, tmp_path / "a")


# Models


@pytest.fixture(scope="module")
def halves(tmp_path_factory) -> Path:
    """A folder with a small encoder and decoder of images of 8 x 8."""
    import model

    folder = tmp_path_factory.mktemp("halves")
    model.build_encoder((8, 8), 4, 3).save(folder / "encoder.keras")
    model.build_decoder((8, 8), 3).save(folder / "decoder.keras")
    return folder


@pytest.fixture
def decoder(halves, tmp_path) -> Path:
    """A copy of the decoder; the encoder is beside it."""
    return shutil.copytree(halves, tmp_path / "run") / "decoder.keras"


def load(path: Path):
    if path.stem == "encoder":
        return files.load_model(path, (None, None), [(None,), (None,)])
    return files.load_model(path, (None,), [(None, None)])


def edit(path: Path, change=lambda config: None, compression: int = 0, **members: bytes | str) -> None:
    """Rewrite a `.keras` archive, with its config changed, and with some other members."""
    with zipfile.ZipFile(path) as source:
        contents = {name: source.read(name) for name in source.namelist()}
    config = json.loads(contents["config.json"])
    change(config)
    with zipfile.ZipFile(path, "w", compression) as target:
        for name, content in (contents | {"config.json": json.dumps(config)} | members).items():
            target.writestr(name, content)


def first_dense(config: dict) -> dict:
    return next(layer for layer in config["config"]["layers"] if layer["class_name"] == "Dense")


def test_both_halves_are_loaded_in_safe_mode(decoder, monkeypatch, plain_keras):
    modes = []
    for name in ("load_model", "deserialize_keras_object"):
        own = getattr(plain_keras.saving, name)

        def watch(*given, own=own, **named):
            modes.append(named.get("safe_mode"))
            return own(*given, **named)

        monkeypatch.setattr(plain_keras.saving, name, watch)
    mean, log_var = load(decoder.with_name("encoder.keras")).predict_on_batch(np.zeros((2, 8, 8), np.float32))
    assert mean.shape == log_var.shape == (2, 3)
    assert load(decoder).predict_on_batch(mean).shape == (2, 8, 8)
    assert len(modes) == 4 and set(modes) == {True}


def test_the_shapes_are_checked(decoder, plain_keras):
    files.load_model(decoder, (3,), [(8, 8)])
    for shapes in (((4,), [(8, 8)]), ((3,), [(8, 9)]), ((3,), [(8,)]), ((3,), [(8, 8), (8, 8)])):
        assert "not the decoder" in refuse(files.load_model, decoder, *shapes)
    unknown = plain_keras.Input((None,))
    plain_keras.Model(unknown, plain_keras.layers.Identity()(unknown)).save(decoder)
    assert "not the decoder" in refuse(files.load_model, decoder, (None,), [(None,)])
    shutil.copy(decoder.with_name("encoder.keras"), decoder)
    message = refuse(load, decoder)
    assert str(decoder) in message and "not the decoder" in message and "--checkpoint" in message


HARMS = {
    "empty": lambda content: b"",
    "an empty archive": lambda content: b"PK\5\6" + bytes(18),
    "its end cut": lambda content: content[:-1],
    "harmed in the middle": lambda content: content[:9000] + bytes(9000) + content[18000:],
    "an archive of other things": lambda content: to_zip(readme=b"hello"),
}


@pytest.mark.parametrize("harm", HARMS.values(), ids=HARMS)
def test_a_harmed_or_missing_model_is_refused_and_not_changed(decoder, harm):
    decoder.write_bytes(harm(decoder.read_bytes()))
    before = snapshot(decoder.parent)
    message = refuse(load, decoder)
    assert f"{decoder} cannot be restored: " in message and "--checkpoint" in message
    assert snapshot(decoder.parent) == before
    decoder.unlink()
    assert f"{decoder} is missing" in refuse(load, decoder)


BOMBS = {  # with a fourth member, Keras would unpack the whole archive into a temporary folder
    "an asset": {"assets/x": "x"},
    "a large asset": {"assets/bomb": bytes(2**20)},
    "a long config": {"config.json": " " * 2**20 + "{}"},  # 200 MiB became GiB of lists
    "long metadata": {"metadata.json": bytes(2**20 + 1)},  # they were read in full
    "large weights": {"model.weights.h5": bytes(2**21)},
}


@pytest.mark.parametrize("members", BOMBS.values(), ids=BOMBS)
def test_the_members_of_an_archive_are_bounded(decoder, members, monkeypatch):
    monkeypatch.setattr(files, "LARGEST_MODEL", 2**21)
    load(decoder)
    edit(decoder, **members)
    assert "not a Keras archive of a network of this size" in refuse(load, decoder)


def test_a_compressed_archive_is_refused(decoder):
    """Keras does not compress. A small file could become large in memory."""
    edit(decoder, compression=zipfile.ZIP_DEFLATED)
    assert "not a Keras archive" in refuse(load, decoder)


def test_a_model_that_declares_more_than_it_holds_costs_no_memory(decoder, plain_keras):
    """400 million weights, 1.6 GB, in the dense layer that begins the decoder."""
    resource = pytest.importorskip("resource", reason="Windows does not tell the memory that was used")

    def enlarge(config):
        layer = first_dense(config)
        layer["config"]["units"] = 10**8
        config["config"]["layers"] = config["config"]["layers"][: config["config"]["layers"].index(layer) + 1]
        config["config"]["output_layers"] = [layer["name"], 0, 0]

    edit(decoder, enlarge)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert "declares more weights than it holds" in refuse(load, decoder)
    with plain_keras.StatelessScope():  # when it ends, it gives memory to all variables that still wait for it
        pass
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**16  # KiB


def test_weights_that_declare_more_than_they_store_take_no_memory(decoder):
    """An array of 4 GiB that HDF5 does not store, as all of it is zero, was made before its shape was looked at."""
    import h5py

    with zipfile.ZipFile(decoder) as archive:
        weights = io.BytesIO(archive.read("model.weights.h5"))
    with h5py.File(weights, "r+") as file:
        names = []
        file.visititems(lambda name, item: names.append(name) if isinstance(item, h5py.Dataset) else None)
        del file[names[0]]
        file.create_dataset(names[0], (2**10, 2**10, 2**10 - 1), "f4")
    edit(decoder, **{"model.weights.h5": weights.getvalue()})
    assert "declares more weights than it holds" in refuse(load, decoder)


def test_a_lambda_layer_is_not_run(decoder, plain_keras, tmp_path):
    path = str(tmp_path / "sprung")
    z = plain_keras.Input((3,))
    pixels = plain_keras.layers.Reshape((8, 8))(plain_keras.layers.Dense(64)(z))
    trap = plain_keras.layers.Lambda(lambda x: [x, __import__("pathlib").Path(path).touch()][0])
    plain_keras.Model(z, trap(pixels)).save(decoder)
    Path(path).unlink()  # the trap does work
    assert "cannot be restored" in refuse(load, decoder)
    assert not Path(path).exists()


@pytest.mark.parametrize("module", ["os", "subprocess", "kerasx.layers", "keras_hub.layers", "model"])
def test_a_model_that_names_code_outside_keras_is_refused_however_deep(decoder, module):
    trap = {"module": module, "class_name": "Path", "config": {}, "registered_name": None}
    edit(decoder, lambda config: first_dense(config)["config"].update(kernel_initializer=[trap]))
    message = refuse(load, decoder)
    assert "outside Keras" in message and module in message


def test_a_model_of_another_keras_is_loaded_or_it_is_said_what_to_install(decoder):
    edit(decoder, **{"metadata.json": json.dumps({"keras_version": "3.0.0"})})
    load(decoder)
    edit(decoder, lambda config: first_dense(config).update(class_name="Denser"))
    for version, named in (("9.8.7", True), ("9; rm -rf ~", False)):
        edit(decoder, **{"metadata.json": json.dumps({"keras_version": version})})
        message = refuse(load, decoder)
        assert ("saved by Keras 9.8.7" in message and message.endswith("pip install keras==9.8.7")) == named
        assert ("pip" in message) == named
