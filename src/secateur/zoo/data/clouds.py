"""Point clouds made on the spot: ten kinds of surface, stretched, turned and noisy."""

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import TensorDataset

LICENCE = "synthetic, Apache-2.0"
POINTS = 256
SIZES = {"train": 2000, "test": 500}
SEEDS = {"train": 0, "test": 1}
NOISE = 0.04  # standard deviation, against a cloud of radius 1

SURFACES = {  # x, y, z of u, v in [0, 1); the angles are a = 2 pi u and b = 2 pi v
    "sphere": lambda u, v, a, b: (_ring(v) * np.cos(a), _ring(v) * np.sin(a), 2 * v - 1),
    "cylinder": lambda u, v, a, b: (np.cos(a), np.sin(a), 2 * v - 1),
    "cone": lambda u, v, a, b: (v**0.5 * np.cos(a), v**0.5 * np.sin(a), 1.5 - 1.5 * v**0.5),
    "torus": lambda u, v, a, b: (
        (1 + 0.4 * np.cos(b)) * np.cos(a),
        (1 + 0.4 * np.cos(b)) * np.sin(a),
        0.4 * np.sin(b),
    ),
    "helix": lambda u, v, a, b: (
        (1 + 0.15 * np.cos(b)) * np.cos(2 * a),
        (1 + 0.15 * np.cos(b)) * np.sin(2 * a),
        2 * u - 1 + 0.15 * np.sin(b),
    ),
    "moebius": lambda u, v, a, b: (
        (1 + (v - 0.5) * np.cos(a / 2)) * np.cos(a),
        (1 + (v - 0.5) * np.cos(a / 2)) * np.sin(a),
        (v - 0.5) * np.sin(a / 2),
    ),
    "saddle": lambda u, v, a, b: (2 * u - 1, 2 * v - 1, (2 * u - 1) ** 2 - (2 * v - 1) ** 2),
    "bowl": lambda u, v, a, b: (v**0.5 * np.cos(a), v**0.5 * np.sin(a), v),
    "cube": lambda u, v, a, b: _cube(u, v),
    "wave": lambda u, v, a, b: (2 * u - 1, 2 * v - 1, 0.4 * np.sin(2 * a)),
}


def load(split: str, full: bool) -> TensorDataset:
    """Make clouds `(n, 3, 256)` and surface numbers `(n,)`; there is no larger set than this."""
    # RandomState, because numpy promises that its numbers stay the same for ever
    random = np.random.RandomState(SEEDS[split])
    labels = np.arange(SIZES[split]) % len(SURFACES)
    makers = list(SURFACES.values())
    clouds = np.stack([_cloud(makers[label], random) for label in labels]).astype(np.float32)
    return TensorDataset(torch.from_numpy(clouds), torch.from_numpy(labels))


def augment(inputs: list[Tensor], generator: torch.Generator) -> list[Tensor]:
    """Turn each cloud by a random rotation."""
    (clouds,) = inputs
    turn, _ = torch.linalg.qr(torch.randn(len(clouds), 3, 3, generator=generator))
    return [turn @ clouds]


def _cloud(surface, random: np.random.RandomState) -> np.ndarray:
    """Sample one surface, stretch and turn it, add noise, put it into the unit ball."""
    u, v = random.uniform(size=(2, POINTS))
    points = np.stack(surface(u, v, 2 * np.pi * u, 2 * np.pi * v))
    points *= random.uniform(0.7, 1.3, size=(3, 1))
    turn, _ = np.linalg.qr(random.normal(size=(3, 3)))
    points = turn @ points
    points -= points.mean(1, keepdims=True)
    points /= np.linalg.norm(points, axis=0).max()
    return points + NOISE * random.normal(size=points.shape)


def _ring(v: np.ndarray) -> np.ndarray:
    return np.sqrt(1 - (2 * v - 1) ** 2)


def _cube(u: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Use u's first digit in base 6 as the face and the rest as a coordinate on it."""
    face = (6 * u).astype(int)
    p, q, side = 2 * (6 * u - face) - 1, 2 * v - 1, np.where(face < 3, 1.0, -1.0)
    axis = face % 3
    x = np.choose(axis, [side, p, p])
    y = np.choose(axis, [p, side, q])
    z = np.choose(axis, [q, q, side])
    return x, y, z
