"""Damaged files of every format: each is read, or refused in one line that names it. Never anything else."""

import gzip
import io
import zipfile

import numpy as np
import pytest
from helpers import STEMS, load, make_arrays, make_idx_files, to_npy, to_zip, write_folder
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from vae.terminal import UserError

ARRAYS = make_arrays(2, 1)
STEM = STEMS[0]
IDX = make_idx_files(2, 1)
NPZ = to_zip(zipfile.ZIP_DEFLATED, **{name: to_npy(array) for name, array in ARRAYS.items()})


@st.composite
def damage(draw, content: bytes) -> bytes:
    """The content with some bytes changed, cut off, repeated or inserted, most often near one of its ends."""
    size = len(content)
    place = st.one_of(st.integers(0, size), st.integers(0, min(size, 200)), st.integers(max(0, size - 400), size))
    kind = draw(st.sampled_from(["change", "cut", "repeat", "insert"]))
    start = draw(place)
    if kind == "cut":
        return content[:start]
    if kind == "repeat":
        return content[:start] + content[min(start, draw(place)) :]
    new = draw(
        st.one_of(st.binary(min_size=1, max_size=8), st.sampled_from([b"\xff" * 4, b"\x7f\xff\xff\xff", bytes(8)]))
    )
    return content[:start] + new + content[start + (len(new) if kind == "change" else 0) :]


def npy_headers() -> st.SearchStrategy[bytes]:
    """Arrays that declare other shapes and types than they hold."""
    shapes = ["(10000000000, 28, 28)", "(9223372036854775807,)", "(-1, 28, 28)", "()", "(0,)", "(2.5,)", "(28, 28) * 9"]
    shapes += ["(" * 180 + ")" * 180, "(1,) * 10**9", "(True, 28, 28)", "(2, 28, 28)", "(" + "9" * 500 + ",)"]
    types = ["'|u1'", "'<f8'", "'|b1'", "'|O'", "'|V0'", "'|S0'", "'<f16'", "'<U9'", "'<m8[ns]'", "[('a', '<f4')]", "7"]

    def build(shape: str, kind: str, version: int, padding: int) -> bytes:
        text = f"{{'descr': {kind}, 'fortran_order': False, 'shape': {shape}}}{' ' * padding}\n".encode()
        length = len(text).to_bytes(2 if version == 1 else 4, "little")
        return b"\x93NUMPY" + bytes([version, 0]) + length + text + ARRAYS["x_train"].tobytes()

    return st.builds(
        build, st.sampled_from(shapes), st.sampled_from(types), st.integers(1, 4), st.sampled_from([0, 900, 20_000])
    )


def values() -> st.SearchStrategy[bytes]:
    """Sound arrays of other types and with other values."""

    def build(value: float, kind: str, share: float) -> bytes:
        with np.errstate(all="ignore"):
            chosen = np.random.default_rng(0).random((2, 28, 28)) < share
            return to_npy(np.where(chosen, value, ARRAYS["x_train"]).astype(kind))

    numbers = st.sampled_from([0, 1, -1, 255, 256, np.nan, np.inf, -np.inf, 1e-45, 1e38, 1e300])
    kinds = st.sampled_from(["f2", "f4", "f8", "g", "i1", "i8", "u1", "u8", "?", "c8", ">f4", "U5"])
    return st.builds(build, numbers, kinds, st.sampled_from([0.01, 1]))


def replace_member(content: bytes) -> bytes:
    members = {name: to_npy(array) for name, array in ARRAYS.items()}
    return to_zip(zipfile.ZIP_STORED, **members | {"x_train": content})


def to_csv(images: np.ndarray) -> bytes:
    return b"\n".join(b"7," + ",".join(map(str, image.ravel())).encode() for image in images)


def to_png(image: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue()


KINDS = {
    "idx": (STEM, damage(IDX[STEM])),
    "gzip": (STEM, damage(gzip.compress(IDX[STEM], mtime=0))),
    "inside gzip": (STEM, damage(IDX[STEM]).map(gzip.compress)),
    "npz": ("a.npz", damage(NPZ)),
    "inside npz": ("a.npz", damage(to_npy(ARRAYS["x_train"])).map(replace_member)),
    "npy headers": ("a.npz", npy_headers().map(replace_member)),
    "values": ("a.npz", values().map(replace_member)),
    "npy": ("x_train.npy", damage(to_npy(ARRAYS["x_train"]))),
    "csv": ("a.csv", damage(to_csv(ARRAYS["x_train"][:, :8, :8]))),
    "png": ("pictures/a.png", damage(to_png(ARRAYS["x_train"][0]))),
}


@pytest.mark.filterwarnings("ignore")  # of NumPy and zipfile, about what is damaged
@pytest.mark.parametrize("name, contents", KINDS.values(), ids=KINDS)
def test_a_damaged_file_is_read_or_refused_in_one_line(tmp_path, name, contents):
    write_folder(tmp_path, IDX)
    write_folder(tmp_path / "pictures", {"b.png": to_png(ARRAYS["x_train"][1]), "c.png": to_png(ARRAYS["x_test"][0])})
    refused = []

    @settings(max_examples=60, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(contents)
    def check(content: bytes) -> None:
        (tmp_path / name).write_bytes(content)
        path = tmp_path if name == STEM else (tmp_path / name).parent if "/" in name else tmp_path / name
        try:
            dataset = load(path)
        except UserError as error:
            refused.append(error)
            assert str(path) in str(error)
            assert "\n" not in str(error) and len(str(error)) < 700
            return
        refused.extend(["skipped"] * any("skipped" in note for note in dataset.notes))
        for images in (dataset.train_images, dataset.test_images):
            assert images.dtype in (np.uint8, np.float32) and images.shape[1:] == dataset.image_shape
            assert images.dtype == np.uint8 or 0 <= images.min() <= images.max() <= 1
        assert len(dataset.train_images) and all("\n" not in note for note in dataset.notes)

    check()
    assert len(refused) > 10


def test_the_damage_is_of_files_that_are_sound(tmp_path):
    (tmp_path / "a.npz").write_bytes(NPZ)
    with zipfile.ZipFile(io.BytesIO(NPZ)) as archive:
        assert archive.testzip() is None
    for path in (write_folder(tmp_path, IDX), tmp_path / "a.npz"):
        np.testing.assert_array_equal(load(path).train_images, ARRAYS["x_train"])
