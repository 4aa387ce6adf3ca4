"""Statistics equal plain loops, and gathering them leaves no trace."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close

from secateur.engine.dataflow import dataflow
from secateur.engine.gates import gate_places
from secateur.engine.statistics import STATISTICS, collect
from secateur.errors import ConfigError, DataError
from secateur.graph import trace


def loop_gradients(net, batches):
    """One ``loss.backward()`` a batch."""
    found = []
    for inputs, target in batches:
        net.zero_grad()
        F.cross_entropy(net(inputs), target).backward()
        found.append({n: p.grad.clone() for n, p in net.named_parameters()})
    net.zero_grad()
    return found


def test_gradients_and_their_squares_equal_loops_of_backward(residual, residual_graph, images):
    found = collect(residual_graph, {"grad", "grad_sq", "sample_grad_sq"}, images)
    by_batch = loop_gradients(residual, images)
    singles = [(x[i : i + 1], y[i : i + 1]) for x, y in images for i in range(len(x))]
    by_sample = loop_gradients(residual, singles)
    assert found.samples == len(singles) == 12
    for name, stats in found.tensors.items():
        batches = torch.stack([g[name] for g in by_batch])
        samples = torch.stack([g[name] for g in by_sample])
        assert_close(stats.grad, batches.mean(0), rtol=1e-4, atol=1e-7)
        assert_close(stats.grad_sq, batches.square().mean(0), rtol=1e-4, atol=1e-9)
        assert_close(stats.sample_grad_sq, samples.square().mean(0), rtol=1e-4, atol=1e-9)


def test_hutchinson_is_exact_when_weights_do_not_interact():
    net = nn.Linear(3, 1, bias=False)
    x = torch.eye(3)  # each weight has a sample of its own: the Hessian is diagonal
    data = [(x, torch.zeros(3, 1))]
    found = collect(net, {"hessian"}, data, probes=1)
    assert_close(found.tensors["weight"].hessian, torch.full((1, 3), 2 / 3))


def test_hutchinson_tends_to_the_diagonal_of_the_hessian():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    x, y = torch.randn(8, 3), torch.randint(0, 2, (8,))
    names = [n for n, _ in net.named_parameters()]

    def loss(flat):
        parts = flat.split([p.numel() for p in net.parameters()])
        values = {n: t.view_as(net.get_parameter(n)) for n, t in zip(names, parts, strict=True)}
        return F.cross_entropy(torch.func.functional_call(net, values, (x,)), y)

    flat = torch.cat([p.detach().flatten() for p in net.parameters()])
    exact = torch.autograd.functional.hessian(loss, flat).diagonal()
    found = collect(net, {"hessian"}, [(x, y)], probes=3000)
    estimate = torch.cat([found.tensors[n].hessian.flatten() for n in names])
    assert_close(estimate, exact, rtol=0.1, atol=0.02)


def test_products_of_the_hessian_with_the_weights_are_those_of_autograd():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    names = [n for n, _ in net.named_parameters()]
    weights = tuple(p.detach().clone() for p in net.parameters())
    batches = [(torch.randn(5, 3), torch.randint(0, 2, (5,))) for _ in range(3)]
    wanted = [torch.zeros_like(w) for w in weights]
    for x, y in batches:

        def loss(*values, x=x, y=y):
            named = dict(zip(names, values, strict=True))
            return F.cross_entropy(torch.func.functional_call(net, named, (x,)), y)

        _, products = torch.autograd.functional.hvp(loss, weights, weights)
        wanted = [a + b / 3 for a, b in zip(wanted, products, strict=True)]
    alone = collect(net, {"hessian_weight"}, batches)
    both = collect(net, {"hessian_weight", "hessian", "grad"}, batches)
    hessian = collect(net, {"hessian"}, batches)
    for name, product in zip(names, wanted, strict=True):
        assert_close(alone.tensors[name].hessian_weight, product)
        assert_close(both.tensors[name].hessian_weight, product)
        assert_close(both.tensors[name].hessian, hessian.tensors[name].hessian)


def test_hessian_of_fused_attention(queries, queries_graph):
    data = [(torch.randn(2, 5, 7), torch.randn(2, 5, 7))]
    found = collect(queries_graph, {"hessian"}, data)
    assert all(s.hessian.isfinite().all() for s in found.tensors.values())
    assert any(s.hessian.abs().sum() > 0 for s in found.tensors.values())


def test_a_gate_after_batch_norm_is_gamma_beta_taylor(residual, residual_graph, images):
    """dL/dz = gamma dL/dgamma + beta dL/dbeta (Molchanov et al., 2019)."""
    found = collect(residual_graph, {"gate", "gate_sq"}, images).classes
    c = next(c for c in residual_graph.free.values() if c.size == 6)
    gradients = loop_gradients(residual, images)

    def gate(g, bn):
        layer = residual.get_submodule(bn)
        return layer.weight * g[f"{bn}.weight"] + layer.bias * g[f"{bn}.bias"]

    # Four layers in a row make the class; all that it does to the loss passes the last.
    batches = torch.stack([gate(g, "bn2") for g in gradients]).detach()
    assert_close(found[c.name].gate, batches.mean(0), rtol=1e-4, atol=1e-6)
    assert_close(found[c.name].gate_sq, batches.square().mean(0), rtol=1e-4, atol=1e-8)
    assert {
        module for module, _, _ in gate_places(residual_graph, c, dataflow(residual_graph))
    } == {"bn2"}
    stem = next(c for c in residual_graph.free.values() if c.size == 4)
    assert {
        module for module, _, _ in gate_places(residual_graph, stem, dataflow(residual_graph))
    } == {"bn0", "bn3"}
    batches = torch.stack([gate(g, "bn0") + gate(g, "bn3") for g in gradients]).detach()
    assert_close(found[stem.name].gate, batches.mean(0), rtol=1e-4, atol=1e-6)


def test_the_gate_of_a_head_is_the_derivative_with_respect_to_its_factor(queries, queries_graph):
    x, y = torch.randn(2, 5, 7), torch.randn(2, 5, 7)
    found = collect(queries_graph, {"gate"}, [(x, y)]).classes
    checked = 0
    for c in queries_graph.free.values():
        places = gate_places(queries_graph, c, dataflow(queries_graph))
        for u in range(c.size):
            losses = []
            for step in (1e-2, -1e-2):
                handles = []
                for module, dim, unit in places:
                    factor = torch.ones(len(unit)) + step * (unit == u)
                    shape = [1, 1, 1]
                    shape[dim] = len(unit)
                    view = factor.view(shape)
                    handles.append(
                        queries.get_submodule(module).register_forward_hook(
                            lambda m, i, o, f=view: o * f
                        )
                    )
                with torch.no_grad():
                    losses.append(float(F.mse_loss(queries(x).double(), y.double())))
                for handle in handles:
                    handle.remove()
            slope = torch.tensor((losses[0] - losses[1]) / 2e-2)
            assert_close(found[c.name].gate[u], slope, rtol=0.02, atol=2e-5)
            checked += 1
    assert checked >= 6


def test_gates_of_concatenated_classes_do_not_meet():
    class Cat(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(1, 2, 1), nn.Conv2d(1, 3, 1)
            self.bn, self.c = nn.BatchNorm2d(5), nn.Conv2d(5, 1, 1)

        def forward(self, x):
            return self.c(self.bn(torch.cat([self.a(x), self.b(x)], 1))).mean((1, 2, 3))

    torch.manual_seed(0)
    net, x, y = Cat().eval(), torch.randn(3, 1, 2, 2), torch.randn(3)
    found = collect(trace(net, x), {"gate"}, [(x, y)]).classes
    F.mse_loss(net(x), y).backward()
    bn = (net.bn.weight * net.bn.weight.grad + net.bn.bias * net.bn.bias.grad).detach()
    for name, part in (("a", bn[:2]), ("b", bn[2:])):
        layer = net.get_submodule(name)
        own = (layer.weight * layer.weight.grad).flatten(1).sum(1) + layer.bias * layer.bias.grad
        assert_close(found[name].gate, part + own.detach())


def test_activity_is_what_the_next_layers_see(residual, residual_graph, images):
    found = collect(residual_graph, {"activation", "zero_fraction", "rank"}, images).classes
    stem = next(c for c in residual_graph.free.values() if c.size == 4)
    wide = next(c for c in residual_graph.free.values() if c.size == 6)
    seen: dict[str, list] = {"up": [], "head": [], "down": [], "depth": []}
    for name, values in seen.items():
        residual.get_submodule(name).register_forward_pre_hook(
            lambda m, a, values=values: values.append(a[0].detach())
        )
    for x, _ in images:
        residual(x)
    up, head, down = (torch.cat(seen[n]) for n in ("up", "head", "down"))
    channel = (0, 2, 3)
    expected = (up.abs().mean(channel) + head.abs().mean(0)) / 2
    assert_close(found[stem.name].activation, expected)
    zeros = ((up == 0).float().mean(channel) + (head == 0).float().mean(0)) / 2
    assert_close(found[stem.name].zero_fraction, zeros)
    assert_close(found[wide.name].activation, down.abs().mean(channel))
    ranks = [[torch.linalg.matrix_rank(m).item() for m in image] for image in down]
    assert_close(found[wide.name].rank, torch.tensor(ranks).float().mean(0))


def test_a_flattened_channel_is_all_its_pixels():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(3 * 4, 2)).eval()
    x = torch.randn(5, 1, 4, 4)
    found = collect(trace(net, x), {"activation"}, [x]).classes["0"].activation
    assert_close(found, net[:2](x).abs().mean((0, 2, 3)).detach())


def test_maps_of_rank_one_have_rank_one():
    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(2, 3), nn.Conv2d(3, 2, 1)

        def forward(self, x):  # (batch, 3) channels times a fixed outer product of positions
            u = torch.arange(1.0, 5)
            return self.b(self.a(x)[:, :, None, None] * u[:, None] * u[None])

    net, x = Outer(), torch.randn(4, 2)
    assert collect(trace(net, x), {"rank"}, [x]).classes["a"].rank.tolist() == [1, 1, 1]


def test_inputs_of_layers(residual, images):
    found = collect(residual, {"input_norm", "input_mean", "gram"}, [x for x, _ in images]).tensors
    x = torch.cat([x for x, _ in images]).movedim(1, -1).reshape(-1, 3)
    stats = found["stem.weight"]
    assert_close(stats.input_norm, x.square().mean(0).sqrt())
    assert_close(stats.input_mean, x.mean(0), rtol=1e-4, atol=1e-6)
    assert_close(stats.gram, x.T @ x / len(x), rtol=1e-4, atol=1e-6)
    assert set(found) == {"stem.weight", "up.weight", "depth.weight", "down.weight", "head.weight"}


def test_one_pass_gathers_what_single_passes_do(residual_graph, images):
    together = collect(residual_graph, STATISTICS, images)
    for need in STATISTICS:
        alone = collect(residual_graph, {need}, images)
        for table, other in (
            (alone.tensors, together.tensors),
            (alone.classes, together.classes),
        ):
            for name, stats in table.items():
                if need in stats:
                    a, b = getattr(stats, need), getattr(other[name], need)
                    assert_close(a, b, rtol=1e-3, atol=1e-6, msg=f"{need} of {name}")


def test_the_loader_is_read_once(residual_graph, images):
    reads = []

    class Loader:
        def __iter__(self):
            reads.append(1)
            yield from images

    collect(residual_graph, STATISTICS, Loader())
    assert reads == [1]


def test_the_model_is_left_as_it_was(residual, residual_graph, images):
    residual.train()
    residual.bn1.eval()
    residual.up.weight.requires_grad_(False)
    residual.stem.weight.grad = torch.ones_like(residual.stem.weight)
    before = {n: t.clone() for n, t in residual.state_dict().items()}
    modes = {n: m.training for n, m in residual.named_modules()}
    state = torch.get_rng_state()
    found = collect(residual_graph, STATISTICS, images)
    assert found.tensors["up.weight"].grad.abs().sum() > 0  # frozen parameters are measured too
    assert all(torch.equal(t, before[n]) for n, t in residual.state_dict().items())
    assert {n: m.training for n, m in residual.named_modules()} == modes
    assert not residual.up.weight.requires_grad and residual.stem.weight.requires_grad
    assert torch.equal(residual.stem.weight.grad, torch.ones_like(residual.stem.weight))
    assert residual.down.weight.grad is None
    assert torch.equal(torch.get_rng_state(), state)
    for m in residual.modules():
        assert not m._forward_hooks and not m._forward_pre_hooks


def test_hooks_go_away_after_an_error_too(residual, residual_graph, images):
    with pytest.raises(DataError):
        collect(
            residual_graph,
            STATISTICS,
            [*images, (torch.full((2, 3, 6, 6), torch.nan), images[0][1][:2])],
        )
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in residual.modules())
    assert all(p.grad is None for p in residual.parameters())


def test_dict_batches_and_an_output_with_its_own_loss():
    class Output:
        def __init__(self, loss, logits):
            self.loss, self.logits = loss, logits

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(3, 4), nn.Linear(4, 2)

        def forward(self, x, labels=None):
            y = self.b(torch.tanh(self.a(x)))
            return Output(None if labels is None else F.cross_entropy(y, labels), y)

    torch.manual_seed(0)
    net = Net()
    batch = {"x": torch.randn(4, 3), "labels": torch.tensor([0, 1, 1, 0])}
    found = collect(net, {"grad", "sample_grad_sq"}, [batch])
    net(**batch).loss.backward()
    assert_close(found.tensors["a.weight"].grad, net.a.weight.grad)
    assert found.samples == 4


def test_a_graph_is_one_sample():
    class Mean(nn.Module):
        """Each node gets the mean of the nodes that point to it."""

        def __init__(self):
            super().__init__()
            self.lin = nn.Linear(3, 2)

        def forward(self, x, edges):
            y = self.lin(x)
            return torch.zeros_like(y).index_add(0, edges[1], y[edges[0]])

    torch.manual_seed(0)
    net, x, edges = Mean(), torch.randn(5, 3), torch.randint(0, 5, (2, 9))
    found = collect(net, {"grad", "sample_grad_sq"}, [(x, edges, torch.tensor([0, 1, 1, 0, 1]))])
    assert found.samples == 1
    stats = found.tensors["lin.weight"]
    assert_close(stats.sample_grad_sq, stats.grad**2)


def test_a_loss_of_ones_own(residual, residual_graph, images):
    found = collect(residual_graph, {"grad"}, images[:1], loss=lambda y, t: y.square().sum())
    residual(images[0][0]).square().sum().backward()
    assert_close(found.tensors["up.weight"].grad, residual.up.weight.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (None, "pass data="),
        ([], "no batch"),
        ([(torch.randn(2, 5, 6, 6), torch.tensor([0, 1]))], "could not be run"),
        ([(torch.randn(2, 3, 6, 6), torch.tensor([0, 1, 1]))], "loss"),
        (
            [(torch.full((2, 3, 6, 6), float("inf")), torch.tensor([0, 1]))],
            "loss is nan on batch 0",
        ),
        (7, "pass data="),
    ],
)
def test_bad_data_have_one_clear_error(data, says, residual_graph):
    with pytest.raises(DataError, match=says):
        collect(residual_graph, {"grad"}, data)


def test_wrong_statistics_are_named(residual, images):
    with pytest.raises(ConfigError, match="did you mean 'grad'"):
        collect(residual, {"grads"}, images)
    with pytest.raises(ConfigError, match="trace"):
        collect(residual, {"rank"}, images)
