"""Plans, pruned models and saved folders that the tests of storing share."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

from stored_models import build, halved, inputs

from secateur.graph import trace
from secateur.plan import Plan
from secateur.plan.store import save


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def pruned():
    """Name (and kinds) -> dense model, solved plan, pruned model; made once."""
    made = {}

    def get(name, kinds=None):
        if (name, kinds) not in made:
            model = build(name)
            graph = trace(model, inputs(name))
            plan = Plan.of(graph, halved(graph, kinds), seed=0).prepared()
            assert plan.removed
            made[name, kinds] = model, plan, plan.apply(model)
        return made[name, kinds]

    return get


@pytest.fixture
def folder(tmp_path, pruned):
    """Name -> a folder with that model's halved self."""

    def get(name, kinds=None):
        _, plan, small = pruned(name, kinds)
        return save(tmp_path / name, small, plan)

    return get
