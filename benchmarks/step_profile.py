"""Say where a training step's time goes: python benchmarks/step_profile.py (random images; under a minute).

Trains as main.py does, for as many images as --images says, under TensorFlow's profiler, and adds up how long its
operations ran, by what they belong to. Operations that run at the same time on two cores count twice, so the shares are
of the processor's time, not of the clock's.
"""

import argparse
import collections
import re
import sys
import tempfile
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import main

PARTS = (  # the first that an operation's name matches
    ("optimizer", r"adam|cond/then.*Assign(Sub|Add)?VariableOp"),
    ("LSTM", r"lstm"),
    ("transposed convolutions", r"tconv"),
    ("dense layers", r"dense|mean_|log_var_|MatMul"),
    ("sampling, loss and the rest", r""),
)


def profile(images: int) -> None:
    """Print the share of each part."""
    settings = main.complete({})
    vae = main.make_model(settings, 10**6, main.shards(settings, images % settings["batch_size"] or images))
    import tensorflow as tf
    from tensorflow.tsl.profiler.protobuf import xplane_pb2

    from vae.training import Batches

    pixels = np.random.default_rng(0).integers(0, 256, (images, 28, 28), np.uint8)
    batches = Batches(pixels, settings["batch_size"], seed=0, shuffle=True)
    vae.fit(batches, verbose=0)  # traces and warms up
    with tempfile.TemporaryDirectory() as folder:
        with tf.profiler.experimental.Profile(folder):
            vae.fit(batches, verbose=0)
        (trace,) = Path(folder).rglob("*.xplane.pb")
        space = xplane_pb2.XSpace.FromString(trace.read_bytes())
    (plane,) = (plane for plane in space.planes if plane.name == "/host:CPU")
    shares = collections.Counter()
    clock = 0.0
    for line in plane.lines:
        for event in line.events:
            name = plane.event_metadata[event.metadata_id].name
            milliseconds = event.duration_ps / 1e9
            if name == "multi_step_on_iterator":
                clock += milliseconds
            elif re.fullmatch(r"Iterator::Root(::\w+)*::FlatMap\[0\]::Generator", name):
                shares["input (Python)"] += milliseconds
            elif name.startswith("while/body") and not name.endswith((":While", ":StatefulPartitionedCall", ":If")):
                shares[next(part for part, pattern in PARTS if re.search(pattern, name, re.IGNORECASE))] += milliseconds
    print(f"{images} images in {clock:.0f} ms of training steps\n\n| part | ms | share |\n|---|---|---|")
    for part, milliseconds in shares.most_common():
        print(f"| {part} | {milliseconds:.0f} | {milliseconds / shares.total():.0%} |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=12_000, help="images to train on (default: 12000)")
    profile(parser.parse_args().images)
