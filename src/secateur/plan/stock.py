"""Describe a pruned Hugging Face model by a stock config, so that plain ``from_pretrained`` works.

A config has far fewer numbers than a model has sizes, so this succeeds only where the pruned shape
is one that the architecture knows: the same for every layer, whole heads, a head width that its
positions and its softmax scale allow. Nothing is assumed about what a config field means. Fields
whose value is an old size are given the new one, and a config counts only if the stock class,
loaded by the stock ``from_pretrained``, has exactly the pruned tensors and the pruned outputs.
"""

from __future__ import annotations

import copy
import json
import logging
import re
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from secateur.graph.forward import named_tensors
from secateur.plan.alike import distance_of, outputs_of, tolerance
from secateur.plan.gaps import is_config
from secateur.plan.plan import Plan
from secateur.plan.repair import parts_of

log = logging.getLogger(__name__)

_MOST_BUILDS = 400
_MOST_SECONDS = 30.0
_MOST_PROOFS = 12
_NOT_SIZES = re.compile(r".*(_ids?|_index|_layers?|vocab_size|num_labels|version)|max_.*|id2label")
_MAYBE_SIZES = re.compile(r".*(inner|ffn|dim|size|heads|width|intermediate|rank).*")
_UNSAID = {"head_dim": None}  # forwards look for it, though not every config has the field
Place = tuple[tuple[str, ...], str]  # sub-configs on the way, field


class NotStock(Exception):  # noqa: N818 - an answer, which never leaves this file
    """No stock config was found; the message says why."""


@dataclass(frozen=True)
class Stock:
    """What a folder says about loading it with plain transformers.

    Attributes:
        files: Name -> text of the files to write beside the weights; empty if there is no config.
        note: Markdown for the folder's README.
    """

    files: Mapping[str, str] = field(default_factory=dict)
    note: str = ""


def is_pretrained(model: nn.Module) -> bool:
    """True for a transformers model; transformers is not imported for this."""
    library = sys.modules.get("transformers.modeling_utils")
    return library is not None and isinstance(model, library.PreTrainedModel)


def stock(model: nn.Module, plan: Plan, state: Mapping[str, Tensor]) -> Stock:
    """The files that make a folder loadable by plain transformers, or why there are none.

    Args:
        model: The pruned model, as ``plan`` makes it; left as it is.
        plan: The plan; its graph gives the example inputs for the comparison.
        state: The model's tensors as they are stored.
    """
    kind = stock_class(model)
    try:
        if not kind.__module__.startswith("transformers."):
            raise NotStock(f"`{kind.__name__}` is not a class of transformers")
        inputs = inputs_of(plan)
        config = find_config(model, plan, state, lambda m: outputs_of(m, inputs))
    except NotStock as why:
        return Stock(
            note="## With transformers alone\n\n"
            f"No stock config describes this shape: {why}. Load it with `sec.load`, onto the "
            f"original `{kind.__name__}`."
        )
    files = {"config.json": config.to_json_string()}
    generation = getattr(model, "generation_config", None)
    if generation is not None:
        files["generation_config.json"] = generation.to_json_string()
    return Stock(
        files,
        "## With transformers alone\n\nThe config describes the pruned shape, so plain "
        "transformers loads the folder too, without secateur; on the example inputs its outputs "
        "were the same.\n\n"
        f"```python\nfrom transformers import {kind.__name__}\n\n"
        f'model = {kind.__name__}.from_pretrained("path/to/this/folder")\n```',
    )


def find_config(
    model: nn.Module,
    plan: Plan,
    state: Mapping[str, Tensor],
    forward: Callable[[nn.Module], list[Tensor]],
) -> Any:
    """A config of the model's own kind that describes the pruned model; see ``stock``.

    Args:
        model: The pruned model.
        plan: The plan, of this model's tensors alone.
        state: The model's tensors as they are stored.
        forward: What a model in the place of this one gives on the example inputs.

    Raises:
        NotStock: There is none, or none was found.
    """
    kind = stock_class(model)
    if any(gap.shortcut for gap in plan.dropped):
        raise NotStock("there are matrices between its blocks, which no config has a field for")
    search = Search(model, kind, state, forward, options(model.config, plan))
    if not any(isinstance(old, list | tuple) for old, _ in search.options.values()):
        _check_uniform(plan)
    with torch.random.fork_rng():
        return search.run()


def inputs_of(plan: Plan) -> Any:
    """The example inputs; raises NotStock where the plan does not know them."""
    if plan.graph is None:
        raise NotStock(
            "the plan was read from a file, so there are no inputs to compare outputs on"
        )
    return plan.graph.example_inputs


def options(config: Any, plan: Plan) -> dict[Place, tuple[Any, list[Any]]]:
    """Config fields that may describe a changed size: their value, and what may take its place.

    The likeliest comes first: that which most tensors ask for.
    """
    changes: dict[int, Counter[int]] = {}
    for axes in plan.axes.values():
        for axis in axes:
            for part in parts_of(axis):
                old, new = plan.counts(part)
                changes.setdefault(old, Counter())[new] += 1
    for edit in plan.edits or ():
        if type(edit.old) is int and type(edit.value) is int:
            changes.setdefault(edit.old, Counter())[edit.value] += 1
    news = {old: [n for n, _ in c.most_common() if n != old] for old, c in changes.items()}
    often = Counter({old: c.total() for old, c in changes.items() if old > 1})
    sizes = dict.fromkeys(
        [*(n for c in news.values() for n in c), *(o for o, _ in often.most_common())]
    )
    found: dict[Place, tuple[Any, list[Any]]] = {}
    for place, value in fields(config):
        name = place[1]
        if type(value) is int and news.get(value):
            found[place] = value, news[value]
        elif value is None and _MAYBE_SIZES.fullmatch(name):
            found[place] = None, list(sizes)[:24]
        elif isinstance(value, list | tuple) and any(news.get(v) for v in value):
            mapped = [news[v][0] if news.get(v) else v for v in value]
            found[place] = value, [type(value)(mapped)]
    return found


@dataclass
class Search:
    """Tries configs on the meta device for shapes, and those that fit on the example inputs."""

    model: nn.Module
    kind: Any
    state: Mapping[str, Tensor]
    forward: Callable[[nn.Module], list[Tensor]]
    options: Mapping[Place, tuple[Any, list[Any]]]
    began: float = field(default_factory=time.monotonic)
    builds: int = 0
    proofs: int = 0
    failure: str = "none of its config's fields stands for what was removed"
    nearest: int = 1 << 28
    tried: dict[str, int] = field(default_factory=dict)
    proven: dict[str, bool] = field(default_factory=dict)

    def run(self) -> Any:
        """The config with the fewest changed fields that does it."""
        joint = {p: new[0] if old is not None else None for p, (old, new) in self.options.items()}
        none = {p: old for p, (old, _) in self.options.items()}
        reference = self.forward(self.model)
        if self._mismatches(none) == 0 and self._prove(none, reference):
            return self._config(none)
        for start in (joint, none):
            self.proofs = 0
            found = self._descend(start)
            if found is None:
                continue
            for candidate in (found, *self._neighbours(found)):
                if self._mismatches(candidate) == 0 and self._prove(candidate, reference):
                    return self._config(self._fewest(candidate, none, reference))
        raise NotStock(self.failure)

    def _descend(self, values: dict[Place, Any]) -> dict[Place, Any] | None:
        """Change the field that helps most, as long as fewer tensors have the wrong shape."""
        best = self._mismatches(values)
        while best:
            nearest = values
            for other in self._neighbours(values):
                count = self._mismatches(other)
                if count < best:
                    nearest, best = other, count
                if not best:
                    break
            if nearest is values:
                return None
            values = nearest
        return values

    def _neighbours(self, values: dict[Place, Any]) -> Iterator[dict[Place, Any]]:
        # Fields that say nothing yet come last: most of them mean something else.
        said = sorted(self.options.items(), key=lambda item: item[1][0] is None)
        for place, (old, news) in said:
            for value in (*news, old):
                if value != values[place]:
                    yield {**values, place: value}

    def _fewest(
        self, values: dict[Place, Any], none: dict[Place, Any], reference: list[Tensor]
    ) -> dict[Place, Any]:
        """Put back what need not change: it meant something else."""
        for place in reversed(list(values)):
            if values[place] != none[place]:
                other = {**values, place: none[place]}
                if self._mismatches(other) == 0 and self._prove(other, reference):
                    values = other
        return values

    def _config(self, values: Mapping[Place, Any]) -> Any:
        """The config as it will be read back from its file."""
        config: Any = copy.deepcopy(self.model.config)
        for (path, name), value in values.items():
            if value != self.options[path, name][0]:
                target = config
                for part in path:
                    target = getattr(target, part)
                setattr(target, name, value)
        config.architectures = [self.kind.__name__]
        config.dtype = next(iter(self.model.parameters())).dtype
        return type(config).from_dict(json.loads(config.to_json_string()))

    def _mismatches(self, values: Mapping[Place, Any]) -> int:
        """How many tensors of the stock model have another shape than the pruned one's."""
        key = repr(sorted(values.items(), key=repr))
        if key not in self.tried:
            late = time.monotonic() - self.began > _MOST_SECONDS or self.builds >= _MOST_BUILDS
            self.tried[key] = 1 << 30 if late else self._count(values)
        return self.tried[key]

    def _count(self, values: Mapping[Place, Any]) -> int:
        self.builds += 1
        try:
            config = self._config(values)
            with torch.device("meta"):
                built = self.kind(config)
        except Exception as error:  # noqa: BLE001 - a config may refuse any combination of values
            log.debug("config %s: %s", values, error)
            if self.nearest == 1 << 28:
                what = f"{type(error).__name__}: {error}"
                self.failure = f"`{self.kind.__name__}` cannot be built from a config ({what})"
            return 1 << 29
        ours = {n: tuple(t.shape) for n, t in named_tensors(self.model).items()}
        theirs = {n: tuple(t.shape) for n, t in named_tensors(built).items()}
        wrong = [n for n in dict.fromkeys([*ours, *theirs]) if ours.get(n) != theirs.get(n)]
        if 0 < len(wrong) < self.nearest:
            self.nearest = len(wrong)
            self.failure = (
                f"the nearest gives `{wrong[0]}` the shape {theirs.get(wrong[0])} instead of "
                f"{ours.get(wrong[0])}"
            )
        return len(wrong)

    def _prove(self, values: Mapping[Place, Any], reference: list[Tensor]) -> bool:
        """Load by stock means and compare every tensor and the outputs."""
        key = repr(sorted(values.items(), key=repr))
        if key not in self.proven:
            self.proofs += 1
            if self.proofs > _MOST_PROOFS:
                return False
            try:
                why = self._differs(values, reference)
            except Exception as error:  # noqa: BLE001 - whatever stops the stock model is told
                why = f"the stock model fails with {type(error).__name__}: {error}"
            if why:
                self.failure, self.nearest = why, 0  # says more than the nearest wrong shape
            self.proven[key] = not why
        return self.proven[key]

    def _differs(self, values: Mapping[Place, Any], reference: list[Tensor]) -> str:
        with _quiet():
            built, report = self.kind.from_pretrained(
                None,
                config=self._config(values),
                state_dict={n: t.detach() for n, t in self.state.items()},
                output_loading_info=True,
            )
        for what in ("missing_keys", "unexpected_keys", "mismatched_keys"):
            if report.get(what):
                return f"the stock model has {what.replace('_', ' ')}: {sorted(report[what])[:3]}"
        theirs = named_tensors(built)
        for name, t in named_tensors(self.model).items():
            if t.dtype != theirs[name].dtype or not torch.equal(t.cpu(), theirs[name].cpu()):
                return f"the stock model computes other values for `{name}`"
        outputs = self.forward(built.to(next(self.model.parameters()).device))
        error = distance_of(reference, outputs)
        if not error <= tolerance(self.model):
            return f"a stock model of these shapes gives other outputs (relative error {error:.1e})"
        return ""


@contextmanager
def _quiet() -> Iterator[None]:
    """No progress bar of transformers meanwhile."""
    from transformers.utils import logging as theirs

    before = theirs.is_progress_bar_enabled()
    theirs.disable_progress_bar()
    try:
        yield
    finally:
        if before:
            theirs.enable_progress_bar()


def stock_class(model: nn.Module) -> Any:
    """The class that the user built: not the subclass that corrects its calls."""
    return next(c for c in type(model).__mro__ if not c.__module__.startswith("secateur."))


def _check_uniform(plan: Plan) -> None:
    """Raise NotStock if tensors that were alike in every layer no longer are."""
    first: dict[tuple[str, tuple[int, ...]], str] = {}
    for name, shape in plan.shapes.items():
        like = first.setdefault((re.sub(r"\.\d+\.", ".#.", name), tuple(shape)), name)
        if plan.shape(like) != plan.shape(name):
            raise NotStock(
                f"`{like}` has shape {plan.shape(like)}, but `{name}` has {plan.shape(name)}, and "
                "a config has one number for all layers"
            )


def fields(config: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[Place, Any]]:
    """Fields of a config and of the configs in it that may hold a size."""
    for name, value in {**_UNSAID, **vars(config)}.items():
        if name.startswith("_") or _NOT_SIZES.fullmatch(name):
            continue
        if is_config(value):
            yield from fields(value, (*path, name))
            continue
        many = isinstance(value, list | tuple) and value and all(type(v) is int for v in value)
        if value is None or type(value) is int or many:
            yield (path, name), value
