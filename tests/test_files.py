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

FORBIDDEN = ("os.system", "os.exec", "os.posix_spawn", "subprocess.Popen", "pickle.find_class", "socket.connect")
events: list[str] = []
sys.addaudithook(lambda event, arguments: events.append(event) if event in FORBIDDEN else None)


def write(path: Path, content: str = "new") -> None:
    with files.replacing(path) as temporary:
        temporary.write_text(content)


def read_arrays(path: Path) -> dict:
    return files.read_arrays(path, "remedy")


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
    write(tmp_path / "a.npz", "old")
    with full_disk(1000):
        for message in (
            refuse(write, tmp_path / "a.npz", "x" * 2000),
            refuse(files.write_arrays, tmp_path / "a.npz", {"a": np.arange(1000)}),
        ):
            assert f"{tmp_path / 'a.npz'} cannot be written" in message and "free space" in message
    with pytest.raises(KeyboardInterrupt), files.replacing(tmp_path / "a.npz") as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt
    assert (tmp_path / "a.npz").read_text() == "old" and os.listdir(tmp_path) == ["a.npz"]


@pytest.mark.parametrize("place", ["missing/a.txt", "a folder", "pipe"])
def test_a_place_that_cannot_be_written_is_refused(tmp_path, place):
    (tmp_path / "a folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    assert "cannot be written" in refuse(write, tmp_path / place)
    assert sorted(os.listdir(tmp_path)) == ["a folder", "pipe"] and (tmp_path / "pipe").is_fifo()


def test_arrays_are_read_as_they_were_written_and_pickle_never(tmp_path):
    path = tmp_path / "a.npz"
    files.write_arrays(path, {"a": np.arange(3), "b": np.eye(2, dtype=np.float32)})
    arrays = read_arrays(path)
    assert arrays.keys() == {"a", "b"} and arrays["b"].dtype == np.float32 and arrays["a"].tolist() == [0, 1, 2]
    hostile = np.array([Path], object)
    with pytest.raises(ValueError):
        files.write_arrays(path, {"a": hostile})
    np.savez(path, a=hostile)
    events.clear()
    assert str(path) in refuse(read_arrays, path) and events == []
    np.load(path, allow_pickle=True)["a"]
    assert events != []  # pickle does give notice


@pytest.fixture
def decoder(tmp_path, plain_keras) -> Path:
    """A small decoder, as a run saves it."""
    z = plain_keras.Input((3,))
    pixels = plain_keras.layers.Reshape((8, 8))(plain_keras.layers.Dense(64, name="dense")(z))
    files.save_model(plain_keras.Model(z, pixels), tmp_path / "decoder.keras")
    return tmp_path / "decoder.keras"


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


@pytest.mark.parametrize("module, name, config", [("trap", "Trap", {}), ("os", "function", "system")])
def test_a_module_that_a_model_names_is_not_imported(decoder, module, name, config, monkeypatch):
    monkeypatch.syspath_prepend(decoder.parent)
    decoder.with_name("trap.py").write_text("from pathlib import Path\nPath(__file__).with_suffix('.sprung').touch()")
    with zipfile.ZipFile(decoder) as source:
        members = {member: source.read(member) for member in source.namelist()}
    model = json.loads(members["config.json"])
    model["config"]["layers"][1] |= {"module": module, "class_name": name, "config": config, "registered_name": name}
    with zipfile.ZipFile(decoder, "w") as target:
        for member, content in (members | {"config.json": json.dumps(model)}).items():
            target.writestr(member, content)
    assert f"{decoder} cannot be read" in refuse(files.load_model, decoder)
    assert not decoder.with_name("trap.sprung").exists()


@pytest.mark.filterwarnings("ignore")  # of zipfile and HDF5, about what is damaged
@pytest.mark.parametrize("name, read", [("decoder.keras", files.load_model), ("a.npz", read_arrays)])
def test_a_damaged_file_is_read_or_refused_in_one_line(decoder, name, read):
    path, rng, refused = decoder.with_name(name), np.random.default_rng(0), 0
    files.write_arrays(decoder.with_name("a.npz"), {"a": np.arange(9), "b": np.eye(2)})
    whole = path.read_bytes()
    events.clear()
    for _ in range(40):
        start, size = rng.integers(len(whole)), 2 ** rng.integers(10)
        harms = [rng.bytes(size), b"", bytes(size)]
        path.write_bytes(whole[:start] + harms[rng.integers(3)] + whole[start + size :])
        try:
            read(path)
        except UserError as error:
            refused += 1
            assert str(path) in str(error) and "\n" not in str(error) and len(str(error)) < 700
    assert refused > 10 and events == []
    path.write_bytes(b"")
    assert "cannot be re" in refuse(read, path)
    path.unlink()
    assert f"{path} is missing" in refuse(read, path)
