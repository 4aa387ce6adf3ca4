"""WoodFisher: against the dense Fisher matrix, inverted and minimized over in the open."""

import pytest
import torch
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification

import secateur as sec
from secateur.engine.gradients import sample_gradients
from secateur.engine.statistics import Stats
from secateur.engine.target import Target
from secateur.errors import ConfigError, DataError
from secateur.methods.after.woodfisher import inverse, solve

DAMPING = 1e-3


def dense_fisher(gradients: Tensor) -> Tensor:
    g = gradients.double().flatten(1)
    return DAMPING * torch.eye(g.shape[1], dtype=torch.float64) + g.T @ g / len(g)


def problem(samples: int = 6, shape: tuple[int, int] = (3, 4)) -> tuple[Tensor, Stats]:
    torch.manual_seed(0)
    return torch.randn(shape), Stats("layer", gradients=torch.randn(samples, *shape) / 5)


@pytest.mark.parametrize("samples", [1, 6, 40])
def test_the_inverse_is_that_of_the_dense_matrix_and_of_shermans_and_morrisons_steps(
    samples: int,
) -> None:
    _, stats = problem(samples)
    found = inverse(stats.gradients.flatten(1)[:, None], DAMPING)[0]
    torch.testing.assert_close(found, torch.linalg.inv(dense_fisher(stats.gradients)))
    step = torch.eye(12, dtype=torch.float64) / DAMPING
    for g in stats.gradients.double().flatten(1):
        v = step @ g
        step = step - torch.outer(v, v) / (samples + g @ v)
    torch.testing.assert_close(found, step)


def least_rise(w: Tensor, fisher: Tensor, gone: list[int]) -> tuple[Tensor, float]:
    """The best change of the others if some weights become zero, and what it costs."""
    stay = [i for i in range(len(w)) if i not in gone]
    delta = torch.zeros_like(w)
    delta[gone] = -w[gone]
    pull = fisher[stay][:, gone] @ delta[gone]
    delta[stay] = -torch.linalg.solve(fisher[stay][:, stay], pull)
    return delta, float(delta @ fisher @ delta) / 2


@pytest.mark.parametrize("group", [1, 2])
def test_the_groups_go_whose_removal_costs_least_and_the_others_minimize_the_loss(
    group: int,
) -> None:
    weight, stats = problem()
    solved = solve(weight, stats, Target(0.5), block=12, group=group, damping=DAMPING)
    fisher, w = dense_fisher(stats.gradients), weight.double().flatten()
    rises = [least_rise(w, fisher, list(range(i, i + group)))[1] for i in range(0, 12, group)]
    order = sorted(range(12 // group), key=rises.__getitem__)
    gone = sorted(i * group + k for i in order[: 6 // group] for k in range(group))
    assert (~solved.keep.flatten()).nonzero().flatten().tolist() == gone
    best = w + least_rise(w, fisher, gone)[0]
    torch.testing.assert_close(solved.weight.flatten(), best.float(), rtol=1e-4, atol=1e-5)


def test_blocks_do_not_touch_each_other_and_the_last_may_be_short() -> None:
    weight, stats = problem(6, (3, 5))
    solved = solve(weight, stats, Target(0.4), block=4, damping=DAMPING)
    fisher, w = dense_fisher(stats.gradients), weight.double().flatten()
    gone = (~solved.keep.flatten()).nonzero().flatten().tolist()
    assert len(gone) == 6
    for start in range(0, 15, 4):
        part = slice(start, start + 4)
        inside = [i - start for i in gone if start <= i < start + 4]
        best = w[part] + least_rise(w[part], fisher[part, part], inside)[0]
        torch.testing.assert_close(
            solved.weight.flatten()[part], best.float(), rtol=1e-4, atol=1e-5
        )


def test_with_much_damping_it_is_magnitude_without_an_update() -> None:
    weight, stats = problem()
    solved = solve(weight, stats, Target(0.5), damping=1e6)
    smallest = weight.abs().flatten().argsort()[:6]
    assert not solved.keep.flatten()[smallest].any()
    torch.testing.assert_close(solved.weight, weight * solved.keep, rtol=1e-4, atol=1e-5)


def classifier() -> tuple[nn.Module, list[tuple[Tensor, Tensor]]]:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(12, 24), nn.ReLU(), nn.Linear(24, 3))
    x = torch.randn(256, 12)
    data = [(x, (x @ torch.randn(12, 3)).argmax(1))]
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    for _ in range(150):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(data[0][0]), data[0][1]).backward()
        optimizer.step()
    optimizer.zero_grad()
    return net, data


def test_gradients_are_those_of_single_samples() -> None:
    net, data = classifier()
    named = dict(net.named_parameters())
    found = sample_gradients(net, [(x[:3], y[:3]) for x, y in data], named)
    for k in range(3):
        loss = nn.functional.cross_entropy(net(data[0][0][k : k + 1]), data[0][1][k : k + 1])
        for n, g in zip(named, torch.autograd.grad(loss, list(named.values())), strict=True):
            torch.testing.assert_close(found[n][k], g)
    assert all(p.grad is None for p in net.parameters())


def test_a_classifiers_loss_rises_less_than_by_magnitude() -> None:
    net, data = classifier()

    def loss(method: str) -> float:
        small = sec.sparsify(net, method, amount=0.5, data=data, progress=False).model
        return nn.functional.cross_entropy(small(data[0][0]), data[0][1]).item()

    assert loss("woodfisher") < loss("magnitude")


def test_an_encoder_with_labels_is_pruned_and_one_without_a_loss_is_refused() -> None:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = BertConfig(**sizes, intermediate_size=32, vocab_size=50)
    model = BertForSequenceClassification(config)
    batch = {"input_ids": torch.randint(0, 50, (4, 8)), "labels": torch.tensor([0, 1, 1, 0])}
    result = sec.sparsify(
        model, ("woodfisher", {"block": 16, "group": 4}), amount=0.5, data=[batch], progress=False
    )
    assert result.report.sparsity == 0.5 and len(result.report.rows) == 12
    for keep in result.masks.values():
        groups = keep.view(-1, 4)
        assert torch.equal(groups.any(1), groups.all(1))
    net = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    with pytest.raises(DataError, match="loss"):
        sec.sparsify(net, "woodfisher", amount=0.5, data=[torch.randn(2, 4)], progress=False)


def test_groups_that_do_not_fit_are_named() -> None:
    weight, stats = problem()
    with pytest.raises(ConfigError, match="layer: groups of 5"):
        solve(weight, stats, Target(0.5), group=5)
    with pytest.raises(ConfigError, match="multiple of group"):
        sec.sparsify(nn.Linear(4, 2), ("woodfisher", {"group": 4}), data=[], progress=False)
