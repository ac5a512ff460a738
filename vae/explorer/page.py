"""One HTML page that holds a whole model: both networks, the prior, test images, and the code that runs them.

The code is in explorer.js. It knows a fixed list of layers, so each layer is checked before the page is made.
"""

import base64
import json
import math
import re
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from vae.data.dataset import Dataset
from vae.latent_map import COLOURS, MOST_NAMES, choose_codes, is_plane, place_codes, place_names
from vae.metrics import ACTIVE
from vae.run import Run
from vae.sampling import Mixture
from vae.settings import variance_of
from vae.terminal import UserError

LARGEST_IMAGES = 8 * 2**20  # bytes of all images in a page; where they are large, it has fewer
LARGE = 2**17  # weights of a matrix that is stored as float16; smaller ones take little room as float32
LARGEST_HALF = 6e4  # float16 ends at 65,504
NOISE = 4  # draws of noise; with their opposites, each cost in nats is the mean over eight codes
MARGIN = 0.04  # share of the map around its outermost codes
DIGITS = ("mnist", "digits")  # data sets whose images are called digits

ACTIVATIONS = ("linear", "relu", "silu", "sigmoid", "softplus", "tanh")
# The layers that explorer.js runs, and the only values of their settings with which it can.
LAYERS = {
    "InputLayer": {},
    "LSTM": {
        "activation": ("tanh",),
        "recurrent_activation": ("sigmoid",),
        "go_backwards": (False,),
        "return_state": (False,),
    },
    "Dense": {"activation": ACTIVATIONS},
    "Conv2DTranspose": {
        "activation": ACTIVATIONS,
        "padding": ("same",),
        "data_format": ("channels_last",),
        "dilation_rate": ((1, 1),),
        "output_padding": (None,),
    },
    "AveragePooling2D": {"padding": ("same",), "data_format": ("channels_last",)},
    "BatchNormalization": {"axis": (-1,)},
    "Normalization": {"axis": ((),), "invert": (False,)},
    "ReLU": {"max_value": (None,), "negative_slope": (0.0,), "threshold": (0.0,)},
    "Activation": {"activation": ACTIVATIONS},
    "Flatten": {"data_format": ("channels_last",)},
    "Reshape": {},
    "Permute": {},
    "Concatenate": {"axis": (-1,)},
    "Dropout": {},
    "Log": {},
    "Multiply": {},
}
SETTINGS = ("activation", "dims", "kernel_size", "pool_size", "return_sequences", "strides")  # that explorer.js reads


class Arrays:
    """Arrays one after another, as bytes, each known by where it is."""

    def __init__(self):
        self._parts: list[bytes] = []
        self._length = 0

    def add(self, array: np.ndarray, dtype: str) -> dict:
        """Append an array, and return what finds it again."""
        part = np.ascontiguousarray(array, np.dtype(dtype).newbyteorder("<")).tobytes()
        place = {"at": self._length, "bytes": len(part), "type": dtype}
        self._parts.append(part)
        self._length += len(part)
        return place

    def add_weights(self, array: np.ndarray) -> dict:
        """Append weights: as float16 where they are many, else as float32."""
        half = array.size > LARGE and np.abs(array).max() < LARGEST_HALF
        return self.add(array, "float16" if half else "float32")

    def to_text(self) -> str:
        """Return all of them, compressed, in base64."""
        return base64.b64encode(zlib.compress(b"".join(self._parts), 9)).decode()


def build_page(run: Run, dataset: Dataset) -> str:
    """Return the page for a run, with test images of this data set on its map.

    Raises UserError where a network has a layer that explorer.js does not know, or reads images of another size.
    """
    decoder = run.load_decoder(dataset.test_images.shape[1:])
    encoder = run.load_encoder(decoder)
    arrays = Arrays()
    facts = {"encoder": describe_network(encoder, arrays), "decoder": describe_network(decoder, arrays)}
    images, labels = _choose_images(dataset, run.settings.binarize)
    codes = encoder.predict(images / np.float32(255), batch_size=500, verbose=0)[0]  # (n, D)
    if not np.isfinite(codes).all():
        raise UserError(f"{run.folder}: its encoder gives codes that are not finite; choose another run")
    prior = run.load_prior(decoder.input_shape[1])
    mixture = None if prior.is_normal else prior
    classes = _find_classes(labels, mixture)  # (C,), sorted
    numbers = None if labels is None else np.searchsorted(classes, labels)
    rng = np.random.default_rng(0)
    facts |= {
        "network": run.settings.network,
        "dataset": dataset.name,
        "noun": "digit" if dataset.name in DIGITS else "image",
        "epochs": run.config["epochs_done"],
        "parameters": encoder.count_params() + decoder.count_params(),
        "losses": _read_losses(run.config),
        "variance": variance_of(run.settings),
        "binary": run.settings.binarize,
        "active": _order_active(codes),
        "names": [run.name_label(label) for label in classes],
        "colours": COLOURS,
        "images": arrays.add(images, "uint8"),
        "codes": arrays.add(codes, "float16"),
        "classes": None if numbers is None else arrays.add(numbers, "uint16"),
        "count": len(codes),
        "noise": arrays.add(rng.standard_normal((NOISE, codes.shape[1])), "float32"),
        "prior": None if mixture is None else _describe_prior(mixture, classes, arrays),
        "map": _describe_map(codes, numbers, arrays),
    }
    return _fill_template(facts, arrays)


def describe_network(model, arrays: Arrays) -> dict:
    """Return the layers of a Keras model as explorer.js reads them; UserError for one that it does not know."""
    config = model.get_config()
    operations = {operation.name: operation for operation in model.operations}
    layers = []
    for layer in config["layers"]:
        _check_layer(model.name, layer)
        operation = operations[layer["name"]]
        layers.append(
            {
                "type": layer["class_name"],
                "name": layer["name"],
                "shape": operation.output.shape[1:],
                "inputs": list(_read_inputs(layer)),
                **{name: layer["config"][name] for name in SETTINGS if name in layer["config"]},
                **{name: arrays.add_weights(array) for name, array in _read_weights(operation).items()},
            }
        )
    outputs = config["output_layers"]
    return {"layers": layers, "outputs": [name for name, *_ in ([outputs] if isinstance(outputs[0], str) else outputs)]}


def _check_layer(model_name: str, layer: dict) -> None:
    kind = layer["class_name"]
    where = f"{model_name}.keras: explorer.js cannot run the layer {layer['name']!r:.50}"
    if kind not in LAYERS:
        raise UserError(f"{where}, a {kind}; it knows {', '.join(LAYERS)}")
    for name, values in LAYERS[kind].items():
        value = layer["config"].get(name, values[0])
        if (tuple(value) if isinstance(value, list) else value) not in values:
            raise UserError(f"{where} with {name} {value!r:.50}; it needs {' or '.join(map(str, values))}")
    nodes = layer["inbound_nodes"]
    if len(nodes) > 1 or any("__keras_tensor__" in json.dumps(node["kwargs"]) for node in nodes):
        raise UserError(f"{where}, which is called more than once or with keywords; call each layer once")


def _read_inputs(layer: dict) -> Iterator[str | float]:
    """Yield what the layer is called on: names of other layers, and numbers."""
    waiting = [node["args"] for node in layer["inbound_nodes"]]
    while waiting:
        argument = waiting.pop(0)
        if isinstance(argument, list | tuple):
            waiting = [*argument, *waiting]
        elif isinstance(argument, dict):
            yield argument["config"]["keras_history"][0]
        else:
            yield argument


def _read_weights(layer) -> dict[str, np.ndarray]:
    """Return the weights of a layer in the order in which explorer.js walks through them."""
    from keras import ops

    kind = type(layer).__name__
    if kind == "Normalization":  # (x - mean) / deviation = x * scale + shift
        mean, variance = (ops.convert_to_numpy(value).reshape(1) for value in (layer.mean, layer.variance))
        return {"scale": 1 / np.sqrt(variance), "shift": -mean / np.sqrt(variance)}
    weights = {weight.name: ops.convert_to_numpy(weight) for weight in getattr(layer, "weights", [])}
    if kind == "BatchNormalization":
        scale = weights.get("gamma", 1) / np.sqrt(weights["moving_variance"] + layer.epsilon)
        return {"scale": scale, "shift": weights.get("beta", 0) - weights["moving_mean"] * scale}
    if kind == "Conv2DTranspose":
        weights["kernel"] = weights["kernel"].transpose(3, 0, 1, 2)  # (inputs, height, width, filters)
    return {name: weights[name] for name in ("kernel", "recurrent_kernel", "bias") if name in weights}


def _choose_images(dataset: Dataset, binarize: bool) -> tuple[np.ndarray, np.ndarray | None]:
    """Return test images (n, H, W), as bytes, and their labels (n,), chosen at random, always the same ones."""
    images = dataset.test_images
    chosen = choose_codes(len(images))[: max(1, LARGEST_IMAGES // math.prod(images.shape[1:]))]
    images = images[chosen] if images.dtype == np.uint8 else np.rint(images[chosen] * 255).astype(np.uint8)
    if binarize:
        images = np.where(np.random.default_rng(0).random(images.shape) < images / 255, 255, 0).astype(np.uint8)
    return images, None if dataset.test_labels is None else dataset.test_labels[chosen]


def _find_classes(labels: np.ndarray | None, mixture: Mixture | None) -> np.ndarray:
    """Return the labels of the test images and of the prior (C,), sorted."""
    parts = [labels, None if mixture is None else mixture.labels]
    return np.unique(np.concatenate([np.zeros(0, int), *(part.astype(int) for part in parts if part is not None)]))


def _read_losses(config: dict) -> dict[str, float]:
    """Return the losses on the test images that the run recorded, in nats per image; {} for an unfinished run."""
    losses = config.get("test")
    losses = losses if isinstance(losses, dict) else {}
    return {name: value for name, value in losses.items() if isinstance(value, float) and math.isfinite(value)}


def _order_active(codes: np.ndarray) -> list[int]:
    """Return the latent dimensions that vary over the codes (n, D), the most active first; at least one."""
    variance = codes.var(axis=0, dtype=np.float64)
    return np.argsort(-variance)[: max(1, np.sum(variance > ACTIVE))].tolist()


def _describe_prior(mixture: Mixture, classes: np.ndarray, arrays: Arrays) -> dict:
    described = {name: arrays.add_weights(getattr(mixture, name)) for name in ("weights", "means", "factors")}
    shares = np.zeros((len(mixture.weights), len(classes)), np.float32)
    shares[:, np.searchsorted(classes, mixture.labels)] = mixture.class_shares
    return described | {"shares": arrays.add(shares, "float32") if len(mixture.labels) else None}


def _describe_map(codes: np.ndarray, numbers: np.ndarray | None, arrays: Arrays) -> dict:
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
        "places": arrays.add(places, "float32"),
        "plane": {"centre": centre.tolist(), "span": span.tolist()} if plane else None,
        "names": [[number, *map(float, place)] for number, place in names.items()],
    }


def _fill_template(facts: dict, arrays: Arrays) -> str:
    folder = Path(__file__).parent
    page = (folder / "page.html").read_text(encoding="utf-8")
    text = json.dumps(facts, separators=(",", ":")).replace("<", "\\u003c")  # or "</script>" in a name would end it
    parts = {
        "noun": facts["noun"],
        "facts": text,
        "arrays": arrays.to_text(),
        "model": (folder / "network.js").read_text(encoding="utf-8"),
        "page": (folder / "page.js").read_text(encoding="utf-8"),
    }
    return re.sub(r"\{\{(\w+)\}\}", lambda mark: parts[mark[1]], page)
