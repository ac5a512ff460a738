"""Folders of pictures: parts, classes, order, sizes, and files that are no pictures or hostile ones."""

import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from conftest import refuse
from helpers import load, make_arrays
from helpers import save_picture as save
from PIL import Image

from vae.data import formats, pictures
from vae.data import load as loading
from vae.data.dataset import Dataset

X = make_arrays(12)["x_train"]


def load_exactly(folder: Path, *images: np.ndarray) -> Dataset:
    """Load a folder that has these images alone, in any order: some are held out as the test set."""
    dataset = load(folder)
    found = [*dataset.train_images, *dataset.test_images]
    assert len(found) == len(images)
    assert all(any((image == wanted).all() for image in found) for wanted in images)
    return dataset


@pytest.mark.parametrize(
    "even, odd, label_names",
    [
        ("{}.png", "{}.png", None),
        ("cat/{}.png", "cat/{}.png", ("cat",)),
        ("cat/deeper/{}.png", "cat/deeper/{}.png", ("deeper",)),
        ("archive/inner/cat/{}.png", "archive/inner/owl/{}.png", ("cat", "owl")),
    ],
)
def test_a_tenth_is_held_out_where_there_is_no_test_folder(tmp_path, even, odd, label_names):
    for number, image in enumerate(X[:10]):
        save(tmp_path / (odd if number % 2 else even).format(number), image)
    dataset = load_exactly(tmp_path, *X[:10])
    assert len(dataset.test_images) == 1 and any("1 of 10" in note and "held out" in note for note in dataset.notes)
    assert dataset.label_names == label_names


def test_classes_and_the_order_of_numbers(tmp_path):
    for number, image in enumerate(X):
        save(tmp_path / "train" / ("owl" if number % 3 else "cat") / f"img_{number}.png", image)  # img_2 before img_10
        save(tmp_path / "test" / "owl" / f"{number}.png", image)
    dataset = load(tmp_path)
    np.testing.assert_array_equal(dataset.train_images, X)
    assert dataset.label_names == ("cat", "owl")
    assert dataset.train_labels.tolist() == [int(number % 3 > 0) for number in range(12)]
    assert dataset.test_labels.tolist() == [1] * 12


def test_a_class_may_be_called_train_and_test_pictures_may_have_no_class(tmp_path):
    for name in ("bus", "car", "train"):
        save(tmp_path / "vehicles" / name / "0.png", X[0])
    assert load(tmp_path / "vehicles").label_names == ("bus", "car", "train")
    for name in ("train/a/0.png", "train/b/1.png", "test/all/0.png"):  # as Keras wants it
        save(tmp_path / "keras" / name, X[0])
    assert load(tmp_path / "keras").test_labels is None
    assert load(tmp_path / "keras").label_names == ("a", "b")


@pytest.mark.parametrize("layout", ["test/{}.png", "test/cat/{}.png", "archive/test/{}/0.png"])
def test_test_pictures_alone_are_test_images(tmp_path, layout):
    for number, image in enumerate(X):
        save(tmp_path / layout.format(number), image)
    dataset = loading.load_for_run(loading.Options(data=str(tmp_path)), {"settings": {}, "dataset": {}})
    assert (len(dataset.train_images), len(dataset.test_images)) == (0, 12)


def test_validation_pictures_alone_are_refused(tmp_path):
    save(tmp_path / "val" / "cat" / "0.png", X[0])
    assert "validation images only" in refuse(load, tmp_path)


def test_parts_may_be_wrapped_and_written_as_one_word_and_what_is_left_out_is_named(tmp_path):
    """As in Kaggle's MNIST as JPG."""
    for number, image in enumerate(X):
        save(tmp_path / f"trainingSet/trainingSet/{number % 2}/img_{number}.png", image)
        save(tmp_path / f"testSet/testSet/img_{number}.png", image)
    save(tmp_path / "trainingSample/trainingSample/7/img_1.png", X[1])
    dataset = load(tmp_path)
    np.testing.assert_array_equal(dataset.train_images, X)
    np.testing.assert_array_equal(dataset.test_images, X)
    assert dataset.train_labels.tolist() == [0, 1] * 6 and dataset.test_labels is None
    assert any("these folders are not read" in note and "trainingSample" in note for note in dataset.notes)


@pytest.mark.skipif(os.name != "posix", reason="not every user of Windows may make links")
def test_folders_may_be_links_but_not_in_a_circle(tmp_path):
    for number, image in enumerate(X):
        save(tmp_path / "there" / str(number % 2) / f"{number}.png", image)
    (tmp_path / "mine").mkdir()
    for name in "01":
        (tmp_path / "mine" / name).symlink_to(tmp_path / "there" / name)
    (tmp_path / "there" / "0" / "back").symlink_to(tmp_path / "there" / "0")
    assert set(load_exactly(tmp_path / "mine", *X).train_labels) == {0, 1}


def test_files_that_are_no_pictures_are_skipped_and_counted(tmp_path):
    for number, image in enumerate(X[:6]):
        save(tmp_path / "cat" / f"{number}.png", image)
    content = (tmp_path / "cat" / "0.png").read_bytes()
    (tmp_path / "cat" / "cut.png").write_bytes(content[:-300])
    (tmp_path / "cat" / "notes.txt").write_text("no picture")
    (tmp_path / "labels.csv").write_bytes(b"file,class\n0.png,\xe4\n")
    (tmp_path / "cat" / "._0.png").write_bytes(b"hidden, by macOS")
    save(tmp_path / "preview.png", X[6])  # outside of the classes' folders
    (note,) = [note for note in load_exactly(tmp_path, *X[:6]).notes if "skipped" in note]
    assert "skipped: 4 (the first: 'labels.csv')" in note


def test_modes(tmp_path):
    image, half = X[0], np.full((28, 28), 128, np.uint8)
    alpha = np.stack([image * 0, image * 0, image * 0, image], -1)  # black on nothing: a white page shows through
    save(tmp_path / "a.png", image, "RGB")
    Image.fromarray(alpha).save(tmp_path / "b.png")
    Image.fromarray(X[1].astype(np.uint16) * 257).save(tmp_path / "c.png")
    Image.fromarray(X[4].astype(np.uint16)).save(tmp_path / "c2.png")  # 8 bits in 16
    Image.fromarray(X[2] > 127).save(tmp_path / "d.png")
    save(tmp_path / "e.gif", half, "P")
    turned = Image.Exif()
    turned[0x0112] = 6  # a camera held upright
    Image.fromarray(np.rot90(X[3])).save(tmp_path / "f.png", exif=turned)
    dataset = load_exactly(tmp_path, image, 255 - image, X[1], X[4], 255 * (X[2] > 127), half, X[3])
    assert any("pictures in colour, turned to grey: 3" in note for note in dataset.notes)


def test_a_file_of_several_pictures_is_named(tmp_path):
    pages = [Image.fromarray(image) for image in X[:3]]
    pages[0].save(tmp_path / "stack.tiff", save_all=True, append_images=pages[1:])
    save(tmp_path / "one.tiff", X[3])
    notes = load_exactly(tmp_path, X[0], X[3]).notes
    assert any("files of several pictures, of which the first is read: 1" in note for note in notes)


def test_mixed_sizes_are_scaled_to_one(tmp_path):
    for number, size in enumerate([(30, 20), (33, 20), (31, 22), (300, 21)]):
        save(tmp_path / f"{number}.png", np.full(size, 200, np.uint8))
    dataset = load(tmp_path)
    assert dataset.image_shape == (32, 20) and (dataset.train_images == 200).all()
    assert any("pictures of 30 x 20 to 300 x 22 pixels are scaled to 32 x 20" in note for note in dataset.notes)
    assert load(tmp_path, image_size=16).image_shape == (16, 16)


def test_photographs_are_scaled_without_aliasing(tmp_path):
    stripes = np.zeros((400, 600), np.uint8)
    stripes[:, ::2] = 255
    for number in range(2):
        save(tmp_path / f"{number}.png", stripes)
    images = load(tmp_path).train_images
    assert images.shape[1:] == (84, 128) and abs(images.astype(int) - 128).max() < 20


def bomb(width: int, height: int) -> bytes:
    """A small PNG file that declares a large picture."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("kind", ["a bomb", "sound"])
def test_a_picture_that_declares_too_much_is_skipped(tmp_path, monkeypatch, kind):
    for number, image in enumerate(X[:3]):
        save(tmp_path / f"{number}.png", image)
    if kind == "a bomb":
        (tmp_path / "bomb.png").write_bytes(bomb(2**15, 2**15))
    else:
        save(tmp_path / "bomb.png", np.resize(X, (100, 100)))
        monkeypatch.setattr(formats, "MAX_BYTES", 50_000)
    dataset = load_exactly(tmp_path, *X[:3])
    assert any("skipped: 1 (the first: 'bomb.png')" in note for note in dataset.notes)


def test_limits(tmp_path, monkeypatch):
    for number, image in enumerate(X[:10]):
        save(tmp_path / f"{number}.png", image)
    monkeypatch.setattr(formats, "MAX_BYTES", 7000)
    assert "takes 7,840 bytes" in refuse(load, tmp_path)
    monkeypatch.undo()
    monkeypatch.setattr(pictures, "MAX_FILES", 9)
    assert "more than 9 files" in refuse(load, tmp_path)
