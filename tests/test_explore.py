"""The page of explore.py in a real browser: the networks agree with Keras, and every part does what it says."""

import math
import os
import shutil
import sys
from argparse import Namespace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import ROOT, finish, refuse
from keras import Input, Model, layers
from selenium import webdriver
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.actions.action_builder import ActionBuilder
from selenium.webdriver.common.actions.pointer_input import PointerInput
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.wait import WebDriverWait

import explore
from model import logits_of
from vae.data import load
from vae.explorer import page
from vae.latent_map import choose_codes
from vae.networks import NETWORKS
from vae.run import Run
from vae.sampling import make_normal

SHIPPED = ROOT / "checkpoints" / "pretrained"
READY = "return document.body?.dataset.ready === 'yes'"
ENCODE = """return arguments[0].map((image) => {
  const { mean, logVar } = encode(Float32Array.from(image));
  return [...mean, ...logVar];
})"""
DECODE = "return arguments[0].map((z) => [...decode(Float32Array.from(z)).pixels])"


# ---- The browser


class Browser:
    """Headless Chromium."""

    def __init__(self, driver):
        self.driver = driver

    def open(self, page) -> None:
        self.resize(1440, "light")
        self.driver.get(page.as_uri())
        self.wait(READY)

    def run(self, script: str, *arguments):
        return self.driver.execute_script(script, *arguments)

    def wait(self, condition: str, *arguments) -> None:
        WebDriverWait(self.driver, 120, poll_frequency=0.05).until(lambda _: self.run(condition, *arguments))

    def find(self, name: str):
        return self.driver.find_element("css selector", name)

    def find_all(self, name: str) -> list:
        return self.driver.find_elements("css selector", name)

    @property
    def z(self) -> list[float]:
        """The latent vector that the page shows."""
        return self.run("return [...state.z]")

    def resize(self, width: int, scheme: str) -> None:
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})

    def trace(self, name: str, points: list, kind: str = "mouse", press: bool = True) -> None:
        """Move a pointer of that kind over points (in the unit square of an element), pressed or not."""
        element = self.find(name)
        self.run("arguments[0].scrollIntoView({ block: 'center' })", element)
        box = self.run("return arguments[0].getBoundingClientRect().toJSON()", element)
        actions = ActionBuilder(self.driver, mouse=PointerInput(kind, kind), duration=0)
        for number, (x, y) in enumerate(points):
            actions.pointer_action.move_to_location(
                round(box["x"] + x * box["width"]), round(box["y"] + y * box["height"])
            )
            if press and number == 0:
                actions.pointer_action.pointer_down()
        if press:
            actions.pointer_action.pointer_up()
        actions.perform()
        self.settle()

    def press(self, name: str, *keys: str) -> None:
        self.find(name).send_keys(*(getattr(Keys, key) for key in keys))
        self.settle()

    def settle(self) -> None:
        """Wait until what waits for the next frame is done."""
        self.driver.execute_async_script("requestAnimationFrame(() => requestAnimationFrame(arguments[0]))")


@pytest.fixture(scope="session")
def chromium():
    paths = [shutil.which(name) for name in ("chromium", "chromium-browser", "google-chrome")]
    path, driver = next(filter(None, paths), None), shutil.which("chromedriver")
    if path is None or driver is None:
        pytest.skip("no Chromium with chromedriver here (Debian: apt-get install chromium chromium-driver)")
    options = webdriver.ChromeOptions()
    options.binary_location = path
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    started = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield started
    started.quit()


@pytest.fixture
def browser(chromium):
    yield Browser(chromium)
    assert chromium.get_log("browser") == []  # no page has an error in its console
    chromium.get("about:blank")


# ---- Runs


def make_run(encoder, decoder, **settings) -> Run:
    """A run of these networks and the prior N(0, I), without a folder."""
    plain = {"network": "standard", "likelihood": "bernoulli", "variance": 0.01, "binarize": False}
    config = {"epochs_done": 3, "dataset": {}, "test": {"general_loss": 99.0}}
    run = Run(Namespace(**plain | settings), Path("run"), config)
    run.load_encoder = lambda decoder: encoder
    run.load_decoder = lambda image_shape: decoder
    run.load_prior = make_normal
    return run


def make_networks(name: str, shape: tuple[int, int], latent_dim: int):
    """A network with random weights in every layer, batch normalisation's statistics included."""
    rng = np.random.default_rng(0)
    networks = NETWORKS[name].build(shape, 16, latent_dim)
    for network in networks:
        for weight in network.weights:
            noise = 0.1 * rng.standard_normal(weight.shape)
            weight.assign(np.abs(weight + noise) if "variance" in weight.name else weight + noise)
    return networks


def make_dataset(shape: tuple[int, int], labels=range(5), count: int = 40, name: str = "blobs") -> SimpleNamespace:
    rng = np.random.default_rng(1)
    drawn = None if labels is None else rng.choice(list(labels), count)
    images = rng.integers(0, 256, (count, *shape), np.uint8)
    return SimpleNamespace(name=name, test_images=images, test_labels=drawn, label_names=None, notes=(), warning=None)


def write_page(folder, run, dataset):
    page = folder / "page.html"
    page.write_text(page.build_page(run, dataset), encoding="utf-8")
    return page


def check_agreement(browser, encoder, decoder) -> None:
    """Both networks of the open page give what Keras gives, for 100 images and vectors, to 1e-3."""
    rng = np.random.default_rng(2)
    images = rng.random((100, *encoder.input_shape[1:]), np.float32) ** 3
    z = rng.standard_normal((100, decoder.input_shape[1]), np.float32)
    found = np.array(browser.run(ENCODE, images.reshape(100, -1).tolist()))
    np.testing.assert_allclose(found, np.concatenate(encoder.predict(images, verbose=0), axis=1), atol=1e-3)
    found = np.array(browser.run(DECODE, z.tolist()))
    np.testing.assert_allclose(found, decoder.predict(z, verbose=0).reshape(100, -1), atol=1e-3)


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_agree_with_keras(name, browser, tmp_path, plain_keras):
    shape = (16, 12)  # high, not square: rows and columns are not mixed up
    networks = make_networks(name, shape, NETWORKS[name].latent_dim)
    browser.open(write_page(tmp_path, make_run(*networks), make_dataset(shape)))
    check_agreement(browser, *networks)


def test_layers_that_no_network_has_yet_agree_with_keras(browser, tmp_path, plain_keras):
    """A second LSTM over the columns, joined to the first; odd kernels, strides and pools; no bias."""
    image = Input((8, 12))
    columns = layers.LSTM(5)(layers.Permute((2, 1))(image))
    h = layers.Concatenate()([layers.Flatten()(layers.LSTM(3, return_sequences=True)(image)), columns])
    encoder = Model(image, [layers.Dense(3, use_bias=False)(h), layers.Dense(3, activation="tanh")(h)])
    z = Input((3,))
    h = layers.Reshape((2, 4, 3))(layers.Dense(24, activation="sigmoid")(z))
    h = layers.Conv2DTranspose(5, (2, 5), strides=(4, 3), padding="same", use_bias=False)(h)  # (8, 12, 5)
    h = layers.AveragePooling2D((3, 2), strides=(1, 1), padding="same")(layers.Dense(4)(h))
    h = layers.BatchNormalization(scale=False, center=False)(layers.Concatenate()([h, h]))
    logits = layers.Reshape((8, 12))(layers.Conv2DTranspose(1, (1, 3), padding="same")(h))
    decoder = Model(z, layers.Activation("sigmoid")(logits))
    browser.open(write_page(tmp_path, make_run(encoder, decoder), make_dataset((8, 12))))
    check_agreement(browser, encoder, decoder)


# ---- What is refused


def test_unknown_layer_is_refused_before_anything_is_written(here, monkeypatch):
    z = Input((3,))
    h = layers.Reshape((4, 4, 1))(layers.Dense(16)(z))
    unknown = Model(z, layers.Reshape((4, 4))(layers.Conv2D(1, 3, padding="same", name="sharpen")(h)), name="decoder")
    encoder, _ = NETWORKS["dense"].build((4, 4), 4, 3)
    run = make_run(encoder, unknown)
    monkeypatch.setattr(explore.Run, "find", lambda path: run)
    monkeypatch.setattr(load, "load_for_run", lambda *arguments: make_dataset((4, 4)))
    line = refuse(explore.main, ["--no-open"])
    assert "decoder.keras" in line and "'sharpen', a Conv2D" in line
    assert list(here.iterdir()) == []


@pytest.mark.parametrize(
    ("layer", "options", "named"),
    [
        ("LSTM", {"units": 4, "go_backwards": True}, "go_backwards True; it needs False"),
        ("LSTM", {"units": 4, "activation": "relu"}, "activation 'relu'; it needs tanh"),
        ("Dense", {"units": 4, "activation": "gelu"}, "activation 'gelu'; it needs linear or relu"),
    ],
)
def test_settings_that_it_cannot_run_are_refused(layer, options, named, plain_keras):
    image = Input((4, 4))
    network = Model(image, getattr(layers, layer)(**options)(image), name="encoder")
    assert named in refuse(page.describe_network, network, page.Arrays())


def test_images_must_fit(plain_keras):
    assert "decoder.keras" in refuse(page.build_page, Run.find(None), make_dataset((4, 8)))


def test_output_needs_a_folder(here):
    assert "no such folder" in refuse(explore.main, ["--output", "none/page.html"])


def codes_of(page, mean: np.ndarray, log_var: np.ndarray) -> np.ndarray:
    """Return the codes that the page draws for each mean and log_var (n, D): (8, n, D)."""
    noise = np.array(page.run("return [...facts.noise]")).reshape(-1, 1, mean.shape[1])
    return mean + np.exp(log_var / 2) * np.concatenate([noise, -noise])


# ---- Every kind of run


@pytest.mark.parametrize(
    "kind",
    [
        (1, range(5), {}),
        (2, None, {"binarize": True}),
        (2, range(3), {"likelihood": "gaussian"}),
        (4, [7], {}),
        (4, range(100, 170), {}),
    ],
)
def test_every_kind_of_run_has_a_page(kind, browser, tmp_path, plain_keras):
    latent_dim, labels, settings = kind
    networks = NETWORKS["dense"].build((8, 8), 4, latent_dim)
    browser.open(write_page(tmp_path, make_run(*networks, **settings), make_dataset((8, 8), labels)))
    assert browser.find("#each").is_displayed() == (labels is not None)
    browser.trace("#map", [(0.3, 0.3)])
    browser.trace("#pad", [(0.3, 0.3), (0.5, 0.7), (0.6, 0.2)])
    browser.find("#new").click()
    browser.find("#walk").click()
    label = browser.find("#picked h3").text
    assert label == "test image" if labels is None else int(label.split()[-1]) in labels
    image = np.array(browser.run("return [...imageOf(0)]"))
    mean, log_var = networks[0].predict(image.reshape(1, 8, 8), verbose=0)
    z = codes_of(browser, mean, log_var)[:, 0]  # (8, D)
    pixels = networks[1].predict(z, verbose=0).reshape(len(z), 64).astype(np.float64)
    losses = -image * np.log(pixels) - (1 - image) * np.log(1 - pixels)
    if "likelihood" in settings:
        losses = -np.log(np.exp(-((image - pixels) ** 2) / (2 * 0.01)) / math.sqrt(2 * math.pi * 0.01))
    expected = [losses.sum(axis=1).mean(), 0.5 * np.sum(mean**2 + np.exp(log_var) - log_var - 1)]
    found = browser.run("const r = read(imageOf(0)); return [r.reconstruction, r.kl]")
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3)


def test_one_image_and_codes_that_do_not_vary(browser, tmp_path, plain_keras):
    encoder, decoder = NETWORKS["dense"].build((8, 8), 4, 3)
    for weight in encoder.weights:
        weight.assign(np.zeros(weight.shape))
    for count in (1, 12):
        browser.open(write_page(tmp_path, make_run(encoder, decoder), make_dataset((8, 8), count=count)))
        browser.trace("#map", [(0.3, 0.3)])
        browser.find("#walk").click()


def test_names_are_shown_as_they_are(browser, tmp_path, plain_keras):
    name = "</script><b>{{page}}&amp;"
    run = make_run(*NETWORKS["dense"].build((8, 8), 4, 3))
    run.config["dataset"]["label_names"] = [name, "other"]
    browser.open(write_page(tmp_path, run, make_dataset((8, 8), range(2), name=name)))
    assert name in browser.find("#lede").text
    assert browser.find("#tiles button").text == name


def test_new_run_has_a_page_with_its_own_test_images(small_run, browser, tmp_path, plain_keras):
    page = tmp_path / "page.html"
    explore.main(["--checkpoint", str(small_run.folder), "--no-open", "--output", str(page)])
    browser.open(page)
    assert browser.run("return [facts.dataset, facts.binary]") == ["digits", True]
    load = plain_keras.saving.load_model
    check_agreement(browser, *(load(small_run.folder / f"{half}.keras") for half in ("encoder", "decoder")))


# ---- The shipped model: what the page does

STAND_IN = "import pathlib, sys; pathlib.Path(sys.argv[0]).with_name('opened').write_text(sys.argv[1])"


@pytest.fixture(scope="session")
def shipped_page(tmp_path_factory):
    """The page of the shipped model, by the script in a process of its own, which opens it in what BROWSER names.

    On its map are the digits of scikit-learn, which need no download.
    """
    folder = tmp_path_factory.mktemp("page")
    (folder / "browser.py").write_text(STAND_IN)
    browser = f'"{Path(sys.executable).as_posix()}" "{(folder / "browser.py").as_posix()}" %s'
    flags = ["--checkpoint", SHIPPED, "--dataset", "digits", "--output", folder / "page.html"]
    done = finish("explore.py", *flags, env=os.environ | {"BROWSER": browser})
    assert (done.returncode, done.stderr) == (0, "")
    assert f"The page is saved in {folder / 'page.html'}" in done.stdout
    return folder / "page.html"


@pytest.fixture
def shipped(shipped_page, browser):
    browser.open(shipped_page)
    return browser


def test_script_saves_a_small_page_and_opens_it(shipped_page):
    assert shipped_page.with_name("opened").read_text() == shipped_page.as_uri()
    assert shipped_page.stat().st_size <= 5e6


def test_shipped_model_agrees_with_keras_and_numpy(shipped, plain_keras):
    """Both networks; and reconstruction, KL and p(label | z) of ten images, with the noise of the page."""
    encoder, decoder = (plain_keras.saving.load_model(SHIPPED / f"{half}.keras") for half in ("encoder", "decoder"))
    check_agreement(shipped, encoder, decoder)
    mixture = Run.find(str(SHIPPED)).load_prior(decoder.input_shape[1])
    images = load.load(load.Options("digits")).test_images
    images = images[choose_codes(len(images))[:10]] / np.float32(255)
    mean, log_var = encoder.predict(images, verbose=0)
    z = codes_of(shipped, mean, log_var)  # (8, 10, D)
    logits = np.stack([logits_of(decoder).predict(own, verbose=0) for own in z]).astype(np.float64)
    reconstruction = (np.logaddexp(0, logits) - images * logits).sum(axis=(2, 3)).mean(axis=0)
    entropy = 0.5 * (log_var + 1 + math.log(2 * math.pi)).sum(axis=1)
    kl = -entropy - np.mean([mixture.log_prob(own) for own in z], axis=0)

    script = "return range(10).map((i) => { const r = read(imageOf(i)); return [r.reconstruction, r.kl, ...r.shares] })"
    found = np.array(shipped.run(script))
    np.testing.assert_allclose(found[:, 0], reconstruction, atol=0.1)
    np.testing.assert_allclose(found[:, 1], kl, atol=0.05)
    np.testing.assert_allclose(found[:, 2:], mixture.label_probabilities(mean), atol=5e-3)


def pixels_of(browser, name: str) -> np.ndarray:
    script = """const copy = new OffscreenCanvas(28, 28).getContext("2d", { willReadFrequently: true });
    copy.drawImage(document.querySelector(arguments[0]), 0, 0);
    return [...copy.getImageData(0, 0, 28, 28).data]"""
    return np.array(browser.run(script, name)).reshape(28, 28, 4)[:, :, 0] / 255


def test_map_decodes_under_the_pointer(shipped):
    assert not shipped.find("#lens").is_displayed()
    seen = []
    for place in ((0.3, 0.4), (0.7, 0.6)):
        shipped.trace("#map", [place], press=False)
        assert shipped.find("#lens").is_displayed()
        seen.append(pixels_of(shipped, "#lens canvas"))
        wanted = np.array(shipped.run("return [...decode(codeAt(arguments[0]).z).pixels]", place)).reshape(28, 28)
        assert np.abs(seen[-1] - wanted).mean() < 0.02  # the pointer is at whole pixels
    assert np.abs(seen[0] - seen[1]).mean() > 0.02
    shipped.trace("#map", [(1.1, 0.5)], press=False)
    assert not shipped.find("#lens").is_displayed()


def test_click_on_a_dot_shows_its_image(shipped):
    for kind, label in (("mouse", 6), ("touch", 0), ("pen", 3)):
        index = shipped.run(
            "return facts.classes.findIndex((own, i) => own === arguments[0] && spotOf(i).every((v) => v > 0.1))", label
        )
        shipped.trace("#map", [shipped.run("return spotOf(arguments[0])", index)], kind)
        assert shipped.find("#picked h3").text == f"test image, label {label}"
        wanted = np.array(shipped.run("return [...imageOf(arguments[0])]", index)).reshape(28, 28)
        np.testing.assert_allclose(pixels_of(shipped, "#picked .image"), wanted, atol=1 / 255)
        costs = shipped.run("const r = read(imageOf(arguments[0])); return [r.reconstruction, r.kl]", index)
        shown = shipped.find_all("#picked .costs b")
        np.testing.assert_allclose([float(part.text.split()[0]) for part in shown], [*costs, sum(costs)], atol=0.051)
        code = shipped.run("return [...codeOf(arguments[0])]", index)
        np.testing.assert_allclose(shipped.z, code, atol=0.01)


def test_dragged_finger_looks_but_does_not_click_and_the_keyboard_does_both(shipped):
    before = shipped.z
    shipped.trace("#map", [(0.2, 0.2), (0.4, 0.5), (0.7, 0.7)], "touch")
    assert shipped.z == before and not shipped.find("#lens").is_displayed()
    shipped.press("#map", "ARROW_LEFT", "ARROW_LEFT", "ARROW_UP")
    assert shipped.z == before and shipped.find("#lens").is_displayed()
    shipped.press("#map", *["ARROW_LEFT"] * 8, "ENTER")
    assert shipped.z != before


def test_sliders_change_one_dimension(shipped):
    spread = shipped.run(
        "return range(latents).map((d) => { const v = range(count).map((i) => codeOf(i)[d]);"
        "const m = v.reduce((a, b) => a + b) / count; return v.reduce((a, b) => a + (b - m) ** 2, 0) })"
    )
    order = [int(label.text) - 1 for label in shipped.find_all("#sliders sub")]
    assert order == sorted(order, key=lambda dimension: -spread[dimension])
    before, image = shipped.z, pixels_of(shipped, "#image")
    shipped.press("#sliders input", *["ARROW_RIGHT"] * 60)
    after = shipped.z
    assert [i for i in range(len(after)) if after[i] != before[i]] == [order[0]] and after[order[0]] > before[order[0]]
    assert np.abs(pixels_of(shipped, "#image") - image).mean() > 0.01
    assert shipped.find("#sliders output").text == f"{after[order[0]]:.1f}"


def test_buttons(shipped):
    seen = [shipped.z]
    for _ in range(2):
        shipped.find("#new").click()
        seen.append(shipped.z)
    assert len({tuple(z) for z in seen}) == 3
    shipped.find("#each").click()
    tiles = shipped.find_all("#tiles button")
    assert [tile.text for tile in tiles] == [str(digit) for digit in range(10)]
    for digit, tile in enumerate(tiles):
        tile.click()
        assert shipped.run("return labelShares(state.z)[arguments[0]]", digit) > 0.5
        assert f"label {digit}" in shipped.find("#label").text


def test_where_no_draw_is_sure_of_a_label_the_surest_stays(shipped):
    drawn = shipped.run("""
        const own = labelShares, seen = [];
        labelShares = (z) => [seen.push(z) === 4 ? 0.5 : 0.1];
        const place = seen.indexOf(drawLabel(0));
        labelShares = own;
        return [seen.length, place];
    """)
    assert drawn == [11, 3]


def test_walk_passes_over_test_images_to_another_label(shipped):
    assert "Walk" in shipped.find("#walk").text
    shipped.find("#walk").click()
    path = shipped.run("return state.path")
    classes = shipped.run("return [...facts.classes]")
    assert len(path) > 1 and classes[path[0]] != classes[path[-1]] and shipped.find("#walk").text == "Stop here"
    shipped.wait("return state.frame === 0")
    end = shipped.run("return [...codeOf(arguments[0])]", path[-1])
    np.testing.assert_allclose(shipped.z, end, atol=1e-5)
    shipped.find("#walk").click()
    shipped.settle()
    shipped.find("#walk").click()  # stops it where it is
    assert shipped.run("return state.frame") == 0 and "Walk" in shipped.find("#walk").text


def arc(centre, radii, angles) -> list[tuple[float, float]]:
    """Points on an ellipse; angles in degrees, clockwise from the right."""
    return [
        (centre[0] + radii[0] * math.cos(math.radians(a)), centre[1] + radii[1] * math.sin(math.radians(a)))
        for a in np.linspace(*angles, 20)
    ]


DIGITS = [  # the strokes of each, in the unit square
    [arc((0.5, 0.5), (0.2, 0.3), (-80, 280))],
    [[(0.56, 0.2), (0.5, 0.5), (0.45, 0.8)]],
    [[*arc((0.5, 0.35), (0.18, 0.16), (-170, 40)), (0.45, 0.65), (0.3, 0.8), (0.45, 0.76), (0.58, 0.8), (0.72, 0.77)]],
    [arc((0.48, 0.34), (0.17, 0.14), (-160, 80)) + arc((0.48, 0.64), (0.2, 0.17), (-80, 150))],
    [[(0.36, 0.2), (0.3, 0.5), (0.5, 0.52), (0.68, 0.48)], [(0.66, 0.2), (0.62, 0.5), (0.58, 0.82)]],
    [[(0.7, 0.2), (0.42, 0.21), (0.38, 0.46), *arc((0.48, 0.62), (0.2, 0.18), (-120, 140))]],
    [[(0.62, 0.18), (0.45, 0.35), (0.36, 0.58), *arc((0.5, 0.66), (0.14, 0.15), (180, -180))]],
    [[(0.28, 0.24), (0.5, 0.22), (0.7, 0.22), (0.6, 0.45), (0.5, 0.62), (0.46, 0.82)]],
    [
        [
            *[(0.66, 0.26), *arc((0.5, 0.33), (0.15, 0.13), (-30, -230))],
            *[*arc((0.5, 0.65), (0.17, 0.17), (-60, 200)), (0.45, 0.52), (0.6, 0.42), (0.66, 0.28)],
        ]
    ],
    [[*arc((0.5, 0.36), (0.16, 0.15), (-20, -380)), (0.64, 0.45), (0.62, 0.62), (0.56, 0.82)]],
]


READ_DRAWINGS = """return arguments[0].map((strokes) => {
  const { image, pixels, mean, reconstruction, kl, shares } = read(rasterise(strokes));
  const [{ index }] = findNearest(facts.map.places, spotAt(mean), 1);
  return { image: [...image], pixels: [...pixels], shares: [...shares], cost: reconstruction + kl,
    label: facts.classes[index] };
})"""


def test_drawn_digits_are_read(shipped):
    drawings = shipped.run(READ_DRAWINGS, DIGITS)
    for digit, drawn in enumerate(drawings):
        assert np.corrcoef(drawn["image"], drawn["pixels"])[0, 1] > 0.8
        assert drawn["shares"][digit] > 0.8
        assert 20 < drawn["cost"] < 200
    labels = np.array([drawn["label"] for drawn in drawings])
    assert (labels == range(10)).sum() >= 6  # the dots are digits of another data set


def test_pad_shows_what_is_read_in_the_strokes(shipped):
    for kind, digit in (("mouse", 4), ("touch", 1), ("pen", 7)):
        shipped.find("#clear").click()
        for stroke in DIGITS[digit]:
            shipped.trace("#pad", stroke, kind)
        (drawn,) = shipped.run(READ_DRAWINGS, [DIGITS[digit]])
        image, pixels = (np.reshape(drawn[name], (28, 28)) for name in ("image", "pixels"))
        assert np.abs(pixels_of(shipped, "#drawn .image") - image).mean() < 0.02  # the pointer is at whole pixels
        assert np.abs(pixels_of(shipped, "#drawn .pair > :last-child canvas") - pixels).mean() < 0.02
        texts = shipped.find("#drawn .shares").text.split()[-20:]  # the ten labels and their shares
        shares = {name: float(text.removesuffix("%")) for name, text in zip(texts[::2], texts[1::2], strict=True)}
        assert max(shares, key=shares.get) == str(digit) and shares[str(digit)] > 80
        cost = float(shipped.find("#drawn .costs b:last-of-type").text.split()[0])
        assert cost == pytest.approx(drawn["cost"], abs=5)


def test_drawing_is_centred_and_scaled_as_mnist(shipped):
    """Small in a corner, or large: about the same image, 20 pixels in size, its centre of mass in the middle."""
    shape = np.array(DIGITS[3][0])
    seen = []
    for scale, shift in ((0.3, 0.0), (1.1, -0.05)):
        image = np.array(shipped.run("return [...rasterise([arguments[0]])]", (scale * shape + shift).tolist()))
        image = image.reshape(28, 28)
        rows, columns = (np.flatnonzero(image.max(axis=axis) > 0.5) for axis in (1, 0))
        assert max(np.ptp(rows), np.ptp(columns)) + 1 in (19, 20, 21)
        middle = [np.average(np.arange(28), weights=image.sum(axis=axis)) for axis in (1, 0)]
        np.testing.assert_allclose(middle, 14, atol=0.1)
        seen.append(image)
    assert np.abs(seen[0] - seen[1]).max() < 0.1
    dot = np.array(shipped.run("return [...rasterise([[[0.1, 0.1]]])]"))
    assert 2 < dot.sum() < 20


def test_pad_undoes_clears_and_has_a_keyboard(shipped):
    hidden = "return document.querySelector('#hint').hidden"
    assert "example" in shipped.find("#hint").text
    shipped.trace("#pad", [(0.3, 0.3), (0.6, 0.6)])
    assert shipped.run(hidden) is True
    shipped.find("#undo").click()
    assert shipped.run(hidden) is False
    before = shipped.z
    shipped.run("document.getElementById('pad').focus()")
    ActionChains(shipped.driver).key_down(Keys.SHIFT).send_keys(*[Keys.ARROW_DOWN] * 9).key_up(Keys.SHIFT).perform()
    shipped.settle()
    assert shipped.run(hidden) is True and shipped.z != before
    shipped.press("#pad", "ESCAPE")
    assert shipped.run(hidden) is False


MILLISECONDS = """const times = range(200).map((i) => {
  const start = performance.now();
  arguments[0] === "decode" ? decode(codeOf(i)) : encode(imageOf(i));
  return performance.now() - start;
});
return times.slice(20).sort((a, b) => a - b)"""


def test_networks_are_fast_enough_to_follow_a_finger(shipped):
    """The times are printed."""
    for what in ("decode", "encode"):
        times = shipped.run(MILLISECONDS, what)  # without the first calls, in which the browser compiles
        median = times[len(times) // 2]
        print(f"{what}: median {median:.1f} ms ({times[0]:.1f}-{times[-1]:.1f}, {len(times)} times)")
        assert median < 100  # also where other processes run


def test_page_loads_nothing_and_fits_every_width(shipped):
    loaded = "return performance.getEntriesByType('resource').map((r) => r.name).filter((n) => !n.startsWith('data:'))"
    assert shipped.run(loaded) == []
    for width in (390, 768, 1440):
        for scheme in ("light", "dark"):
            shipped.resize(width, scheme)
            shipped.settle()
            assert shipped.run("return document.documentElement.scrollWidth") <= width
            colour = "return getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)"
            assert (max(shipped.run(colour)) < 60) == (scheme == "dark")
