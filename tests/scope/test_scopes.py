"""Which classes compete."""

import pytest
import torch
from torch import nn

from secateur import scope
from secateur.errors import ConfigError
from secateur.graph import trace


class Blocks(nn.Module):
    """Three residual blocks of linear layers, and a convolution in front."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv1d(2, 6, 3)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(6, n), nn.ReLU(), nn.Linear(n, 6)) for n in (8, 10, 12)
        )
        self.head = nn.Linear(6, 3)

    def forward(self, x):
        x = self.stem(x).mean(-1)
        for block in self.blocks:
            x = x + block(x)
        return self.head(x)


@pytest.fixture
def graph():
    return trace(Blocks(), torch.randn(2, 2, 5))


def names(pools):
    return [sorted(c.name for c in pool) for pool in pools]


def test_uniform_is_each_on_its_own_and_global_all_together(graph):
    classes = list(graph.free.values())
    assert len(classes) == 4
    assert names(scope.find("uniform")(graph, classes)) == [[c.name] for c in classes]
    assert names(scope.find("global")(graph, classes)) == [sorted(c.name for c in classes)]


def test_isomorphic_puts_blocks_of_the_same_shape_together_whatever_their_size(graph):
    pools = names(scope.find("isomorphic")(graph, list(graph.free.values())))
    assert sorted(map(len, pools)) == [1, 3]
    assert ["blocks.0.0", "blocks.1.0", "blocks.2.0"] in pools


def test_scopes_are_found_by_name_or_given(graph):
    assert {"uniform", "global", "isomorphic"} <= set(scope.names())
    mine = lambda graph, classes: [list(classes)]  # noqa: E731
    assert scope.find(mine) is mine
    with pytest.raises(ConfigError, match="did you mean 'uniform'"):
        scope.find("unifrom")
