"""Files that appear whole or not at all, one alone or several together, while old ones stay."""

from __future__ import annotations

import os
import secrets
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from secateur.errors import StoreError

Writer = Callable[[Path], None]


def write_together(directory: Path, files: Mapping[str, Writer], stale: Iterable[str] = ()) -> None:
    """Write files under temporary names, flush them to the disk, then rename them all.

    Args:
        directory: Made if it is not there; removed again if it was made in vain.
        files: Name -> what writes that file, given the path to write to. Written and renamed in
            order, so the last is the one that says what the others must be.
        stale: Names of older files that would be wrong beside the new ones: removed at the end.

    Raises:
        StoreError: The disk is full or a file cannot be written; the folder is as it was.
    """
    made = [p for p in (directory, *directory.parents) if not p.exists()]
    temporary: dict[str, Path] = {}
    current = str(directory)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for name, write in files.items():
            current = str(directory / name)
            if (directory / name).is_dir():
                raise IsADirectoryError("it is a folder")
            temporary[name] = _new_file(directory, name)
            mode = temporary[name].stat().st_mode
            write(temporary[name])
            _settle(temporary[name], mode)
        _rename_all(directory, temporary)
        for name in stale:
            (directory / name).unlink(missing_ok=True)
    except OSError as error:
        raise StoreError(
            f"{current} could not be written: {error}. What was there before is untouched; free "
            "some space, or choose another folder."
        ) from error
    finally:
        for path in temporary.values():
            path.unlink(missing_ok=True)
        for path in made:
            with suppress(OSError):  # not empty: the files were written
                path.rmdir()


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A temporary name beside ``path``; renamed to it on success, removed on any failure.

    The folder is made. Errors of the file system are the caller's, who knows what was written.
    """
    path = path_of(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")  # one name: a kill leaves at most one behind
    try:
        temporary.unlink(missing_ok=True)
        _create(temporary)
        mode = temporary.stat().st_mode
        yield temporary
        _settle(temporary, mode)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def share(folder: Path) -> None:
    """Give everything in a folder the rights of new files: some writers make private ones."""
    ordinary = _new_file(folder, "rights")
    mode = ordinary.stat().st_mode
    ordinary.unlink()
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod(stat.S_IMODE(mode))


def path_of(value: object, what: str = "a file") -> Path:
    """What a user gave as a path.

    Raises:
        StoreError: It is none.
    """
    if not isinstance(value, str | os.PathLike):
        raise StoreError(f"{type(value).__name__} is no path: give the name of {what}")
    return Path(value)


def write_text(text: str) -> Writer:
    """A writer of UTF-8 text."""

    def write(path: Path) -> None:
        path.write_bytes(text.encode("utf-8", "backslashreplace"))

    return write


def _new_file(directory: Path, name: str) -> Path:
    """An empty file beside the final one, that nobody else has: links are not followed."""
    path = directory / f".{name}.{secrets.token_hex(4)}.tmp"
    _create(path)
    return path


def _create(path: Path) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0)
    os.close(os.open(path, flags, 0o666))


def _settle(path: Path, mode: int) -> None:
    """What was written, with the rights of a new file, on the disk."""
    path.chmod(stat.S_IMODE(mode))  # some writers make a private file instead
    _flush(path)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _rename_all(directory: Path, temporary: Mapping[str, Path]) -> None:
    """Rename; should one of the renames fail, those before it are taken back."""
    done: list[tuple[Path, Path | None]] = []
    try:
        for name, path in temporary.items():
            final = directory / name
            old = None
            if final.is_symlink() or final.exists():
                old = directory / f".{name}.{secrets.token_hex(4)}.old"
                try:  # a second name, so that there is no moment without the file
                    os.link(final, old, follow_symlinks=False)
                except OSError:
                    final.replace(old)
            done.append((final, old))
            path.replace(final)
    except OSError:
        for final, old in reversed(done):
            if old is not None:
                old.replace(final)
                old.unlink(missing_ok=True)  # two names of one file are not renamed
            else:
                final.unlink(missing_ok=True)
        raise
    for _, old in done:
        if old is not None:
            with suppress(OSError):  # all is written; a second name of the old file does no harm
                old.unlink()
    with suppress(OSError):  # not every file system can flush a directory
        _flush(directory)


def regular_file(path: Path, most: int | None = None) -> Path:
    """The path, if it is (or links to) an ordinary file of at most ``most`` bytes.

    Raises:
        StoreError: It is not.
    """
    try:
        status = path.stat()
    except (OSError, ValueError) as error:
        raise StoreError(f"{path} is missing or cannot be read: {error}.") from error
    if not stat.S_ISREG(status.st_mode):
        raise StoreError(f"{path} is not an ordinary file: give a folder that save wrote.")
    if most is not None and status.st_size > most:
        raise StoreError(
            f"{path} has {status.st_size} bytes, far more than such a file can have: it is damaged "
            "or hostile."
        )
    return path


def read_text(path: Path, most: int) -> str:
    """The text of an ordinary UTF-8 file.

    Raises:
        StoreError: It is missing, too large, not a file, or not UTF-8.
    """
    try:
        return regular_file(path, most).read_bytes().decode()
    except (OSError, UnicodeDecodeError) as error:
        raise StoreError(
            f"{path} is damaged or cannot be read ({error}): restore the file, or save again."
        ) from error
