"""The zoo's vision transformer, pruned to about half of its MACs while it trains on."""

from __future__ import annotations

import time
from collections.abc import Iterator
from itertools import chain, islice, repeat
from typing import Any

STEPS, AFTER = 300, 100  # with the method attached, and with what is left
CUT = 2  # points of accuracy: two standard errors of the difference of two on 2,000 images
# Of methods that take a granularity: heads and neurons.
WHOLE = {"granularity": ("channel", {"kinds": ("head", "channel")})}
CASES: tuple[tuple[str, dict[str, Any]], ...] = (
    ("dense", {}),
    ("upop", {"amount": 0.5}),
    ("wdpruning", {"macs": 0.5}),
    ("early_bert", {"amount": 0.5}),
    ("gradual_magnitude", {"amount": 0.5}),
    ("random", {"amount": 0.5, "scope": "uniform"}),
)


def run(method: str, options: dict[str, Any]) -> dict[str, Any]:
    """Train on with a method attached, remove, train what is left, test."""
    import torch
    from torch import nn

    import secateur as sec
    from secateur.measure.macs import macs
    from secateur.methods import registry

    torch.set_num_threads(1)
    torch.manual_seed(0)
    net, inputs = sec.zoo.load("vit"), sec.zoo.example_inputs("vit")
    train, test = sec.zoo.loaders("vit", batch_size=64)
    whole = macs(net, inputs)[0]
    rates = [5e-4 * (1 - step / (STEPS + AFTER)) for step in range(STEPS + AFTER)]
    optimizer = torch.optim.AdamW(net.parameters(), weight_decay=0.05)
    handle = None
    began = time.process_time()
    if method != "dense":
        whole_units = WHOLE if "granularity" in registry.entry(method).options() else {}
        handle = sec.attach(
            net, optimizer, method, steps=STEPS, example_inputs=inputs, **options, **whole_units
        )
    row: dict[str, Any] = {"method": method, "options": options}
    batches = islice(chain.from_iterable(repeat(train)), STEPS + AFTER)
    for step, (images, labels) in enumerate(batches):
        if step == STEPS and handle is not None:
            result = handle.finish(remove=True, example_inputs=inputs)
            if not result.verification.ok:
                raise AssertionError(f"{method}: removal changed what the network computes")
            net, row["error"] = result.model, result.verification.error
            optimizer = torch.optim.AdamW(net.parameters(), weight_decay=0.05)
        net.train()
        optimizer.param_groups[0]["lr"] = rates[step]
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(images), labels).backward()
        optimizer.step()
    row["seconds"] = round(time.process_time() - began, 1)
    row["macs"] = round(macs(net, inputs)[0] / whole, 4)
    net.eval()
    with torch.no_grad():
        right = torch.cat([net(images).argmax(1) == labels for images, labels in test])
    return row | {"accuracy": round(float(right.float().mean()), 4)}


def measured(done: list[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """The rows that are done and, one after the other, those that are missing."""
    for method, options in CASES:
        if not any((row["method"], row["options"]) == (method, options) for row in done):
            done = [*done, run(method, dict(options))]
            yield done
