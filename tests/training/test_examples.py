"""The examples in the docstrings of methods, granularities, allocations and the engine run."""

import doctest
import importlib
import pkgutil

import pytest
import torch
from torch import nn

import secateur.granularity
import secateur.scope
import secateur.training
from secateur.granularity import registry as granularities
from secateur.methods import registry
from secateur.scope import allocation, amounts
from secateur.scope import registry as scopes

MODULES = sorted(
    {
        "secateur.engine.dense",
        "secateur.engine.masks",
        "secateur.engine.seams",
        "secateur.engine.target",
        "secateur.methods.registry",
        *(
            f"{p.__name__}.{m.name}"
            for p in (secateur.training, secateur.granularity, secateur.scope)
            for m in pkgutil.iter_modules(p.__path__)
        ),
        *(registry.entry(n).function.__module__ for n in registry.names()),
    }
)


@pytest.mark.parametrize("name", MODULES)
def test_examples_run(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module(name)
    for found in (
        registry,
        granularities,
        allocation,
        amounts,
        scopes,
    ):  # what an example registers goes again
        found.names()
        monkeypatch.setattr(found, "_REGISTRY", dict(found._REGISTRY))
    runner = doctest.DocTestRunner(
        optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE, verbose=False
    )
    torch.manual_seed(0)
    for test in doctest.DocTestFinder().find(module, name):
        if test.examples and test.name.startswith(name):
            test.globs = {**module.__dict__, "torch": torch, "nn": nn}
            runner.run(test)
    assert runner.failures == 0
