"""The page of explore.py in a real browser: it agrees with Keras, and every part does what it says."""

import re
import shutil
import zlib
from argparse import Namespace
from base64 import b64decode
from pathlib import Path
from types import SimpleNamespace
from urllib.request import urlopen

import numpy as np
import pytest
from conftest import ROOT, refuse
from keras import Input, Model, layers
from PIL import Image
from selenium.webdriver import ActionChains, Chrome, ChromeOptions, ChromeService, Keys
from selenium.webdriver.common.actions.pointer_input import PointerInput
from selenium.webdriver.support.wait import WebDriverWait

import explore
from model import LOG_2PI, logits_of, reconstruction_loss
from vae.data import public
from vae.explorer import page
from vae.networks import NETWORKS
from vae.sampling import Mixture, make_normal
from vae.settings import variance_of

MODEL = ROOT / "checkpoints" / "pretrained"
SHIPPED = ROOT / "docs" / "explorer.html"  # the page of the shipped model, of images that it draws
SHAPE = (16, 12)  # of images: high, not square, so that rows and columns are not mixed up


class Browser(Chrome):
    """Headless Chromium, with the network off."""

    run = Chrome.execute_script

    def find(self, name: str):
        return self.find_element("css selector", name)

    def find_all(self, name: str) -> list:
        return self.find_elements("css selector", name)

    @property
    def z(self) -> list[float]:
        """The latent vector that the page shows."""
        return self.run("return [...state.z]")

    def open(self, path: Path) -> None:
        self.get(path.as_uri())
        self.wait("return document.body?.dataset.ready === 'yes' && Array.from(state.reading.rows).every(Boolean)")
        self.settle()

    def wait(self, condition: str) -> None:
        WebDriverWait(self, 60, poll_frequency=0.02).until(lambda _: self.run(condition))

    def settle(self) -> None:
        """Wait until what waits for the next frame is done."""
        self.execute_async_script("requestAnimationFrame(() => requestAnimationFrame(arguments[0]))")

    def click(self, name: str) -> None:
        self.find(name).click()
        self.settle()

    def press(self, name: str, *keys: str) -> None:
        self.find(name).send_keys(*keys)
        self.settle()

    def trace(self, name: str, points: list, kind: str = "mouse", press: bool = True) -> None:
        """Move a pointer of that kind over points (in the unit square of an element), pressed or not."""
        element = self.find(name)
        self.run("arguments[0].scrollIntoView({ block: 'center' })", element)
        actions = ActionChains(self, duration=0, devices=[PointerInput(kind, kind)])
        for number, (x, y) in enumerate(points):  # from its middle, in pixels
            from_middle = (round((x - 0.5) * element.rect["width"]), round((y - 0.5) * element.rect["height"]))
            actions.move_to_element_with_offset(element, *from_middle)
            if press and number == 0:
                actions.click_and_hold()
        if press:
            actions.release()
        actions.perform()
        self.settle()

    def read_pixels(self, name: str) -> np.ndarray:
        """The bytes of a canvas: (height, width, 4)."""
        with urlopen(self.run("return document.querySelector(arguments[0]).toDataURL()", name)) as png:
            return np.asarray(Image.open(png).convert("RGBA"), int)


@pytest.fixture(scope="session")
def chromium():
    options = ChromeOptions()
    options.binary_location = shutil.which("chromium") or shutil.which("google-chrome")
    if not options.binary_location or not shutil.which("chromedriver"):
        pytest.skip("no Chromium with chromedriver here (Debian: apt-get install chromium chromium-driver)")
    for argument in ("headless=new", "no-sandbox", "disable-gpu", "disable-dev-shm-usage", "window-size=1440,1040"):
        options.add_argument(f"--{argument}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    with Browser(options, ChromeService(shutil.which("chromedriver"))) as started:
        started.set_network_conditions(offline=True, latency=0, throughput=0)
        yield started


@pytest.fixture
def browser(chromium):
    yield chromium
    assert chromium.get_log("browser") == []  # no page has an error in its console


@pytest.fixture
def shipped(browser):
    """The page of the shipped model; it stays open from test to test."""
    if browser.current_url != SHIPPED.as_uri():
        browser.open(SHIPPED)
    return browser


def make_run(shape: tuple[int, int], prior: Mixture, network: str = "dense", names=(), **settings) -> SimpleNamespace:
    """What a page needs of a run. The weights of every layer are random, batch normalisation's statistics included."""
    rng = np.random.default_rng(0)
    encoder, decoder = NETWORKS[network].build(shape, 16, prior.means.shape[1])
    for weight in (*encoder.weights, *decoder.weights):
        noisy = weight + 0.1 * rng.standard_normal(weight.shape)
        weight.assign(np.abs(noisy) if "variance" in weight.name else noisy)
    plain = {"network": network, "likelihood": "bernoulli", "variance": 0.01, "binarize": False}
    return SimpleNamespace(
        settings=Namespace(**plain | settings),
        config={"epochs_done": 3, "dataset": {"name": "blobs"}, "test": {"general_loss": 99.0}},
        label_names=list(names),
        load_encoder=lambda: encoder,
        load_decoder=lambda: decoder,
        load_prior=lambda: prior,
    )


def make_mixture(latent_dim: int, labels: list[int]) -> Mixture:
    """Three random Gaussians that know these labels."""
    rng = np.random.default_rng(3)
    factors = np.tril(rng.normal(0, 0.3, (3, latent_dim, latent_dim)), -1) + np.eye(latent_dim)
    arrays = [[0.2, 0.3, 0.5], rng.standard_normal((3, latent_dim)), factors, labels]
    return Mixture(*map(np.float32, arrays[:3]), np.array(labels), np.float32(rng.dirichlet(np.ones(len(labels)), 3)))


def make_dataset(shape: tuple[int, int], labels=range(5), count: int = 40) -> SimpleNamespace:
    rng = np.random.default_rng(1)
    drawn = None if labels is None else rng.choice(list(labels), count)
    images = rng.integers(0, 256, (count, *shape), np.uint8)
    return SimpleNamespace(name="blobs", test_images=images, test_labels=drawn, label_names=None)


def write_page(folder: Path, run, dataset) -> Path:
    path = folder / "page.html"
    path.write_text(page.build_page(run, dataset), encoding="utf-8")
    return path


@pytest.mark.parametrize("name", NETWORKS)
def test_page_agrees_with_keras(name, browser, tmp_path):
    latent_dim = NETWORKS[name].latent_dim
    prior = make_mixture(latent_dim, [0, 1, 2, 3, 4]) if name in ("standard", "dense") else make_normal(latent_dim)
    run = make_run(SHAPE, prior, name)
    encoder, decoder = run.load_encoder(), run.load_decoder()
    browser.open(write_page(tmp_path, run, make_dataset(SHAPE)))
    image = np.float32(browser.run("return [...state.reading.image]")).reshape(1, *SHAPE)
    mean, log_var = map(np.array, encoder(image))
    found = browser.run("return [[...state.reading.mean], [...state.reading.std]]")
    np.testing.assert_allclose(found, np.concatenate([mean, np.exp(log_var / 2)]), atol=1e-3)
    check_losses(browser, image, run)
    check_stages(browser, Model(decoder.input, {layer.name: layer.output for layer in decoder.layers})(mean))

    # After each row: the mean of q(z | first rows, the rest paper), and p(label | z).
    paper, rows = np.float32(browser.run("return paper")), np.arange(SHAPE[0])[:, None]
    means = np.array(encoder(np.stack([np.where(rows < seen, image[0], paper) for seen in range(SHAPE[0] + 1)]))[0])
    read = browser.run("return state.reading.rows.map(({ mean, shares }) => [[...mean], [...shares]])")
    np.testing.assert_allclose([mean for mean, _ in read], means, atol=1e-3)
    if not prior.is_normal:
        np.testing.assert_allclose([shares for _, shares in read], prior.label_probabilities(means), atol=1e-3)

    # The picture of each LSTM has a row for each number of its state, and a column for each step.
    for number, lstm in enumerate((layer for layer in encoder.layers if isinstance(layer, layers.LSTM)), 1):
        every_step = layers.LSTM.from_config(lstm.get_config() | {"return_sequences": True})
        states = Model(encoder.input, every_step(lstm.input))
        every_step.set_weights(lstm.get_weights())
        picture = browser.read_pixels(f"#states > :nth-child({number}) canvas")[:, :, 3]
        np.testing.assert_allclose(picture, measure_opacity(np.array(states(image))[0].T), atol=3)

    # Each number of z has a text, and a line from mean - std to mean + std.
    mean, std = found
    texts = browser.find("#z-bars svg").get_attribute("aria-label").split(", ")
    order = [int(text[1 : text.index(":")]) - 1 for text in texts]
    assert texts == [f"z{i + 1}: {mean[i]:.2f} ± {std[i]:.2f}" for i in order] and len(set(order)) == latent_dim
    reach = np.array([np.subtract(mean, std), np.add(mean, std)]).T[order]
    lines = [line.get_attribute("d") for line in browser.find_all("#z-bars g path")]
    ends = [[float(y) for y in re.split("[ V]", line)[1:]] for line in lines]  # from the top, 0, to the bottom, 100
    np.testing.assert_allclose(ends, 50 - 50 * reach / np.abs(reach).max(), atol=1e-3)


def check_losses(browser, image: np.ndarray, run) -> None:
    """Each pixel's loss, each dimension's log q(z|x), log p(z) and the total: for the same codes as on the page."""
    mean, log_var = map(np.array, run.load_encoder()(image))
    noise = np.array(browser.run("return [...facts.noise]")).reshape(-1, mean.shape[1])
    z = np.float32(mean + np.exp(log_var / 2) * np.concatenate([noise, -noise]))  # (8, D)
    logits = np.array(logits_of(run.load_decoder())(z))
    pixels = [array[..., None, None] for array in (image, logits)]  # each is an image of its own
    losses = np.mean(reconstruction_loss(*pixels, variance_of(run.settings)), axis=0).ravel()
    log_q = -0.5 * np.ravel(log_var + 1 + LOG_2PI)
    log_prior = run.load_prior().log_prob(z).mean()
    if run.load_prior().is_normal:  # its expectation is exact
        log_prior = -0.5 * np.sum(mean**2 + np.exp(log_var) + LOG_2PI)
    total = losses.sum() + log_q.sum() - log_prior
    found = browser.run("const r = state.reading; return [...r.pixelLosses, ...r.logQ, r.reconstruction + r.kl]")
    np.testing.assert_allclose(found, [*losses, *log_q, total], rtol=1e-3, atol=1e-3)
    shown = [float(number.text) for number in browser.find_all("#picked .costs b, .sum dd")]
    wanted = [losses.sum(), total - losses.sum(), total, losses.sum(), log_q.sum(), -log_prior, total]
    np.testing.assert_allclose(shown, wanted, rtol=1e-3, atol=0.06)
    ends = [float(browser.find(f"#heat-{end}").text) for end in ("low", "high")]
    np.testing.assert_allclose(ends, [losses.min(), losses.max()], atol=0.01)
    opacity = browser.read_pixels("#heat")[:, :, 3].ravel() / 255
    np.testing.assert_allclose(opacity, (losses - losses.min()) / np.ptp(losses), atol=0.01)


def measure_opacity(values: np.ndarray) -> np.ndarray:
    """Return how opaque the page paints values: 255 where they are largest."""
    return 255 * np.sqrt(np.abs(values) / np.abs(values).max())


def check_stages(browser, outputs: dict) -> None:
    """The text of each stage has its name, its shape and the line where it is made; its picture a tile for each map."""
    for button in browser.find_all("#stages button"):
        button.send_keys(Keys.ENTER)  # as by keyboard
        text = browser.find("#stage-text").text
        name, path, line, code = re.fullmatch(r"(\w+): .+\.\n(\S+), line (\d+): (.*)", text).groups()
        assert button.get_attribute("aria-pressed") == "true" and button.text.startswith(name)
        values = np.array(outputs[name])[0]
        assert " × ".join(map(str, values.shape)) in text
        assert code == (ROOT / path).read_text(encoding="utf-8").splitlines()[int(line) - 1].strip()
        assert f'"{name}"' in code or f'f"{name[:-1]}{{number}}"' in code
        found = browser.run("return [...state.reading.stages[arguments[0]].data]", name)
        np.testing.assert_allclose(found, values.ravel(), atol=3e-3)  # large matrices are stored as float16
        if values.ndim == 3 and values.shape[2] > 1:  # the second tile of the first row
            tile = browser.read_pixels("#stage")[: values.shape[0], values.shape[1] + 1 :][:, : values.shape[1], 3]
            np.testing.assert_allclose(tile, measure_opacity(values)[:, :, 1], atol=3)
    assert name == "pixels"


def test_line_of_a_layer_is_that_of_its_own_half():
    lines = [page._find_line(NETWORKS["softplus"].build, "dense1", half) for half in ("encoder", "decoder")]
    assert ["Dense(200" in line for line in lines] == [True, False]
    assert page._find_line(NETWORKS["softplus"].build, "of somebody else", "decoder") is None


@pytest.mark.parametrize("layer", [layers.Conv2D(1, 3, padding="same"), layers.Dense(1, "gelu", name="odd")])
def test_unknown_layer_is_refused(layer):
    maps = Input((4, 4, 1))
    line = refuse(page._describe_network, Model(maps, layer(maps), name="decoder"), NETWORKS["dense"].build)
    assert f"decoder.keras: the page cannot run its layer '{layer.name}' ({type(layer).__name__}" in line


KINDS = [  # latent dimensions, labels, images, settings
    (1, None, 40, {"binarize": True}),
    (2, range(3), 12, {"likelihood": "gaussian"}),
    (4, range(100, 170), 40, {}),
    (3, [7], 1, {}),
]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_run_has_a_page(kind, browser, tmp_path):
    latent_dim, labels, count, settings = kind
    shape = (104, 24) if count == 1 else (8, 8)
    run = make_run(shape, make_normal(latent_dim), **settings)
    browser.open(write_page(tmp_path, run, make_dataset(shape, labels, count)))
    assert browser.find("#rows").get_property("value") == str(shape[0])
    assert browser.find("#each").is_displayed() == bool(browser.find_all("#curves")) == (labels is not None)
    browser.trace("#map", [(0.3, 0.3)])
    title = browser.find("#picked h3").text
    assert title == "test image" if labels is None else int(title.split()[-1]) in labels
    image = np.float32(browser.run("return [...state.reading.image]")).reshape(1, *shape)
    assert (set(image.ravel()) == {0, 1}) == ("binarize" in settings)
    check_losses(browser, image, run)
    browser.trace("#pad", [(0.3, 0.3), (0.5, 0.7), (0.6, 0.2)])
    browser.click("#new")
    browser.click("#walk")


def test_label_that_the_prior_lacks_shows_no_other_class(browser, tmp_path):
    """Label 0 is on the map alone: its tile is the code of an image with it. Label 4 has no probability, no image."""
    prior, names = make_mixture(4, [1, 2, 4]), ["zero", "one", "</script><b>{{page}}&amp;"]
    prior.class_shares[:, 2] = 0
    run = make_run((8, 8), prior, names=names)
    browser.open(write_page(tmp_path, run, make_dataset((8, 8), [0, 2])))
    tiles = browser.find_all("#tiles button")
    assert [tile.text for tile in tiles] == names  # as they are: they are not HTML
    tiles[0].click()
    codes, classes = browser.run("return [range(count).map((i) => [...codeOf(i)]), [...facts.classes]]")
    assert classes[codes.index(browser.z)] == 0
    drawn = browser.run("""const seen = [];
        labelShares = (z) => [0, seen.push(z) === 4 ? 0.5 : 0.1];
        return [seen.indexOf(drawLabel(1)), seen.length]""")
    assert drawn == [3, 11]  # where no draw is sure of a label, the surest stays


def test_ink_and_paper_are_those_of_most_images(browser, tmp_path):
    """The pad has them, too."""
    dataset = make_dataset((12, 12), None, 5)
    dataset.test_images[:] = 255
    dataset.test_images[:, 4:8, 5:7] = 60  # strokes
    dataset.test_images[0, :, 0] = 30  # one that touches the border
    for images, paper, ink in ((dataset.test_images, 255, 60), (255 - dataset.test_images, 0, 195)):
        np.testing.assert_allclose(page._find_paper_and_ink(images), [paper / 255, ink / 255])
    browser.open(write_page(tmp_path, make_run((12, 12), make_normal(4)), dataset))
    example = browser.read_pixels("#drawn .image")[:, :, 0]
    assert example[[0, -1]].min() == 255 and 60 <= example.min() < 80
    assert "the rest is white" in browser.find("#rows-part").text
    assert browser.find("#latent-part h2").text == "The numbers behind an image"


def split_page(path: Path) -> tuple[str, list[np.ndarray]]:
    """Return the text of a page without arrays, numbers of lines and places; and the arrays, places the last one."""
    text = path.read_text("utf-8")
    packed = re.findall(r'"type":"(\w+)","base64":"([^"]*)"', text)
    arrays = [np.frombuffer(zlib.decompress(b64decode(content)), kind).astype(float) for kind, content in packed]
    return re.sub(r'"base64":"[^"]*"|line \d+|"names":\[\[.*?\]\]', "", text), arrays


def test_page_in_docs_is_the_one_that_the_script_makes(here, monkeypatch):
    """But for the places on the map: they depend on the last digit of sums, and so on the processor."""
    opened = []
    monkeypatch.setattr(explore.webbrowser, "open", opened.append)
    explore.main(["--checkpoint", str(MODEL), "--drawn"])
    made = here / "explorer.html"
    assert opened == [made.as_uri()] and SHIPPED.stat().st_size <= 5e6
    (text, arrays), (shipped_text, shipped_arrays) = split_page(made), split_page(SHIPPED)
    assert text == shipped_text
    for array, shipped in zip(arrays[:-1], shipped_arrays[:-1], strict=True):
        close = np.isclose(array, shipped, rtol=1e-3, atol=1 if array.max() > 99 else 2e-3)  # bytes, or numbers
        assert array.shape == shipped.shape and close.mean() > 0.999


def test_new_run_has_a_page_with_its_own_test_images(small_run, here, browser):
    explore.main(["--checkpoint", str(small_run.folder), "--no-open"])
    browser.open(here / "explorer.html")
    facts = browser.run("return [facts.trainedOn, facts.binary, facts.drawn, count, facts.noun]")
    assert facts == ["digits", True, False, 297, "digit"]


def test_without_test_images_the_model_draws_them(here, monkeypatch, capsys):
    monkeypatch.setitem(public.MIRRORS, "mnist", [])
    monkeypatch.setattr(explore, "build_page", lambda run, dataset: f"a page of {dataset}")
    arguments = ["--checkpoint", str(MODEL), "--no-open"]
    explore.main(arguments)
    cause, remedy = capsys.readouterr().err.splitlines()
    assert "MNIST is unavailable" in cause and remedy == "-> The map shows images that the model draws instead"
    assert (here / "explorer.html").read_text() == "a page of None"
    assert "MNIST is unavailable" in refuse(explore.main, [*arguments, "--dataset", "mnist"])
    for flags in (["--transpose"], ["--drawn", "--transpose"]):
        assert "which images?" in refuse(explore.main, [*arguments, *flags])
    assert "no such folder" in refuse(explore.main, ["--output", "none/page.html"])
    with pytest.raises(SystemExit):  # a flag without effect
        explore.main(["--drawn", "--dataset", "digits"])


# ---- The page of the shipped model: what each part does


def test_map_decodes_under_the_pointer_and_chooses_an_image(shipped):
    shipped.trace("#map", [(0.3, 0.4)], press=False)
    wanted = np.reshape(shipped.run("return [...decode(codeAt([0.3, 0.4]).z).pixels]"), (28, 28))
    assert np.abs(shipped.read_pixels("#lens canvas")[:, :, 0] / 255 - wanted).mean() < 0.02  # at whole pixels
    shipped.trace("#map", [(1.1, 0.5)], press=False)
    assert not shipped.find("#lens").is_displayed()
    for kind, label in (("mouse", 6), ("touch", 0), ("pen", 3)):
        find = "return facts.classes.findIndex((c, i) => c === arguments[0] && spotOf(i).every((v) => v > 0.1))"
        index = shipped.run(find, label)
        shipped.trace("#map", [shipped.run("return spotOf(arguments[0])", index)], kind)
        titles = {text.text for text in [shipped.find("#picked h3"), *shipped.find_all(".which")]}
        assert titles == {f"drawn by the model, label {label}"}
        image, code = shipped.run("return [[...imageOf(arguments[0])], [...codeOf(arguments[0])]]", index)
        for canvas in ("#picked .image", "#rows-image"):
            np.testing.assert_allclose(shipped.read_pixels(canvas)[:, :, 0].ravel() / 255, image, atol=1 / 255)
        np.testing.assert_allclose(shipped.z, code, atol=0.01)
    shipped.trace("#map", [(0.2, 0.2), (0.4, 0.5), (0.7, 0.7)], "touch")  # a dragged finger looks only
    shipped.press("#map", *[Keys.ARROW_LEFT] * 9, Keys.ARROW_UP)
    np.testing.assert_allclose(shipped.z, code, atol=0.01)
    assert shipped.find("#lens").is_displayed()
    shipped.press("#map", Keys.ENTER)
    assert np.abs(np.array(shipped.z) - code).max() > 0.1


def test_sliders_and_buttons_change_the_latent_vector(shipped):
    spread = np.var(shipped.run("return range(count).map((i) => [...codeOf(i)])"), axis=0)
    order = [int(label.text) - 1 for label in shipped.find_all("#sliders sub")]
    assert order == sorted(order, key=lambda dimension: -spread[dimension])
    before, image = np.array(shipped.z), shipped.read_pixels("#image")
    shipped.press("#sliders input", *[Keys.ARROW_RIGHT] * 60)
    after = np.array(shipped.z)
    assert np.flatnonzero(after != before).tolist() == order[:1] and after[order[0]] > before[order[0]]
    assert np.abs(shipped.read_pixels("#image") - image).mean() > 2
    assert shipped.find("#sliders output").text == f"{after[order[0]]:.1f}"
    shipped.click("#new")
    assert np.all(shipped.z != after)
    shipped.click("#each")
    for digit, tile in enumerate(shipped.find_all("#tiles button")):
        tile.click()
        assert tile.text == str(digit) and f"label {digit}" in shipped.find("#label").text
        assert shipped.run("return labelShares(state.z)[arguments[0]]", digit) > 0.5


def test_walk_passes_over_images_to_another_label(shipped):
    set_time = "window.own ??= requestAnimationFrame; requestAnimationFrame = (work) => own(() => work(arguments[0]))"
    shipped.run(set_time, 0)  # it stands still
    shipped.click("#walk")
    path, classes = shipped.run("return [state.path, [...facts.classes]]")
    assert len(path) > 1 and classes[path[0]] != classes[path[-1]] and shipped.find("#walk").text == "Stop here"
    shipped.run(set_time, 1e6)
    shipped.wait("return state.frame === 0")
    np.testing.assert_allclose(shipped.z, shipped.run("return [...codeOf(arguments[0])]", path[-1]), atol=1e-5)
    shipped.run(set_time, 0)
    shipped.click("#walk")
    shipped.click("#walk")  # stops it where it is
    assert shipped.run("return state.frame") == 0 and "Walk" in shipped.find("#walk").text


DIGITS = {  # strokes in the unit square
    1: [[(0.56, 0.2), (0.5, 0.5), (0.45, 0.8)]],
    4: [[(0.36, 0.2), (0.3, 0.5), (0.5, 0.52), (0.68, 0.48)], [(0.66, 0.2), (0.62, 0.5), (0.58, 0.82)]],
    7: [[(0.28, 0.24), (0.5, 0.22), (0.7, 0.22), (0.6, 0.45), (0.5, 0.62), (0.46, 0.82)]],
}


def test_pad_shows_what_is_read_in_the_strokes(shipped):
    for kind, digit in (("mouse", 4), ("touch", 1), ("pen", 7)):
        shipped.click("#clear")
        for stroke in DIGITS[digit]:
            shipped.trace("#pad", stroke, kind)
        image = np.reshape(shipped.run("return [...rasterise(arguments[0])]", DIGITS[digit]), (28, 28))
        for canvas in ("#drawn .image", "#rows-image"):  # the other parts explain it, too
            assert np.abs(shipped.read_pixels(canvas)[:, :, 0] / 255 - image).mean() < 0.02  # at whole pixels
        assert {text.text for text in shipped.find_all(".which")} == {"your drawing"}
        shares = shipped.find("#drawn .shares").text.split()  # label and percent, ten times
        assert int(shares[2 * digit + 1].removesuffix("%")) > 80


def test_drawing_is_centred_and_scaled_as_mnist(shipped):
    """Small in a corner, or large: 20 pixels in size, its centre of mass in the middle. A dot remains a dot."""
    for scale, shift in ((0.3, 0.0), (1.1, -0.05)):
        stroke = scale * np.array(DIGITS[7][0]) + shift
        image = np.reshape(shipped.run("return [...rasterise([arguments[0]])]", stroke.tolist()), (28, 28))
        assert max(np.ptp(np.flatnonzero(image.max(axis=axis) > 0.5)) for axis in (0, 1)) in (18, 19, 20)
        middle = [np.average(np.arange(28) + 0.5, weights=image.sum(axis=axis)) for axis in (0, 1)]
        np.testing.assert_allclose(middle, 14, atol=0.2)
    assert 2 < sum(shipped.run("return [...rasterise([[[0.1, 0.1]]])]")) < 20


def test_pad_undoes_clears_and_has_a_keyboard(browser):
    browser.open(SHIPPED)
    chosen, which = browser.find("#picked h3").text, browser.find("#rows-part .which")
    assert "example" in browser.find("#hint").text and "example" in browser.find("#drawn").text
    browser.click("#clear")  # it is no longer an example, and its reading is gone
    assert browser.find("#hint").text == "Draw here." and not browser.find("#drawn").is_displayed()
    before = browser.z
    browser.trace("#pad", [(0.3, 0.3), (0.6, 0.6)])
    assert browser.find("#hint").text == "" and browser.find("#drawn").is_displayed()
    browser.click("#undo")
    assert browser.find("#hint").text == "Draw here." and which.text == chosen
    browser.press("#pad", Keys.SHIFT, *[Keys.ARROW_DOWN] * 9)
    assert which.text == "your drawing" and browser.z != before
    browser.press("#pad", Keys.ESCAPE)
    assert browser.find("#hint").text == "Draw here." and browser.z == before


def test_rows_slider_shows_and_plays(browser):
    browser.open(SHIPPED)
    image = browser.read_pixels("#rows-image")
    browser.press("#rows", *[Keys.ARROW_LEFT] * 16)
    shown = browser.read_pixels("#rows-image")
    assert np.array_equal(shown[:12], image[:12]) and not shown[12:, :, 0].any()
    words = browser.find("#rows").get_attribute("aria-valuetext").replace(",", "").split()
    assert words[:4] == ["12", "of", "28", "rows"] and words[4:] == browser.find("#legend").text.split()
    curves = [line.get_attribute("points").split() for line in browser.find_all("#curves polyline")]
    ends = [float(curve[28].removeprefix("100,")) for curve in curves]
    assert min(ends) == pytest.approx(100 - 100 * browser.run("return most(state.reading.shares)"))
    browser.run("showCurves(arguments[0])", np.eye(10)[[3, 8, 3, 3]].tolist())
    assert browser.find("#mind").text == "It makes up its mind at row 2: from there on, the likeliest label is 3."
    for strip in browser.find_all("#rows-part .strip"):  # the step is marked
        veil = strip.find_element("css selector", ".veil")
        assert veil.size["width"] == pytest.approx(strip.size["width"] * 16 / 28, abs=3)
    browser.run("setInterval = (work) => { window.tick = work; return 1; }")  # time passes by hand
    for ticks, text in ((3, "Stop"), (29, "Play")):  # it stops at the end
        browser.click("#play")
        browser.run("range(arguments[0]).forEach(tick)", ticks)
        assert browser.find("#play").text == text
        assert browser.find("#rows").get_property("value") == str(min(ticks, 28))
        browser.find("#play").click()


def test_page_loads_nothing_and_fits_every_width(shipped):
    loaded = "return performance.getEntriesByType('resource').map((r) => r.name).filter((n) => !n.startsWith('data:'))"
    assert shipped.run(loaded) == []
    for width, scheme in ((390, "light"), (768, "dark"), (1440, "light")):
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        shipped.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        shipped.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        shipped.settle()
        assert shipped.run("return document.documentElement.scrollWidth") <= width
        colour = "return getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)"
        assert (max(shipped.run(colour)) < 60) == (scheme == "dark")
