"""What a method is, one paper a file, and where it is found by name."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from types import ModuleType
from typing import Any, Literal, TypeVar

from secateur.errors import ConfigError
from secateur.names import unknown
from secateur.typed import check

Stage = Literal["before", "during", "after", "runtime", "learned"]
STAGES = ("before", "during", "after", "runtime", "learned")
F = TypeVar("F", bound=Callable[..., "Method"])
_REGISTRY: dict[str, Entry] = {}


@dataclass(frozen=True)
class Method:
    """What is removed, which of it, how much where, and when; and the few seams a paper may need.

    Attributes:
        amount: Fraction that is gone at the end; None where it follows from other settings.
        criterion: Which: a name, a name with options, or a function (see ``criteria``); None for a
            method whose gate or solver says it.
        first: Criterion of the first masks, where it is another.
        first_scope: Allocation of the first masks, where it is another.
        granularity: What: element, row, block, n:m, channel, ... (see ``granularity``).
        scope: How much where: "global", "uniform", "erk", ... (see ``scope.allocation``).
        schedule: When: a name, or a ``Schedule``; "one-shot" prunes before the first step.
        every: Steps between two looks at the schedule.
        rounds: One-shot only: how often what is left is scored anew on the way to ``amount``
            (densities fall exponentially, ``linear_rounds`` makes the amounts grow linearly).
        revive: Whether what an earlier round removed may come back in a later one.
        soft: True if what is masked is set to zero at every look at the schedule only, and trains
            on in between, as in soft filter pruning; with schedule "one-shot" masks are chosen
            once, at the end, and without an amount they are what is zero then.
        grow: Criterion by which as many units come back as are dropped; None = none do.
        drop: Fraction of the kept units that is exchanged, as a function of progress; where a
            gradual schedule is given too, it prunes first and the exchange follows.
        penalty: Gradients added to the loss's, or a shrinkage after the step.
        gate: A map from weight and auxiliary parameters to the weight that the forward sees.
        rule: Free moments before and after each step (see ``engine.seams``).
        search: Chooses which blocks go, of a granularity ``layer`` or ``sublayer``: from a
            ``methods.depth.Depth`` and when it is enough to the gaps.
        solver: Chooses and updates the weights of one layer together, from its inputs.
        transform: Rewrites the model before anything is scored; in training a function of the
            ``Moment`` that changes parameters in place; not done again where a run is resumed.
        recovery: What follows the removal: a name, a name with options, or a list of these.
        kinds: Of classes that a method after training knows, of which a model has some; empty for
            all.
        name, stage, paper: Filled in by the registry.
    """

    amount: float | None = None
    criterion: Any = "magnitude"
    first: Any = None
    first_scope: Any = None
    granularity: Any = "element"
    scope: Any = "uniform"
    schedule: Any = "one-shot"
    every: int = 1
    rounds: int = 1
    linear_rounds: bool = False
    revive: bool = False
    soft: bool = False
    grow: Any = None
    drop: Callable[[float], float] | None = None
    penalty: Any = None
    gate: Any = None
    rule: Any = None
    search: Any = None
    solver: Any = None
    transform: Any = None
    recovery: Any = None
    kinds: tuple[str, ...] = ()
    name: str = ""
    stage: str = ""
    paper: str = ""

    @property
    def follows(self) -> bool:
        """Whether a penalty, a gate or a rule of it follows the progress of the run."""
        seams = (self.penalty, self.gate, self.rule)
        return any(getattr(seam, "scheduled", False) for seam in seams)


@dataclass(frozen=True)
class Entry:
    """A registered method: the function that makes it, and what is said about it.

    Attributes:
        name: As the user writes it.
        function: From ``amount`` and options to a ``Method``.
        stage: before, during, after, runtime or learned.
        paper: Where it was published.
    """

    name: str
    function: Callable[..., Method]
    stage: str
    paper: str

    @property
    def about(self) -> str:
        """The first sentence of the file's docstring, without the method's name."""
        module = inspect.getmodule(self.function)
        first = ((module.__doc__ if module else "") or "").strip().split("\n", 1)[0].rstrip(".")
        return first.partition(": ")[2] or first

    def options(self) -> list[str]:
        """Names of the keyword options."""
        return [n for n in inspect.signature(self.function).parameters if n != "amount"]


def method(*, stage: Stage, paper: str, name: str = "") -> Callable[[F], F]:
    """Register a function from ``(amount, **options)`` to a ``Method``, under its own name.

    Args:
        stage: When it acts: before, during or after training, at run time, or by a search.
        paper: Where it was published.
        name: If other than the function's own; hyphens are read as underscores.

    Example:
        >>> @method(stage="during", paper="none")
        ... def fading(amount: float = 0.9):
        ...     return Method(amount, schedule="linear")
        >>> find("fading", amount=0.5).amount
        0.5
    """

    def register(function: F) -> F:
        key = name or getattr(function, "__name__", "")
        _REGISTRY[key] = Entry(key, function, stage, paper)
        return function

    return register


def names(stage: str | None = None) -> list[str]:
    """List the methods, all or those of one stage.

    Raises:
        ConfigError: There is no such stage.

    Example:
        >>> "rigl" in names("during")
        True
    """
    _load()
    if stage is not None and stage not in STAGES:
        raise ConfigError(unknown("stage", stage, STAGES))
    return sorted(n for n, e in _REGISTRY.items() if stage in (None, e.stage))


def entry(name: str) -> Entry:
    """What the registry holds under a name.

    Raises:
        ConfigError: There is no such method.
    """
    _load()
    key = str(name).replace("-", "_")
    if key not in _REGISTRY:
        raise ConfigError(unknown("method", name, _REGISTRY))
    return _REGISTRY[key]


def find(which: Any, amount: float | None = None, **options: Any) -> Method:
    """The method that a user means.

    Args:
        which: A name (``"rigl"``), a name with options (``("rigl", {"every": 50})``), or a
            ``Method``.
        amount: Fraction to remove, in [0, 1); None leaves the method's own.
        options: Of the method.

    Raises:
        ConfigError: There is no such method or option, or the amount is out of range.
    """
    if amount is not None and not (isinstance(amount, int | float) and 0 <= amount < 1):
        raise ConfigError(f"amount={amount!r}: it is the fraction removed and must be in [0, 1)")
    if isinstance(which, Method):
        if options:
            raise ConfigError(f"{', '.join(options)}: a Method is complete; use replace()")
        return which if amount is None else replace(which, amount=amount)
    if isinstance(which, tuple | list) and len(which) == 2 and isinstance(which[1], Mapping):
        which, options = which[0], {**which[1], **options}
    if not isinstance(which, str):
        raise ConfigError(
            f"a method is a name, (name, options) or a Method, not {type(which).__name__}"
        )
    found = entry(which)
    allowed = inspect.signature(found.function).parameters
    for key in options:
        if key not in allowed:
            raise ConfigError(unknown(f"option of method {found.name}", key, found.options()))
    check(f"method {found.name}", found.function, options)
    if amount is not None:
        if "amount" not in allowed:
            raise ConfigError(f"method {found.name} takes no amount: its options say how much goes")
        options["amount"] = amount
    missing = [
        n
        for n, p in allowed.items()
        if p.default is p.empty and n not in options and p.kind is not p.VAR_KEYWORD
    ]
    if missing:
        raise ConfigError(f"method {found.name} needs {', '.join(missing)}")
    made = found.function(**options)
    return replace(made, name=found.name, stage=found.stage, paper=found.paper)


def belongs(method: Method) -> str:
    """The call that a method is for.

    Example:
        >>> belongs(find("flap"))
        'sec.prune'
    """
    if method.stage == "runtime":
        return "sec.gate"
    if method.solver is not None:
        return "sec.sparsify"
    return "sec.prune" if method.stage == "after" else "sec.attach"


@cache
def _load() -> None:
    for stage in STAGES:
        folder = f"secateur.methods.{stage}"
        for module in _modules(folder):
            importlib.import_module(module)


def _modules(folder: str) -> list[str]:
    try:
        package: ModuleType = importlib.import_module(folder)
    except ModuleNotFoundError:
        return []
    return [f"{folder}.{module.name}" for module in pkgutil.iter_modules(package.__path__)]
