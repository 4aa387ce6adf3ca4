"""Attention, recurrence, experts and graphs: what happens to sequences of vectors."""

import math

import torch
import torch.nn.functional as F
from tests.rules.op_net import Net, case, tokens, words
from torch import nn


def _mlp(function, width, after):
    """Linear layer to ``width``, a function, linear layer from ``after``, mean, head."""

    def forward(net, x):
        return net.head(net.down(function(net.up(x))).relu().mean(1))

    return Net(forward, up=nn.Linear(14, width), down=nn.Linear(after, 20), head=nn.Linear(20, 5))


@case(tokens())
def gated_linear_unit():
    """SwiGLU from one packed projection."""

    def gate(x):
        value, gate = x.chunk(2, -1)
        return value * F.silu(gate)

    return _mlp(gate, 48, 24)


@case(tokens())
def torch_glu():
    """The same by F.glu."""
    return _mlp(lambda x: F.glu(x, -1), 48, 24)


@case(tokens())
def halves_by_slicing():
    """The same by two slices with a literal border."""
    return _mlp(lambda x: x[..., :24] * x[..., 24:].tanh(), 48, 24)


@case(tokens())
def interleaved_gate():
    """Even positions are values, odd ones gates (gpt-oss)."""
    return _mlp(lambda x: x[..., ::2] * x[..., 1::2].sigmoid(), 48, 24)


@case(tokens())
def uneven_split():
    """A literal split into 12 and 28 of unequal fates."""

    def forward(net, x):
        a, b = net.up(x).split([12, 28], -1)
        return net.head((net.left(a.relu()) + net.right(b.relu())).relu().mean(1))

    return Net(
        forward,
        up=nn.Linear(14, 40),
        left=nn.Linear(12, 20),
        right=nn.Linear(28, 20),
        head=nn.Linear(20, 5),
    )


@case(tokens())
def joined_features():
    """Concatenation along the last axis of three."""

    def forward(net, x):
        x = torch.cat([net.a(x).relu(), net.b(x).relu()], -1)
        return net.head(net.c(x).relu().mean(1))

    return Net(
        forward, a=nn.Linear(14, 24), b=nn.Linear(14, 8), c=nn.Linear(32, 20), head=nn.Linear(20, 5)
    )


@case(tokens())
def joined_tokens():
    """Concatenation along the tokens: features of both are the same units."""

    def forward(net, x):
        x = torch.cat([net.token.expand(2, -1, -1), net.a(x).relu(), net.b(x).relu()], 1)
        return net.head(net.c(x).relu().mean(1))

    return Net(
        forward,
        token=nn.Parameter(torch.randn(1, 1, 24)),
        a=nn.Linear(14, 24),
        b=nn.Linear(14, 24),
        c=nn.Linear(24, 20),
        head=nn.Linear(20, 5),
    )


def _attention(forward, q, k, v, out, **more):
    return Net(
        forward,
        embed=nn.Linear(14, 24),
        q=nn.Linear(24, q),
        k=nn.Linear(24, k),
        v=nn.Linear(24, v),
        out=nn.Linear(out, 24),
        head=nn.Linear(24, 5),
        **more,
    )


def _heads(x, heads):
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


@case(tokens())
def attention_by_hand():
    """Separate projections; scores scaled by a literal; the head count is a literal in the code."""

    def forward(net, x):
        x = net.embed(x).relu()
        q, k, v = _heads(net.q(x), 4), _heads(net.k(x), 4), _heads(net.v(x), 4)
        mixed = (q @ k.transpose(-2, -1) * 0.3).softmax(-1) @ v
        return net.head(net.out(mixed.transpose(1, 2).flatten(2)).mean(1))

    return _attention(forward, 32, 32, 32, 32)


@case(tokens())
def attention_scaled_by_its_width():
    """The forward divides by the root of the width it sees: it must go on seeing the old one."""

    def forward(net, x):
        x = net.embed(x).relu()
        q, k, v = _heads(net.q(x), 4), _heads(net.k(x), 4), _heads(net.v(x), 4)
        mixed = (q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])).softmax(-1) @ v
        return net.head(net.out(mixed.transpose(1, 2).flatten(2)).mean(1))

    return _attention(forward, 32, 32, 32, 32)


@case(tokens())
def fused_attention_scales_implicitly():
    """scaled_dot_product_attention divides by the root of the head width on its own."""

    def forward(net, x):
        x = net.embed(x).relu()
        q, k, v = (_heads(p(x), 4) for p in (net.q, net.k, net.v))
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return net.head(net.out(mixed.transpose(1, 2).flatten(2)).mean(1))

    return _attention(forward, 32, 32, 40, 40)


@case(tokens())
def packed_projection():
    """q, k and v of every head in one matrix, unbound after a permute (timm)."""

    def forward(net, x):
        x = net.embed(x).relu()
        q, k, v = net.qkv(x).reshape(2, 9, 3, 4, -1).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = (q @ k.transpose(-2, -1) * 0.3).softmax(-1) @ v
        return net.head(net.out(mixed.transpose(1, 2).flatten(2)).mean(1))

    return Net(
        forward,
        embed=nn.Linear(14, 24),
        qkv=nn.Linear(24, 96),
        out=nn.Linear(32, 24),
        head=nn.Linear(24, 5),
    )


@case(tokens())
def packed_projection_reads_its_width_off_the_input():
    """reshape(B, N, 3, heads, C // heads) with C of the input, which is not pruned alike."""

    def forward(net, x):
        x = net.embed(x).relu()
        b, n, c = x.shape
        q, k, v = net.qkv(x).reshape(b, n, 3, 4, c // 4).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v)
        return net.head(net.out(mixed.transpose(1, 2).reshape(b, n, c)).mean(1))

    return Net(
        forward,
        embed=nn.Linear(14, 24),
        qkv=nn.Linear(24, 72),
        out=nn.Linear(24, 24),
        head=nn.Linear(24, 5),
    )


@case(tokens())
def packed_per_head():
    """q, k, v lie side by side within every head (GPT-NeoX, BLOOM)."""

    def forward(net, x):
        x = net.embed(x).relu()
        q, k, v = net.qkv(x).view(2, 9, 4, -1).transpose(1, 2).chunk(3, -1)
        mixed = (q @ k.transpose(-2, -1) * 0.3).softmax(-1) @ v
        return net.head(net.out(mixed.transpose(1, 2).flatten(2)).mean(1))

    return Net(
        forward,
        embed=nn.Linear(14, 24),
        qkv=nn.Linear(24, 96),
        out=nn.Linear(32, 24),
        head=nn.Linear(24, 5),
    )


@case(tokens())
def grouped_queries():
    """Three query heads share a key-value head, expanded as in Llama."""

    def forward(net, x):
        x = net.embed(x).relu()
        q, k, v = _heads(net.q(x), 6), _heads(net.k(x), 2), _heads(net.v(x), 2)
        k, v = (
            t[:, :, None].expand(-1, -1, 3, -1, -1).reshape(2, 6, 9, t.shape[-1]) for t in (k, v)
        )
        mixed = F.scaled_dot_product_attention(q, k, v, scale=0.4)
        return net.head(net.out(mixed.transpose(1, 2).flatten(2)).mean(1))

    return _attention(forward, 48, 16, 16, 48)


@case(tokens())
def multi_query():
    """All heads share one key and value, by broadcasting a size-1 axis."""

    def forward(net, x):
        x = net.embed(x).relu()
        q, k, v = _heads(net.q(x), 4), net.k(x)[:, None], net.v(x)[:, None]
        mixed = (q @ k.transpose(-2, -1) * 0.3).softmax(-1) @ v
        return net.head(net.out(mixed.transpose(1, 2).flatten(2)).mean(1))

    return _attention(forward, 32, 8, 8, 32)


@case(tokens())
def rotary():
    """Rotation couples dimension i with i + 4; the angles are a buffer."""

    def rotate(x, cos, sin):
        left, right = x.chunk(2, -1)
        return x * cos + torch.cat([-right, left], -1) * sin

    def forward(net, x):
        x = net.embed(x).relu()
        q, k, v = (_heads(p(x), 4) for p in (net.q, net.k, net.v))
        angles = torch.arange(9.0)[:, None] * net.frequencies
        angles = torch.cat([angles, angles], -1)
        q, k = (rotate(t, angles.cos(), angles.sin()) for t in (q, k))
        mixed = (q @ k.transpose(-2, -1) * 0.3).softmax(-1) @ v
        return net.head(net.out(mixed.transpose(1, 2).flatten(2)).mean(1))

    net = _attention(forward, 32, 32, 32, 32)
    net.register_buffer("frequencies", 10.0 ** -torch.arange(0, 4.0))
    return net


@case(tokens())
def rotary_in_pairs():
    """Rotation couples dimension 2i with 2i + 1 (GPT-J), by strided slices and a stack."""

    def rotate(x, cos, sin):
        even, odd = x[..., ::2], x[..., 1::2]
        return torch.stack([even * cos - odd * sin, even * sin + odd * cos], -1).flatten(-2)

    def forward(net, x):
        x = net.embed(x).relu()
        q, k, v = (_heads(p(x), 4) for p in (net.q, net.k, net.v))
        angles = torch.arange(9.0)[:, None] * net.frequencies
        q, k = (rotate(t, angles.cos(), angles.sin()) for t in (q, k))
        mixed = (q @ k.transpose(-2, -1) * 0.3).softmax(-1) @ v
        return net.head(net.out(mixed.transpose(1, 2).flatten(2)).mean(1))

    net = _attention(forward, 32, 32, 32, 32)
    net.register_buffer("frequencies", 10.0 ** -torch.arange(0, 4.0))
    return net


@case(tokens())
def normalised_queries():
    """A norm over the head width, with a weight shared by all heads (Qwen3)."""

    def forward(net, x):
        x = net.embed(x).relu()
        q, k, v = (_heads(p(x), 4) for p in (net.q, net.k, net.v))
        mixed = F.scaled_dot_product_attention(net.q_norm(q), net.k_norm(k), v)
        return net.head(net.out(mixed.transpose(1, 2).flatten(2)).mean(1))

    return _attention(forward, 32, 32, 32, 32, q_norm=nn.RMSNorm(8), k_norm=nn.LayerNorm(8))


@case(tokens())
def relative_position_bias():
    """A table of one bias a head, gathered by a constant index: heads go from the table too."""

    def forward(net, x):
        x = net.embed(x).relu()
        q, k, v = (_heads(p(x), 4) for p in (net.q, net.k, net.v))
        bias = net.table[net.index.view(-1)].view(9, 9, -1).permute(2, 0, 1)
        mixed = (q @ k.transpose(-2, -1) * 0.3 + bias[None]).softmax(-1) @ v
        return net.head(net.out(mixed.transpose(1, 2).flatten(2)).mean(1))

    net = _attention(forward, 32, 32, 32, 32, table=nn.Parameter(torch.randn(17, 4)))
    places = torch.arange(9)
    net.register_buffer("index", places[:, None] - places[None] + 8)
    return net


@case(tokens())
def multihead_attention():
    """torch's module divides by the root of embed_dim / num_heads, whatever the weights are."""

    def forward(net, x):
        x = net.embed(x).relu()
        return net.head(net.attention(x, x, x)[0].mean(1))

    return Net(
        forward,
        embed=nn.Linear(14, 24),
        attention=nn.MultiheadAttention(24, 4, batch_first=True),
        head=nn.Linear(24, 5),
    )


@case(tokens())
def multihead_cross_attention():
    """Keys and values of other widths: three projection matrices instead of a packed one."""

    def forward(net, x):
        memory = net.memory(x).relu()
        return net.head(net.attention(net.embed(x).relu(), memory, memory)[0].mean(1))

    return Net(
        forward,
        embed=nn.Linear(14, 24),
        memory=nn.Linear(14, 20),
        attention=nn.MultiheadAttention(24, 4, kdim=20, vdim=20, batch_first=True),
        head=nn.Linear(24, 5),
    )


@case(tokens())
def transformer_encoder():
    """torch's encoder layers, whose fused path must not be taken while tracing."""
    layer = nn.TransformerEncoderLayer(24, 4, 40, batch_first=True)
    return Net(
        lambda net, x: net.head(net.encoder(net.embed(x).relu()).mean(1)),
        embed=nn.Linear(14, 24),
        encoder=nn.TransformerEncoder(layer, 2, enable_nested_tensor=False),
        head=nn.Linear(24, 5),
    )


@case(tokens(), tokens(14, 6))
def transformer_both():
    """torch's whole transformer: encoder, decoder, cross-attention."""
    return Net(
        lambda net, x, y: net.head(net.transformer(net.embed(x), net.embed(y)).mean(1)),
        embed=nn.Linear(14, 24),
        transformer=nn.Transformer(24, 4, 1, 1, 40, batch_first=True),
        head=nn.Linear(24, 5),
    )


@case(tokens())
def cosine_attention():
    """Queries and keys of length one, and a learned temperature a head (Swin v2)."""

    def forward(net, x):
        x = net.embed(x).relu()
        q, k, v = (_heads(p(x), 4) for p in (net.q, net.k, net.v))
        scores = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1)
        mixed = (scores * net.temperature.exp()).softmax(-1) @ v
        return net.head(net.out(mixed.transpose(1, 2).flatten(2)).mean(1))

    return _attention(forward, 32, 32, 32, 32, temperature=nn.Parameter(torch.rand(4, 1, 1)))


@case(tokens())
def linear_attention():
    """No softmax over tokens: k and v meet first."""

    def forward(net, x):
        x = net.embed(x).relu()
        q, k, v = (_heads(p(x), 4) for p in (net.q, net.k, net.v))
        q, k = F.elu(q) + 1, F.elu(k) + 1
        mixed = torch.einsum("bhnd,bhde->bhne", q, torch.einsum("bhnd,bhne->bhde", k, v))
        return net.head(net.out(mixed.transpose(1, 2).flatten(2)).mean(1))

    return _attention(forward, 32, 32, 40, 40)


def _recurrent(kind, states=1, **options):
    def forward(net, x):
        return net.head(net.mix(net.cell(net.embed(x).relu())[0][:, -1]).relu())

    return Net(
        forward,
        embed=nn.Linear(14, 24),
        cell=kind(24, 20, batch_first=True, **options),
        mix=nn.Linear(20 * states, 16),
        head=nn.Linear(16, 5),
    )


@case(tokens())
def lstm():
    """Four gates of the same hidden units, and the layer before it."""
    return _recurrent(nn.LSTM)


@case(tokens())
def lstm_two_layers_both_ways():
    """The next layer reads both directions."""
    return _recurrent(nn.LSTM, 2, num_layers=2, bidirectional=True)


@case(tokens())
def gru():
    """Three gates."""
    return _recurrent(nn.GRU)


@case(tokens())
def rnn_with_relu():
    """No gates at all."""
    return _recurrent(nn.RNN, nonlinearity="relu")


@case(words())
def embedding_bag_of_words():
    """The vocabulary stays, the width goes."""
    return Net(
        lambda net, x: net.head(net.mix(net.bag(x)).relu()),
        bag=nn.EmbeddingBag(50, 24, mode="sum"),
        mix=nn.Linear(24, 16),
        head=nn.Linear(16, 5),
    )


@case(words())
def positions_added():
    """A table of positions sliced to the length at hand, and one looked up."""

    def forward(net, x):
        places = torch.arange(x.shape[1])
        h = net.embed(x) + net.table[:, : x.shape[1]] + net.places(places)
        return net.head(net.mix(h).relu().mean(1))

    return Net(
        forward,
        embed=nn.Embedding(50, 24),
        table=nn.Parameter(torch.randn(1, 30, 24)),
        places=nn.Embedding(30, 24),
        mix=nn.Linear(24, 16),
        head=nn.Linear(16, 5),
    )


@case(tokens())
def soft_experts():
    """Experts weighted by a gate: hidden units of each are its own."""

    def forward(net, x):
        x = net.embed(x).relu()
        weights = net.gate(x).softmax(-1)
        mixed = weights[..., :1] * net.a(x).relu() + weights[..., 1:] * net.b(x).relu()
        return net.head(net.out(mixed).mean(1))

    return Net(
        forward,
        embed=nn.Linear(14, 24),
        gate=nn.Linear(24, 2),
        a=nn.Linear(24, 40),
        b=nn.Linear(24, 40),
        out=nn.Linear(40, 20),
        head=nn.Linear(20, 5),
    )


@case(tokens())
def stacked_experts():
    """Weights of all experts in one tensor (E, in, out), applied by bmm."""

    def forward(net, x):
        x = net.embed(x).relu().flatten(0, 1)
        gate = net.gate(x).softmax(-1)
        hidden = torch.einsum("tc,ech->eth", x, net.up).relu()
        out = torch.bmm(hidden, net.down)
        return net.head((out * gate.t()[..., None]).sum(0).view(2, 9, -1).mean(1))

    return Net(
        forward,
        embed=nn.Linear(14, 24),
        gate=nn.Linear(24, 3),
        up=nn.Parameter(torch.randn(3, 24, 16) * 0.2),
        down=nn.Parameter(torch.randn(3, 16, 20) * 0.2),
        head=nn.Linear(20, 5),
    )


@case(tokens())
def chosen_experts():
    """Only the best expert of a token runs: the control flow depends on data."""

    def forward(net, x):
        x = net.embed(x).relu().flatten(0, 1)
        chosen = net.gate(x).argmax(-1)
        out = torch.zeros_like(x)
        for i, expert in enumerate(net.experts):
            rows = (chosen == i).nonzero().flatten()
            out = out.index_add(0, rows, expert(x[rows]))
        return net.head(out.view(2, 9, -1).mean(1))

    return Net(
        forward,
        embed=nn.Linear(14, 24),
        gate=nn.Linear(24, 3),
        experts=nn.ModuleList(
            nn.Sequential(nn.Linear(24, 16), nn.ReLU(), nn.Linear(16, 24)) for _ in range(3)
        ),
        head=nn.Linear(24, 5),
    )


@case(tokens())
def additive_scores():
    """GAT: an outer sum of two size-1 broadcasts."""

    def forward(net, x):
        x = torch.tanh(net.a(x)[:, :, None] + net.b(x)[:, None])
        return net.head(net.c(x).relu().amax(2).mean(1))

    return Net(
        forward,
        a=nn.Linear(14, 16),
        b=nn.Linear(14, 16),
        c=nn.Linear(16, 20),
        head=nn.Linear(20, 5),
    )


@case(torch.randn(10, 14))
def message_passing():
    """Gathered along edges and added up at nodes."""
    edges = torch.randint(0, 10, (2, 30), generator=torch.Generator().manual_seed(0))

    def forward(net, x):
        x = net.a(x).relu()
        x = torch.zeros_like(x).index_add(0, edges[1], x[edges[0]])
        return net.head(net.b(x).relu())

    return Net(forward, a=nn.Linear(14, 24), b=nn.Linear(24, 16), head=nn.Linear(16, 5))


@case(torch.randn(10, 14))
def scattered_messages():
    """The same by scatter_reduce, which needs an index of the features' shape."""
    edges = torch.randint(0, 10, (2, 30), generator=torch.Generator().manual_seed(0))

    def forward(net, x):
        x = net.a(x).relu()
        index = edges[1][:, None].expand(-1, x.shape[1])
        x = torch.zeros_like(x).scatter_reduce(0, index, x[edges[0]], "mean", include_self=False)
        return net.head(net.b(x).relu())

    return Net(forward, a=nn.Linear(14, 24), b=nn.Linear(24, 16), head=nn.Linear(16, 5))


@case(tokens())
def state_space():
    """Mamba's scan in miniature: a state per channel, unrolled over time."""

    def forward(net, x):
        u, gate = net.project(x).chunk(2, -1)
        u = net.conv(u.transpose(1, 2))[..., : x.shape[1]].transpose(1, 2)
        step, b, c = net.select(F.silu(u)).split([3, 4, 4], -1)
        step = F.softplus(net.step(step))
        decay = torch.exp(step[..., None] * -net.log_a.exp())
        state = x.new_zeros(x.shape[0], u.shape[-1], 4)
        outs = []
        for t in range(x.shape[1]):
            state = decay[:, t] * state + (step * u)[:, t, :, None] * b[:, t, None]
            outs.append((state * c[:, t, None]).sum(-1))
        y = (torch.stack(outs, 1) + u * net.d) * F.silu(gate)
        return net.head(net.out(y).mean(1))

    return Net(
        forward,
        project=nn.Linear(14, 40),
        conv=nn.Conv1d(20, 20, 3, padding=2, groups=20),
        select=nn.Linear(20, 11),
        step=nn.Linear(3, 20),
        log_a=nn.Parameter(torch.rand(20, 4)),
        d=nn.Parameter(torch.rand(20)),
        out=nn.Linear(20, 16),
        head=nn.Linear(16, 5),
    )
