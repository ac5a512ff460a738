"""Settings: flags and config.json come from one table, and both are read by the same rules."""

import re
from pathlib import Path

import pytest
from conftest import refuse

from vae import settings
from vae.settings import NETWORKS, SETTINGS, complete, read_settings
from vae.terminal import Parser

PATH = Path("config.json")


def parse(*arguments: str) -> dict:
    parser = Parser(prog="main.py")
    settings.add_flags(parser)
    return vars(parser.parse_args(arguments))


def test_only_flags_that_were_given_appear():
    assert parse() == {}
    given = parse(
        "--latent-dim", "3", "--learning-rate", "1e-3", "--binarize", "--name", "mine", "--likelihood", "gaussian"
    )
    wanted = {"latent_dim": 3, "learning_rate": 0.001, "binarize": True, "name": "mine", "likelihood": "gaussian"}
    assert given == wanted


def test_help_says_the_defaults_that_training_takes():
    parser = Parser(prog="main.py")
    settings.add_flags(parser)
    text = " ".join(parser.format_help().split())
    defaults = vars(complete({}))
    assert defaults.keys() == {setting.name for setting in SETTINGS}
    for name in ("epochs", "batch_size", "learning_rate", "latent_dim", "hidden_dim", "validation_split", "prior"):
        for network, own in NETWORKS.items():
            value = getattr(own, name)
            assert vars(complete({"network": network}))[name] == value
            assert re.search(rf"{value} for {network}\b", text)
    for name in ("beta", "importance_samples", "likelihood", "variance", "seed", "precision"):
        assert f"(default: {defaults[name]})" in text
    assert text.count("default: off") == sum(setting.read is bool for setting in SETTINGS)


def test_what_was_given_wins_over_the_network_over_the_table():
    found = complete({"network": "dense", "epochs": 3, "beta": 0.0, "data": None})
    assert (found.network, found.epochs, found.beta, found.data) == ("dense", 3, 0.0, None)
    assert (found.batch_size, found.validation_split, found.seed) == (256, 0.3, 0)


@pytest.mark.parametrize(
    "count, given, batch_size, epochs, components",
    [
        (60_000, {}, 100, 50, 300),  # MNIST
        (1500, {}, 50, 50, 30),  # digits: 1,500 steps
        (100, {}, 3, 50, 2),
        (10, {}, 1, 150, 1),
        (1, {}, 1, 1500, 1),
        (1500, {"batch_size": 64, "epochs": 2, "components": 7}, 64, 2, 7),
        (1500, {"batch_size": 300}, 300, 300, 30),
        (60_000, {"epochs": 5}, 100, 5, 300),
        (1500, {"network": "dense"}, 50, 50, None),  # 30 of its epochs would be 900 steps
    ],
)
def test_the_defaults_fit_the_number_of_images(count, given, batch_size, epochs, components):
    found = complete(given)
    settings.fit_defaults(found, given, count)
    assert (found.batch_size, found.epochs, found.components) == (batch_size, epochs, components)


@pytest.mark.parametrize("given, line", [({}, "--batch-size 1 --epochs 50"), ({"batch_size": 20, "epochs": 3}, None)])
def test_a_line_says_that_the_defaults_are_others(given, line, capsys):
    settings.fit_defaults(complete(given), given, 54)
    said = capsys.readouterr().err
    assert said == (f"-> For 54 training images, the defaults become {line}\n" if line else "")


def test_settings_are_read_as_they_were_saved():
    saved = vars(
        complete(
            parse("--network", "plane", "--data", "ä.npz", "--likelihood", "gaussian", "--seed", "4294967295")
            | parse("--prior", "mixture", "--components", "7")
        )
    )
    assert vars(read_settings({"settings": saved}, PATH)) == saved


def test_an_older_run_has_the_defaults_of_what_it_does_not_say():
    found = read_settings({"settings": {"network": "posterior", "unknown": 5}}, PATH)
    assert found.network == "softplus" and found.likelihood == "bernoulli" and found.latent_dim == 2
    assert read_settings({"settings": {}}, PATH).prior == "normal" and complete({}).prior == "mixture"
    assert not hasattr(found, "unknown")


IMPOSSIBLE = [
    ("network", "none"),
    ("network", []),
    ("dataset", "cifar"),
    ("data", 7),
    ("epochs", -1),
    ("epochs", True),
    ("epochs", 2.5),
    ("hidden_dim", 10**5),  # it would take 160 GB
    ("latent_dim", 1025),
    ("batch_size", "64"),
    ("seed", 1.5),
    ("beta", float("nan")),
    ("beta", None),
    ("learning_rate", 10**400),
    ("learning_rate", 0),
    ("validation_split", 1),
    ("prior", "flow"),
    ("components", 0),
    ("components", 1001),
    ("variance", 1e-9),
    ("likelihood", "poisson"),
    ("binarize", 1),
    ("precision", {}),
    ("name", ["x" * 10**4]),
]


@pytest.mark.parametrize("name, value", IMPOSSIBLE)
def test_settings_that_no_command_line_could_give_are_refused(name, value):
    line = refuse(read_settings, {"settings": {name: value}}, PATH)
    assert line.startswith(f"config.json: {name} cannot be ") and len(line) < 150


CONTRADICTIONS = {
    "--overwrite: which run": {"overwrite": True},
    "--dataset: it contradicts --data": {"data": "x.npz", "dataset": "digits"},
    "--binarize: .*not Gaussian": {"binarize": True, "likelihood": "gaussian"},
    "--beta: .*no KL term": {"importance_samples": 2, "beta": 4.0},
    "--tensorboard: .*pip install tensorboard": {"tensorboard": True},
}


@pytest.mark.parametrize("words, given", CONTRADICTIONS.items())
def test_settings_that_contradict_each_other_are_refused(words, given, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert re.match(words, refuse(settings.check, complete(given)))
    settings.check(complete({name: value for name, value in given.items() if name not in words.split(":")[0]}))


def test_settings_that_fit_together_are_not_refused(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    for given in ({"overwrite": True, "name": "a"}, {"importance_samples": 5}, {"beta": 4.0}, {"tensorboard": True}):
        settings.check(complete(given))
    assert settings.variance_of(complete({"variance": 0.5})) is None
    assert settings.variance_of(complete({"variance": 0.5, "likelihood": "gaussian"})) == 0.5
