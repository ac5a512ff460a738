"""Folders of pictures: parts, classes, order, sizes, modes, and files that are no pictures."""

import struct
import zlib

import numpy as np
import pytest
from conftest import refuse
from helpers import load, make_arrays, pixels_of, show, write
from PIL import Image

X = make_arrays(12)["x_train"]
ALL = {image.tobytes() for image in X}
DEEP = X.astype(np.uint16)
INK = np.where(X[:4] > 127, 255, 0).astype(np.uint8)


def spread(pattern: str, images=X) -> dict[str, np.ndarray]:
    """The images as pictures, the even ones of class cat, the odd ones of class dog."""
    return {pattern.format(number, ("cat", "dog")[number % 2]): image for number, image in enumerate(images)}


# The wrong guesses of before


def test_classes_in_train_beside_a_folder_that_is_none(tmp_path):
    dataset = load(write(tmp_path, **spread("train/{1}/{0}.png"), **{"docs/plan.png": X[0], "a.txt": b""}))
    assert dataset.label_names == ("cat", "dog") and set(dataset.train_labels) == {0, 1}
    assert pixels_of(dataset) == ALL and dataset.notes[0].endswith("not read: docs, a.txt")


def test_a_stray_array_beside_classes_is_no_class(tmp_path):
    strays = {name: b"anything" for name in ("embeddings.npy", "labels.npy", "features.npz", "list.csv")}
    dataset = load(write(tmp_path, **spread("{1}/{0}.png"), **strays))
    assert dataset.label_names == ("cat", "dog") and pixels_of(dataset) == ALL
    assert dataset.notes[0].endswith("(the first: 'embeddings.npy')") and "skipped: 4" in dataset.notes[0]


def test_a_thousand_other_files_before_the_pictures(tmp_path):
    dataset = load(write(tmp_path, **{f"a{number}.xml": b"" for number in range(1001)}, **spread("z{0}.png")))
    assert pixels_of(dataset) == ALL and dataset.train_labels is None
    assert dataset.notes[0].endswith("(the first: 'a0.xml')") and "skipped: 1,001" in dataset.notes[0]


# Parts and classes


def test_parts_have_the_order_of_names(tmp_path):
    parts = {"train": X, "test": X[:5], "val": X[5:]}
    for part, images in parts.items():
        write(tmp_path, **spread(part + "/{1}/{0:02}.png", images))
    dataset = load(tmp_path)
    for field, wanted in zip(("train_images", "test_images", "validation_images"), parts.values(), strict=True):
        np.testing.assert_array_equal(getattr(dataset, field), wanted)
    assert dataset.train_labels.tolist() == [0, 1] * 6 and dataset.test_labels.tolist() == [0, 1, 0, 1, 0]


def test_a_part_may_be_flat_and_a_class_of_test_images_may_be_unknown(tmp_path):
    flat = load(write(tmp_path / "a", **spread("train/{1}/{0}.png"), **{"test/0.png": X[0]}))
    assert flat.test_labels is None and flat.label_names == ("cat", "dog")
    keras = load(write(tmp_path / "b", **spread("train/{1}/{0}.png"), **{"test/all/0.png": X[0]}))
    assert keras.notes[-1].endswith("classes of test images that no training image has: all")


@pytest.mark.parametrize("name", ["training", "Testing", "val", "valid", "validation", "dev"])
def test_a_part_of_another_name_is_no_class(tmp_path, name):
    line = refuse(load, write(tmp_path, **spread("cat/{0}.png"), **{f"{name}/0.png": X[0]}))
    assert f"{name} is no name of a class" in line and "docs/data.md" in line


def test_a_class_has_no_folders_and_what_is_inside_is_named(tmp_path):
    write(
        tmp_path,
        **spread("sets/mine/train/{1}/{0}.png"),
        **{"sets/other/images.npy": b"", "sets/a.npz": b"", "sets/z/cat/0.png": X[0]},
    )
    line = refuse(load, tmp_path)
    assert "sets holds a folder (mine), as no class does" in line and "docs/data.md" in line
    assert all(str(tmp_path / "sets" / name) in line for name in ("mine", "other", "a.npz", "z"))
    assert pixels_of(load(tmp_path / "sets" / "mine")) == ALL


def test_files_that_are_no_pictures_are_skipped_and_counted(tmp_path):
    content = (write(tmp_path, **spread("{1}/{0}.png")) / "cat" / "0.png").read_bytes()
    header = content[12:29].replace(struct.pack(">II", 28, 28), struct.pack(">II", 2**15, 2**15))
    bomb = content[:12] + header + struct.pack(">I", zlib.crc32(header)) + content[33:]
    write(tmp_path, **{"cat/cut.png": content[:-300], "cat/notes.txt": b"no", "cat/bomb.png": bomb, "top.png": X[0]})
    write(
        tmp_path,
        **{"cat/._0.png": b"hidden, by macOS", ".git/x.png": X[0], "__MACOSX/x.png": X[0], "cat/a.tga": X[0]},
    )
    dataset = load(tmp_path)
    assert pixels_of(dataset) == ALL and dataset.label_names == ("cat", "dog")
    assert dataset.notes[0].endswith("(the first: 'a.tga')") and "skipped: 5" in dataset.notes[0]


OTHERS = {
    "seen: 2 .arrow, 1 .json": {"a-0.arrow": b"x", "a-1.arrow": b"x", "info.json": b"{}"},
    "seen: 2 .amat": {"rectangles_train.amat": b"0 1", "rectangles_test.amat": b"0 1"},
    "seen: 1 README, 1 .txt": {"cat/notes.txt": b"", "cat/README": b""},
    "2 files that are no pictures, are damaged, or lie beside the classes' folders": {"0.png": X[0], "docs/a.txt": b""},
    "seen: nothing": {},
}


@pytest.mark.parametrize("words, files", OTHERS.items())
def test_a_folder_of_other_files_says_what_was_seen(tmp_path, words, files):
    line = refuse(load, write(tmp_path, **files))
    assert words in line and str(tmp_path) in line and "docs/data.md" in line


# Sizes, colours, depth and transparency


def test_modes(tmp_path):
    half, turned = np.full((28, 28), 128, np.uint8), Image.Exif()
    turned[0x0112] = 6  # a camera held upright
    grey = {"a.bmp": X[0], "b.tiff": X[1], "c.pgm": X[2], "d.png": X[3] > 127, "e.gif": half}
    write(tmp_path, **grey, **{"f.png": np.stack([X[5]] * 3, -1)})
    Image.fromarray(X[6]).convert("RGB").save(tmp_path / "g.webp", lossless=True)
    Image.fromarray(np.rot90(X[7])).save(tmp_path / "h.png", exif=turned)
    Image.fromarray(X[8]).save(tmp_path / "i.tiff", save_all=True, append_images=[Image.fromarray(X[9])])
    Image.fromarray(X[10] / np.float32(255)).save(tmp_path / "j.tiff")  # floats: of which range?
    wanted = [*X[:3], np.uint8(255) * (X[3] > 127), half, *X[5:9]]
    assert pixels_of(load(tmp_path)) == {image.tobytes() for image in wanted}


def test_sizes(tmp_path):
    sizes = [(30, 20), (33, 20), (31, 22), (300, 210)]
    mixed = write(
        tmp_path / "a", **{f"{number}.png": np.full(size, 200, np.uint8) for number, size in enumerate(sizes)}
    )
    dataset = load(mixed)
    assert dataset.image_shape == (32, 20) and (dataset.train_images == 200).all()
    assert dataset.notes[0].endswith("pictures are scaled to 32 x 20 pixels")
    assert load(mixed, image_size=16).image_shape == (16, 16)
    stripes = np.zeros((400, 600), np.uint8)
    stripes[:, ::2] = 255
    images = load(write(tmp_path / "b", **{"0.png": stripes, "1.png": stripes})).train_images
    assert images.shape[1:] == (84, 128) and abs(images.astype(int) - 128).max() < 20  # without aliasing


DEPTHS = {
    "noise stays noise": ([DEEP[0] * 257, DEEP[1] % 200], 65535),
    "a dim exposure of 12 bits stays dim": ([DEEP[0] * 16, DEEP[1] * 4], int(X[0].max()) * 16),
    "in the upper half of 16 bits": ([DEEP[0] * 129, DEEP[1]], 65535),
    "8 bits in 16": ([DEEP[0], DEEP[1]], 255),
}


@pytest.mark.parametrize("pictures, white", DEPTHS.values(), ids=DEPTHS)
def test_one_factor_for_all_deep_pictures(tmp_path, pictures, white):
    dataset = load(write(tmp_path, **{f"{number}.png": image for number, image in enumerate(pictures)}))
    assert pixels_of(dataset) == {np.rint(image * (255 / white)).astype(np.uint8).tobytes() for image in pictures}
    assert dataset.reading == ({} if white == 255 else {"white": white})
    assert f"are read with {white:,} as white" in dataset.notes[0]
    shown = show(write(tmp_path / "later", **{"dim.png": DEEP[2]}), reading={"white": 4095})
    np.testing.assert_array_equal(shown.test_images[0], np.rint(DEEP[2] * (255 / 4095)))
    assert "save them alike" in refuse(load, write(tmp_path / "later", **{"8_bits.png": X[0]}))


@pytest.mark.parametrize("ink, ground", [(255, "black"), (0, "white"), (200, "black"), (90, "white")])
def test_transparent_pictures_are_laid_on_what_leaves_something_to_see(tmp_path, ink, ground):
    pictures = np.stack([np.full_like(INK, ink)] * 3 + [INK], -1)
    dataset = load(write(tmp_path, **{f"{number}.png": image for number, image in enumerate(pictures)}))
    wanted = np.where(INK == 255, ink, 0 if ground == "black" else 255).astype(np.uint8)
    assert pixels_of(dataset) == {image.tobytes() for image in wanted} and dataset.warning is None
    assert dataset.reading == {"ground": ground} and any(f"laid on {ground}" in note for note in dataset.notes)
    shown = show(write(tmp_path / "later", **{"0.png": pictures[0]}), reading={"ground": "black"})
    assert shown.test_images[0, INK[0] == 0].max() == 0 and shown.reading == {"ground": "black"}


def test_opaque_pictures_beside_transparent_ones_and_palettes(tmp_path):
    glyph = np.stack([np.full_like(INK[0], 255)] * 3 + [INK[0]], -1)
    opaque = np.stack([X[1]] * 3 + [np.full_like(X[1], 255)], -1)
    write(tmp_path, **{"train/0.png": glyph, "train/1.png": X[2], "train/2.png": opaque})
    write(tmp_path, **{f"test/{number}.png": X[3] // 8 for number in range(4)})  # dark and opaque
    Image.fromarray(INK[3]).convert("P").save(tmp_path / "train" / "3.gif", transparency=0)
    dataset = load(tmp_path)
    assert pixels_of(dataset) == {image.tobytes() for image in (INK[0], X[2], X[1], INK[3], X[3] // 8)}
    assert dataset.reading == {"ground": "black"}
    assert load(write(tmp_path / "opaque", **{"0.png": opaque, "1.png": opaque})).reading == {}
