"""Public names come on demand, and no module hides a function of the same name."""

import pkgutil
import subprocess
import sys
from types import ModuleType

import pytest

import secateur
from secateur import public


def test_every_public_name_is_there_and_of_the_right_kind():
    modules = {m.name for m in pkgutil.iter_modules(secateur.__path__)}
    for name in public.__all__:
        found = getattr(secateur, name)
        assert isinstance(found, ModuleType) == (name in secateur._MODULES), name
        assert (name in modules and not isinstance(found, ModuleType)) == (
            name in secateur._FUNCTIONS
        ), name
    assert set(public.__all__) <= set(dir(secateur))
    with pytest.raises(AttributeError, match="nope"):
        _ = secateur.nope


def test_importing_a_folder_does_not_hide_the_function_of_its_name():
    script = (
        "import sys, secateur\n"
        "assert 'torch' not in sys.modules\n"
        "import secateur.plan.store, secateur.measure, secateur.prune\n"
        "from secateur import *\n"
        "assert callable(secateur.plan) and callable(secateur.measure) and callable(prune)\n"
        "assert secateur.plan is plan and secateur.zoo.names() and trace\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
