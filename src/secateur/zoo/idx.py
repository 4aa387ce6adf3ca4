"""IDX files, the form of MNIST and its kin: pictures and labels of a split, packed or not."""

import gzip
from pathlib import Path

import numpy as np

from secateur.errors import DataError

SPLITS = {"train": "train", "test": "t10k"}
ENDINGS = {"images": "images-idx3-ubyte", "labels": "labels-idx1-ubyte"}


def idx_file(folder: Path, split: str, what: str) -> Path | None:
    """Find the file of a split's "images" or "labels", as it is or packed by gzip."""
    stem = f"{SPLITS[split]}-{ENDINGS[what]}"
    return next((p for p in (folder / stem, folder / f"{stem}.gz") if p.is_file()), None)


def read_split(folder: Path, split: str, missing: str) -> tuple[np.ndarray, np.ndarray]:
    """Read images `(n, 28, 28)` and labels `(n,)`, uint8.

    Args:
        folder: where the files are.
        split: `"train"` or `"test"`.
        missing: how to get the files, for the error.

    Raises:
        DataError: a file is missing or damaged, or the two do not belong together.
    """
    images, labels = (_read(folder, split, what, missing) for what in ENDINGS)
    if images.shape[1:] != (28, 28) or len(images) != len(labels):
        raise DataError(
            f"{folder} does not hold 28 x 28 pictures and their labels: images {images.shape}, "
            f"labels {labels.shape}; fetch the files again"
        )
    return images, labels


def first_of_each(labels: np.ndarray, per_class: int) -> np.ndarray:
    """Number the first samples of each of ten classes, in the files' order."""
    chosen = np.concatenate([np.flatnonzero(labels == c)[:per_class] for c in range(10)])
    chosen.sort()
    return chosen


def _read(folder: Path, split: str, what: str, missing: str) -> np.ndarray:
    """Read one file: rank in byte 3, big-endian uint32 sizes from byte 4, then the bytes."""
    path = idx_file(folder, split, what)
    if path is None:
        raise DataError(f"{folder} lacks {SPLITS[split]}-{ENDINGS[what]}[.gz]; {missing}")
    try:
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        shape = np.frombuffer(raw, ">u4", count=raw[3], offset=4)
        return np.frombuffer(raw, np.uint8, offset=4 + 4 * raw[3]).reshape(shape).copy()
    except (OSError, EOFError, IndexError, ValueError) as error:
        raise DataError(f"{path} is not a whole IDX file ({error}); fetch it again") from error
