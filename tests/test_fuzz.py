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
NPY = to_npy(ARRAYS["x_train"])
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
    new = draw(st.one_of(st.binary(min_size=1, max_size=8), st.sampled_from([b"\xff" * 4, b"\x7f\xff\xff\xff"])))
    return content[:start] + new + content[start + (len(new) if kind == "change" else 0) :]


@st.composite
def declare(draw) -> bytes:
    """An .npy file that declares another shape and type than it holds, or pickle."""
    shapes = ["(10000000000, 28, 28)", "(-1, 28, 28)", "()", "(0,)", "(2.5,)", "(1,) * 10**9", "(2, 28, 28)"]
    kind = draw(st.sampled_from(["'|u1'", "'|O'", "'|V0'", "'<f16'", "'<U9'", "'<m8[ns]'", "[('a', '<f4')]", "7"]))
    shape = draw(st.sampled_from([*shapes, "(" * 180 + ")" * 180, "-" * 9000 + "1"]))
    text = f"{{'descr': {kind}, 'fortran_order': False, 'shape': {shape}}}\n".encode()
    return b"\x93NUMPY\1\0" + len(text).to_bytes(2, "little") + text + NPY[128:]


def to_npz(content: bytes) -> bytes:
    return to_zip(x_train=content, x_test=to_npy(ARRAYS["x_test"]))


Image.fromarray(ARRAYS["x_train"][0]).save(PNG := io.BytesIO(), "PNG")
KINDS = {
    "IDX": (STEMS[0], damage(IDX[STEMS[0]])),
    "gzip": (STEMS[0], damage(gzip.compress(IDX[STEMS[0]], mtime=0))),
    "inside gzip": (STEMS[0], damage(IDX[STEMS[0]]).map(gzip.compress)),
    "npz": ("a.npz", damage(to_zip(zipfile.ZIP_DEFLATED, x_train=NPY))),
    "inside npz": ("a.npz", st.one_of(damage(NPY), declare()).map(to_npz)),
    "npy": ("npy/x_train.npy", st.one_of(damage(NPY), declare())),
    "csv": ("a.csv", damage(to_csv(*([7, *image[:8, :8].ravel()] for image in ARRAYS["x_train"])))),
    "pictures": ("pictures/a.png", damage(PNG.getvalue())),
}


@pytest.mark.filterwarnings("ignore")  # of NumPy and zipfile, about what is damaged
@pytest.mark.parametrize("name, contents", KINDS.values(), ids=KINDS)
def test_a_damaged_file_is_read_or_refused_in_one_line(tmp_path, name, contents):
    write(tmp_path, **IDX, **{"pictures/b.png": ARRAYS["x_train"][1], "pictures/c.png": ARRAYS["x_test"][0]})
    path = tmp_path if name == STEMS[0] else (tmp_path / name).parent if "/" in name else tmp_path / name
    refused = []
    events.clear()

    @settings(max_examples=40, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(contents)
    def check(content: bytes) -> None:
        try:
            dataset = load(path if write(tmp_path, **{name: content}) else None)
        except UserError as error:
            refused.append(error)
            assert str(path) in str(error) and "\n" not in str(error) and len(str(error)) < 700
            return
        refused.extend(note for note in dataset.notes if "skipped" in note)
        for images in (dataset.train_images, dataset.test_images):
            assert images.dtype in (np.uint8, np.float32) and images.shape[1:] == dataset.image_shape
            assert len(images) and (images.dtype == np.uint8 or 0 <= images[:].min() <= images[:].max() <= 1)

    check()
    assert len(refused) > 5 and events == []
