"""Make an embedded data file from its source: `python -m secateur.zoo.prepare NAME FOLDER`."""

import argparse
import os
from pathlib import Path

import numpy as np
from rich.console import Console

from secateur.zoo.places import HERE
from secateur.zoo.registry import data_set


def main() -> None:
    """Read the source folder, cut it down, write the `.npz` (the same bytes each time)."""
    parser = argparse.ArgumentParser(prog="python -m secateur.zoo.prepare", description=__doc__)
    parser.add_argument("name", help="a data set whose file has `prepare`")
    parser.add_argument("folder", type=Path, help="where its source files are")
    arguments = parser.parse_args()
    arrays = data_set(arguments.name).prepare(arguments.folder)
    path = HERE / "data" / "files" / f"{arguments.name}.npz"
    unfinished = path.with_suffix(".part")
    with unfinished.open("wb") as file:
        np.savez_compressed(file, **arrays)
    os.replace(unfinished, path)
    Console().print(
        f"{path}: {path.stat().st_size / 1e6:.2f} MB", {k: v.shape for k, v in arrays.items()}
    )


if __name__ == "__main__":
    main()
