"""The parts of the project: data, checkpoints, likelihood, latent vectors and figures."""
