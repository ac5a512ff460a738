"""The same network in PyTorch, made from the layers of the Keras models with their weights.

Between layers a tensor keeps Keras's order, (batch, height, width, channels), but as a view: a convolution turns it
back to PyTorch's order, again by a view, so that the memory behind both stays in `memory_format` and is copied only
where the network itself reshapes. The one exception is a transposed convolution whose border is not symmetric (an odd
kernel at stride 2, say): PyTorch has no such setting, so its surplus row and column are computed and cut off.
"""

from collections.abc import Callable
from functools import partial

import arithmetic
import keras
import numpy as np
import torch
from torch import nn
from torch.nn import functional

TOLERANCE = 1e-3  # of every logit, and of the loss in nats per image

ACTIVATIONS = {
    "linear": lambda x: x,
    "relu": functional.relu,
    "gelu": functional.gelu,  # exact, as Keras's is by default
    "leaky_relu": partial(functional.leaky_relu, negative_slope=0.2),  # Keras's default; PyTorch's is 0.01
    "silu": functional.silu,
    "elu": functional.elu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
}


class Twin(nn.Module):
    """Encoder and decoder: images (n, 28, 28) -> logits (n, 28, 28) and the loss in nats per image."""

    def __init__(self, encoder: keras.Model, decoder: keras.Model, memory_format: torch.memory_format):
        super().__init__()
        self.encoder = Graph(encoder, encoder.output_names, memory_format)
        self.decoder = Graph(decoder, ["logits"], memory_format)
        self.to(memory_format=memory_format)

    def forward(self, images: torch.Tensor, noise: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        mean, log_var = self.encoder(images)
        z = mean + torch.exp(0.5 * log_var) * (torch.randn_like(mean) if noise is None else noise)
        (logits,) = self.decoder(z)
        reconstruction = functional.binary_cross_entropy_with_logits(logits, images, reduction="sum")
        kl = 0.5 * (mean.square() + log_var.exp() - log_var - 1).sum()
        return logits, (reconstruction + kl) / len(images)


class Graph(nn.Module):
    """A functional Keras model with one input, run layer by layer until the layers named `outputs` are known."""

    def __init__(self, model: keras.Model, outputs: list[str], memory_format: torch.memory_format):
        super().__init__()
        self.outputs = outputs
        self.steps = []
        for layer in model.layers:
            if not set(outputs) <= {name for name, _, _ in self.steps}:
                self.steps.append((layer.name, arithmetic.parents(layer), operation(layer, memory_format)))
        self.owners = nn.ModuleList(step for _, _, step in self.steps if isinstance(step, nn.Module))

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        values = {}
        for name, parents, step in self.steps:
            values[name] = step(*(values[parent] for parent in parents)) if parents else x
        return [values[name] for name in self.outputs]


def check(twin: Twin, images: np.ndarray, noise: np.ndarray, logits: np.ndarray, loss: float) -> None:
    """Raise ValueError unless the twin finds the logits and the loss that Keras found for these images and noise."""
    twin.eval()
    with torch.inference_mode():
        found, found_loss = twin(torch.from_numpy(images), torch.from_numpy(noise))
    twin.train()
    errors = np.abs(found.numpy() - logits).max(), abs(found_loss.item() - loss)
    if not max(errors) <= TOLERANCE:
        raise ValueError(f"the PyTorch twin is another network: logits differ by {errors[0]}, the loss by {errors[1]}")


def operation(layer: keras.Layer, memory_format: torch.memory_format) -> Callable:
    """What a Keras layer does, in PyTorch; raises TypeError for a layer that is not known here."""
    kind = type(layer).__name__
    match kind:
        case "Dense":
            return Activated(_linear(layer), layer)
        case "Conv2D" | "Conv2DTranspose":
            return Activated(Convolution(layer, memory_format), layer)
        case "LSTM":
            return Recurrent(layer, [layer])
        case "Bidirectional" if layer.merge_mode == "concat":
            return Recurrent(layer, [layer.forward_layer, layer.backward_layer])
        case "BatchNormalization" if _is_last(layer):
            return BatchNorm(layer)
        case "LayerNormalization" if _is_last(layer):
            return _layer_norm(layer)
        case "Activation":
            return _activation(layer)
        case "LeakyReLU":
            return partial(functional.leaky_relu, negative_slope=layer.negative_slope)
        case "Dropout":
            return nn.Dropout(layer.rate)
    return _rearrangement(layer, kind)


def _rearrangement(layer: keras.Layer, kind: str) -> Callable:
    match kind:
        case "InputLayer":
            return ACTIVATIONS["linear"]
        case "Flatten":
            return partial(torch.flatten, start_dim=1)
        case "Reshape":
            shape = layer.target_shape
            return lambda x: x.reshape(len(x), *shape)
        case "Permute":
            axes = layer.dims
            return lambda x: x.permute(0, *axes)
        case "Concatenate":
            axis = layer.axis
            return lambda *parts: torch.cat(parts, axis)
        case "Add":
            return lambda *parts: sum(parts[1:], parts[0])
    raise TypeError(f"benchmarks/torch_twin.py does not know the layer {layer.name!r} ({kind}) with these settings")


def _activation(layer: keras.Layer) -> Callable:
    name = getattr(layer.activation, "__name__", str(layer.activation))
    if name not in ACTIVATIONS:
        raise TypeError(f"benchmarks/torch_twin.py does not know the activation {name} of the layer {layer.name!r}")
    return ACTIVATIONS[name]


class Activated(nn.Module):
    """A module and the activation that the Keras layer ends in."""

    def __init__(self, module: nn.Module, layer: keras.Layer):
        super().__init__()
        self.module = module
        self.activation = _activation(layer)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.activation(self.module(x))


class Convolution(nn.Module):
    """Conv2D or Conv2DTranspose with TensorFlow's border, whose odd row and column lie at the bottom and the right."""

    def __init__(self, layer: keras.Layer, memory_format: torch.memory_format):
        super().__init__()
        if layer.dilation_rate != (1, 1) or getattr(layer, "groups", 1) != 1 or layer.data_format != "channels_last":
            raise TypeError(f"benchmarks/torch_twin.py knows no dilation, groups or channels first: {layer.name!r}")
        self.memory_format = memory_format
        self.pad, self.cut = [0, 0, 0, 0], None  # before and after the width, before and after the height
        channels, sizes = layer.input.shape[-1], layer.input.shape[1:-1]
        if type(layer).__name__ == "Conv2DTranspose":
            padding, extra, self.cut = self._transposed_border(layer)
            settings = {"stride": layer.strides, "padding": padding, "output_padding": extra, "bias": layer.use_bias}
            self.core = nn.ConvTranspose2d(channels, layer.filters, layer.kernel_size, **settings)
        else:
            borders = [_border(*axis) for axis in zip(sizes, layer.kernel_size, layer.strides, strict=True)]
            same = layer.padding == "same"
            symmetric = all(before == after for before, after in borders)
            if same and not symmetric:
                self.pad = [*borders[1], *borders[0]]
            padding = [before for before, _ in borders] if same and symmetric else 0
            settings = {"stride": layer.strides, "padding": padding, "bias": layer.use_bias}
            self.core = nn.Conv2d(channels, layer.filters, layer.kernel_size, **settings)
        _copy_kernel_and_bias(self.core, layer, (3, 2, 0, 1))

    @staticmethod
    def _transposed_border(layer: keras.Layer) -> tuple[list[int], list[int], tuple[slice, ...] | None]:
        """What to crop on both sides, what to add at the end, and what to cut off there afterwards."""
        surplus = [kernel - stride for kernel, stride in zip(layer.kernel_size, layer.strides, strict=True)]
        extra = [max(0, -rows) for rows in surplus]
        if layer.padding != "same":
            return [0, 0], extra, None
        crops = [max(0, rows) // 2 for rows in surplus]
        odd = [max(0, rows) % 2 for rows in surplus]
        return crops, extra, tuple(slice(None, -rows or None) for rows in odd) if any(odd) else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.permute(0, 3, 1, 2)
        if any(self.pad):
            x = functional.pad(x, self.pad)
        x = self.core(x.contiguous(memory_format=self.memory_format))
        if self.cut is not None:
            x = x[:, :, *self.cut]
        return x.permute(0, 2, 3, 1)


class Recurrent(nn.Module):
    """An LSTM with Keras's default activations, or two that read in opposite directions."""

    def __init__(self, layer: keras.Layer, ways: list[keras.Layer]):
        super().__init__()
        for way in ways:
            gates = way.activation.__name__, way.recurrent_activation.__name__
            if gates != ("tanh", "sigmoid") or way.dropout or way.recurrent_dropout or not way.use_bias:
                raise TypeError(f"benchmarks/torch_twin.py knows the LSTM with default settings alone: {layer.name!r}")
        self.backwards = len(ways) == 1 and layer.go_backwards
        self.return_sequences = layer.return_sequences
        settings = {"batch_first": True, "bidirectional": len(ways) == 2}
        self.core = nn.LSTM(layer.input.shape[-1], ways[0].units, **settings)
        for way, suffix in zip(ways, ("", "_reverse"), strict=False):
            kernel, recurrent, bias = way.get_weights()  # the four gates in the same order as PyTorch's
            _copy(getattr(self.core, "weight_ih_l0" + suffix), kernel.T)
            _copy(getattr(self.core, "weight_hh_l0" + suffix), recurrent.T)
            _copy(getattr(self.core, "bias_ih_l0" + suffix), bias)
            _copy(getattr(self.core, "bias_hh_l0" + suffix), np.zeros_like(bias))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        sequence, (last, _) = self.core(x.flip(1) if self.backwards else x)
        return sequence if self.return_sequences else last.transpose(0, 1).flatten(1)


class BatchNorm(nn.Module):
    """Batch normalisation of the last axis."""

    def __init__(self, layer: keras.Layer):
        super().__init__()
        shape = layer.input.shape
        kind = nn.BatchNorm2d if len(shape) == 4 else nn.BatchNorm1d
        self.core = kind(shape[-1], eps=layer.epsilon, momentum=1 - layer.momentum)
        for parameter, variable in ((self.core.weight, layer.gamma), (self.core.bias, layer.beta)):
            if variable is not None:
                _copy(parameter, keras.ops.convert_to_numpy(variable))
            parameter.requires_grad_(variable is not None)
        _copy(self.core.running_mean, keras.ops.convert_to_numpy(layer.moving_mean))
        _copy(self.core.running_var, keras.ops.convert_to_numpy(layer.moving_variance))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.core(x.movedim(-1, 1)).movedim(1, -1)


def _is_last(layer: keras.Layer) -> bool:
    """Whether a layer normalises the last axis alone."""
    axes = keras.tree.flatten(layer.axis)
    return len(axes) == 1 and axes[0] in (-1, len(layer.input.shape) - 1)


def _layer_norm(layer: keras.Layer) -> nn.Module:
    core = nn.LayerNorm(
        layer.input.shape[-1], eps=layer.epsilon, elementwise_affine=layer.scale, bias=layer.scale and layer.center
    )
    for parameter, array in zip(core.parameters(), layer.get_weights(), strict=True):
        _copy(parameter, array)
    return core


def _linear(layer: keras.Layer) -> nn.Module:
    core = nn.Linear(layer.input.shape[-1], layer.units, bias=layer.use_bias)
    _copy_kernel_and_bias(core, layer, (1, 0))
    return core


def _border(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """Zeros before and after an axis, so that a convolution gives one output for every `stride` inputs."""
    total = max(0, (-(-size // stride) - 1) * stride + kernel - size)
    return total // 2, total - total // 2


def _copy_kernel_and_bias(core: nn.Module, layer: keras.Layer, axes: tuple[int, ...]) -> None:
    kernel, *bias = layer.get_weights()
    _copy(core.weight, kernel.transpose(axes))
    if bias:
        _copy(core.bias, bias[0])


def _copy(tensor: torch.Tensor, array: np.ndarray) -> None:
    if tensor.shape != array.shape:  # copy_ would stretch it silently
        raise ValueError(f"weights of shape {array.shape} do not fit {tuple(tensor.shape)}")
    with torch.no_grad():
        tensor.copy_(torch.from_numpy(np.ascontiguousarray(array)))
