"""What the three scripts share at the terminal: reading flags, importing Keras quietly, showing stages, ending well."""

import argparse
import math
import os
import signal
import sys
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

from vae.settings import NETWORKS, SETTINGS, UserError, complete


class Parser(argparse.ArgumentParser):
    """argparse whose errors are one line, with the flags' defaults in the help."""

    def __init__(self, description: str):
        super().__init__(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message} (see python {self.prog} --help)\n")


def positive_integer(text: str) -> int:
    """A whole number from 1 to a million, for argparse."""
    return _number(text, int, "a whole number from 1 to 1000000", lambda number: 1 <= number <= 10**6)


def layer_size(text: str) -> int:
    """A whole number from 1 to 1024, for argparse: a network of these fits any memory, whoever wrote its config."""
    return _number(text, int, "a whole number from 1 to 1024", lambda number: 1 <= number <= 1024)


def sample_count(text: str) -> int:
    """A whole number from 1 to 100, for argparse: each of them takes as much memory as a batch."""
    return _number(text, int, "a whole number from 1 to 100", lambda number: 1 <= number <= 100)


def seed(text: str) -> int:
    """A whole number that NumPy and Keras both take as a seed, for argparse."""
    return _number(text, int, "a whole number from 0 to 4294967295", lambda number: 0 <= number < 2**32)


def positive_number(text: str) -> float:
    """A finite number above 0, for argparse."""
    return _number(text, float, "a number above 0", lambda number: number > 0)


def number(text: str) -> float:
    """A finite number from 0, for argparse."""
    return _number(text, float, "a number from 0", lambda number: number >= 0)


def variance(text: str) -> float:
    """A number whose densities float32 can hold, for argparse."""
    return _number(text, float, "a number from 0.000001 to 1000", lambda number: 1e-6 <= number <= 1e3)


def share(text: str) -> float:
    """A number from 0 to below 1, for argparse."""
    return _number(text, float, "a number from 0 to below 1", lambda number: 0 <= number < 1)


def _number(text: str, kind: type, wanted: str, fits: Callable) -> int | float:
    try:
        value = kind(text)
    except ValueError:
        value = math.nan
    if not (fits(value) and math.isfinite(value)):  # NaN fits nowhere
        raise argparse.ArgumentTypeError(f"{text!r} is not {wanted}")
    return value


KINDS = {
    "positive integer": positive_integer,
    "layer size": layer_size,
    "sample count": sample_count,
    "seed": seed,
    "positive number": positive_number,
    "number": number,
    "share": share,
    "variance": variance,
    str: str,
}


class SettingsParser(Parser):
    """A parser that has every setting of a run as a flag; what is not given does not appear in what it returns."""

    def __init__(self, description: str):
        super().__init__(description)
        for setting in SETTINGS:
            if setting.kind is bool:
                more = {"action": "store_true", "help": f"{setting.help} (default: off)"}
            else:
                metavar = None if setting.choices else setting.name.rsplit("_")[-1].upper()
                choices = (*setting.choices, "help") if setting.name == "network" else setting.choices
                more = {"type": KINDS[setting.kind], "choices": choices, "metavar": metavar}
                more["help"] = setting.help + _default(setting)
            self.add_argument(flag(setting.name), default=argparse.SUPPRESS, **more)


def flag(name: str) -> str:
    """A setting as it is typed."""
    return "--" + name.replace("_", "-")


def shown(path: Path) -> str:
    """A path as one would type it from here."""
    try:
        relative = os.path.relpath(path)
    except ValueError:  # on Windows, from one drive to another
        return str(path)
    return str(path) if relative.startswith("..") else relative


def settings_of(config: dict, folder: Path) -> dict:
    """Every setting of the run in `folder` as its config has it; UserError where no command line could have said so."""
    for setting in SETTINGS:
        if not setting.fits(value := config["settings"].get(setting.name, setting.default), KINDS):
            raise UserError(f"{folder / 'config.json'}: {setting.name} cannot be {value!r:.50}; choose another run")
    return complete(config["settings"])


def _default(setting) -> str:
    if "default:" in setting.help:
        return ""
    if setting.default is not None:
        return f" (default: {setting.default})"
    own = {name: getattr(network, setting.name) for name, network in NETWORKS.items()}
    return f" (default: {', '.join(f'{value:g} for {name}' for name, value in own.items())})"


ENDS = ("mean", "log_var", "scale")  # layers of an encoder that mu and sigma stand for among its stages


def encoder_stages(encoder) -> list[str]:
    """Return a line for the shape of every stage of an encoder, from the image to the latent vector z."""
    body = [(layer.name, layer.output.shape) for layer in encoder.layers if layer.name not in ENDS]
    latent = encoder.outputs[0].shape
    return _aligned(body + [(name, latent) for name in ("mu", "sigma", "epsilon", "z")])


def decoder_stages(decoder) -> list[str]:
    """Return a line for the shape of every stage of a decoder, from the latent vector to the pixels."""
    return _aligned([(layer.name, layer.output.shape) for layer in decoder.layers])


def _aligned(shapes: list[tuple[str, tuple]]) -> list[str]:
    width = max(len(name) for name, _ in shapes) + 1
    return [f"{name + ':':{width}}  {shape}" for name, shape in shapes]


def import_keras():
    """Import Keras without TensorFlow's start-up notices, and return it; on any processor it uses oneDNN's operations.

    The notices are written to the file descriptor of standard error by compiled code, before any setting could silence
    them, so the descriptor itself is turned away for as long as the import lasts.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    # By itself, TensorFlow takes oneDNN only where there are instructions for neural networks (AVX512_VNNI and the
    # like). Where there are none, as on many laptops, training by TensorFlow's own operations is 1.5 times as slow.
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
    with _descriptor_silenced(2):
        import keras

        devices()  # the search for a GPU has notices of its own
    return keras


def devices() -> list[str]:
    """What Keras computes on."""
    import keras

    if keras.backend.backend() == "torch":  # Keras 3.15 cannot list PyTorch's
        import torch

        return ["cuda" if torch.cuda.is_available() else "cpu"]
    return keras.distribution.list_devices()


@contextmanager
def _descriptor_silenced(descriptor: int):
    sys.stderr.flush()
    kept = os.dup(descriptor)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, descriptor)
        yield
    finally:
        os.dup2(kept, descriptor)
        os.close(kept)
        os.close(nowhere)


class Terminated(KeyboardInterrupt):
    """SIGTERM came: the same as Ctrl-C, but for the exit status."""


_asked_to_end: type[KeyboardInterrupt] | None = None


def _end(number: int, frame) -> NoReturn:
    global _asked_to_end
    _asked_to_end = Terminated if number == signal.SIGTERM else KeyboardInterrupt
    raise _asked_to_end


def heed_signals() -> None:
    """Raise again what a signal has raised before, if it did not come through.

    Libraries lose one now and then: TensorFlow's compiled code (2.21) does, where it asks Python for a shape's length.
    """
    if _asked_to_end is not None:
        raise _asked_to_end


def run(main: Callable[[], None]) -> NoReturn:
    """Run a script's `main`; end with one line and status 1 on a `UserError`, 130 on Ctrl-C, 143 on SIGTERM.

    Notes on the exception (`add_note`) go into the line.
    """
    script = os.path.basename(sys.argv[0])
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) != signal.SIG_IGN:  # as in the background of a shell, which Ctrl-C is not meant for
            signal.signal(number, _end)
    try:
        main()
        sys.stdout.flush()
    except UserError as error:
        sys.exit(f"{script}: {' '.join(str(error).splitlines())}")  # file names may have line breaks
    except KeyboardInterrupt as stop:
        for number in (signal.SIGINT, signal.SIGTERM):  # a second one must not break into the ending
            signal.signal(number, signal.SIG_IGN)
        word, status = ("terminated", 143) if isinstance(stop, Terminated) else ("interrupted", 130)
        print("\n" + "; ".join([f"{script}: {word}", *getattr(stop, "__notes__", [])]), file=sys.stderr)
        sys.exit(status)
    except OSError as error:
        # Whoever read our output has gone (`| head`), or its disk is full; Python's own flush at exit would fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141 if isinstance(error, BrokenPipeError) else f"{script}: {error}")
    sys.exit(0)
