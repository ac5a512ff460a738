"""Every layout, format and type in which people have the same images is read as the same data set."""

import gzip
from pathlib import Path

import numpy as np
import pytest
from conftest import refuse
from helpers import (
    STEMS,
    assert_is_made,
    load,
    make_arrays,
    make_idx_files,
    save_picture,
    to_csv,
    to_idx,
    to_npy,
    write_folder,
    write_npz,
)

from vae.data.layouts import parse_name

A = make_arrays()
X, Y, T, U = A.values()
IDX = make_idx_files()


# How people write them: each writer makes files in a folder, and returns what --data names


def npz(change_images=lambda x: x, change_labels=lambda y: y):
    def write(folder: Path) -> Path:
        changed = {name: change_images(a) if name[0] == "x" else change_labels(a) for name, a in A.items()}
        return write_npz(folder / "a.npz", **changed)

    return write


def keys(*names: str, inner: str = "a.npz", **more: np.ndarray):
    return lambda folder: write_npz(folder / inner, **dict(zip(names, A.values(), strict=True)), **more)


def idx(prefix: str = "", inner: str = "", zipped: bool = False, **names: str):
    def write(folder: Path) -> Path:
        files = {prefix + stem.replace("t10k", names.get("test", "t10k")): content for stem, content in IDX.items()}
        write_folder(folder / inner, files, zipped)
        return folder

    return write


def emnist(inner: str, given: str):
    """Two of EMNIST's sets in one folder, of which the one is given."""

    def write(folder: Path) -> Path:
        idx("emnist-letters-", inner, test="test")(folder)
        write_folder(folder / inner, {f"emnist-digits-train-{STEMS[0][6:]}": to_idx(T)})
        return folder / given

    return write


def qmnist(folder: Path) -> Path:
    labels = {"train": Y, "test": U}
    files = {f"qmnist-{name}-labels-idx2-int": to_idx(np.stack([y] * 8, 1).astype(">i4")) for name, y in labels.items()}
    files |= {f"qmnist-{name}-images-idx3-ubyte": to_idx(x) for name, x in (("train", X), ("test", T))}
    return write_folder(folder, files, zipped=True)


def halves(*names: str):
    """Each array in an .npz of its own, without a name."""

    def write(folder: Path) -> Path:
        folder.mkdir()
        for name, array in zip(names, A.values(), strict=True):
            np.savez_compressed(folder / name, array)
        return folder

    return write


def npy(*names: str, change=lambda x: x):
    files = {f"{name}.npy": to_npy(change(array)) for name, array in zip(names, A.values(), strict=True)}
    return lambda folder: write_folder(folder, files)


def csv(train: str, test: str, header: str | None = "label", separator: str = ",", **more: bool):
    """A file for training and one for testing: a label and all pixels in a row; `header` names the label."""
    names = [header, *(f"pixel{i}" for i in range(784))]

    def write_rows(images: np.ndarray, labels: np.ndarray) -> bytes:
        rows = [] if header is None else [names]
        rows += [[label, *image] for label, image in zip(labels, images.reshape(-1, 784), strict=True)]
        return to_csv([[*row[1:], row[0]] if more.get("last") else row for row in rows], separator)

    files = {train: write_rows(X, Y), test: write_rows(T, U)}
    return lambda folder: write_folder(folder, files, more.get("zipped", False))


def pictures(train: str, test: str, ending: str = "png", mode: str = "L", **options):
    """A file for each image, in a folder for each class; a file's name is the image's number."""

    def write(folder: Path) -> Path:
        for place, images, labels in ((train, X, Y), (test, T, U)):
            for number, (image, label) in enumerate(zip(images, labels, strict=True)):
                save_picture(folder / place / str(label) / f"{number}.{ending}", image, mode, **options)
        (folder / train / ".DS_Store").write_bytes(b"hidden")
        return folder

    return write


def stack(axis: int, depth: int = 3):
    return lambda images: np.stack([images] * depth, axis)


LAYOUTS = {
    # shapes and types of images
    "(n, 784)": npz(lambda x: x.reshape(-1, 784)),
    "(n, 1, 28, 28)": npz(lambda x: x[:, None]),
    "(n, 28, 28, 1)": npz(lambda x: x[..., None]),
    "(n, 28, 28, 3)": npz(stack(-1)),
    "(n, 28, 28, 4)": npz(stack(-1, 4)),
    "(n, 3, 28, 28)": npz(stack(1)),
    "(n, 784, 1)": npz(lambda x: x.reshape(-1, 784, 1)),
    "int64": npz(lambda x: x.astype(np.int64)),
    "big-endian": npz(lambda x: x.astype(">u2")),
    "column by column": npz(np.asfortranarray),
    "(n, 784) floats 0..255, one-hot": npz(lambda x: x.reshape(-1, 784).astype(float), lambda y: np.eye(6)[y]),
    # labels
    "labels (n, 1)": npz(change_labels=lambda y: y[:, None]),
    "one-hot labels": npz(change_labels=lambda y: np.eye(6, dtype=int)[y]),
    "one-hot truth values": npz(change_labels=lambda y: np.eye(6, dtype=bool)[y]),
    "labels as floats": npz(change_labels=lambda y: y.astype(float)),
    "labels as texts": npz(change_labels=lambda y: y.astype(str)),
    "labels as bytes": npz(change_labels=lambda y: y.astype("S")),
    # names in an .npz
    "MedMNIST": keys("train_images", "train_labels", "test_images", "test_labels", val_labels=Y),
    "X_train": keys("X_train", "Y_train", "X_test", "Y_test", labels=np.array(["a", "b"])),
    "trainX": keys("trainX", "trainY", "testX", "testY"),
    "train_img": keys("train_img", "train_lab", "test_img", "test_lab"),
    "mnist.npz in a folder": lambda folder: keys(*A, inner="mnist.npz")(folder).parent,
    # files with known names
    "IDX": idx(),
    "IDX .gz": idx(zipped=True),
    "IDX of torchvision": idx(inner="MNIST/raw", zipped=True),
    "IDX in raw": idx(inner="raw"),
    "KMNIST's npz": halves("kmnist-train-imgs", "kmnist-train-labels", "kmnist-test-imgs", "kmnist-test-labels"),
    "QMNIST": qmnist,
    "npy": npy("x_train", "y_train", "x_test", "y_test"),
    "npy, labels to validate alone": lambda folder: npy(*A)(write_folder(folder, {"y_val.npy": to_npy(Y)})),
    "npy, other names": npy("train_images", "train_labels", "test_images", "test_labels", change=np.asfortranarray),
    "EMNIST, by prefix": emnist("", "emnist-letters"),
    "EMNIST of torchvision, by prefix": emnist("raw", "emnist-letters"),
    "EMNIST two folders up, by prefix": emnist("EMNIST/raw", "EMNIST/emnist-letters"),
    # CSV
    "Kaggle's CSV": csv("train.csv", "test.csv"),
    "CSV with labels last": csv("mnist_train.csv", "mnist_test.csv", "class", last=True),
    "CSV without names": csv("mnist_train.csv", "mnist_test.csv", None),
    "CSV of other separators": csv("a-train.csv", "a-test.csv", "label", ";"),
    "CSV .gz": csv("train.csv", "test.csv", '"label"', zipped=True),
    # pictures
    "pictures": pictures("train", "test"),
    "pictures of other names": pictures("mnist_png/training", "mnist_png/testing"),
    "pictures in BMP": pictures("train", "test", "bmp"),
    "pictures in TIFF": pictures("train", "test", "tiff"),
    "pictures in WebP": pictures("train", "test", "webp", "RGB", lossless=True),
    "pictures in colour": pictures("train", "test", "png", "RGB"),
    "pictures in RGBA": pictures("train", "test", "png", "RGBA"),
}


@pytest.mark.parametrize("write", LAYOUTS.values(), ids=LAYOUTS)
def test_the_same_data_set_in_every_layout(tmp_path, write):
    dataset = load(write(tmp_path / "mine"))
    assert_is_made(dataset)
    assert dataset.label_names is None and (dataset.warning is None or "--transpose" in dataset.warning)


@pytest.mark.parametrize(
    "name, dataset, role",
    [
        ("train-images.idx3-ubyte", "", "train_images"),
        ("t10k-labels-idx1-ubyte.gz", "", "test_labels"),
        ("emnist-byclass-test-images-idx3-ubyte.gz", "emnist-byclass", "test_images"),
        ("qmnist-train-labels-idx2-int.gz", "qmnist", "train_labels"),
        ("k49-test-imgs.npz", "k49", "test_images"),
        ("X_kannada_MNIST_train-idx3-ubyte", "kannada-mnist", "train_images"),
        ("val_images", "", "validation_images"),
        ("xtest", "", "test_images"),
        ("y", "", "train_labels"),
        ("fashion-mnist_test.csv", "fashion-mnist", "test_images"),
    ],
)
def test_names_are_taken_apart(name, dataset, role):
    assert (parse_name(name).dataset, parse_name(name).role) == (dataset, role)


def test_validation_images_of_the_data_itself(tmp_path):
    keys("train_images", "train_labels", "test_images", "test_labels", val_images=T)(tmp_path / "npz")
    for part in ("test", "val"):
        pictures("train", part)(tmp_path / "pictures")
    for folder in ("npz", "pictures"):
        np.testing.assert_array_equal(load(tmp_path / folder).validation_images, T)


@pytest.mark.parametrize(
    "mapping, names, labels",
    [
        ("".join(f"{i} {65 + i} {97 + i}\n" for i in range(6)), tuple("ABCDEF"), [0, 1, 2, 3, 4, 5]),
        ("".join(f"{i} {48 + i}\r\n" for i in range(6)), None, [0, 1, 2, 3, 4, 5]),
        ("5 65\n4 66\n3 67\n2 97\n1 98\n0 99", tuple("ABCabc"), [5, 4, 3, 2, 1, 0]),
    ],
)
def test_emnist_s_mapping_file_names_the_classes(tmp_path, mapping, names, labels):
    emnist("", "emnist-letters")(tmp_path)
    write_folder(tmp_path, {"emnist-letters-mapping.txt": mapping.encode()})
    dataset = load(tmp_path / "emnist-letters")
    assert (dataset.label_names, dataset.train_labels.tolist()) == (names, labels)
    write_folder(tmp_path, {"emnist-letters-mapping.txt": b"no numbers"})
    assert "emnist-letters-mapping.txt: is damaged" in refuse(load, tmp_path / "emnist-letters")


def test_arrays_that_are_not_read_are_named(tmp_path):
    dataset = load(keys(*A, names_of_classes=np.array(["a"]), x_extra=X)(tmp_path))
    assert [note for note in dataset.notes if note.endswith("not read: names_of_classes, x_extra")]


def test_several_data_sets_in_a_folder_are_listed(tmp_path):
    emnist("", "")(tmp_path / "emnist")
    for name in ("MNIST", "FashionMNIST"):
        idx(inner=f"{name}/raw")(tmp_path / "torchvision")
    for name in ("one.npz", "two.npz"):
        keys(*A, inner=name)(tmp_path / "npz")
    listed = {
        "emnist": ("emnist-letters", "emnist-digits"),
        "torchvision": ("MNIST", "FashionMNIST"),
        "npz": ("one.npz", "two.npz"),
    }
    for folder, names in listed.items():
        message = refuse(load, tmp_path / folder)
        assert [name for name in names if str(tmp_path / folder / name) not in message] == []
    assert_is_made(load(tmp_path / "torchvision" / "MNIST"))


def test_plain_names_come_first_and_the_others_are_listed(tmp_path):
    csv("train.csv", "test.csv")(tmp_path)
    csv("Dig-MNIST.csv", "other-test.csv")(tmp_path)
    write_folder(tmp_path, {"sample_submission.csv": b"id,label\n0,0\n"})
    dataset = load(tmp_path)
    assert_is_made(dataset)
    assert any(str(tmp_path / "dig-mnist") in note for note in dataset.notes)
    assert len(load(tmp_path / "dig-mnist").test_images) == 1


def test_content_tells_gzip(tmp_path):
    files = {f"{stem}.gz": content for stem, content in IDX.items()}  # a browser has unpacked them
    content = IDX[STEMS[0]]
    parts = [gzip.compress(content[start : start + 1000]) for start in range(0, len(content), 1000)]
    assert_is_made(load(write_folder(tmp_path, files | {f"{STEMS[0]}.gz": b"".join(parts) + bytes(999)})))


def test_a_folder_of_the_same_name_does_not_hide_a_file(tmp_path):
    write_folder(tmp_path, {stem.replace("-idx", ".idx"): content for stem, content in IDX.items()})
    (tmp_path / STEMS[0]).mkdir()  # as Kaggle's archives have it
    (tmp_path / f"._{STEMS[0]}").write_bytes(b"hidden, by macOS")
    assert_is_made(load(tmp_path))


def test_quick_draw_has_a_file_for_each_class(tmp_path):
    files = {"full_numpy_bitmap_cat.npy": X.reshape(-1, 784), "full_numpy_bitmap_owl.npy": T.reshape(-1, 784)}
    dataset = load(write_folder(tmp_path, {name: to_npy(array) for name, array in files.items()}))
    assert dataset.label_names == ("cat", "owl") and len(dataset.train_images) == 8
    assert len(load(tmp_path / "full_numpy_bitmap_cat.npy").train_images) == 5


@pytest.mark.parametrize(
    "name, words, words_of_folder",
    [
        ("mnist.pkl", "pickled", "pickled"),
        ("training.pt", "pickled", "pickled"),
        ("archive.zip", "unpack", "unpack"),
        ("emnist-letters.mat", "numpy.savez", "numpy.savez"),
        ("one.png", "name the folder", "name the folder"),
        ("train-images-idx3-ubyte", "name the folder", "magic number"),
        ("mine.txt", "cannot be read", "check the folder"),
    ],
)
def test_a_file_of_another_kind_is_refused_with_a_hint(tmp_path, name, words, words_of_folder):
    (tmp_path / name).write_bytes(b"content")
    assert words in refuse(load, tmp_path / name)
    assert words_of_folder in refuse(load, tmp_path)


REFUSED = {
    "no known names": (lambda f: write_npz(f / "a.npz", pictures_of_cats=X), "pictures_of_cats"),
    "no arrays": (lambda f: write_npz(f / "a.npz"), "no images"),
    "one image": (lambda f: write_npz(f / "a.npz", x_train=X[:1]), "one image"),
    "a label that is a number": (lambda f: write_npz(f / "a.npz", x_train=X, y_train=np.int64(3)), "no labels"),
    "a class of one number": (lambda f: write_folder(f, {"a.npy": to_npy(np.uint8(3))}), "one shape"),
    "classes of two shapes": (
        lambda f: write_folder(f, {"a.npy": to_npy(X), "b.npy": to_npy(X[:, 4:])}),
        "one shape",
    ),
}


@pytest.mark.parametrize("write, words", REFUSED.values(), ids=REFUSED)
def test_what_does_not_fit_is_refused(tmp_path, write, words):
    message = refuse(load, write(tmp_path / "mine"))
    assert words in message and str(tmp_path / "mine") in message
