"""DCP: the greedy search, its joint loss and what comes of it, against slow versions."""

from copy import deepcopy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import secateur as sec
from secateur import criteria
from secateur.criteria.discrimination import discrimination
from secateur.engine.heads import trained_heads
from secateur.errors import ConfigError, DataError


def _network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 7), nn.ReLU(), nn.Linear(7, 3))


def _batches(number: int = 2) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [
        (torch.randn(20, 5, generator=generator), torch.randint(0, 3, (20,), generator=generator))
        for _ in range(number)
    ]


@pytest.mark.parametrize(("name", "judged"), [("2.weight", True), ("4.weight", False)])
def test_channels_are_added_as_in_the_search_written_out(name: str, judged: bool) -> None:
    """One classifier of three layers is on the second; the third is judged by the model's loss."""
    net, data = _network(), _batches()
    every = {n: p for n, p in net.named_parameters() if p.dim() > 1}
    ours = discrimination(net, every, data=data, losses=1, refits=2, lr=0.1)[name].sum(0)
    head = trained_heads(net, {"2": net[2]}, data)["2"]
    a, b, c = net[0], net[2], net[4]

    def loss(w: Tensor, step: int) -> Tensor:
        x, y = data[step % 2]
        h = a(x).relu()
        if judged:
            aim, made = b(h), F.linear(h, w, b.bias)
            z = (made - made.mean(0)) / (made.var(0, correction=0) + 1e-5).sqrt()
            told = F.cross_entropy(head.linear((z * head.norm.weight + head.norm.bias).relu()), y)
        else:
            h = b(h).relu()
            aim, made = c(h), F.linear(h, w, c.bias)
            told = F.cross_entropy(made, y)
        return (made - aim).square().sum() / (2 * aim.numel()) + told

    trained = every[name].detach()
    width, added, step = trained.shape[1], [], 0
    w = torch.zeros_like(trained)
    while len(added) < width:
        (g,) = torch.autograd.grad(loss(w.requires_grad_(), step), w)
        w = w.detach()
        best = max((k for k in range(width) if k not in added), key=lambda k: float(g[:, k].norm()))
        added.append(best)
        w[:, best] = trained[:, best]
        for step in (step + 1, step + 2):  # noqa: B020
            (g,) = torch.autograd.grad(loss(w.requires_grad_(), step), w)
            w = w.detach()
            for k in added:
                w[:, k] -= 0.1 * g[:, k]
        step += 1
    assert ours.argsort(descending=True).tolist() == added
    torch.testing.assert_close(ours.sort().values, torch.arange(1, width + 1) / width)


def test_the_first_channel_has_the_gradient_of_the_closed_form() -> None:
    r"""At W = 0 and without labels it is $-O^\top X / Q$."""
    net, (batch, *_) = _network(), _batches()
    net[2].bias.data.zero_()
    scores = discrimination(net, {"2.weight": net[2].weight}, data=[batch], weight=0.0)
    x = net[:2](batch[0])
    sizes = (net[2](x).T @ x).norm(dim=0)
    assert int(scores["2.weight"].sum(0).argmax()) == int(sizes.argmax())


def test_what_tells_classes_apart_is_kept_although_it_is_small() -> None:
    """Input 0 is loud and says nothing, input 1 is quiet and is the label."""
    torch.manual_seed(0)
    y = torch.randint(0, 2, (200,))
    x = torch.stack([3 * torch.randn(200), 2.0 * y - 1], 1)
    net = nn.Linear(2, 2)
    with torch.no_grad():
        net.weight.copy_(torch.tensor([[2.0, -1.0], [2.0, 1.0]]))
        net.bias.zero_()
    at = {"weight": net.weight}
    loud = discrimination(net, at, data=[(x, y)], losses=0, weight=0.0)["weight"].sum(0)
    told = discrimination(net, at, data=[(x, y)], losses=0, weight=100.0)["weight"].sum(0)
    assert loud.tolist() == [1.0, 0.5]
    assert told.tolist() == [0.5, 1.0]


def test_wide_layers_are_ranked_in_a_bounded_number_of_rounds() -> None:
    """130 inputs in 44 rounds of three, each with one gradient to choose and one to descend."""
    net = nn.Linear(130, 2)
    calls = []
    net.register_forward_pre_hook(lambda *_: calls.append(0))
    data = [(torch.randn(8, 130), torch.randint(0, 2, (8,)))]
    scores = discrimination(net, {"weight": net.weight}, data=data, losses=0)["weight"].sum(0)
    torch.testing.assert_close(scores.sort().values, torch.arange(1, 131) / 130)
    assert len(calls) == 3 + 2 * 44  # order, classes and aims first


def test_the_method_keeps_more_than_chance_does_and_the_model_as_it_was() -> None:
    net = sec.zoo.load("resnet8")
    before = deepcopy(net.state_dict())
    train, _ = sec.zoo.loaders("resnet8", 64)
    data = [batch for batch, _ in zip(train, range(4), strict=False)]
    graph = sec.trace(net, sec.zoo.example_inputs("resnet8"))
    found = {}
    for criterion in ("discrimination", "random"):
        small = sec.plan(graph, keep={"macs": 0.5}, criterion=criterion, data=data).apply()
        sec.recovery.recovery("bn").heal(small, None, data)
        found[criterion] = sec.zoo.evaluate(small, "resnet8")
    assert found["discrimination"] > found["random"] + 0.1
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert not any(p.grad is not None for p in net.parameters())


def test_dcp_selects_refits_and_trains() -> None:
    net = sec.zoo.load("lenet5")
    data = [next(iter(sec.zoo.loaders("lenet5", 64)[0]))] * 2
    result = sec.prune(
        net, sec.zoo.example_inputs("lenet5"), method="dcp", data=data, amount=0.5,
        measure=False, progress=False,
    )  # fmt: skip
    assert result.model.fc1.out_features == 60
    assert [h["recovery"] for h in result.history[0]["recovery"]] == ["least-squares", "fine-tune"]


@pytest.mark.parametrize("name", ["synflow", "grasp"])
def test_other_criteria_of_a_whole_model_score_units_too(name: str) -> None:
    """A unit has the sum over all that is coupled in it."""
    net, data = _network(), _batches()
    graph = sec.trace(net, data[0][0])
    every = {n: p for n, p in net.named_parameters() if p.dim() > 1}
    elements = criteria.find(name).function(net, every, data=data)
    units = elements["0.weight"].sum(1) + elements["2.weight"].sum(0)
    keep = sec.plan(graph, amount=0.5, criterion=name, data=data).keep["0"]
    assert set(keep.nonzero().flatten().tolist()) == set(units.topk(3).indices.tolist())


def test_bad_input() -> None:
    net = _network()
    at = {"2.weight": net[2].weight}
    with pytest.raises(ConfigError, match="lr=0"):
        discrimination(net, at, data=_batches(), lr=0)
    with pytest.raises(DataError, match="needs data"):
        discrimination(net, at, data=None)
    with pytest.raises(DataError, match="one sample"):
        discrimination(net, at, data=[(torch.randn(1, 5), torch.tensor([0]))])
    with pytest.raises(DataError, match="labels"):
        discrimination(net, at, data=[torch.randn(4, 5)])
