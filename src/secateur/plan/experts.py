"""Experts of a router that go: the rows of the router and of the stacked experts with them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from secateur.engine.told import stacked
from secateur.errors import PlanError

if TYPE_CHECKING:
    from secateur.plan.gaps import Gap

_COUNTS = re.compile(r"n_?(\w+_)?experts|num_(\w+_)?experts")  # how many there are; not top_k


@contextmanager
def unchosen(model: nn.Module, gaps: Sequence[Gap]) -> Iterator[None]:
    """Routers give these experts the logit minus infinity, so that no token reaches them.

    Raises:
        PlanError: The model has no such experts.
    """
    gone = {}
    for gap in gaps:
        router, _ = parts(model, gap.module)
        weight = model.get_submodule(router).weight
        gone[weight.data_ptr()] = torch.tensor(gap.experts)  # type: ignore[operator]

    class Unchosen(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None):  # type: ignore[no-untyped-def]
            result = func(*args, **(kwargs or {}))
            if func is F.linear and args[1].data_ptr() in gone:
                experts = gone[args[1].data_ptr()].to(result.device)
                result = result.index_fill(-1, experts, float("-inf"))
            return result

    if not gaps:
        yield
        return
    with Unchosen():
        yield


def routed(model: nn.Module) -> dict[str, int]:
    """The modules that send tokens to stacked experts, and how many experts each has.

    Such a module holds one whose own weights are three-dimensional stacks, and beside it exactly
    one whose own weight has a row for each of the stack: the router.
    """
    found = {}
    for name, module in model.named_modules():
        for inner in module.children():
            count = stacked(inner)
            if count and len(_routers(module, count)) == 1:
                found[name] = count
    return found


def parts(model: nn.Module, name: str) -> tuple[str, str]:
    """Names of the router and of the experts in a module that ``routed`` found.

    Raises:
        PlanError: It is none.
    """
    module = dict(model.named_modules()).get(name)
    for leaf, inner in [] if module is None else module.named_children():
        count = stacked(inner)
        routers = _routers(module, count) if count else []  # type: ignore[arg-type]
        if len(routers) == 1:
            return f"{name}.{routers[0]}".lstrip("."), f"{name}.{leaf}".lstrip(".")
    raise PlanError(f"{name!r} has no router and stacked experts in this {type(model).__name__}")


def chosen_at_once(model: nn.Module, name: str) -> int:
    """How many experts a router chooses for a token; 1 where it does not say."""
    router, _ = parts(model, name)
    places: list[Any] = [model.get_submodule(router), model.get_submodule(name)]
    places += [m.config for m in model.modules() if hasattr(m, "config")]
    for place in places:
        for field in ("top_k", "num_experts_per_tok", "moe_top_k", "moe_k"):
            if type(found := getattr(place, field, None)) is int:
                return found
    return 1


def narrow(model: nn.Module, gaps: Sequence[Gap]) -> None:
    """Take experts out, in place; configs say so where all routers keep the same number.

    Raises:
        PlanError: No such experts, fewer than a router chooses, or experts that are in groups.
    """
    before = routed(model)
    for gap in gaps:
        _check(model, gap, before)
    for gap in gaps:
        count = before[gap.module]
        stays = [j for j in range(count) if j not in gap.experts]
        for part in parts(model, gap.module):
            module = model.get_submodule(part)
            for table in (module._parameters, module._buffers):
                for leaf, t in table.items():
                    if t is not None and t.dim() and t.shape[0] == count:
                        _replace(table, leaf, t, stays)
            if isinstance(module, nn.Linear):
                module.out_features = len(stays)
        _recount([model.get_submodule(gap.module), *model.get_submodule(gap.module).modules()],
                 count, len(stays))  # fmt: skip
    after = routed(model)
    olds, news = set(before.values()), set(after.values())
    if gaps and len(olds) == len(news) == 1:
        configs = {id(m.config): m.config for m in model.modules() if hasattr(m, "config")}
        _recount([*configs.values(), *model.modules()], olds.pop(), news.pop())


@torch.no_grad()
def _replace(table: Any, leaf: str, t: Tensor, stays: Sequence[int]) -> None:
    fewer = t.detach()[torch.tensor(stays, device=t.device)].contiguous()
    if isinstance(t, nn.Parameter):
        fewer = nn.Parameter(fewer, requires_grad=t.requires_grad)
    table[leaf] = fewer


def _check(model: nn.Module, gap: Gap, counts: Mapping[str, int]) -> None:
    if gap.module not in counts or not all(0 <= j < counts[gap.module] for j in gap.experts):
        raise PlanError(
            f"the plan takes experts {list(gap.experts)} from {gap.module!r}, which this "
            f"{type(model).__name__} lacks"
        )
    least = chosen_at_once(model, gap.module)
    if counts[gap.module] - len(gap.experts) < least:
        raise PlanError(
            f"{gap.module} would keep {counts[gap.module] - len(gap.experts)} experts, but its "
            f"router chooses {least} for every token: remove fewer"
        )
    for module in model.get_submodule(gap.module).modules():
        groups = getattr(module, "n_group", None)
        if type(groups) is int and groups > 1:
            raise PlanError(
                f"{gap.module} chooses among {groups} groups of experts of the same size, which "
                "experts cannot be taken from"
            )


def _recount(places: Sequence[Any], old: int, new: int) -> None:
    for place in places:
        for name, value in list(vars(place).items()):
            if type(value) is int and value == old and _COUNTS.fullmatch(name):
                setattr(place, name, new)


def _routers(module: nn.Module, count: int) -> list[str]:
    return [
        name
        for name, inner in module.named_children()
        if isinstance(weight := getattr(inner, "weight", None), nn.Parameter)
        and weight.dim() == 2
        and weight.shape[0] == count
    ]
