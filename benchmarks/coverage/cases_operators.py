"""The small networks of ``tests/rules/op_cases.py``, one subtlety each."""

from collections.abc import Iterator

import torch
from benchmarks.coverage.case import Built, Case
from tests.rules.op_cases import CASES, OpCase


def cases() -> Iterator[Case]:
    """Yield every operator-level network."""
    for entry in CASES.values():
        yield Case("operators", entry.name, lambda entry=entry: build(entry))


def build(entry: OpCase) -> Built:
    """Build the network in the mode that it asks for (eval unless it is about the mode)."""
    torch.manual_seed(0)
    model = entry.build()
    return (
        model if "train_mode" in entry.name else model.eval(),
        entry.inputs,
        entry.keywords,
    )
