"""The walk from block to block, against whole forwards of the model."""

import copy
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from networks_tiny import IDS, NETWORKS, llama
from torch import Tensor, nn

from secateur.engine.blocks import Block, find_blocks
from secateur.engine.gather import Gathered
from secateur.engine.sequential import Outputs, token_masks, walk
from secateur.errors import DataError
from secateur.measure.calling import unfused


def call(model: nn.Module, x: Any) -> Any:
    return model(**x) if isinstance(x, dict) else model(x)


def whole(model: nn.Module, x: Any, weights: Any, needs: set[str]) -> Gathered:
    """Statistics from one ordinary forward of the whole model."""
    seen = Gathered(weights, needs)
    with torch.no_grad(), unfused(), seen.watching(token_masks(x)):
        call(model, x)
    return seen


def last_grams(data: Any, **how: Any) -> list[Tensor]:
    """The Gram matrices of the last block."""
    for step in walk(llama(), data, **how):
        seen = step.gather({"gram"})
    return [seen.stats(layer).gram for layer in seen.layers.values()]


@pytest.mark.parametrize("name", NETWORKS)
def test_a_block_sees_what_it_sees_in_the_pruned_model(name: str) -> None:
    """Each block is changed; the next one's statistics are those of a forward of all of it."""
    torch.manual_seed(0)
    build, x, blocks = NETWORKS[name]
    model = build().eval()
    data = [x if isinstance(x, dict) else (x,)]
    steps = 0
    for step in walk(model, data):
        needs = set() if name == "resnet" else {"gram"}  # of 4608 inputs: large
        seen = step.gather(needs)
        oracle = whole(model, x, step.weights(), needs)
        assert seen.layers == oracle.layers and seen.layers
        for layer in seen.layers.values():
            ours, theirs = seen.stats(layer), oracle.stats(layer)
            for value in ("input_norm", "input_mean", *needs):
                got, expected = getattr(ours, value), getattr(theirs, value)
                torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-6)
            layer.of(step.weights()[layer.parameter]).mul_(0.9)
        steps += 1
    assert steps == blocks
    assert all("forward" not in module.__dict__ for module in model.modules())


def test_dense_propagation_sees_the_dense_model() -> None:
    model, dense = llama(), llama()
    for step in walk(model, [{"input_ids": IDS}], propagate="dense"):
        seen = step.gather({"gram"})
        weights = {n: dense.get_parameter(n) for n in step.weights()}
        oracle = whole(dense, {"input_ids": IDS}, weights, {"gram"})
        for layer in seen.layers.values():
            assert torch.equal(seen.stats(layer).gram, oracle.stats(layer).gram)
            layer.of(step.weights()[layer.parameter]).zero_()


def test_cross_products_pair_the_dense_input_with_the_pruned_one() -> None:
    model, dense = llama(), llama()
    inputs: dict[str, dict[str, Tensor]] = {"model": {}, "dense": {}}
    name = "model.layers.1.mlp.down_proj"
    for step in walk(model, [{"input_ids": IDS}], propagate="both"):
        seen = step.gather({"gram", "cross"})
        if step.number == 1:
            for key, net in (("model", model), ("dense", dense)):
                hook = net.get_submodule(name).register_forward_pre_hook(
                    lambda _, args, key=key: inputs[key].update(x=args[0].flatten(0, 1))
                )
                with torch.no_grad():
                    net(IDS)
                hook.remove()
            expected = inputs["dense"]["x"].T @ inputs["model"]["x"] / IDS.numel()
            got = seen.stats(seen.layers[f"{name}.weight"]).cross
            torch.testing.assert_close(got, expected)
        for layer in seen.layers.values():
            layer.of(step.weights()[layer.parameter]).mul_(0.5)


def test_layers_with_the_same_input_share_one_gram() -> None:
    step = next(iter(walk(llama(), [{"input_ids": IDS}])))
    groups = [[layer.name.split(".")[-2] for layer in g] for g in step.gather({"gram"}).groups()]
    shared = [["q_proj", "k_proj", "v_proj"], ["o_proj"], ["gate_proj", "up_proj"], ["down_proj"]]
    assert groups == shared


def test_padding_does_not_count() -> None:
    build, x, _ = NETWORKS["bert"]
    model = build().eval()
    step = next(iter(walk(model, [x])))
    seen = step.gather({"gram"})
    name = "encoder.layer.0.attention.self.query.weight"
    with torch.no_grad():
        tokens = model.embeddings(x["input_ids"])[x["attention_mask"] == 1]
    assert seen.stats(seen.layers[name]).tokens == 26
    torch.testing.assert_close(seen.stats(seen.layers[name]).gram, tokens.T @ tokens / 26)


def test_many_batches_are_as_one() -> None:
    grams = []
    for data in ([{"input_ids": IDS}], [{"input_ids": row[None]} for row in IDS]):
        grams.append(last_grams(data))
    for one, other in zip(*grams, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_outputs_on_disk_are_as_in_memory(tmp_path) -> None:  # type: ignore[no-untyped-def]
    grams = []
    for spill in (None, tmp_path):
        grams.append(last_grams([{"input_ids": IDS}], spill=spill))
    assert all(torch.equal(a, b) for a, b in zip(*grams, strict=True))
    assert not list(tmp_path.iterdir())


def test_activations_that_are_not_finite_are_named() -> None:
    model = llama()
    with torch.no_grad():
        model.get_parameter("model.layers.0.self_attn.v_proj.weight").fill_(torch.inf)
    with pytest.raises(DataError, match=r"layers\.0\.self_attn\.o_proj"):
        for step in walk(model, [{"input_ids": IDS}]):
            step.gather()


class Headed(nn.Module):
    """Two blocks, and a head that keeps what it gave and may ask for a value."""

    def __init__(self, asks: bool) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*(nn.Sequential(nn.Linear(4, 4), nn.ReLU()) for _ in range(2)))
        self.head, self.asks, self.seen, self.last = nn.Linear(4, 9), asks, [], None

    def forward(self, x: Tensor) -> Tensor:
        self.last = self.head(self.blocks(x))
        if self.asks:
            self.seen.append(float(self.last.detach().sum()))
        return self.last


@pytest.mark.parametrize("asks", [False, True])
def test_what_comes_behind_the_blocks_is_pretended_unless_values_decide(asks: bool) -> None:
    model, x = Headed(asks), torch.ones(3, 4)
    found = find_blocks(model, lambda: model(x))
    assert [block.name for block in found] == ["blocks.0", "blocks.1"]
    assert (type(model.last) is Tensor) == asks and len(model.seen) == asks
    torch.testing.assert_close(model(x), model.head(model.blocks(x)))


def test_an_output_takes_the_place_of_the_input_of_its_block(monkeypatch) -> None:  # type: ignore[no-untyped-def]
    blocks = (nn.Sequential(nn.Linear(4, 4), nn.ReLU()) for _ in range(3))
    model = nn.Sequential(nn.Sequential(*blocks))
    held, put = [], Outputs.__setitem__

    def counted(self: Outputs, key: tuple[str, int], value: Any) -> None:
        put(self, key, value)
        held.append(len(self.values))

    monkeypatch.setattr(Outputs, "__setitem__", counted)
    for _ in walk(model, [(torch.ones(2, 4),)] * 5):
        pass
    assert max(held) == 6  # of five samples


class Adds(nn.Module):
    """A block that writes to what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.add_(1))


class Shares(nn.Module):
    """Blocks of which the first puts something into a list and a dict, and the last reads it."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.ModuleDict({"part": nn.Linear(4, 4)}) for _ in range(3))
        for number, layer in enumerate(self.layers):
            layer.forward = partial(self.block, number)  # type: ignore[method-assign]

    def block(self, number: int, x: Tensor, stack: list[Tensor], *, by_name: Any) -> Tensor:
        y = self.layers[number]["part"](x)  # type: ignore[index]
        if number == 0:
            stack.append(y + 1)
            by_name["key"] = (y * 2,)
        return y if number < 2 else y + stack[0] + by_name["key"][0]

    def forward(self, x: Tensor) -> Tensor:
        stack: list[Tensor] = []
        by_name: dict[str, Any] = {}
        for layer in self.layers:
            x = layer(x, stack, by_name=by_name)
        return x


@pytest.mark.parametrize("propagate", ["pruned", "dense", "both"])
@pytest.mark.parametrize("spilled", [False, True])
def test_what_a_block_hands_to_later_ones_arrives(
    propagate: Any, spilled: bool, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    net, data = Shares(), [(torch.randn(5, 4),) for _ in range(2)]
    wanted = [net(x).detach() for (x,) in data]
    blocks = tuple(Block(f"layers.{k}", "layers") for k in range(3))
    how: dict[str, Any] = {"propagate": propagate, "blocks": blocks}
    how["spill"] = tmp_path if spilled else None
    state: list[Any] = []
    for step in walk(net, data, **how, commit=lambda w: state.append(copy.deepcopy(w.state()))):
        if step.number == 2:
            got = [step.walk.run(step.block, k, step.walk.streams[0], False) for k in (0, 1)]
            assert all(torch.equal(a, b) for a, b in zip(got, wanted, strict=True))
    assert not list(tmp_path.iterdir())
    if not spilled:
        for step in walk(net, data, **how, resume=state[1]):
            assert torch.equal(step.walk.run(step.block, 0, step.walk.streams[0], False), wanted[0])


def test_samples_stay_as_they_were_given() -> None:
    torch.manual_seed(0)
    net, x = nn.Sequential(Adds(), Adds()), torch.randn(5, 4)
    before = x.clone()
    for number, step in enumerate(walk(net, [x])):
        seen = step.gather({"gram"})
        (layer,) = seen.layers.values()
        inputs = before + 1 if not number else net[0].layer(before + 1).detach() + 1
        torch.testing.assert_close(seen.stats(layer).gram, inputs.T @ inputs / 5)
    assert torch.equal(x, before)
