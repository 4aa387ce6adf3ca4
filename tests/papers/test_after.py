"""Solvers of one layer, against closed forms and slow versions."""

import itertools

import pytest
import torch
from torch import Tensor

from secateur.engine.gram import aimed, inverse_factor, layer_error, problem
from secateur.engine.statistics import Stats
from secateur.engine.target import Target, keep_best, parse_pattern
from secateur.errors import ConfigError, DataError
from secateur.methods.after import (
    admm,
    alps,
    dsnot,
    exact_obs,
    magnitude,
    reconstruct,
    ria,
    sparsegpt,
    sparseswaps,
    wanda,
)

ALL = [admm, alps, dsnot, exact_obs, magnitude, reconstruct, ria, sparsegpt, sparseswaps, wanda]


def layer(rows: int = 6, columns: int = 16, seed: int = 0) -> tuple[Tensor, Stats]:
    """A random weight and correlated inputs."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, generator=generator)
    mix = torch.randn(columns, columns, generator=generator)
    x = torch.randn(400, columns, generator=generator) @ mix
    return weight, stats_of(x)


def stats_of(x: Tensor) -> Stats:
    norm = x.square().mean(0).sqrt()
    return Stats("layer", input_norm=norm, input_mean=x.mean(0), gram=x.T @ x / len(x))


def with_gram(gram: Tensor) -> Stats:
    return Stats("layer", input_norm=gram.diagonal().sqrt(), gram=gram)


@pytest.mark.parametrize("amount", [0, 0.1, 0.5, 0.999, 1])
@pytest.mark.parametrize("per", ["layer", "row"])
def test_counts_are_exact_with_ties_too(amount: float, per: str) -> None:
    for scores in (torch.ones(7, 30), torch.randn(7, 30)):
        keep = keep_best(scores, Target(amount), per)  # type: ignore[arg-type]
        expected = 7 * round(amount * 30) if per == "row" else round(amount * 210)
        assert int((~keep).sum()) == expected


@pytest.mark.parametrize("amount", [0, 0.1, 0.5, 0.999, 1])
def test_sparsegpt_counts_exactly(amount: float) -> None:
    weight, stats = layer(5, 30)
    keep = sparsegpt.solve(weight, stats, Target(amount), block=8).keep
    assert int((~keep).sum()) == round(amount * 150)


@pytest.mark.parametrize("module", ALL)
@pytest.mark.parametrize("pattern", ["2:4", "4:8", "1:4", "3:4"])
def test_every_group_loses_exactly_n(module, pattern: str) -> None:  # type: ignore[no-untyped-def]
    weight, stats = layer()
    n, m = parse_pattern(pattern)  # type: ignore[misc]
    solved = module.solve(weight, stats, Target(pattern=(n, m)))
    assert bool(((~solved.keep).view(-1, m).sum(1) == n).all())
    assert bool((solved.weight[~solved.keep] == 0).all())


def test_a_group_that_does_not_divide_the_inputs_is_refused() -> None:
    weight, stats = layer(3, 10)
    for module in (magnitude, wanda, sparsegpt):
        with pytest.raises(ConfigError, match="ignore="):
            module.solve(weight, stats, Target(pattern=(2, 4)))
    with pytest.raises(ConfigError, match="2:4"):
        parse_pattern("4:2")


def test_wanda_on_the_papers_kind_of_example() -> None:
    weight = torch.tensor([[3.0, -1.0, 2.0, 0.5]])
    stats = Stats("layer", input_norm=torch.tensor([1.0, 10.0, 1.0, 4.0]))
    assert wanda.solve(weight, stats, Target(0.5)).keep.tolist() == [[True, True, False, False]]
    assert magnitude.solve(weight, stats, Target(0.5)).keep.tolist() == [[True, False, True, False]]


def test_wandas_variant_takes_the_same_share_of_every_row() -> None:
    weight, stats = layer(20, 64)
    keep = wanda.solve(weight, stats, Target(0.5), variant=True).keep
    assert int((~keep).sum()) == 640
    scores = weight.abs() * stats.input_norm
    share = (scores * ~keep).sum(1) / scores.sum(1)
    # The next weight of any row would exceed the share that all rows stay below.
    lost = (scores * ~keep).sum(1)
    following = (scores.masked_fill(~keep, torch.inf).amin(1) + lost) / scores.sum(1)
    assert float(share.max()) <= float(following.min()) + 1e-6


def naive_sparsegpt(weight: Tensor, gram: Tensor, keep: Tensor) -> Tensor:
    """Column by column, with the inverse of the remaining Gram matrix written out."""
    w = weight.double().clone()
    for i in range(w.shape[1]):
        inverse = torch.linalg.inv(gram.double()[i:, i:])
        error = torch.where(keep[:, i], 0.0, w[:, i]) / inverse[0, 0]
        w[:, i:] -= error[:, None] * inverse[0]
    return w * keep


@pytest.mark.parametrize("block", [4, 16, 128])
def test_sparsegpt_equals_optimal_brain_surgery_written_out(block: int) -> None:
    weight, stats = layer()
    keep = torch.rand(weight.shape, generator=torch.Generator().manual_seed(1)) > 0.5
    gram = problem(weight, stats, 0.01).gram
    solved = sparsegpt.solve(weight, stats, Target(keep=keep), block=block)
    expected = naive_sparsegpt(weight, gram, keep).float()
    torch.testing.assert_close(solved.weight, expected, rtol=1e-3, atol=1e-3)


def test_sparsegpt_on_two_inputs_is_the_closed_form() -> None:
    r, weight = 0.6, torch.tensor([[0.1, 2.0]])
    stats = with_gram(torch.tensor([[1.0, r], [r, 1.0]]))
    solved = sparsegpt.solve(weight, stats, Target(0.5), damping=0.0)
    torch.testing.assert_close(solved.weight, torch.tensor([[0.0, 2.0 + r * 0.1]]))
    error = layer_error(solved.weight - weight, stats.gram)
    assert error == pytest.approx(0.1**2 * (1 - r**2), rel=1e-4)


def test_sparsegpt_with_inputs_that_are_not_correlated_is_magnitude_or_wanda() -> None:
    weight, _ = layer(6, 16)
    same = sparsegpt.solve(weight, with_gram(torch.eye(16) * 3), Target(0.5), block=16)
    assert torch.equal(same.keep, magnitude.solve(weight, None, Target(0.5)).keep)
    torch.testing.assert_close(same.weight, weight * same.keep)
    stats = with_gram(torch.diag(torch.linspace(0.1, 4, 16)))
    pattern = Target(pattern=(2, 4))
    ours = sparsegpt.solve(weight, stats, pattern, damping=0.0)
    assert torch.equal(ours.keep, wanda.solve(weight, stats, pattern).keep)


def test_joint_rounding_leaves_few_values_and_less_error_than_rounding_afterwards() -> None:
    weight, stats = layer(8, 32)
    both = sparsegpt.solve(weight, stats, Target(0.5), bits=4)
    assert all(len(row.unique()) <= 16 for row in both.weight)
    low, high = weight.amin(1, keepdim=True).clamp(max=0), weight.amax(1, keepdim=True).clamp(min=0)
    step = (high - low) / 15
    zero = (-low / step).round()
    after = sparsegpt.solve(weight, stats, Target(0.5)).weight
    after = (((after / step).round() + zero).clamp(0, 15) - zero) * step
    ours, theirs = (layer_error(w - weight, stats.gram) for w in (both.weight, after))
    assert ours < theirs


def test_reconstruction_is_least_squares_on_the_tokens() -> None:
    generator = torch.Generator().manual_seed(0)
    weight, x = torch.randn(5, 12, generator=generator), torch.randn(200, 12, generator=generator)
    x = x @ torch.randn(12, 12, generator=generator)
    keep = torch.rand(5, 12, generator=generator) > 0.4
    solved = reconstruct.solve(weight, stats_of(x), Target(keep=keep), damping=0.0)
    for row, (w, stays) in enumerate(zip(weight, keep, strict=True)):
        expected = torch.linalg.lstsq(x[:, stays].double(), (x @ w).double()).solution
        torch.testing.assert_close(
            solved.weight[row, stays].double(), expected, rtol=1e-3, atol=1e-3
        )
    assert bool((solved.weight[~keep] == 0).all())


def test_reconstruction_aims_at_the_dense_output_where_the_input_changed() -> None:
    generator = torch.Generator().manual_seed(0)
    weight, dense = torch.randn(3, 6, generator=generator), torch.randn(300, 6, generator=generator)
    x = dense + 0.3 * torch.randn(300, 6, generator=generator)
    stats = stats_of(x)
    stats.cross = dense.T @ x / len(x)
    keep = torch.tensor([[True, False] * 3] * 3)
    aim = aimed(weight, stats, damping=0.0)
    solved = reconstruct.solve(aim, stats, Target(keep=keep), damping=0.0)
    expected = torch.linalg.lstsq(x[:, ::2], dense @ weight.T).solution.T
    torch.testing.assert_close(solved.weight[:, ::2], expected, rtol=1e-3, atol=1e-3)


def test_errors_are_in_order_and_the_gradient_vanishes() -> None:
    weight, stats = layer(8, 32)
    keep = wanda.solve(weight, stats, Target(0.5)).keep
    gram = problem(weight, stats, 0.01).gram
    target = Target(keep=keep)
    exact = reconstruct.solve(weight, stats, target).weight
    errors = [
        layer_error(w - weight, gram)
        for w in (exact, sparsegpt.solve(weight, stats, target).weight, weight * keep)
    ]
    assert errors == sorted(errors) and errors[0] < errors[1]
    gradient = ((weight - exact) @ gram)[keep]
    assert float(gradient.abs().max()) < 1e-3 * float((weight @ gram).abs().max())


def test_conjugate_gradients_reach_the_exact_solution() -> None:
    weight, stats = layer(8, 32)
    keep = wanda.solve(weight, stats, Target(0.5)).keep
    exact = reconstruct.solve(weight, stats, Target(keep=keep)).weight
    gram = problem(weight, stats).gram
    errors = []
    for iterations in (0, 2, 5, 100):
        found = reconstruct.solve(weight, stats, Target(keep=keep), iterations=iterations).weight
        errors.append(layer_error(found - exact, gram))
    assert errors == sorted(errors, reverse=True) and errors[-1] < 1e-4 * errors[0]


@pytest.mark.parametrize("pattern", [None, (2, 4)])
def test_swaps_end_where_no_swap_helps(pattern: tuple[int, int] | None) -> None:
    weight, stats = layer(4, 8)
    gram = stats.gram
    keep = sparseswaps.solve(weight, stats, Target(0.5, pattern), swaps=1000).keep
    start = wanda.solve(weight, stats, Target(0.5, pattern)).keep
    assert torch.equal(keep.sum(1), start.sum(1))
    for row in range(len(weight)):
        error = float(layer_error((weight[row] * ~keep[row])[None], gram))
        assert error <= float(layer_error((weight[row] * ~start[row])[None], gram)) + 1e-4
        for p, q in itertools.product(range(8), repeat=2):
            if pattern and p // 4 != q // 4:
                continue
            if not keep[row, p] and keep[row, q]:
                other = keep[row].clone()
                other[p], other[q] = True, False
                assert float(layer_error((weight[row] * ~other)[None], gram)) >= error * (1 - 1e-5)


def test_more_swaps_never_make_it_worse() -> None:
    weight, stats = layer(16, 64)
    errors = [
        layer_error(
            sparseswaps.solve(weight, stats, Target(0.5), swaps=n).weight - weight, stats.gram
        )
        for n in (0, 1, 5, 20)
    ]
    assert errors == sorted(errors, reverse=True) and errors[-1] < errors[0]


def test_dead_inputs_lose_their_weights_and_break_nothing() -> None:
    weight, _ = layer(4, 8)
    x = torch.randn(100, 8)
    x[:, 3] = 0
    solved = sparsegpt.solve(weight, stats_of(x), Target(0.5))
    assert bool((solved.weight[:, 3] == 0).all()) and bool(solved.weight.isfinite().all())


def test_the_factor_of_the_inverse_is_that_of_float64() -> None:
    torch.manual_seed(0)
    wide = torch.randn(40, 25)
    gram = wide @ wide.T + 1e-2 * torch.eye(40)  # singular but for the damping
    wanted = torch.linalg.cholesky(torch.linalg.inv(gram.double()), upper=True)
    torch.testing.assert_close(inverse_factor(gram).double(), wanted, rtol=1e-2, atol=1e-3)
    assert torch.equal(inverse_factor(gram), inverse_factor(gram).triu())


def test_a_singular_gram_is_damped_more_and_said() -> None:
    weight, _ = layer(4, 8)
    stats = with_gram(torch.ones(8, 8))
    assert not sparsegpt.solve(weight, stats, Target(0.5)).note
    solved = sparsegpt.solve(weight, stats, Target(0.5), damping=1e-9)
    assert "singular" in solved.note and bool(solved.weight.isfinite().all())
    with pytest.raises(DataError, match="factorized"):
        sparsegpt.solve(weight, with_gram(torch.full((8, 8), torch.nan)), Target(0.5))
