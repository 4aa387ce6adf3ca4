"""Save a pruned model as a folder, and load it onto a freshly built original architecture.

The folder holds ``plan.json`` (what was removed, and the digests of the other files),
``model.safetensors`` (the pruned weights), ``buffers.safetensors`` where the model has buffers that
are no part of its state (rotary frequencies, position tables), and ``README.md``. Nothing in it
is code.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from secateur.errors import PlanError, SecateurError, StoreError
from secateur.files import Writer, path_of, read_text, write_text, write_together
from secateur.graph.forward import named_tensors
from secateur.plan.assign import is_passing, owner_of, with_tensors
from secateur.plan.edits import check_target
from secateur.plan.encode import LARGEST_FILE, decode, encode, plain
from secateur.plan.folder import (
    BUFFERS,
    DTYPES,
    PLAN,
    WEIGHTS,
    Folder,
    dtype_name,
    read,
    sha256_of,
    tensors_of,
)
from secateur.plan.gaps import drop
from secateur.plan.plan import Plan
from secateur.plan.stock import is_pretrained, stock
from secateur.plan.surgery import change_python_side, check_architecture

CARD = "README.md"
_NAMES = {PLAN, WEIGHTS, BUFFERS, CARD, "config.json", "generation_config.json",
          "metrics.json", "report.html"}  # fmt: skip


def save(
    directory: str | Path,
    model: nn.Module,
    plan: Plan,
    *,
    card: str | None = None,
    extra: Mapping[str, Any] | None = None,
    beside: Mapping[str, str] | None = None,
    overwrite: bool = False,
) -> Path:
    """Write a pruned model, so that ``load`` brings it back without pickle.

    All files appear together or, should anything fail, none of them, and an older folder stays as
    it was. Saving again replaces the files that an earlier save wrote, and no others. A
    transformers model gets a ``config.json`` too, where a stock config can describe its pruned
    shape, so that plain ``from_pretrained`` loads the folder.

    Args:
        directory: The folder; made if need be.
        model: The pruned model, as ``plan.apply`` made it, possibly trained since.
        plan: The plan.
        card: Text of README.md; default: a short one.
        extra: What else to keep in plan.json: metrics, the command, anything JSON can say.
        beside: Name -> text of other files to write with these: the record and page of a run.
        overwrite: Replace files of the same names that something else wrote.

    Returns:
        The folder.

    Raises:
        StoreError: The model is not what the plan makes, a file of somebody else is in the way, or
            a file cannot be written.

    Example:
        >>> save("out", plan.apply(model), plan)
        PosixPath('out')
    """
    if not isinstance(model, nn.Module) or not isinstance(plan, Plan):
        raise StoreError(
            "save takes the folder, the pruned model and its plan, not "
            f"{', '.join(type(given).__name__ for given in (directory, model, plan))}"
        )
    directory = path_of(directory, "a folder")
    plan = plan.prepared()
    weights, buffers = _contents(model, plan)
    same = _equal(buffers)
    tensors = {
        WEIGHTS: weights,
        BUFFERS: {n: t for n, t in buffers.items() if n not in same},
    }
    tensors = {name: group for name, group in tensors.items() if group or name == WEIGHTS}
    about: dict[str, Any] = {}
    files: dict[str, Writer] = {
        name: partial(_write_tensors, tensors=group, about=about) for name, group in tensors.items()
    }
    text = card if card is not None else _short_card(model, plan)
    if is_pretrained(model):
        described = stock(model, plan, weights)
        files |= {name: write_text(content) for name, content in described.files.items()}
        text = f"{text.rstrip()}\n\n{described.note}\n"
    files[CARD] = write_text(text)
    files |= {name: write_text(content) for name, content in (beside or {}).items()}

    def write_plan(path: Path) -> None:
        text = encode(
            plan,
            model=type(model).__name__,
            added=[n for n in weights if n not in plan.shapes],
            same=same,
            files={name: {"name": name, **entry} for name, entry in about.items()},
            written=list(files),
            extra=plain(dict(extra or {})),
        )
        write_text(text)(path)

    files[PLAN] = write_plan  # last: it says what the others must be
    ours = _ours(directory)
    if not overwrite:
        _check_free(directory, files, ours)
    write_together(directory, files, stale=ours - files.keys())
    return directory


def load(
    model: nn.Module | Callable[[], nn.Module],
    directory: str | Path,
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> nn.Module:
    """The saved model, on a freshly built original architecture.

    The model given is not changed. It may be on the meta device (``with torch.device("meta")``), so
    that no dense weights are ever made. Modules are in train or eval mode as they were built.

    Args:
        model: The architecture that was pruned, or a function that builds it.
        directory: What ``save`` wrote.
        device: Of the result; default: that of the model given (CPU for a meta model).
        dtype: Of its floating weights; default: as saved.

    Raises:
        StoreError: A file is missing, damaged, changed, or made for another architecture; or there
            is no such device, or ``dtype`` is not a floating one.

    Example:
        >>> model = load(build_model, "out")
    """
    if not isinstance(directory, str | Path) or not (
        isinstance(model, nn.Module) or callable(model)
    ):
        raise StoreError(
            "load takes the model (or what builds it) first and the folder second, not "
            f"{type(model).__name__} and {type(directory).__name__}"
        )
    _check_options(device, dtype)
    folder = read(directory)
    original = model if isinstance(model, nn.Module) else model()
    if not isinstance(original, nn.Module):
        raise StoreError(f"load needs a module or what builds one, not {type(original).__name__}")
    where = str(folder.path / PLAN)
    if folder.plan.dropped:
        original = _dropped(folder.plan, original, where)
    try:
        check_architecture(folder.plan, original)
    except PlanError as error:
        said = str(error).removesuffix("Trace and plan this model anew.")
        raise StoreError(
            f"{where}: {said}Build the architecture that was pruned, with its old widths. "
            "For a model that was pruned twice, save it with first.then(second) as its plan."
        ) from error
    for k, edit in enumerate(folder.plan.edits or ()):
        check_target(original, edit, f"{where}: edit {k}")
    _check_added(folder, original)
    stored = tensors_of(folder)
    new = {}
    for name, before in named_tensors(original).items():
        t = stored[folder.same.get(name, name)]
        t = t.clone() if name in folder.same else t
        cast = t.is_floating_point() and not is_passing(original, name)
        place = device or ("cpu" if before.is_meta else before.device)
        new[name] = t.to(place, dtype if cast else None)
    result = with_tensors(original, new)
    try:
        change_python_side(folder.plan, result)
    except _UNFIT as error:
        raise StoreError(
            f"{where} does not fit this {type(original).__name__} ({error}): load onto the "
            "architecture that it was made for."
        ) from error
    for name in folder.added:
        _add(result, name, stored[name], device, dtype)
    return result


def _check_options(device: torch.device | str | None, dtype: torch.dtype | None) -> None:
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise StoreError(
            f"dtype={dtype!r} cannot hold the weights: give a floating type, as torch.bfloat16, "
            "and quantize what load gives"
        )
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, TypeError, ValueError) as error:
        raise StoreError(
            f"device={device!r} cannot be used here ({str(error).splitlines()[0]}): give another, "
            'as "cpu"'
        ) from error


def _dropped(plan: Plan, original: nn.Module, where: str) -> nn.Module:
    """A copy of the original architecture without the blocks that the plan drops."""
    try:
        return drop(copy.deepcopy(original), plan.dropped)
    except PlanError as error:
        raise StoreError(
            f"{where}: {error}: load onto the architecture that was pruned, with all its blocks."
        ) from error


# What surgery may raise when a hostile plan does not fit the model.
_UNFIT = (SecateurError, RuntimeError, AttributeError, TypeError, ValueError, LookupError)


def _contents(model: nn.Module, plan: Plan) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The tensors to store: the state, and the buffers that are no part of the state."""
    state, passing = {}, {}
    for name, t in named_tensors(model).items():
        owner, leaf = owner_of(model, name)
        if is_passing(model, name):
            if name in plan.shapes:  # others are what the forward keeps for itself
                passing[name] = t
        else:
            state[name] = t
        resized = name in passing and plan.shape(name) == plan.shapes[name]  # by the forward
        if name in plan.shapes and tuple(t.shape) != plan.shape(name) and not resized:
            raise StoreError(
                f"{name} has shape {tuple(t.shape)}, the plan makes {plan.shape(name)}: save the "
                "model that this plan made (plan.apply), with its own plan."
            )
        if name not in plan.shapes and name in state and leaf not in owner._parameters:
            raise StoreError(f"the model has a buffer {name!r} that it had not when it was traced.")
        if t.is_meta or t.layout != torch.strided or t.dtype not in DTYPES.values():
            raise StoreError(
                f"{name} cannot be saved: it is no plain tensor with values, but {t.dtype}, "
                f"{t.layout}, on {t.device}. Convert it, or move it to the CPU, first."
            )
    missing = [n for n in plan.shapes if n not in state and n not in passing]
    if missing:
        raise StoreError(
            f"the model lacks {missing[0]!r}, which the plan has: save the model that this plan "
            "made."
        )
    for name, module in model.named_modules():
        if type(module).get_extra_state is not nn.Module.get_extra_state:
            raise StoreError(
                f"{name or 'the model'} keeps extra state of its own, which could be anything and "
                "needs pickle: it cannot be saved."
            )
    return state, passing


def _equal(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Name -> an earlier name whose tensor is the same to the bit: position tables."""
    first: dict[Any, str] = {}
    same = {}
    for name, t in tensors.items():
        data = t.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
        key = (t.dtype, tuple(t.shape), hashlib.sha256(data).digest())
        if first.setdefault(key, name) != name:
            same[name] = first[key]
    return same


def _write_tensors(path: Path, *, tensors: dict[str, Tensor], about: dict[str, Any]) -> None:
    storages: set[int] = set()
    ready = {}
    for name, t in tensors.items():
        t = t.detach().cpu().contiguous()
        if t.untyped_storage().data_ptr() in storages:
            t = t.clone()  # another part of the same memory, which safetensors refuses
        storages.add(t.untyped_storage().data_ptr())
        ready[name] = t
    try:
        save_file(ready, path, metadata={"format": "pt"})
    except (SafetensorError, KeyError, ValueError, RuntimeError) as error:
        raise StoreError(
            f"the weights could not be written: {error}. What was there before is untouched; free "
            "some space, or choose another folder."
        ) from error
    name = WEIGHTS if WEIGHTS in path.name else BUFFERS
    about[name] = {
        "sha256": sha256_of(path),
        "bytes": path.stat().st_size,
        "tensors": {n: [dtype_name(t.dtype), list(t.shape)] for n, t in ready.items()},
    }


def _ours(directory: Path) -> set[str]:
    """Names of the files in a folder that an earlier save wrote."""
    try:
        _, data = decode(read_text(directory / PLAN, LARGEST_FILE), str(directory / PLAN))
    except StoreError:
        return set()
    written = data.get("written")
    names = written if isinstance(written, list) else []
    return {PLAN, *(n for n in names if n in _NAMES)}


def _check_free(directory: Path, files: Mapping[str, Any], ours: set[str]) -> None:
    """Raise a StoreError if the folder has files of these names that no earlier save wrote."""
    if directory.exists() and not directory.is_dir():
        raise StoreError(f"{directory} is a file: choose a folder.")
    there = [n for n in files if (directory / n).exists() or (directory / n).is_symlink()]
    foreign = [n for n in there if n not in ours]
    if foreign:
        raise StoreError(
            f"{directory / foreign[0]} was not written by an earlier save and would be lost: "
            "choose another folder, or pass overwrite=True."
        )


def _check_added(folder: Folder, model: nn.Module) -> None:
    """What recovery added must be a parameter that the architecture has an empty place for."""
    for name in folder.added:
        path, _, leaf = name.rpartition(".")
        owner = dict(model.named_modules()).get(path)
        if owner is None or leaf not in owner._parameters or owner._parameters[leaf] is not None:
            raise StoreError(
                f"{folder.path} adds a parameter {name!r}, for which this {type(model).__name__} "
                "has no place: load onto the architecture that it was made for."
            )


def _add(
    model: nn.Module,
    name: str,
    tensor: Tensor,
    device: torch.device | str | None,
    dtype: torch.dtype | None,
) -> None:
    owner, leaf = owner_of(model, name)
    like = next((t for t in owner._parameters.values() if t is not None), None)
    place = device or (like.device if like is not None else "cpu")
    tensor = tensor.to(place, dtype if tensor.is_floating_point() else None)
    setattr(owner, leaf, nn.Parameter(tensor, requires_grad=tensor.is_floating_point()))


def _short_card(model: nn.Module, plan: Plan) -> str:
    """What is certain without a record of the run: sizes, and how to load it."""
    before = sum(torch.Size(plan.shapes[n]).numel() for n, _ in model.named_parameters()
                 if n in plan.shapes)  # fmt: skip
    after = sum(p.numel() for p in model.parameters())
    removed = sum(plan.removed.values())
    lines = [
        f"# {type(model).__name__}, pruned",
        f"{removed} units of {len(plan.removed)} classes were removed: {before:,} parameters "
        f"became {after:,}.",
        "## Load it",
        "Weights are safetensors and the plan is JSON; nothing in this folder can run code.",
        "```python\nimport secateur as sec\n\n"
        f'model = sec.load(build_model(), "path/to/this/folder")  # the original '
        f"{type(model).__name__}\n```",
        *(f"- {note}" for note in plan.notes),
    ]
    return "\n\n".join(lines) + "\n"
