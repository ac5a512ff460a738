"""A map of latent codes: a place for each, a colour and a place for the name of each class."""

import numpy as np

ON_MAP = 2000  # codes
MOST_NAMES = 60  # classes on a map that has their names

# A colour for each class, on a light and on a dark background. They differ with normal sight, protanopia, deuteranopia
# and tritanopia (simulated after Machado et al., 2009): found by a search for the largest least distance in OKLab.
COLOURS = [
    ("#0972be", "#2d84c1"),
    ("#c86b0e", "#b18304"),
    ("#039f6f", "#00b39c"),
    ("#730013", "#f37774"),
    ("#10c5ff", "#2ce1ff"),
    ("#bac04d", "#c9bf4c"),
    ("#575c17", "#97ffbe"),
    ("#a3427e", "#ab6186"),
    ("#e893c0", "#eebbce"),
    ("#3c2980", "#92a3ec"),
]


def choose_codes(available: int) -> np.ndarray:
    """Return which of so many codes are on the map: at random, but always the same ones."""
    return np.random.default_rng(0).permutation(available)[:ON_MAP]


def place_codes(codes: np.ndarray) -> np.ndarray:
    """Give each code (n, D) a place (n, 2) so that neighbours stay neighbours: two latents as they are, else t-SNE.

    van der Maaten & Hinton, Visualizing Data using t-SNE, 2008.
    """
    count, latents = codes.shape
    if is_plane(latents):
        return np.pad(codes, ((0, 0), (0, 2 - latents))).astype(np.float32)
    if count < 5 or not np.ptp(codes, axis=0).any():  # t-SNE needs neighbours, and some variance to begin with
        return codes[:, :2].astype(np.float32)
    from sklearn.manifold import TSNE

    # More than 400 steps take longer and do not separate the classes of MNIST any better.
    return TSNE(perplexity=min(30, (count - 1) / 3), max_iter=400, init="pca", random_state=0).fit_transform(codes)


def is_plane(latent_dim: int) -> bool:
    """Whether the map of so many latent dimensions is the latent space itself."""
    return latent_dim <= 2


def place_names(places: np.ndarray, classes: np.ndarray, distance: float) -> dict[int, np.ndarray]:
    """Return where the name of each class (n,) belongs on a map of (n, 2): at its most central code.

    Names are pushed apart until they are `distance` from each other.
    """
    centres = []
    present = np.unique(classes)
    for number in present:
        own = places[classes == number]
        lengths = np.linalg.norm(own[:, None] - own[None, :], axis=2)
        centres.append(own[lengths.sum(axis=1).argmin()])
    centres = np.array(centres, np.float32).reshape(-1, 2)
    for _ in range(100):
        gaps = centres[:, None] - centres[None, :]  # (C, C, 2)
        lengths = np.linalg.norm(gaps, axis=2, keepdims=True)
        push = np.clip(distance - lengths, 0, None) / np.maximum(lengths, 1e-9)
        centres = centres + np.sum(push * gaps, axis=1) / 4
    return dict(zip(present.tolist(), centres, strict=True))
