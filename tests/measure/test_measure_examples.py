"""The examples in the docstrings of measure, recovery and checkpoint run."""

import doctest
import importlib
import pkgutil

import pytest
import torch
from torch import nn

PACKAGES = ("secateur.measure", "secateur.recovery")
MODULES = [
    *PACKAGES,
    *(
        f"{package}.{module.name}"
        for package in PACKAGES
        for module in pkgutil.iter_modules(importlib.import_module(package).__path__)
    ),
    "secateur.engine.checkpoint",
]


@pytest.mark.parametrize("name", MODULES)
def test_examples_run(name):
    module = importlib.import_module(name)
    result = doctest.testmod(module, extraglobs={"torch": torch, "nn": nn})
    assert result.failed == 0
