"""SparseLLM: its updates against the formulas, and SparseGPT where nothing alternates."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import secateur as sec
from secateur.engine.mlp import find_mlps, fitted
from secateur.engine.products import Layer
from secateur.engine.statistics import Stats
from secateur.errors import ConfigError
from secateur.methods.after import sparsellm

INPUTS, HIDDEN = 6, 10


class Gated(nn.Module):
    """``down(silu(gate x) * up x)`` beside its input."""

    def __init__(self, bias: bool = False) -> None:
        super().__init__()
        self.first = nn.Linear(INPUTS, HIDDEN, bias=bias)
        self.second = nn.Linear(INPUTS, HIDDEN, bias=bias)
        self.third = nn.Linear(HIDDEN, INPUTS, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.third(F.silu(self.first(x)) * self.second(x))


class Plain(nn.Module):
    """``fc2(relu(fc1 x))`` beside its input, with biases."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(INPUTS, HIDDEN), nn.Linear(HIDDEN, INPUTS)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.two(F.relu(self.one(x)))


def network(kind: type[nn.Module]) -> tuple[nn.Module, list[Tensor]]:
    torch.manual_seed(0)
    return nn.Sequential(kind(), kind(), kind()), [torch.randn(40, INPUTS) for _ in range(3)]


def seen(module: nn.Module, x: Tensor) -> tuple[list[tuple[Layer, Stats]], dict[str, Tensor]]:
    """Every linear layer of a module with its inputs, caught by hooks."""
    caught: dict[str, Tensor] = {}
    for name, part in module.named_children():
        part.register_forward_pre_hook(lambda _, given, name=name: caught.update({name: given[0]}))
    with torch.no_grad():
        module(x)
    layers, held = [], dict[int, list[Tensor]]()
    for name, part in module.named_children():
        rows, columns = part.weight.shape
        given = held.setdefault(id(caught[name]), [caught[name]])
        gram = caught[name].T @ caught[name] / len(x)
        layers.append(
            (
                Layer(f"{name}.weight", f"{name}.weight", (rows, columns), (columns, 1)),
                Stats(name, tokens=len(x), gram=gram, inputs=given),
            )
        )
    return layers, dict(module.named_parameters())


@pytest.mark.parametrize("kind", [Gated, Plain])
def test_without_rounds_it_is_sparsegpt(kind: type[nn.Module]) -> None:
    net, data = network(kind)
    given = {"amount": 0.5, "data": data, "progress": False}
    expected = sec.sparsify(net, "sparsegpt", **given)
    none = sec.sparsify(net, ("sparsellm", {"iterations": 0}), **given)
    some = sec.sparsify(net, "sparsellm", **given)
    for name, value in expected.model.state_dict().items():
        assert torch.equal(none.model.state_dict()[name], value), name
    assert some.report.removed == expected.report.removed
    last = list(some.model.state_dict())[-1].replace("bias", "weight")
    assert not torch.equal(some.model.state_dict()[last], expected.model.state_dict()[last])


@pytest.mark.parametrize("kind", [Gated, Plain])
def test_the_layers_of_an_mlp_are_found_by_what_they_compute(kind: type[nn.Module]) -> None:
    torch.manual_seed(1)
    (found,) = find_mlps(*seen(kind(), torch.randn(30, INPUTS)))
    names = [layer.name for layer, _ in found.members]
    gated = ["first.weight", "second.weight", "third.weight"]
    assert names == (gated if kind is Gated else ["one.weight", "two.weight"])
    x = torch.linspace(-2, 2, 9)
    assert torch.equal(found.activation(x), F.silu(x) if kind is Gated else F.relu(x))


def test_layers_without_an_activation_between_them_are_no_mlp() -> None:
    torch.manual_seed(2)
    for between in (nn.Identity(), nn.Tanh()):
        up, down = nn.Linear(INPUTS, HIDDEN), nn.Linear(HIDDEN, INPUTS)
        x = torch.randn(30, INPUTS)
        hidden = between(up(x)).detach()
        layers = [
            (
                Layer(f"{name}.weight", f"{name}.weight", tuple(part.weight.shape), (size, 1)),
                Stats(name, tokens=30, inputs=[given]),
            )
            for name, part, given, size in (("up", up, x, INPUTS), ("down", down, hidden, HIDDEN))
        ]
        parameters = {
            f"{name}.{leaf}": p
            for name, part in (("up", up), ("down", down))
            for leaf, p in part.named_parameters()
        }
        assert not list(find_mlps(layers, parameters))


def test_each_update_is_the_minimum_of_what_is_minimized() -> None:
    torch.manual_seed(3)
    x, y = torch.randn(20, INPUTS), torch.randn(20, INPUTS)
    gate, up = torch.randn(HIDDEN, INPUTS), torch.randn(HIDDEN, INPUTS)
    down, gamma = torch.randn(INPUTS, HIDDEN), 0.7
    s, z, p = (torch.randn(20, HIDDEN) for _ in range(3))

    def lagrangian(s: Tensor, z: Tensor, p: Tensor) -> Tensor:
        layers = (z - x @ up.T).square().sum() + (s - x @ gate.T).square().sum()
        last = (y - p @ down.T).square().sum()
        return layers + last + gamma * (p - F.silu(s) * z).square().sum()

    p = sparsellm.update_p(down, y, F.silu(s) * z, gamma).requires_grad_()
    (slope,) = torch.autograd.grad(lagrangian(s, z, p), p)
    assert slope.abs().max() < 1e-3
    naive = torch.linalg.inv(down.T @ down + gamma * torch.eye(HIDDEN))
    expected = (y @ down + gamma * F.silu(s) * z) @ naive
    torch.testing.assert_close(p, expected, rtol=1e-3, atol=1e-4)
    p = p.detach()

    z = sparsellm.update_z(x @ up.T, F.silu(s), p, gamma).requires_grad_()
    (slope,) = torch.autograd.grad(lagrangian(s, z, p), z)
    assert slope.abs().max() < 1e-3
    z = z.detach()

    before = lagrangian(s, z, p)
    for _ in range(20):
        s = sparsellm.update_s(s, x @ gate.T, z, p, F.silu, gamma)
    s = s.requires_grad_()
    after = lagrangian(s, z, p)
    (slope,) = torch.autograd.grad(after, s)
    assert after < before
    assert slope.abs().median() < 1e-3


def test_an_aim_is_the_pseudo_inverse_when_nothing_damps() -> None:
    torch.manual_seed(4)
    x, z = torch.randn(50, INPUTS), torch.randn(50, HIDDEN)
    start = Stats("up", tokens=50, aim=torch.zeros(HIDDEN, INPUTS))
    found = fitted(start, x, z, 0.0)
    torch.testing.assert_close(found.aim, z.T @ torch.linalg.pinv(x).T, rtol=1e-3, atol=1e-4)


def test_that_there_is_no_mlp_is_said() -> None:
    torch.manual_seed(5)
    net, data = nn.Sequential(*(nn.Linear(6, 6) for _ in range(2))), [torch.randn(20, 6)]
    given = {"amount": 0.5, "data": data, "progress": False}
    result = sec.sparsify(net, "sparsellm", **given)
    assert len(result.report.notes) == 2 and "no MLP among 0.weight" in result.report.notes[0]
    expected = sec.sparsify(net, "sparsegpt", **given).model.state_dict()
    assert all(torch.equal(p, expected[n]) for n, p in result.model.state_dict().items())


@pytest.mark.parametrize("options", [{"iterations": -1}, {"coupling": 0.0}])
def test_options_out_of_range_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="iterations >= 0 and coupling > 0"):
        sparsellm.sparsellm(0.5, **options)  # type: ignore[arg-type]


def test_layers_that_are_solved_together_are_not_solved_one_after_another() -> None:
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 4))
    with pytest.raises(ConfigError, match="sparsellm solves the layers of a block together"):
        sec.sparsify(net, "sparsellm", data=[torch.randn(9, 4)], true_sequential=True)
