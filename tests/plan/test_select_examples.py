"""The examples in the docstrings of criteria, scopes, schedules, statistics and plan run."""

import doctest
import importlib
import pkgutil

import pytest
import torch
from torch import nn

from secateur.graph import trace

PACKAGES = ("criteria", "granularity", "scope", "schedule")
MODULES = [
    *(
        f"secateur.{package}.{module.name}"
        for package in PACKAGES
        for module in pkgutil.iter_modules(importlib.import_module(f"secateur.{package}").__path__)
    ),
    "secateur.engine.statistics",
    "secateur.names",
    "secateur.plan.budget",
    "secateur.plan.select",
]


@pytest.mark.parametrize("name", MODULES)
def test_examples_run(name, monkeypatch):
    module = importlib.import_module(name)
    for package in PACKAGES:  # what an example registers goes away again
        registry = importlib.import_module(f"secateur.{package}")
        if hasattr(registry, "registry"):
            registry.registry.names()
            monkeypatch.setattr(registry.registry, "_REGISTRY", dict(registry.registry._REGISTRY))
    result = doctest.testmod(module, extraglobs={"torch": torch, "nn": nn, "trace": trace})
    assert result.failed == 0
