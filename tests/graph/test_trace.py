"""What tracing leaves alone, what it accepts, and what it says when it cannot."""

from __future__ import annotations

import copy
import dataclasses
import random
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from secateur.errors import TraceError
from secateur.graph import rule, trace


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)
    torch.manual_seed(0)


def small() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Conv2d(8, 6, 3),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(6, 4),
    )


def image() -> Tensor:
    return torch.randn(2, 3, 9, 9)


def sizes(graph) -> dict[str, int]:
    return {c.name: c.size for c in graph.free.values()}


# The user's model stays as it was.


def test_training_flags_gradients_statistics_hooks_and_random_state_are_untouched():
    net = small().train()
    net[1].eval()  # flags are per module, not one for all
    x = image().requires_grad_()
    net(x).sum().backward()
    seen: list[str] = []
    hook = net[4].register_forward_hook(lambda *_: seen.append("ran"))
    net.register_buffer("note", torch.arange(3))
    state = {n: t.detach().clone() for n, t in net.state_dict().items()}
    grads = {n: p.grad.clone() for n, p in net.named_parameters()}
    same = {n: (p, p.grad, p.data_ptr()) for n, p in net.named_parameters()}
    flags = [m.training for m in net.modules()]
    hooks = [(list(m._forward_hooks), list(m._forward_pre_hooks)) for m in net.modules()]
    keys = [sorted(vars(m)) for m in net.modules()]
    stored, x_grad = image(), x.grad.clone()
    before = stored.clone()
    rng = (torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate())
    grad_mode = torch.is_grad_enabled()

    graph = trace(net, stored)

    assert graph.model is net
    assert torch.equal(torch.get_rng_state(), rng[0])
    assert (np.random.get_state()[1] == rng[1]).all() and random.getstate() == rng[2]
    assert [m.training for m in net.modules()] == flags
    assert torch.is_grad_enabled() is grad_mode
    assert set(net.state_dict()) == set(state)
    for n, t in net.state_dict().items():
        assert torch.equal(t, state[n]), n
    for n, p in net.named_parameters():
        assert p is same[n][0] and p.grad is same[n][1] and p.data_ptr() == same[n][2]
        assert torch.equal(p.grad, grads[n]) and p.requires_grad
    now = [(list(m._forward_hooks), list(m._forward_pre_hooks)) for m in net.modules()]
    assert now == hooks
    assert [sorted(vars(m)) for m in net.modules()] == keys
    assert torch.equal(stored, before) and torch.equal(x.grad, x_grad)
    hook.remove()


@pytest.mark.parametrize("looks", [False, True], ids=["fake", "on data"])
def test_a_forward_that_draws_random_numbers_leaves_the_generators_alone(looks):
    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = x + torch.randn_like(x) * random.random() * float(np.random.rand())
            if looks and x.sum().item() > 1e9:
                x = -x
            return self.b(self.a(x))

    net, x = Noisy(), torch.zeros(2, 4)
    rng = (torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate())
    position = np.random.get_state()[2]
    graph = trace(net, x)
    assert sizes(graph) == {"a": 6} and graph.on_data is looks
    assert torch.equal(torch.get_rng_state(), rng[0]) and random.getstate() == rng[2]
    assert np.random.get_state()[2] == position and (np.random.get_state()[1] == rng[1]).all()


def test_no_hook_stays_behind_on_all_modules():
    trace(small(), image())
    with pytest.raises(TraceError):
        trace(small(), torch.randn(2, 5, 9, 9))
    register = torch.nn.modules.module
    assert not register._global_forward_hooks and not register._global_forward_pre_hooks


def test_a_forward_that_caches_leaves_no_fake_tensor_in_the_model():
    class Caching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 3)
            self.cache: Tensor | None = None
            self.calls = 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            if self.cache is None:
                self.cache = torch.ones(6)
            return self.b(self.a(x) * self.cache)

    net = Caching()
    assert sizes(trace(net, torch.randn(2, 4))) == {"a": 6}
    assert net.cache is None and net.calls == 0
    assert torch.isfinite(net(torch.randn(2, 4))).all()


def test_a_forward_that_counts_in_a_buffer_changes_no_buffer():
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 3)
            self.register_buffer("seen", torch.zeros(()))
            self.register_buffer("mean", torch.zeros(6))

        def forward(self, x: Tensor) -> Tensor:
            self.seen += 1
            y = self.a(x)
            self.mean.mul_(0.9).add_(y.mean(0))
            return self.b(y - self.mean)

    net = Counting()
    assert sizes(trace(net, torch.randn(2, 4))) == {"a": 6}
    assert net.seen == 0 and not net.mean.any()


def test_a_failing_trace_restores_everything_too():
    net = small().train()
    state = copy.deepcopy(net.state_dict())
    with pytest.raises(TraceError):
        trace(net, torch.randn(2, 4, 9, 9))
    assert all(m.training for m in net.modules())
    for n, t in net.state_dict().items():
        assert torch.equal(t, state[n])


def test_tracing_on_real_data_leaves_batch_norm_alone():
    class Looking(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.norm, self.b = nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            y = self.norm(self.a(x))
            return self.b(y if y.sum().item() > 1e9 else y.relu())

    net = Looking().train()
    state = copy.deepcopy(net.state_dict())
    graph = trace(net, torch.randn(2, 4))
    assert graph.on_data and sizes(graph) == {"a": 6}
    for n, t in net.state_dict().items():
        assert torch.equal(t, state[n])


# What it accepts.


def test_a_model_on_the_meta_device_gives_the_same_classes():
    with torch.device("meta"):
        net = small()
        x = image()
    graph = trace(net, x)
    assert sizes(graph) == sizes(trace(small(), image())) == {"0": 8, "4": 6}
    assert all(p.is_meta for p in net.parameters())


def test_real_inputs_may_be_given_to_a_meta_model():
    with torch.device("meta"):
        net = small()
    assert sizes(trace(net, image())) == {"0": 8, "4": 6}


def test_a_billion_parameters_take_no_memory_on_meta():
    transformers = pytest.importorskip("transformers")
    resource = pytest.importorskip("resource")
    config = transformers.LlamaConfig(
        hidden_size=4096, intermediate_size=11008, num_hidden_layers=4, num_attention_heads=32,
        num_key_value_heads=8, vocab_size=32000,
    )  # fmt: skip
    with torch.device("meta"):
        net = transformers.LlamaForCausalLM(config)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    graph = trace(net, {"input_ids": torch.zeros(2, 7, dtype=torch.long)})
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024  # MiB on Linux
    assert graph.prunable_share > 0.99
    assert grown < 200


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(4, 6), nn.Linear(5, 6)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor, *, y: Tensor | None = None, scale: float = 1.0) -> Tensor:
        h = self.left(x) * scale
        return self.head(h if y is None else h + self.right(y))


class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.two = TwoInputs()

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.two(x, y=y)


def test_positional_keyword_and_mapping_inputs():
    x, y = torch.randn(2, 4), torch.randn(2, 5)
    by_tuple = trace(Pair(), (x, y))
    by_list = trace(Pair(), [x, y])
    assert sizes(by_tuple) == sizes(by_list) == {"two.left": 6}
    (c,) = trace(TwoInputs(), {"x": x, "y": y, "scale": 2.0}).free.values()
    assert {m.tensor for m in c.members} == {
        "left.weight", "left.bias", "right.weight", "right.bias", "head.weight",
    }  # fmt: skip
    without = trace(TwoInputs(), {"x": x})
    (alone,) = without.free.values()
    assert not any(m.tensor.startswith("right") for m in alone.members)

    class Batch(dict):
        """As tokenizers return them: a mapping of its own type."""

    assert sizes(trace(TwoInputs(), Batch(x=x, y=y))) == {"left": 6}


def test_what_the_forward_does_not_use_is_not_offered():
    graph = trace(TwoInputs(), {"x": torch.randn(2, 4)})
    locked = [c for c in graph.classes.values() if "right.weight" in {m.tensor for m in c.members}]
    assert locked and all(c.locked == "not used by this forward" for c in locked)


@dataclasses.dataclass
class Result:
    logits: Tensor
    extras: dict[str, list[Tensor]]
    note: str = "ok"


@pytest.mark.parametrize("form", ["dict", "tuple", "dataclass"])
def test_every_tensor_of_a_nested_output_stays(form):
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 6), nn.Linear(6, 5), nn.Linear(6, 7)

        def forward(self, x: Tensor) -> object:
            h = self.a(x).relu()
            one, two = self.b(h), self.c(h)
            return {
                "dict": {"one": one, "rest": [two]},
                "tuple": (one, (two,)),
                "dataclass": Result(one, {"rest": [two]}),
            }[form]

    graph = trace(Net(), torch.randn(2, 4))
    assert sizes(graph) == {"a": 6}
    locked = {c.size for c in graph.classes.values() if c.locked == "model output"}
    assert locked == {5, 7}


def test_a_module_called_twice_and_shared_parameters_have_one_class():
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.again = nn.Linear(6, 6), nn.Linear(6, 6)
            self.again.weight = self.inner.weight
            self.first, self.last = nn.Linear(4, 6), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            h = self.first(x)
            return self.last(self.again(self.inner(self.inner(h))))

    graph = trace(Net(), torch.randn(2, 4))
    (c,) = graph.free.values()
    assert c.size == 6 and "again.weight" not in graph.axes
    assert {("inner.weight", 0), ("inner.weight", 1), ("last.weight", 1)} < {
        (m.tensor, m.axis) for m in c.members
    }


def test_bare_parameters_and_buffers_are_sliced_like_weights():
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w, self.v = nn.Parameter(torch.randn(4, 6)), nn.Parameter(torch.randn(6, 3))
            self.register_buffer("shift", torch.randn(6))

        def forward(self, x: Tensor) -> Tensor:
            return (x @ self.w + self.shift).relu() @ self.v

    (c,) = trace(Net(), torch.randn(2, 4)).free.values()
    assert {(m.tensor, m.axis) for m in c.members} == {("w", 1), ("shift", 0), ("v", 0)}


def test_a_batch_of_one_gives_the_same_classes():
    assert sizes(trace(small(), torch.randn(1, 3, 9, 9))) == {"0": 8, "4": 6}


# What it says when it cannot.


def failure(model: object, inputs: object) -> str:
    with pytest.raises(TraceError) as caught:
        trace(model, inputs)
    return str(caught.value)


def test_a_wrong_shape_names_the_module_and_the_shapes():
    said = failure(small(), torch.randn(2, 4, 9, 9))
    assert "(2, 4, 9, 9)" in said and "0 raised" in said


def test_a_wrong_shape_deep_inside_names_the_innermost_module():
    net = nn.Sequential(nn.Sequential(nn.Linear(4, 6), nn.Linear(5, 3)))
    assert "0.1 raised" in failure(net, torch.randn(2, 4))


def test_a_missing_input_is_told_as_python_tells_it():
    said = failure(Pair(), (torch.randn(2, 4),))
    assert "y" in said and "missing" in said and "model(*inputs)" in said


def test_an_unknown_keyword_is_named():
    assert "z" in failure(Pair(), {"x": torch.randn(2, 4), "z": torch.randn(2, 4)})


def test_another_device_is_named():
    class Elsewhere(nn.Linear):
        """A layer that says that it lives on another device."""

        def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]:
            for p in super().parameters(recurse):
                fake = type("P", (), {"device": torch.device("cuda", 0), "is_meta": False})
                yield fake() if not isinstance(p, nn.UninitializedParameter) else p  # type: ignore[misc]

    said = failure(Elsewhere(4, 3), torch.randn(2, 4))
    assert "cuda:0" in said and "cpu" in said and "move" in said


@pytest.mark.parametrize(
    "thing", [None, "resnet18", small, {"a": 1}], ids=["None", "name", "function", "dict"]
)
def test_what_is_no_module_is_told_so(thing):
    assert "torch.nn.Module" in failure(thing, image())


@pytest.mark.parametrize("inputs", [None, 3, "text", np.zeros(3)], ids=repr)
def test_what_is_no_input_is_told_so(inputs):
    said = failure(small(), inputs)
    assert "tensor" in said and type(inputs).__name__ in said


def test_a_lazy_module_must_be_run_once():
    said = failure(nn.Sequential(nn.LazyLinear(4)), torch.randn(2, 3))
    assert "0.weight" in said and "run the model once" in said


def test_an_error_of_the_forward_itself_is_passed_on():
    class Failing(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise RuntimeError("no weights were downloaded")

    said = failure(nn.Sequential(nn.Linear(4, 4), Failing()), torch.randn(2, 4))
    assert "no weights were downloaded" in said and "1 raised" in said


# Operators that nobody foresaw.


@pytest.fixture(scope="module")
def custom() -> object:
    """``halve(x)``: two channels become one; ``mystery(x, y)``: nothing is known about it."""
    library = torch.library.Library("secateur_tests", "FRAGMENT")
    library.define("halve(Tensor x) -> Tensor")
    library.define("mystery(Tensor x, Tensor y) -> Tensor")
    library.impl("halve", lambda x: x[:, 0::2] + x[:, 1::2], "CompositeExplicitAutograd")
    library.impl("mystery", lambda x, y: x + y, "CompositeExplicitAutograd")
    torch.library.register_fake("secateur_tests::halve", lambda x: x[:, 0::2].clone(), lib=library)
    torch.library.register_fake("secateur_tests::mystery", lambda x, y: x + y, lib=library)
    yield torch.ops.secateur_tests
    library._destroy()


class Custom(nn.Module):
    def __init__(self, operator: object) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 12), nn.Linear(6, 8), nn.Linear(8, 3)
        self.operator = operator

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.b(self.operator(self.a(x))).relu())

    def __deepcopy__(self, memo: dict) -> Custom:  # operators cannot be copied
        copied = Custom(self.operator)
        memo[id(self)] = copied
        for name, child in self.named_children():
            setattr(copied, name, copy.deepcopy(child, memo))
        return copied


def test_an_unknown_operator_locks_only_its_own_axes_and_is_named_once(custom):
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 6), nn.Linear(6, 8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            h = self.a(x)
            h = torch.ops.secateur_tests.mystery(h, h)
            h = torch.ops.secateur_tests.mystery(h, h)
            return self.c(self.b(h).relu())

    graph = trace(Net(), torch.randn(2, 4))
    assert sizes(graph) == {"b": 8}
    assert graph.unknown == {"secateur_tests.mystery.default": 2}
    assert "secateur_tests.mystery" in graph.classes["a"].locked
    text = str(graph)
    assert "No rule for secateur_tests.mystery.default (2×)" in text
    assert text.count("No rule for") == 1


def test_a_rule_for_a_custom_operator_makes_its_axes_prunable(custom):
    from secateur.graph.axes import peel

    net = Custom(custom.halve)
    assert sizes(trace(net, torch.randn(2, 4))) == {"b": 8}

    @rule(torch.ops.secateur_tests.halve)
    def halve(op):
        """Channels 2i and 2i + 1 become channel i: they go together."""
        rows, columns = op.axes(op.arg("x"))
        pair = peel(columns, 2)
        op.lock(pair[1], "halved")
        return [rows, pair[0]]

    graph = trace(net, torch.randn(2, 4))
    assert not graph.unknown
    assert sizes(graph) == {"a": 6, "b": 8}
    (rows,) = [m.unit for m in graph.classes["a"].members if m.tensor == "a.weight"]
    assert rows.tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]


def test_operators_know_where_their_inputs_came_from():
    graph = trace(small(), image())
    by_name = {op.name: (i, op) for i, op in enumerate(graph.ops)}
    i, relu = by_name["aten.relu.default"]
    (source,) = relu.sources
    assert isinstance(source, int) and source < i
    assert graph.ops[source].module == "1"  # the batch norm
    first = next(op for op in graph.ops if op.name.startswith("aten.convolution"))
    assert first.sources[:2] == (None, "0.weight")
    for op in graph.ops:
        assert len(op.sources) == len(op.inputs)
