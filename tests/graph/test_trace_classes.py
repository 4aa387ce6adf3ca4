"""What must come out of the algebra with no special code: classes of well-known architectures."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from secateur.graph import Graph, UnitClass, trace


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)
    torch.manual_seed(0)


def touching(graph: Graph, tensor: str, axis: int, kind: str | None = None) -> list[UnitClass]:
    """The free classes along one axis of a parameter."""
    return [
        c
        for c in graph.free.values()
        if (kind is None or c.kind == kind)
        and any((m.tensor, m.axis) == (tensor, axis) for m in c.members)
    ]


def places(c: UnitClass) -> set[tuple[str, int]]:
    return {(m.tensor, m.axis) for m in c.members}


def the_only(found: list[UnitClass]) -> UnitClass:
    assert len(found) == 1, [c.name for c in found]
    return found[0]


class TestLlama:
    """8 query and 2 kv heads of 8: kv head (2), query in group (4), v dim (8), rotary pairs (4)."""

    @pytest.fixture(scope="class")
    @classmethod
    def graph(cls) -> Graph:
        transformers = pytest.importorskip("transformers")
        config = transformers.LlamaConfig(
            hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=8,
            num_key_value_heads=2, vocab_size=101,
        )  # fmt: skip
        torch.manual_seed(0)
        return trace(
            transformers.LlamaForCausalLM(config), {"input_ids": torch.randint(0, 101, (2, 7))}
        )

    block = "model.layers.1.self_attn."

    def test_kv_head(self, graph):
        c = the_only(touching(graph, self.block + "k_proj.weight", 0, "head"))
        assert c.size == 2 and c.exact
        assert places(c) == {
            (self.block + "q_proj.weight", 0),
            (self.block + "k_proj.weight", 0),
            (self.block + "v_proj.weight", 0),
            (self.block + "o_proj.weight", 1),
        }

    def test_query_in_group(self, graph):
        c = the_only(touching(graph, self.block + "q_proj.weight", 0, "query"))
        assert c.size == 4 and c.exact
        assert places(c) == {(self.block + "q_proj.weight", 0), (self.block + "o_proj.weight", 1)}

    def test_value_dimension(self, graph):
        c = the_only(touching(graph, self.block + "v_proj.weight", 0, "head_dim"))
        assert c.size == 8 and c.exact
        assert places(c) == {(self.block + "v_proj.weight", 0), (self.block + "o_proj.weight", 1)}

    def test_rotary_dimensions_go_in_pairs_with_their_frequency_in_every_layer(self, graph):
        c = the_only(touching(graph, self.block + "q_proj.weight", 0, "head_dim"))
        assert c.size == 4  # 8 dimensions, rotated two by two
        assert ("model.rotary_emb.inv_freq", 0) in places(c)
        assert {("model.layers.0.self_attn.q_proj.weight", 0)} < places(c)
        pairs = [m.unit for m in c.members if m.tensor == self.block + "k_proj.weight"]
        head = torch.stack(pairs).amax(0)[:8]  # the unit of each row of the first kv head
        assert head.tolist() == [0, 1, 2, 3, 0, 1, 2, 3]

    def test_mlp(self, graph):
        c = the_only(touching(graph, "model.layers.0.mlp.down_proj.weight", 1))
        assert c.size == 96 and c.exact
        assert places(c) == {
            ("model.layers.0.mlp.gate_proj.weight", 0),
            ("model.layers.0.mlp.up_proj.weight", 0),
            ("model.layers.0.mlp.down_proj.weight", 1),
        }

    def test_residual_stream_is_statistical(self, graph):
        c = the_only(touching(graph, "lm_head.weight", 1))
        assert c.size == 64 and not c.exact
        assert ("model.layers.1.input_layernorm.weight", 0) in places(c)
        assert ("model.embed_tokens.weight", 1) in places(c)

    def test_vocabulary_and_logits_stay(self, graph):
        assert touching(graph, "lm_head.weight", 0) == []
        assert touching(graph, "model.embed_tokens.weight", 0) == []


class TestGPT2:
    """Packed q, k, v by split: head, q·k dimension, v dimension, mlp, residual stream."""

    @pytest.fixture(scope="class")
    @classmethod
    def graph(cls) -> Graph:
        transformers = pytest.importorskip("transformers")
        config = transformers.GPT2Config(
            n_embd=48, n_layer=2, n_head=4, vocab_size=101, n_positions=32, bos_token_id=0,
            eos_token_id=0,
        )  # fmt: skip
        return trace(
            transformers.GPT2LMHeadModel(config), {"input_ids": torch.randint(0, 101, (2, 7))}
        )

    packed, out = "transformer.h.0.attn.c_attn.weight", "transformer.h.0.attn.c_proj.weight"

    def test_heads(self, graph):
        c = the_only(touching(graph, self.packed, 1, "head"))
        assert c.size == 4 and c.exact and (self.out, 0) in places(c)
        units = [m.unit for m in c.members if m.tensor == self.packed]
        owner = torch.stack(units).amax(0)  # which head each packed column belongs to
        assert owner.tolist() == torch.arange(4).repeat_interleave(12).repeat(3).tolist()

    def test_query_and_key_share_dimensions_that_values_do_not(self, graph):
        dims = touching(graph, self.packed, 1, "head_dim")
        assert sorted(c.size for c in dims) == [12, 12]
        value = the_only(touching(graph, self.out, 0, "head_dim"))
        (inner,) = [c for c in dims if c.name != value.name]
        columns = torch.stack([m.unit for m in inner.members if m.tensor == self.packed]).amax(0)
        assert (columns[:96] >= 0).all() and (columns[96:] < 0).all()

    def test_each_head_may_choose_its_own_dimensions(self, graph):
        head = the_only(touching(graph, self.packed, 1, "head"))
        for c in touching(graph, self.packed, 1, "head_dim"):
            assert c.over == head.name
            for m in c.members:
                axis, owner = m.over  # which head each position belongs to
                assert axis == m.axis
                assert owner.tolist() == torch.arange(4).repeat_interleave(12).tolist() * (
                    len(owner) // 48
                )

    def test_mlp_and_residual_stream(self, graph):
        mlp = the_only(touching(graph, "transformer.h.1.mlp.c_fc.weight", 1))
        assert mlp.size == 192 and mlp.exact
        width = the_only(touching(graph, "transformer.h.1.mlp.c_fc.weight", 0))
        assert width.size == 48 and not width.exact and width.kind == "width"
        assert {("transformer.wte.weight", 1), ("transformer.wpe.weight", 1)} < places(width)

    def test_tied_weights_are_one_tensor(self, graph):
        assert "lm_head.weight" not in graph.axes
        assert "transformer.wte.weight" in graph.axes


class TestTimmViT:
    """Packed q, k, v by reshape(3, H, D)."""

    @pytest.fixture(scope="class")
    @classmethod
    def graph(cls) -> Graph:
        timm = pytest.importorskip("timm")
        model = timm.create_model(
            "vit_tiny_patch16_224", depth=2, img_size=48, embed_dim=96, num_heads=4, num_classes=7
        )
        return trace(model, torch.randn(2, 3, 48, 48))

    def test_heads_and_their_dimensions(self, graph):
        for block in range(2):
            packed, out = f"blocks.{block}.attn.qkv.weight", f"blocks.{block}.attn.proj.weight"
            head = the_only(touching(graph, out, 1, "head"))
            assert head.size == 4 and head.exact and (packed, 0) in places(head)
            value = the_only(touching(graph, out, 1, "head_dim"))
            assert value.size == 24 and value.exact and (packed, 0) in places(value)
            for c in touching(graph, packed, 0, "head_dim"):
                assert c.size == 24

    def test_mlp_and_residual_stream(self, graph):
        mlp = the_only(touching(graph, "blocks.0.mlp.fc2.weight", 1))
        assert mlp.size == 384 and mlp.exact
        width = the_only(touching(graph, "head.weight", 1))
        assert width.size == 96 and not width.exact and width.kind == "width"
        assert {("cls_token", 2), ("pos_embed", 2), ("patch_embed.proj.weight", 0)} < places(width)

    def test_almost_everything_is_prunable(self, graph):
        assert graph.prunable_share > 0.99
        assert not graph.unknown


def test_densenet_each_growth_segment_is_a_class_of_every_later_layer():
    from torchvision.models.densenet import DenseNet

    net = DenseNet(growth_rate=4, block_config=(3, 2), num_init_features=8, num_classes=5)
    graph = trace(net, torch.randn(2, 3, 33, 33))
    names = [f"features.denseblock1.denselayer{i}" for i in (1, 2, 3)]
    segments = [the_only(touching(graph, f"{n}.conv2.weight", 0)) for n in names]
    stem = the_only(touching(graph, "features.conv0.weight", 0))
    assert stem.size == 8 and [c.size for c in segments] == [4, 4, 4]
    assert len({c.name for c in (stem, *segments)}) == 4
    for k, segment in enumerate(segments):
        readers = {t for t, axis in places(segment) if axis == 1}
        assert readers == {
            *(f"{n}.conv1.weight" for n in names[k + 1 :]),
            "features.transition1.conv.weight",
        }
        assert segment.exact
    member = next(m for m in segments[1].members if m.tensor == "features.transition1.conv.weight")
    assert member.unit.tolist() == [-1] * 12 + [0, 1, 2, 3] + [-1] * 4


class Shuffled(nn.Module):
    """Two branches, concatenated and shuffled; then half goes on, half is processed."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 6, 1), nn.Conv2d(3, 6, 1)
        self.c, self.d = nn.Conv2d(6, 4, 1), nn.Conv2d(10, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.cat([self.a(x), self.b(x)], 1)
        n, c, h, w = y.shape
        y = y.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
        left, right = y.chunk(2, 1)
        return self.d(torch.cat([left, self.c(right)], 1))


def test_channel_shuffle_follows_channels_through_view_transpose_view_and_chunk():
    graph = trace(Shuffled(), torch.randn(2, 3, 5, 5))
    # Position 2 i + k of the shuffled tensor is channel i of branch k: the left half is channels
    # 0, 1, 2 of both branches, so each branch falls into two classes that the other shares.
    first, second = touching(graph, "a.weight", 0)
    assert (first.size, second.size) == (3, 3)
    for c in (first, second):
        assert {("a.weight", 0), ("b.weight", 0)} < places(c) and c.exact
    assert ("d.weight", 1) in places(first) and ("c.weight", 1) in places(second)
    (left,) = [m for m in first.members if m.tensor == "d.weight"]
    assert left.unit.tolist() == [0, 0, 1, 1, 2, 2, -1, -1, -1, -1]


def test_shufflenet_is_prunable_almost_everywhere():
    from torchvision.models import shufflenet_v2_x0_5

    graph = trace(shufflenet_v2_x0_5(), torch.randn(2, 3, 65, 65))
    assert graph.prunable_share > 0.98
    assert not graph.unknown


class OptionA(nn.Module):
    """A CIFAR ResNet block whose shortcut is subsampled and padded with zero channels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.conv1 = nn.Conv2d(8, 16, 3, stride=2, padding=1)
        self.conv2 = nn.Conv2d(16, 16, 3, padding=1)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        y = self.conv2(F.relu(self.conv1(x)))
        y = y + F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 4, 4))
        return self.head(y.mean((2, 3)))


def test_option_a_pads_the_shortcut_with_segments_of_their_own():
    graph = trace(OptionA(), torch.randn(2, 3, 9, 9))
    stem = the_only(touching(graph, "stem.weight", 0))
    assert stem.size == 8 and {("stem.weight", 0), ("conv1.weight", 1)} < places(stem)
    (rows,) = [m for m in stem.members if m.tensor == "conv2.weight"]
    assert rows.axis == 0 and rows.unit.tolist() == [-1] * 4 + list(range(8)) + [-1] * 4
    segments = touching(graph, "conv2.weight", 0)
    assert sorted(c.size for c in segments) == [4, 4, 8]
    assert all(c.exact for c in segments)
    assert the_only(touching(graph, "conv1.weight", 0)).size == 16


class Recurrent(nn.Module):
    def __init__(self, cell: type[nn.RNNBase], **options: object) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 6)
        self.rnn = cell(6, 10, batch_first=True, **options)
        self.head = nn.Linear(10, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.rnn(self.embed(tokens))[0][:, -1])


@pytest.mark.parametrize("cell, gates", [(nn.LSTM, 4), (nn.GRU, 3), (nn.RNN, 1)])
def test_recurrent_units_go_through_all_gates_the_recurrence_and_the_next_layer(cell, gates):
    graph = trace(Recurrent(cell), torch.randint(0, 20, (2, 5)))
    hidden = the_only(touching(graph, "head.weight", 1))
    assert hidden.size == 10 and hidden.exact
    assert places(hidden) == {
        ("rnn.weight_ih_l0", 0),
        ("rnn.weight_hh_l0", 0),
        ("rnn.weight_hh_l0", 1),
        ("rnn.bias_ih_l0", 0),
        ("rnn.bias_hh_l0", 0),
        ("head.weight", 1),
    }
    rows = [m.unit for m in hidden.members if (m.tensor, m.axis) == ("rnn.weight_ih_l0", 0)]
    assert torch.stack(rows).amax(0).tolist() == list(range(10)) * gates
    embedding = the_only(touching(graph, "embed.weight", 1))
    assert embedding.size == 6 and ("rnn.weight_ih_l0", 1) in places(embedding)


def test_a_bidirectional_stack_couples_whatever_it_must():
    """Two layers, two directions: every row and column of every hidden unit is in a free class."""

    class Net(Recurrent):
        def __init__(self) -> None:
            super().__init__(nn.LSTM, num_layers=2, bidirectional=True)
            self.head = nn.Linear(20, 3)

    graph = trace(Net(), torch.randint(0, 20, (2, 5)))
    for name in ("weight_hh_l0", "weight_hh_l0_reverse", "weight_hh_l1", "weight_hh_l1_reverse"):
        for axis in (0, 1):
            covered = torch.zeros(graph.shapes[f"rnn.{name}"][axis], dtype=torch.bool)
            for c in touching(graph, f"rnn.{name}", axis):
                for m in c.members:
                    if (m.tensor, m.axis) == (f"rnn.{name}", axis):
                        covered |= m.unit >= 0
            assert covered.all(), (name, axis)
    both = [m for c in touching(graph, "head.weight", 1) for m in c.members]
    forward_and_back = [m.unit for m in both if m.tensor == "head.weight"]
    assert torch.stack(forward_and_back).amax(0).tolist() == list(range(10)) * 2


@pytest.mark.parametrize("groups", [2, 4, 8])
def test_a_grouped_convolution_keeps_groups_and_their_channels_apart(groups):
    net = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 16, 3, groups=groups), nn.Conv2d(16, 5, 1))
    graph = trace(net, torch.randn(2, 3, 7, 7))
    sizes = sorted(c.size for c in touching(graph, "1.weight", 0))
    assert sizes == sorted([groups, 16 // groups])  # which group, and which output within it
    if groups == 8:  # depthwise with a multiplier: a group is one input channel
        assert the_only(touching(graph, "0.weight", 0)).size == 8
    else:
        assert sorted(c.size for c in touching(graph, "0.weight", 0)) == sorted(
            [groups, 8 // groups]
        )


def test_group_norm_lets_whole_groups_go_exactly_and_channels_within_them_statistically():
    net = nn.Sequential(nn.Conv2d(3, 12, 1), nn.GroupNorm(4, 12), nn.ReLU(), nn.Conv2d(12, 5, 1))
    graph = trace(net, torch.randn(2, 3, 7, 7))
    exact = {c.size: c.exact for c in touching(graph, "0.weight", 0)}
    assert exact == {4: True, 3: False}


def test_a_softmax_over_a_class_makes_it_statistical():
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.a(x).softmax(-1))

    graph = trace(Net(), torch.randn(2, 6))
    c = the_only(touching(graph, "a.weight", 0))
    assert not c.exact and any("softmax" in why for why in c.statistical)
