"""LASSO, ThiNet and SOSP: contributions, greedy steps and curvature against slow versions."""

import itertools

import pytest
import torch
from torch import nn

import secateur as sec
from secateur import criteria
from secateur.engine.inputs import contributions
from secateur.engine.statistics import Stats, collect
from secateur.recovery import LeastSquares


@pytest.mark.parametrize(
    ("module", "shape"),
    [
        (nn.Linear(5, 4), (3, 5)),
        (nn.Linear(5, 4), (3, 7, 5)),
        (nn.Conv2d(3, 4, 3, padding=1, stride=2), (2, 3, 5, 5)),
        (nn.Conv2d(3, 4, 1), (2, 3, 3, 3)),
    ],
)
def test_contributions_are_outputs_of_one_input_at_a_time(module, shape) -> None:
    """All positions are looked at, there being at most ten."""
    x = torch.randn(shape)
    count, found = contributions(module, x, torch.Generator().manual_seed(0))
    axis = -1 if isinstance(module, nn.Linear) else -3
    features = shape[axis]
    parts = []
    with torch.no_grad():
        nothing = module(torch.zeros_like(x))
        for c in range(features):
            one = torch.zeros_like(x)
            one.select(axis, c).copy_(x.select(axis, c))
            parts.append((module(one) - nothing).flatten())
        torch.testing.assert_close(sum(parts), (module(x) - nothing).flatten())
    naive = torch.tensor([[float(a @ b) for b in parts] for a in parts])
    torch.testing.assert_close(found, naive, rtol=1e-4, atol=1e-4)
    assert count == parts[0].numel() // 4


def test_thinet_removes_as_the_written_out_greedy_search_does() -> None:
    torch.manual_seed(0)
    z = torch.randn(200, 6) @ torch.randn(6, 6)
    scores = criteria.find("thinet")(torch.ones(1, 6), Stats(contribution=z.T @ z / 200))
    removed: list[int] = []
    while len(removed) < 6:
        error = {
            j: float(z[:, [*removed, j]].sum(1).square().sum())
            for j in range(6)
            if j not in removed
        }
        removed.append(min(error, key=error.__getitem__))
    assert scores.argsort().tolist() == removed


def test_thinet_starts_with_what_adds_nothing_and_comes_near_the_best_set() -> None:
    torch.manual_seed(1)
    z = torch.randn(300, 6) @ torch.randn(6, 6)
    z[:, 4] = 0
    gram = z.T @ z
    scores = criteria.find("thinet")(torch.ones(1, 6), Stats(contribution=gram))
    assert int(scores.argmin()) == 4
    ours = scores.argsort()[:3].tolist()
    errors = {
        s: float(gram[list(s)][:, list(s)].sum()) for s in itertools.combinations(range(6), 3)
    }
    rank = sorted(errors.values()).index(errors[tuple(sorted(ours))])
    assert rank < 5  # of 20


def test_lasso_selects_what_a_search_for_the_penalty_selects() -> None:
    """The paper's search: bisect the penalty of scikit-learn's Lasso on the samples themselves."""
    from sklearn.linear_model import Lasso

    torch.manual_seed(0)
    z = (torch.randn(400, 8) * torch.tensor([3.0, 2.0, 1.5, 1.0, 0.7, 0.4, 0.2, 0.1])).double()
    scores = criteria.find("lasso")(torch.ones(1, 8), Stats(contribution=z.T @ z / 400))
    for wanted in (2, 4, 6):
        low, high = 0.0, 100.0
        for _ in range(60):
            middle = (low + high) / 2
            fit = Lasso(alpha=middle, fit_intercept=False).fit(z.numpy(), z.sum(1).numpy())
            used = {i for i, b in enumerate(fit.coef_) if b}
            if len(used) == wanted:
                break
            low, high = (middle, high) if len(used) > wanted else (low, middle)
        assert set(scores.argsort(descending=True)[:wanted].tolist()) == used


def test_a_channel_made_of_others_goes_and_its_output_is_recovered() -> None:
    """Hidden units 4 and 5 repeat 0 and 1: without them the refitted layer says the same."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 3))
    with torch.no_grad():
        net[0].weight[4:] = net[0].weight[:2]
        net[0].bias[4:] = net[0].bias[:2]
        net[2].weight[:, 4:] *= 0.1
    x = torch.randn(200, 6)
    recovery = LeastSquares(ridge=0)
    result = sec.prune(
        net, x[:4], method="channel_lasso", amount=1 / 3, data=[x], recovery=recovery,
        measure=False, progress=False,
    )  # fmt: skip
    assert result.model[0].out_features == 4
    torch.testing.assert_close(result.model(x), net(x), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["channel_lasso", "thinet"])
def test_methods_prune_and_refit_a_trained_network(name: str) -> None:
    net, data = sec.zoo.load("lenet5"), [next(iter(sec.zoo.loaders("lenet5", 64)[0]))] * 2
    options = {"data": data, "measure": False, "progress": False, "amount": 0.5}
    result = sec.prune(net, sec.zoo.example_inputs("lenet5"), method=name, **options)
    bare = sec.prune(net, sec.zoo.example_inputs("lenet5"), method=name, recovery="none", **options)
    images, _ = data[0]
    dense = net(images)
    assert result.model.fc1.out_features == 60
    assert (result.model(images) - dense).square().mean() < (
        (bare.model(images) - dense).square().mean()
    )


def test_sosp_is_the_hessian_in_the_gates_times_ones() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3))
    x, y = torch.randn(20, 4), torch.randint(0, 3, (20,))
    graph = sec.trace(net, x)
    found = collect(graph, {"gate", "gate_curvature"}, [(x, y)]).classes

    def loss(z: torch.Tensor) -> torch.Tensor:
        first = (net[0](x) * z[:5]).tanh()
        second = (net[2](first) * z[5:]).tanh()
        return nn.functional.cross_entropy(net[4](second), y)

    ones = torch.ones(11)
    hessian = torch.autograd.functional.hessian(loss, ones)
    (gradient,) = torch.autograd.grad(loss(ones.requires_grad_()), ones)
    ours = torch.cat([found[n].gate_curvature for n in ("0", "2")])
    torch.testing.assert_close(ours, hessian.sum(1), rtol=1e-4, atol=1e-6)
    scores = torch.cat([criteria.find("sosp")(stats=found[n]) for n in ("0", "2")])
    torch.testing.assert_close(
        scores, gradient.abs() + 0.5 * hessian.sum(1).abs(), rtol=1e-4, atol=1e-6
    )
    assert sec.plan(graph, amount=0.4, criterion="sosp", data=[(x, y)]).removed
