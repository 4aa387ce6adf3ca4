"""CIFAR-10 (Krizhevsky): 32 x 32 colour pictures of ten kinds of thing, from the user's files."""

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from secateur.errors import DataError
from secateur.zoo.data import fashion_mnist
from secateur.zoo.places import folders

LICENCE = "CIFAR-10, Alex Krizhevsky; not distributed here"
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)  # of the 50,000 training images
FILES = {"train": [f"data_batch_{i}.bin" for i in range(1, 6)], "test": ["test_batch.bin"]}
RECORD = 1 + 3 * 32 * 32  # a label, then red, green and blue, row by row
MISSING = (
    "CIFAR-10 is not on this machine: unpack "
    "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz in DIR and set SECATEUR_DATA=DIR"
)

augment = fashion_mnist.augment


def load(split: str, full: bool) -> TensorDataset:
    """Read images `(n, 3, 32, 32)`, normalised, and labels `(n,)`; full or not, it is all of it.

    The binary version of the files is read, since the Python version is made of pickles.
    """
    for folder in folders("cifar-10-batches-bin"):
        paths = [folder / name for name in FILES[split]]
        if all(path.is_file() for path in paths):
            break
    else:
        raise DataError(MISSING)
    raw = np.concatenate([np.fromfile(path, np.uint8) for path in paths])
    if raw.size == 0 or raw.size % RECORD:
        raise DataError(f"{folder} holds {raw.size} bytes, not records of {RECORD}; fetch it again")
    records = torch.from_numpy(raw).view(-1, RECORD)
    images: Tensor = records[:, 1:].reshape(-1, 3, 32, 32).float() / 255
    mean, std = (torch.tensor(numbers).view(3, 1, 1) for numbers in (MEAN, STD))
    return TensorDataset((images - mean) / std, records[:, 0].long())
