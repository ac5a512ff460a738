"""Hostile files: a few thousand of them, by number and seed, and what such files have brought to light.

`benchmarks/fuzz.py` makes them and says what it demands; it also runs as many as one likes.
"""

import gzip
import io
import json
import os
import pickle
import shutil
import subprocess
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest

from benchmarks import fuzz, hostile
from vae import archive, checkpoint, data, download, latent, training
from vae.settings import UserError

SEED = 1
CASES = {"idx": 480, "gzip": 480, "npz": 480, "config": 480, "prior": 480, "state": 60, "keras": 60}
FIRST = 10  # the cases before are the rare ones, which cost seconds


@pytest.fixture(scope="module")
def healthy(tmp_path_factory) -> Path:
    """A folder of healthy files for each kind; all of them are read once."""
    folder = tmp_path_factory.mktemp("healthy").resolve()
    fuzz.make(folder)
    for kind in fuzz.KINDS:
        for path in sorted((folder / kind).iterdir()):
            fuzz.KINDS[kind].read(path)
    return folder


@pytest.fixture
def copy(healthy, tmp_path):
    """A function that copies the healthy files of a kind, and returns their folder."""
    return lambda kind: Path(shutil.copytree(healthy / kind, tmp_path / "cases" / kind))


def refusal(function, *arguments) -> str:
    """The one short line with which a call is refused, within two seconds."""
    start = time.perf_counter()
    with pytest.raises(UserError) as caught:
        function(*arguments)
    assert time.perf_counter() - start < 2
    (line,) = str(caught.value).splitlines()
    assert len(line) < fuzz.LONGEST
    return line


@pytest.mark.filterwarnings("ignore")  # of NumPy and zipfile, on what is harmed
@pytest.mark.parametrize("kind", fuzz.KINDS)
def test_no_harm_to_a_file_does_any(healthy, tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cases").mkdir()
    numbers = range(FIRST, FIRST + CASES[kind])
    patience = 60  # seconds for a case, as the machine may be busy; the script grants no more than 10
    cases = list(fuzz.run(kind, numbers, SEED, healthy, (tmp_path / "cases").resolve(), patience))
    assert [case for case in cases if case.defects] == []
    assert sum(case.refusal is not None for case in cases) > len(cases) / 4


def test_a_case_is_a_function_of_its_number_and_the_seed(healthy, tmp_path):
    content = (healthy / "npz" / "images.npz").read_bytes()
    first, again, other = (hostile.flipped(content, np.random.default_rng([SEED, n])) for n in (1, 1, 2))
    assert first == again != other


# That the watch sees what it is for


def observed(tmp_path: Path, read, limit: float = fuzz.LIMIT) -> list[str]:
    path = (tmp_path / "cases" / "case" / "file").resolve()
    path.parent.mkdir(parents=True)
    path.write_text("")
    (tmp_path / "cases" / f"{hostile.MODULE}.py").write_text("")
    return fuzz.observe(read, path, limit)[1]


def hang(path):
    time.sleep(60)


def hang_where_all_is_caught(path):
    try:
        time.sleep(60)
    except BaseException:
        time.sleep(0.1)


def refuse(message: str):
    def read(path):
        raise UserError(message)

    return read


BAD_READERS = {
    "raises": (lambda path: int("x"), "ValueError"),
    "writes elsewhere": (lambda path: (path.parent.parent / "stray").write_text(""), "open"),
    "makes a folder elsewhere": (lambda path: (path.parent.parent / "stray").mkdir(), "os.mkdir"),
    "removes": (lambda path: (path.parent.parent / f"{hostile.MODULE}.py").unlink(), "os.remove"),
    "runs a command": (lambda path: os.system("true"), "os.system"),
    "starts a process": (lambda path: subprocess.run(["true"]), "subprocess.Popen"),
    "unpickles": (lambda path: pickle.loads(pickle.dumps(Path("x"))), "pickle.find_class"),
    "imports": (lambda path: __import__(hostile.MODULE), hostile.MODULE),
    "says too much": (refuse("x" * 1000), "1000 characters"),
    "says two lines": (refuse("a\nb"), "2 lines"),
}


@pytest.mark.parametrize("read, words", BAD_READERS.values(), ids=BAD_READERS)
def test_a_reader_with_a_defect_is_reported(tmp_path, read, words):
    defects = observed(tmp_path, read)
    assert any(words in defect for defect in defects), defects


@pytest.mark.parametrize("read", [hang, hang_where_all_is_caught])
def test_a_reader_that_hangs_is_stopped_and_reported(tmp_path, read):
    start = time.perf_counter()
    assert any("it took" in defect for defect in observed(tmp_path, read, limit=0.2))
    assert time.perf_counter() - start < 5


@pytest.mark.parametrize("read", [lambda path: path.write_text("in its own folder"), refuse("no"), lambda path: None])
def test_a_reader_without_a_defect_is_not_reported(tmp_path, read):
    assert observed(tmp_path, read) == []


# What was found: images


def load(path: Path) -> data.Dataset:
    return data.load(*download.find(None, str(path)))


@pytest.mark.parametrize("kind", ["members", "name"])
def test_gzip_headers_without_end_take_no_time(copy, kind):
    """Python's gzip module takes headers byte by byte: some 0.2 s a MB of empty members, or of a name."""
    folder = copy("gzip")
    path = folder / f"{data.IDX_STEMS[0]}.gz"
    content = path.read_bytes()
    if kind == "members":
        path.write_bytes(gzip.compress(b"") * 3 * 10**6 + content)
        assert "gzip members" in refusal(load, folder)
    else:
        path.write_bytes(b"\x1f\x8b\x08\x08" + bytes(6) + b"n" * 6 * 10**7 + b"\0" + content[10:])
        start = time.perf_counter()
        load(folder)
        assert time.perf_counter() - start < 2


def test_gzip_in_several_members_with_padding_is_read(copy):
    folder = copy("gzip")
    before = load(folder).sha256
    path = folder / f"{data.IDX_STEMS[0]}.gz"
    content = gzip.decompress(path.read_bytes())
    parts = [gzip.compress(content[start : start + 5000]) for start in range(0, len(content), 5000)]
    path.write_bytes(b"".join(parts) + bytes(20_000))
    assert load(folder).sha256 == before


def test_truth_values_are_counted_as_the_floats_that_they_become(tmp_path):
    """A GiB of bits, a MB on the disk, became 4 GiB of floats."""
    path = tmp_path / "x.npz"
    shape = (data.MAX_COUNT // 2, 28, 28)
    text = f"{{'descr': '|b1', 'fortran_order': False, 'shape': {shape}}}\n".encode()
    with zipfile.ZipFile(path, "w") as file:
        for name in ("x_train.npy", "x_test.npy"):
            file.writestr(name, b"\x93NUMPY\1\0" + len(text).to_bytes(2, "little") + text)
    assert "more than" in refusal(load, path)


def test_the_hash_does_not_depend_on_the_order_of_an_array(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (2500, 28, 28), np.uint8)
    np.savez(tmp_path / "c.npz", x_train=images, x_test=images)
    np.savez(tmp_path / "f.npz", x_train=np.asfortranarray(images), x_test=images)
    assert load(tmp_path / "c.npz").sha256 == load(tmp_path / "f.npz").sha256


@pytest.mark.parametrize("path", ["~\0", "~\ud800", "\0", "a\nb", "\u2028", "x" * 10**5, "/" + "x/" * 3000])
def test_a_path_from_a_hostile_config_is_refused_in_one_line(path):
    assert "--data" in refusal(download.find, None, path)


@pytest.mark.parametrize("name", ["a\nb", "x" * 10**5, ""])
def test_a_data_set_from_a_hostile_config_is_refused_in_one_line(name):
    assert "no such data set" in refusal(download.find, name, None)


# What was found: mixtures


@pytest.fixture
def arrays(copy) -> dict[str, np.ndarray]:
    return archive.read_prior(copy("prior"))


HOSTILE_WEIGHTS = {
    "all zero": lambda weights: weights * 0,
    "not shares": lambda weights: weights * 2,
    "overflowing": lambda weights: np.full(weights.shape, 1e308),
    "far too small": lambda weights: np.full(weights.shape, 1e-45),
}


@pytest.mark.parametrize("change", HOSTILE_WEIGHTS.values(), ids=HOSTILE_WEIGHTS)
def test_weights_that_are_no_shares_are_refused(arrays, change):
    assert "does not hold a mixture" in refusal(latent.mixture, arrays | {"weights": change(arrays["weights"])}, 3)


def test_a_digit_without_weight_is_refused(arrays):
    weights = np.where(arrays["classes"] == 7, 0, arrays["weights"])
    mixture = latent.mixture(arrays | {"weights": weights / weights.sum()}, 3)
    assert "--digit 7" in refusal(latent.draw_mixture, np.random.default_rng(0), 5, mixture, 1.0, 7)


def test_factors_that_are_not_cholesky_s_are_refused(arrays):
    refusal(latent.mixture, arrays | {"factors": np.ones_like(arrays["factors"])}, 3)  # singular


def test_more_components_than_any_run_has_are_refused(arrays):
    count = latent.MAX_COMPONENTS + 1
    many = {name: np.resize(arrays[name], (count, *arrays[name].shape[1:])) for name in latent.Mixture._fields}
    assert "components" in refusal(latent.mixture, many, 3)


def test_a_mixture_of_many_classes_is_refused_in_a_short_line(arrays):
    mixture = latent.mixture(arrays, 3)._replace(classes=10**6 + np.arange(len(arrays["classes"])))
    mixture = latent.Mixture(*(np.resize(array, (900, *array.shape[1:])) for array in mixture[:3]), np.arange(900) + 10)
    assert "--digit 7" in refusal(latent.draw_mixture, np.random.default_rng(0), 5, mixture, 1.0, 7)


# What was found: runs (mended in vae/checkpoint.py, vae/training.py and vae/archive.py)


PLACES = {"a pipe": hostile.pipe, "/dev/zero": hostile.linked("/dev/zero"), "six GiB": hostile.sparse}


@pytest.mark.parametrize("harm", PLACES.values(), ids=PLACES)
@pytest.mark.parametrize("kind", ["config", "prior", "state"])
def test_what_has_no_end_is_not_read(copy, harm, kind):
    """A pipe kept the reader waiting for ever, and a device filled the memory."""
    (path,) = copy(kind).iterdir()
    harm(path, np.random.default_rng(0))
    assert str(path) in refusal(fuzz.KINDS[kind].read, path)


def test_a_format_is_shown_in_a_short_line(copy):
    (path,) = copy("config").iterdir()
    path.write_text(json.dumps({"format": ["x\n"] * 10**4}))
    assert "is of format" in refusal(checkpoint.read_config, path.parent)


def test_an_array_s_header_without_end_is_not_read(copy):
    """A GiB of header took 3 GiB, though the array that it belonged to was none."""
    (path,) = copy("prior").iterdir()
    hostile.zip_bomb("x.npy", hostile.HEADER, b" ", 2**28)(path, np.random.default_rng(0))
    assert "other things than arrays" in refusal(archive.read_prior, path.parent)


@pytest.mark.parametrize("rows", [[dict.fromkeys(training.fields("test_"), 1) | {"kl_loss": 10**400}], [[]], 5, "x"])
def test_a_history_that_is_none_is_refused(copy, rows):
    """A whole number that no float can hold is not finite, but no ValueError either."""
    arrays = archive.read_state(copy("state"))
    history = np.frombuffer(json.dumps(rows).encode(), np.uint8)
    assert "training_state.npz" in refusal(training.restore, fuzz.vae(), arrays | {"history": history}, fuzz.RUN)


@pytest.mark.parametrize("kind", ["g", "f2", "f8", "i8"])
def test_a_state_of_other_types_is_refused(copy, kind):
    """TensorFlow knows no long doubles, and said so when half of the variables had been assigned."""
    arrays = archive.read_state(copy("state"))
    refusal(training.restore, fuzz.vae(), arrays | {"variable_001": arrays["variable_001"].astype(kind)}, fuzz.RUN)


def restore(path: Path):
    shapes = ((None,), [(28, 28)]) if path.stem == "decoder" else ((28, 28), [(None,), (None,)])
    return archive.load_model(path.parent, path.stem, *shapes)


@pytest.mark.parametrize("bomb", ["a bomb for metadata", "a long config", "a bomb for assets", "many layers"])
def test_texts_and_assets_of_an_archive_are_bounded(copy, bomb):
    """Metadata were read in full where an archive was refused for its size; a config of 200 MiB became GiB of lists."""
    path = copy("keras") / "decoder.keras"
    hostile.RARE["keras"][bomb](path, np.random.default_rng(0))
    assert "not a Keras archive" in refusal(restore, path)


def test_an_archive_may_bring_nothing_that_would_be_unpacked_elsewhere(copy):
    """With a fourth member, whatever it is, Keras unpacks the whole archive into a temporary folder."""
    path = copy("keras") / "decoder.keras"
    with zipfile.ZipFile(path, "a") as file:
        file.writestr("assets/x", "x")
    assert "not a Keras archive" in refusal(restore, path)


def test_weights_that_declare_more_than_they_store_take_no_memory(copy):
    """An array of 4 GiB that HDF5 does not store, as all of it is zero, was made before its shape was looked at."""
    import h5py

    path = copy("keras") / "decoder.keras"

    def enlarge(content, rng):
        target = io.BytesIO(content)
        with h5py.File(target, "r+") as file:
            names = []
            file.visititems(lambda name, item: names.append(name) if isinstance(item, h5py.Dataset) else None)
            del file[names[0]]
            file.create_dataset(names[0], (2**10, 2**10, 2**10 - 1), "f4")
        return target.getvalue()

    hostile.to_member(enlarge, ".h5")(path, np.random.default_rng(3))
    assert "declares more weights than it holds" in refusal(restore, path)


def test_models_are_loaded_in_safe_mode_only(copy, monkeypatch):
    import keras

    modes = []
    for name in ("load_model", "deserialize_keras_object"):
        own = getattr(keras.saving, name)

        def watched(*given, own=own, **named):
            modes.append(named.get("safe_mode"))
            return own(*given, **named)

        monkeypatch.setattr(keras.saving, name, watched)
    restore(copy("keras") / "encoder.keras")
    assert modes and set(modes) == {True}
