"""DSR: the threshold, the redistribution and the count, each against the paper's rule."""

import torch
from torch import nn

import secateur as sec
from secateur.methods.during.dsr import apportion


def test_apportioning_is_exact_and_respects_room() -> None:
    generator = torch.Generator().manual_seed(1)
    for _ in range(50):
        shares = torch.randint(0, 50, (5,), generator=generator).float()
        room = torch.randint(0, 30, (5,), generator=generator)
        total = int(torch.randint(0, int(room.sum()) + 1, (1,), generator=generator))
        given = apportion(total, shares, room)
        assert int(given.sum()) == total and bool((given <= room).all())
    free = apportion(100, torch.tensor([1.0, 2.0, 5.0]), torch.full((3,), 1000))
    assert (free - torch.tensor([12.5, 25.0, 62.5])).abs().max() < 1


def test_weights_below_the_threshold_go_and_as_many_come_where_much_has_stayed() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(30, 40), nn.ReLU(), nn.Linear(40, 10))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
    options = {"every": 1, "share": 0.05, "threshold": 0.02, "stop": 0.9}
    handle = sec.attach(net, optimizer, ("dsr", options), amount=0.8, steps=30)
    x, y = torch.randn(50, 30), torch.randint(0, 10, (50,))
    kept = handle.masks.kept
    shadow = nn.Sequential(nn.Linear(30, 40), nn.ReLU(), nn.Linear(40, 10))
    layers, heights = set(), set()
    for step in range(1, 31):
        old, height = handle.masks, float(handle.moment.state["threshold"])
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        # The same step on a copy, to see the weights that the rule sees.
        shadow.load_state_dict(net.state_dict())
        for n, p in net.named_parameters():
            slot = optimizer.state.get(p, {}).get("momentum_buffer")
            grad = p.grad * old[n] if n in old else p.grad
            with torch.no_grad():
                shadow.get_parameter(n).sub_(0.05 * (grad if slot is None else 0.9 * slot + grad))
        optimizer.step()
        new = handle.masks
        assert new.kept == kept
        if step >= 27:
            assert new == old
            continue
        stayed, gone = {}, 0
        for n in old:
            low = old[n] & (shadow.get_parameter(n).detach().abs() < height)
            assert not bool((new[n] & low).any())  # never back at once
            stayed[n] = int(old[n].sum() - low.sum())
            gone += int(low.sum())
            grown = new[n] & ~old[n]
            assert not bool(net.get_parameter(n)[grown].any())
            buffer = optimizer.state[net.get_parameter(n)]["momentum_buffer"]
            assert not bool(buffer[grown | ~new[n]].any())
        for n in old:
            grown = int((new[n] & ~old[n]).sum())
            assert abs(grown - gone * stayed[n] / sum(stayed.values())) <= 1
            layers.add((n, int(new[n].sum())))
        now = float(handle.moment.state["threshold"])
        ratio = gone / (0.05 * kept)
        assert now == (height / 2 if ratio > 1.1 else height * 2 if ratio < 0.9 else height)
        heights.add(now)
    assert len(layers) > 4 and len(heights) > 1
