"""SET against what its paper says, written out."""

import torch
from torch import nn

import secateur as sec
from secateur.methods.during.set import closeness

STEPS = 8


def run(name, watch, **options):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(12, 30), nn.ReLU(), nn.Linear(30, 5))
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    handle = sec.attach(net, optimizer, name, amount=0.8, steps=STEPS, **options)
    x, y = torch.randn(40, 12), torch.randint(0, 5, (40,))
    for step in range(1, STEPS + 1):
        old, weights = (
            handle.masks,
            {n: net.get_parameter(n).detach().clone() for n in handle.masks},
        )
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        gradients = {n: net.get_parameter(n).grad.clone() for n in handle.masks}
        optimizer.step()
        watch(step, net, optimizer, old, handle.masks, weights, gradients)
    return handle


def test_the_lowest_share_is_the_same_share_of_either_sign() -> None:
    weight = torch.cat([torch.rand(20) * 0.01, -torch.rand(40) * 10])[torch.randperm(60)]
    gone = closeness(weight).argsort()[: 60 * 3 // 10]
    positive = sorted(w for w in weight.tolist() if w > 0)[:6]
    negative = sorted((w for w in weight.tolist() if w < 0), reverse=True)[:12]
    assert sorted(weight[gone].tolist()) == sorted(positive + negative)


def test_set_drops_the_smallest_of_each_sign_and_grows_as_many_at_zero() -> None:
    moved = []

    def watch(step, net, optimizer, old, new, weights, gradients):
        if step % 2 or step == STEPS:
            assert new == old
            return
        for n in new:
            assert int(new[n].sum()) == int(old[n].sum())
            active = weights[n][old[n]]
            share = int(0.3 * len(active))
            left = weights[n][old[n] & new[n]]
            # Those that went and did not come back are among the lowest of their sign.
            for sign in (1, -1):
                sizes = (active * sign)[active * sign > 0].sort().values
                quota = int(0.3 * len(sizes)) + 1
                went = (weights[n] * sign)[old[n] & ~new[n]]
                assert bool((went[went > 0] <= sizes[quota - 1]).all())
            assert len(active) - len(left) <= share
            grown = new[n] & ~old[n]
            moved.append(int(grown.sum()))
            p = net.get_parameter(n)
            assert not bool(p[grown].any())
            assert not bool(optimizer.state[p]["exp_avg"][grown].any())
            assert not bool((grown & old[n]).any())

    run("set", watch, every=2)
    assert sum(moved) > 0


def test_a_random_mask_does_not_follow_the_weights_made_under_the_same_seed() -> None:
    torch.manual_seed(0)
    net = nn.Linear(60, 50)
    handle = sec.attach(net, torch.optim.SGD(net.parameters()), "random", amount=0.8, seed=0)
    kept = net.weight.detach()[handle.masks["weight"]]
    assert abs(float((kept > 0).float().mean()) - 0.5) < 0.1


def test_by_magnitude_the_smallest_go() -> None:
    def watch(step, net, optimizer, old, new, weights, gradients):
        if step % 2 or step == STEPS:
            return
        for n in new:
            active = weights[n][old[n]].abs().sort().values
            share = int(0.3 * len(active))
            went = weights[n][old[n] & ~new[n]].abs()
            assert bool((went <= active[share - 1]).all())

    run("set", watch, every=2, per_sign=False)
