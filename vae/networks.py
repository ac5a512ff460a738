"""The networks that `--network` trains: each one's source, builder and default settings, together.

`standard` is built in model.py. The five others were published before it. Their defaults are the published settings;
each docstring says what the authors left open. Four are students' projects for the course CmpE 597 Deep Learning of
Boğaziçi University (2021 and after), and `dense` is github.com/mateskarayol/DeepLearning_3_VAE.

Keras takes seconds to import, so only the builders import it: the command line needs the defaults alone.
"""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Network:
    """A network: its builder, and its default settings."""

    build: Callable  # (image_shape, hidden_dim, latent_dim) -> (encoder, decoder), both keras.Model
    epochs: int
    batch_size: int
    learning_rate: float
    hidden_dim: int
    latent_dim: int
    validation_split: float = 0.0
    prior: str = "normal"


NETWORKS: dict[str, Network] = {}


def network(**defaults) -> Callable:
    """Register a builder in NETWORKS under its own name, with its default settings."""

    def register(build: Callable) -> Callable:
        NETWORKS[build.__name__] = Network(build, **defaults)
        return build

    return register


@network(epochs=34, batch_size=200, learning_rate=8e-3, hidden_dim=64, latent_dim=24, prior="mixture")
def standard(image_shape: tuple[int, int], hidden_dim: int, latent_dim: int):
    """Two LSTMs read rows and columns; transposed convolutions draw from 7 x 7 up to 28 x 28 (model.py)."""
    import model

    return model.build_encoder(image_shape, hidden_dim, latent_dim), model.build_decoder(image_shape, latent_dim)


@network(epochs=50, batch_size=100, learning_rate=1e-3, hidden_dim=64, latent_dim=64)
def readout(image_shape: tuple[int, int], hidden_dim: int, latent_dim: int):
    """All outputs of the LSTM are encoded; a dense layer reads the image out of the last feature maps.

    Left open by the authors: the rate of dropout, here 0.25.
    """
    from model import end_decoder, end_encoder, keras, layers, transposed_conv

    image = keras.Input(image_shape, name="image")
    h = layers.LSTM(hidden_dim, return_sequences=True, name="lstm")(image)  # (batch, 28, hidden_dim)
    encoder = end_encoder(image, layers.Flatten(name="flatten")(h), latent_dim)

    height, width = image_shape
    z = keras.Input((latent_dim,), name="z")
    h = layers.Dense(98, activation="relu", name="dense1")(z)
    h = _feature_maps(h, (height // 2, width // 2, 1), "dense2")
    for number, (filters, strides) in enumerate([(64, 1), (32, 1), (32, 2)], start=1):
        h = transposed_conv(filters, 3, strides, f"tconv{number}", "relu")(h)  # 14 x 14; the last one 28 x 28
        h = layers.Dropout(0.25, name=f"dropout{number}")(h)
    h = layers.Flatten(name="flatten")(h)  # (batch, 25088)
    return encoder, end_decoder(z, layers.Dense(height * width, name="dense3")(h), image_shape)


@network(epochs=50, batch_size=100, learning_rate=4e-3, hidden_dim=28, latent_dim=2)
def softplus(image_shape: tuple[int, int], hidden_dim: int, latent_dim: int):
    """Two latent dimensions; the encoder's standard deviation is a softplus.

    Left open by the authors: epochs, batch size and learning rate. They also trained
    on Gaussian pixels; that is `--likelihood gaussian`.
    """
    from model import end_decoder, keras, layers, ops

    image = keras.Input(image_shape, name="image")
    h = layers.LSTM(hidden_dim, name="lstm")(image)  # (batch, hidden_dim), the last output
    h = layers.Dense(200, activation="relu", name="dense1")(h)
    h = layers.Dense(200, activation="relu", name="dense2")(h)
    mean = layers.Dense(latent_dim, dtype="float32", name="mean")(h)
    scale = layers.Dense(latent_dim, activation="softplus", dtype="float32", name="scale")(h)
    encoder = keras.Model(image, [mean, 2.0 * ops.log(scale)], name="encoder")

    z = keras.Input((latent_dim,), name="z")
    h = layers.Dense(24, activation="relu", name="dense1")(z)
    return encoder, end_decoder(z, _upsample(h, image_shape, (64, 64, 32), "dense2"), image_shape)


@network(epochs=30, batch_size=256, learning_rate=6e-3, hidden_dim=256, latent_dim=16, validation_split=0.3)
def dense(image_shape: tuple[int, int], hidden_dim: int, latent_dim: int):
    """The last output of a wide LSTM is encoded; two dense layers decode.

    Left open by the author: the learning rate.
    """
    from model import end_decoder, end_encoder, keras, layers

    image = keras.Input(image_shape, name="image")
    encoder = end_encoder(image, layers.LSTM(hidden_dim, name="lstm")(image), latent_dim)

    z = keras.Input((latent_dim,), name="z")
    h = layers.Dense(256, activation="relu", name="dense1")(z)
    pixels = image_shape[0] * image_shape[1]
    return encoder, end_decoder(z, layers.Dense(pixels, name="dense2")(h), image_shape)


@network(epochs=50, batch_size=100, learning_rate=1e-3, hidden_dim=32, latent_dim=32)
def batchnorm(image_shape: tuple[int, int], hidden_dim: int, latent_dim: int):
    """Normalised images; the decoder has batch normalisation, pooling and dropout.

    The decoder has three blocks, each a transposed convolution and those three. Left open by the authors: 32
    latents; a dense layer that sees all rows; 7 x 7 x 64 at the start of the decoder; 64, 32 and 8 filters in its
    blocks; average pooling over 2 x 2 with stride 1, which smooths the pattern that strides leave; dropout 0.1; a last
    transposed convolution with a single channel.
    """
    from model import end_decoder, end_encoder, keras, layers, transposed_conv

    image = keras.Input(image_shape, name="image")
    h = layers.Normalization(axis=None, mean=0.1307, variance=0.3081**2, name="normalization")(image)  # of MNIST
    h = layers.LSTM(hidden_dim, return_sequences=True, name="lstm")(h)  # (batch, 28, hidden_dim)
    h = layers.ReLU(name="relu")(layers.Flatten(name="flatten")(h))
    encoder = end_encoder(image, layers.Dense(256, activation="relu", name="dense")(h), latent_dim)

    z = keras.Input((latent_dim,), name="z")
    h = _feature_maps(z, (image_shape[0] // 4, image_shape[1] // 4, 64), "dense")
    for number, (filters, size, strides) in enumerate([(64, 3, 1), (32, 4, 2), (8, 4, 2)], start=1):
        h = transposed_conv(filters, size, strides, f"tconv{number}", "relu")(h)  # 7 x 7, 14 x 14, 28 x 28
        h = layers.BatchNormalization(name=f"batchnorm{number}")(h)
        h = layers.AveragePooling2D(2, strides=1, padding="same", name=f"pooling{number}")(h)
        h = layers.Dropout(0.1, name=f"dropout{number}")(h)
    return encoder, end_decoder(z, transposed_conv(1, 3, 1, "tconv4")(h), image_shape)


@network(epochs=170, batch_size=250, learning_rate=8e-3, hidden_dim=64, latent_dim=2)
def plane(image_shape: tuple[int, int], hidden_dim: int, latent_dim: int):
    """Two latent dimensions, from the last output of the LSTM and a dense layer.

    Left open by the authors: 64 units of the LSTM, 128 of the dense layer, 7 x 7 x 32 at the start of the decoder,
    batch size and learning rate.
    """
    from model import end_decoder, end_encoder, keras, layers

    image = keras.Input(image_shape, name="image")
    h = layers.LSTM(hidden_dim, name="lstm")(image)  # (batch, hidden_dim), the last output
    encoder = end_encoder(image, layers.Dense(128, activation="relu", name="dense")(h), latent_dim)

    z = keras.Input((latent_dim,), name="z")
    return encoder, end_decoder(z, _upsample(z, image_shape, (32, 32, 32), "dense"), image_shape)


def _feature_maps(h, shape: tuple[int, int, int], name: str):
    """Turn vectors into feature maps (batch, *shape) by a dense layer."""
    from model import layers

    h = layers.Dense(shape[0] * shape[1] * shape[2], activation="relu", name=name)(h)
    return layers.Reshape(shape, name="reshape")(h)


def _upsample(h, image_shape: tuple[int, int], filters: tuple[int, int, int], name: str):
    """Turn vectors into 7 x 7 feature maps, double their sides twice, end in a single channel: (batch, 28, 28, 1)."""
    from model import transposed_conv

    h = _feature_maps(h, (image_shape[0] // 4, image_shape[1] // 4, filters[0]), name)
    h = transposed_conv(filters[1], 3, 2, "tconv1", "relu")(h)
    h = transposed_conv(filters[2], 3, 2, "tconv2", "relu")(h)
    return transposed_conv(1, 3, 1, "tconv3")(h)
