"""Growing regularisation, dual lottery tickets and magnitude at initialisation, written out."""

import pytest
import torch
from during_runs import dense, train, vectors

import secateur as sec
from secateur.errors import ConfigError

OPTIONS = {"every": 2, "ceiling": 0.8, "grow": 0.4, "end": 0.6, "granularity": "row"}


def test_training_equals_the_loop_written_out() -> None:
    net, plain = dense(), dense()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    handle = sec.attach(net, optimizer, "growing_regularisation", amount=0.4, steps=10, **OPTIONS)
    train(net, optimizer, vectors(10))
    gone = {}
    for layer in (0, 2):
        rows = [float(r.abs().sum()) for r in plain[layer].weight.detach()]
        number = round(0.4 * len(rows))
        gone[layer] = sorted(range(len(rows)), key=lambda i: rows[i])[:number]

    def push(step: int) -> None:
        for layer, rows in gone.items():
            w = plain[layer].weight
            if step < 6:
                lam = 0.8 * min(step // 2 * 2 / 10 / 0.4, 1.0)
                w.grad[rows] += lam * w.detach()[rows]
            else:
                w.grad[rows] = 0

    own = torch.optim.SGD(plain.parameters(), lr=0.1, momentum=0.9)

    def remove(step: int) -> None:
        if step < 6:
            return
        for layer, rows in gone.items():
            w = plain[layer].weight
            for t in (w.data, own.state[w]["momentum_buffer"]):
                t[rows] = 0

    train(plain, own, vectors(10), push, remove)
    for key, value in plain.state_dict().items():
        torch.testing.assert_close(net.state_dict()[key], value, msg=key)
    kept = handle.finish().masks
    assert {n: int(m[:, 0].sum()) for n, m in kept.items()} == {"0.weight": 18, "2.weight": 3}


def test_a_late_choice_pushes_all_alike_until_then() -> None:
    net, plain = dense(), dense()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    options = {**OPTIONS, "pick": 0.4, "common": 0.05}
    handle = sec.attach(net, optimizer, "growing_regularisation", amount=0.4, steps=10, **options)

    def push(step: int) -> None:
        for layer in (0, 2):
            w = plain[layer].weight
            w.grad += 0.05 * (step // 2 * 2 / 10) / 0.4 * w.detach()

    train(net, optimizer, vectors(10)[:4])
    train(plain, torch.optim.SGD(plain.parameters(), lr=0.1), vectors(10)[:4], push)
    torch.testing.assert_close(net[0].weight, plain[0].weight)
    chosen = net[0].weight.detach().abs().sum(1).topk(18).indices
    train(net, optimizer, vectors(10)[4:])
    kept = handle.finish().masks["0.weight"].all(1)
    assert sorted(chosen.tolist()) == kept.nonzero().flatten().tolist()


def test_what_is_extruded_shrinks_to_nothing_and_the_ticket_never_changes() -> None:
    net = dense()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.5)
    handle = sec.attach(net, optimizer, "dual_ticket", amount=0.8, steps=100, every=1)
    stays = {n: handle.moment.state[f"stays.{n}"].clone() for n in handle.masks}
    assert sum(int(m.sum()) for m in stays.values()) == 150
    sizes = []

    def look(step: int) -> None:
        sizes.append(sum(float(net.get_parameter(n).detach()[~m].norm()) for n, m in stays.items()))

    train(net, optimizer, vectors(100), after=look)
    assert sizes[0] > 10 * sizes[49] > 0 and not any(sizes[50:])
    assert sorted(sizes[:20], reverse=True) == sizes[:20]
    assert handle.finish().masks == sec.MaskSet(stays)


def test_without_force_it_is_plain_training_until_the_removal() -> None:
    net, plain = dense(), dense()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    sec.attach(net, optimizer, "dual_ticket", amount=0.8, steps=10, ceiling=0.0)
    train(net, optimizer, vectors(5))
    train(plain, torch.optim.SGD(plain.parameters(), lr=0.1), vectors(5))
    for a, b in zip(net.parameters(), plain.parameters(), strict=True):
        assert torch.equal(a, b)


def test_the_largest_initial_weights_stay_wherever_they_are() -> None:
    net = dense()
    with torch.no_grad():
        net[2].weight *= 2
    weights = {n: net[n].weight.detach().clone().abs() for n in (0, 2)}
    lowest = torch.cat([w.flatten() for w in weights.values()]).sort(descending=True).values[74]
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    masks = sec.attach(net, optimizer, "initial_magnitude", amount=0.9).masks
    for n, w in weights.items():
        assert torch.equal(masks[f"{n}.weight"], w >= lowest)
    assert masks.densities()["2.weight"] > 2 * masks.densities()["0.weight"] > 0


@pytest.mark.parametrize("wrong", [{"grow": 0.9}, {"pick": 0.7}, {"every": 0}, {"ceiling": -1.0}])
def test_options_out_of_order_are_said(wrong) -> None:
    net = dense()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with pytest.raises(ConfigError, match="growing_regularisation"):
        sec.attach(net, optimizer, "growing_regularisation", steps=10, **{**OPTIONS, **wrong})
    with pytest.raises(ConfigError, match="give steps="):
        sec.attach(net, optimizer, "growing_regularisation", granularity="row")
    sec.attach(net, optimizer, "random")
