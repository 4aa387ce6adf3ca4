"""The examples in the docstrings of the public functions run."""

import copy
import doctest
import importlib
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

import secateur as sec

MODULES = [
    "secateur",
    "secateur.prune",
    "secateur.result",
    "secateur.environment",
    "secateur.analyse.barrier",
    "secateur.analyse.pareto",
    "secateur.engine.hold",
    "secateur.lottery.elastic",
    "secateur.lottery.graph",
    "secateur.lottery.rounds",
    "secateur.recovery.from_scratch",
    "secateur.recovery.rewind",
    "secateur.analyse.sensitivity",
    "secateur.plan.plan",
    "secateur.plan.masking",
    "secateur.plan.store",
]
QUIET = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


@pytest.mark.parametrize("name", MODULES)
def test_examples_run(
    name: str,
    net: nn.Module,
    inputs: Tensor,
    loader: DataLoader,
    accuracy: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each example sees a trained network, its inputs and data, a plan and a result."""
    monkeypatch.chdir(tmp_path)
    module = importlib.import_module(name)
    finder, runner = doctest.DocTestFinder(), doctest.DocTestRunner(optionflags=QUIET)
    tried = 0
    for test in finder.find(module, name):
        model = copy.deepcopy(net)
        plan = sec.plan(sec.trace(model, inputs), amount=0.25)
        seen = {
            "sec": sec,
            "torch": torch,
            "nn": nn,
            "net": model,
            "model": model,
            "x": inputs,
            "example_inputs": inputs,
            "loader": loader,
            "accuracy": accuracy,
            "evaluate": accuracy,
            "build_model": lambda: copy.deepcopy(net),
            "plan": plan,
            "first": plan,
            "optimizer": torch.optim.SGD(model.parameters(), 0.1, momentum=0.9),
            "result": sec.prune(model, inputs, amount=0.25, progress=False, measure=False),
        }
        seen["result"].save("out")
        test.globs = {**vars(module), **seen, **{k: vars(module)[k] for k in _own(module)}}
        tried += runner.run(test, clear_globs=False).attempted
    assert runner.failures == 0
    assert tried > 0, f"{name} shows no example"


def _own(module: Any) -> list[str]:
    """The functions of a module whose names the example's values also have."""
    return [n for n in ("plan", "prune") if callable(vars(module).get(n))]
