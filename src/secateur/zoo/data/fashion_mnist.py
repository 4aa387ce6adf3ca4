"""FashionMNIST (Zalando, MIT): 28 x 28 grey pictures of ten kinds of clothes."""

import gzip
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from secateur.errors import DataError
from secateur.zoo.places import cache_folder, embedded, folders

LICENCE = "MIT, Zalando SE"
MEAN, STD = 0.2860, 0.3530  # of the 60,000 training images
FILES = {"train": "train", "test": "t10k"}
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
        images, labels = _read(source, split)
        chosen = np.concatenate([np.flatnonzero(labels == c)[:per_class] for c in range(10)])
        chosen.sort()
        arrays[f"{split}_images"], arrays[f"{split}_labels"] = images[chosen], labels[chosen]
    return arrays


def _full(split: str) -> tuple[np.ndarray, np.ndarray]:
    for folder in folders("fashion-mnist", "FashionMNIST/raw"):
        if _file(folder, f"{FILES[split]}-images-idx3-ubyte"):
            return _read(folder, split)
    try:
        from torchvision.datasets import FashionMNIST

        FashionMNIST(str(cache_folder()), download=True)
    except (ImportError, OSError, RuntimeError) as error:  # no torchvision, or no network
        raise DataError(MISSING) from error
    return _read(cache_folder() / "FashionMNIST/raw", split)


def _file(folder: Path, stem: str) -> Path | None:
    return next((p for p in (folder / stem, folder / f"{stem}.gz") if p.is_file()), None)


def _read(folder: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    images = _idx(folder, f"{FILES[split]}-images-idx3-ubyte")
    labels = _idx(folder, f"{FILES[split]}-labels-idx1-ubyte")
    if images.shape[1:] != (28, 28) or len(images) != len(labels):
        raise DataError(
            f"{folder} does not hold FashionMNIST: images {images.shape}, labels {labels.shape}; "
            "fetch the files again"
        )
    return images, labels


def _idx(folder: Path, stem: str) -> np.ndarray:
    """Read an IDX file: rank in byte 3, big-endian uint32 sizes from byte 4, then the bytes."""
    path = _file(folder, stem)
    if path is None:
        raise DataError(f"{folder} lacks {stem}[.gz]; {MISSING}")
    try:
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        shape = np.frombuffer(raw, ">u4", count=raw[3], offset=4)
        return np.frombuffer(raw, np.uint8, offset=4 + 4 * raw[3]).reshape(shape).copy()
    except (OSError, EOFError, IndexError, ValueError) as error:
        raise DataError(f"{path} is not a whole IDX file ({error}); fetch it again") from error
