"""Apply a plan: one gather a tensor, then the Python side is made to agree."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from secateur.errors import PlanError, SurgeryError
from secateur.graph.forward import named_tensors, skeleton, uncollected, uncopied
from secateur.graph.kept import forget
from secateur.plan.attention import keeps_off_fast_path, narrow_attention
from secateur.plan.gaps import drop
from secateur.plan.mend import mend
from secateur.plan.selection import fill as fill_in
from secateur.plan.selection import gather

if TYPE_CHECKING:
    from secateur.plan.plan import Edit, Plan


def apply(plan: Plan, model: nn.Module, *, inplace: bool = False) -> nn.Module:
    """The model with the planned units removed; see ``Plan.apply``."""
    if plan.dropped and not (plan.graph is not None and model is plan.graph.model):
        rest = replace(plan, dropped=())
        if inplace:
            apply(rest, drop(skeleton(model), plan.dropped))  # a rehearsal
        whole = drop(model if inplace else copy.deepcopy(model), plan.dropped)
        return apply(rest, whole, inplace=True)
    check_architecture(plan, model)
    with uncollected():
        if inplace:
            change_python_side(plan, skeleton(model))  # a rehearsal: what cannot be done fails here
        target = model if inplace else copy.deepcopy(model, uncopied(model))
        forget(target, plan.graph.kept if plan.graph is not None else {})
        tensors, owners = named_tensors(target), _owners(target)
        for name in plan.touched:
            old = tensors[name]
            _replace(owners.get(id(old), []), name, old, narrowed(plan, name, old), plan)
        change_python_side(plan, target)
    return target


def check_architecture(plan: Plan, model: nn.Module) -> None:
    """Raise a PlanError unless the model has exactly the tensors that the plan was made for."""
    found = {n: tuple(t.shape) for n, t in named_tensors(model).items()}
    wanted = {n: tuple(s) for n, s in plan.shapes.items()}
    if found == wanted:
        return
    missing = [n for n in wanted if n not in found]
    extra = [n for n in found if n not in wanted]
    other = [n for n in wanted if n in found and found[n] != wanted[n]]
    parts = []
    if missing:
        parts.append(f"it lacks {_some(missing)}")
    if extra:
        parts.append(f"it also has {_some(extra)}")
    if other:
        n = other[0]
        parts.append(f"{n} has shape {found[n]} instead of {wanted[n]}")
    raise PlanError(
        f"the plan was made for another architecture than this {type(model).__name__}: "
        f"{'; '.join(parts)}. Trace and plan this model anew."
    )


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def narrowed(plan: Plan, name: str, tensor: Tensor) -> Tensor:
    """The kept part of a parameter or buffer, or of anything of its shape."""
    result = gather(tensor.detach(), plan.selection(name))
    return result.contiguous(memory_format=memory_format_of(tensor))


def memory_format_of(tensor: Tensor) -> torch.memory_format:
    """Channels last where the tensor is so and not contiguous as well."""
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    last = formats.get(tensor.dim(), torch.contiguous_format)
    kept = not tensor.is_contiguous() and tensor.is_contiguous(memory_format=last)
    return last if kept else torch.contiguous_format


def masked(plan: Plan, name: str, tensor: Tensor) -> Tensor:
    """The tensor with the removed positions set to zero.

    What a parametrization starts from gets a tiny number instead: weight norm divides by its
    length.
    """
    of_old_weight_norm = name.endswith("_v") and f"{name[:-1]}g" in plan.axes
    fill = 1e-12 if of_old_weight_norm or ".parametrizations." in f".{name}" else 0
    return fill_in(tensor.detach().clone(), plan.selection(name), fill)


def _replace(
    owners: list[tuple[nn.Module, str]], name: str, old: Tensor, new: Tensor, plan: Plan
) -> None:
    if isinstance(old, nn.Parameter):
        # The Parameter object stays, so ties, optimizers and requires_grad stay with it.
        grad = old.grad
        old.grad = None
        old.data = new
        if grad is not None:
            old.grad = narrowed(plan, name, grad)
        return
    for owner, leaf in owners:
        owner._buffers[leaf] = new


def _owners(model: nn.Module) -> dict[int, list[tuple[nn.Module, str]]]:
    """Which modules hold each buffer (by its id), and under what name."""
    owners: dict[int, list[tuple[nn.Module, str]]] = {}
    for module in model.modules():
        for name, buffer in module._buffers.items():
            owners.setdefault(id(buffer), []).append((module, name))
    return owners


def change_python_side(plan: Plan, model: nn.Module) -> None:
    """Make attributes and forwards agree with the new shapes, which tensors need not have yet."""
    for path, module in model.named_modules():
        if isinstance(module, nn.MultiheadAttention):
            narrow_attention(plan, path, module)
        _standard_attributes(plan, path, module)
        if isinstance(module, nn.RNNBase) and all(not p.is_meta for p in module.parameters()):
            module.flatten_parameters()
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoder) and keeps_off_fast_path(module):
            module.use_nested_tensor = False  # only the fused path of its layers can take them
    calls: dict[str, list[Edit]] = {}
    for edit in plan.edits or ():
        if edit.call is not None:
            calls.setdefault(edit.module, []).append(edit)
            continue
        set_attribute(_submodule(model, edit.module), edit.name, edit.value)
    for path, edits in calls.items():
        mend(_submodule(model, path), edits)


def _submodule(model: nn.Module, path: str) -> nn.Module:
    try:
        return model.get_submodule(path)
    except AttributeError as error:
        raise SurgeryError(f"the plan edits module {path!r}, which this model lacks") from error


def set_attribute(module: Any, name: str, value: Any) -> None:
    """Set ``module.a.b``; a tuple stays a tuple."""
    *path, last = name.split(".")
    for part in path:
        module = getattr(module, part)
    if not hasattr(module, last):
        raise SurgeryError(f"the plan sets {name!r}, which {type(module).__name__} lacks")
    old = getattr(module, last)
    setattr(module, last, tuple(value) if isinstance(old, tuple) else value)


# Attributes of standard modules that follow from a tensor's new shape: (tensor, axis) by name.
_STANDARD: tuple[tuple[type, dict[str, tuple[str, int]]], ...] = (
    (nn.Linear, {"out_features": ("weight", 0), "in_features": ("weight", 1)}),
    (nn.modules.batchnorm._NormBase, {"num_features": ("running_mean", 0)}),
    (nn.modules.batchnorm._NormBase, {"num_features": ("weight", 0)}),
    (nn.GroupNorm, {"num_channels": ("weight", 0)}),
    (nn.Embedding, {"num_embeddings": ("weight", 0), "embedding_dim": ("weight", 1)}),
    (nn.EmbeddingBag, {"num_embeddings": ("weight", 0), "embedding_dim": ("weight", 1)}),
    (nn.PReLU, {"num_parameters": ("weight", 0)}),
    (nn.RNNBase, {"input_size": ("weight_ih_l0", 1), "hidden_size": ("weight_hh_l0", 1)}),
    (nn.RNNCellBase, {"input_size": ("weight_ih", 1), "hidden_size": ("weight_hh", 1)}),
)


def _standard_attributes(plan: Plan, path: str, module: nn.Module) -> None:
    def shape(tensor: str) -> tuple[int, ...] | None:
        for form in (
            tensor,
            f"parametrizations.{tensor}.original",
            f"parametrizations.{tensor}.original1",
        ):
            name = f"{path}.{form}" if path else form
            if name in plan.axes:
                return plan.shape(name)
        return None

    for kind, attributes in _STANDARD:
        if isinstance(module, kind):
            for attribute, (tensor, axis) in attributes.items():
                found = shape(tensor)
                if found is not None:
                    setattr(module, attribute, found[axis])
    if isinstance(module, nn.LayerNorm | nn.RMSNorm) and (found := shape("weight")) is not None:
        module.normalized_shape = found
    if isinstance(module, nn.modules.conv._ConvNd) and (found := shape("weight")) is not None:
        name = f"{path}.weight" if path else "weight"
        if name in plan.axes and module.groups > 1:
            mask = plan.masks(name)[0].view(module.groups, -1)
            module.groups = int(mask.any(1).sum())
        ours, other = (0, 1) if not module.transposed else (1, 0)
        inner = found[other]
        if module.transposed:
            module.in_channels, module.out_channels = inner, found[ours] * module.groups
        else:
            module.out_channels, module.in_channels = found[ours], inner * module.groups


def apply_to_optimizer(plan: Plan, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Narrow an optimizer's state along with the parameters (after ``apply(inplace=True)``).

    Slots of a parameter's shape are narrowed like it, and so are those that lack one of its axes or
    have 1 there (factored second moments); single numbers stay. State of the dense model is told
    from that of the pruned one by its shape. Nothing changes on an error.
    """
    names = {id(p): n for n, p in model.named_parameters()}
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    kind = type(optimizer).__name__
    if not held & names.keys():
        raise PlanError(
            f"{kind} holds no parameter of this {type(model).__name__}: pass the model that it "
            "trains, pruned by plan.apply(model, inplace=True)"
        )
    _check_pruned(plan, model)
    changes = []
    for parameter, slots in optimizer.state.items():
        name = names.get(id(parameter))
        if name is None:
            continue
        for key, value in slots.items():
            found = None
            if isinstance(value, Tensor) and value.numel() > 1:
                found = _narrowed_slot(plan, name, value)
            if found is None and not _is_plain(value):
                raise PlanError(
                    f"{kind} keeps {key!r} of {name}, which cannot be narrowed with it: make a new "
                    "optimizer for the pruned model"
                )
            if found is not None:
                changes.append((slots, key, found))
    for slots, key, found in changes:
        slots[key] = found


def _check_pruned(plan: Plan, model: nn.Module) -> None:
    """Raise a PlanError unless every parameter has the shape that the plan gives it."""
    for name, p in model.named_parameters():
        wanted = plan.shape(name) if name in plan.axes else None
        if wanted != tuple(p.shape):
            made = f"the plan makes {wanted}" if wanted else "the plan has no such parameter"
            raise PlanError(
                f"{name} has shape {tuple(p.shape)}, and {made}: nothing was changed. Pass the "
                "model itself that plan.apply(model, inplace=True) pruned"
            )


def _is_plain(value: Any) -> bool:
    numbers = (bool, int, float, str, type(None))
    return isinstance(value, numbers) or (isinstance(value, Tensor) and value.numel() == 1)


def _narrowed_slot(plan: Plan, name: str, slot: Tensor) -> Tensor | None:
    """The kept part of a slot of the parameter's shape, or of it without one or more axes."""
    old, new, shape = tuple(plan.shapes[name]), plan.shape(name), tuple(slot.shape)
    if shape == old:
        return narrowed(plan, name, slot)
    if shape == new:
        return slot
    if any(len(dims) == 2 for dims, _ in plan.selection(name)):
        return None  # each row keeps other columns, and the slot has one for all rows
    missing = [k for k in range(len(old)) if old[:k] + old[k + 1 :] == shape]
    if len({new[:k] + new[k + 1 :] for k in missing}) > 1:
        return None  # equal sizes: it cannot be told which axis is not there
    if missing:
        rows = missing[0]
        full = slot.unsqueeze(rows)
    elif len(shape) == len(old) and all(s in (1, o) for s, o in zip(shape, old, strict=True)):
        full = slot
    else:
        return None
    part = narrowed(plan, name, full.expand(old))
    for axis, size in enumerate(full.shape):
        if size == 1:
            part = part.narrow(axis, 0, 1)
    return (part.squeeze(missing[0]) if missing else part).clone()
