"""Histograms against numpy's."""

import numpy as np
import pytest
import torch
from torch import nn

from secateur import report
from secateur.errors import DataError


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(32, 4))


def weights(model: nn.Module) -> np.ndarray:
    return np.concatenate([p.detach().numpy().ravel() for p in (model[0].weight, model[3].weight)])


def test_counts_are_numpys(model):
    found = report.histogram(model, bins=31)
    values = weights(model)
    reach = np.abs(values).max()
    counts, edges = np.histogram(values, bins=31, range=(-reach, reach))
    assert np.allclose(found.edges, edges)
    assert list(found.counts) == list(counts)
    assert found.zeros == 0


def test_zeros_are_counted_apart(model):
    with torch.no_grad():
        model[3].weight[:, ::2] = 0
    found = report.histogram(model)
    assert found.zeros == int((weights(model) == 0).sum()) == 64
    assert sum(found.counts) == weights(model).size - 64


def test_another_model_is_counted_between_the_same_edges(model):
    dense = report.histogram(model, bins=20)
    with torch.no_grad():
        model[3].weight.mul_(10)
    other = report.histogram(model, like=dense)
    inside = np.clip(weights(model), dense.edges[0], dense.edges[-1])
    assert other.edges == dense.edges
    assert list(other.counts) == list(np.histogram(inside, bins=np.array(dense.edges))[0])


def test_bfloat16_and_a_model_of_zeros():
    model = nn.Linear(4, 4).bfloat16()
    assert sum(report.histogram(model).counts) == 16
    with torch.no_grad():
        model.weight.zero_()
    assert report.histogram(model).zeros == 16


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_not_finite_are_named(model, bad):
    with torch.no_grad():
        model[3].weight[0, 0] = bad
    with pytest.raises(DataError, match=r"`3\.weight`"):
        report.histogram(model)


def test_a_model_without_weights_is_an_error():
    with pytest.raises(DataError, match="no weights"):
        report.histogram(nn.BatchNorm1d(3))
