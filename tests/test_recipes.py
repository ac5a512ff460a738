"""The recipes in docs/data.md: each block runs on small files, and --data reads what it writes."""

import gzip
import io
import re

import numpy as np
import pytest
from conftest import ROOT
from helpers import load, make_arrays, to_csv, to_idx, to_npy, write
from PIL import Image

from vae.data.dataset import to_pixels

DOCS = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")
BLOCKS = dict(re.findall(r"^### (.+?)\n.*?```python\n(.*?)```", DOCS, re.MULTILINE | re.DOTALL))
A = make_arrays()
X, Y, T, U = A.values()
EIGHT = {name: np.stack([labels] * 8, 1).astype(">i4") for name, labels in (("train", Y), ("test", U))}
ROWS = [[f"p{number}" for number in range(784)], *X.reshape(6, 784).tolist()]


def zipped(**files: np.ndarray) -> dict[str, bytes]:
    return {f"{name}.gz": gzip.compress(to_idx(np.ascontiguousarray(array))) for name, array in files.items()}


def emnist() -> dict[str, bytes]:
    names = [
        f"emnist-letters-{part}-{kind}-ubyte" for part in ("train", "test") for kind in ("images-idx3", "labels-idx1")
    ]
    return zipped(**dict(zip(names, (X.swapaxes(1, 2), Y, T.swapaxes(1, 2), U), strict=True)))


def qmnist() -> dict[str, bytes]:
    images = {f"qmnist-{part}-images-idx3-ubyte": x for part, x in (("train", X), ("test", T))}
    return zipped(**images, **{f"qmnist-{part}-labels-idx2-int": labels for part, labels in EIGHT.items()})


def halves() -> dict[str, bytes]:
    names = ("kmnist-train-imgs", "kmnist-train-labels", "kmnist-test-imgs", "kmnist-test-labels")
    return {f"{name}.npz": to_archive(arr_0=array) for name, array in zip(names, A.values(), strict=True)}


def to_archive(**arrays: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)
    return file.getvalue()


def matlab() -> dict[str, bytes]:
    from scipy.io import savemat

    files = {}
    for part, x, y in (("train", X, Y), ("test", T, U)):
        savemat(
            file := io.BytesIO(),
            {"X": np.stack([x] * 3, 3).transpose(1, 2, 3, 0), "y": np.where(y == 0, 10, y)[:, None]},
        )
        files[f"{part}_32x32.mat"] = file.getvalue()
    return files


def parquet() -> dict[str, bytes]:
    pandas = pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    cells = []
    for image in X:
        Image.fromarray(image).save(file := io.BytesIO(), "PNG")
        cells.append({"bytes": file.getvalue(), "path": None})
    return {"train-00000-of-00001.parquet": pandas.DataFrame({"image": cells, "label": Y}).to_parquet()}


def pictures() -> dict[str, bytes | np.ndarray]:
    files = {f"images/{number}.png": image for number, image in enumerate(X)}
    return files | {"labels.csv": to_csv(["file", "label"], *([f"{label}.png", label] for label in Y))}


MADE = {
    "EMNIST": emnist,
    "QMNIST": qmnist,
    "KMNIST and Kuzushiji-49, an .npz for each array": halves,
    "Quick, Draw!, an .npy for each class": lambda: {
        f"full_numpy_bitmap_{name}.npy": to_npy(x.reshape(-1, 784)) for name, x in (("cat", X), ("owl", T))
    },
    "MATLAB": matlab,
    "Parquet and Arrow": parquet,
    "Text: other separators, labels last": lambda: {
        "letters.txt": to_csv([*ROWS[0], "y"], *np.column_stack([X.reshape(6, 784), Y]).tolist()).replace(b",", b";")
    },
    "CSV: images in one file, labels in another": lambda: {
        f"{kind}_{part}.csv": to_csv(
            *(ROWS if kind == "x" else [["label"], *([name] for name in ("é", "#", "b", "a", "a", "a"))])
        )
        for part in ("train", "test")
        for kind in "xy"
    },
    "Pictures, and a CSV with their labels": pictures,
    "Normalised pixels, or ones below 0": lambda: {
        "normalised.npz": to_archive(**A | {name: (A[name] / 255 - 0.1307) / 0.3081 for name in ("x_train", "x_test")})
    },
    "Names of classes that were saved as Python objects": lambda: {
        "objects.npz": to_archive(x_train=X, y_train=np.array(list("abcabc"), object))
    },
    "IDX files that are too large for memory": lambda: zipped(**{"train-images-idx3-ubyte": X}),
    "An .npz that is too large for memory": lambda: {"large.npz": to_archive(**A)},
}
NAMES = {"Quick": ("cat", "owl"), "CSV": ("#", "a", "b", "é"), "Names": ("a", "b", "c")}


def test_every_recipe_is_tried_and_has_at_most_eight_lines():
    assert BLOCKS.keys() == MADE.keys() and max(block.count("\n") for block in BLOCKS.values()) <= 8


@pytest.mark.parametrize("title", BLOCKS)
def test_a_recipe_writes_what_data_reads(tmp_path, monkeypatch, title):
    write(tmp_path, **MADE[title]())
    monkeypatch.chdir(tmp_path)
    exec(BLOCKS[title], {})
    dataset = load(tmp_path / "mine" if (tmp_path / "mine").is_dir() else tmp_path / "mine.npz")
    found = {
        image.tobytes()
        for image in np.rint(255 * to_pixels(np.concatenate([dataset.train_images[:], dataset.test_images[:]])))
    }
    assert {image.astype(np.float32).tobytes() for image in X} <= found
    assert dataset.label_names == NAMES.get(re.match(r"\w+", title)[0])
    if dataset.label_names is None and dataset.train_labels is not None:
        numbers = {image.astype(np.float32).tobytes(): label for image, label in zip(X, Y, strict=True)}
        for image, label in zip(dataset.train_images, dataset.train_labels, strict=True):
            assert numbers[np.rint(255 * to_pixels(image)).tobytes()] == label
