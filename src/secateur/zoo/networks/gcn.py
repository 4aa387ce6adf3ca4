"""A two-layer graph convolutional network (Kipf and Welling, arXiv:1609.02907)."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from secateur.zoo.recipe import Recipe

RECIPE = Recipe(data="wordnet", epochs=100, lr=0.01, optimizer="adamw", weight_decay=0.05)


class GraphConv(nn.Module):
    r"""$X' = D^{-1/2} (A + I) D^{-1/2} X W + b$."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.lin = nn.Linear(in_channels, out_channels, bias=False)
        self.bias = nn.Parameter(torch.zeros(out_channels))

    def forward(self, x: Tensor, edge_index: Tensor, edge_weight: Tensor | None = None) -> Tensor:
        """Map `(nodes, in_channels)` to `(nodes, out_channels)`; `edge_index` is `(2, edges)`."""
        nodes = torch.arange(x.size(0), device=x.device)
        source = torch.cat([edge_index[0], nodes])
        target = torch.cat([edge_index[1], nodes])
        weight = torch.ones_like(target, dtype=x.dtype)
        if edge_weight is not None:  # a node's loop to itself counts whole
            weight = torch.cat([edge_weight, weight[edge_weight.size(0) :]])
        degree = torch.zeros(x.size(0), device=x.device, dtype=x.dtype)
        degree = degree.index_add(0, target, weight)
        norm = (degree[source] * degree[target]).rsqrt()
        if edge_weight is not None:
            norm = norm * weight
        x = self.lin(x)
        return torch.zeros_like(x).index_add(0, target, x[source] * norm[:, None]) + self.bias


class GCN(nn.Module):
    """Two graph convolutions with dropout before each."""

    def __init__(self, in_channels: int = 1000, hidden: int = 64, num_classes: int = 7) -> None:
        super().__init__()
        self.conv1 = GraphConv(in_channels, hidden)
        self.conv2 = GraphConv(hidden, num_classes)
        self.dropout = 0.5

    def forward(self, x: Tensor, edge_index: Tensor, edge_weight: Tensor | None = None) -> Tensor:
        """Map features `(nodes, in_channels)` to logits `(nodes, num_classes)`."""
        x = F.dropout(x, self.dropout, self.training)
        x = self.conv1(x, edge_index, edge_weight).relu()
        x = F.dropout(x, self.dropout, self.training)
        return self.conv2(x, edge_index, edge_weight)


def build() -> nn.Module:
    """Make the untrained network."""
    return GCN()
