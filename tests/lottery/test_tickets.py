"""Ticket search against the loop written out: densities, nesting, rewound weights, resuming."""

import copy
import itertools

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from secateur import lottery
from secateur.engine.masks import MaskSet
from secateur.errors import ConfigError, StoreError
from secateur.recovery import FineTune, FromScratch, Rewind


def net(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(10, 30), nn.ReLU(), nn.Linear(30, 3))


def loader() -> DataLoader:
    x = torch.randn(64, 10, generator=torch.Generator().manual_seed(0))
    return DataLoader(TensorDataset(x, x[:, :3].argmax(1)), batch_size=16, shuffle=True)


def base(**options) -> FineTune:
    return FineTune(epochs=3, lr=0.3, progress=False, **options)


def state(model: nn.Module) -> dict[str, torch.Tensor]:
    return {n: t.clone() for n, t in model.state_dict().items()}


def trained() -> tuple[nn.Module, dict[str, torch.Tensor]]:
    model = net()
    base(stop=4).heal(model, data=loader())
    early = state(model)
    base(start=4).heal(model, data=loader())
    return model, early


def naive_imp(model, early, rounds: int, density: float):
    """Iterative magnitude pruning with rewinding, by sorting all weights in plain Python."""
    model, found = copy.deepcopy(model), []
    alive = {
        (n, i) for n in ("0.weight", "2.weight") for i in range(model.get_parameter(n).numel())
    }
    total = len(alive)
    for level in range(1, rounds + 1):
        flat = {
            n: model.get_parameter(n).detach().flatten().tolist() for n in ("0.weight", "2.weight")
        }
        order = sorted(alive, key=lambda at: -abs(flat[at[0]][at[1]]))
        alive = set(order[: round(total * density ** (level / rounds))])
        model.load_state_dict(early)
        masks = {
            n: torch.tensor([(n, i) in alive for i in range(len(flat[n]))]).view_as(
                model.get_parameter(n)
            )
            for n in flat
        }
        Rewind(step=4, weights=early, base=base()).heal(model, MaskSet(masks), loader())
        found.append((masks, state(model)))
    return found


def test_iterative_magnitude_pruning_with_rewinding_is_the_loop_written_out() -> None:
    model, early = trained()
    before = state(model)
    how = Rewind(step=4, weights=early, base=base())
    found = lottery.tickets(model, how, amount=0.7, steps=3, data=loader())
    for ticket, (masks, weights) in zip(found, naive_imp(model, early, 3, 0.3), strict=True):
        for n, m in masks.items():
            assert torch.equal(ticket.masks[n], m), (ticket, n)
        for n, w in weights.items():
            torch.testing.assert_close(ticket.weights[n], w)
    assert all(later.masks <= earlier.masks for earlier, later in itertools.pairwise(found))
    total = found[0].masks.total
    assert [t.masks.kept for t in found] == [round(total * 0.3 ** (k / 3)) for k in (1, 2, 3)]
    for n, value in model.state_dict().items():
        assert torch.equal(value, before[n])


def test_a_fifth_a_round_is_the_papers_rate() -> None:
    model, _ = trained()
    how = base(stop=1)
    found = lottery.tickets(model, how, amount=1 - 0.8**4, steps=4, data=loader())
    for level, ticket in enumerate(found, 1):
        assert ticket.masks.kept == round(ticket.masks.total * 0.8**level)


@pytest.mark.parametrize("how", [base(), Rewind(base=base()), FromScratch(base=base())])
def test_recoveries_are_interchangeable_and_scored(how) -> None:
    model, _ = trained()
    x = torch.randn(50, 10)

    def accuracy(m: nn.Module) -> float:
        assert not m.training
        return float((m(x).argmax(1) == x[:, :3].argmax(1)).float().mean())

    (ticket,) = lottery.tickets(model, how, amount=0.5, steps=1, data=loader(), evaluate=accuracy)
    again = net()
    again.load_state_dict(ticket.weights)
    assert ticket.score == pytest.approx(accuracy(again.eval()))
    assert ticket.score > 0.5


def test_a_users_own_loop_trains_under_held_masks() -> None:
    model, _ = trained()
    data = list(loader())

    def train(m, masks) -> None:
        optimizer = torch.optim.Adam(m.parameters(), lr=0.01)
        with lottery.held(m, optimizer, masks):
            for x, y in data:
                optimizer.zero_grad()
                nn.functional.cross_entropy(m(x), y).backward()
                optimizer.step()

    found = lottery.tickets(model, train, amount=0.8, steps=2)
    assert found[-1].report == {"recovery": "train"}
    assert int((found[-1].weights["0.weight"] == 0).sum()) == int(
        (~found[-1].masks["0.weight"]).sum()
    )

    def careless(m, masks) -> None:
        with torch.no_grad():
            m[0].weight.add_(1)

    with pytest.raises(ConfigError, match=r"0\.weight is not zero .*held"):
        lottery.tickets(model, careless, amount=0.8, steps=2)


def test_a_search_goes_on_where_it_was_killed(tmp_path) -> None:
    model, early = trained()
    how = Rewind(step=4, weights=early, base=base())
    options = {"amount": 0.9, "steps": 3, "data": loader()}
    whole = lottery.tickets(model, how, **options)
    lottery.tickets(model, how, **options, checkpoint=tmp_path)
    (tmp_path / "round-3.safetensors").unlink()
    again = lottery.tickets(model, how, **options, checkpoint=tmp_path)
    for a, b in zip(whole, again, strict=True):
        assert a.masks == b.masks
        assert all(torch.equal(t, b.weights[n]) for n, t in a.weights.items())
    with pytest.raises(StoreError, match="another search"):
        lottery.tickets(model, base(), **options, checkpoint=tmp_path)
    with pytest.raises(StoreError, match="weights differ"):
        lottery.tickets(net(5), how, **options, checkpoint=tmp_path)


def test_channels_are_sent_to_prune() -> None:
    with pytest.raises(ConfigError, match=r"sec\.prune"):
        lottery.tickets(net(), base(), amount=0.5, data=loader(), granularity="channel")


@pytest.mark.parametrize("amount", [1.0, -0.1, float("nan"), "half"])
def test_an_amount_that_is_no_fraction_is_named(amount) -> None:
    with pytest.raises(ConfigError, match=r"amount=.*\[0, 1\)"):
        lottery.tickets(nn.Linear(4, 2), "none", amount=amount, steps=2)
