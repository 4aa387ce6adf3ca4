"""Check a saved folder: load it onto a fresh model, verify every hash, run it once."""

from __future__ import annotations

import argparse
from pathlib import Path

from secateur.cli import config, flags, models
from secateur.cli.answer import Answer
from secateur.errors import StoreError

EXAMPLES = ("secateur load-check out --model zoo:resnet8",)


def arguments(parser: argparse.ArgumentParser) -> None:
    """The folder, and the architecture it was pruned from."""
    parser.add_argument("folder", metavar="DIR", help="what `secateur prune` or result.save wrote")
    parser.add_argument(
        "--model",
        "--original",  # as the other commands call it
        dest="original",
        default=argparse.SUPPRESS,
        metavar="MODEL",
        help="the architecture that was pruned; default: what config.yaml says",
    )
    flags.add(parser, "inputs batch seed")


def run(options: argparse.Namespace) -> Answer:
    """Load, and say what was found; any damage is an error."""
    import torch

    from secateur.measure.calling import call, describe
    from secateur.plan.folder import BUFFERS, PLAN, WEIGHTS, sha256_of

    folder = Path(options.folder)
    if not folder.is_dir():
        raise StoreError(f"the folder {folder} does not exist: give what secateur prune wrote")
    chosen = config.make({**flags.given(options), "model": options.folder})
    _, model, inputs = models.open_model(chosen)
    with torch.no_grad():
        output = describe(call(model, inputs))
    files = {
        name: {"bytes": (folder / name).stat().st_size, "sha256": sha256_of(folder / name)}
        for name in (PLAN, WEIGHTS, BUFFERS)
        if (folder / name).is_file()
    }
    found = {
        "ok": True,
        "folder": str(folder),
        "model": type(model).__name__,
        "parameters": sum(p.numel() for p in model.parameters()),
        "output": output,
        "files": files,
    }
    lines = [
        f"{folder} is whole: {found['model']}, {found['parameters']:,} parameters; a forward gives "
        f"{output}"
    ]
    for name, about in files.items():
        lines.append(f"  {name:<22}{about['bytes']:>12,} bytes  sha256 {about['sha256']}")
    return Answer(found, "\n".join(lines))
