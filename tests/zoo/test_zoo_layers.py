"""The hand-written layers against slow, obvious versions of their formulas."""

import math

import torch

from secateur.zoo.networks.dgcnn import EdgeConv
from secateur.zoo.networks.gat import GraphAttention
from secateur.zoo.networks.gcn import GraphConv
from secateur.zoo.networks.lstm import TextLSTM
from secateur.zoo.networks.vit import Attention

EDGES = torch.tensor([[0, 1, 1, 2, 3, 0], [1, 0, 2, 1, 0, 3]])


def test_graph_convolution_is_the_matrix_formula():
    torch.manual_seed(0)
    layer, x = GraphConv(3, 5), torch.randn(5, 3)
    adjacency = torch.eye(5)
    adjacency[EDGES[1], EDGES[0]] = 1
    scale = adjacency.sum(1).pow(-0.5).diag()
    expected = scale @ adjacency @ scale @ x @ layer.lin.weight.T + layer.bias
    torch.testing.assert_close(layer(x, EDGES), expected)


def test_graph_attention_is_a_softmax_over_each_node_s_neighbours():
    torch.manual_seed(0)
    layer, x = GraphAttention(3, 4, heads=2, concat=True), torch.randn(5, 3)
    hidden = layer.lin(x).reshape(5, 2, 4)
    expected = torch.zeros(5, 2, 4)
    for node in range(5):
        sources = [node, *(int(a) for a, b in EDGES.T if b == node)]
        for head in range(2):
            scores = []
            for source in sources:
                score = hidden[source, head] @ layer.att_src[0, head]
                score = score + hidden[node, head] @ layer.att_dst[0, head]
                scores.append(score.item() if score > 0 else 0.2 * score.item())
            total = sum(math.exp(s) for s in scores)
            for source, score in zip(sources, scores, strict=True):
                expected[node, head] += math.exp(score) / total * hidden[source, head]
    torch.testing.assert_close(layer(x, EDGES), expected.flatten(1))


def test_graph_attention_can_average_its_heads():
    torch.manual_seed(0)
    joined = GraphAttention(3, 4, heads=2, concat=True)
    averaged = GraphAttention(3, 4, heads=2, concat=False)
    state = {k: v for k, v in joined.state_dict().items() if k != "bias"}
    averaged.load_state_dict(state, strict=False)
    x = torch.randn(5, 3)
    expected = joined(x, EDGES).reshape(5, 2, 4).mean(1)
    torch.testing.assert_close(averaged(x, EDGES), expected)


def test_edge_convolution_takes_the_maximum_over_the_nearest_points():
    torch.manual_seed(0)
    layer, x = EdgeConv(3, 6, k=4).eval(), torch.randn(2, 3, 9)
    expected = torch.empty(2, 6, 9)
    for b in range(2):
        for i in range(9):
            far = [float((x[b, :, i] - x[b, :, j]).norm()) for j in range(9)]
            near = sorted(range(9), key=far.__getitem__)[:4]
            pairs = [torch.cat([x[b, :, j] - x[b, :, i], x[b, :, i]]) for j in near]
            values = layer.conv(torch.stack(pairs, 1)[None, :, :, None])
            expected[b, :, i] = values[0, :, :, 0].amax(1)
    torch.testing.assert_close(layer(x), expected)


def test_attention_is_the_same_as_torch_s():
    torch.manual_seed(0)
    layer, x = Attention(12, 3), torch.randn(2, 5, 12)
    reference = torch.nn.MultiheadAttention(12, 3, batch_first=True)
    reference.in_proj_weight.data, reference.in_proj_bias.data = layer.qkv.weight, layer.qkv.bias
    reference.out_proj.load_state_dict(layer.proj.state_dict())
    torch.testing.assert_close(layer(x), reference(x, x, x)[0])


def test_padding_does_not_count_in_the_mean_over_words():
    model = TextLSTM(vocabulary=20, embedding_dim=4, hidden_size=3).eval()
    tokens = torch.tensor([[5, 6, 7, 0, 0]])
    hidden, _ = model.lstm(model.embedding(tokens))
    torch.testing.assert_close(model(tokens), model.fc(hidden[:, :3].mean(1)))
    assert model(torch.zeros(1, 5, dtype=torch.int64)).isfinite().all()
