"""One run: train with a method attached, finish, test; or find where a layer is lost."""

from __future__ import annotations

import time
from dataclasses import replace
from functools import cache
from typing import Any

import torch
from benchmarks.sparse.design import (
    COLLAPSE,
    CONTROLS,
    DENSE,
    EPOCHS,
    FASHION,
    HAN,
    RETRAINED,
    ROUNDS,
    Cell,
)
from torch import Tensor, nn

import secateur as sec
from secateur.analyse.sanity import half, reinitialised, shuffled
from secateur.measure.macs import macs
from secateur.methods import registry
from secateur.methods.during.early_bird import drawn
from secateur.methods.during.free_tickets import collected, vote

BATCH = 128
HELD_OUT = 8 * BATCH  # validation images of bilevel methods, which the weights never see
SCORED = 2  # batches that methods before training score on
BILEVEL = ("autoprune", "dsa", "dmcp")
Batches = list[tuple[Tensor, Tensor]]


@cache
def pictures(split: str, limit: int | None = None, data: str = FASHION) -> tuple[Tensor, Tensor]:
    """10,000 training or 2,000 test images and their labels, as two tensors."""
    loader = sec.zoo.loaders(data, 500)[split == "test"]
    images, labels = zip(*loader, strict=True)
    return torch.cat(images)[:limit], torch.cat(labels)[:limit]


def batches(
    seed: int, epoch: int, limit: int | None, held_out: int, data: str = FASHION
) -> Batches:
    """The training batches of one epoch, in an order that follows from the seed."""
    images, labels = pictures("train", limit, data)
    number = len(images) - held_out
    order = torch.randperm(number, generator=torch.Generator().manual_seed(1000 * seed + epoch))
    return [(images[i], labels[i]) for i in order.split(BATCH)]


def run(cell: Cell, limit: int | None = None) -> dict[str, Any]:
    """The figures of a cell; with ``limit``, on so many training images only."""
    torch.set_num_threads(1)
    if cell.kind == "collapse":
        return collapse(cell, limit)
    return chain(cell, limit) if cell.method == HAN else train(cell, limit)[1]


def train(cell: Cell, limit: int | None) -> tuple[nn.Module, dict[str, Any]]:
    """Train from random weights with the method attached; the same schedule for all."""
    network, seed = cell.network, cell.seed
    torch.manual_seed(seed)
    net = sec.zoo.build(network)
    inputs = sec.zoo.example_inputs(network)
    dense_macs = macs(net, inputs)[0]
    held_out = HELD_OUT if cell.method in BILEVEL and limit is None else 0
    first = batches(seed, 0, limit, held_out, cell.data)
    steps = EPOCHS[network] * len(first)
    method: Any = cell.method
    scored = first[:SCORED]
    if cell.control in CONTROLS:
        scored = half([pair for batch in scored for pair in _halves(batch)], seed) \
            if cell.control == "half" else scored  # fmt: skip
        method = _masks(net, cell, scored, inputs)
    rates = one_cycle(steps)
    optimizer = optimizer_of(net)
    start = time.process_time()
    handle = None
    last = round(cell.settled * steps)
    if cell.method != DENSE:
        extra: dict[str, Any] = {}
        if held_out:
            images, labels = pictures("train", None, cell.data)
            extra["validation"] = list(
                zip(images[-held_out:].split(BATCH), labels[-held_out:].split(BATCH), strict=True)
            )
        options = {} if cell.control else dict(cell.options)
        handle = sec.attach(
            net, optimizer, method, steps=last, data=scored, example_inputs=inputs, seed=seed,
            **extra, **options,
        )  # fmt: skip
    found: dict[str, Any] = {"sparsity": 0.0, "emptied": []}
    epoch: Batches = []
    gone: dict[str, Tensor] = {}  # what was pruned at any time
    for step in range(steps + 1):
        if cell.method == "early_bird" and step < last and drawn(handle) is not None:
            last = step  # the ticket is there: what is left of the run trains it
        if step == last and handle is not None:
            result = handle.finish(remove=cell.kind == "channels", example_inputs=inputs)
            found = {"sparsity": result.masks.sparsity, "emptied": result.masks.empty()}
            if cell.method == "early_bird":
                found["drawn"] = step / steps
            if cell.method == "autoprune":
                found["returned"] = _returned(gone, result.masks)
            if cell.kind == "channels":
                if not result.verification.ok:
                    raise AssertionError(f"{cell.key}: removal changed what the network computes")
                net = result.model
            optimizer = optimizer_of(net)
            if cell.kind == "weights" and step < steps:
                sec.attach(net, optimizer, result.masks)
        if step == steps:
            break
        if step % len(first) == 0:
            epoch = batches(seed, step // len(first), limit, held_out, cell.data)
            net.train()
        images, labels = epoch[step % len(first)]
        for group in optimizer.param_groups:
            group |= rates[step]
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(images), labels).backward()
        optimizer.step()
        if cell.method == "autoprune" and handle is not None:
            for name, mask in handle.masks.items():
                gone[name] = gone[name] | ~mask if name in gone else ~mask
    found["seconds"] = round(time.process_time() - start, 1)
    found["macs"] = macs(net, inputs)[0] / dense_macs
    found["accuracy"] = accuracy(net, cell.data)
    if cell.method == "free_tickets" and handle is not None:
        found["vote"] = _vote(network, handle)
    return net, {k: round(v, 5) if isinstance(v, float) else v for k, v in found.items()}


@cache
def dense_seconds(network: str) -> float:
    """How long the dense training takes on this machine."""
    seconds: float = train(Cell("weights", network, DENSE, "own"), None)[1]["seconds"]
    return seconds


def chain(cell: Cell, limit: int | None) -> dict[str, Any]:
    """Han et al.: train, then prune and retrain at a tenth of the rate, round after round."""
    start = time.process_time()
    net, _ = train(replace(cell, method=DENSE), limit)
    retrain = {
        "epochs": RETRAINED, "lr": 0.01, "weight_decay": 5e-4, "rescale_dropout": True,
        "progress": False, "seed": cell.seed,
    }  # fmt: skip
    last = sec.lottery.tickets(
        net, ("fine-tune", retrain), amount=cell.options["amount"], steps=ROUNDS,
        criterion=deviations, data=batches(cell.seed, 0, limit, 0, cell.data), seed=cell.seed,
    )[-1]  # fmt: skip
    net.load_state_dict(last.weights)
    return {
        "sparsity": round(last.masks.sparsity, 5), "emptied": last.masks.empty(), "macs": 1.0,
        "seconds": round(time.process_time() - start, 1),
        "accuracy": round(accuracy(net, cell.data), 5),
    }  # fmt: skip


def deviations(weight: Tensor, stats: Any = None) -> Tensor:
    """Magnitude in standard deviations of what is left of its layer: one quality for all layers."""
    return weight.abs() / weight[weight != 0].std(correction=0).clamp(min=1e-12)


def one_cycle(steps: int) -> list[dict[str, float]]:
    """Rate and momentum of every step: the rate up over a fifth of the run, and down to nothing."""
    optimizer = optimizer_of(nn.Linear(1, 1))
    cycle = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, steps, pct_start=0.2)
    found = []
    for _ in range(steps):
        group = optimizer.param_groups[0]
        found.append({"lr": group["lr"], "momentum": group["momentum"]})
        optimizer.step()
        cycle.step()
    return found


def optimizer_of(net: nn.Module, rate: float = 0.1) -> torch.optim.Optimizer:
    """The one of all runs."""
    return torch.optim.SGD(net.parameters(), lr=rate, momentum=0.9, weight_decay=5e-4)


def _halves(batch: tuple[Tensor, Tensor]) -> Batches:
    return list(zip(batch[0].chunk(2), batch[1].chunk(2), strict=True))


def _masks(net: nn.Module, cell: Cell, scored: Batches, inputs: Any) -> sec.MaskSet:
    """The masks of a control; the network has its initial weights, or new ones."""
    initial = {n: t.clone() for n, t in net.state_dict().items()}
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    handle = sec.attach(
        net, optimizer, cell.method, data=scored, example_inputs=inputs, seed=cell.seed,
        **cell.options,
    )  # fmt: skip
    masks = handle.masks
    handle.detach()
    net.load_state_dict(initial)
    if cell.control == "shuffled":
        return shuffled(masks, cell.seed)
    if cell.control == "reinitialised":
        reinitialised(net, None, cell.seed + 100)
    return masks


def _returned(gone: dict[str, Tensor], kept: sec.MaskSet) -> float:
    """The part of the weights that stay which had been pruned before."""
    back = sum(int((gone[n] & mask).sum()) for n, mask in kept.items())
    return back / max(sum(int(mask.sum()) for mask in kept.values()), 1)


@torch.no_grad()
def accuracy(net: nn.Module, data: str = FASHION) -> float:
    """On 2,000 test images."""
    net.eval()
    images, labels = pictures("test", None, data)
    guesses = torch.cat([net(x).argmax(1) for x in images.split(500)])
    return float((guesses == labels).float().mean())


def _vote(network: str, handle: Any) -> float:
    members = []
    for state in collected(handle.moment):
        member = sec.zoo.build(network)
        member.load_state_dict(state)
        members.append(member.eval())
    images, labels = pictures("test")
    return float((vote(members, images).argmax(1) == labels).float().mean())


def collapse(cell: Cell, limit: int | None) -> dict[str, Any]:
    """The lowest sparsity, of a grid, at which a method leaves a layer empty, or refuses to try."""
    scored = batches(cell.seed, 0, limit, 0)[:SCORED]
    options = {k: v for k, v in cell.options.items() if k != "every"}
    if registry.entry(cell.method).name == "isometric_snip":
        options["repair_steps"] = 0  # the repair comes after the choice
    for amount in COLLAPSE:
        torch.manual_seed(cell.seed)
        net = sec.zoo.build(cell.network)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        try:
            handle = sec.attach(
                net, optimizer, cell.method, amount=amount, data=scored, allow_empty=True,
                seed=cell.seed, **options,
            )  # fmt: skip
        except sec.SecateurError as error:  # a method may refuse what it cannot give
            return {"lost_at": None, "emptied": [], "refused_at": amount, "refusal": str(error)}
        empty = handle.masks.empty()
        handle.detach()
        if empty:
            return {"lost_at": amount, "emptied": empty}
    return {"lost_at": None, "emptied": []}
