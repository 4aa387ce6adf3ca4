"""Factorized filters: projections against an independent solver, the update written out."""

import pytest
import torch
from during_runs import convolutional, pictures, train
from scipy.optimize import minimize
from torch import nn

import secateur as sec
from secateur.errors import ConfigError
from secateur.methods.during.factorized_filters import to_capped_box, to_sphere


@pytest.mark.parametrize(("n", "total"), [(5, 2.0), (8, 7.0), (3, 1.0)])
def test_the_nearest_point_of_the_capped_box_is_the_solvers(n, total) -> None:
    v = torch.randn(n, generator=torch.Generator().manual_seed(n)) * 2
    found = to_capped_box(v, total)
    solved = minimize(
        lambda z: ((z - v.numpy()) ** 2).sum(),
        [total / n] * n,
        bounds=[(0, 1)] * n,
        constraints={"type": "eq", "fun": lambda z: z.sum() - total},
        method="SLSQP",
        options={"ftol": 1e-12},
    )
    torch.testing.assert_close(found, torch.tensor(solved.x).float(), atol=1e-3, rtol=0)
    assert float(found.sum()) == pytest.approx(total, abs=1e-4)


def test_the_sphere_holds_all_binary_vectors_and_what_is_projected() -> None:
    binary = torch.randint(0, 2, (20, 7), generator=torch.Generator().manual_seed(0)).float()
    for b in binary:
        torch.testing.assert_close(to_sphere(b), b, atol=1e-6, rtol=0)
        torch.testing.assert_close(to_capped_box(b, float(b.sum())), b, atol=1e-6, rtol=0)
    v = torch.randn(7)
    z = to_sphere(v)
    assert float((z - 0.5).square().sum()) == pytest.approx(7 / 4, rel=1e-5)
    torch.testing.assert_close(
        (z - 0.5) / (z - 0.5).norm(), (v - 0.5) / (v - 0.5).norm(), atol=1e-5, rtol=0
    )
    assert float((to_sphere(torch.full((7,), 0.5)) - 0.5).square().sum()) == pytest.approx(7 / 4)


def attached(lr: float = 0.1, steps: int = 10, **options):
    net = convolutional()
    optimizer = torch.optim.SGD(net.parameters(), lr=lr)
    handle = sec.attach(
        net, optimizer, "factorized_filters", amount=0.5, steps=steps,
        example_inputs=pictures(1)[0][0], **options,
    )  # fmt: skip
    return net, optimizer, handle


def test_a_step_of_the_scalars_is_the_papers() -> None:
    _net, optimizer, handle = attached(lr=0.1, weak=0.5, strong=2.0, end=1.0)
    plain = convolutional()
    space = list(handle.gated.aux)[1]
    v = {s: torch.ones(n) for s, n in handle.units.counts.items()}
    state = {s: [t.clone(), t.clone(), 0 * t, 0 * t] for s, t in v.items()}
    for step, (x, y) in enumerate(pictures(4)):
        leaves = {s: t.clone().requires_grad_() for s, t in v.items()}
        a, b = leaves.values()
        out = plain[0](x) * a.view(1, -1, 1, 1)
        out = nn.functional.batch_norm(
            out, None, None, plain[1].weight * a, plain[1].bias * a, training=True
        ).relu()
        out = (plain[3](out) * b.view(1, -1, 1, 1)).relu()
        loss = nn.functional.cross_entropy(plain[6](out.flatten(1)), y)
        own = torch.autograd.grad(loss, [*leaves.values(), *plain.parameters()])
        with torch.no_grad():
            for p, g in zip(plain.parameters(), own[2:], strict=True):
                p -= 0.1 * g
        for (s, t), g in zip(v.items(), own[:2], strict=True):
            z1, z2, y1, y2 = state[s]
            rho = 0.5 * 4 ** (step / 10)
            g = 0.99 * (y1 + y2 + rho * (2 * t - z1 - z2)) + 0.01 * g
            t = t - 0.1 * g
            rho = 0.5 * 4 ** ((step + 1) / 10)
            z1, z2 = to_capped_box(t + y1 / rho, len(t) / 2), to_sphere(t + y2 / rho)
            v[s], state[s] = t, [z1, z2, y1 + rho * (t - z1), y2 + rho * (t - z2)]
        optimizer.zero_grad()
        nn.functional.cross_entropy(_net(x), y).backward()
        optimizer.step()
        torch.testing.assert_close(handle.gated.aux[space]["v"].detach(), v[space])
    for p, q in zip(_net.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(p, q)


def test_scalars_become_binary_and_exactly_the_asked_stay() -> None:
    net, optimizer, handle = attached(steps=100, weak=2.0, end=0.9)
    train(net, optimizer, pictures(90))
    for aux in handle.gated.aux.values():
        v = aux["v"].detach()
        assert float((v - v.round()).abs().max()) < 0.1
        assert int((v > 0.5).sum()) == len(v) // 2
    train(net, optimizer, pictures(10))
    result = handle.finish(remove=True, example_inputs=pictures(1)[0][0])
    assert result.verification.ok
    assert (result.model[0].out_channels, result.model[3].out_channels) == (4, 5)


def test_options_out_of_range_are_said() -> None:
    for wrong in ({"mix": 2.0}, {"weak": 9.0}, {"end": 0.0}):
        with pytest.raises(ConfigError, match="factorized_filters"):
            attached(**wrong)
