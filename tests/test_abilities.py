"""What every network can do: held-out images, Gaussian pixels, kept reconstructions, a look at the training images."""

import contextlib
import csv
import io
import json
import math
import os
from pathlib import Path

import keras
import numpy as np
import pytest
from conftest import SMALL
from PIL import Image

import evaluate
import generator
import main
import results
from vae import archive, checkpoint, data, download, training
from vae.settings import UserError

FLAGS = ("--epochs", "1", "--validation-split", "0.2", "--likelihood", "gaussian", "--variance", "0.05")


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> tuple[Path, str]:
    """The folder and the log of a run that was asked for everything at once."""
    root, log = tmp_path_factory.mktemp("abilities"), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(log):
        patch.setenv("VAE_CHECKPOINTS", str(root))
        main.main([*SMALL, *FLAGS, "--save-reconstructions", "--name", "all"])
    return root / "all", log.getvalue()


def test_held_out_images_are_judged_after_each_epoch_and_the_test_images_at_the_end(run):
    folder, log = run
    assert "train_images =  1200\nvalidation_images =  300\ntest_images =  297\n" in log
    (row,) = csv.DictReader((folder / "history.csv").open())
    assert list(row) == training.fields("val_")
    assert f"| Validation: {float(row['val_general_loss']):.2f} |" in log
    config = json.loads((folder / "config.json").read_text())
    assert config["settings"]["validation_split"] == 0.2 and config["dataset"]["train_images"] == 1200
    losses = config["test"]
    assert losses["general_loss"] == pytest.approx(losses["reconstruction_loss"] + losses["kl_loss"], abs=1e-3)
    assert f"-> Test: general loss {losses['general_loss']:.2f} = " in log and "(297 images of digits" in log


def test_gaussian_pixels_are_measured_as_they_were_trained(run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    folder, log = run
    assert "likelihood =  gaussian (variance 0.05)" in log
    few = ["--json", "--importance-samples", "2", "--images", "20"]
    evaluate.main(["--checkpoint", str(folder), *few])
    printed = capsys.readouterr()
    figures = json.loads(printed.out)
    assert "Gaussian (variance 0.05) pixels" in printed.err
    expected = json.loads((folder / "config.json").read_text())["test"]["general_loss"]
    assert figures["general_loss"] == pytest.approx(expected, rel=0.02)  # other posterior samples
    assert figures["irreducible_loss"] == pytest.approx(784 / 2 * math.log(2 * math.pi * 0.05))
    with pytest.raises(UserError, match="its pixels are Gaussian"):
        evaluate.main(["--checkpoint", str(folder), "--binarize", *few])


def test_the_kept_reconstructions_are_those_of_the_training_images(run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    folder, log = run
    images = archive.read_reconstructions(folder)
    assert (images.shape, images.dtype) == ((1200, 28, 28), np.uint8)
    assert "-> 1,200 reconstructions are saved" in log

    generator.main(["--checkpoint", str(folder), "--from", "reconstructions", "--seed", "5", "--arrays", "a.npz"])
    assert "reconstructions of training images" in capsys.readouterr().out
    drawn = np.rint(255 * np.load("a.npz")["images"]).astype(np.uint8)
    kept = {each.tobytes() for each in images}
    assert len(drawn) == 100 and all(each.tobytes() in kept for each in drawn)
    assert Image.open("generated_images.png").size[0] == Image.open("generated_images.png").size[1]


def test_reconstructions_are_kept_in_the_images_own_order(tmp_path):
    class Mirror:
        """A network that draws what it sees."""

        def reseed(self, *keys):
            pass

        def predict_on_batch(self, images):
            pixels = np.clip(images, 1e-6, 1 - 1e-6)
            return np.log(pixels / (1 - pixels)), None, None

    dataset = data.load(*download.find("digits", None))
    results.keep_reconstructions(Mirror(), main.complete({}), dataset, tmp_path)
    np.testing.assert_array_equal(archive.read_reconstructions(tmp_path), dataset.train_images)


def test_a_run_without_reconstructions_says_which_has_them(run_copy):
    with pytest.raises(UserError, match="only a run with --save-reconstructions has it"):
        generator.main(["--checkpoint", str(run_copy), "--from", "reconstructions"])


@pytest.mark.parametrize("images", [np.zeros((2, 28, 28)), np.zeros((0, 28, 28), np.uint8), np.zeros(5, np.uint8)])
def test_other_arrays_are_no_reconstructions(run_copy, images):
    np.savez(run_copy / "reconstructions.npz", images=images)
    with pytest.raises(UserError, match=r"reconstructions\.npz holds no images"):
        generator.main(["--checkpoint", str(run_copy), "--from", "reconstructions"])


def test_a_hundred_training_images_are_drawn(run):
    picture = np.asarray(Image.open(run[0] / "training_images.png"))
    assert picture.shape == (862, 862)
    originals = data.split(data.load(*download.find("digits", None)), 0.2, 0)[0].train_images
    first = picture[2 : 2 + 84 : 3, 2 : 2 + 84 : 3]
    assert first.tobytes() in {each.tobytes() for each in originals}


def test_the_training_images_are_drawn_before_training_and_not_over_a_run_that_is_still_whole(
    root, run_copy, monkeypatch
):
    def stop(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(training.EpochLog, "on_train_begin", stop)
    (run_copy / "training_images.png").write_bytes(b"of the run before")
    with pytest.raises(KeyboardInterrupt):
        main.main([*SMALL, "--name", "new"])
    assert {"training_images.png", "config.json"} == {path.name for path in (root / "new").iterdir()}
    with pytest.raises(KeyboardInterrupt):
        main.main([*SMALL, "--name", run_copy.name, "--overwrite"])
    assert (run_copy / "training_images.png").read_bytes() == b"of the run before"
    monkeypatch.undo()
    monkeypatch.setenv("VAE_CHECKPOINTS", str(root))
    monkeypatch.setattr(results, "keep_prior", stop)  # after the last epoch, before the figures
    with pytest.raises(KeyboardInterrupt):
        main.main([*SMALL, "--name", run_copy.name, "--overwrite"])
    assert set(os.listdir(run_copy)) == {"training_images.png", *checkpoint.EPOCH_FILES}
    assert (run_copy / "training_images.png").read_bytes() == (root / "new" / "training_images.png").read_bytes()


def test_a_split_is_the_seeds_and_keeps_labels_with_their_images():
    dataset = data.load(*download.find("digits", None))
    rest, held_out = data.split(dataset, 0.3, 7)
    assert (len(rest.train_images), len(held_out)) == (1050, 450) and len(rest.train_labels) == 1050
    labels = {image.tobytes(): label for image, label in zip(dataset.train_images, dataset.train_labels, strict=True)}
    assert all(labels[x.tobytes()] == y for x, y in zip(rest.train_images, rest.train_labels, strict=True))
    every = sorted(image.tobytes() for image in (*rest.train_images, *held_out))
    assert every == sorted(image.tobytes() for image in dataset.train_images)
    np.testing.assert_array_equal(held_out, data.split(dataset, 0.3, 7)[1])
    assert not np.array_equal(held_out, data.split(dataset, 0.3, 8)[1])
    assert data.split(dataset, 0, 7) == (dataset, None)


@pytest.mark.parametrize("share", [0.0001, 0.9999])
def test_a_split_that_leaves_one_side_empty_is_refused(share):
    with pytest.raises(UserError, match="--validation-split"):
        data.split(data.load(*download.find("digits", None)), share, 0)


def test_gaussian_pixels_are_not_binary(root):
    with pytest.raises(UserError, match=r"--binarize: .*not Gaussian"):
        main.main([*SMALL, "--likelihood", "gaussian", "--binarize"])
    assert not root.exists()


def test_adam_is_keras_own(plain_keras):
    rng = np.random.default_rng(4)
    start, gradients = rng.standard_normal((7, 3), np.float32), rng.standard_normal((5, 7, 3), np.float32)
    ended = []
    for kind in (training.Adam, plain_keras.optimizers.Adam):
        weights = plain_keras.Variable(start)
        optimizer = kind(0.01)
        for gradient in gradients:
            optimizer.apply([plain_keras.ops.convert_to_tensor(gradient)], [weights])
        ended.append([plain_keras.ops.convert_to_numpy(v) for v in (weights, *optimizer.variables)])
    assert not np.allclose(ended[0][0], start)
    for ours, theirs in zip(*ended, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-7)


def test_no_epoch_waits_for_the_tuning_of_the_one_before():
    """tf.data's self-tuning thread can miss that its epoch is over, and the next one waits for it (TensorFlow 2.21)."""
    from keras.src.trainers.data_adapters.py_dataset_adapter import PyDatasetAdapter

    if keras.backend.backend() != "tensorflow":
        pytest.skip("other backends have no tf.data")
    batches = training.Batches(np.zeros((4, 28, 28), np.uint8), 2, seed=0)
    assert PyDatasetAdapter(batches).get_tf_dataset().options().autotune.enabled is False
