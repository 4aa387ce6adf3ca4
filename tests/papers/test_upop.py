"""UPop: its search written out naively on an MLP, its progress, and removal of head dimensions."""

import math

import pytest
import torch
from during_runs import dense, train, vectors
from torch import nn

import secateur as sec
from secateur.errors import ConfigError
from secateur.methods.during.upop import priced
from secateur.training.removal import plan_of_zeros


def attached(net, x, steps: int, lr: float = 0.1, **options):
    optimizer = torch.optim.SGD(net.parameters(), lr=lr)
    return optimizer, sec.attach(
        net, optimizer, "upop", steps=steps, example_inputs=x, every=2, **options
    )


def three_layers() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(20, 12), nn.ReLU(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 5))


def test_the_search_is_the_paper_s_written_out() -> None:
    net, twin, data = three_layers(), three_layers(), vectors(10)
    optimizer, handle = attached(net, data[0][0], steps=10, amount=0.5, end=0.8)
    plain = torch.optim.SGD(twin.parameters(), lr=0.1)
    masks = [torch.ones(12), torch.ones(8)]
    total = [torch.zeros(12), torch.zeros(8)]
    cost = [20 + 1 + 8] * 12 + [12 + 1 + 5] * 8  # weights and biases of a unit, and its readers
    for step, (x, y) in enumerate(data, start=1):
        torch.testing.assert_close(
            [handle.gated.aux[n]["mask"].detach() for n in ("0", "2")], masks
        )
        train(net, optimizer, [(x, y)])
        live = [m.clone().requires_grad_() for m in masks]
        hidden = (twin[0](x) * live[0]).relu()
        out = twin[4]((twin[2](hidden) * live[1]).relu())
        plain.zero_grad()
        nn.functional.cross_entropy(out, y).backward()
        plain.step()
        total = [t + m.grad for t, m in zip(total, live, strict=True)]
        if step % 2 or step > 8:
            continue
        share = math.sqrt((1 - math.cos(math.pi * step / 8)) / 2)
        flat = torch.cat(total)
        z = ((flat - flat.mean()) / flat.std(correction=0)).tolist()
        best = {int(total[0].argmin()), 12 + int(total[1].argmin())}  # no layer is emptied
        marked, spent = set(), 0
        budget = 0.5 * share * sum(cost)
        for unit in sorted((u for u in range(20) if u not in best), key=lambda u: -z[u]):
            if abs(spent + cost[unit] - budget) > abs(spent - budget):
                break
            spent += cost[unit]
            marked.add(unit)
        masks = [
            torch.tensor([1 - share if u in marked else 1.0 for u in range(12)]),
            torch.tensor([1 - share if u in marked else 1.0 for u in range(12, 20)]),
        ]
        total = [torch.zeros(12), torch.zeros(8)]
    assert all(set(m.tolist()) == {0.0, 1.0} for m in masks)
    for name in (0, 2, 4):
        torch.testing.assert_close(net[name].weight, twin[name].weight)
    result = handle.finish(remove=True, example_inputs=data[0][0])
    assert result.verification.ok
    for place, mask in zip((0, 2), masks, strict=True):
        assert not bool(net[place].weight[mask == 0].any() or net[place].bias[mask == 0].any())
        assert result.model[place].out_features == int(mask.sum())
    x = data[0][0]
    hidden = (twin[2]((twin[0](x) * masks[0]).relu()) * masks[1]).relu()
    torch.testing.assert_close(result.model(x), twin[4](hidden))


def transformer(steps: int, **options):
    torch.manual_seed(0)
    net, x = sec.zoo.build("vit"), sec.zoo.example_inputs("vit")
    optimizer, handle = attached(net, x, steps=steps, **options)
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(*x), torch.tensor([0, 1])).backward()
        optimizer.step()
    return net, x, handle


def test_kinds_are_compared_by_their_own_spread_and_priced_by_all_their_weights() -> None:
    _, _, handle = transformer(1)
    units = priced(handle.units)
    assert units.sizes["blocks.0.mlp.0"] == 64 + 1 + 64
    assert units.sizes["blocks.0.attn.qkv:head_dim"] == 4 * (3 * (64 + 1) + 64)
    aux = handle.gated.aux
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for space, a in aux.items():  # a thousand times the size, and far away
            drawn = torch.randn(a["pull"].shape, generator=generator)
            a["pull"].copy_(1000 * drawn - 5000 if "mlp" in space else drawn)
    handle.moment.step = 1
    handle.moment.steps = 1
    handle.method.gate.updated(aux, handle.moment)
    gone = {space: float((a["mask"] == 0).float().mean()) for space, a in aux.items()}
    assert all(0.2 < share < 0.8 for share in gone.values()), gone


@pytest.mark.parametrize("end", [0.5, 1.0])
def test_dimensions_of_heads_and_neurons_are_removed_and_that_is_proven(end) -> None:
    net, x, handle = transformer(6, amount=0.5, end=end)
    marks = {n: a["mask"].detach().clone() for n, a in handle.gated.aux.items()}
    before = net.eval()(*x)
    result = handle.finish(remove=True, example_inputs=x)
    assert result.verification.ok
    torch.testing.assert_close(result.model.eval()(*x), before)
    for i, block in enumerate(result.model.blocks):
        dimensions = int(marks[f"blocks.{i}.attn.qkv:head_dim"].sum())
        assert block.attn.qkv.out_features == 3 * 4 * dimensions
        assert block.mlp[0].out_features == int(marks[f"blocks.{i}.mlp.0"].sum())
    gone = sum(p.numel() for p in net.parameters())
    gone -= sum(p.numel() for p in result.model.parameters())
    sizes = priced(handle.units).sizes
    whole = sum(size * handle.units.counts[s] for s, size in sizes.items())
    assert gone / whole == pytest.approx(0.5, abs=0.02)


def test_finished_early_what_is_marked_goes() -> None:
    data = vectors(4)
    net = dense()
    optimizer, handle = attached(net, data[0][0], steps=40, amount=0.6, end=1.0)
    train(net, optimizer, data)
    marked = handle.gated.aux["0"]["mask"].detach() < 1
    wanted = 0.6 * math.sin(math.pi / 2 * 4 / 40)
    assert float(marked.float().mean()) == pytest.approx(wanted, abs=1 / 30)
    result = handle.finish()
    assert bool((net[0].weight == 0).all(1).eq(marked).all())
    assert result.masks.sparsity > 0


def test_options_out_of_range_are_said() -> None:
    with pytest.raises(ConfigError, match="end=0"):
        attached(dense(), vectors(1)[0][0], steps=4, end=0)


def test_dimensions_that_nothing_projects_stay_while_queries_and_keys_use_them() -> None:
    torch.manual_seed(0)
    net, x = sec.zoo.build("vit"), sec.zoo.example_inputs("vit")
    graph = sec.trace(net, x)
    with torch.no_grad():  # dimension 3 of all four heads
        net.blocks[0].attn.proj.weight[:, 3::16] = 0
    assert plan_of_zeros(graph).removed == {}
    with torch.no_grad():
        net.blocks[0].attn.qkv.weight[3::16] = 0
        net.blocks[0].attn.qkv.bias[3::16] = 0
    plan = plan_of_zeros(graph)
    assert plan.removed == {"blocks.0.attn.qkv:head_dim": 1}
    assert plan.verify(net).ok
