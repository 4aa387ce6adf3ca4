"""Where data are: in the package, in SECATEUR_DATA, or where Debian's packages put them."""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from secateur.errors import DataError

HERE = Path(__file__).parent
PACKAGES = Path("/usr/share/datasets")


def embedded(name: str) -> dict[str, np.ndarray]:
    """Read the arrays of a data set that ships with the package."""
    path = HERE / "data" / "files" / f"{name}.npz"
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return {key: arrays[key] for key in arrays.files}
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{path} cannot be read ({error}); reinstall secateur") from error


def cache_folder() -> Path:
    """Name the folder for downloads: SECATEUR_DATA, else ~/.cache/secateur."""
    return Path(os.environ.get("SECATEUR_DATA") or Path.home() / ".cache" / "secateur")


def folders(*names: str) -> Iterator[Path]:
    """Yield the folders in which a full data set may be, the user's own first."""
    for root in (cache_folder(), PACKAGES):
        yield root
        for name in names:
            yield root / name
