"""What is measured: time of a step, growth of memory, state dicts, values of JaxPruner's tests."""

from __future__ import annotations

import copy
import gc
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from statistics import median, quantiles
from typing import Any

import torch
from benchmarks.peer_sparse.tools import TOOLS, Run
from torch import Tensor, nn

import secateur as sec
from secateur.engine.masks import weights_of
from secateur.schedule import registry as schedules
from secateur.scope.allocation import find

BATCH = 128
WIDE = "wide"  # where masking weighs most: few rows of input for many weights


def network(name: str) -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    """A fresh network and one batch of random numbers; their values do not matter here."""
    torch.manual_seed(0)
    if name == WIDE:
        model = nn.Sequential(nn.Linear(1024, 1024), nn.ReLU(), nn.Linear(1024, 10))
        x = torch.randn(BATCH, 1024)
    else:
        model = sec.zoo.build(name)
        example = sec.zoo.example_inputs(name)
        shape = (example[0] if isinstance(example, tuple) else example).shape[1:]
        x = torch.randn(BATCH, *shape)
    return model.train(), (x, torch.randint(0, 10, (BATCH,)))


def start(tool: str, name: str) -> Run:
    """A run of a tool on a network."""
    model, batch = network(name)
    run = TOOLS[tool](model, batch)
    run.inputs, run.targets = batch
    return run


def step_times(name: str, rounds: int, warmup: int = 5) -> dict[str, list[float]]:
    """CPU milliseconds of single steps; the tools take turns, so that load meets all alike."""
    runs = {}
    for tool in TOOLS:
        with suppress(RuntimeError):  # torch.ao cannot mask some convolutions; see ``cause``
            runs[tool] = start(tool, name)
    found: dict[str, list[float]] = {tool: [] for tool in runs}
    gc.collect()
    gc.disable()
    try:
        for turn in range(warmup + rounds):
            for tool, run in runs.items():
                before = time.process_time_ns()
                run.step()
                if turn >= warmup:
                    found[tool].append((time.process_time_ns() - before) / 1e6)
    finally:
        gc.enable()
    return found


def cause(tool: str, name: str) -> str:
    """Why a tool does not run on a network; empty if it does."""
    try:
        start(tool, name)
    except RuntimeError as error:
        return f"{type(error).__name__}: {error}"
    return ""


def summary(times: dict[str, list[float]]) -> list[dict[str, Any]]:
    """Median of each tool, its ratio to plain training, and the spread of ratios within rounds."""
    dense = times["plain"]
    rows = []
    for tool, ours in times.items():
        ratios = [a / b for a, b in zip(ours, dense, strict=True) if b]
        tenths = quantiles(ratios, n=10, method="inclusive")
        rows.append(
            {
                "tool": tool,
                "ms": median(ours),
                "ratio": median(ours) / median(dense),
                "p10": tenths[0],
                "p90": tenths[-1],
                "rounds": len(ours),
            }
        )
    return rows


def live_bytes() -> int:
    """Bytes of all tensors that are alive, each storage once."""
    gc.collect()
    found = {}
    for thing in gc.get_objects():
        if type(thing) in (Tensor, nn.Parameter):  # isinstance would wake lazy modules
            for tensor in (thing, thing.grad if thing.is_leaf else None):
                if tensor is not None:
                    storage = tensor.untyped_storage()
                    found[storage.data_ptr()] = storage.nbytes()
    return sum(found.values())


def growth(tool: str, name: str, steps: Iterable[int] = (50, 150, 250)) -> dict[str, Any]:
    """Bytes of live tensors after so many steps, gradients let go."""
    before = live_bytes()
    run = start(tool, name)
    done, found = 0, []
    for until in steps:
        for _ in range(until - done):
            run.step()
        done = until
        run.optimizer.zero_grad()
        found.append(live_bytes() - before)
    return {"tool": tool, "network": name, "steps": list(steps), "bytes": found}


def states(tool: str, name: str = "lenet300") -> dict[str, Any]:
    """What is in the state dict while a tool acts, and whether the plain network takes it."""
    run = start(tool, name)
    for _ in range(3):
        run.step()
    fresh, _ = network(name)
    own, theirs = set(fresh.state_dict()), run.model.state_dict()
    try:
        fresh.load_state_dict(theirs)
        loads = True
    except RuntimeError:
        loads = False
    weights = list(weights_of(network(name)[0]))
    slots, wrong = 0, 0
    for p, of in run.optimizer.state.items():
        mask = _mask(run, p)
        for slot in of.values():
            if mask is not None and isinstance(slot, Tensor) and slot.shape == mask.shape:
                slots += 1
                wrong += int(bool(slot[~mask].any()))
    try:
        copy.deepcopy(run.model)
        copies = True
    except (RuntimeError, TypeError, AttributeError):
        copies = False
    size = sum(t.numel() * t.element_size() for t in theirs.values())
    plain = sum(t.numel() * t.element_size() for t in network(name)[0].state_dict().values())
    run.end()
    final = dict(run.model.named_parameters())
    zeros = [int((final[n] == 0).sum()) for n in weights if n in final]
    count = sum(p.numel() for p in weights_of(network(name)[0]).values())
    return {
        "tool": tool,
        "renamed": len(own - set(theirs)),
        "added": len(set(theirs) - own),
        "bytes": size / plain,
        "loads": loads,
        "copies": copies,
        "dirty slots": f"{wrong} of {slots}" if slots else "",
        "zeros at the end": sum(zeros) / count,
        "plain at the end": set(run.model.state_dict()) == own,
    }


def _mask(run: Run, p: Tensor) -> Tensor | None:
    if run.handle is not None:
        name = next((n for n, q in run.model.named_parameters() if q is p), None)
        return run.handle.masks.get(name or "")
    for module in run.model.modules():
        if getattr(module, "weight_orig", None) is p:
            return module.weight_mask.bool()
        for of in getattr(module, "parametrizations", {}).values():
            if of.original is p:
                return of[0].mask.bool()
    return None


def goldens() -> list[dict[str, Any]]:
    """Values that JaxPruner's own tests hold, beside ours."""
    shapes = {"a": (2, 4), "b": (3, 6), "c": (4, 6, 2)}  # inputs and outputs come last in JAX
    found: list[tuple[str, Any, Any]] = []
    # Theirs rounds what each layer would keep uniformly, 1.6, 3.6 and 9.6 weights, before it is
    # divided anew: at 0.8 it keeps 16 of the 74, ours 14.8.
    for scope, amount, asked, expected in (
        ("erk", 0.5, "0.5", [0.0, 0.3095, 0.6548]),
        ("erk", 1 - 16 / 74, "0.8, which theirs rounds to 16 of 74 kept", [0.5556, 0.7037, 0.8519]),
        ("er", 0.5, "0.5", [0.21, 0.47, 0.56]),
    ):
        allocate: Any = find(scope)
        ours = [1 - d for d in allocate(shapes, amount).values()]
        digits = 2 if scope == "er" else 4
        found.append(
            (f"{scope} of shapes (2,4) (3,6) (2,4,6) at {asked}", expected,
             [round(x, digits) + 0.0 for x in ours])
        )  # fmt: skip
    cubic = schedules.find("cubic", 0.5)
    found.append(("cubic schedule to 0.5, half of the way", 0.4375, cubic.at(0.5)))
    for share, expected in ((0.25, "11010100"), (0.5, "11001100"), (0.75, "10101100"),
                            (1.0, "10101100")):  # fmt: skip
        found.append((f"exchange of {share:g} (RigL's update)", expected, exchanged(share)))
    return [{"value": n, "golden": g, "ours": o, "equal": g == o} for n, g, o in found]


def exchanged(share: float) -> str:
    """One exchange of eight weights, dropped by their signed value, grown by its size."""
    values = torch.tensor([-9.0, 1, 4, -1, 5, 8, -2, 3])
    mask = torch.tensor([0, 1, 0, 1, 0, 1, 1, 0]).bool()
    layer = nn.Linear(8, 1, bias=False)
    with torch.no_grad():
        layer.weight.copy_(values)
    signed: Callable[..., Tensor] = lambda w, s=None: values.view_as(w)  # noqa: E731
    size: Callable[..., Tensor] = lambda w, s=None: values.abs().view_as(w)  # noqa: E731
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.0)
    method = sec.Method(0.5, criterion=signed, grow=size, drop=lambda _: share)
    handle = sec.attach(layer, optimizer, method, steps=1)
    handle.moment.masks = {"weight": mask.view(1, 8)}
    layer.weight.grad = torch.zeros(1, 8)
    optimizer.step()
    return "".join(str(int(k)) for k in handle.masks["weight"].flatten())
