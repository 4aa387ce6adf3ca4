"""Try one model: trace, plan, prune, run and compare, twice. No hint of any kind is given."""

import time
import traceback
from collections.abc import Callable
from typing import Any

import torch
from benchmarks.coverage.case import Case
from benchmarks.coverage.oracle import TOLERANCE, NeutralNorms, difference, masked, outputs
from benchmarks.coverage.randomise import randomise, settle
from torch import Tensor, nn

Report = Callable[[dict[str, Any]], None]


def try_case(case: Case, report: Report) -> None:
    """Run a case to its end or to its first error, reporting each fact as soon as it is known."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    stage = "build"

    def enter(name: str) -> None:
        nonlocal stage
        stage = name
        report({"stage": name})

    try:
        _try(case, report, enter)
        report({"stage": "done"})
    except Exception as error:  # noqa: BLE001 - any failure is this model's result
        report({"cause": f"{stage}: {summary(error)}", "trace": traceback.format_exc()[-3000:]})


def summary(error: Exception) -> str:
    """Type and first lines of an error, on one line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:300]}"


def _try(case: Case, report: Report, enter: Callable[[str], None]) -> None:
    import secateur as sec

    enter("build")
    model, args, kwargs = case.build()
    randomise(model)
    report({"parameters": parameters(model)})
    enter("dense forward")
    settle(model, args, kwargs)
    dense = outputs(model, args, kwargs)
    if not dense or not all(t.isfinite().any() for t in dense if t.numel()):
        raise ValueError("the dense model's output is empty or not finite: the case is worthless")
    before = fingerprint(model)

    enter("trace")
    began = time.process_time()
    example = args if not kwargs else (kwargs if not args else merged(model, args, kwargs))
    graph = sec.trace(model, example)
    classes = graph.classes.values()
    report(
        {
            "traced": True,
            "trace_seconds": time.process_time() - began,
            "classes": len(classes),
            "free": sum(c.locked is None for c in classes),
            "share": graph.prunable_share,
            "unknown": dict(graph.unknown),
            "on_data": graph.on_data,
        }
    )
    for name, statistical in (("exact", False), ("statistical", True)):
        enter(f"{name} plan")
        facts: dict[str, Any] = {}
        report({name: facts})
        began = time.process_time()
        eligible = [c for c in classes if c.locked is None and (statistical or c.exact)]
        if not eligible:
            report({name: facts | {"eligible": 0}})
            continue
        plan = sec.plan(
            graph,
            amount=0.5,
            criterion="random",
            scope="uniform",
            kinds="all",
            statistical=statistical,
            seed=0,
        )
        facts |= {"plan_seconds": time.process_time() - began}
        report({name: facts})
        enter(f"{name} apply")
        began = time.process_time()
        small = plan.apply(model)
        facts |= {
            "apply_seconds": time.process_time() - began,
            "eligible": len(eligible),
            "halved": sum(plan.removed.get(c.name, 0) >= c.size // 2 > 0 for c in eligible),
            "touched": len(plan.removed),
            "parameters": parameters(small),
            "exact": plan.exact,
            "notes": [str(n)[:300] for n in plan.notes][:20],
        }
        report({name: facts})
        enter(f"{name} forward")
        pruned = outputs(small, args, kwargs)
        facts["shapes"] = [t.shape for t in pruned] == [t.shape for t in dense]
        facts["changed"] = difference(dense, pruned)
        report({name: facts})
        enter(f"{name} compare")
        kept = {tensor: plan.selection(tensor) for tensor in plan.touched}
        reference = masked(model, kept)
        if statistical and not plan.exact:
            with NeutralNorms():
                facts["error"] = difference(
                    outputs(reference, args, kwargs), outputs(small, args, kwargs)
                )
        else:
            facts["error"] = difference(outputs(reference, args, kwargs), pruned)
        del reference
        report({name: facts})
        enter(f"{name} verify")
        verified = plan.verify(model)
        facts |= {"verify_ok": bool(verified.ok), "verify_error": float(verified.error)}
        report({name: facts})
        del small, plan, verified
    if fingerprint(model) != before:
        raise RuntimeError("the user's model was changed")


def merged(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """All inputs by keyword: the names of the positional ones are read off the forward."""
    import inspect

    names = list(inspect.signature(model.forward).parameters)
    return dict(zip(names, args, strict=False)) | kwargs


def parameters(model: nn.Module) -> int:
    """Number of parameters, shared ones once."""
    return sum(p.numel() for p in model.parameters())


def fingerprint(model: nn.Module) -> list[tuple[str, tuple[int, ...], float, bool]]:
    """Enough of a model to notice that it was changed."""

    def total(value: Tensor) -> float:
        return float(value.detach().double().sum()) if value.numel() else 0.0

    tensors = (*model.named_parameters(), *model.named_buffers())
    state = [(n, tuple(t.shape), total(t), t.requires_grad) for n, t in tensors]
    return [*state, ("training", (), float(sum(m.training for m in model.modules())), False)]


def passed(row: dict[str, Any]) -> bool:
    """Whether the exact pass is proven: really pruned, same shapes, equal to the masked model.

    Where no class is exact (every one lies under a norm), the second pass must be verified instead.
    """
    if row.get("exact", {}).get("eligible") == 0:
        return statistical_ok(row) and row["statistical"]["touched"] > 0
    return proven(row.get("exact", {}))


def statistical_ok(row: dict[str, Any]) -> bool:
    """Whether the second pass ran, kept its shapes and was verified."""
    facts = row.get("statistical", {})
    return bool(facts.get("shapes")) and bool(facts.get("verify_ok"))


def proven(facts: dict[str, Any]) -> bool:
    """Whether a pass pruned something that shows, and gave what zeroing gives."""
    return (
        facts.get("touched", 0) > 0
        and facts.get("error", float("inf")) < TOLERANCE
        and facts.get("changed", 0.0) > 10 * TOLERANCE
    )
