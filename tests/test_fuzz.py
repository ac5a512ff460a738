"""Damaged files of the five forms: each is read, or refused in one line that names it; nothing in it is executed."""

import gzip
import io
import sys
import zipfile

import numpy as np
import pytest
from helpers import STEMS, load, make_arrays, make_idx_files, to_csv, to_npy, to_zip, write
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from vae.terminal import UserError

ARRAYS = make_arrays(2, 1)
IDX = make_idx_files(2, 1)
FORBIDDEN = ("os.system", "os.exec", "os.posix_spawn", "subprocess.Popen", "pickle.find_class", "socket.connect")
events: list[str] = []
sys.addaudithook(lambda event, arguments: events.append(event) if event in FORBIDDEN else None)


@st.composite
def damage(draw, content: bytes) -> bytes:
    """The content with some bytes changed, cut off, repeated or inserted, most often near one of its ends."""
    size = len(content)
    place = st.one_of(st.integers(0, size), st.integers(0, min(size, 200)), st.integers(max(0, size - 400), size))
    kind, start = draw(st.sampled_from(["change", "cut", "repeat", "insert"])), draw(place)
    if kind == "cut":
        return content[:start]
    if kind == "repeat":
        return content[:start] + content[min(start, draw(place)) :]
    new = draw(
        st.one_of(st.binary(min_size=1, max_size=8), st.sampled_from([b"\xff" * 4, b"\x7f\xff\xff\xff", bytes(8)]))
    )
    return content[:start] + new + content[start + (len(new) if kind == "change" else 0) :]


def headers() -> st.SearchStrategy[bytes]:
    """Arrays that declare other shapes and types than they hold, pickle among them."""
    shapes = ["(10000000000, 28, 28)", "(9223372036854775807,)", "(-1, 28, 28)", "()", "(0,)", "(2.5,)", "(28, 28) * 9"]
    shapes += ["(" * 180 + ")" * 180, "(1,) * 10**9", "(True, 28, 28)", "(2, 28, 28)", "(" + "9" * 500 + ",)"]
    types = ["'|u1'", "'<f8'", "'|b1'", "'|O'", "'|V0'", "'|S0'", "'<f16'", "'<U9'", "'<m8[ns]'", "[('a', '<f4')]", "7"]

    def build(shape: str, kind: str, version: int, padding: int) -> bytes:
        text = f"{{'descr': {kind}, 'fortran_order': False, 'shape': {shape}}}{' ' * padding}\n".encode()
        length = len(text).to_bytes(2 if version == 1 else 4, "little")
        return b"\x93NUMPY" + bytes([version, 0]) + length + text + ARRAYS["x_train"].tobytes()

    return st.builds(
        build, st.sampled_from(shapes), st.sampled_from(types), st.integers(1, 4), st.sampled_from([0, 20_000])
    )


def to_npz(content: bytes) -> bytes:
    """An .npz whose x_train has this content."""
    return to_zip(**{name: to_npy(array) for name, array in ARRAYS.items()} | {"x_train": content})


def to_png(image: np.ndarray) -> bytes:
    Image.fromarray(image).save(file := io.BytesIO(), "PNG")
    return file.getvalue()


NPY, CSV = to_npy(ARRAYS["x_train"]), to_csv(*([7, *image[:8, :8].ravel()] for image in ARRAYS["x_train"]))
KINDS = {
    "IDX": (STEMS[0], damage(IDX[STEMS[0]])),
    "gzip": (STEMS[0], damage(gzip.compress(IDX[STEMS[0]], mtime=0))),
    "inside gzip": (STEMS[0], damage(IDX[STEMS[0]]).map(gzip.compress)),
    "npz": ("a.npz", damage(to_zip(zipfile.ZIP_DEFLATED, **{name: to_npy(array) for name, array in ARRAYS.items()}))),
    "inside npz": ("a.npz", damage(NPY).map(to_npz)),
    "headers in npz": ("a.npz", headers().map(to_npz)),
    "npy": ("npy/x_train.npy", damage(NPY)),
    "headers of npy": ("npy/x_train.npy", headers()),
    "csv": ("a.csv", damage(CSV)),
    "pictures": ("pictures/a.png", damage(to_png(ARRAYS["x_train"][0]))),
}


@pytest.mark.filterwarnings("ignore")  # of NumPy and zipfile, about what is damaged
@pytest.mark.parametrize("name, contents", KINDS.values(), ids=KINDS)
def test_a_damaged_file_is_read_or_refused_in_one_line(tmp_path, name, contents):
    write(tmp_path, **IDX, **{"pictures/b.png": ARRAYS["x_train"][1], "pictures/c.png": ARRAYS["x_test"][0]})
    path = tmp_path if name == STEMS[0] else (tmp_path / name).parent if "/" in name else tmp_path / name
    results = {"read": 0, "refused": 0}
    events.clear()

    @settings(max_examples=40, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(contents)
    def check(content: bytes) -> None:
        write(tmp_path, **{name: content})
        try:
            dataset = load(path)
        except UserError as error:
            results["refused"] += 1
            assert str(path) in str(error) and "\n" not in str(error) and len(str(error)) < 700
            return
        results["refused" if any("skipped" in note for note in dataset.notes) else "read"] += 1
        for images in (dataset.train_images, dataset.test_images):
            assert images.dtype in (np.uint8, np.float32) and images.shape[1:] == dataset.image_shape
            assert len(images) and (images.dtype == np.uint8 or 0 <= images[:].min() <= images[:].max() <= 1)

    check()
    assert results["refused"] > 5 and events == []
