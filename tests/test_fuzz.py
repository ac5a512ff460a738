"""Damaged files of the five forms: each is read, or refused in one line that names it; nothing in it is executed."""

import gzip
import io
import sys

import numpy as np
import pytest
from helpers import STEMS, make_arrays, make_idx_files, show, to_csv, to_npy, to_zip, write
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from vae.terminal import UserError

X = make_arrays(2)["x_train"]
IDX = make_idx_files(2, 1)[STEMS[0]]
FORBIDDEN = ("os.system", "os.exec", "os.posix_spawn", "subprocess.Popen", "pickle.find_class", "socket.connect")
events: list[str] = []
sys.addaudithook(lambda event, arguments: events.append(event) if event in FORBIDDEN else None)


@st.composite
def damage(draw, content: bytes) -> bytes:
    """The content with a few bytes changed, cut out or inserted, most often near its beginning."""
    size = len(content)
    start = draw(st.one_of(st.integers(0, size), st.integers(0, min(size, 200))))
    end = draw(st.one_of(st.integers(start, min(size, start + 8)), st.just(size)))
    return content[:start] + draw(st.one_of(st.binary(max_size=8), st.just(b"\xff" * 4))) + content[end:]


Image.fromarray(X[0]).save(PNG := io.BytesIO(), "PNG")
KINDS = {
    STEMS[0]: damage(IDX),
    f"{STEMS[0]}.gz": damage(gzip.compress(IDX, mtime=0)),
    "a.npz": st.one_of(damage(to_zip(x_train=to_npy(X))), damage(to_npy(X)).map(lambda npy: to_zip(x_train=npy))),
    "x_train.npy": damage(to_npy(X)),
    "a.csv": damage(to_csv(*([7, *image[:8, :8].ravel()] for image in X))),
    "a.png": damage(PNG.getvalue()),
}


@pytest.mark.filterwarnings("ignore")  # of NumPy and zipfile, about what is damaged
@pytest.mark.parametrize("name, contents", KINDS.items())
def test_a_damaged_file_is_read_or_refused_in_one_line(tmp_path, name, contents):
    path = tmp_path / name if name in ("a.npz", "a.csv") else tmp_path
    refused = []
    events.clear()

    @settings(max_examples=40, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(contents)
    def check(content: bytes) -> None:
        write(tmp_path, **{name: content})
        try:
            images = show(path).test_images[:]
        except UserError as error:
            refused.append(error)
            assert str(path) in str(error) and "\n" not in str(error) and len(str(error)) < 700
            return
        assert len(images) and (images.dtype == np.uint8 or 0 <= images.min() <= images.max() <= 1)

    check()
    assert len(refused) > 5 and events == []
