"""Gates stand wherever a weight is read, and their auxiliaries see what the loop's weights see."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import secateur as sec
from secateur.errors import ConfigError

Y = torch.tensor([0, 1, 2, 0])


class Attending(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.attention(x, x, x, need_weights=False)[0].mean(1))


class Past(nn.Module):
    """Reads the weight of a layer that it never calls."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.spare = nn.Linear(8, 8), nn.Linear(8, 3), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(self.a(x).relu(), self.b.weight)


def tied() -> nn.Module:
    a, b = nn.Linear(8, 8), nn.Linear(8, 8)
    b.weight = a.weight
    return nn.Sequential(a, nn.ReLU(), b, nn.Linear(8, 3))


def attached(net: nn.Module, method, lr: float = 0.1, **options):
    optimizer = torch.optim.SGD(net.parameters(), lr=lr)
    return optimizer, sec.attach(net, optimizer, method, steps=20, **options)


def train(net: nn.Module, optimizer, x: Tensor, steps: int) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(net(x), Y).backward()
        optimizer.step()


def test_the_output_projection_of_attention_is_gated() -> None:
    torch.manual_seed(0)
    net, x = Attending(), torch.randn(4, 5, 8)
    optimizer, handle = attached(net, "movement", amount=0.5)
    train(net, optimizer, x, 20)
    assert bool(handle.gated.aux["attention.out_proj.weight"]["score"].any())
    net.eval()
    seen = net(x)
    handle.finish()
    torch.testing.assert_close(net(x), seen)
    assert "weight" not in vars(net.attention.out_proj)


def test_a_tied_weight_is_gated_wherever_it_is_read() -> None:
    torch.manual_seed(0)
    net, x = tied(), torch.randn(4, 8)
    optimizer, handle = attached(net, "movement", amount=0.8)
    train(net, optimizer, x, 20)
    net.eval()
    seen = net(x)
    handle.finish()
    torch.testing.assert_close(net(x), seen)


@pytest.mark.parametrize("name", ["movement", "edge_popup", "str", "l0", "loraprune"])
def test_a_weight_that_is_read_past_its_gate_is_named(name: str) -> None:
    torch.manual_seed(0)
    net, x = Past(), torch.randn(4, 8)
    options = {"ignore": ["spare"], "example_inputs": x}
    optimizer, _ = attached(net, name, **options)
    with pytest.raises(ConfigError, match=r"^b\.weight got a gradient past its gate.*ignore="):
        train(net, optimizer, x, 1)
    net = Past()
    options["ignore"] = ["b", "spare"]
    optimizer, _ = attached(net, name, **options)
    train(net, optimizer, x, 3)


@pytest.mark.parametrize("name", ["movement", "top_kast", "str"])
def test_what_a_forward_does_not_use_is_no_mistake(name: str) -> None:
    torch.manual_seed(0)
    net, x = Past(), torch.randn(4, 8)
    optimizer, handle = attached(net, name, ignore=["b"])
    optimizer.zero_grad(set_to_none=False)
    net.spare.weight.grad = torch.zeros_like(net.spare.weight)
    for _ in range(3):
        F.cross_entropy(net(x), Y).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=False)
    assert handle.steps == 3


def test_gradients_from_before_attaching_are_no_mistake() -> None:
    net = nn.Sequential(nn.Linear(8, 3))
    F.cross_entropy(net(torch.randn(4, 8)), Y).backward()
    optimizer, handle = attached(net, "movement")
    optimizer.step()
    assert handle.steps == 1


def backward(net: nn.Module, x: Tensor, y: Tensor = Y, scale: float = 1.0) -> None:
    (scale * F.cross_entropy(net(x), y)).backward()


def scores(net, method: str = "movement", **options):
    optimizer, handle = attached(net, method, **options)
    return optimizer, [t for t in handle.gated.tensors() if t.dim() > 1]


def small() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3))


@pytest.mark.parametrize("to_none", [True, False])
@pytest.mark.parametrize("late", [True, False])
@pytest.mark.parametrize("compiled", [True, False])
def test_gradients_that_the_loop_throws_away_do_not_count(to_none, late, compiled) -> None:
    net, x, z = small(), torch.randn(4, 8), torch.randn(4, 8)
    model = torch.compile(net, backend="aot_eager") if compiled else net
    optimizer, aux = scores(model)
    backward(model, z, scale=100.0)
    if late:
        value = F.cross_entropy(model(x), Y)
        optimizer.zero_grad(set_to_none=to_none)
        value.backward()
    else:
        optimizer.zero_grad(set_to_none=to_none)
        backward(model, x)
    found = [t.grad.clone() for t in aux]
    torch._dynamo.reset()
    other = small()
    _, expected = scores(other)
    backward(other, x)
    torch.testing.assert_close(found, [t.grad for t in expected])


@pytest.mark.parametrize("name", ["movement", "edge_popup", "loraprune"])
@pytest.mark.parametrize("to_none", [True, False])
def test_accumulated_gradients_of_auxiliaries_add_up(name: str, to_none: bool) -> None:
    x = torch.randn(4, 8)
    net, other = small(), small()
    optimizer, aux = scores(net, name, example_inputs=x)
    _, expected = scores(other, name, example_inputs=x)
    for of in (aux, expected):
        with torch.no_grad():
            for t in of:
                t.add_(0.1 * torch.arange(t.numel()).view_as(t))
    optimizer.zero_grad(set_to_none=to_none)
    for a, b in zip(x.chunk(2), Y.chunk(2), strict=True):
        backward(net, a, b, 0.5)
        net(x)
    backward(other, x)
    torch.testing.assert_close([t.grad for t in aux], [t.grad for t in expected])


@pytest.mark.parametrize("name", ["movement", "loraprune"])
def test_gradients_of_a_step_that_the_scaler_skipped_do_not_count(name: str) -> None:
    x = torch.randn(4, 8)
    net, other = small(), small()
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    optimizer, aux = scores(net, name, scaler=scaler, example_inputs=x)
    scaler.scale(F.cross_entropy(net(x + 1), Y)).backward()
    net[2].bias.grad = torch.full((3,), torch.inf)
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad()
    scaler.scale(F.cross_entropy(net(x), Y)).backward()
    _, expected = scores(other, name, example_inputs=x)
    backward(other, x)
    torch.testing.assert_close([t.grad / 2**9 for t in aux], [t.grad for t in expected])


@pytest.mark.parametrize("name", ["l0", "movement", "str"])
def test_a_state_in_memory_is_a_copy(name: str) -> None:
    net, x = small(), torch.randn(4, 8)
    optimizer, handle = attached(net, name)
    train(net, optimizer, x, 5)
    state = handle.state_dict()
    before = copy.deepcopy(state["gate"])
    train(net, optimizer, x, 5)
    torch.testing.assert_close(state["gate"], before, rtol=0, atol=0)
    handle.load_state_dict(state)
    train(net, optimizer, x, 5)
    torch.testing.assert_close(state["gate"], before, rtol=0, atol=0)


@pytest.mark.parametrize("kind", ["whole", "part", "in place"])
def test_a_model_that_was_compiled_and_has_run_is_gated_and_freed(kind: str) -> None:
    torch._dynamo.reset()
    torch.manual_seed(0)
    net, x = (
        nn.Sequential(nn.Linear(8, 8), nn.Sequential(nn.ReLU(), nn.Linear(8, 3))),
        torch.ones(4, 8),
    )
    model = net
    if kind == "whole":
        model = torch.compile(net, backend="eager")
    elif kind == "part":
        net[1] = torch.compile(net[1], backend="eager")
    else:
        net.compile(backend="eager")
    backward(model, x)
    net.zero_grad()
    optimizer, handle = attached(model, "movement", amount=0.8)
    train(model, optimizer, x, 20)
    assert all(bool(a["score"].any()) for a in handle.gated.aux.values())
    gated = model(x)
    torch.testing.assert_close(gated, net.forward(x))
    handle.finish()
    torch.testing.assert_close(model(x), net.forward(x))
    torch.testing.assert_close(model(x), gated)


@pytest.mark.parametrize("name", ["str", "early_bert"])
@pytest.mark.parametrize("biases_first", [True, False])
def test_auxiliaries_follow_the_rate_of_their_own_weight(name: str, biases_first: bool) -> None:
    net, x = small(), torch.randn(4, 8)
    groups = [
        {"params": [net[0].bias, net[2].bias], "lr": 0.0},
        {"params": [net[0].weight], "lr": 0.1},
        {"params": [net[2].weight], "lr": 0.0},
    ]
    optimizer = torch.optim.SGD(groups if biases_first else groups[::-1], lr=0.5)
    handle = sec.attach(net, optimizer, name, steps=20, example_inputs=x)
    aux = {n: next(iter(of.values())) for n, of in handle.gated.aux.items()}
    before = {n: t.detach().clone() for n, t in aux.items()}
    train(net, optimizer, x, 2)
    moved = [n for n, t in aux.items() if not torch.equal(t, before[n])]
    assert moved == ["0.weight" if name == "str" else "0"]
    if name == "str":
        before = {n: t.detach().clone() for n, t in aux.items()}
        for group in optimizer.param_groups:
            group["lr"] = 0.1 if group["params"][0] is net[2].weight else 0.0
        train(net, optimizer, x, 2)
        assert [n for n, t in aux.items() if not torch.equal(t, before[n])] == ["2.weight"]


class Pair(nn.Module):
    """Two layers, behind a checkpoint if asked, and a step that goes past ``forward``."""

    def __init__(self, kept: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.c, self.kept = (
            nn.Linear(8, 32),
            nn.Linear(32, 8),
            nn.Linear(8, 3),
            kept,
        )

    def first(self, x: Tensor) -> Tensor:
        return self.a(x).relu()

    def second(self, x: Tensor) -> Tensor:
        return self.b(x).relu()

    def training_step(self, x: Tensor) -> Tensor:
        if self.kept == "all":
            return self.c(self.second(self.first(x)))
        reentrant = self.kept == "reentrant"
        x = checkpoint(self.first, x, use_reentrant=reentrant)
        return self.c(checkpoint(self.second, x, use_reentrant=reentrant))

    def forward(self, x: Tensor) -> Tensor:
        return self.training_step(x)


RANDOM = [("l0", {}), ("l0", {"granularity": "channel"}), ("dsa", {}), ("dmcp", {"warm": 0.0})]


def gradients(kept: str, method, past: bool = False, later: bool = False) -> list[Tensor]:
    net, x = Pair(kept), torch.randn(4, 8, generator=torch.Generator().manual_seed(1))
    x.requires_grad_()  # or a reentrant checkpoint passes nothing on
    optimizer, handle = attached(net, method, example_inputs=x, lr=0.0)
    train(net, optimizer, x, 2)  # then dmcp draws
    optimizer.zero_grad()
    value = F.cross_entropy(net.training_step(x) if past else net(x), Y)
    if later:
        net.eval()
        with torch.no_grad():
            net(x)
        net.train()
        net(x)
    value.backward()
    aux = [t.grad for t in handle.gated.tensors() if t.grad is not None]
    return [*aux, *(p.grad for p in net.parameters())]


@pytest.mark.parametrize("method", RANDOM)
@pytest.mark.parametrize("kept", ["plain", "reentrant"])
@pytest.mark.parametrize("later", [True, False])
def test_a_forward_that_a_checkpoint_runs_again_sees_the_same_gates(method, kept, later) -> None:
    torch.testing.assert_close(gradients(kept, method, later=later), gradients("all", method))


@pytest.mark.parametrize("method", RANDOM)
@pytest.mark.parametrize("kept", ["all", "plain", "reentrant"])
def test_a_loop_that_goes_past_the_forward_sees_the_same_gates(method, kept) -> None:
    torch.testing.assert_close(gradients(kept, method, past=True), gradients("all", method))


@pytest.mark.parametrize("method", RANDOM)
def test_one_step_has_one_draw_and_its_validation_batch_another(method) -> None:
    net, x = Pair("all"), torch.randn(4, 8)
    optimizer, handle = attached(net, method, example_inputs=x, lr=0.0)
    train(net, optimizer, x, 2)
    seen, state = net(x), handle.moment.generator.get_state()
    torch.testing.assert_close(net(x), seen, rtol=0, atol=0)
    handle.moment.validating = True
    assert not torch.equal(net(x), seen)
    handle.moment.validating = False
    assert torch.equal(net(x), seen) and torch.equal(handle.moment.generator.get_state(), state)
    draws = []
    for _ in range(3):
        train(net, optimizer, x, 1)
        draws.append(net(x))
    assert not all(torch.equal(draw, seen) for draw in draws)
