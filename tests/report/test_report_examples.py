"""The examples in the docstrings hold."""

import doctest
import importlib
import pkgutil

import pytest

import secateur.report

MODULES = [module.name for module in pkgutil.iter_modules(secateur.report.__path__)]


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings_hold(name):
    module = importlib.import_module(f"secateur.report.{name}")
    assert doctest.testmod(module).failed == 0
