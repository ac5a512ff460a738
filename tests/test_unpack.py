"""Archives and IDX files that are too large for memory become .npy files, piece by piece."""

import re
import shlex
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT, refuse
from helpers import (
    NAMES,
    assert_is_made,
    little_memory,
    load,
    make_arrays,
    make_idx_files,
    to_idx,
    to_npy,
    to_zip,
    write_folder,
    write_npz,
)

from vae import unpack
from vae.data import formats


def write_set(folder, kind: str):
    """Write the data set of `make_arrays` as an .npz or as IDX files."""
    if kind == "npz":
        return write_npz(folder / "a set.npz", **make_arrays(), names=np.array(["not", "images"]))
    return write_folder(folder / "a set", make_idx_files(), zipped=kind == "gzip")


@pytest.mark.parametrize("kind", ["npz", "idx", "gzip"])
def test_what_is_too_large_is_refused_with_the_command_that_unpacks_it(tmp_path, monkeypatch, capsys, kind):
    source, folder = write_set(tmp_path, kind), tmp_path / "npy"
    monkeypatch.setattr(formats, "MAX_BYTES", 4000)
    line = refuse(load, source)
    command = re.search(r": python -m vae.unpack (.*) FOLDER, then --data FOLDER$", line)[1]
    unpack.main([*shlex.split(command), str(folder)])
    assert sorted(capsys.readouterr().out.splitlines()) == sorted(
        f"-> {folder / name}.npy is written." for name in NAMES
    )
    assert_is_made(load(folder))


def test_it_runs_as_a_module(tmp_path):
    command = [sys.executable, "-m", "vae.unpack", write_set(tmp_path, "npz"), tmp_path / "npy"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stderr, len(ended.stdout.splitlines())) == (0, "", 4)


@pytest.mark.parametrize("kind", ["npz", "gzip"])
def test_only_a_piece_is_in_memory(tmp_path, monkeypatch, kind):
    images = np.zeros((5000, 28, 28), np.uint8)
    if kind == "npz":
        source = write_npz(tmp_path / "a.npz", x_train=images)
    else:
        source = write_folder(tmp_path / "a", {"train-images-idx3-ubyte": to_idx(images)}, zipped=True)
    monkeypatch.setattr(formats, "PIECE", 10_000)
    with little_memory(images.nbytes // 4):
        unpack.main([str(source), str(tmp_path / "npy")])
    np.testing.assert_array_equal(np.load(tmp_path / "npy" / "x_train.npy"), images)


def test_arrays_of_any_name_get_one_that_is_read(tmp_path):
    arrays = make_arrays()
    np.savez(tmp_path / "a.npz", arrays["x_train"], arrays["y_train"])
    unpack.main([str(tmp_path / "a.npz"), str(tmp_path / "npy")])
    assert sorted(path.name for path in (tmp_path / "npy").iterdir()) == ["x_train.npy", "y_train.npy"]
    np.testing.assert_array_equal(np.load(tmp_path / "npy" / "x_train.npy"), arrays["x_train"])


X = make_arrays()["x_train"]
BAD = {
    "nothing": ({}, "missing.npz", "no such file"),
    "pictures": ({"a.png": b""}, "", "neither an .npz nor"),
    "an npy": ({"x_train.npy": to_npy(X)}, "x_train.npy", "neither an .npz nor"),
    "a short IDX": ({"train-images-idx3-ubyte": to_idx(X)[:-9]}, "", "truncated"),
    "a long IDX": ({"train-images-idx3-ubyte": to_idx(X) + b"more"}, "", "goes on"),
    "pickles": ({"a.npz": to_zip(x_train=to_npy(np.array([{}])))}, "a.npz", "pickled"),
    "other sizes": ({"a.npz": to_zip(x_train=to_npy(X)[:-9])}, "a.npz", "declares"),
    "a damaged archive": ({"a.npz": to_zip(x_train=to_npy(X))[:-9]}, "a.npz", "damaged"),
}


@pytest.mark.parametrize("files, name, words", BAD.values(), ids=BAD)
def test_what_cannot_be_unpacked_leaves_no_file(tmp_path, files, name, words):
    source = write_folder(tmp_path / "set", files)
    assert words in refuse(unpack.main, [str(source / name), str(tmp_path / "npy")])
    assert not list(tmp_path.glob("npy/*"))


def test_nothing_is_overwritten(tmp_path):
    source = write_set(tmp_path, "npz")
    unpack.main([str(source), str(tmp_path / "npy")])
    assert "name a new folder" in refuse(unpack.main, [str(source), str(tmp_path / "npy")])
