"""torch_geometric: the four convolutions as its tutorials use them, and its ready-made models."""

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import torch
from benchmarks.coverage.case import Built, Case
from torch import Tensor, nn

NODES, WIDTH, CLASSES = 23, 12, 5


def graph() -> tuple[Tensor, Tensor]:
    """Random node features (N, 12) and undirected edges (2, E)."""
    generator = torch.Generator().manual_seed(0)
    half = torch.randint(0, NODES, (2, 40), generator=generator)
    return torch.randn(NODES, WIDTH, generator=generator), torch.cat([half, half.flip(0)], 1)


class TwoLayers(nn.Module):
    """The tutorial's node classifier: convolution, activation, convolution."""

    def __init__(self, first: nn.Module, second: nn.Module) -> None:
        super().__init__()
        self.first, self.second = first, second

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        return self.second(self.first(x, edge_index).relu(), edge_index).log_softmax(-1)


class GraphClassifier(nn.Module):
    """GIN with jumping connections, sum pooling over the nodes of each graph, and an MLP."""

    def __init__(self) -> None:
        from torch_geometric.nn import GINConv

        super().__init__()
        widths = [WIDTH, 24, 24]
        self.layers = nn.ModuleList(
            GINConv(
                nn.Sequential(
                    nn.Linear(a, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, b), nn.ReLU()
                ),
                train_eps=True,
            )
            for a, b in pairwise(widths)
        )
        self.head = nn.Sequential(nn.Linear(48, 24), nn.ReLU(), nn.Linear(24, CLASSES))

    def forward(self, x: Tensor, edge_index: Tensor, batch: Tensor) -> Tensor:
        from torch_geometric.nn import global_add_pool

        pooled = []
        for layer in self.layers:
            x = layer(x, edge_index)
            pooled.append(global_add_pool(x, batch))
        return self.head(torch.cat(pooled, -1))


def cases() -> Iterator[Case]:
    """Yield tutorial networks, ready-made models and a graph classifier."""

    def two(name: str, first: dict[str, Any], second: dict[str, Any]) -> Built:
        from torch_geometric import nn as gnn

        layer = getattr(gnn, name)
        wide = 24 * first.get("heads", 1)
        return (
            TwoLayers(layer(WIDTH, 24, **first), layer(wide, CLASSES, **second)).eval(),
            graph(),
            {},
        )

    tutorials = {
        "gcn": ("GCNConv", {}, {}),
        "gat": ("GATConv", {"heads": 4}, {"heads": 1, "concat": False}),
        "gatv2": ("GATv2Conv", {"heads": 4}, {"heads": 2, "concat": False}),
        "sage_mean": ("SAGEConv", {}, {}),
        "sage_max": ("SAGEConv", {"aggr": "max"}, {"aggr": "max"}),
        "transformer_conv": ("TransformerConv", {"heads": 3}, {}),
        "chebyshev": ("ChebConv", {"K": 3}, {"K": 2}),
    }
    for name, arguments in tutorials.items():
        yield Case("geometric", name, lambda arguments=arguments: two(*arguments))

    def ready(name: str, **options: Any) -> Built:
        from torch_geometric.nn import models

        network = getattr(models, name)(WIDTH, 24, num_layers=3, out_channels=CLASSES, **options)
        return network.eval(), graph(), {}

    models = {
        "model_gcn": ("GCN", {"norm": "batch_norm"}),
        "model_gat": ("GAT", {"heads": 4}),
        "model_gat_v2_jk": ("GAT", {"heads": 4, "v2": True, "jk": "cat"}),
        "model_sage": ("GraphSAGE", {"norm": "layer_norm"}),
        "model_gin": ("GIN", {"jk": "last"}),
        "model_pna_like_edgecnn": ("EdgeCNN", {}),
    }
    for name, (network, options) in models.items():
        yield Case("geometric", name, lambda n=network, o=options: ready(n, **o))

    membership = torch.arange(NODES) // 8
    yield Case(
        "geometric",
        "gin_graph_classifier",
        lambda: (GraphClassifier().eval(), (*graph(), membership), {}),
    )
