"""A user's own Python: ``file.py:function`` and ``package.module:function``."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from secateur.errors import ConfigError
from secateur.names import unknown


def is_code(spec: str) -> bool:
    """Whether a spec names Python code: a ``.py`` file, or ``package.module:function``."""
    where, colon, name = spec.rpartition(":")
    if not colon:
        return spec.endswith(".py")
    return where.endswith(".py") or (
        name.isidentifier() and all(part.isidentifier() for part in where.split("."))
    )


def absolute(spec: str) -> str:
    """The same spec with the full path of its file, so that it works from any folder."""
    where, name = _parts(spec, "")
    return f"{Path(where).resolve()}:{name}" if where.endswith(".py") and name else spec


def find(spec: str, default: str) -> Any:
    """What a spec names; without ``:name`` it is the one called ``default``.

    The file or module is imported, once a process: only name code that you trust.

    Raises:
        ConfigError: No such file, module or name, or the import failed.
    """
    where, name = _parts(spec, default)
    module = module_of(spec)
    try:
        return getattr(module, name)
    except AttributeError:
        public = [n for n in vars(module) if not n.startswith("_")]
        raise ConfigError(unknown(f"name in {where} called", name, public)) from None


def module_of(spec: str) -> ModuleType:
    """The module that a spec's name is in."""
    where, _ = _parts(spec, "")
    return _from_file(Path(where)) if where.endswith(".py") else _from_name(where)


def call(function: Callable[..., Any], spec: str, *arguments: Any, **options: Any) -> Any:
    """Call a user's function; what it raises becomes one line.

    Raises:
        ConfigError: It raised, or it cannot be called.
    """
    if not callable(function):
        raise ConfigError(f"{spec} is a {type(function).__name__}, not a function to call")
    try:
        return function(*arguments, **options)
    except Exception as error:
        raise ConfigError(f"{spec} raised {_described(error)}") from error


def _parts(spec: str, default: str) -> tuple[str, str]:
    if spec.endswith(".py"):
        return spec, default
    where, _, name = spec.rpartition(":")
    return where, name or default


def _from_name(name: str) -> ModuleType:
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)  # as `python -m` does
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name and (name == error.name or name.startswith(f"{error.name}.")):
            raise ConfigError(
                f"there is no module {name!r}: install it, or give a file as path/to/file.py:name"
            ) from error
        raise ConfigError(f"{name} could not be imported: {_described(error)}") from error
    except Exception as error:
        raise ConfigError(f"{name} could not be imported: {_described(error)}") from error


def _from_file(path: Path) -> ModuleType:
    path = path.resolve()
    if not path.is_file():
        raise ConfigError(f"there is no file {path}: give path/to/file.py:function")
    name = f"{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    if name in sys.modules:
        return sys.modules[name]
    found = importlib.util.spec_from_file_location(name, path)
    if found is None or found.loader is None:
        raise ConfigError(f"{path} cannot be imported as Python")
    module = importlib.util.module_from_spec(found)
    folder = str(path.parent)
    if folder not in sys.path:
        sys.path.insert(0, folder)  # the file may import its neighbours, as a script does
    sys.modules[name] = module
    try:
        found.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise ConfigError(f"{path} could not be imported: {_described(error)}") from error
    return module


def _described(error: BaseException) -> str:
    """An error and the last line of the user's code it came through."""
    step, place = error.__traceback__, ""
    while step is not None:
        file = step.tb_frame.f_code.co_filename
        if "secateur/cli" not in file and not file.startswith("<"):
            place = f" ({Path(file).name}, line {step.tb_lineno})"
        step = step.tb_next
    return f"{type(error).__name__}: {error}{place}"
