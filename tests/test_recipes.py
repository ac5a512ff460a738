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
NAMES = np.array(["é", "#", "b", "a", "a", "a"])  # of the classes of the training images
NAMED = ("Quick, Draw!", "CSV", "Names")  # recipes after which the classes have names


def save(writer, *arguments, **options) -> bytes:
    writer(file := io.BytesIO(), *arguments, **options)
    return file.getvalue()


def zipped(array: np.ndarray) -> bytes:
    return gzip.compress(to_idx(np.ascontiguousarray(array)))


@pytest.fixture(scope="module")
def files() -> dict[str, bytes | np.ndarray]:
    """What people have, for all recipes."""
    from scipy.io import savemat

    files = {"train-images-idx3-ubyte.gz": zipped(X), "large.npz": save(np.savez_compressed, **A)}
    for part, x, y in (("train", X, Y), ("test", T, U)):
        files[f"emnist-letters-{part}-images-idx3-ubyte.gz"] = zipped(x.swapaxes(1, 2))
        files[f"emnist-letters-{part}-labels-idx1-ubyte.gz"] = zipped(y)
        files[f"qmnist-{part}-images-idx3-ubyte.gz"] = zipped(x)
        files[f"qmnist-{part}-labels-idx2-int.gz"] = zipped(np.stack([y, *[y * 0 + 99] * 7], 1).astype(">i4"))
        files[f"kmnist-{part}-imgs.npz"], files[f"kmnist-{part}-labels.npz"] = save(np.savez, x), save(np.savez, y)
        colours = np.stack([x] * 3, 3).transpose(1, 2, 3, 0)
        files[f"{part}_32x32.mat"] = save(savemat, {"X": colours, "y": np.where(y == 0, 10, y)[:, None]})
        files[f"x_{part}.csv"] = to_csv([f"p{number}" for number in range(784)], *x.reshape(-1, 784).tolist())
        files[f"y_{part}.csv"] = to_csv(["label"], *NAMES[: len(y), None])
    files |= {f"full_numpy_bitmap_{name}.npy": to_npy(x.reshape(-1, 784)) for name, x in (("cat", X), ("owl", T))}
    table = np.column_stack([X.reshape(6, 784), Y]).tolist()
    files["letters.txt"] = to_csv([*range(784), "y"], *table).replace(b",", b";")
    files |= {f"images/{number}.png": image for number, image in enumerate(X)}
    files["labels.csv"] = to_csv(["file", "label"], *([f"{label}.png", label] for label in Y))
    files["normalised.npz"] = save(np.savez, x_train=(X / 255 - 0.1307) / 0.3081, x_test=(T / 255 - 0.1307) / 0.3081)
    return files | {"objects.npz": save(np.savez, x_train=X, y_train=NAMES.astype(object))}


@pytest.mark.parametrize("title", BLOCKS)
def test_a_recipe_writes_what_data_reads(tmp_path, monkeypatch, files, title):
    assert len(BLOCKS) == 13 and len(list(filter(None, BLOCKS[title].splitlines()))) <= 8
    write(tmp_path, **files)
    if title.startswith("Parquet"):
        pandas, _ = pytest.importorskip("pandas"), pytest.importorskip("pyarrow")
        cells = [{"bytes": save(Image.fromarray(image).save, format="PNG"), "path": None} for image in X]
        pandas.DataFrame({"image": cells, "label": Y}).to_parquet(tmp_path / "train-00000-of-00001.parquet")
    monkeypatch.chdir(tmp_path)
    exec(BLOCKS[title], {})
    dataset = load(tmp_path / "mine" if (tmp_path / "mine").is_dir() else tmp_path / "mine.npz")
    numbers = {image.tobytes(): number for number, image in enumerate(X)}
    images = to_pixels(np.concatenate([dataset.train_images[:], dataset.test_images[:]]))
    images = np.rint(255 * images).astype(np.uint8)
    assert numbers.keys() <= {image.tobytes() for image in images}
    assert (dataset.label_names is not None) == title.startswith(NAMED)
    for image, label in zip(images, [] if dataset.train_labels is None else dataset.train_labels, strict=False):
        number = numbers.get(image.tobytes())
        name = "cat" if title.startswith("Quick") else NAMES[number] if title.startswith(NAMED) else str(number)
        assert number is None or name == (dataset.label_names[label] if dataset.label_names else str(label))
