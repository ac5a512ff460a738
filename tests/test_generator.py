"""generator.py: what it draws for each flag, that it can be repeated, and what it refuses."""

import os
import re
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, full_disk, refuse, snapshot
from helpers import read_frames
from PIL import Image
from tiny_runs import write_config

import generator
from vae import plots, sampling
from vae.data import load
from vae.data.batches import Batches
from vae.run import Run
from vae.runs import read_config

SHIPPED = str(ROOT / "checkpoints" / "pretrained")


@pytest.fixture
def decoded(monkeypatch) -> list[np.ndarray]:
    """The latent vectors of each picture that is drawn from here on."""
    found, decode = [], generator.decode
    monkeypatch.setattr(generator, "decode", lambda decoder, z: found.append(z) or decode(decoder, z))
    return found


def draw(*arguments: str) -> np.ndarray:
    """Return the images that generator.py draws."""
    generator.main([*arguments, "--arrays", "a.npz"])
    return np.load("a.npz")["images"]


def test_a_hundred_digits_on_a_grid(run_copy, here, capsys):
    generator.main([])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "----- Decoder -----" and lines[1].startswith("z: ")
    assert lines[-3] == f"-> Checkpoints are restored from {run_copy}"
    source = r"digits from the learned prior, scale 1, seed \d+"
    assert re.fullmatch(rf"-> Generation is started\. \({source}\)", lines[-2])
    assert lines[-1] == "-> Generated images are saved in generated_images.png"
    with Image.open("generated_images.png") as picture:
        assert (picture.mode, picture.size) == ("L", (862, 862))


# The same seed


def test_latent_vectors_come_from_the_prior(run_copy, here, decoded):
    images = draw("--count", "1200", "--scale", "0.7", "--seed", "2")
    assert images.dtype == np.float32 and images.shape == (1200, 28, 28)
    (z,), one = decoded, Run.find(None)
    np.testing.assert_array_equal(z, one.load_prior().draw(np.random.default_rng([2, 0]), 1200, 0.7))
    np.testing.assert_allclose(images[700:], one.load_decoder().predict_on_batch(z[700:]), atol=1e-6)
    # Viewers refuse large pictures, so with --arrays the picture has the first 400.
    np.testing.assert_array_equal(np.asarray(Image.open("generated_images.png")), plots.tile(images[:400], 20))


def test_the_printed_seed_gives_the_same_digits_and_no_seed_gives_others(run_copy, here, capsys):
    first, second = draw("--count", "9"), draw("--count", "9")
    seed, other = re.findall(r"seed (\d+)\)", capsys.readouterr().out)
    assert seed != other and not np.array_equal(first, second)
    np.testing.assert_array_equal(first, draw("--count", "20", "--seed", seed)[:9])  # a larger count begins with them


def test_all_batches_have_one_size():
    """So the pixels of an image do not depend on how many there are."""

    class Decoder:
        output_shape = (None, 2, 1)

        def predict_on_batch(self, z):
            sizes.append(len(z))
            return np.stack([z, -z], axis=1)

    sizes, z = [], np.arange(1203, dtype=np.float32)[:, None]
    np.testing.assert_array_equal(generator.decode(Decoder(), z), np.stack([z, -z], axis=1))
    assert sizes == [500, 500, 500]


# What is drawn


@pytest.mark.parametrize(
    "arguments, rows, columns",
    [
        ("--count 1", 1, 1),
        ("--count 7 --columns 5", 2, 5),
        ("--count 2 --columns 50", 1, 2),
        ("--digit 0123456789", 10, 10),
        ("--digit 31 --columns 4", 2, 4),
        ("--label 3 --label 1,0 --count 8", 3, 3),
        ("--interpolate --count 20 --columns 5", 4, 5),
        ("--interpolate --label 012 --count 18", 3, 7),
        ("--manifold --count 8", 3, 3),
        ("--manifold --columns 4", 4, 4),
        ("--digit 33 --count 9", 3, 3),  # one label, so no row of its own
        ("--reconstruct --count 6 --columns 2", 3, 4),
    ],
)
def test_the_grid_is_as_large_as_asked_for(run_copy, here, arguments, rows, columns):
    images = draw(*arguments.split(), "--output", "g.png")
    assert images.shape[1:] == (28, 28) and rows * columns - columns < len(images) <= rows * columns
    grid = np.asarray(Image.open("g.png"))
    assert grid.shape == (2 + 86 * rows, 2 + 86 * columns) and sorted(os.listdir()) == ["a.npz", "g.png"]
    np.testing.assert_array_equal(grid, plots.tile(images, columns))


@pytest.mark.parametrize(
    "arguments, columns, corner",
    [
        ("--interpolate --count 450 --columns 9", 9, (44, 9)),
        ("--count 500", 20, (20, 20)),
        ("--digit 0 --count 500", 20, (20, 20)),
        ("--manifold --count 500", 23, (20, 20)),
        ("--digit 01 --count 500", 250, (2, 20)),  # a row of each digit
    ],
)
def test_a_picture_of_many_is_the_corner_of_their_grid(run_copy, here, arguments, columns, corner):
    images = draw(*arguments.split(), "--output", "g.png")
    numbers = [row * columns + column for row, column in np.ndindex(corner)]
    assert len(images) > 400
    np.testing.assert_array_equal(np.asarray(Image.open("g.png")), plots.tile(images[numbers], corner[1]))


def test_the_plane_is_along_the_two_most_active_dimensions(run_copy, here, decoded):
    one = Run.find(None)
    generator.main(["--manifold", "--count", "9", "--seed", "1"])
    axes = np.argsort(one.config["activity"])[:0:-1]  # two of three
    np.testing.assert_array_equal(decoded[0], sampling.lay_plane(one.load_prior(), 3, axes, np.random.default_rng(1)))


@pytest.mark.parametrize(
    "flags, names", [([], [None, None]), (["--label", "3,8,1"], [3, 8, 1]), (["--label", "3"], [3, 3])]
)
def test_every_row_walks_through_draws_of_the_labels_in_their_order(run_copy, here, decoded, flags, names):
    columns = 4 * len(names) - 3
    generator.main(["--interpolate", "--seed", "1", "--columns", str(columns), "--count", str(2 * columns), *flags])
    rows = decoded[0].reshape(2, columns, 3)
    prior = Run.find(None).load_prior()
    for stop, name in enumerate(names):
        rng = np.random.default_rng([1, stop] if name is None else [1, stop, 1 + name])
        wanted = prior.draw(rng, 2) if name is None else prior.draw_label(rng, 2, 1.0, name)
        np.testing.assert_allclose(rows[:, 4 * stop], wanted, atol=1e-6)
    assert (np.abs(np.diff(rows, axis=1)).max(axis=2) > 0).all()  # no stop comes twice


def write_own(count: int) -> np.ndarray:
    """Write a few images without parts, and return them."""
    images = np.random.default_rng(0).integers(0, 256, (count, 28, 28), np.uint8)
    np.savez("own.npz", images=images)
    return images


def test_walks_go_from_one_image_to_the_next(run_copy, here, decoded):
    pixels = Batches(write_own(4), 500, 1, binarize=True)[0][0]
    mean, _ = Run.find(None).load_encoder().predict(pixels, verbose=0)
    generator.main(["--interpolate", "--data", "own.npz", "--columns", "5", "--seed", "1"])
    ends = decoded[0].reshape(3, 5, 3)[:, [0, -1]]
    np.testing.assert_allclose(ends, np.stack([mean[:-1], mean[1:]], axis=1), atol=1e-5)
    generator.main(["--interpolate", "--data", "own.npz", "--count", "3", "--output", "walk.gif"])
    assert len(decoded[-1]) == 3 * 2 * generator.FRAMES  # three walks, there and back
    write_own(1)
    assert "a walk needs two images" in refuse(generator.main, ["--interpolate", "--data", "own.npz"])


@pytest.mark.parametrize("binary, available", [(True, 297), (False, 297), (False, 5), (False, 1)])
def test_reconstructions_are_beside_what_the_encoder_saw(run_copy, here, decoded, binary, available):
    """They are decoded from a posterior sample each. A hundred are chosen at random; few are all, in their order."""
    place, images = str(run_copy) if binary else SHIPPED, write_own(available)
    pairs = draw("--checkpoint", place, "--reconstruct", "--data", "own.npz", "--seed", "4").reshape(-1, 2, 28, 28)
    if available > 100:
        images = images[np.random.default_rng(4).permutation(available)[:100]]
    np.testing.assert_array_equal(pairs[:, 0], Batches(images, 500, 4, binarize=binary)[0][0])
    one = Run.find(place)
    mean, log_var = one.load_encoder().predict(pairs[:, 0], verbose=0)
    z = mean + np.exp(log_var / 2) * np.random.default_rng(4).standard_normal(mean.shape, np.float32)
    np.testing.assert_allclose(decoded[0], z, atol=1e-4)
    np.testing.assert_allclose(pairs[:, 1], one.load_decoder().predict(z, verbose=0), atol=1e-4)


# Labels


NAMES = [",", ",,+", "-", "+", "cat", "dog", "$$", "猫", "+,-", "10"]


@pytest.mark.parametrize(
    "flags, numbers",
    [
        (["--label", ","], [0]),
        (["--label", ",,+"], [1]),
        (["--label=-"], [2]),
        (["--label=-,+"], [2, 3]),
        (["--label=-+"], [2, 3]),
        (["--label", "cat,dog"], [4, 5]),
        (["--label", "+,-", "--digit", "猫"], [8, 7]),
        (["--digit", "10", "--label", "$$"], [9, 6]),
        (["--label", "cat", "--label", "cat"], [4]),  # one row
    ],
)
def test_a_text_is_one_label_or_several_between_commas_or_one_in_each_letter(flags, numbers, run_copy):
    write_config(run_copy, dataset=read_config(run_copy)["dataset"] | {"label_names": NAMES})
    one, options = Run.find(None), generator.parse([*flags, "--columns", "2", "--scale", "0.5", "--seed", "1"])
    prior = one.load_prior()
    labels = generator.read_labels(options.label, one, prior)
    z, _ = generator.plan_digits(prior, labels, options)
    rows = [prior.draw_label(np.random.default_rng([1, 0, 1 + number]), 2, 0.5, number) for number in numbers]
    np.testing.assert_array_equal(z[: 2 * len(numbers)], np.concatenate(rows))
    assert len(z) in (2 * len(numbers), 100)
    for wrong in ("mouse", "cat,mouse", "", "cat,"):
        message = refuse(generator.read_labels, [wrong], one, prior)
        assert message == f"--label {wrong}: this run has the labels {', '.join(NAMES)}; choose from these"


# Files


@pytest.mark.parametrize(
    "name, flags, legs, size",
    [("a.gif", [], 3, (260, 346)), ("a.webp", ["--label", "3,8", "--count", "4"], 2, (174, 174))],
)
def test_walks_move_in_a_loop_and_the_file_is_small(here, name, flags, legs, size):
    generator.main(["--checkpoint", SHIPPED, "--interpolate", "--seed", "1", "--output", name, *flags])
    assert 20_000 < Path(name).stat().st_size < 400_000
    frames, times = read_frames(Path(name))
    assert frames[0].shape == size and times == [900, *[60] * 19] * legs
    steps = np.abs(np.diff([*frames, frames[0]], axis=0)).mean(axis=(1, 2))
    assert steps.max() < 4 * steps.mean()  # also from the last to the first: no jump


def test_a_folder_gets_a_file_for_each_image(run_copy, here):
    (here / "old").mkdir()
    for place in ("new/", "old", "old/"):
        images = draw("--count", "3", "--seed", "1", "--output", place)
        names = sorted(path.name for path in Path(place).iterdir())
        assert names == ["0000.png", "0001.png", "0002.png"]
        for name, image in zip(names, images, strict=True):
            np.testing.assert_array_equal(np.asarray(Image.open(Path(place, name))), np.rint(255 * image))


@pytest.mark.parametrize(
    "arguments, words",
    [
        ("--digit 3 --output g.txt", r"--output g.txt: pictures of this kind cannot be written; choose \.png"),
        ("--reconstruct --label 3", "--label: it contradicts --manifold, --reconstruct, --from and --data"),
        ("--manifold --digit 3", "--label: it contradicts"),
        ("--from reconstructions --digit 3", "--label: it contradicts"),
        ("--interpolate --digit 3 --dataset digits", "--label: it contradicts"),
        ("--manifold --scale 0.5", "--scale: it contradicts --manifold"),
        ("--digit 31 --count 8 --columns 3", "--columns: each of several labels has a row"),
        ("--dataset digits", "--data, --dataset, --transpose: only --reconstruct and --interpolate read images"),
        ("--from reconstructions", ".*only a run with --save-reconstructions has it"),
        ("--output nowhere/g.png", "--output nowhere.g.png: no such folder"),
        ("--output nowhere/g/", "--output nowhere.g: no such folder"),
        ("--arrays file/a.npz", "--arrays file.a.npz: no such folder"),
        ("--arrays .", r"--arrays \. cannot be written"),
    ],
)
def test_flags_that_make_no_sense_are_refused_and_nothing_is_written(run_copy, here, arguments, words):
    (here / "file").write_text("a file")
    before = snapshot(here)
    assert re.match(words, refuse(generator.main, arguments.split()))
    assert snapshot(here) == before


def test_a_decoder_alone_is_enough_for_a_run_without_a_learned_prior(run_copy, here, monkeypatch, capsys):
    """Neither the encoder nor images are needed, and no prior.npz where the prior is N(0, I)."""
    monkeypatch.setattr(load, "load_shown", None)
    for path in run_copy.iterdir():
        if path.name not in ("config.json", "decoder.keras"):
            path.unlink()
    write_config(run_copy, settings=read_config(run_copy)["settings"] | {"prior": "normal"})
    for flags in ([], ["--interpolate"], ["--manifold"]):
        generator.main(["--count", "4", *flags])
    assert "(digits from N(0, I), scale 1, seed" in capsys.readouterr().out
    assert "--label: the prior of this run has no labels" in refuse(generator.main, ["--digit", "3"])
    assert os.listdir() == ["generated_images.png"]


def test_a_full_disk_leaves_the_old_pictures(run_copy, here):
    for name in ("g.png", "a.npz", "g.gif"):
        (here / name).write_text("old")
    before = snapshot(here)
    with full_disk(6000):
        for flags in ("--output g.png", "--output g.png --arrays a.npz", "--interpolate --output g.gif"):
            message = refuse(generator.main, flags.split())
            assert flags.split()[-1] in message and "cannot be written" in message
        assert snapshot(here) == before
