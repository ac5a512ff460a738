"""What the scripts print: the banner, the stages of a network, the list of networks, the end of a run."""

import os
import sys
from argparse import Namespace

from vae.data import load
from vae.data.dataset import Dataset, number_as_in_run
from vae.networks import NETWORKS
from vae.run import Run
from vae.settings import MOST_COMPONENTS, variance_of
from vae.terminal import find_devices, shown

LATENT_LAYERS = ("mean", "log_var", "scale")  # of an encoder; its stages show mu and sigma instead


def list_networks() -> None:
    """Print each network with its number of parameters and its default settings."""
    from model import MixturePrior

    width = max(map(len, NETWORKS))
    for name, network in NETWORKS.items():
        parts = [*network.build((28, 28), network.hidden_dim, network.latent_dim)]
        if network.prior == "mixture":
            parts.append(MixturePrior(MOST_COMPONENTS, network.latent_dim))
        parameters = sum(part.count_params() for part in parts)
        print(f"{name:{width}}  {parameters:>10,} parameters  {network.summary}")
        pace = f"--epochs {network.epochs} --batch-size {network.batch_size} --learning-rate {network.learning_rate:g}"
        sizes = f"--hidden-dim {network.hidden_dim} --latent-dim {network.latent_dim}"
        print(f"{'':{width}}  {pace} {sizes} --validation-split {network.validation_split:g}")


def load_shown_images(run: Run, options: Namespace) -> Dataset:
    """Load the images that a trained model is shown, by the flags of settings.add_data_flags; print the remarks."""
    dataset = load.load_for_run(load.Options(options.dataset, options.data, options.transpose), run.config)
    dataset = number_as_in_run(dataset, run.label_names)
    print_remarks(dataset)
    return dataset


def print_remarks(dataset: Dataset) -> None:
    """Print how the images were converted, and a warning so that nobody can miss it."""
    for note in dataset.notes:
        print(f"-> {note}", file=sys.stderr)
    if dataset.warning:
        print(f"\n{'!' * 80}\n{dataset.warning}\n{'!' * 80}\n", file=sys.stderr)


def print_banner(settings: Namespace, dataset: Dataset, vae) -> None:
    """Print every setting, and the shape of every stage."""
    import keras

    variance = variance_of(settings)
    validation = dataset.validation_images
    lines = {
        "network": settings.network,
        "dataset": f"{dataset.name} ({dataset.source}{'; MNIST is unavailable' if dataset.replaces_mnist else ''})",
        "image_size": "{} x {}".format(*dataset.image_shape),
        "train_images": len(dataset.train_images),
        "validation_images": 0 if validation is None else len(validation),
        "test_images": len(dataset.test_images),
        "batch_size": settings.batch_size,
        "hidden_dim": settings.hidden_dim,
        "latent_dim": settings.latent_dim,
        "epoch_number": settings.epochs,
        "learning_rate": settings.learning_rate,
        "prior": "N(0, I)" if settings.prior == "normal" else f"mixture of {settings.components} Gaussians, learned",
        "beta": settings.beta,
        "importance_samples": settings.importance_samples,
        "likelihood": settings.likelihood + ("" if variance is None else f" (variance {variance:g})"),
        "binarize": settings.binarize,
        "precision": settings.precision,
        "deterministic": settings.deterministic,
        "seed": settings.seed,
        "device": f"{_name_devices(find_devices())} ({os.cpu_count()} cores, {keras.backend.backend()})",
        "parameters": sum(part.count_params() for part in (vae.encoder, vae.decoder, vae.prior)),
    }
    rule = "=" * 60
    print(rule, *(f"{name} =  {value}" for name, value in lines.items()), rule, sep="\n")
    stages = [(layer.name, layer.output.shape) for layer in vae.encoder.layers if layer.name not in LATENT_LAYERS]
    stages += [(name, vae.encoder.outputs[0].shape) for name in ("mu", "sigma", "epsilon", "z")]
    _print_stages("Encoder", stages)
    print_decoder(vae.decoder)


def _name_devices(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{len(names)} devices, {names[0]} to {names[-1]}"


def print_decoder(decoder) -> None:
    """Print the shape of every stage of a decoder, from the latent vector to the pixels."""
    _print_stages("Decoder", [(layer.name, layer.output.shape) for layer in decoder.layers])


def _print_stages(title: str, stages: list[tuple[str, tuple]]) -> None:
    width = max(len(name) for name, _ in stages) + 1
    print(f"----- {title} -----", *(f"{name + ':':{width}}  {shape}" for name, shape in stages), sep="\n")


def print_complete(run: Run) -> None:
    """Print that nothing is left to do."""
    print(f"-> The run in {shown(run.folder)} is finished ({run.settings.epochs} epochs): nothing is left to do.")
    print("-> A larger --epochs trains it further.")


def print_end(run: Run, dataset: Dataset, losses: dict[str, float]) -> None:
    """Print where the run is saved, its losses on the test images, and the command that draws from it."""
    if (curves := run.folder / "loss_curves.png").exists():
        print(f"-> Plot of loss curves is saved in {shown(curves)}")
    print(f"-> Model is saved in {shown(run.folder)}")
    print(
        f"-> Test: general loss {losses['general_loss']:.2f} = reconstruction {losses['reconstruction_loss']:.2f} + "
        f"KL {losses['kl_loss']:.2f} nats per image "
        f"({len(dataset.test_images):,} images of {dataset.name}, one posterior sample each)"
    )
    print(f"-> Draw digits from it: python generator.py --checkpoint {shown(run.folder)}")


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
