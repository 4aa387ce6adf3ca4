"""Graph tickets: exact counts, both directions of an edge, and weighting equal to removal."""

import copy

import pytest
import torch
from torch import nn

from secateur import zoo
from secateur.engine.masks import MaskSet
from secateur.errors import ConfigError, DataError
from secateur.lottery import graph_tickets
from secateur.lottery.graph import _Soft, _with_lasso
from secateur.recovery import FineTune
from secateur.zoo.networks.gat import GAT
from secateur.zoo.networks.gcn import GCN


def graph():
    generator = torch.Generator().manual_seed(0)
    label = torch.randint(0, 3, (30,), generator=generator)
    pairs = torch.randint(0, 30, (2, 120), generator=generator)
    pairs = torch.unique(pairs[:, pairs[0] < pairs[1]], dim=1)
    x = torch.eye(3)[label] + 0.5 * torch.randn(30, 3, generator=generator)
    return x, torch.cat([pairs, pairs.flip(0)], 1), label


@pytest.mark.parametrize("kind", [GCN, GAT])
def test_a_weight_of_zero_is_a_removed_edge_and_of_one_an_edge(kind) -> None:
    x, index, _ = graph()
    torch.manual_seed(0)
    net = kind(3, 8, 3).eval()
    keep = torch.rand(index.shape[1]) > 0.4
    torch.testing.assert_close(
        net(x, index, edge_weight=keep.float()), net(x, index[:, keep]), atol=1e-6, rtol=1e-5
    )
    torch.testing.assert_close(net(x, index, edge_weight=torch.ones(len(keep))), net(x, index))


@pytest.mark.parametrize("kind", [GCN, GAT])
def test_rounds_keep_exact_counts_nested_and_symmetric(kind) -> None:
    x, index, label = graph()
    torch.manual_seed(1)
    net = kind(3, 8, 3)
    before = {n: t.clone() for n, t in net.state_dict().items()}
    seen = []

    def accuracy(model, edges) -> float:
        seen.append(edges.shape[1])
        return float((model(x, edges).argmax(1) == label).float().mean())

    how = FineTune(epochs=15, lr=0.05, optimizer="adamw", schedule="constant", progress=False)
    found = graph_tickets(
        net, how, amount=0.75, edges=0.5, steps=2, data=(x, index, label), evaluate=accuracy
    )
    pairs = index.shape[1] // 2
    total = found[0].masks.total
    for r, ticket in enumerate(found, 1):
        assert ticket.masks.kept == round(total * 0.25 ** (r / 2))
        assert int(ticket.edges.sum()) == 2 * round(pairs * 0.5 ** (r / 2)) == seen[r - 1]
        kept = {tuple(e) for e in index[:, ticket.edges].T.tolist()}
        assert all((b, a) in kept for a, b in kept)
        for n, m in ticket.masks.items():
            assert not bool(ticket.weights[n][~m].any())
    assert found[1].masks <= found[0].masks
    assert not bool((found[1].edges & ~found[0].edges).any())
    assert found[0].score > 0.6
    assert all(torch.equal(t, before[n]) for n, t in net.state_dict().items())


def test_edges_that_mislead_go_first() -> None:
    """A third of the edges join two classes; of the edges that are removed most are such."""
    generator = torch.Generator().manual_seed(0)
    label = torch.randint(0, 3, (60,), generator=generator)
    pairs = torch.randint(0, 60, (2, 500), generator=generator)
    pairs = torch.unique(pairs[:, pairs[0] < pairs[1]], dim=1)
    alike = label[pairs[0]] == label[pairs[1]]
    pairs = pairs[:, alike | (torch.rand(pairs.shape[1], generator=generator) < 0.2)]
    index = torch.cat([pairs, pairs.flip(0)], 1)
    x = torch.eye(3)[label] + torch.randn(60, 3, generator=generator)
    torch.manual_seed(0)
    net = GCN(3, 16, 3)
    net.dropout = 0.0
    how = FineTune(epochs=40, lr=0.02, optimizer="adamw", schedule="constant", progress=False)
    (ticket,) = graph_tickets(net, how, amount=0.2, edges=0.3, steps=1, data=(x, index, label))
    between = (label[index[0]] != label[index[1]]).float()
    assert between.mean() < 0.4
    assert between[~ticket.edges].mean() > 0.7


def test_a_network_without_edge_weights_is_refused() -> None:
    x, index, label = graph()
    how = FineTune(progress=False)
    with pytest.raises(ConfigError, match="edge_weight"):
        graph_tickets(nn.Linear(3, 3), how, amount=0.5, edges=0.5, data=(x, index, label))
    with pytest.raises(DataError, match="edge index"):
        graph_tickets(GCN(3, 4, 3), how, amount=0.5, edges=0.5, data=(x, x, label))
    assert zoo.evaluate(zoo.load("gcn"), "gcn") > 0.9


def test_the_loss_is_the_papers_with_masks_that_are_no_less_than_nothing() -> None:
    x, index, label = graph()
    torch.manual_seed(0)
    net = GCN(3, 8, 3).eval()
    masks = MaskSet(
        {n: torch.rand(p.shape) < 0.7 for n, p in net.named_parameters() if p.dim() > 1}
    )
    pair = torch.unique(index.sort(0).values, dim=1, return_inverse=True)[1]
    kept = torch.rand(int(pair.max()) + 1) < 0.8
    soft = _Soft(net, masks, kept, pair).eval()
    with torch.no_grad():
        soft.edges.copy_(torch.randn(len(kept)))
        for factor in soft.factors:
            factor.copy_(torch.randn(factor.shape))
    twin, edges = copy.deepcopy(net), soft.edges.detach().clamp(min=0) * kept
    factors = dict(zip(masks, (f.detach() for f in soft.factors), strict=True))
    with torch.no_grad():
        for n, factor in factors.items():
            twin.get_parameter(n).mul_(factor * masks[n])
    output = twin(x, index, edge_weight=edges[pair])
    torch.testing.assert_close(soft(x, index), output)
    of_weights = sum(float((factors[n] * masks[n]).abs().sum()) for n in masks)
    expected = nn.functional.cross_entropy(output, label) + 2 * edges.sum() + 3 * of_weights
    torch.testing.assert_close(_with_lasso(soft, (2.0, 3.0), None, soft(x, index), label), expected)
