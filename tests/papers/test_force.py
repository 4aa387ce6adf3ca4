"""FORCE and iterative SNIP: their rounds written out."""

from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

import secateur as sec

AMOUNT = 0.9


def net_and_data() -> tuple[nn.Module, list]:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Linear(12, 20), nn.ReLU(), nn.Linear(20, 10), nn.ReLU(), nn.Linear(10, 4)
    )
    data = [(torch.randn(16, 12), torch.randint(0, 4, (16,))) for _ in range(2)]
    return net, data


def attached(name: str, **options) -> sec.MaskSet:
    net, data = net_and_data()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    return sec.attach(net, optimizer, name, amount=AMOUNT, data=data, **options).masks


def written_out(rounds: int, revive: bool) -> list[Tensor]:
    """The masks after every round, all weights in one vector."""
    net, data = net_and_data()
    weights = [p for p in net.parameters() if p.dim() > 1]
    dense = [p.detach().clone() for p in weights]
    total = sum(p.numel() for p in weights)
    mask, found = torch.ones(total), []
    for k in range(1, rounds + 1):
        parts = mask.split([p.numel() for p in weights])
        with torch.no_grad():
            for p, d, m in zip(weights, dense, parts, strict=True):
                p.copy_(d * m.view_as(d))
        losses = [nn.functional.cross_entropy(net(x), y) for x, y in data]
        grads = torch.autograd.grad(torch.stack(losses).mean(), weights)
        used = dense if revive else [p.detach() for p in weights]
        scores = torch.cat([(g * w).abs().flatten() for g, w in zip(grads, used, strict=True)])
        if not revive:
            scores[mask == 0] = -1
        keep = round(total * (1 - AMOUNT) ** (k / rounds))
        mask = torch.zeros(total)
        mask[scores.topk(keep).indices] = 1
        found.append(mask.bool())
    return found


def flat(masks: sec.MaskSet) -> Tensor:
    return torch.cat([m.flatten() for m in masks.values()])


@pytest.mark.parametrize("rounds", [1, 2, 5])
@pytest.mark.parametrize(("name", "revive"), [("force", True), ("iterative_snip", False)])
def test_masks_are_those_of_the_rounds_written_out(name: str, revive: bool, rounds: int) -> None:
    assert torch.equal(flat(attached(name, rounds=rounds)), written_out(rounds, revive)[-1])


def test_one_round_is_snip() -> None:
    snip = attached("snip")
    assert attached("force", rounds=1) == snip == attached("iterative_snip", rounds=1)
    assert attached("force", rounds=5) != attached("iterative_snip", rounds=5) != snip


def test_only_force_lets_connections_come_back() -> None:
    for revive in (False, True):
        rounds = written_out(5, revive)
        nested = all(bool((b <= a).all()) for a, b in pairwise(rounds))
        assert nested is not revive
