"""Damaged runs: each file of one is read, or refused in one line. Nothing in it is executed."""

import json
import os
import re
import shutil
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from helpers import to_npy, to_zip
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_fuzz import damage
from tiny_runs import DATASET, Model, new, train_epoch

from vae import files
from vae.run import Run
from vae.terminal import UserError

FORBIDDEN = ("os.system", "os.exec", "os.posix_spawn", "subprocess.Popen", "pickle.find_class", "socket.connect")
events: list[str] = []
sys.addaudithook(lambda event, arguments: events.append(event) if event in FORBIDDEN else None)


# Damage

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-2, 10**6)
    | st.floats()
    | st.text(max_size=9)
    | st.sampled_from([10**400, "~\0", "\ud800", "x" * 10**5, "a\nb", "keras.layers", "os"]),
    lambda parts: st.lists(parts, max_size=3) | st.dictionaries(st.text(max_size=5), parts, max_size=3),
    max_leaves=4,
)


@st.composite
def change_json(draw, content: object):
    """The content with one of its parts, however deep, replaced or removed."""
    if not content or not isinstance(content, dict | list) or not draw(st.integers(0, 5)):
        return draw(VALUES)
    changed = content.copy()
    key = draw(st.sampled_from(sorted(content) if isinstance(content, dict) else range(len(content))))
    if draw(st.integers(0, 5)):
        changed[key] = draw(change_json(content[key]))
    else:
        del changed[key]
    return changed


@st.composite
def change_arrays(draw, arrays: dict[str, np.ndarray]) -> bytes:
    """An .npz in which an array has another type, shape or value, or is missing, or that has one more."""
    name = draw(st.sampled_from(sorted(arrays)))
    values = np.array([0, 1, -1, 2, np.nan, np.inf, -np.inf, 1e-45, 1e38, 1e300])
    kinds = [arrays[name].dtype, "f2", "f8", "g", "i1", "i8", "u8", "?", "c8", "U5"]
    array = arrays[name].copy()
    with np.errstate(all="ignore"):
        if draw(st.booleans()):
            value = values[draw(st.integers(0, len(values) - 1))]
            array.flat[:: draw(st.sampled_from([1, array.size]))] = value.astype(array.dtype)
        array = array.astype(draw(st.sampled_from(kinds)))
    shape = draw(st.sampled_from([array.shape, (0,), (), (1, *array.shape), array.shape[::-1], (2000, 3)]))
    changed = arrays | {draw(st.sampled_from([name, name, "more"])): np.resize(array, shape)}
    if not draw(st.integers(0, 5)):
        del changed[name]
    return to_npz(changed)


def to_npz(arrays: dict[str, np.ndarray]) -> bytes:
    return to_zip(**{name: to_npy(array) for name, array in arrays.items()})


def to_json(content: object) -> bytes:
    return json.dumps(content).encode()


# Reading


def check(contents: st.SearchStrategy, read, examples: int) -> None:
    """Check that `read` reads so many contents, or refuses them in one line that names the run or a file of it."""
    refused = []

    @settings(max_examples=examples, deadline=None, database=None, derandomize=True, suppress_health_check=HealthCheck)
    @given(contents)
    def check_one(content) -> None:
        events.clear()
        try:
            read(content)
        except UserError as error:
            refused.append(error)
            assert "\n" not in str(error) and len(str(error)) < 700
            assert re.search(r"mine|--[a-z]|prior\.npz|training_state\.npz|\.keras", str(error))
        assert events == []

    check_one()
    assert examples / 4 < len(refused) < examples


@pytest.fixture
def unfinished(root, monkeypatch) -> Path:
    """A run of one epoch; nothing waits for the disk."""
    monkeypatch.setattr(os, "fsync", lambda file: None)
    one, model = new(name="mine"), Model()
    with one.begin(model, DATASET):
        train_epoch(one, model)
    return one.folder


@pytest.mark.filterwarnings("ignore")  # of NumPy and zipfile, about what is damaged
@pytest.mark.parametrize("name", ["config.json", "training_state.npz"])
def test_a_damaged_config_or_state_is_read_or_refused(unfinished, root, name):
    saved = shutil.copytree(unfinished, root / "saved")

    def read(content: bytes) -> None:
        shutil.copytree(saved, unfinished, dirs_exist_ok=True)
        (unfinished / name).write_bytes(content)
        with Run.resume(str(unfinished), {}).begin(Model(), DATASET):
            pass

    content = (saved / name).read_bytes()
    if name == "config.json":
        changed = [change_json(json.loads(content)).map(to_json)] * 2
    else:
        arrays = files.read_arrays(saved / name, "")
        rows = change_json(json.loads(arrays["history"].tobytes())).map(to_json)
        history = rows.map(lambda text: to_npz(arrays | {"history": np.frombuffer(text, np.uint8)}))
        changed = [change_arrays(arrays), history]
    check(st.one_of(damage(content), *changed), read, 60)


def make_prior() -> dict[str, np.ndarray]:
    """Return a prior of three Gaussians, each of one label."""
    shapes = {"weights": np.ones(3) / 3, "means": np.eye(3), "factors": np.stack([np.eye(3)] * 3)}
    return shapes | {"labels": np.arange(3), "class_shares": np.eye(3)}


@pytest.mark.filterwarnings("ignore")
def test_a_damaged_prior_is_read_or_refused(unfinished):
    rng, one = np.random.default_rng(0), Run.find(str(unfinished))
    arrays = make_prior()
    older = {name: arrays[name] for name in ("weights", "means", "factors")}
    older["classes"] = arrays["class_shares"].argmax(axis=1)

    def read(content: bytes) -> None:
        (unfinished / "prior.npz").write_bytes(content)
        prior = one.load_prior(3)
        assert prior.draw(rng, 3, 1.0).shape == (3, 3)
        for label in prior.drawable_labels[:1]:
            assert prior.draw_label(rng, 3, 1.0, label).shape == (3, 3)

    check(damage(to_npz(arrays)) | change_arrays(arrays) | change_arrays(older), read, 100)


@pytest.mark.filterwarnings("ignore")
def test_a_damaged_model_is_read_or_refused(tmp_path, plain_keras):
    z = plain_keras.Input((2,))
    pixels = plain_keras.layers.Reshape((2, 2))(plain_keras.layers.Dense(4, activation="sigmoid")(z))
    path = tmp_path / "decoder.keras"
    plain_keras.Model(z, pixels).save(path)
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}

    def read(content: bytes | dict[str, bytes]) -> None:
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            with zipfile.ZipFile(path, "w") as archive:
                for name, member in (members | content).items():
                    archive.writestr(name, member)
        decoder = files.load_model(path, (None,), [(None, None)])
        assert decoder.predict_on_batch(np.zeros((1, decoder.input_shape[1]), np.float32)).ndim == 3

    config = change_json(json.loads(members["config.json"])).map(to_json)
    weights = damage(members["model.weights.h5"])
    part = st.fixed_dictionaries({}, optional={"config.json": config, "model.weights.h5": weights})
    check(damage(path.read_bytes()) | part | part, read, 40)
