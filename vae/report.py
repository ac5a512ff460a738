"""What the scripts tell the user: remarks on the images, the banner, warnings, metrics, the end of a run."""

import math
import os
import shlex
import sys
from argparse import Namespace

from vae.data import load
from vae.data.dataset import Dataset
from vae.networks import NETWORKS
from vae.parallel import count_cores
from vae.run import Run, list_variables
from vae.settings import MOST_COMPONENTS
from vae.terminal import UserError, find_backend, find_devices, import_keras, shown

LATENT_LAYERS = ("mean", "log_var", "scale")  # of an encoder; its stages show mu and sigma instead


def list_networks() -> None:
    """Print each network with its number of parameters and its default settings."""
    import_keras()
    from model import MixturePrior

    width = max(map(len, NETWORKS))
    for name, network in NETWORKS.items():
        parts = [*network.build((28, 28), network.hidden_dim, network.latent_dim)]
        if network.prior == "mixture":
            parts.append(MixturePrior(MOST_COMPONENTS, network.latent_dim))
        parameters = sum(part.count_params() for part in parts)
        print(f"{name:{width}}  {parameters:>10,} parameters  {network.build.__doc__.splitlines()[0]}")
        pace = f"--epochs {network.epochs} --batch-size {network.batch_size} --learning-rate {network.learning_rate:g}"
        sizes = f"--hidden-dim {network.hidden_dim} --latent-dim {network.latent_dim}"
        print(f"{'':{width}}  {pace} {sizes} --validation-split {network.validation_split:g}")


def load_shown_images(run: Run, options: Namespace) -> Dataset:
    """Load the images that a trained model is shown, by the flags of settings.add_data_flags; print the remarks."""
    if options.transpose and not (options.data or options.dataset):
        raise UserError("--transpose: which images? The run's own are read as in training; add --data or --dataset")
    dataset = load.load_shown(load.Source(options.dataset, options.data, options.transpose), run.config)
    print_remarks(dataset)
    return dataset


def print_remarks(dataset: Dataset) -> None:
    """Print how the images were converted, and a warning so that nobody can miss it."""
    for note in dataset.notes:
        print(f"-> {note}", file=sys.stderr)
    if dataset.warning:
        print(f"\n{'!' * 80}\n{dataset.warning}\n{'!' * 80}\n", file=sys.stderr)


def print_banner(run: Run, dataset: Dataset, vae) -> None:
    """Print every setting, and the shape of every stage."""
    settings, devices = run.settings, find_devices()
    state = 4 * sum(math.prod(variable.shape) for variable in list_variables(vae))
    lines = {
        "dataset": f"{dataset.name} ({dataset.source}{'; MNIST is unavailable' if dataset.replaces_mnist else ''})",
        "image_size": "{} x {}".format(*dataset.image_shape),
        **{name: run.config["dataset"][name] for name in ("train_images", "validation_images", "test_images")},
        **{name: value for name, value in vars(settings).items() if name not in ("dataset", "image_size", "data")},
        "prior": "N(0, I)" if settings.prior == "normal" else f"mixture of {settings.components} Gaussians, learned",
        "device": f"{' to '.join(devices[:: max(1, len(devices) - 1)])} ({count_cores()} cores, {find_backend()})",
        "parameters": f"{run.config['parameters']:,} (training state: {state / 1e6:,.0f} MB)",
    }
    rule = "=" * 60
    print(rule, *(f"{name} =  {value}" for name, value in lines.items()), rule, sep="\n")
    stages = [(layer.name, layer.output.shape) for layer in vae.encoder.layers if layer.name not in LATENT_LAYERS]
    stages += [(name, vae.encoder.outputs[0].shape) for name in ("mu", "sigma", "epsilon", "z")]
    _print_stages("Encoder", stages)
    print_decoder(vae.decoder)
    if hasattr(os, "sysconf"):  # Windows has none
        warn_of_memory(settings, vae, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))


def warn_of_memory(settings: Namespace, vae, memory: int) -> None:
    """Warn where training needs more than half of the memory (bytes), and name the flag. The needs were measured."""
    network, prior = vae.encoder.count_params() + vae.decoder.count_params(), vae.prior.count_params()
    pixels = math.prod(vae.decoder.output_shape[1:])
    needs = {
        "--hidden-dim or --image-size": 80 * network,
        "--latent-dim or --components": 80 * prior,
        "--batch-size or --importance-samples": 220 * pixels * settings.batch_size * settings.importance_samples,
    }
    total = 9e8 + sum(needs.values())  # the first is for Python and TensorFlow
    if total > memory / 2:
        has = f"of memory, and this machine has {memory / 1e9:.1f} GB"
        flags = max(needs, key=needs.get)
        print(f"-> Training will need about {total / 1e9:.1f} GB {has}: a smaller {flags} needs less", file=sys.stderr)


def print_decoder(decoder) -> None:
    """Print the shape of every stage of a decoder, from the latent vector to the pixels."""
    _print_stages("Decoder", [(layer.name, layer.output.shape) for layer in decoder.layers])


def _print_stages(title: str, stages: list[tuple[str, tuple]]) -> None:
    width = max(len(name) for name, _ in stages) + 1
    print(f"----- {title} -----", *(f"{name + ':':{width}}  {shape}" for name, shape in stages), sep="\n")


def print_complete(run: Run) -> None:
    """Print that nothing is left to do."""
    print(f"-> The run in {shown(run.folder)} is finished ({len(run.rows)} epochs): nothing is left to do.")
    print("-> A larger --epochs trains it further.")


def print_end(run: Run, dataset: Dataset) -> None:
    """Print where the run is saved, its losses on the test images, and the command that draws from it."""
    folder, losses = shown(run.folder), run.config["test"]
    print(f"-> Plot of loss curves is saved in {shown(run.folder / 'loss_curves.png')}")
    print(f"-> Model is saved in {folder}")
    print(
        f"-> Test: general loss {losses['general_loss']:.2f} = reconstruction {losses['reconstruction_loss']:.2f} + "
        f"KL {losses['kl_loss']:.2f} nats per image "
        f"({len(dataset.test_images):,} images of {dataset.name}, one posterior sample each)"
    )
    print(f"-> Draw digits from it: python generator.py --checkpoint {shlex.quote(folder)}")


def format_metrics(metrics: dict[str, float]) -> str:
    """Return the metrics of evaluate.py as lines that a person reads."""
    unit = "nats per image"

    def with_error(name: str, error: str) -> str:
        return f"{metrics[name]:.2f}" + (f" ± {metrics[error]:.2f}" if metrics[error] is not None else "")

    sample = f"({metrics['importance_samples']} importance samples, {metrics['nll_images']:,} images)"
    lines = {
        "General loss (negative ELBO)": f"{with_error('general_loss', 'standard_error')} {unit}",
        "Reconstruction loss": f"{metrics['reconstruction_loss']:.2f} {unit}",
        "KL-divergence loss": f"{metrics['kl_loss']:.2f} {unit}",
        "Negative log-likelihood": f"{with_error('nll', 'nll_standard_error')} {unit} {sample}",
        "Irreducible part": f"{metrics['irreducible_loss']:.2f} {unit} (the loss of an image that is decoded exactly)",
        "Active units": f"{metrics['active_units']} of {metrics['latent_dim']} latent dimensions",
        "Parameters": f"{metrics['parameters']:,}",
    }
    if metrics["label_accuracy"] is not None:
        lines["Labels"] = f"{metrics['label_accuracy']:.2%} right, by p(label | z); training sees no label"
    width = max(map(len, lines)) + 1
    return "\n".join(f"{label + ':':{width}} {text}" for label, text in lines.items())
