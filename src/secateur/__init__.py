"""secateur: prune any PyTorch model, prove the result, heal it, and show what was gained.

Example:
    >>> import secateur as sec
    >>> result = sec.prune(model, example_inputs, keep={"macs": 0.5}, data=loader)
    >>> folder = result.save("out")
    >>> model = sec.load(build_model(), "out")
"""

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from secateur.public import *  # noqa: F403

__version__ = "0.1.0"

# Importing torch takes seconds, which `secateur --help` need not wait for: names come on demand.
_MODULES = {
    **{
        n: n
        for n in ("criteria", "errors", "lottery", "recovery", "report", "schedule", "scope", "zoo")
    },
    "language": "analyse.language",
}
# Public functions that a module has the name of.
_FUNCTIONS = {"gate", "measure", "methods", "permute", "plan", "prune", "sparsify"}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"secateur.{_MODULES[name]}")
    if name == "__all__" or not name.startswith("_"):
        public = importlib.import_module("secateur.public")
        if name == "__all__" or name in public.__all__:
            return getattr(public, name)
    raise AttributeError(f"module 'secateur' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *importlib.import_module("secateur.public").__all__})


class _Package(ModuleType):
    """The package, in which importing the folder ``plan`` does not hide the function ``plan``."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _FUNCTIONS and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
