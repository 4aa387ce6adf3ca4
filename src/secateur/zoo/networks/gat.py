"""A two-layer graph attention network (Velickovic et al., arXiv:1710.10903)."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from secateur.zoo.recipe import Recipe

RECIPE = Recipe(data="wordnet", epochs=100, lr=0.01, optimizer="adamw", weight_decay=0.05)


class GraphAttention(nn.Module):
    """Each node takes the mean of its neighbours, weighted by several heads of attention."""

    def __init__(self, in_channels: int, out_channels: int, heads: int, concat: bool) -> None:
        super().__init__()
        self.heads = heads
        self.out_channels = out_channels
        self.concat = concat
        self.lin = nn.Linear(in_channels, heads * out_channels, bias=False)
        self.att_src = nn.Parameter(torch.empty(1, heads, out_channels))
        self.att_dst = nn.Parameter(torch.empty(1, heads, out_channels))
        self.bias = nn.Parameter(torch.zeros(heads * out_channels if concat else out_channels))
        for weight in (self.lin.weight, self.att_src, self.att_dst):
            nn.init.xavier_uniform_(weight)

    def forward(self, x: Tensor, edge_index: Tensor, edge_weight: Tensor | None = None) -> Tensor:
        """Map `(nodes, in_channels)` to `(nodes, heads * out_channels)`, or to the heads' mean."""
        nodes = torch.arange(x.size(0), device=x.device)
        source = torch.cat([edge_index[0], nodes])
        target = torch.cat([edge_index[1], nodes])
        x = self.lin(x).view(-1, self.heads, self.out_channels)
        from_source = (x * self.att_src).sum(-1)
        from_target = (x * self.att_dst).sum(-1)
        alpha = F.leaky_relu(from_source[source] + from_target[target], 0.2)
        alpha = (alpha - alpha.max()).exp()
        if edge_weight is not None:  # a node's loop to itself counts whole
            loops = torch.ones_like(nodes, dtype=x.dtype)
            alpha = alpha * torch.cat([edge_weight, loops])[:, None]
        total = alpha.new_zeros(x.size(0), self.heads).index_add(0, target, alpha)
        alpha = alpha / total[target]
        out = torch.zeros_like(x).index_add(0, target, x[source] * alpha.unsqueeze(-1))
        out = out.flatten(1) if self.concat else out.mean(1)
        return out + self.bias


class GAT(nn.Module):
    """Two attention layers with dropout before each."""

    def __init__(self, in_channels: int = 1000, hidden: int = 16, num_classes: int = 7) -> None:
        super().__init__()
        self.conv1 = GraphAttention(in_channels, hidden, heads=4, concat=True)
        self.conv2 = GraphAttention(4 * hidden, num_classes, heads=1, concat=False)
        self.dropout = 0.5

    def forward(self, x: Tensor, edge_index: Tensor, edge_weight: Tensor | None = None) -> Tensor:
        """Map features `(nodes, in_channels)` to logits `(nodes, num_classes)`."""
        x = F.dropout(x, self.dropout, self.training)
        x = F.elu(self.conv1(x, edge_index, edge_weight))
        x = F.dropout(x, self.dropout, self.training)
        return self.conv2(x, edge_index, edge_weight)


def build() -> nn.Module:
    """Make the untrained network."""
    return GAT()
