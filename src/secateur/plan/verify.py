"""Proof: the pruned model computes what the dense model computes with the removed units masked.

For classes marked exact, masking is zeroing the planned slices in a copy of the dense model. For
statistical classes (layer norm, softmax, mean over a prunable axis) zeroing is not removing, so the
masked model runs under a reference that evaluates just those operators over the kept positions and
puts zeros back where units are missing. Both must agree with the pruned model to rounding.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from secateur.errors import PlanError, SecateurError, SurgeryError, TraceError
from secateur.graph.classes import Axis, UnitClass
from secateur.graph.forward import (
    call_arguments,
    map_tensors,
    module_hooks,
    named_tensors,
    run,
    skeleton,
    tensors_in,
    tensors_of_output,
    uncopied,
)
from secateur.graph.kept import forget
from secateur.graph.show import did_not_run
from secateur.measure.calling import evaluating, kept_buffers
from secateur.plan.gaps import drop, skipping
from secateur.plan.masking import masked_state
from secateur.plan.reference import Reference, ReferenceError
from secateur.plan.selection import gather, selection
from secateur.plan.still import Still
from secateur.plan.surgery import masked

if TYPE_CHECKING:
    from secateur.graph.graph import FrozenOp
    from secateur.plan.plan import Plan

# What is less than this part of what masking changes cannot be a unit gone wrong.
SHARE = 0.05
# To compare again in: the type, what is rounding in it, and from where on it is none, even if parts
# of the model compute in the narrower type whatever they are given.
_WIDER = {
    torch.float16: (torch.float32, 1e-5, 1e-5),
    torch.bfloat16: (torch.float32, 1e-5, 1e-5),
    torch.float32: (torch.float64, 1e-9, 1e-6),
}
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}


@dataclass(frozen=True)
class Verification:
    """Whether masked dense == pruned, and where not.

    Attributes:
        ok: The outputs agree within ``tolerance``.
        error: Largest relative error ||masked - pruned|| / ||masked|| over the outputs.
        tolerance: The bound for the model's precision.
        change: The same measure between the dense and the masked model: what pruning does.
        exact: True if plain zeroing was the reference, False if statistical operators were
            evaluated over the kept positions.
        where: First module whose output disagrees, or None.
        proven: False if no comparison could be made; ``note`` says why.
        note: What the reader should know.
    """

    ok: bool
    error: float
    tolerance: float
    change: float
    exact: bool
    where: str | None = None
    proven: bool = True
    note: str = ""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        if not self.proven:
            return f"not proven: {self.note}"
        what = "zeroed" if self.exact else "masked (statistics over the kept units)"
        if self.ok:
            return f"proven: pruned equals {what} dense to {self.error:.1e} relative error"
        return (
            f"NOT EQUAL: pruned differs from {what} dense by {self.error:.1e} "
            f"(tolerance {self.tolerance:.0e}), first in {self.where or 'the output'}"
        )


def verify(
    plan: Plan,
    model: nn.Module | None = None,
    pruned: nn.Module | None = None,
    *,
    example_inputs: Any = None,
    seed: int = 0,
) -> Verification:
    """Compare the pruned model with the masked dense one on random inputs.

    Args:
        plan: The plan.
        model: The dense model; default: the traced one.
        pruned: ``plan.apply(model)``, if at hand.
        example_inputs: Default: those of the trace. Floating inputs are replaced by random ones.
        seed: Of the random inputs.

    Returns:
        What was found; it never raises because the outputs differ.

    Raises:
        SurgeryError: The pruned model does not run on inputs on which the dense one does.
    """
    if model is None or (plan.graph is None and (example_inputs is None or not plan.exact)):
        if plan.graph is None:
            raise PlanError("pass the model and example_inputs, or a plan that still has its graph")
        model = plan.graph.model
    if example_inputs is None:
        assert plan.graph is not None
        example_inputs = plan.graph.example_inputs
    if any(t.is_meta for t in named_tensors(model).values()):
        return Verification(
            False, float("nan"), 0.0, float("nan"), plan.exact, proven=False,
            note="the model is on the meta device and has no values to compute with",
        )  # fmt: skip
    plan = plan.prepared()
    pruned = pruned if pruned is not None else plan.apply(model)
    if plan.dropped and model is not (plan.graph and plan.graph.model):
        return _without_dropped(plan, model, pruned, example_inputs, seed)
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    tolerance = TOLERANCE.get(dtype, 1e-4)
    inputs = randomised(example_inputs, seed)

    def unproven(note: str, error: float = float("nan"), change: float = float("nan")) -> Any:
        return Verification(False, error, tolerance, change, plan.exact, proven=False, note=note)

    try:
        dense, reference, result = _outputs(plan, model, pruned, inputs, seed)
        notes = []
        if distance(reference, result) > tolerance and _draws(skeleton(model), inputs, seed, dense):
            dense, reference, result = _outputs(plan, model, pruned, inputs, seed, still=True)
            notes.append("the model draws random numbers: compared with their means in their place")
    except ReferenceError as none:
        return unproven(str(none))
    floating = [t for t in reference if t.is_floating_point() or t.is_complex()]
    if not any(t.numel() for t in floating):
        return unproven(
            "on these inputs all that the model returns is empty: give some of a whole batch"
            if floating
            else "the model returns no floating-point tensor, and integers show little"
        )
    if not any(t.isfinite().any() for t in floating):
        return unproven("on these inputs the model returns nothing finite, masked or not")
    error, change = distance(reference, result), distance(dense, reference)
    ok = error <= tolerance
    if ok and plan.keep and error > SHARE * change:
        wide, rounding, wrong = _WIDER.get(dtype, (None, 0.0, 0.0))
        again = None if wide is None else _compared_in(wide, plan, model, pruned, inputs, seed)
        error, change = again or (error, change)
        ok = again is not None and error <= max(SHARE * change, rounding)
        if not ok and (again is None or error <= wrong):
            return unproven(
                f"masking changes the output by {change:.1e} on these inputs, too little to tell "
                f"what pruning changes beside it ({error:.1e})", error, change,
            )  # fmt: skip
    if plan.keep and change <= tolerance:
        notes.append(
            f"masking changes the output by {change:.1e} on these inputs, no more than the "
            "tolerance: the comparison shows little"
        )
    if plan.graph is not None:
        notes.append(did_not_run(plan.graph))
    where = None if ok else _where(plan, model, pruned, inputs, seed, tolerance)
    note = " ".join(filter(None, notes))
    return Verification(ok, error, tolerance, change, plan.exact, where, note=note)


def _outputs(
    plan: Plan, model: nn.Module, pruned: nn.Module, inputs: Any, seed: int, *, still: bool = False
) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """What the dense, the masked and the pruned model return."""
    with Still() if still else nullcontext():
        dense = _of_dense(skeleton(model), inputs, seed)
        return (
            dense,
            _reference(plan, model, inputs, seed),
            _of_pruned(skeleton(pruned), inputs, seed),
        )


def _draws(model: nn.Module, inputs: Any, seed: int, dense: list[Tensor]) -> bool:
    """True if what the model returns is also a matter of chance."""
    return distance(dense, outputs_of(model, inputs, seed + 1)) > 0


def _compared_in(
    dtype: torch.dtype, plan: Plan, model: nn.Module, pruned: nn.Module, inputs: Any, seed: int
) -> tuple[float, float] | None:
    """The error and the change of copies in another type; None if they do not run in it."""
    try:
        both = [copy.deepcopy(m, uncopied(m)).to(dtype) for m in (model, pruned)]
        cast = map_tensors(lambda t: t.to(dtype) if t.is_floating_point() else t, inputs)
        dense, reference, result = _outputs(plan, both[0], both[1], cast, seed)
    except (ReferenceError, SecateurError, RuntimeError, TypeError, ValueError):
        return None  # parts of it are of one type, whatever the rest is
    return distance(reference, result), distance(dense, reference)


def _without_dropped(
    plan: Plan, model: nn.Module, pruned: nn.Module, inputs: Any, seed: int
) -> Verification:
    """First the model without what is dropped against the whole one that skips it; then the rest.

    The whole model computes what is dropped and ignores it, so that nothing which the removal moves
    or renumbers is used twice.
    """
    less = drop(copy.deepcopy(model), plan.dropped)
    rest = verify(replace(plan, dropped=()), less, pruned, example_inputs=inputs, seed=seed)
    here = randomised(inputs, seed)
    with skipping(model, plan.dropped):
        reference = outputs_of(model, here, seed)
    error = distance(reference, outputs_of(less, here, seed))
    change = max(distance(outputs_of(model, here, seed), reference), rest.change)
    where = rest.where or (plan.dropped[0].module if error > rest.tolerance else None)
    return replace(
        rest,
        ok=rest.ok and error <= rest.tolerance,
        error=max(error, rest.error),
        change=change,
        where=where,
    )


def randomised(example_inputs: Any, seed: int) -> Any:
    """Floating inputs become random ones of the same scale; indices and masks stay as given."""
    generator = torch.Generator().manual_seed(seed)

    def fresh(t: Tensor) -> Tensor:
        if not t.is_floating_point() or t.is_meta or t.numel() < 2:
            return t
        spread = t.float().std().item() or 1.0
        noise = torch.randn(t.shape, generator=generator) * spread + t.float().mean().item()
        return noise.to(t.device, t.dtype)

    return map_tensors(fresh, example_inputs)


def outputs_of(model: nn.Module, inputs: Any, seed: int) -> list[Tensor]:
    """What a model returns in evaluation mode, all tensors of it."""
    args, kwargs = call_arguments(map_tensors(torch.clone, inputs))
    with evaluating(model), torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(seed)  # a forward that draws noise draws the same for both
        return [t.clone() for t in tensors_of_output(model(*args, **kwargs))]


def _of_dense(model: nn.Module, inputs: Any, seed: int) -> list[Tensor]:
    try:
        return outputs_of(model, inputs, seed)
    except SecateurError:
        raise
    except Exception as error:  # fake tensors, which the trace runs on, let some types pass
        raise TraceError(
            f"the dense {type(model).__name__} does not run on the example inputs: "
            f"{type(error).__name__}: {error}. Pass inputs of the types that it takes."
        ) from error


def _of_pruned(model: nn.Module, inputs: Any, seed: int) -> list[Tensor]:
    try:
        return outputs_of(model, inputs, seed)
    except SecateurError:
        raise
    except Exception as error:  # any line of the user's forward may raise
        raise SurgeryError(
            f"the pruned {type(model).__name__} does not run on inputs on which the dense one "
            f"does: {type(error).__name__}: {error}. Leave what is at fault whole: ignore=[...]."
        ) from error


def distance(a: list[Tensor], b: list[Tensor]) -> float:
    """Largest relative error over floating outputs; infinite where shapes or finiteness differ."""
    if len(a) != len(b) or any(x.shape != y.shape for x, y in zip(a, b, strict=False)):
        return float("inf")
    worst = 0.0
    for x, y in zip(a, b, strict=True):
        if not x.is_floating_point() and not x.is_complex():
            continue
        finite = torch.isfinite(x)
        if not torch.equal(finite, torch.isfinite(y)):
            return float("inf")
        x, y = (torch.where(finite, t, 0) for t in (x, y))
        x, y = (torch.view_as_real(t) if t.is_complex() else t for t in (x, y))
        x, y = x.double(), y.double()
        worst = max(worst, float((x - y).norm() / x.norm().clamp_min(1e-12)))
    return worst


def _reference(plan: Plan, model: nn.Module, inputs: Any, seed: int) -> list[Tensor]:
    state = masked_state(plan, model)
    modes: list[Any] = []
    if not plan.exact:
        modes = [Reference(*_on_data(plan, model, inputs))]
    with torch.random.fork_rng(), kept_buffers(model):
        torch.manual_seed(seed)
        # Detached, as in the trace: which kernels a product takes depends on who needs gradients.
        output = run(
            _fresh(plan, model), inputs, modes, fake=False, state=lambda n, t: state[n].detach()
        )
    return [t.clone() for t in tensors_of_output(output)]


def _fresh(plan: Plan, model: nn.Module) -> nn.Module:
    """A copy that shares all tensors, without what forwards have kept in it since the trace."""
    return forget(skeleton(model), plan.graph.kept if plan.graph is not None else {})


def _on_data(plan: Plan, model: nn.Module, inputs: Any) -> tuple[Plan, tuple[FrozenOp, ...]]:
    """The plan and the operators in terms of a trace on real tensors.

    Its operators are those that the reference will meet, one by one. Its classes are the same, but
    their names may differ where a real kernel says more or less about them than a fake one.
    """
    from secateur.graph.trace import trace

    assert plan.graph is not None
    real = trace(_fresh(plan, model), inputs, on_data=True)
    names = {_signature(c): n for n, c in real.classes.items()}
    keep = {}
    for name, mask in plan.keep.items():
        other = names.get(_signature(plan.graph.classes[name]))
        if other is None:
            raise ReferenceError(
                f"run on real tensors the model shows no class like {name}, so its statistical "
                "operators cannot be evaluated over the kept positions"
            )
        keep[other] = mask
    return replace(plan, keep=keep, sizes=real.sizes, axes=real.axes, graph=real), real.ops


def _signature(c: UnitClass) -> tuple[Any, ...]:
    places = {(m.tensor, m.axis, hash(tuple(m.unit.tolist()))) for m in c.members}
    return (c.size, *sorted(places))


def _where(
    plan: Plan, dense: nn.Module, pruned: nn.Module, inputs: Any, seed: int, tolerance: float
) -> str | None:
    """The first module whose kept outputs differ between the masked and the pruned model."""
    if plan.graph is None:
        return None
    axes: Mapping[str, tuple[Axis, ...]] = plan.graph.outputs
    with_masks = copy.deepcopy(_fresh(plan, dense), uncopied(dense))
    for n, t in named_tensors(with_masks).items():
        t.data = masked(plan, n, t)
    seen = [_module_outputs(m, inputs, seed) for m in (with_masks, pruned)]
    for name, big in seen[0].items():
        small = seen[1].get(name)
        if small is None or name not in axes or big.dim() != len(axes[name]):
            continue
        if tuple(big.shape) == tuple(plan.counts(a)[0] for a in axes[name]):
            big = gather(big, selection(axes[name], plan.keep, plan.sizes))
        if distance([big], [small]) > tolerance:
            return name or None
    return None


def _module_outputs(model: nn.Module, inputs: Any, seed: int) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}

    def leave(name: str, output: Any) -> None:
        tensors = tensors_in(output)
        if tensors and name not in found:
            found[name] = tensors[0].clone()

    with module_hooks(model, lambda name: None, leave):
        outputs_of(model, inputs, seed)
    return found
