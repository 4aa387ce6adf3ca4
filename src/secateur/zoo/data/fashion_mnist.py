"""FashionMNIST (Zalando, MIT): 28 x 28 grey pictures of ten kinds of clothes."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from secateur.errors import DataError
from secateur.zoo.idx import first_of_each, idx_file, read_split
from secateur.zoo.places import cache_folder, embedded, folders

LICENCE = "MIT, Zalando SE"
MEAN, STD = 0.2860, 0.3530  # of the 60,000 training images
MISSING = (
    "the full FashionMNIST is not on this machine: run `apt-get download dataset-fashion-mnist && "
    "dpkg-deb -x dataset-fashion-mnist*.deb DIR` and set SECATEUR_DATA=DIR/usr/share/datasets, "
    "or install torchvision where there is a network, or use full=False (10k + 2k images)"
)


def load(split: str, full: bool) -> TensorDataset:
    """Read images `(n, 1, 28, 28)`, normalised, and labels `(n,)`."""
    if full:
        images, labels = _full(split)
    else:
        arrays = embedded("fashion_mnist")
        images, labels = arrays[f"{split}_images"], arrays[f"{split}_labels"]
    pixels = torch.from_numpy(images).float().div_(255).sub_(MEAN).div_(STD).unsqueeze(1)
    return TensorDataset(pixels, torch.from_numpy(labels.astype(np.int64)))


def augment(inputs: list[Tensor], generator: torch.Generator) -> list[Tensor]:
    """Mirror each image with probability one half."""
    (images,) = inputs
    mirror = torch.rand(len(images), 1, 1, 1, generator=generator) < 0.5
    return [torch.where(mirror, images.flip(-1), images)]


def prepare(source: Path) -> dict[str, np.ndarray]:
    """Take the first 1,000 training and 200 test images of each class, in the files' order."""
    arrays = {}
    for split, per_class in (("train", 1000), ("test", 200)):
        images, labels = read_split(source, split, MISSING)
        chosen = first_of_each(labels, per_class)
        arrays[f"{split}_images"], arrays[f"{split}_labels"] = images[chosen], labels[chosen]
    return arrays


def _full(split: str) -> tuple[np.ndarray, np.ndarray]:
    for folder in folders("fashion-mnist", "FashionMNIST/raw"):
        if idx_file(folder, split, "images"):
            return read_split(folder, split, MISSING)
    try:
        from torchvision.datasets import FashionMNIST

        FashionMNIST(str(cache_folder()), download=True)
    except (ImportError, OSError, RuntimeError) as error:  # no torchvision, or no network
        raise DataError(MISSING) from error
    return read_split(cache_folder() / "FashionMNIST/raw", split, MISSING)
