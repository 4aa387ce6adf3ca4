"""What a configuration asks for, as arguments of the public functions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

from secateur.cli import code, data
from secateur.cli.config import KEYS, Config
from secateur.errors import ConfigError
from secateur.names import unknown

if TYPE_CHECKING:
    from torch import nn

    from secateur.report import Metric

_PLAIN = (
    *("amount", "scope", "seed", "statistical", "max_ratio", "min_width", "round_to"),
    *("reduction", "normalizer"),
)


@dataclass(frozen=True)
class Asked:
    """Data, loss and judgement that a configuration names; None for what it does not.

    Attributes:
        data: Loaders and what they are.
        loss: Function of (output, target).
        evaluate: From a model to a number.
        metric: What the number is.
    """

    data: data.Data | None
    loss: Callable[..., Any] | None
    evaluate: Callable[[nn.Module], float] | None
    metric: Metric

    @property
    def train(self) -> Any:
        """Batches to score and heal by, or None."""
        return None if self.data is None else self.data.train


def asked(config: Config, batches: int | None = None) -> Asked:
    """Find the data, the loss and the judgement.

    Args:
        config: Its ``data``, ``loss``, ``evaluate`` and ``metric``.
        batches: Judge by so many test batches only.

    Raises:
        ConfigError: One of them cannot be found.
    """
    from secateur.report import Metric

    found = None
    if config.data not in (None, "none"):
        found = data.find(str(config.data), config.batch_size, config.seed)
    loss = None if config.loss is None else code.find(config.loss, "loss")
    evaluate: Callable[[nn.Module], float] | None = None
    metric = Metric()
    if config.evaluate not in (None, "none"):
        evaluate = _own(str(config.evaluate))
        metric = Metric(str(config.evaluate).rpartition(":")[2], percent=False)
    elif config.evaluate is None and found is not None and found.test is not None:
        evaluate, metric = data.judge(found.test, loss, batches)
    named: dict[str, Any] = dict(config.metric)
    known = [entry.name for entry in fields(Metric)]
    for name in named:
        if name not in known:
            raise ConfigError(unknown("entry of metric called", name, known))
    return Asked(found, loss, evaluate, replace(metric, **named))


def selection(config: Config, found: Asked) -> dict[str, Any]:
    """The method and the arguments of ``sec.plan``; None where the configuration says nothing."""
    plain = {key: getattr(config, key) for key in _PLAIN}
    # What is as it would be anyway is not said, so that a method may say otherwise.
    plain = {key: v for key, v in plain.items() if v != KEYS[key].default or key == "seed"}
    return plain | {
        "method": named(config.method, "method"),
        "criterion": named(config.criterion, "criterion"),
        "keep": dict(config.keep) or None,
        "overrides": dict(config.overrides) or None,
        "ignore": list(config.ignore) or None,
        "kinds": list(config.kinds) or None,
        "data": found.train,
        "loss": found.loss,
    }


def named(value: Any, what: str) -> Any:
    """A method or criterion as the functions take it: a name, a name with options, or None."""
    if value is None:
        return None
    name, options = pair(value, what)
    return (name, options) if options else name


def pair(named: Any, what: str) -> tuple[str, dict[str, Any]]:
    """Name and options of ``taylor`` or ``{lp: {p: 3}}``.

    Raises:
        ConfigError: More than one name.
    """
    if isinstance(named, str):
        return named, {}
    if len(named) != 1:
        raise ConfigError(f"{what}: write one name with its options, as {{name: {{key: value}}}}")
    ((name, options),) = named.items()
    return name, dict(options or {})


def words(named: Any) -> str:
    """Names with options as one would say them.

    Example:
        >>> words(["bn", {"fine-tune": {"epochs": 3}}])
        'bn, fine-tune(epochs=3)'
    """
    if isinstance(named, list):
        return ", ".join(map(words, named))
    name, options = pair(named or "none", "recovery")
    return f"{name}({', '.join(f'{k}={v}' for k, v in options.items())})" if options else name


def _own(spec: str) -> Callable[[nn.Module], float]:
    function = code.find(spec, "evaluate")

    def evaluate(model: nn.Module) -> float:
        return code.call(function, spec, model)

    return evaluate
