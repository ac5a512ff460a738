"""Data sets: the digits, the user's own images, the images of a run, and the fingerprint."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, refuse
from helpers import load, make_arrays, make_idx_files, write_folder, write_npz

from vae.data import load as loading
from vae.data.load import Options

HEAVY = ("PIL", "keras", "pooch", "requests", "sklearn", "tensorflow", "tqdm")


def test_digits():
    from sklearn.datasets import load_digits

    small, dataset = load_digits(), loading.load(Options("digits"))
    assert (dataset.name, dataset.source, dataset.warning) == ("digits", "embedded in scikit-learn", None)
    assert (dataset.train_images.shape, dataset.test_images.shape) == ((1500, 28, 28), (297, 28, 28))
    assert dataset.image_shape == (28, 28) and dataset.validation_images is None
    assert dataset.sha256 == "52f13900c7c6d8fd0eb909fc494384e4fe89e60b169181355f03778ffd6f8856"
    np.testing.assert_array_equal(np.concatenate([dataset.train_labels, dataset.test_labels]), small.target)
    # Upright and in place: where a small pixel has its centre, the image looks like it; around the digits all is black.
    images = np.concatenate([dataset.train_images, dataset.test_images]).astype(int)
    centres = np.rint((np.arange(8) - 3.5) * 20 / 8 + 13.5).astype(int)
    assert np.corrcoef(images[:, centres[:, None], centres].ravel(), small.images.ravel())[0, 1] > 0.95
    assert (images[:, :2] == 0).all() and (images[:, :, -2:] == 0).all() and images.max() > 230


def test_the_fingerprint_depends_on_the_images_alone(tmp_path):
    """Their order in memory does not count: assert_is_made computes it for every layout of test_layouts.py."""
    arrays = make_arrays()
    images = {"x_train": arrays["x_train"], "x_test": arrays["x_test"]}
    changed = images | {"x_test": images["x_test"] ^ 1}
    swapped = {"x_train": images["x_test"], "x_test": images["x_train"]}
    validated = images | {"x_val": images["x_test"]}
    sets = enumerate((arrays, images, changed, swapped, validated))
    labelled, *found = [load(write_npz(tmp_path / f"{number}.npz", **one)).sha256 for number, one in sets]
    assert labelled == found[0] and len(set(found)) == 4


@pytest.mark.parametrize("size", [0, 27, 132, -4])
def test_a_size_that_no_network_takes_is_refused_before_a_download(monkeypatch, size):
    monkeypatch.setattr(loading.public, "find", lambda name: pytest.fail("it is downloaded"))
    assert f"--image-size {size}" in refuse(loading.load, Options("mnist", image_size=size))


# The user's own images


@pytest.mark.parametrize(
    "name, safe", [("déjà vu", "d-j-vu"), ("..hidden", "hidden"), ("é", "data"), ("a_b-c.1", "a_b-c.1")]
)
def test_the_name_is_fit_for_a_folder(tmp_path, name, safe):
    folder = write_folder(tmp_path / name, make_idx_files())
    dataset = loading.load(Options("digits", str(folder)))  # --data wins
    assert (dataset.name, dataset.source, dataset.warning) == (safe, str(folder), None)
    assert load(write_npz(tmp_path / f"{name}.npz", **make_arrays())).name == safe


def test_relative_paths_and_home(tmp_path, monkeypatch):
    monkeypatch.chdir(write_folder(tmp_path / "mine", make_idx_files()))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))  # on Windows
    assert [load(path).name for path in (".", "~/mine", "../mine")] == ["mine"] * 3


def test_a_path_without_images_is_refused(tmp_path):
    (tmp_path / "folder.npz").mkdir()
    cases = {"nowhere": "no such file", "folder.npz": "holds no images"}
    for name, words in cases.items():
        message = refuse(load, tmp_path / name)
        assert words in message and str(tmp_path / name) in message


@pytest.mark.parametrize("path", ["~\0", "~\ud800", "\0", "a\nb", "\u2028", "x" * 300, "x" * 10**5, "/" + "x/" * 3000])
def test_a_path_from_a_hostile_config_is_refused_in_one_line(path):
    config = {"settings": {"data": path}, "dataset": {"name": "mine"}}
    assert "--data" in refuse(load, path) and "--data" in refuse(loading.load_for_run, Options(), config)


@pytest.mark.parametrize("name", ["cifar", "a\nb", "x" * 10**5, ""])
def test_an_unknown_data_set_is_refused_in_one_line(name):
    assert "no such data set" in refuse(loading.load, Options(name))
    config = {"settings": {"data": None}, "dataset": {"name": name}}
    assert "no such data set" in refuse(loading.load_for_run, Options(), config)


def test_the_images_of_a_run_are_found_again(tmp_path):
    folder = str(write_folder(tmp_path / "mine", make_idx_files()))
    settings = {"data": folder, "image_size": 16, "transpose": True, "seed": 5}
    own = {"settings": settings, "dataset": {"name": "mine"}}
    public = {"settings": {"data": None}, "dataset": {"name": "digits"}}  # of a version that had fewer settings
    trained_on = loading.load(Options(data=folder, transpose=True, image_size=16, seed=5))
    assert loading.load_for_run(Options(), own).sha256 == trained_on.sha256
    assert loading.load_for_run(Options("digits"), own).image_shape == (16, 16)
    assert loading.load_for_run(Options("digits"), own).notes != trained_on.notes  # it is not transposed
    assert loading.load_for_run(Options(), public).name == "digits"
    assert loading.load_for_run(Options(data=folder), public).name == "mine"
    recorded = {"settings": {"data": None}, "dataset": {"name": "digits", "image_size": [16, 24]}}
    assert loading.load_for_run(Options(), recorded).image_shape == (16, 24)
    assert loading.load_for_run(Options(data=folder), recorded).image_shape == (16, 24)
    shutil.rmtree(folder)
    message = refuse(loading.load_for_run, Options(), own)
    assert folder in message and "trained on" in message and not message.startswith("--data")


def test_the_test_set_of_a_run_depends_on_its_seed(tmp_path):
    path = write_npz(tmp_path / "a.npz", x_train=make_arrays(50)["x_train"], y_train=np.arange(50))
    whole = np.load(path)["x_train"]
    dataset = load(path, seed=5)
    config = {"settings": {"data": str(path), "seed": 5}, "dataset": {"name": "a"}}
    assert (len(dataset.train_images), len(dataset.test_images)) == (45, 5)
    np.testing.assert_array_equal(whole[dataset.test_labels], dataset.test_images)
    np.testing.assert_array_equal(whole[dataset.train_labels], dataset.train_images)
    assert sorted([*dataset.train_labels, *dataset.test_labels]) == list(range(50))
    assert loading.load_for_run(Options(), config).sha256 == dataset.sha256 != load(path, seed=6).sha256
    assert any("5 of 50 images are held out as the test set" in note for note in dataset.notes)


def test_test_images_alone_can_be_measured_but_not_trained_on(tmp_path):
    path = write_npz(tmp_path / "a.npz", x_test=make_arrays()["x_test"])
    dataset = loading.load_for_run(Options(data=str(path)), {"settings": {}, "dataset": {}})
    assert len(dataset.test_images) == 3 and dataset.train_images.shape == (0, 28, 28)
    assert "test images only" in refuse(load, path)


def test_emnist_s_own_files_are_known_to_be_transposed(tmp_path):
    files = {f"emnist-digits-{stem.replace('t10k', 'test')}": content for stem, content in make_idx_files().items()}
    folder = write_folder(tmp_path / "mine", files, zipped=True)
    assert "--transpose" in load(folder).warning
    dataset = load(folder, transpose=True)
    assert dataset.warning is None and any("--transpose" in note for note in dataset.notes)
    np.testing.assert_array_equal(dataset.train_images, make_arrays()["x_train"].swapaxes(1, 2))


def test_nothing_heavy_is_imported_before_it_is_needed():
    script = f"import sys, vae.data; print([name for name in {HEAVY} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True).stdout == "[]\n"


@pytest.mark.skipif("MNIST_DIR" not in os.environ, reason="MNIST_DIR does not name a folder with the files of MNIST")
def test_mnist_itself(tmp_path, monkeypatch):
    folder = Path(os.environ["MNIST_DIR"]).resolve()
    dataset = load(folder)
    assert (dataset.train_images.shape, dataset.test_images.shape) == ((60000, 28, 28), (10000, 28, 28))
    assert np.bincount(dataset.train_labels).tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert dataset.train_images.mean() == pytest.approx(33.318, abs=0.001)
    assert dataset.sha256 == "9beded8eb003dc0fbc1e56a426b0d438375b7129b796b2fe673dddfe8d9c40e5"
    monkeypatch.setenv("VAE_CACHE", str(tmp_path))
    shutil.copytree(folder, tmp_path / "mnist")
    assert loading.load(Options("mnist")).source == f"cache {tmp_path / 'mnist'}"
