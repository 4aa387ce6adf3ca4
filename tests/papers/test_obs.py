"""OBS and ExactOBS against brute force and least squares; thresholds against their definition."""

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

import secateur as sec
from secateur.engine.gram import layer_error, problem
from secateur.engine.statistics import Stats
from secateur.engine.target import Target
from secateur.errors import ConfigError
from secateur.methods.after import exact_obs, obs, sparsegpt, threshold
from secateur.methods.after.exact_obs import removals


def layer(rows: int = 5, columns: int = 12, seed: int = 0) -> tuple[Tensor, Stats]:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, generator=generator)
    mix = torch.randn(columns, columns, generator=generator)
    x = torch.randn(300, columns, generator=generator) @ mix
    return weight, Stats("layer", gram=x.T @ x / len(x))


def naive(row: Tensor, gram: Tensor) -> tuple[list[float], list[int]]:
    """One row, with the inverse of what is left computed anew at every step."""
    left, w, rises, order = list(range(len(row))), row.double().clone(), [], []
    while left:
        inverse = torch.linalg.inv(gram.double()[left][:, left])
        scores = w[left] ** 2 / (2 * inverse.diagonal())
        k = int(scores.argmin())
        rises.append(float(scores[k]))
        w[left] -= w[left[k]] / inverse[k, k] * inverse[:, k]
        order.append(left.pop(k))
    return rises, order


@pytest.mark.parametrize("columns", [12, 100])
def test_each_row_is_emptied_in_the_order_of_the_paper(columns: int) -> None:
    weight, stats = layer(5, columns)
    here = problem(weight, stats, 0.01)
    rises, order = removals(here.weight, torch.cholesky_inverse(here.cholesky))
    for k, row in enumerate(here.weight):
        expected, at = naive(row, here.gram)
        assert order[k].tolist() == at
        torch.testing.assert_close(
            rises[k], torch.tensor(expected, dtype=torch.float32), rtol=2e-2, atol=1e-4
        )


@pytest.mark.parametrize("module", [obs, exact_obs])
def test_one_removal_is_the_best_of_all_single_ones(module: Any) -> None:
    weight, stats = layer(1, 6)
    solved = module.solve(weight, stats, Target(1 / 6), damping=1e-6)
    gram = problem(weight, stats, 1e-6).gram.double()
    errors = []
    for gone in range(6):
        left = [i for i in range(6) if i != gone]
        best = torch.zeros(6, dtype=torch.double)
        best[left] = torch.linalg.solve(gram[left][:, left], (weight.double() @ gram)[0, left])
        errors.append(layer_error(best[None] - weight, gram))
    assert int((~solved.keep).nonzero()[0, 1]) == errors.index(min(errors))
    assert layer_error(solved.weight - weight, gram) == pytest.approx(min(errors), rel=1e-2)


@pytest.mark.parametrize("module", [obs, exact_obs])
@pytest.mark.parametrize("amount", [0, 0.3, 0.5, 0.9])
def test_counts_are_exact_and_weights_are_least_squares(amount: float, module: Any) -> None:
    weight, stats = layer()
    solved = module.solve(weight, stats, Target(amount))
    assert int((~solved.keep).sum()) == round(amount * 60)
    here = problem(weight, stats, 0.01)
    gradient = (solved.weight - here.weight) @ here.gram
    assert float((gradient * solved.keep).abs().max()) < 1e-2
    assert not bool(solved.weight[~solved.keep].any())


def test_the_error_is_below_that_of_one_look_and_of_sparsegpt() -> None:
    totals = dict.fromkeys(("greedy", "once", "sparsegpt"), 0.0)
    for seed in range(4):
        weight, stats = layer(8, 16, seed)
        target = Target(0.5)
        for name, solved in (
            ("greedy", exact_obs.solve(weight, stats, target)),
            ("once", obs.solve(weight, stats, target)),
            ("sparsegpt", sparsegpt.solve(weight, stats, target)),
        ):
            totals[name] += layer_error(solved.weight - weight, stats.gram)
    assert totals["greedy"] < totals["once"]
    assert totals["greedy"] < totals["sparsegpt"]


def test_near_the_best_of_all_masks() -> None:
    weight, stats = layer(1, 8, 3)
    gram = problem(weight, stats, 0.01).gram
    errors = [
        layer_error(obs.solve(weight, stats, Target(keep=_mask(left, 8))).weight - weight, gram)
        for left in itertools.combinations(range(8), 4)
    ]
    ours = layer_error(exact_obs.solve(weight, stats, Target(0.5)).weight - weight, gram)
    assert sorted(errors).index(min(errors, key=lambda e: abs(e - ours))) < 7  # of 70


def _mask(left: tuple[int, ...], size: int) -> Tensor:
    keep = torch.zeros(1, size, dtype=torch.bool)
    keep[0, list(left)] = True
    return keep


@pytest.mark.parametrize("pattern", [(2, 4), (1, 4), (3, 4)])
@pytest.mark.parametrize("module", [obs, exact_obs])
def test_every_group_loses_exactly_n(pattern: tuple[int, int], module: Any) -> None:
    weight, stats = layer()
    keep = module.solve(weight, stats, Target(pattern=pattern)).keep
    assert bool(((~keep).view(-1, pattern[1]).sum(1) == pattern[0]).all())


@pytest.mark.parametrize("module", [obs, exact_obs])
def test_with_uncorrelated_inputs_it_is_magnitude(module: Any) -> None:
    weight, _ = layer()
    solved = module.solve(weight, Stats("layer", gram=torch.eye(12)), Target(0.5))
    flat = weight.abs().flatten()
    assert torch.equal(solved.keep.flatten(), flat >= flat.sort().values[30])
    torch.testing.assert_close(solved.weight, weight * solved.keep)


def test_a_quality_is_a_multiple_of_the_standard_deviation() -> None:
    net = torch.nn.Sequential(torch.nn.Linear(20, 30), torch.nn.ReLU(), torch.nn.Linear(30, 5))
    with torch.no_grad():  # around its mean, which is not zero
        net[0].weight += 0.2
    result = sec.sparsify(net, "threshold", quality=0.8, progress=False)
    for name, mask in result.masks.items():
        weight = net.get_parameter(name).detach()
        mean = weight.mean()
        deviation = ((weight - mean) ** 2).mean() ** 0.5
        assert torch.equal(mask, weight.abs() >= 0.8 * deviation)
        assert torch.equal(result.model.get_parameter(name), weight * mask)
    with pytest.raises(ConfigError, match="quality"):
        threshold.threshold(quality=-1)
