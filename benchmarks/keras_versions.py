"""Load both halves of a run with the oldest and the newest Keras, and compare: python benchmarks/keras_versions.py.

Each is installed into a fresh environment, with the newest TensorFlow that it works with. It needs Linux or macOS.
"""

import subprocess
import sys
import tempfile
import venv
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from vae import terminal
from vae.runs import SHIPPED

REQUIREMENTS = ("keras==3.8.0", "keras")
LOAD = """
import sys, keras, numpy, tensorflow
encoder, decoder = (keras.saving.load_model(f"{sys.argv[1]}/{half}.keras") for half in ("encoder", "decoder"))
rng = numpy.random.default_rng(0)
mean, log_var = encoder.predict(rng.random((100, *encoder.input_shape[1:])).astype("float32"), verbose=0)
pixels = decoder.predict(rng.standard_normal((100, *decoder.input_shape[1:])).astype("float32"), verbose=0)
numpy.savez(sys.argv[2], mean=mean, log_var=log_var, pixels=pixels)
print(f"Keras {keras.__version__} (TensorFlow {tensorflow.__version__}) loads both halves", flush=True)
"""


def main() -> None:
    """Environments -> outputs of both halves -> the largest difference."""
    parser = terminal.Parser("benchmarks/keras_versions.py", description="Load a run with the oldest and newest Keras.")
    parser.add_argument("--checkpoint", metavar="DIR", default=SHIPPED, help="the run (default: the shipped model)")
    checkpoint = parser.parse_args().checkpoint
    outputs = []
    with tempfile.TemporaryDirectory() as folder:
        for requirement in REQUIREMENTS:
            home = Path(folder, requirement)
            venv.create(home, with_pip=True)
            subprocess.run([home / "bin" / "pip", "install", "--quiet", requirement, "tensorflow"], check=True)
            subprocess.run([home / "bin" / "python", "-c", LOAD, checkpoint, home / "outputs.npz"], check=True)
            outputs.append(np.load(home / "outputs.npz"))
        for name in outputs[0]:
            difference = np.abs(outputs[0][name] - outputs[1][name]).max()
            print(f"{name}: they differ by at most {difference:.1e}")
            if not difference <= 1e-5:
                raise terminal.UserError(f"{name}: that is too much")


if __name__ == "__main__":
    terminal.run(main)
