"""The layer before a gap takes over what the missing blocks added."""

import copy
from typing import Any

import pytest
import torch
from tiny import batches, gpt2, llama, tokens
from torch import Tensor, nn
from torch.testing import assert_close

import secateur as sec
from secateur.errors import ConfigError, DataError, SecateurError
from secateur.plan.depth import depth_plan
from secateur.plan.gaps import Gap
from secateur.recovery import recovery


class Block(nn.Module):
    """Adds a little network of its normalised input to it."""

    def __init__(self, width: int = 6, bias: bool = True, twist: float = 1.0) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, 10)
        self.down = nn.Linear(10, width, bias=bias)
        self.twist = twist

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down((self.twist * self.up(self.norm(x))).tanh())


class PostNorm(Block):
    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x + self.down(self.up(x).tanh()))


def chain(kind: Any = Block, count: int = 5, seed: int = 0, **how: Any) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(*[kind(**how) for _ in range(count)]).eval()


def samples(number: int = 4, seed: int = 1) -> list[Tensor]:
    torch.manual_seed(seed)
    return [3 * torch.randn(5, 7, 6) for _ in range(number)]


def gone(dense: nn.Module, *names: str, x: Any = None) -> tuple[nn.Module, Any]:
    plan = depth_plan(dense, samples()[0] if x is None else x, [Gap(name) for name in names])
    return plan.apply(dense), plan


@pytest.mark.parametrize("bias", [True, False])
def test_it_is_the_weighted_least_squares_solution(bias: bool) -> None:
    dense, data = chain(bias=bias), samples()
    small, plan = gone(dense, "2", "3")
    before = copy.deepcopy(small)
    told = recovery("bridge", ridge=0.1).heal(small, plan, data, dense)
    # By hand, token by token in float64, as one stacked system with the ridge as further rows.
    rows, wanted = [], []
    with torch.no_grad():
        for x in torch.cat(data).flatten(0, 1):
            reached = dense[1](dense[0](x))
            h = dense[1].up(dense[1].norm(dense[0](x))).tanh()
            h = torch.cat([h, torch.ones(1)]) if bias else h
            length = reached.norm()
            rows.append(h.double() / length)
            wanted.append((dense[3](dense[2](reached)) - reached).double() / length)
    a, b = torch.stack(rows), torch.stack(wanted)
    ridge = 0.1 * (a.T @ a).diagonal().mean()
    more = torch.eye(a.shape[1]).double() * ridge.sqrt()
    change = torch.linalg.lstsq(
        torch.cat([a, more]), torch.cat([b, torch.zeros(len(more), b.shape[1])])
    ).solution
    assert_close(small[1].down.weight, before[1].down.weight + change[:10].T.float())
    if bias:
        assert_close(small[1].down.bias, before[1].down.bias + change[10].float())
    others = {n for n, p in small.named_parameters() if not n.startswith("1.down")}
    assert all(torch.equal(small.get_parameter(n), before.get_parameter(n)) for n in others)
    said = told["layers"]["1.down"]
    assert said["before"] == pytest.approx(float(b.square().sum(1).mean().sqrt()), rel=1e-4)
    left = float((a @ change - b).square().sum(1).mean().sqrt())
    assert said["after"] == pytest.approx(left, rel=1e-4) and left < said["before"]


def test_what_can_be_said_in_full_is() -> None:
    """A block that repeats the layer before it is not missed at all."""
    dense = chain(count=4)

    inner = dense[1]

    class Recalling(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mix = nn.Linear(10, 6)

        def forward(self, x: Tensor) -> Tensor:
            return x + self.mix(inner.seen)

    inner.down.register_forward_pre_hook(lambda _, args: setattr(inner, "seen", args[0]))
    whole = nn.Sequential(dense[0], inner, Recalling(), dense[3]).eval()
    small = nn.Sequential(copy.deepcopy(dense[0]), copy.deepcopy(inner), copy.deepcopy(dense[3]))

    class Plan:
        dropped = (Gap("2"),)

    data = samples()
    told = recovery("bridge", ridge=0.0).heal(small, Plan, data, whole)
    assert told["layers"]["1.down"]["after"] < 1e-4
    with torch.no_grad():
        assert_close(small(data[0]), whole(data[0]), rtol=1e-4, atol=1e-4)


def test_each_gap_is_bridged_by_the_block_before_it() -> None:
    dense, data = chain(count=7), samples()
    small, plan = gone(dense, "0", "2", "4", "5")
    told = recovery("bridge").heal(small, plan, data, dense)
    assert {*told["layers"]} == {"1.down", "3.down"}
    assert told["skipped"] == {"0": "there is no block before it"}
    fresh, _ = gone(dense, "0", "2", "4", "5")
    moved = {n for n, p in small.named_parameters() if not torch.equal(p, fresh.get_parameter(n))}
    assert moved == {"0.down.weight", "0.down.bias", "1.down.weight", "1.down.bias"}


@pytest.mark.parametrize("build", [llama, gpt2])
def test_language_models_lose_less(build: Any) -> None:
    dense, data = build(), batches(6)
    names = [n for n, m in dense.named_modules() if n.rpartition(".")[2] == "1"]
    small, plan = gone(dense, names[0], x={"input_ids": tokens()})
    bare = copy.deepcopy(small)
    told = recovery("bridge").heal(small, plan, data, dense)
    assert len(told["layers"]) == 1 and not told["skipped"]
    with torch.no_grad():
        x = {"input_ids": tokens(seed=9)}
        far, near = ((m(**x).logits - dense(**x).logits).norm() for m in (bare, small))
    assert near < 0.95 * far
    assert {n: p.shape for n, p in small.named_parameters()} == {
        n: p.shape for n, p in bare.named_parameters()
    }


def test_padding_is_no_token() -> None:
    dense = llama()
    plain = [{"input_ids": tokens(seed=k)} for k in range(4)]
    padded = []
    for batch in plain:
        ids = batch["input_ids"]
        mask = torch.ones_like(ids)
        more = torch.zeros(len(ids), 5, dtype=ids.dtype)
        padded.append({
            "input_ids": torch.cat([ids, more], 1),
            "attention_mask": torch.cat([mask, more], 1),
        })  # fmt: skip
    found = []
    for data in (plain, padded):
        small, plan = gone(dense, "model.layers.1", x={"input_ids": tokens()})
        recovery("bridge", ridge=0.1).heal(small, plan, data, dense)
        found.append(small.model.layers[0].mlp.down_proj.weight)
    assert_close(found[0], found[1], rtol=1e-3, atol=1e-5)


def test_what_does_not_help_elsewhere_is_left_alone() -> None:
    class Fickle(Block):
        sign = 1

        def forward(self, x: Tensor) -> Tensor:
            self.sign = -self.sign  # what one batch teaches is wrong on the next
            return x + self.sign * (super().forward(x) - x)

    dense = chain(count=3)
    small, plan = gone(dense, "2")
    dense[2] = Fickle()
    data = samples(1) * 2
    before = copy.deepcopy(small.state_dict())
    told = recovery("bridge").heal(small, plan, data, dense)
    assert not told["layers"] and "helps" in told["skipped"]["2"]
    assert all(torch.equal(v, before[k]) for k, v in small.state_dict().items())


def test_what_cannot_be_bridged_is_said() -> None:
    dense, data = chain(PostNorm), samples()
    small, plan = gone(dense, "2")
    before = copy.deepcopy(small.state_dict())
    told = recovery("bridge").heal(small, plan, data, dense)
    assert told["skipped"] == {"2": "no linear layer of 1 adds to its output"}
    assert all(torch.equal(v, before[k]) for k, v in small.state_dict().items())
    model = llama()
    result = sec.prune(
        model, {"input_ids": tokens()}, method="blockpruner", amount=0.2, data=batches(),
        recovery="bridge", progress=False, measure=False,
    )  # fmt: skip
    (said,) = result.history[0]["recovery"]
    assert {*said["skipped"]} == {gap.module for gap in result.plan.dropped}


def test_depth_is_the_choice_of_shortgpt_bridged() -> None:
    model, data = llama(), batches(4)
    how: dict[str, Any] = {"amount": 0.5, "data": data, "progress": False, "measure": False}
    inputs = {"input_ids": tokens()}
    ours = sec.prune(model, inputs, method="depth", **how)
    other = sec.prune(model, inputs, method="shortgpt", recovery="bridge", **how)
    assert ours.plan.dropped == other.plan.dropped and ours.verification.ok
    for name, value in ours.model.state_dict().items():
        assert torch.equal(value, other.model.state_dict()[name])


@pytest.mark.parametrize(
    ("options", "data", "error", "match"),
    [
        ({"ridge": -1.0}, samples(), ConfigError, "0 or more"),
        ({}, None, DataError, "needs data"),
        ({}, [], DataError, "no batch"),
        ({}, [samples()[0] * float("nan")], SecateurError, "finite"),
    ],
)
def test_bad_input_changes_nothing(options: Any, data: Any, error: Any, match: str) -> None:
    dense = chain()
    small, plan = gone(dense, "2")
    before = copy.deepcopy(small.state_dict())
    with pytest.raises(error, match=match):
        recovery("bridge", **options).heal(small, plan, data, dense)
    assert all(torch.equal(v, before[k]) for k, v in small.state_dict().items())
