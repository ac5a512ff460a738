"""Settings: the flags and the defaults come from one table. What contradicts itself or has no effect is refused."""

import re

import pytest
from conftest import refuse

from main import parse
from vae import settings
from vae.settings import NETWORKS, complete


def test_flags_win_over_the_network_over_the_table():
    assert parse([]) == {} and parse(["--resume"]) == {"resume": ""}
    given = parse(["--network", "dense", "--epochs", "3", "--beta", "0", "--binarize"])
    assert given == {"network": "dense", "epochs": 3, "beta": 0.0, "binarize": True}
    found = complete(given)
    assert (found.epochs, found.beta, found.binarize) == (3, 0.0, True)
    assert (found.batch_size, found.validation_split, found.seed) == (256, 0.3, 0)


def test_help_says_the_defaults_that_training_takes(capsys):
    with pytest.raises(SystemExit):
        parse(["--help"])
    text = " ".join(capsys.readouterr().out.split())
    for network, own in NETWORKS.items():
        for name in ("epochs", "batch_size", "learning_rate", "latent_dim", "hidden_dim", "validation_split", "prior"):
            assert re.search(rf"{getattr(own, name)} for {network}\b", text)
    for name in ("beta", "importance_samples", "likelihood", "variance", "seed", "precision"):
        assert f"(default: {getattr(complete({}), name)})" in text


@pytest.mark.parametrize(
    "name, good, bad",
    [
        ("latent-dim", "1 1024", "0 1025 1.5"),
        ("image-size", "8 128", "4 9 132"),
        ("components", "1 1000", "0 1001"),
        ("beta", "0.0 1000000.0", "1e39 nan x"),
        ("variance", "1e-06 1000.0", "1e-7 1001"),
        ("validation-split", "0.0 0.999", "1"),
        ("epochs", "1 1000000", "0 1e3 1000001 two 2.5 " + "9" * 400),
        ("learning-rate", "0.001 5.0", "0 -0.0 nan inf 1e999 x"),
        ("seed", "0 4294967295", "-1 4294967296 1.5 " + "9" * 5000),
    ],
)
def test_values_outside_their_limits_are_refused_at_the_flag(name, good, bad, capsys):
    assert [str(*parse([f"--{name}", text]).values()) for text in good.split()] == good.split()
    for text in bad.split():
        with pytest.raises(SystemExit) as caught:
            parse([f"--{name}", text])
        assert caught.value.code == 2 and f"argument --{name}: '{text}' is not a " in capsys.readouterr().err


@pytest.mark.parametrize(
    "count, given, wanted",
    [
        (60_000, {}, (200, 34, 300)),  # MNIST
        (1500, {}, (50, 50, 30)),  # digits: 1,500 steps
        (100, {}, (3, 46, 2)),
        (1, {}, (1, 1500, 1)),
        (1500, {"batch_size": 64, "epochs": 2, "components": 7}, (64, 2, 7)),
        (1500, {"batch_size": 300}, (300, 300, 30)),
        (1500, {"network": "dense"}, (50, 50, None)),  # 30 of its epochs would be 900 steps
    ],
)
def test_the_defaults_fit_the_number_of_images_and_a_line_says_so(count, given, wanted, capsys):
    found, before = complete(given), complete(given)
    settings.fit_defaults(found, given, count)
    assert (found.batch_size, found.epochs, found.components) == wanted
    changed = (before.batch_size, before.epochs) != wanted[:2]
    line = "-> For {:,} training images, the run has --batch-size {} --epochs {}\n".format(count, *wanted[:2])
    assert capsys.readouterr().err == (line if changed else "")


@pytest.mark.parametrize(
    "words, refused, accepted",
    [
        ("--binarize: .*not Gaussian", {"binarize": True, "likelihood": "gaussian"}, {"likelihood": "gaussian"}),
        ("--beta: .*no KL term", {"beta": 4.0, "importance_samples": 2}, {"beta": 4.0}),
        ("--beta: .*no KL term", {"beta": 0.5, "importance_samples": 2}, {"importance_samples": 2}),
        ("--variance: .*--likelihood gaussian", {"variance": 0.01}, {"variance": 0.01, "likelihood": "gaussian"}),
        ("--components: .*--prior mixture", {"components": 7, "prior": "normal"}, {"components": 7}),
        ("--tensorboard: .*pip install tensorboard", {"tensorboard": True}, {}),
    ],
)
def test_settings_that_contradict_each_other_or_have_no_effect_are_refused(words, refused, accepted, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert re.match(words, refuse(settings.check, complete(refused), refused))
    settings.check(complete(accepted), accepted)
