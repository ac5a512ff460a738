"""One HTML page that holds a whole model: both networks, the prior, images, and the code that runs them.

The code is in network.js. It knows a fixed list of layers; a network with another one is refused.
"""

import base64
import inspect
import json
import math
import re
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from vae import networks
from vae.data.dataset import Dataset, name_label, to_pixels
from vae.latent_map import COLOURS, MOST_NAMES, ON_MAP, choose_codes, is_plane, place_codes, place_names
from vae.metrics import ACTIVE
from vae.run import Run
from vae.sampling import Mixture
from vae.settings import variance_of
from vae.terminal import UserError

LARGEST_IMAGES = 8 * 2**20  # bytes of all images in a page; where they are large, it has fewer
LARGE = 2**17  # weights of a matrix that is stored as float16; smaller ones take little room as float32
NOISE = 4  # draws of noise; with their opposites, each cost in nats is the mean over eight codes
MARGIN = 0.04  # share of the map around its outermost codes
PROJECT = Path(__file__).resolve().parents[2]
DIGITS = ("mnist", "digits")  # data sets whose images are called digits

# What network.js runs, and the settings of a layer that it reads.
LAYERS = ("InputLayer", "LSTM", "Dense", "Conv2DTranspose", "AveragePooling2D", "BatchNormalization", "Normalization")
LAYERS += ("ReLU", "Activation", "Flatten", "Reshape", "Permute", "Concatenate", "Add", "Dropout", "Log", "Multiply")
ACTIVATIONS = ("linear", "relu", "silu", "sigmoid", "softplus", "tanh")
SETTINGS = ("activation", "dims", "kernel_size", "pool_size", "return_sequences", "strides")


def build_page(run: Run, dataset: Dataset | None) -> str:
    """Return the page for a run. On its map are test images of this data set, or, without one, images that it draws.

    Raises UserError where a network has a layer that network.js does not know.
    """
    encoder, decoder, prior = run.load_encoder(), run.load_decoder(), run.load_prior()
    images, labels = _draw_images(decoder, prior) if dataset is None else _choose_images(dataset)
    if run.settings.binarize:
        images = np.where(np.random.default_rng(0).random(images.shape) < images / 255, 255, 0).astype(np.uint8)
    codes = encoder.predict(images / np.float32(255), batch_size=500, verbose=0)[0]  # (n, D)
    classes = np.unique(np.concatenate([prior.labels, [] if labels is None else labels]).astype(int))  # (C,)
    numbers = None if labels is None else np.searchsorted(classes, labels)
    trained_on = run.config["dataset"]["name"]
    shown = trained_on if dataset is None else dataset.name
    names = (dataset and dataset.label_names) or run.label_names
    build = networks.NETWORKS[run.settings.network].build
    paper, ink = _find_paper_and_ink(images)
    facts = {
        "encoder": _describe_network(encoder, build),
        "decoder": _describe_network(decoder, build),
        "prior": None if prior.is_normal else _describe_prior(prior, classes),
        "network": run.settings.network,
        "trainedOn": trained_on,
        "shown": shown,
        "drawn": dataset is None,
        "noun": "digit" if shown in DIGITS else "image",
        "epochs": run.config["epochs_done"],
        "parameters": encoder.count_params() + decoder.count_params(),
        "losses": run.config.get("test", {}),  # an unfinished run has none
        "variance": variance_of(run.settings),
        "binary": run.settings.binarize,
        "paper": paper,
        "ink": ink,
        "active": _order_active(codes),
        "names": [name_label(label, names) for label in classes.tolist()],
        "colours": COLOURS,
        "count": len(codes),
        "images": _pack(images, "uint8"),
        "codes": _pack(codes, "float16"),
        "classes": None if numbers is None else _pack(numbers, "uint16"),
        "noise": _pack(np.random.default_rng(0).standard_normal((NOISE, codes.shape[1])), "float32"),
        "map": _describe_map(codes, numbers),
    }
    return _fill_template(facts)


def _pack(array: np.ndarray, dtype: str) -> dict:
    """Return an array as text: its bytes, compressed, in base64."""
    content = np.ascontiguousarray(array, np.dtype(dtype).newbyteorder("<")).tobytes()
    return {"type": dtype, "base64": base64.b64encode(zlib.compress(content, 9)).decode()}


def _pack_weights(array: np.ndarray) -> dict:
    """Pack weights: as float16 where they are many, else as float32."""
    return _pack(array, "float16" if array.size > LARGE else "float32")


# The networks


def _describe_network(model, build: Callable) -> dict:
    """Return the layers of a Keras model as network.js reads them; UserError for one that it does not know."""
    operations = {operation.name: operation for operation in model.operations}
    layers = []
    for layer in model.get_config()["layers"]:
        name, kind, config = layer["name"], layer["class_name"], layer["config"]
        activation = config.get("activation", "linear")
        if kind not in LAYERS or activation not in ACTIVATIONS:
            what = f"{name!r:.50} ({kind}, activation {activation!s:.50})"
            raise UserError(f"{model.name}.keras: the page cannot run its layer {what}; it knows {', '.join(LAYERS)}")
        layers.append(
            {
                "type": kind,
                "name": name,
                "line": _find_line(build, name, model.name),
                "shape": operations[name].output.shape[1:],
                "inputs": list(_read_inputs([node["args"] for node in layer["inbound_nodes"]])),
                **{setting: config[setting] for setting in SETTINGS if setting in config},
                **{part: _pack_weights(array) for part, array in _read_weights(operations[name]).items()},
            }
        )
    return {"layers": layers, "outputs": model.output_names}


def _read_inputs(arguments) -> Iterator[str | float]:
    """Yield what a layer is called on: names of other layers, and numbers."""
    if isinstance(arguments, list | tuple):
        for argument in arguments:
            yield from _read_inputs(argument)
    else:
        yield arguments["config"]["keras_history"][0] if isinstance(arguments, dict) else arguments


def _read_weights(layer) -> dict[str, np.ndarray]:
    """Return the weights of a layer in the order in which network.js walks through them."""
    from keras import ops

    kind = type(layer).__name__
    if kind == "Normalization":  # (x - mean) / deviation = x * scale + shift
        mean, variance = (ops.convert_to_numpy(value).reshape(1) for value in (layer.mean, layer.variance))
        return {"scale": 1 / np.sqrt(variance), "shift": -mean / np.sqrt(variance)}
    weights = {weight.name: ops.convert_to_numpy(weight) for weight in getattr(layer, "weights", [])}
    if kind == "BatchNormalization":
        scale = weights["gamma"] / np.sqrt(weights["moving_variance"] + layer.epsilon)
        return {"scale": scale, "shift": weights["beta"] - weights["moving_mean"] * scale}
    if kind == "Conv2DTranspose":
        weights["kernel"] = weights["kernel"].transpose(3, 0, 1, 2)  # (inputs, height, width, filters)
    return {name: weights[name] for name in ("kernel", "recurrent_kernel", "bias") if name in weights}


def _find_line(function: Callable, layer: str, half: str) -> str | None:
    """Return where a function, or one that it calls, makes a layer: "model.py, line 58: h = ..."; else None.

    Both halves of a network may have a layer of this name. The encoder's is made first.
    """
    import model

    lines, first = inspect.getsourcelines(function)
    names = f'"{layer}"', f'"{layer.rstrip("0123456789")}{{number}}"'  # the second is an f-string in a loop
    found = [first + i for i, line in enumerate(lines) if any(name in line for name in names)]
    if found:
        path = Path(inspect.getsourcefile(function)).relative_to(PROJECT).as_posix()
        number = found[0 if half == "encoder" else -1]
        return f"{path}, line {number}: {lines[number - first].strip()}"
    for name in re.findall(r"(?<!def )\b(\w+)\(", "".join(lines)):
        called = getattr(model, name, None) or getattr(networks, name, None)
        if inspect.isfunction(called) and (place := _find_line(called, layer, half)):
            return place
    return None


# The images and their map


def _draw_images(decoder, prior: Mixture) -> tuple[np.ndarray, np.ndarray | None]:
    """Draw images (n, H, W), as bytes, from the prior, and label them by p(label | z), (n,); always the same ones."""
    z = prior.draw(np.random.default_rng(0), _count_images(decoder.output_shape[1:]), 1.0)
    images = np.rint(255 * decoder.predict(z, batch_size=500, verbose=0)).astype(np.uint8)
    return images, prior.labels[prior.label_probabilities(z).argmax(axis=1)] if len(prior.labels) else None


def _choose_images(dataset: Dataset) -> tuple[np.ndarray, np.ndarray | None]:
    """Return test images (n, H, W), as bytes, and their labels (n,), chosen at random, always the same ones."""
    images, labels = dataset.test_images, dataset.test_labels
    chosen = choose_codes(len(images))[: _count_images(images.shape[1:])]
    images = images[chosen]
    return np.rint(255 * to_pixels(images)).astype(np.uint8), None if labels is None else labels[chosen]


def _count_images(shape: tuple[int, int]) -> int:
    """Return how many images of this shape a page holds at most."""
    return max(1, min(ON_MAP, LARGEST_IMAGES // math.prod(shape)))


def _find_paper_and_ink(images: np.ndarray) -> tuple[float, float]:
    """Return the brightness of the ground and of the strokes in images (n, H, W) of bytes, in [0, 1].

    The ground is what most borders show. The strokes are what is farthest from it in most images.
    """
    borders = np.concatenate([images[:, [0, -1]].ravel(), images[:, :, [0, -1]].ravel()])
    paper, darkest, brightest = (float(np.median(x)) for x in (borders, images.min((1, 2)), images.max((1, 2))))
    return paper / 255, (brightest if brightest - paper >= paper - darkest else darkest) / 255


def _order_active(codes: np.ndarray) -> list[int]:
    """Return the latent dimensions that vary over the codes (n, D), the most active first; at least one."""
    variance = codes.var(axis=0, dtype=np.float64)
    return np.argsort(-variance)[: max(1, np.sum(variance > ACTIVE))].tolist()


def _describe_prior(mixture: Mixture, classes: np.ndarray) -> dict:
    """Return the Gaussians, and p(label | component), (M, C), for these classes (C,)."""
    shares = np.zeros((len(mixture.weights), len(classes)))
    shares[:, np.searchsorted(classes, mixture.labels)] = mixture.class_shares
    parts = {name: _pack_weights(getattr(mixture, name)) for name in ("weights", "means", "factors")}
    return parts | {"shares": _pack(shares, "float32") if len(mixture.labels) else None}


def _describe_map(codes: np.ndarray, numbers: np.ndarray | None) -> dict:
    """Bring the places of codes (n, D) into the unit square, y down, and name the classes on it."""
    places = place_codes(codes)
    plane = is_plane(codes.shape[1])
    centre = (places.max(axis=0) + places.min(axis=0)) / 2
    span = np.maximum(np.ptp(places, axis=0), 1e-6) / (1 - 2 * MARGIN)
    if plane:
        span[:] = span.max()  # one unit for both axes
    span = span * [1, -1]
    places = (places - centre) / span + 0.5
    named = numbers is not None and len(np.unique(numbers)) <= MOST_NAMES
    names = place_names(places, numbers, 0.045) if named else {}
    return {
        "places": _pack(places, "float32"),
        "plane": {"centre": centre.tolist(), "span": span.tolist()} if plane else None,
        "names": [[number, *map(float, place)] for number, place in names.items()],
    }


def _fill_template(facts: dict) -> str:
    folder = Path(__file__).parent
    page, network, screen = ((folder / name).read_text("utf-8") for name in ("page.html", "network.js", "page.js"))
    text = json.dumps(facts, separators=(",", ":")).replace("<", "\\u003c")  # or "</script>" in a name would end it
    article = "an" if facts["noun"] == "image" else "a"
    parts = {"noun": facts["noun"], "a_noun": f"{article} {facts['noun']}", "facts": text}
    parts |= {"network": network, "page": screen}
    return re.sub(r"\{\{(\w+)\}\}", lambda mark: parts[mark[1]], page)
