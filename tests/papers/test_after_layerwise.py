"""ADMM, ALPS, RIA and DSnoT, against slow versions and what their papers promise."""

from typing import Any

import pytest
import torch
from torch import Tensor

from secateur.engine.gram import aimed, layer_error, problem, scaled_problem
from secateur.engine.statistics import Stats
from secateur.engine.target import Target
from secateur.methods.after import admm, alps, dsnot, exact_obs, reconstruct, ria, sparsegpt, wanda

HALF, PATTERN = Target(0.5), Target(pattern=(2, 4))


def layer(rows: int = 8, columns: int = 32, seed: int = 0) -> tuple[Tensor, Stats]:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, generator=generator)
    mix = torch.randn(columns, columns, generator=generator)
    x = torch.randn(400, columns, generator=generator) @ mix + mix[0]
    norm, gram = x.square().mean(0).sqrt(), x.T @ x / len(x)
    return weight, Stats("layer", input_norm=norm, input_mean=x.mean(0), gram=gram)


def naive_admm(weight: Tensor, gram: Tensor, amount: float, iterations: int) -> Tensor:
    """The three updates of the paper with inverses and sorting written out, in float64."""
    weight, gram = weight.double(), gram.double()
    scale = gram.diagonal().sqrt()
    g = gram / torch.outer(scale, scale)
    g += 0.1 * torch.eye(len(g))
    start = weight * scale
    w, u = start.clone(), torch.zeros_like(start)
    for step in range(iterations):
        part = amount * (1 - (1 - min(1, (step + 1) / (iterations * 3 // 4))) ** 3)
        if step < iterations * 3 // 4:
            gone = (w + u).abs().flatten().argsort()[: round(part * w.numel())]
        z = (w + u).flatten()
        z[gone] = 0
        z = z.view_as(w)
        u = u + w - z
        w = (start @ g + z - u) @ torch.linalg.inv(g + torch.eye(len(g)))
    last = (w + u).flatten()
    last[gone] = 0
    return last.view_as(w) / scale


def test_admm_is_the_papers_three_updates() -> None:
    weight, stats = layer()
    solved = admm.solve(weight, stats, HALF)
    expected = naive_admm(weight, stats.gram, 0.5, 20)
    assert int((~solved.keep).sum()) == weight.numel() // 2
    assert torch.equal(solved.keep, expected != 0)
    torch.testing.assert_close(solved.weight.double(), expected, rtol=1e-3, atol=1e-3)


def naive_alps(weight: Tensor, gram: Tensor, amount: float) -> Tensor:
    """The mask that ALPS ends with, in float64 and with an inverse in every iteration."""
    weight, gram = weight.double(), gram.double()
    scale = gram.diagonal().sqrt()
    h = gram / torch.outer(scale, scale)
    h += 0.01 * h.diagonal().mean() * torch.eye(len(h))
    start = weight * scale
    removed = round(amount * weight.numel())

    def kept(matrix: Tensor) -> Tensor:
        mask = torch.ones(matrix.numel(), dtype=torch.bool)
        mask[matrix.abs().flatten().argsort()[:removed]] = False
        return mask.view_as(matrix)

    d, v, rho, grown = start.clone(), torch.zeros_like(start), 0.1, False
    mask = before = kept(start)
    for step in range(1, 301):
        w = (start @ h + rho * d - v) @ torch.linalg.inv(h + rho * torch.eye(len(h)))
        mask = kept(w + v / rho)
        d = (w + v / rho) * mask
        v = v + rho * (w - d)
        if step % 3 == 0:
            moved = int((mask & ~before).sum()) / int(mask.sum())
            before = mask
            if moved == 0 and not grown:
                rho /= 5
            elif moved == 0 or (step > 31 and moved < 3e-4):
                break
            else:
                rho *= 1.3 if moved > 0.1 else 1.2 if moved > 0.005 else 1.1
                grown = True
    return mask


def test_alps_ends_with_the_mask_of_the_paper_and_nearly_its_best_weights() -> None:
    weight, stats = layer()
    solved = alps.solve(weight, stats, HALF)
    assert int((~solved.keep).sum()) == weight.numel() // 2
    agree = float((solved.keep == naive_alps(weight, stats.gram, 0.5)).double().mean())
    assert agree > 0.99  # ties of rounding may fall otherwise in float32
    here = scaled_problem(weight, stats, 0.01)
    exact = reconstruct.exact(here.gram, here.weight @ here.gram, solved.keep)
    best = layer_error(exact - here.weight, here.gram)
    assert layer_error(solved.weight * here.scale - here.weight, here.gram) < 1.05 * best


@pytest.mark.parametrize("target", [HALF, PATTERN])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_better_solvers_lose_less(target: Target, seed: int) -> None:
    weight, stats = layer(16, 64, seed)
    best, second, third, last = (
        layer_error(module.solve(weight, stats, target).weight - weight, stats.gram)
        for module in (alps, admm, sparsegpt, wanda)
    )
    assert best < second < min(third, last)


@pytest.mark.parametrize("module", [admm, alps])
def test_a_given_mask_is_kept_and_nothing_removed_changes_nothing(module: Any) -> None:
    weight, stats = layer()
    keep = torch.rand(weight.shape, generator=torch.Generator().manual_seed(1)) > 0.5
    solved = module.solve(weight, stats, Target(keep=keep))
    assert torch.equal(solved.keep, keep) and bool((solved.weight[~keep] == 0).all())
    exact = reconstruct.solve(weight, stats, Target(keep=keep)).weight
    plain, best = (layer_error(w - weight, stats.gram) for w in (weight * keep, exact))
    # Damping differs, so neither is exact for the other's problem.
    assert best <= layer_error(solved.weight - weight, stats.gram) * 1.01 < 0.7 * plain
    whole = module.solve(weight, stats, Target(0.0))
    assert bool(whole.keep.all())
    torch.testing.assert_close(whole.weight, weight, rtol=1e-3, atol=1e-3)


def test_ria_is_the_formula_written_out() -> None:
    weight, stats = layer(4, 6)
    for i in range(4):
        for j in range(6):
            share = abs(weight[i, j]) / weight[:, j].abs().sum()
            share = share + abs(weight[i, j]) / weight[i].abs().sum()
            expected = share * stats.input_norm[j] ** 0.5
            assert float(ria.scores(weight, stats)[i, j]) == pytest.approx(
                float(expected), rel=1e-5
            )
    # Scaling all weights changes nothing, scaling one input's norm does.
    assert torch.equal(ria.solve(weight, stats, HALF).keep, ria.solve(weight * 7, stats, HALF).keep)


def naive_dsnot(weight: Tensor, stats: Stats, keep: Tensor) -> Tensor:
    """Row by row, an exchange at a time."""
    keep = keep.clone()
    variance = stats.input_norm.square() - stats.input_mean.square()
    for row in range(len(weight)):
        w, mask = weight[row], keep[row]
        for _ in range(50):
            part = w * stats.input_mean
            error = float(part[~mask].sum())
            if abs(error) < 0.1:
                break
            sign = 1 if error > 0 else -1
            grow = [j for j in range(len(w)) if not mask[j] and sign * part[j] > 0]
            drop = [j for j in range(len(w)) if mask[j] and sign * part[j] < 0]
            if not grow or not drop:
                break
            back = max(grow, key=lambda j: float(sign * part[j] / variance[j]))
            out = min(drop, key=lambda j: float(abs(w[j]) * stats.input_norm[j]))
            if abs(error - part[back] + part[out]) >= abs(error):
                break
            mask[back], mask[out] = True, False
    return keep


def test_dsnot_is_its_exchanges_one_at_a_time() -> None:
    weight, stats = layer()
    start = wanda.solve(weight, stats, HALF).keep
    solved = dsnot.solve(weight, stats, HALF)
    assert torch.equal(solved.keep, naive_dsnot(weight, stats, start))
    assert not torch.equal(solved.keep, start)
    assert torch.equal(solved.keep.sum(1), start.sum(1))
    part = weight * stats.input_mean
    after, before = ((part * ~keep).sum(1).abs() for keep in (solved.keep, start))
    assert bool((after <= before + 1e-6).all()) and float(after.sum()) < 0.7 * float(before.sum())


def test_dsnot_does_nothing_where_means_are_zero() -> None:
    weight, stats = layer()
    stats.input_mean = torch.zeros(32)
    assert torch.equal(dsnot.solve(weight, stats, HALF).keep, wanda.solve(weight, stats, HALF).keep)


def test_solvers_that_aim_at_the_dense_output_come_nearer_to_it() -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(8, 32, generator=generator)
    dense = torch.randn(500, 32, generator=generator) @ torch.randn(32, 32, generator=generator)
    x = dense + 0.3 * dense.std() * torch.randn(500, 32, generator=generator)
    stats = Stats("layer", gram=x.T @ x / 500, cross=dense.T @ x / 500)
    for module in (admm, alps, sparsegpt):
        plain, towards = (
            float((x @ module.solve(w, stats, HALF).weight.T - dense @ weight.T).square().mean())
            for w in (weight, aimed(weight, stats))
        )
        assert towards < plain


def naive_obs(w: Tensor, gram: Tensor) -> tuple[list[int], list[float], list[Tensor]]:
    """One row: the smallest exact increase of the loss by least squares, again and again."""
    w, gram = w.double(), gram.double()
    kept, order, losses, weights = list(range(len(w))), [], [], []

    def best(support: list[int]) -> tuple[float, Tensor]:
        solution = torch.zeros_like(w)
        if support:
            part = gram[support][:, support]
            solution[support] = torch.linalg.solve(part, (gram @ w)[support])
        return float((solution - w) @ gram @ (solution - w)), solution

    while kept:
        trials = [(best([k for k in kept if k != j])[0], j) for j in kept]
        loss, j = min(trials)
        kept.remove(j)
        order.append(j)
        losses.append(loss)
        weights.append(best(kept)[1])
    return order, losses, weights


@pytest.mark.parametrize("counts", [None, torch.tensor([1.0, 4.0, 0.5, 2.0])])
def test_exact_obs_is_greedy_least_squares_over_all_rows(counts: Tensor | None) -> None:
    weight, stats = layer(4, 8)
    solved = exact_obs.solve(weight, stats, Target(0.5, rows=counts))
    gram = problem(weight, stats).gram
    rows = [naive_obs(row, gram) for row in weight]
    # Again and again the row whose next removal makes the loss of the layer rise least.
    gone = [0] * len(rows)
    for _ in range(16):
        rises = []
        for i, (_, losses, _) in enumerate(rows):
            k = gone[i]
            rise = losses[k] - (losses[k - 1] if k else 0) if k < 8 else float("inf")
            rises.append(rise * (1.0 if counts is None else float(counts[i]) ** 2))
        gone[rises.index(min(rises))] += 1
    for i, ((order, _, weights), count) in enumerate(zip(rows, gone, strict=True)):
        assert sorted((~solved.keep[i]).nonzero().flatten().tolist()) == sorted(order[:count])
        expected = weights[count - 1] if count else weight[i].double()
        torch.testing.assert_close(solved.weight[i].double(), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("target", [HALF, PATTERN])
def test_exact_obs_loses_less_than_sparsegpt(target: Target) -> None:
    weight, stats = layer(16, 64)
    gram = problem(weight, stats).gram
    ours, theirs = (
        layer_error(module.solve(weight, stats, target).weight - weight, gram)
        for module in (exact_obs, sparsegpt)
    )
    assert ours < theirs
