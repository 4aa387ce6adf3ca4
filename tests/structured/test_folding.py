"""Recoveries that solve in one pass what kept inputs can say of removed ones."""

from typing import Any

import pytest
import torch
from tiny import batches, gpt2, llama, tokens
from torch import Tensor, nn
from torch.testing import assert_close

import secateur as sec
from secateur.errors import ConfigError, DataError
from secateur.recovery import recovery

QUIET: dict[str, Any] = {"progress": False, "measure": False}
INPUTS = {"input_ids": tokens()}


def inputs_of(model: nn.Module, layer: str, data: Any) -> Tensor:
    seen: list[Tensor] = []
    hook = model.get_submodule(layer).register_forward_pre_hook(
        lambda _, args: seen.append(args[0].detach().reshape(-1, args[0].shape[-1]))
    )
    with torch.no_grad():
        for batch in data:
            model(input_ids=batch["input_ids"])
    hook.remove()
    return torch.cat(seen).double()


def kept(result: Any, layer: str, axis: int) -> Tensor:
    return result.plan.masks(f"{layer}.weight")[axis].nonzero().flatten()


def pruned(build: Any, recovery: Any, kinds: list[str], data: Any) -> tuple[nn.Module, Any]:
    model = build(2)
    result = sec.prune(model, INPUTS, amount=0.4, criterion="l1", kinds=kinds, data=data,
                       recovery=recovery, **QUIET)  # fmt: skip
    return model, result


CASES = [
    (llama, "model.layers.1.mlp.down_proj", "channel"),
    (llama, "model.layers.0.self_attn.o_proj", "head"),
    (gpt2, "transformer.h.0.mlp.c_proj", "channel"),
]


@pytest.mark.parametrize(("build", "layer", "kind"), CASES)
@pytest.mark.parametrize("bias", [False, True])
def test_fold_is_the_least_squares_fit_with_a_column_of_ones(
    build: Any, layer: str, kind: str, bias: bool
) -> None:
    data = batches(8)
    model, result = pruned(build, ("fold", {"ridge": 0.0, "bias": bias}), [kind], data)
    swapped = build is gpt2  # its weights are (in, out)
    old, new = model.get_submodule(layer), result.model.get_submodule(layer)
    x, columns = inputs_of(model, layer, data), kept(result, layer, 0 if swapped else 1)
    weight = old.weight.detach().double()
    offset = old.bias.detach().double() if old.bias is not None else 0.0
    aim = x @ (weight if swapped else weight.T) + offset
    given = x[:, columns]
    found = given @ (new.weight.double() if swapped else new.weight.double().T)
    found = found + (new.bias.double() if new.bias is not None else 0.0)
    if bias:
        given = torch.cat([given, torch.ones(len(given), 1).double()], 1)
        best = given @ torch.linalg.lstsq(given, aim, driver="gelsd").solution
    else:
        best = offset + given @ torch.linalg.lstsq(given, aim - offset, driver="gelsd").solution
    assert (best - aim).norm() / aim.norm() < 0.9
    assert_close((found - aim).norm(), (best - aim).norm(), rtol=1e-2, atol=1e-2)
    said = result.history[0]["recovery"][0]["layers"][layer]
    assert said["after"] <= said["before"]


def test_a_neuron_with_a_twin_is_not_missed() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2, bias=False))
    with torch.no_grad():
        net[0].weight[1], net[0].bias[1] = 2 * net[0].weight[0], 2 * net[0].bias[0]
        net[0].weight[3], net[0].bias[3] = net[0].weight[2], net[0].bias[2]
    x = torch.randn(100, 3)
    plan = sec.plan(sec.trace(net, x), amount=0.5).with_keep(
        {"0": torch.tensor([True, False, True, False])}
    )
    for name, options in (("fold", {"ridge": 1e-9, "bias": False}),):
        small = plan.apply(net)
        recovery(name, **options).heal(small, plan, [(x,)], net)
        assert_close(small(x), net(x), rtol=1e-4, atol=1e-5)
    with torch.no_grad():  # for one factor a unit, what it adds must be in the same direction
        net[2].weight[:, 1], net[2].weight[:, 3] = net[2].weight[:, 0], net[2].weight[:, 2]
    small = plan.apply(net)
    report = recovery("scale", damping=1e-9).heal(small, plan, [(x,)], net)
    assert_close(small(x), net(x), rtol=1e-4, atol=1e-5)
    assert report["layers"]["2"] == pytest.approx([2.0, 3.0], rel=1e-4)


@pytest.mark.parametrize(("damping", "factor"), [(1.0, 1.5), (0.5, 1 + 1 / 1.5)])
def test_damping_draws_factors_towards_one(damping: float, factor: float) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 2), nn.ReLU(), nn.Linear(2, 2, bias=False))
    with torch.no_grad():  # twins: without damping the one that stays counts twice
        net[0].weight[1], net[0].bias[1] = net[0].weight[0], net[0].bias[0]
        net[2].weight[:, 1] = net[2].weight[:, 0]
    x = torch.randn(100, 3)
    keep = {"0": torch.tensor([True, False])}
    plan = sec.plan(sec.trace(net, x), amount=0.5).with_keep(keep)
    report = recovery("scale", damping=damping).heal(plan.apply(net), plan, [(x,)], net)
    assert report["layers"]["2"] == pytest.approx([factor, factor], rel=1e-4)


@pytest.mark.parametrize(("build", "layer", "kind"), CASES)
def test_scale_is_the_least_squares_fit_of_one_factor_a_unit(
    build: Any, layer: str, kind: str
) -> None:
    data = batches(8)
    model, result = pruned(build, ("scale", {"damping": 0.0, "largest": 1e9}), [kind], data)
    axis = 0 if build is gpt2 else 1
    old, new = model.get_submodule(layer), result.model.get_submodule(layer)
    x, columns = inputs_of(model, layer, data), kept(result, layer, axis)
    weight = old.weight.detach().double()
    weight = weight if axis == 0 else weight.T  # (in, out)
    each = 8 if kind == "head" else 1  # two queries of four dimensions
    parts = torch.stack([x[:, i : i + each] @ weight[i : i + each]
                         for i in columns[::each].tolist()], -1)  # fmt: skip
    aim = x @ weight
    flat = parts.reshape(-1, parts.shape[-1])
    best = torch.linalg.lstsq(flat, aim.reshape(-1, 1), driver="gelsd").solution
    after = new.weight.detach().double()
    after = after if axis == 0 else after.T
    errors = [((x[:, columns] @ after) - aim).norm(), (flat @ best - aim.reshape(-1, 1)).norm()]
    assert_close(errors[0], errors[1], rtol=1e-3, atol=1e-3)
    factors = after / weight[columns]
    assert_close(factors, factors[:, :1].expand_as(factors), rtol=1e-3, atol=1e-3)
    assert_close(factors.view(-1, each, factors.shape[1]).std(1, correction=0).max(),
                 torch.zeros(()).double(), rtol=0, atol=1e-3)  # fmt: skip


def test_an_unpruned_layer_has_factors_of_one_and_a_wild_one_is_left_alone() -> None:
    data = batches(2)
    model, result = pruned(llama, ("scale", {"largest": 1e-3}), ["channel"], data)
    bare = result.plan.apply(model)
    assert_close(result.model.state_dict(), bare.state_dict(), rtol=0, atol=0)
    assert all("larger than" in why for why in result.history[0]["recovery"][0]["skipped"].values())


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [("fold", {"ridge": -1.0}, "0 or more"), ("scale", {"damping": -1.0}, "0 or more")],
)
def test_bad_options(name: str, options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        recovery(name, **options).heal(nn.Linear(2, 2), None, [], nn.Linear(2, 2))


def test_data_that_are_not_finite_change_nothing() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    x = torch.randn(10, 3)
    plan = sec.plan(sec.trace(net, x), amount=0.5)
    for name in ("bias", "fold", "scale"):
        small = plan.apply(net)
        with pytest.raises(DataError, match="not finite"):
            recovery(name).heal(small, plan, [(x * float("nan"),)], net)
        assert_close(small.state_dict(), plan.apply(net).state_dict(), rtol=0, atol=0)
