"""evaluate.py: its metrics against NumPy, SciPy and Keras alone, what it prints and what it saves."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from conftest import full_disk, refuse, snapshot
from PIL import Image
from scipy.stats import multivariate_normal, norm
from tiny_runs import write_config

import evaluate
from vae import files, plots
from vae.data import load
from vae.data.batches import Batches
from vae.data.dataset import to_pixels
from vae.run import LOSSES, Run
from vae.runs import read_config

FEW = ("--importance-samples", "2", "--images", "20")


def measure(capsys, *arguments: str) -> tuple[dict, str]:
    """Return what `evaluate.py --json` prints, and its standard error."""
    capsys.readouterr()
    evaluate.main([*arguments, "--json"])
    printed = capsys.readouterr()
    assert printed.out.count("\n") == 1
    return json.loads(printed.out, parse_constant=lambda constant: 1 / 0), printed.err  # NaN is no JSON


def test_the_same_metrics_as_json_and_for_people(small_run, here, capsys):
    flags = ["--checkpoint", str(small_run.folder), "--dataset", "digits", *FEW]
    measured, said = measure(capsys, *flags)
    assert said == (
        f"-> Checkpoints are restored from {small_run.folder}\n"
        "-> 297 test images of digits (embedded in scikit-learn), binary pixels\n"
    )
    names = "general_loss reconstruction_loss kl_loss irreducible_loss standard_error nll nll_standard_error nll_images"
    names += " importance_samples active_units latent_dim label_accuracy parameters images checkpoint"
    assert list(measured) == names.split()
    parameters = Run.find(str(small_run.folder)).config["parameters"]
    counts = [measured[name] for name in ("images", "nll_images", "importance_samples", "latent_dim", "parameters")]
    assert [*counts, measured["checkpoint"]] == [297, 20, 2, 3, parameters, str(small_run.folder)]
    assert 0 < measured["label_accuracy"] < 1

    evaluate.main(flags)
    lines = dict(re.split(r": +", line, maxsplit=1) for line in capsys.readouterr().out.splitlines()[2:])
    m = {name: f"{value:.2f}" if isinstance(value, float) else value for name, value in measured.items()}
    unit = "nats per image"
    assert lines == {
        "General loss (negative ELBO)": f"{m['general_loss']} ± {m['standard_error']} {unit}",
        "Reconstruction loss": f"{m['reconstruction_loss']} {unit}",
        "KL-divergence loss": f"{m['kl_loss']} {unit}",
        "Negative log-likelihood": f"{m['nll']} ± {m['nll_standard_error']} {unit} (2 importance samples, 20 images)",
        "Irreducible part": f"{m['irreducible_loss']} {unit} (the loss of an image that is decoded exactly)",
        "Active units": f"{m['active_units']} of 3 latent dimensions",
        "Parameters": f"{parameters:,}",
        "Labels": f"{measured['label_accuracy']:.2%} right, by p(label | z); training sees no label",
    }


@pytest.fixture
def by_hand(small_run, monkeypatch) -> dict[str, np.ndarray]:
    """What each test image has, in batches of 100, of binary pixels, with seed 4; and the pixels."""
    monkeypatch.setattr(evaluate, "AT_ONCE", 100)
    dataset, run = load.load(load.Source("digits")), Run.find(str(small_run.folder))
    batches = Batches(dataset.test_images, 100, 4, binarize=True)
    pixels = np.concatenate([batches[index][0] for index in range(len(batches))])
    mean, log_var = run.load_encoder().predict(pixels, verbose=0)
    deviation = np.exp(log_var / 2)
    z = mean + deviation * np.random.default_rng(4).standard_normal(mean.shape, np.float32)
    p = run.load_decoder().predict(z, verbose=0).astype(np.float64)
    reconstruction = -np.log(np.where(pixels == 1, p, 1 - p)).sum(axis=(1, 2))
    prior = run.load_prior()
    densities = [
        weight * multivariate_normal(centre, factor @ factor.T).pdf(z)
        for weight, centre, factor in zip(prior.weights, prior.means, prior.factors.astype(np.float64), strict=True)
    ]
    kl = -norm.entropy(0, deviation).sum(axis=1) - np.log(np.sum(densities, axis=0))
    losses = {"reconstruction_loss": reconstruction, "kl_loss": kl, "general_loss": reconstruction + kl}
    return {"mean": mean, "log_var": log_var, "pixels": pixels, "labels": dataset.test_labels} | losses


def test_arrays_have_the_codes_and_losses_of_each_image(small_run, by_hand, here, capsys):
    """Against NumPy, SciPy and Keras alone."""
    flags = ["--checkpoint", str(small_run.folder), "--seed", "4", *FEW]
    measured, said = measure(capsys, *flags, "--arrays", "a.npz")
    assert said.splitlines()[-1] == "-> q(z|x) and losses of 297 test images are in a.npz"
    found = files.read_arrays(Path("a.npz"), "")
    assert list(found) == ["mean", "log_var", *LOSSES, "labels"]
    assert measure(capsys, *flags)[0] == measured
    for name, array in found.items():
        np.testing.assert_allclose(array, by_hand[name], rtol=1e-3, atol=1e-3, err_msg=name)
    for name in LOSSES:
        assert measured[name] == pytest.approx(found[name].mean())
    error = found["general_loss"].std(ddof=1) / np.sqrt(297)
    assert measured["standard_error"] == pytest.approx(error, rel=1e-4)
    assert measured["irreducible_loss"] == 0


def test_the_likelihood_is_of_the_chosen_images_and_their_own_codes(small_run, by_hand, here, monkeypatch, capsys):
    given = []

    def estimate(posterior, log_likelihood, prior, samples, seed):
        given.append((posterior, samples, seed))
        return -log_likelihood(posterior.images, posterior.mean)

    monkeypatch.setattr(evaluate.metrics, "estimate_nll", estimate)
    flags = ["--checkpoint", str(small_run.folder), "--seed", "4", "--images", "20", "--importance-samples", "7"]
    measured, _ = measure(capsys, *flags)
    ((posterior, *rest),) = given
    assert rest == [7, 4] and measured["nll_images"] == 20
    chosen = np.random.default_rng(4).permutation(297)[:20]
    np.testing.assert_array_equal(posterior.images, by_hand["pixels"][chosen])
    np.testing.assert_allclose(posterior.mean, by_hand["mean"][chosen], atol=1e-5)
    np.testing.assert_allclose(posterior.log_var, by_hand["log_var"][chosen], atol=1e-5)
    p = Run.find(str(small_run.folder)).load_decoder().predict(posterior.mean, verbose=0).astype(np.float64)
    nll = -np.log(np.where(posterior.images == 1, p, 1 - p)).sum(axis=(1, 2))
    assert measured["nll"] == pytest.approx(nll.mean(), rel=1e-5)
    assert measured["nll_standard_error"] == pytest.approx(nll.std(ddof=1) / np.sqrt(20), rel=1e-4)


def test_own_images_need_no_labels_and_a_full_disk_leaves_the_old_arrays(small_run, here, capsys):
    np.savez("own.npz", x_test=np.random.default_rng(0).integers(0, 256, (600, 28, 28), np.uint8))
    Path("a.npz").write_text("old")
    flags = ["--checkpoint", str(small_run.folder), "--data", "own.npz", "--arrays", "a.npz", *FEW]
    before = snapshot(here)
    with full_disk(6000):
        assert "a.npz cannot be written" in refuse(evaluate.main, flags)
    assert snapshot(here) == before
    measured, said = measure(capsys, *flags)
    assert "not the images that the model was trained on" in said and measured["label_accuracy"] is None
    assert {name: array.shape for name, array in files.read_arrays(Path("a.npz"), "").items()} == (
        {"mean": (600, 3), "log_var": (600, 3)} | dict.fromkeys(LOSSES, (600,))
    )
    for place, words in (("nowhere/a.npz", "no such folder"), (".", "it is a folder")):
        assert words in refuse(evaluate.main, ["--arrays", place])


def test_a_single_image_is_measured(small_run, here, capsys):
    np.savez("one.npz", images=np.random.default_rng(0).integers(0, 256, (1, 28, 28), np.uint8))
    measured, _ = measure(capsys, "--checkpoint", str(small_run.folder), "--data", "one.npz", *FEW)
    assert (measured["images"], measured["nll_images"]) == (1, 1)  # not the twenty that were asked for
    assert (measured["standard_error"], measured["nll_standard_error"]) == (None, None)


def test_the_latent_space_and_the_hundred_strangest_images_are_drawn(run_copy, here, monkeypatch, capsys):
    names, dataset = ["猫", *"abcdefghi"], load.load(load.Source("digits"))  # the font lacks the first
    write_config(run_copy, dataset=read_config(run_copy)["dataset"] | {"label_names": names})
    np.savez("own.npz", x_test=dataset.test_images, y_test=np.array(names)[dataset.test_labels])
    shown, draw = [], plots.strangest_images
    monkeypatch.setattr(plots, "strangest_images", lambda *given: shown.extend(given) or draw(*given))
    evaluate.main([*FEW, "--data", "own.npz", "--figures", ".", "--arrays", "a.npz"])
    lines = capsys.readouterr().err.splitlines()
    names = ["latent_map.png", "latent_dimensions.png", "strangest_images.png"]
    assert [line.split()[-1] for line in lines if "Figure is saved" in line] == names
    assert len([line for line in lines if "the numbers of these labels" in line]) == 1
    assert all(min(Image.open(name).size) > 300 for name in names)
    images, losses, title = shown
    all_losses = np.load("a.npz")["general_loss"]
    order = np.argsort(-all_losses)[:100]
    np.testing.assert_array_equal(losses, all_losses[order])
    np.testing.assert_array_equal(images, to_pixels(dataset.test_images[order]))
    assert title == "standard on own: the 100 strangest test images, row by row"
    assert "--figures nowhere: no such folder; make it" in refuse(evaluate.main, ["--figures", "nowhere"])


def test_grey_pixels_are_measured_as_binary_ones_and_gaussian_ones_are_not(run_copy, here, capsys):
    settings = read_config(run_copy)["settings"] | {"binarize": False}
    write_config(run_copy, settings=settings)
    measured = [measure(capsys, "--dataset", "digits", *FEW, *flag)[0] for flag in ([], ["--binarize"])]
    assert [metrics["irreducible_loss"] > 0 for metrics in measured] == [True, False]
    write_config(run_copy, settings=settings | {"likelihood": "gaussian"})
    assert "its pixels are Gaussian, so not binary" in refuse(evaluate.main, ["--binarize"])
