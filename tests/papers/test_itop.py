"""ITOP: the rate of exploration against its definition and its expectation."""

import math

import pytest
import torch
from torch import nn

import secateur as sec
from secateur.errors import ConfigError
from secateur.methods.during.itop import exploration, explored, itop


def run(grow, steps=12, **options):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(40, 50), nn.ReLU(), nn.Linear(50, 10))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
    handle = sec.attach(net, optimizer, ("itop", {"grow": grow, **options}), steps=steps)
    x, y = torch.randn(30, 40), torch.randint(0, 10, (30,))
    history = [handle.masks]
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        optimizer.step()
        history.append(handle.masks)
    return handle, history


def test_the_share_falls_from_a_half_to_its_least_over_all_of_training() -> None:
    drop = itop(0.9).drop
    assert [round(drop(t), 5) for t in (0, 0.25, 0.5, 0.75)] == [0.5, 0.42751, 0.2525, 0.07749]
    assert math.isclose(drop(1 - 1e-9), 0.005, abs_tol=1e-6) and drop(1.0) == 0


@pytest.mark.parametrize("grow", ["gradient", "random"])
def test_the_rate_is_the_union_of_all_masks(grow) -> None:
    handle, history = run(grow, every=3)
    union = history[0]
    for masks in history[1:]:
        assert masks.densities() == history[0].densities()
        union = union | masks
    rate = exploration(explored(handle.moment))
    assert rate == pytest.approx(union.kept / union.total)
    assert rate > history[0].kept / union.total


def test_random_growth_explores_as_fast_as_chance_says() -> None:
    # A layer of N with k active drops c: each inactive one of N - k + c comes with chance
    # c / (N - k + c), whatever was explored before, so the share never seen shrinks by that.
    handle, history = run("random", steps=21, every=1, share=0.5, least=0.5, scope="uniform")
    never = {n: 1 - d for n, d in history[0].densities().items()}
    expected = 0.0
    for n, mask in history[0].items():
        size, kept = mask.numel(), int(mask.sum())
        c = int(0.5 * kept)
        never[n] *= (1 - c / (size - kept + c)) ** 20
        expected += size * (1 - never[n])
    expected /= history[0].total
    assert exploration(explored(handle.moment)) == pytest.approx(expected, abs=0.02)


def test_what_was_explored_survives_a_restart_and_is_missed_elsewhere() -> None:
    handle, _ = run("random", every=3)
    assert set(handle.state_dict()["state"]) == {"explored.0.weight", "explored.2.weight"}
    with pytest.raises(ConfigError, match="itop"):
        exploration([])
