"""DeepR against its update written out, and its invariants."""

import torch
from torch import nn

import secateur as sec


def run(steps, lr=0.1, **options):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 5))
    optimizer = torch.optim.SGD(net.parameters(), lr=lr)
    handle = sec.attach(net, optimizer, ("deepr", options), amount=0.7, steps=steps)
    x, y = torch.randn(40, 20), torch.randint(0, 5, (40,))
    for _ in range(steps):
        before = {n: net.get_parameter(n).detach().clone() for n in handle.masks}
        old = handle.masks
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        gradients = {n: net.get_parameter(n).grad.clone() for n in old}
        optimizer.step()
        yield net, handle, old, before, gradients


def test_without_noise_a_step_is_the_papers_on_theta() -> None:
    died = 0
    for net, handle, old, before, gradients in run(20, lr=0.5, l1=1e-2, noise=0.0):
        new = handle.masks
        for n in old:
            sign = handle.moment.state[f"sign.{n}"]
            theta = (before[n] * sign - 0.5 * (gradients[n] * sign + 1e-2)) * old[n]
            lives = old[n] & (theta >= 0)
            torch.testing.assert_close(
                net.get_parameter(n).detach(), (sign * theta).masked_fill(~lives, 0)
            )
            assert bool((new[n] | ~lives).all())
            assert not bool((new[n] & old[n] & ~lives).any())
            died += int((old[n] & ~lives).sum())
    assert died > 0


def test_counts_and_signs_stay_and_the_places_move() -> None:
    first = None
    for net, handle, old, _, _ in run(20, l1=1e-2, noise=0.5):
        first = first or (old, {n: s.clone() for n, s in handle.moment.state.items()})
        assert handle.masks.densities() == first[0].densities()
        for n in old:
            sign = handle.moment.state[f"sign.{n}"]
            assert torch.equal(sign, first[1][f"sign.{n}"])
            assert bool((net.get_parameter(n) * sign >= 0).all())
    assert handle.masks != first[0]


def test_the_walk_has_the_size_asked() -> None:
    sizes = []
    for net, _, old, before, gradients in run(1, lr=0.1, l1=0.0, noise=1e-3):
        for n in old:
            moved = net.get_parameter(n).detach() - before[n] + 0.1 * gradients[n]
            sizes.append(moved[old[n] & (net.get_parameter(n) != 0)])
    walk = torch.cat(sizes)
    assert 0.7e-4 < float(walk.std()) < 1.3e-4
