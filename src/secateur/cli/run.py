"""The folder of a run: nobody else's files are touched, and a run that was killed can go on.

While a run is under way everything it writes is in ``unfinished/``: the configuration and the
checkpoints. Results of an earlier run stay as they were until those of this one are complete.
"""

from __future__ import annotations

import hashlib
import logging
import re
import shlex
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from secateur.cli import config as configs
from secateur.cli.config import Config
from secateur.cli.yaml import load
from secateur.errors import StoreError

log = logging.getLogger(__name__)
CONFIG, UNFINISHED = "config.yaml", "unfinished"
_OURS = (CONFIG, "plan.json", "metrics.json")  # a finished run has all of them


def folder_for(config: Config) -> Path:
    """The folder that a configuration asks for, or one named after it."""
    if config.out is not None:
        return Path(config.out).expanduser()
    digest = hashlib.sha256(configs.text(config).encode()).hexdigest()[:8]
    return Path("runs") / f"{_short(str(config.model))}-{digest}"


def is_finished(folder: Path) -> bool:
    """Whether a folder holds a complete run and none under way."""
    return all((folder / name).is_file() for name in _OURS) and not _is_unfinished(folder)


def stored_config(folder: Path) -> Path:
    """The configuration of the run in a folder, unfinished or not.

    Raises:
        StoreError: There is none.
    """
    for path in (folder / UNFINISHED / CONFIG, folder / CONFIG):
        if path.is_file():
            return path
    raise StoreError(f"{folder} holds no run that could go on")


@contextmanager
def claimed(folder: Path, config: Config, *, resume: bool, restart: bool) -> Iterator[Path]:
    """A folder for the checkpoints of a run, while it is under way.

    If the run fails before it has written a checkpoint, nothing is left of it; otherwise
    ``resume`` goes on. ``finished`` ends it.

    Args:
        folder: Of the run.
        config: Of the run.
        resume: Go on with a run that was broken off, which must have the same configuration.
        restart: Forget what was broken off.

    Raises:
        StoreError: The folder is somebody else's, or holds another run.
    """
    from secateur.files import write_text, write_together

    _check(folder, config, resume=resume, restart=restart)
    work = folder / UNFINISHED
    made = [p for p in folder.parents if not p.exists()]
    if restart:
        shutil.rmtree(work, ignore_errors=True)
    write_together(work, {CONFIG: write_text(configs.text(config))})
    try:
        yield work
    except BaseException:
        if any(work.rglob("*.safetensors")):
            command = f"secateur prune --resume --out {shlex.quote(str(folder))}"
            log.warning("%s keeps what was done: `%s` goes on", work, command)
        else:
            shutil.rmtree(work, ignore_errors=True)
            with suppress(OSError):  # results of an earlier run, or another run beside this one
                for path in (folder, *made):
                    path.rmdir()
        raise


def finish(folder: Path, config: Config) -> None:
    """Write the configuration beside the results and forget the checkpoints."""
    from secateur.files import write_text, write_together

    write_together(folder, {CONFIG: write_text(configs.text(config))})
    shutil.rmtree(folder / UNFINISHED)


def check_same(folder: Path, config: Config) -> None:
    """Raise a StoreError if the run in a folder was started with another configuration."""
    path = stored_config(folder)
    changes = configs.differences(load(path), config)
    if changes:
        raise StoreError(
            f"{path} is of another run ({'; '.join(changes)}): leave these out, or start anew "
            "with --restart"
        )


def _is_unfinished(folder: Path) -> bool:
    return (folder / UNFINISHED / CONFIG).is_file()


def _check(folder: Path, config: Config, *, resume: bool, restart: bool) -> None:
    if folder.exists() and not folder.is_dir():
        raise StoreError(f"{folder} is a file: choose another folder with --out")
    if _is_unfinished(folder):
        if resume:
            check_same(folder, config)
        elif not restart:
            raise StoreError(
                f"{folder} holds a run that was broken off: go on with --resume, or start anew "
                "with --restart"
            )
    elif is_finished(folder) and not restart:
        _check_replaced(folder, config)
    elif folder.is_dir() and not is_finished(folder):
        others = [p.name for p in folder.iterdir() if not _is_debris(p)]
        if others:
            raise StoreError(
                f"{folder} is not empty and holds no run of secateur ({sorted(others)[0]} is "
                "there): choose another folder with --out"
            )


def _check_replaced(folder: Path, config: Config) -> None:
    """Raise a StoreError if the finished run in a folder is not this one over again."""
    changes = configs.differences(load(folder / CONFIG), config)
    if changes:
        raise StoreError(
            f"{folder} holds the results of another run ({'; '.join(changes)}): choose another "
            "folder with --out, or replace them with --restart"
        )


def _is_debris(path: Path) -> bool:
    """Whether this is what a kill in the first moments of a run leaves."""
    return (
        path.name == UNFINISHED
        and path.is_dir()
        and all(p.name.startswith(f".{CONFIG}.") for p in path.iterdir())
    )


def _short(model: str) -> str:
    """A model's name as part of a folder's: ``zoo-resnet8``, ``net`` of ``/a/net.py:build``."""
    where = model.rpartition(":")[0]
    if where.endswith(".py"):
        return Path(where).stem
    folder = Path(model.removeprefix("hf:"))
    return re.sub(r"[^A-Za-z0-9_.]+", "-", folder.name if folder.is_dir() else model)
