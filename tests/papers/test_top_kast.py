"""Top-KAST: what the forward sees, what gradients reach, and its term of the loss."""

import torch
from torch import nn

import secateur as sec


def attached(amount, **options):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(20, 30), nn.Tanh(), nn.Linear(30, 5))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    handle = sec.attach(net, optimizer, ("top_kast", options), amount=amount, steps=10)
    return net, optimizer, handle, torch.randn(40, 20), torch.randint(0, 5, (40,))


def largest(weight, number):
    order = sorted(range(weight.numel()), key=lambda i: -abs(weight.flatten()[i].item()))
    found = torch.zeros(weight.numel(), dtype=torch.bool)
    found[order[:number]] = True
    return found.view(weight.shape)


def test_the_forward_sees_a_and_gradients_reach_b() -> None:
    net, optimizer, handle, x, y = attached(0.8, explore=0.1, strength=0.0)
    for _ in range(4):
        weights = {n: net.get_parameter(n).detach().clone() for n in handle.masks}
        a = {n: largest(w, round(0.2 * w.numel())) for n, w in weights.items()}
        b = {n: largest(w, round(0.2 * w.numel()) + round(0.1 * w.numel()))
             for n, w in weights.items()}  # fmt: skip
        leaves = {n: (w * a[n]).requires_grad_() for n, w in weights.items()}
        hidden = (x @ leaves["0.weight"].T + net[0].bias).tanh()
        out = hidden @ leaves["2.weight"].T + net[2].bias
        torch.testing.assert_close(net(x), out)
        nn.functional.cross_entropy(out, y).backward()
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        for n in weights:
            grad = net.get_parameter(n).grad
            assert not bool(grad[~b[n]].any())
            torch.testing.assert_close(grad, leaves[n].grad * b[n])
            with torch.no_grad():  # the output does not depend on what is outside of A
                net.get_parameter(n)[~b[n]] *= 0.5
        torch.testing.assert_close(net(x), out)
        optimizer.step()


def test_the_term_of_the_loss_is_the_formula() -> None:
    net, optimizer, handle, _, _ = attached(0.8, explore=0.1, strength=0.01)
    expected = {}
    for n, mask in handle.masks.items():
        w = net.get_parameter(n).detach()
        b = largest(w, int(mask.sum()) + round(0.1 * w.numel()))
        density = int(mask.sum()) / mask.numel()
        push = 0.01 * w.sign() * torch.where(mask, 1.0, b / density)
        expected[n] = w - 0.1 * push
    optimizer.step()
    for n, w in expected.items():
        torch.testing.assert_close(net.get_parameter(n).detach(), w)


def test_amount_zero_is_dense_training() -> None:
    net, optimizer, _, x, y = attached(0.0, strength=0.0)
    other, plain, handle, _, _ = attached(0.0, strength=0.0)
    handle.detach()
    for model, steps in ((net, optimizer), (other, plain)):
        for _ in range(3):
            steps.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            steps.step()
    for a, b in zip(net.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)


def test_exploration_ends_where_asked_and_the_result_is_sparse() -> None:
    net, optimizer, handle, x, y = attached(0.8, stop=0.5, strength=0.0)
    for step in range(10):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        outside = sum(int((net.get_parameter(n).grad[~m] != 0).sum())
                      for n, m in handle.masks.items())  # fmt: skip
        assert (outside > 0) == (step < 5)
        optimizer.step()
    result = handle.finish()
    assert result.masks.kept == round(0.2 * 750)
    for n, mask in result.masks.items():
        assert not bool(net.get_parameter(n)[~mask].any())
