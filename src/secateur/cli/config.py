"""The configuration of a run of ``prune``: the keys of the YAML file and the flags, said once."""
# ruff: noqa: RUF009 - `_key` is dataclasses.field with a help text

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any

from secateur.cli import code, data
from secateur.cli.yaml import dump, load
from secateur.errors import ConfigError
from secateur.names import unknown
from secateur.typed import fits, words

Named = str | Mapping[str, Mapping[str, Any] | None]  # taylor, or {lp: {p: 3}}
RESERVED = ("zoo:", "torchvision:", "timm:")


def _key(help: str, default: Any = None, *, metavar: str | None = None) -> Any:
    metadata = {"help": help, "metavar": metavar}
    if isinstance(default, dict | list):
        return field(default_factory=lambda: type(default)(default), metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Config:
    """Everything a run of ``secateur prune`` depends on; the words are those of ``sec.prune``."""

    model: str | None = _key("what to prune")
    original: str | None = _key(
        "for a folder of ours: the architecture it was pruned from", metavar="MODEL"
    )
    weights: str | None = _key("a .safetensors file, or 'pretrained' to download", metavar="FILE")
    inputs: list[str] = _key(
        "shape of an example input, as 1x3x224x224; once for every input", [], metavar="SHAPE"
    )
    batch: int = _key("samples of the example inputs, where they are made for you", 2)
    data: str | None = _key("zoo:NAME or FILE.py:FUNCTION; none for no data", metavar="DATA")
    batch_size: int = _key("samples a batch of the zoo's data", 128)
    loss: str | None = _key("FILE.py:FUNCTION of (output, target)", metavar="FUNCTION")
    evaluate: str | None = _key(
        "FILE.py:FUNCTION, from a model to a number; default: accuracy or loss on the test data; "
        "none: not at all",
        metavar="FUNCTION",
    )
    metric: Mapping[str, str | bool] = _key(
        "what evaluate gives: name=TEXT, percent=BOOL, higher_is_better=BOOL", {}
    )
    amount: float | None = _key("fraction of the units to remove, in [0, 1)")
    keep: Mapping[str, float] = _key(
        "budget: params, macs, memory or latency (measured) = fraction to keep",
        {},
        metavar="WHAT=FRACTION",
    )
    method: Named | None = _key(
        "a published one, which settles criterion, scope, recovery where you say nothing",
        metavar="NAME",
    )
    criterion: Named | None = _key(
        "which units: a name, NAME:option=value,... (default: the method's, or l2)", metavar="NAME"
    )
    scope: str | None = _key("how much where (default: the method's, or uniform)", metavar="NAME")
    schedule: str | None = _key(
        "when: one-shot, linear, exponential, cubic (default: the method's, or one-shot)",
        metavar="NAME",
    )
    steps: int | None = _key("how often to prune and heal")
    ignore: list[str] = _key("what these modules make stays whole", [], metavar="GLOB")
    overrides: Mapping[str, float] = _key("own amount for some modules", {}, metavar="GLOB=AMOUNT")
    kinds: list[str] = _key("only classes of this kind: channel, head, ...", [], metavar="KIND")
    statistical: bool = _key("also widths that norms run over", True)
    max_ratio: float | None = _key("largest fraction of a class that may go")
    min_width: int = _key("fewest units of a class that stay", 1)
    round_to: int | None = _key("keep a multiple of this many channels")
    reduction: str | None = _key("how scores of coupled tensors become one", metavar="NAME")
    normalizer: str | None = _key("how scores of classes are made comparable", metavar="NAME")
    recovery: Named | list[Named] | None = _key(
        "what then: fine-tune:epochs=3,lr=0.02, distil, ...; once for each in turn", metavar="NAME"
    )
    verify: bool = _key("prove that the pruned model equals the masked one", True)
    repeats: int = _key("timed forwards; 0 for no latency", 20)
    warmup: int = _key("forwards before those", 3)
    sensitivity: list[float] = _key(
        "also measure each class with these fractions masked", [], metavar="AMOUNT"
    )
    seed: int = _key("of everything random", 0)
    threads: int | None = _key("CPU threads; default: torch's")
    device: str = _key("where the model is: cpu, cuda, cuda:1, ...", "cpu")
    dtype: str | None = _key("of the weights: float32, bfloat16, ...; default: as they come")
    out: str | None = _key("folder of the run; default: runs/MODEL-HASH", metavar="DIR")


HINTS = typing.get_type_hints(Config)
KEYS = {entry.name: entry for entry in fields(Config)}


def read(path: str | Path) -> dict[str, Any]:
    """The keys that a YAML file sets, checked.

    Raises:
        ConfigError: The file cannot be read, is no mapping, or has an unknown or mistyped key.
    """
    values = load(path)
    check(values, str(path))
    return values


def check(values: Mapping[str, Any], where: str) -> None:
    """Refuse unknown keys and values of the wrong type.

    Raises:
        ConfigError: The message names the key and the nearest known one.
    """
    for key, value in values.items():
        if key not in KEYS:
            raise ConfigError(f"{where}: " + unknown("key", str(key), KEYS))
        empty = value is None and _default(key) in ([], {})
        if not empty and not fits(value, HINTS[key]):
            kind = "a name, or a name with a mapping of options" if _named(key) else None
            expected = kind or words(HINTS[key])
            raise ConfigError(f"{where}: {key} should be {expected}, not {value!r}")


def make(values: Mapping[str, Any]) -> Config:
    """A configuration from keys, with full paths, so that it means the same from any folder.

    Raises:
        ConfigError: No model, or an unknown key.
    """
    check(values, "config")
    given = {k: v for k, v in values.items() if v is not None}
    if "model" not in given:
        raise ConfigError("no model: name one on the command line, or as model: in the config file")
    for key in ("model", "original"):
        if key in given:
            given[key] = resolved(given[key])
    for key in ("data", "loss", "evaluate"):
        if key in given and given[key] != "none":
            given[key] = data.resolve(given[key])
    if str(given.get("weights", "")).endswith(".safetensors"):
        given["weights"] = str(Path(given["weights"]).expanduser().resolve())
    return Config(**given)


def resolved(spec: str) -> str:
    """A model's spec with full paths."""
    if spec.startswith(RESERVED):
        return spec
    if spec.startswith("hf:"):
        return f"hf:{Path(spec[3:]).expanduser().resolve()}"
    if code.is_code(spec):
        return code.absolute(f"{spec}:build" if spec.endswith(".py") else spec)
    return str(Path(spec).resolve()) if Path(spec).is_dir() else spec


def text(config: Config) -> str:
    """The configuration as YAML, every key with its value."""
    return dump(dataclasses.asdict(config))


def differences(old: Mapping[str, Any], new: Config) -> list[str]:
    """Which keys of two configurations differ, but for where the run is written."""
    ours = dataclasses.asdict(new)
    return [
        f"{key}: {old.get(key, _default(key))!r} there, {value!r} here"
        for key, value in ours.items()
        if key != "out" and old.get(key, _default(key)) != value
    ]


def _default(key: str) -> Any:
    entry = KEYS[key]
    return entry.default if entry.default_factory is MISSING else entry.default_factory()


def _named(key: str) -> bool:
    return key in ("method", "criterion", "recovery")
