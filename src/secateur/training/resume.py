"""Going on after a kill: the state of an attachment as data, and back, all of it or nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor

from secateur.engine import ranks
from secateur.errors import StoreError

if TYPE_CHECKING:
    from secateur.training.handle import Handle

_KINDS: Mapping[str, type | tuple[type, ...]] = {
    "step": int,
    "steps": int,
    "amount": (int, float),
    "target": (int, float),
    "masks": Mapping,
    "state": Mapping,
    "generator": Tensor,
    "skipped": int,
    "gate": Mapping,
}


def state_of(handle: Handle) -> dict[str, Any]:
    """See ``Handle.state_dict``."""
    moment = handle.moment
    return {
        "method": handle.method.name,
        "step": moment.step,
        "steps": moment.steps,
        "amount": moment.amount,
        "target": moment.target,
        "masks": {n: ranks.whole(m).clone() for n, m in moment.masks.items()},
        "state": {n: t.clone() for n, t in moment.state.items()},
        "generator": moment.generator.get_state(),
        "skipped": handle.skipped,
        "gate": handle.gated.state_dict() if handle.gated is not None else {},
    }


def restore(handle: Handle, state: Mapping[str, Any]) -> None:
    """See ``Handle.load_state_dict``."""
    moment = handle.moment
    step = state.get("step") if isinstance(state, Mapping) else None
    same = {"the step to resume at": step}
    ranks.require_same(same, "give every rank the same resume file", handle.device)
    _check(handle, state)
    if handle.gated is not None:
        handle.gated.load_state_dict(state["gate"])
    moment.masks = {
        n: ranks.like(state["masks"][n].to(p.device).bool(), p)
        for n, p in moment.parameters.items()
    }
    moment.state.clear()
    moment.state.update({n: t.clone() for n, t in state["state"].items()})
    moment.generator.set_state(state["generator"])
    moment.step, moment.steps = state["step"], state["steps"]
    moment.amount = float(state["amount"])
    handle.skipped = state["skipped"]
    handle.settle()


def _check(handle: Handle, state: Mapping[str, Any]) -> None:
    if not isinstance(state, Mapping):
        raise StoreError(f"a {type(state).__name__} is no state: give what handle.state_dict() was")
    wrong = [k for k, kind in _KINDS.items() if not isinstance(state.get(k), kind)]
    if wrong:
        raise StoreError(
            f"the state has no {', '.join(wrong)}: give what handle.state_dict() was (is it the "
            "model's or the optimizer's?)"
        )
    name = handle.method.name
    if state.get("method") != name:
        raise StoreError(
            f"the state is of method {state.get('method')!r}, this run's is {name!r}: attach the "
            "same method"
        )
    _same_shapes(state["masks"], handle.moment.parameters)
    if state["steps"] != handle.moment.steps:
        raise StoreError(
            f"the state is of a run of {state['steps']} steps, this one has "
            f"{handle.moment.steps}: attach with steps={state['steps']}, or the schedule would jump"
        )
    if state["target"] != handle.moment.target:
        raise StoreError(
            f"the state is of a run to amount={state['target']:g}, this one goes to "
            f"{handle.moment.target:g}: attach with amount={state['target']:g}"
        )
    if handle.gated is not None:
        ours = handle.gated.state_dict()["aux"]
        theirs = state["gate"].get("aux", {})
        if ours.keys() != theirs.keys():
            raise StoreError("the state is of another model: its auxiliaries are of other layers")
        for of in ours:
            _same_shapes(theirs[of], ours[of])


def _same_shapes(theirs: Mapping[str, Tensor], ours: Mapping[str, Tensor]) -> None:
    shapes = [{n: tuple(t.shape) for n, t in each.items()} for each in (theirs, ours)]
    if shapes[0] != shapes[1]:
        wrong = sorted(n for n in {*theirs, *ours} if shapes[0].get(n) != shapes[1].get(n))
        raise StoreError(
            f"the state is of another model: {wrong[0]} has the shape "
            f"{shapes[0].get(wrong[0], 'of nothing')} there and "
            f"{shapes[1].get(wrong[0], 'of nothing')} here; build the same one"
        )
