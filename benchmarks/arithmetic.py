"""How many multiply-adds a network needs, counted from its Keras layers.

Products of weights with activations count, and nothing else (no bias, activation, loss or optimizer). Forward:

    Dense               inputs x units, for every position
    LSTM                4 x units x (inputs + units), for every time step
    Conv2D              output positions x kernel area x input channels x output channels
    Conv2DTranspose     input positions x kernel area x input channels x output channels

Borders count in full. Backward, the gradients with respect to a layer's weights and to its input each cost as much as
its forward product, so that a training step is three times the forward pass; but for the product with the image itself,
whose gradient nobody needs: this counts twice. A layer that has weights and is not known here raises TypeError.
"""

import math

import keras

WITHOUT_PRODUCTS = ("BatchNormalization", "LayerNormalization")  # a few operations a value: not counted


def training(encoder: keras.Model, decoder: keras.Model) -> int:
    """Multiply-adds that one image needs forward and backward."""
    return _training(encoder, input_has_gradient=False) + _training(decoder, input_has_gradient=True)


def forward(model: keras.Model) -> int:
    """Multiply-adds that one item needs forward."""
    return sum(_products(layer)[0] for layer in model.layers)


def parents(layer: keras.Layer) -> list[str]:
    """Names of the layers that feed this layer of a functional model; none for the model's input."""
    return [tensor._keras_history.operation.name for tensor in keras.tree.flatten(layer.input)]


def _training(model: keras.Model, input_has_gradient: bool) -> int:
    total, has_gradient = 0, {}  # of every layer: does a gradient have to come back to its output?
    for layer in model.layers:
        feeds = [has_gradient[name] for name in parents(layer)] or [input_has_gradient]
        product, with_input = _products(layer)
        total += 3 * product - (0 if any(feeds) else with_input)
        has_gradient[layer.name] = any(feeds) or bool(layer.weights)
    return total


def _products(layer: keras.Layer) -> tuple[int, int]:
    """Multiply-adds of a layer's forward pass, and how many of these have the layer's input as a factor."""
    if not layer.weights or type(layer).__name__ in WITHOUT_PRODUCTS:
        return 0, 0
    return _weighted_products(layer, layer.input.shape[1:])


def _weighted_products(layer: keras.Layer, shape: tuple[int, ...]) -> tuple[int, int]:
    *positions, inputs = shape
    match type(layer).__name__:
        case "Dense":
            product = math.prod(positions) * inputs * layer.units
        case "Conv2D":
            positions = layer.compute_output_shape((None, *shape))[1:-1]
            product = math.prod((*positions, *layer.kernel_size)) * inputs // layer.groups * layer.filters
        case "Conv2DTranspose":
            product = math.prod((*positions, *layer.kernel_size)) * inputs * layer.filters
        case "LSTM":
            gates = positions[0] * 4 * layer.units
            return gates * (inputs + layer.units), gates * inputs
        case "Bidirectional":
            ways = [_weighted_products(way, shape) for way in (layer.forward_layer, layer.backward_layer)]
            return tuple(map(sum, zip(*ways, strict=True)))
        case kind:
            raise TypeError(f"benchmarks/arithmetic.py does not know how to count the layer {layer.name!r} ({kind})")
    return product, product
