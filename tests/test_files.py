"""Files: written whole or not at all; read without harm, whoever wrote them. Each fault is one line."""

import json
import os
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from conftest import full_disk, refuse

from vae import files
from vae.terminal import UserError

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


def test_the_old_file_is_there_when_writing_ends_early(tmp_path):
    write(tmp_path / "a.txt", "old")
    with full_disk(1000):
        message = refuse(write, tmp_path / "a.txt", "x" * 2000)
    assert f"{tmp_path / 'a.txt'} cannot be written" in message and "free space" in message
    with pytest.raises(KeyboardInterrupt), files.replacing(tmp_path / "a.txt") as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt
    assert (tmp_path / "a.txt").read_text() == "old" and os.listdir(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("place", ["missing/a.txt", "a folder", "pipe"])
def test_a_place_that_cannot_be_written_is_refused(tmp_path, place):
    (tmp_path / "a folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    assert "cannot be written" in refuse(write, tmp_path / place)
    assert sorted(os.listdir(tmp_path)) == ["a folder", "pipe"] and (tmp_path / "pipe").is_fifo()


# Reading


class Trap:
    """What runs code when pickle reads it."""

    def __init__(self, place: Path):
        self.place = place

    def __reduce__(self):
        return Path.touch, (self.place,)


def read_arrays(path: Path) -> dict:
    return files.read_arrays(path, "remedy")


def test_arrays_are_read_as_they_were_written(tmp_path):
    files.write_arrays(tmp_path / "a.npz", {"a": np.arange(3), "b": np.eye(2, dtype=np.float32)})
    arrays = read_arrays(tmp_path / "a.npz")
    assert arrays.keys() == {"a", "b"} and arrays["b"].dtype == np.float32 and arrays["a"].tolist() == [0, 1, 2]
    assert f"{tmp_path / 'b.npz'} is missing; remedy" in refuse(read_arrays, tmp_path / "b.npz")
    with pytest.raises(ValueError):
        files.write_arrays(tmp_path / "a.npz", {"a": np.array([Trap(tmp_path)], object)})


def test_pickle_is_never_read(tmp_path):
    np.savez(tmp_path / "a.npz", a=np.array([Trap(tmp_path / "sprung")], object))
    assert str(tmp_path / "a.npz") in refuse(read_arrays, tmp_path / "a.npz")
    assert not (tmp_path / "sprung").exists()
    np.load(tmp_path / "a.npz", allow_pickle=True)["a"]
    assert (tmp_path / "sprung").exists()  # the trap does work


@pytest.fixture
def decoder(tmp_path, plain_keras) -> Path:
    """A small decoder, as a run saves it."""
    z = plain_keras.Input((3,))
    pixels = plain_keras.layers.Reshape((8, 8))(plain_keras.layers.Dense(64, name="dense")(z))
    files.save_model(plain_keras.Model(z, pixels), tmp_path / "decoder.keras")
    return tmp_path / "decoder.keras"


def edit(path: Path, change) -> None:
    """Rewrite the dense layer of a saved decoder."""
    with zipfile.ZipFile(path) as source:
        members = {name: source.read(name) for name in source.namelist()}
    config = json.loads(members["config.json"])
    change(config["config"]["layers"][1])
    with zipfile.ZipFile(path, "w") as target:
        for name, content in (members | {"config.json": json.dumps(config)}).items():
            target.writestr(name, content)


def test_an_archive_that_unpacks_to_more_than_the_limit_is_refused(tmp_path, decoder, monkeypatch):
    with zipfile.ZipFile(tmp_path / "bomb.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.npy", bytes(2**20 + 1))
    with zipfile.ZipFile(decoder, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("assets/bomb", bytes(2**20))
    files.load_model(decoder)
    monkeypatch.setattr(files, "LARGEST", 2**20)
    monkeypatch.setattr(np, "load", None)  # it is refused before it is read
    assert "it is too large" in refuse(read_arrays, tmp_path / "bomb.npz")
    assert "it is too large" in refuse(files.load_model, decoder)


def test_a_lambda_layer_is_not_run(decoder, plain_keras, tmp_path):
    path = str(tmp_path / "sprung")
    z = plain_keras.Input((3,))
    trap = plain_keras.layers.Lambda(lambda x: [x, __import__("pathlib").Path(path).touch()][0])
    plain_keras.Model(z, trap(z)).save(decoder)
    Path(path).unlink()  # the trap does work
    assert "cannot be read" in refuse(files.load_model, decoder) and not Path(path).exists()


def test_a_module_that_a_model_names_is_not_imported(decoder, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "trap.py").write_text("from pathlib import Path\nPath(__file__).with_suffix('.sprung').touch()")
    names = {"module": "trap", "class_name": "Trap", "config": {}, "registered_name": None}
    edit(decoder, lambda layer: layer["config"].update(kernel_initializer=names))
    assert f"{decoder} cannot be read" in refuse(files.load_model, decoder)
    calls = {"module": "os", "class_name": "function", "config": "system", "registered_name": "function"}
    edit(decoder, lambda layer: layer.update(calls))
    assert f"{decoder} cannot be read" in refuse(files.load_model, decoder)
    assert not (tmp_path / "trap.sprung").exists()
    __import__("trap")
    assert (tmp_path / "trap.sprung").exists()  # the trap does work


FORBIDDEN = ("os.system", "os.exec", "os.posix_spawn", "subprocess.Popen", "pickle.find_class", "socket.connect")
events: list[str] = []
sys.addaudithook(lambda event, arguments: events.append(event) if event in FORBIDDEN else None)


@pytest.mark.filterwarnings("ignore")  # of zipfile and HDF5, about what is damaged
@pytest.mark.parametrize("name, read", [("decoder.keras", files.load_model), ("a.npz", read_arrays)])
def test_a_damaged_file_is_read_or_refused_in_one_line(decoder, name, read):
    path, rng, refused = decoder.with_name(name), np.random.default_rng(0), 0
    files.write_arrays(decoder.with_name("a.npz"), {"a": np.arange(9), "b": np.eye(2)})
    whole = path.read_bytes()
    for _ in range(40):
        start, size = rng.integers(len(whole)), 2 ** rng.integers(10)
        harms = [rng.bytes(size), b"", bytes(size)]
        path.write_bytes(whole[:start] + harms[rng.integers(3)] + whole[start + size :])
        events.clear()
        try:
            read(path)
        except UserError as error:
            refused += 1
            assert str(path) in str(error) and "\n" not in str(error) and len(str(error)) < 700
        assert events == []
    assert refused > 10
    path.write_bytes(b"")
    assert "cannot be re" in refuse(read, path)
    path.unlink()
    assert f"{path} is missing" in refuse(read, path)
