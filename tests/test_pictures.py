"""Folders of pictures: parts, classes, order, sizes, modes, and files that are no pictures."""

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


GUESSES = [  # that earlier versions got wrong: pictures, other files, the note, the classes
    ("train/{1}/{0}.png", {"docs/plan.png": X[0], "a.txt": b""}, "not read: docs, a.txt", ("cat", "dog")),
    ("{1}/{0}.png", {"embeddings.npy": b"", "x.npz": b""}, "(the first: 'embeddings.npy')", ("cat", "dog")),
    ("z{0}.png", {f"a{number}.xml": b"" for number in range(1001)}, "(the first: 'a0.xml')", None),
]


@pytest.mark.parametrize("pattern, others, note, classes", GUESSES)
def test_what_lies_beside_pictures_does_not_matter(tmp_path, pattern, others, note, classes):
    dataset = load(write(tmp_path, **spread(pattern), **others))
    assert pixels_of(dataset) == ALL and dataset.label_names == classes
    assert (dataset.train_labels is None) == (classes is None)
    assert dataset.notes[0].endswith(note) and ("not read" in note or f"skipped: {len(others):,}" in dataset.notes[0])


def test_parts_have_the_order_of_names(tmp_path):
    parts = {"train": X, "test": X[:5], "val": X[5:]}
    for part, images in parts.items():
        write(tmp_path, **spread(part + "/{1}/{0:02}.png", images))
    dataset = load(tmp_path)
    for field, wanted in zip(("train_images", "test_images", "validation_images"), parts.values(), strict=True):
        np.testing.assert_array_equal(getattr(dataset, field), wanted)
    assert dataset.train_labels.tolist() == [0, 1] * 6 and dataset.test_labels.tolist() == [0, 1, 0, 1, 0]


def test_a_part_may_be_flat(tmp_path):
    dataset = load(write(tmp_path, **spread("train/{1}/{0}.png"), **{"test/0.png": X[0]}))
    assert dataset.test_labels is None and dataset.label_names == ("cat", "dog")


def test_a_class_has_no_folders_and_what_is_inside_is_named(tmp_path):
    others = {"sets/other/images.npy": b"", "sets/a.npz": b"", "sets/z/cat/0.png": X[0]}
    line = refuse(load, write(tmp_path, **spread("sets/mine/train/{1}/{0}.png"), **others))
    assert "sets holds a folder (mine), as no class does" in line and "docs/data.md" in line
    assert all(str(tmp_path / "sets" / name) in line for name in ("mine", "other", "a.npz", "z"))
    part = write(tmp_path / "b", **{"cat/0.png": X[0], "Testing/0.png": X[0]})
    assert "Testing is no name of a class" in refuse(load, part)


def test_files_that_are_no_pictures_are_skipped_and_counted(tmp_path):
    content = (write(tmp_path, **spread("{1}/{0}.png")) / "cat" / "0.png").read_bytes()
    write(tmp_path, **{"cat/cut.png": content[:-300], "cat/notes.txt": b"no", "cat/a.tga": X[0], "top.png": X[0]})
    write(tmp_path, **{"cat/._0.png": b"hidden, by macOS", ".git/x.png": X[0], "__MACOSX/x.png": X[0]})
    dataset = load(tmp_path)
    assert pixels_of(dataset) == ALL and dataset.label_names == ("cat", "dog")
    assert dataset.notes[0].endswith("(the first: 'a.tga')") and "skipped: 4" in dataset.notes[0]


def test_modes(tmp_path):
    turned = Image.Exif()
    turned[0x0112] = 6  # a camera held upright
    write(tmp_path, **{"a.bmp": X[0], "b.tiff": X[1], "c.png": X[2] > 127, "d.png": np.stack([X[3]] * 3, -1)})
    Image.fromarray(np.rot90(X[4])).save(tmp_path / "e.png", exif=turned)
    Image.fromarray(X[5] / np.float32(255)).save(tmp_path / "f.tiff")  # floats: of which range?
    wanted = [*X[:2], np.uint8(255) * (X[2] > 127), *X[3:5]]
    assert pixels_of(load(tmp_path)) == {image.tobytes() for image in wanted}


def test_sizes(tmp_path):
    sizes = [(30, 20), (33, 20), (31, 22), (300, 210)]
    mixed = write(tmp_path / "a", **{f"{size[0]}.png": np.full(size, 200, np.uint8) for size in sizes})
    dataset = load(mixed)
    assert dataset.image_shape == (32, 20) and (dataset.train_images == 200).all()
    assert dataset.notes[0].endswith("pictures are scaled to 32 x 20 pixels")
    assert load(mixed, image_size=16).image_shape == (16, 16)
    stripes = np.resize(np.array([255, 0], np.uint8), (400, 600))
    images = load(write(tmp_path / "b", **{"0.png": stripes, "1.png": stripes})).train_images
    assert images.shape[1:] == (84, 128) and abs(images.astype(int) - 128).max() < 20  # without aliasing


def test_one_factor_for_all_deep_pictures(tmp_path):
    """A dim exposure of 12 bits stays dim."""
    pictures, white = {"0.png": DEEP[0] * 16, "1.png": DEEP[1] * 4}, 16 * int(X[0].max())
    dataset = load(write(tmp_path, **pictures))
    wanted = [np.rint(image * (255 / white)).astype(np.uint8) for image in pictures.values()]
    assert pixels_of(dataset) == {image.tobytes() for image in wanted} and dataset.reading == {"white": white}
    assert "save them alike" in refuse(load, write(tmp_path, **{"8_bits.png": X[0]}))


@pytest.mark.parametrize("ink, ground", [(255, "black"), (0, "white"), (200, "black"), (90, "white")])
def test_transparent_pictures_are_laid_on_what_leaves_something_to_see(tmp_path, ink, ground):
    pictures = np.stack([np.full_like(INK, ink)] * 3 + [INK], -1)
    dataset = load(write(tmp_path, **{f"{number}.png": image for number, image in enumerate(pictures)}))
    wanted = np.where(INK == 255, ink, 0 if ground == "black" else 255).astype(np.uint8)
    assert pixels_of(dataset) == {image.tobytes() for image in wanted} and dataset.warning is None
    assert dataset.reading == {"ground": ground} and any(f"laid on {ground}" in note for note in dataset.notes)
    shown = show(write(tmp_path / "later", **{"0.png": pictures[0]}), reading={"ground": "black"})
    assert shown.test_images[0, INK[0] == 0].max() == 0 and shown.reading == {"ground": "black"}


def test_opaque_pictures_do_not_choose_the_ground(tmp_path):
    glyph = np.stack([np.full_like(INK[0], 255)] * 3 + [INK[0]], -1)
    write(tmp_path, **{"glyph.png": glyph, **{f"{number}.png": X[3] // 8 for number in range(4)}})  # dark and opaque
    Image.fromarray(INK[1]).convert("P").save(tmp_path / "palette.gif", transparency=0)
    dataset = load(tmp_path)
    assert pixels_of(dataset) == {image.tobytes() for image in (INK[0], INK[1], X[3] // 8)}
    assert dataset.reading == {"ground": "black"}
